"""Metrics, each against an obvious second computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from imagebind.evaluation.metrics import (
    FALSE_DISCOVERY_RATE,
    RECALL_AT,
    bootstrap_interval,
    compute_metrics,
    retrieval_metrics,
)
from imagebind.evaluation.rows import find_non_mismatches
from imagebind.evaluation.similarity import cosine_similarity, look_up, scan


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
        look_up(audio, video, places)
        for cells in (list(truth), sorted({*truth, *also_true}))
        for places in [np.array(cells, int).reshape(-1, 2)]
    )
    found = scan(audio, video, pairs)
    return cosine_similarity(audio, video), *compute_metrics(found, pairs, true, 0, ("audio", "video"))


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
    pairs = look_up(audio, video, places)
    metrics, scores, _ = compute_metrics(scan(audio, video, pairs), pairs, pairs, 0, ("audio", "video"))
    assert metrics["mean_rank"] == metrics["median_rank"] == (n + 1) / 2
    assert metrics["recall_at_1"] == 0
    assert metrics["auc"] == 0.5
    assert set(scores["p_value"]) == {1}
    assert metrics["similarity_matrix_std"] == pytest.approx(0, abs=1e-6)


def test_without_truth_ranks_are_left_out():
    _, metrics, scores, _ = measure(scores_of("random", 3, 4), [])
    assert set(metrics) == {"similarity_matrix_mean", "similarity_matrix_std"}
    assert scores == {}


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
    told = stats.false_discovery_control(scores["p_value"], method="bh") <= FALSE_DISCOVERY_RATE
    assert scores["suspect"].tolist() == (~told).tolist()
    assert metrics["suspects"] == (~told).sum()
    assert metrics["mean_reciprocal_rank"] == pytest.approx(np.mean(1 / scores["video_rank"]))
    assert [metrics[f"paired_similarity_{q}"] for q in ("q1", "median", "q3")] == pytest.approx(
        stats.scoreatpercentile(paired, [25, 50, 75])
    )


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
    pairs = [("a", "x"), ("a", "y"), ("b", "z")]
    found = find_non_mismatches(["a", "a", "b"], ["x", "y", "z"], pairs, np.array([(0, 0), (1, 1), (2, 2)]))
    cells = set(map(tuple, found.tolist()))
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
