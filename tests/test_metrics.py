"""Metrics, each against an obvious second computation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TESTS
from imagebind.similarity import TOP, Blocks, cosine_similarity, pair_keys, scan
from scipy import stats

from batch_inference import (
    RECALL_AT,
    SUSPECT_RATE,
    Cells,
    bootstrap_interval,
    compute_metrics,
    retrieval_metrics,
    true_cells,
)
from imagebind import similarity


def embeddings_of(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make rows whose cosines are the scores (N, M), all of them made smaller alike."""
    m = scores.shape[1]
    scores = scores / max(1, np.linalg.norm(scores, axis=1).max())
    rest = np.sqrt(np.maximum(1 - np.square(scores).sum(axis=1, keepdims=True), 0))
    return np.concatenate([scores, rest], axis=1).astype(np.float32), np.eye(m, m + 1, dtype=np.float32)


def measure(scores: np.ndarray, truth, also_true=()):
    """Give the cosines as a matrix, the metrics of them, and the scores of pairs."""
    audio, video = embeddings_of(scores)
    pairs, true = (
        Cells(places, pair_keys(audio, video, places))
        for cells in (list(truth), sorted({*truth, *also_true}))
        for places in [np.array(cells, int).reshape(-1, 2)]
    )
    found = scan(Blocks(audio, video), pairs.places, pairs.keys)
    return cosine_similarity(audio, video), *compute_metrics(found, pairs, true)


def plain_cosine(a, b) -> float:
    dot = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(float(x) ** 2 for x in a) * math.fsum(float(y) ** 2 for y in b))


def plain_rank(scores, true) -> float:
    """The mean place of the true item over all orders in which a sort could leave its equals."""
    others = [score for i, score in enumerate(scores) if i != true]
    first = 1 + sum(score > scores[true] for score in others)
    last = first + sum(score == scores[true] for score in others)
    return (first + last) / 2


def scores_of(kind: str, n: int, m: int) -> np.ndarray:
    rng = np.random.default_rng(n * 1000 + m)
    return {
        "random": rng.standard_normal((n, m)),
        "negative": -rng.random((n, m)),
        "coarse": rng.integers(0, 4, (n, m)) / 4,  # many ties
        "equal": np.full((n, m), 0.25),
    }[kind].astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 11, 200])
@pytest.mark.parametrize("kind", ["random", "negative", "coarse", "equal"])
def test_ranks_and_recall_are_those_of_a_plain_count(kind, n):
    cosines, metrics, _, _ = measure(scores_of(kind, n, n), [(i, i) for i in range(n)])
    for scores, figures in ((cosines, metrics), (cosines.T, metrics["video_to_audio"])):
        ranks = [plain_rank(list(scores[i]), i) for i in range(n)]
        assert figures["mean_rank"] == pytest.approx(sum(ranks) / n)
        assert figures["median_rank"] == pytest.approx(
            sorted(ranks)[n // 2] / 2 + sorted(ranks)[(n - 1) // 2] / 2
        )
        for k in RECALL_AT:
            assert figures[f"recall_at_{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / n)


def test_truth_needs_no_diagonal():
    """In retrieval mode a sound's video stands anywhere, and other videos belong to nobody."""
    truth = [(3, 0), (0, 8), (4, 4)]
    cosines, metrics, scores, _ = measure(scores_of("random", 5, 9), truth)
    assert scores["video_rank"].tolist() == [plain_rank(list(cosines[i]), j) for i, j in truth]
    assert scores["audio_rank"].tolist() == [plain_rank(list(cosines[:, j]), i) for i, j in truth]
    assert metrics["paired_similarities"] == [float(cosines[i, j]) for i, j in truth]


def test_statistics_are_those_of_the_numbers():
    cosines, metrics, _, _ = measure(scores_of("random", 7, 7), [(i, i) for i in range(7)])
    diagonal = [float(cosines[i, i]) for i in range(7)]
    mean = math.fsum(diagonal) / 7
    assert metrics["paired_similarity_mean"] == pytest.approx(mean)
    assert metrics["paired_similarity_std"] == pytest.approx(
        math.sqrt(math.fsum((x - mean) ** 2 for x in diagonal) / 7)
    )
    assert metrics["paired_similarity_min"] == min(diagonal)
    assert metrics["paired_similarity_max"] == max(diagonal)
    every = cosines.ravel().tolist()
    mean = math.fsum(every) / 49
    assert metrics["similarity_matrix_mean"] == pytest.approx(mean, abs=1e-7)
    assert metrics["similarity_matrix_std"] == pytest.approx(
        math.sqrt(math.fsum((x - mean) ** 2 for x in every) / 49)
    )


def test_a_single_pair_is_defined():
    _, metrics, scores, _ = measure(np.array([[0.3]]), [(0, 0)])
    assert metrics["paired_similarity_std"] == 0
    assert metrics["mean_rank"] == metrics["median_rank"] == 1
    assert [metrics[f"recall_at_{k}"] for k in RECALL_AT] == [1, 1, 1]
    assert metrics["paired_similarity_interval"] is None
    assert "auc" not in metrics  # there is no mismatch
    assert "suspect" not in scores


def test_recall_beyond_the_set_is_certain():
    figures = retrieval_metrics(np.array([3.0, 1.0, 2.0]), 3)
    assert figures["recall_at_5"] == figures["recall_at_10"] == 1
    assert figures["recall_at_1"] == figures["recall_at_1_chance"] == pytest.approx(1 / 3)
    assert figures["recall_at_5_chance"] == 1
    assert figures["mean_reciprocal_rank"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)


@pytest.mark.parametrize("n", [2, 24, 1500])
def test_an_embedder_that_always_says_the_same_scores_chance(n):
    """One constant vector for every file: the middle rank, and no hit that a tie could make."""
    row = np.random.default_rng(0).standard_normal((1, 1024)).astype(np.float32)
    audio, video = np.repeat(row, n, 0), np.repeat(-3 * row, n, 0)
    places = np.stack([np.arange(n)] * 2, 1)
    pairs = Cells(places, pair_keys(audio, video, places))
    metrics, scores, _ = compute_metrics(scan(Blocks(audio, video), pairs.places, pairs.keys), pairs, pairs)
    assert metrics["mean_rank"] == metrics["median_rank"] == (n + 1) / 2
    assert metrics["recall_at_1"] == 0
    assert metrics["auc"] == 0.5
    assert set(scores["p_value"]) == {1}
    assert metrics["similarity_matrix_std"] == pytest.approx(0, abs=1e-6)


def test_without_truth_ranks_are_left_out():
    _, metrics, scores, _ = measure(scores_of("random", 3, 4), [])
    assert set(metrics) == {"similarity_matrix_mean", "similarity_matrix_std"}
    assert scores == {}


# Against mismatched pairs

TRUTH = {  # of a matrix of 11 x 13: a diagonal, pairs anywhere, and files that stand in several pairs
    "diagonal": [(i, i) for i in range(11)],
    "anywhere": [(3, 0), (0, 12), (10, 4)],
    "shared": [(0, 0), (0, 1), (5, 1), (5, 1)],
}


@pytest.mark.parametrize("kind", TRUTH)
def test_histograms_count_pairs_and_all_other_cells(kind):
    truth = TRUTH[kind]
    cosines, _, _, histograms = measure(scores_of("random", 11, 13), truth, also_true=[(9, 9)])
    mismatched = [cosines[i, j] for i in range(11) for j in range(13) if (i, j) not in {*truth, (9, 9)}]
    for side, values in (("paired", [cosines[i, j] for i, j in truth]), ("mismatched", mismatched)):
        assert histograms[side].tolist() == np.histogram(values, histograms["edges"])[0].tolist()


@pytest.mark.parametrize("kind", ["random", "negative", "coarse", "equal"])
@pytest.mark.parametrize("truth", TRUTH.values(), ids=TRUTH)
def test_mismatches_are_all_other_cells(kind, truth):
    cosines, metrics, scores, _ = measure(scores_of(kind, 11, 13), truth)
    cells = [(i, j) for i in range(11) for j in range(13) if (i, j) not in truth]
    others = [float(cosines[cell]) for cell in cells]
    paired = [float(cosines[cell]) for cell in truth]
    assert metrics["mismatched_similarity_mean"] == pytest.approx(np.mean(others), abs=1e-7)
    assert metrics["mismatched_similarity_std"] == pytest.approx(np.std(others), abs=1e-6)
    assert metrics["margin"] == pytest.approx(np.mean(paired) - np.mean(others), abs=1e-7)
    u = stats.mannwhitneyu(paired, others).statistic
    assert metrics["auc"] == pytest.approx(u / (len(paired) * len(others)))
    for k, (row, column) in enumerate(truth):
        n_as_similar = sum(other >= paired[k] for other in others)
        assert scores["p_value"][k] == pytest.approx((1 + n_as_similar) / (1 + len(others)))
        beside = [float(cosines[c]) for c in cells if c[0] == row or c[1] == column]
        share = sum(other < paired[k] for other in beside) / len(beside)
        assert scores["percentile"][k] == pytest.approx(share)
    told = stats.false_discovery_control(scores["p_value"], method="bh") <= SUSPECT_RATE
    assert scores["suspect"].tolist() == (~told).tolist()
    assert metrics["suspects"] == (~told).sum()
    assert metrics["mean_reciprocal_rank"] == pytest.approx(np.mean(1 / scores["video_rank"]))
    assert [metrics[f"paired_similarity_{q}"] for q in ("q1", "median", "q3")] == pytest.approx(
        stats.scoreatpercentile(paired, [25, 50, 75])
    )


def fields_of(found) -> dict:
    fields = {name: getattr(found, name) for name in ("n_above", "n_equal", "bins", "levels", "level_keys")}
    return fields | {f"top_{side}": top.best for side, top in enumerate(found.top)} | {"sum": found.sum}


@pytest.mark.parametrize("tile", [(4, 3), (1, 50), (7, 11)])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_tiles_and_threads_change_no_count(tile, n_threads, monkeypatch):
    """With equal rows among them, and pairs anywhere: not by a bit."""
    rng = np.random.default_rng(0)
    audio, video = (rng.standard_normal((n, 64)).astype(np.float32)[rng.integers(0, n, n)] for n in (37, 50))
    truth = np.stack([rng.integers(0, n, 40) for n in (37, 50)], axis=1)
    keys = pair_keys(audio, video, truth)
    expected = scan(Blocks(audio, video), truth, keys)
    matrix = np.empty((37, 50), np.float32)

    def keep(row, column, part):
        matrix[row : row + part.shape[0], column : column + part.shape[1]] = part

    monkeypatch.setattr(similarity, "TILE", tile)
    monkeypatch.setattr(similarity, "TILES_AT_A_TIME", 2)
    monkeypatch.setattr(similarity, "HELD_CELLS", 5)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = scan(Blocks(audio, video), truth, keys, keep)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for name, values in fields_of(expected).items():
        np.testing.assert_array_equal(fields_of(found)[name], values, err_msg=name)
    assert math.fsum(found.squares) == pytest.approx(math.fsum(expected.squares), rel=1e-12)
    np.testing.assert_array_equal(matrix, cosine_similarity(audio, video))


@pytest.mark.parametrize("kind", ["random", "coarse", "equal"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 3), (40, 60)])
def test_the_best_matches_are_the_first_of_a_sorted_line(kind, n, m, monkeypatch):
    monkeypatch.setattr(similarity, "TILE", (16, 12))
    audio, video = embeddings_of(scores_of(kind, n, m))
    cosines = cosine_similarity(audio, video)
    found = scan(Blocks(audio, video), np.empty((0, 2), int), np.empty(0, np.int32))
    for top, lines in zip(found.top, (cosines, cosines.T), strict=True):
        for line, places, scores in zip(lines, top.places, top.similarities, strict=True):
            expected = np.argsort(-line, kind="stable")[:TOP]
            assert places[places >= 0].tolist() == expected.tolist()
            assert scores[places >= 0].tolist() == line[expected].tolist()


def test_a_case_known_by_hand():
    """Two pairs above all six mismatches but one, which is as similar as the second."""
    scores = np.array([[0.8, 0.1, 0.2, 0.4], [0.3, 0.4, 0.0, 0.1]])
    _, metrics, scores, _ = measure(scores, [(0, 0), (1, 1)])
    assert metrics["mismatched_similarity_mean"] == pytest.approx(1.1 / 6, abs=1e-7)
    assert metrics["margin"] == pytest.approx(0.6 - 1.1 / 6, abs=1e-7)
    assert metrics["auc"] == pytest.approx((6 + 5.5) / 12)
    assert scores["percentile"].tolist() == [1, 1]
    assert scores["p_value"] == pytest.approx([1 / 7, 2 / 7])
    assert metrics["suspects"] is None  # six mismatches tell nothing at 0.05
    assert "suspect" not in scores


def test_cells_of_files_that_stand_there_twice_are_no_mismatches():
    """One sound with two videos, by position: rows 0 and 1 are the same sound."""
    cells = set(true_cells(["a", "a", "b"], ["x", "y", "z"], [("a", "x"), ("a", "y"), ("b", "z")]))
    assert cells == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)}
    cosines, metrics, _, _ = measure(scores_of("random", 3, 3), [(0, 0), (1, 1), (2, 2)], cells)
    others = [cosines[cell] for cell in ((0, 2), (1, 2), (2, 0), (2, 1))]
    assert metrics["mismatched_similarity_mean"] == pytest.approx(np.mean(others), abs=1e-7)


def test_the_interval_is_that_of_the_bootstrap():
    values = np.random.default_rng(0).gamma(2, size=60)
    interval = bootstrap_interval(values, seed=1)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(5))
    assert interval == pytest.approx(list(expected.confidence_interval), rel=0.02)
    assert bootstrap_interval(values, seed=1) == interval != bootstrap_interval(values, seed=2)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (1100, 2)])
def test_cosines_are_those_of_normalised_rows(n, m):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((n, 64)).astype(np.float32) * rng.uniform(0.1, 20, (n, 1)).astype(np.float32)
    b = rng.standard_normal((m, 64)).astype(np.float32)
    cosines = cosine_similarity(a, b)
    assert cosines.shape == (n, m)
    assert cosines.dtype == np.float32
    for i, j in {(0, 0), (n - 1, m - 1), (n // 2, m // 2)}:
        assert cosines[i, j] == pytest.approx(plain_cosine(a[i], b[j]), abs=1e-7)


def test_a_row_of_zeros_is_like_nothing():
    assert cosine_similarity(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)).tolist() == [[0]]


def test_memory_is_bounded_by_the_tile_and_not_by_the_matrix():
    """20,000 x 20,000 cosines are 1.6 GB; in a process of its own, whose peak is its alone."""
    code = """
import numpy as np
from pathlib import Path
from imagebind.similarity import Blocks, pair_keys, scan

def memory(what):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if what in line)
    return int(line.split()[1]) / 1e6

rows = np.random.default_rng(0).standard_normal((20_000, 8), dtype=np.float32)
truth = np.stack([np.arange(len(rows))] * 2, axis=1)
before = memory("VmRSS")
found = scan(Blocks(rows, rows), truth, pair_keys(rows, rows, truth))
assert found.n_above.sum() == 0  # each is the most like itself
print(memory("VmHWM") - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 0.6
