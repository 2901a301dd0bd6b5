"""Figures, each against an obvious second computation over the whole matrix."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from imagebind.evaluation.compare.candidates import RECALL_AT, Candidates, retrieval_metrics
from imagebind.evaluation.compare.comparison import Comparison
from imagebind.evaluation.compare.positives import find_positives
from imagebind.evaluation.compare.similarity import cosine_similarity
from imagebind.evaluation.compare.suspects import FALSE_DISCOVERY_RATE, SAMPLE_SIZE, sample_mismatches


def embeddings_of(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make rows whose cosines are the scores (N, M), all of them made smaller alike."""
    m = scores.shape[1]
    scores = scores / max(1, np.linalg.norm(scores, axis=1).max())
    rest = np.sqrt(np.maximum(1 - np.square(scores).sum(axis=1, keepdims=True), 0))
    return np.concatenate([scores, rest], axis=1).astype(np.float32), np.eye(m, m + 1, dtype=np.float32)


def scores_of(kind: str, n: int, m: int) -> np.ndarray:
    rng = np.random.default_rng(n * 1000 + m)
    return {
        "random": rng.standard_normal((n, m)),
        "negative": -rng.random((n, m)),
        "coarse": rng.integers(0, 4, (n, m)) / 4,  # many ties
        "equal": np.full((n, m), 0.25),
        "zero": rng.standard_normal((n, m)) * (rng.random((n, 1)) < 0.5),  # some rows are like nothing
    }[kind].astype(np.float32)


@dataclass
class Case:
    """A similarity matrix, what is true in it, and what was found."""

    cosines: np.ndarray
    pairs: list[tuple[int, int]]
    is_true: np.ndarray  # (N, M)
    metrics: dict
    scores: dict
    histograms: dict
    candidates: dict

    @property
    def mismatches(self) -> np.ndarray:
        return self.cosines[~self.is_true].astype(np.float64)


def measure(
    audio, video, pairs, audio_keys=None, video_keys=None, groups=None, seed=0, alike=((), ())
) -> Case:
    """Compute all figures; keys are of what is behind the rows, by default something of its own for each."""
    keys = [list(range(len(audio))) if audio_keys is None else list(audio_keys)]
    keys.append(list(range(len(video))) if video_keys is None else list(video_keys))
    index = np.array(pairs, np.int64).reshape(-1, 2)
    together = {(keys[0][i], keys[1][j]) for i, j in pairs}
    numbers = ({key: i for i, key in enumerate(dict.fromkeys(of))} for of in keys)
    contents = [[number[key] for key in of] for number, of in zip(numbers, keys, strict=True)]
    comparison = Comparison(
        dict(zip(("audio", "video"), contents, strict=True)),
        {"audio": audio, "video": video},
        torch.device("cpu"),
        seed,
    )
    named = None if groups is None else list(groups)
    compared = comparison.compare_all(comparison.matrix(("audio", "video"), index, named, alike=alike))
    is_true = np.array([[(a, v) in together for v in keys[1]] for a in keys[0]])
    for (i, label), (j, other) in itertools.product(*alike):
        is_true[i, j] |= label == other
    found = compared.metrics, compared.columns, compared.histograms, compared.candidates
    return Case(cosine_similarity(audio, video), pairs, is_true, *found)


def measure_scores(scores: np.ndarray, pairs, **more) -> Case:
    return measure(*embeddings_of(scores), pairs, **more)


def competitors(case: Case, pair: tuple[int, int], axis: int) -> list[float]:
    """The mismatches in the row (axis 0) or the column (1) of a pair."""
    i, j = pair
    line, true = (x[i] if axis == 0 else x[:, j] for x in (case.cosines, case.is_true))
    return line[~true].tolist()


def orders(score: float, others: list[float]) -> list[int]:
    """All ranks that the pair can have, over the orders in which a sort could leave its equals."""
    first = 1 + sum(other > score for other in others)
    return [first + k for k in range(1 + sum(other == score for other in others))]


def check_ranks(case: Case) -> None:
    """Ranks, recall, reciprocal rank and chance, of both directions, by plain loops."""
    for axis, figures, column in (
        (0, case.metrics, "video_rank"),
        (1, case.metrics["video_to_audio"], "audio_rank"),
    ):
        lines = [competitors(case, pair, axis) for pair in case.pairs]
        ranks = [orders(case.cosines[pair], line) for pair, line in zip(case.pairs, lines, strict=True)]
        means = [np.mean(rank) for rank in ranks]
        assert case.scores[column].tolist() == pytest.approx(means)
        assert figures["mean_rank"] == pytest.approx(np.mean(means))
        assert figures["median_rank"] == pytest.approx(np.median(means))
        reciprocal = np.mean([np.mean([1 / r for r in rank]) for rank in ranks])
        assert figures["mean_reciprocal_rank"] == pytest.approx(reciprocal)
        for k in RECALL_AT:
            recall = np.mean([np.mean([r <= k for r in rank]) for rank in ranks])
            assert figures[f"recall_at_{k}"] == pytest.approx(recall)
            chance = np.mean([min(1, k / (len(line) + 1)) for line in lines])
            assert figures[f"recall_at_{k}_chance"] == pytest.approx(chance)


def check_mismatches(case: Case) -> None:
    """Statistics of the mismatches, AUC and percentiles, by plain loops."""
    metrics, others = case.metrics, case.mismatches
    paired = np.array([case.cosines[pair] for pair in case.pairs], np.float64)
    if not len(others):
        assert "auc" not in metrics
        return
    assert metrics["mismatched_similarity_mean"] == pytest.approx(others.mean(), abs=1e-7)
    assert metrics["mismatched_similarity_std"] == pytest.approx(others.std(), abs=1e-6)
    assert metrics["margin"] == pytest.approx(paired.mean() - others.mean(), abs=1e-7)
    u = stats.mannwhitneyu(paired, others).statistic
    assert metrics["auc"] == pytest.approx(u / (len(paired) * len(others)))
    for k, pair in enumerate(case.pairs):
        beside = competitors(case, pair, 0) + competitors(case, pair, 1)
        lower = sum((other < paired[k]) + (other == paired[k]) / 2 for other in beside)
        percentile = case.scores["percentile"][k]
        assert math.isnan(percentile) if not beside else percentile == pytest.approx(lower / len(beside))


def rank_product(case: Case, cell: tuple[int, int]) -> float:
    """The share of a cell's row that is at least as similar, times that of its column."""
    product = 1.0
    for axis in (0, 1):
        line, true = (x[cell[0]] if axis == 0 else x[:, cell[1]] for x in (case.cosines, case.is_true))
        at_least = line >= case.cosines[cell]
        if case.is_true[cell]:
            product *= (at_least[~true].sum() + 1) / ((~true).sum() + 1)
        elif true.any():
            product *= (at_least[~true].sum() + at_least[true].mean()) / ((~true).sum() + 1)
        else:
            product *= at_least.mean()
    return product


def check_suspects(case: Case) -> None:
    """p-values and suspects, where all mismatches are in the sample."""
    if not len(case.mismatches):
        return
    null = np.array(
        [rank_product(case, cell) for cell in np.argwhere(~case.is_true).tolist() for cell in [tuple(cell)]]
    )
    products = [rank_product(case, pair) for pair in case.pairs]
    p_values = [(1 + (null <= product * (1 + 1e-9)).sum()) / (1 + len(null)) for product in products]
    assert case.scores["p_value"] == pytest.approx(p_values)
    if 1 / (1 + len(null)) > FALSE_DISCOVERY_RATE / len(case.pairs):
        assert case.metrics["suspects"] is None
        assert "suspect" not in case.scores
        return
    told = stats.false_discovery_control(p_values, method="bh") <= FALSE_DISCOVERY_RATE
    assert case.scores["suspect"].tolist() == (~told).tolist()
    assert case.metrics["suspects"] == (~told).sum()


KINDS = ["random", "negative", "coarse", "equal", "zero"]
TRUTH = {  # of a matrix of 11 x 13: a diagonal, pairs anywhere, and files that stand in several pairs
    "diagonal": [(i, i) for i in range(11)],
    "anywhere": [(3, 0), (0, 12), (10, 4)],
    "shared": [(0, 0), (0, 1), (5, 1), (5, 1)],
    "one": [(7, 7)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", TRUTH.values(), ids=TRUTH)
def test_figures_are_those_of_plain_loops(kind, pairs):
    case = measure_scores(scores_of(kind, 11, 13), pairs)
    check_ranks(case)
    check_mismatches(case)
    check_suspects(case)


@pytest.mark.parametrize("seed", range(40))
def test_figures_are_those_of_plain_loops_on_random_cases(seed):
    """Sizes of 1 to 40; ties; contents under several names; several captions a file, and files a caption."""
    rng = np.random.default_rng(seed)
    n, m, width = rng.integers(1, 41, 3)
    audio_keys, video_keys = (rng.integers(0, rng.integers(1, 2 * size + 1), size) for size in (n, m))
    coarse = rng.random() < 0.5
    rows = []
    for keys in (audio_keys, video_keys):  # equal contents have equal embeddings
        made = (
            rng.integers(-1, 2, (keys.max() + 1, 3))
            if coarse
            else rng.standard_normal((keys.max() + 1, width))
        )
        rows.append(made[keys].astype(np.float32))
    pairs = [(int(rng.integers(n)), int(rng.integers(m))) for _ in range(rng.integers(1, 2 * n + 1))]
    case = measure(*rows, pairs, audio_keys.tolist(), video_keys.tolist())
    check_ranks(case)
    check_mismatches(case)
    check_suspects(case)


@pytest.mark.parametrize("n", range(1, 41))
def test_a_model_that_always_says_the_same_scores_chance_in_every_figure(n):
    row = np.random.default_rng(0).standard_normal((1, 1024)).astype(np.float32)
    case = measure(np.repeat(row, n, 0), np.repeat(-3 * row, n, 0), [(i, i) for i in range(n)])
    for figures in (case.metrics, case.metrics["video_to_audio"]):
        assert figures["mean_rank"] == figures["median_rank"] == (n + 1) / 2
        assert figures["mean_reciprocal_rank"] == pytest.approx(sum(1 / k for k in range(1, n + 1)) / n)
        for k in RECALL_AT:
            assert figures[f"recall_at_{k}"] == pytest.approx(min(1, k / n))
            assert figures[f"recall_at_{k}"] == pytest.approx(figures[f"recall_at_{k}_chance"])
    assert case.metrics["similarity_matrix_std"] == pytest.approx(0, abs=1e-6)
    if n > 1:
        assert case.metrics["auc"] == 0.5
        assert set(case.scores["percentile"]) == {0.5}
        assert set(case.scores["p_value"]) == {1}
        assert case.metrics["margin"] == pytest.approx(0, abs=1e-7)
        assert case.metrics["mismatched_similarity_std"] == pytest.approx(0, abs=1e-6)
        assert case.metrics["suspects"] in (None, n)


@pytest.mark.parametrize("n_labels", [1, 2, 10, 100])
def test_a_perfect_model_scores_1_also_with_labels_as_captions(n_labels):
    """100 files; in retrieval mode a label is one row, in pairing mode a row for each file."""
    labels = np.arange(100) % n_labels
    units = np.eye(n_labels, dtype=np.float32)
    for rows, pairs in (
        (np.arange(n_labels), [(int(label), i) for i, label in enumerate(labels)]),
        (labels, [(i, i) for i in range(100)]),
    ):
        case = measure(units[rows], units[labels], pairs, rows.tolist())
        for figures in (case.metrics, case.metrics["video_to_audio"]):
            assert figures["mean_rank"] == figures["median_rank"] == figures["mean_reciprocal_rank"] == 1
            assert [figures[f"recall_at_{k}"] for k in RECALL_AT] == [1, 1, 1]
        if n_labels > 1:
            assert case.metrics["auc"] == 1
            assert set(case.scores["percentile"]) == {1}


def test_pairing_and_retrieval_mode_agree_on_a_perfect_model():
    """Four sounds for each of ten videos, by position or each once."""
    videos = np.eye(10, dtype=np.float32)
    of_sound = np.arange(40) // 4
    by_position = measure(
        videos[of_sound], videos[of_sound], [(i, i) for i in range(40)], None, of_sound.tolist()
    )
    each_once = measure(videos[of_sound], videos, list(enumerate(of_sound.tolist())))
    for case in (by_position, each_once):
        assert case.metrics["recall_at_1"] == case.metrics["video_to_audio"]["recall_at_1"] == 1
    assert by_position.metrics["recall_at_1_chance"] == pytest.approx(1 / 37)
    assert each_once.metrics["recall_at_1_chance"] == pytest.approx(1 / 10)


def test_statistics_are_those_of_the_numbers():
    case = measure_scores(scores_of("random", 7, 7), [(i, i) for i in range(7)])
    diagonal, metrics = np.diag(case.cosines).astype(np.float64), case.metrics
    assert metrics["paired_similarity_mean"] == pytest.approx(diagonal.mean())
    assert metrics["paired_similarity_std"] == pytest.approx(diagonal.std())
    assert metrics["paired_similarity_min"] == diagonal.min()
    assert metrics["paired_similarity_max"] == diagonal.max()
    assert metrics["paired_similarities"] == diagonal.tolist()
    assert metrics["similarity_matrix_mean"] == pytest.approx(case.cosines.mean(dtype=float), abs=1e-7)
    assert metrics["similarity_matrix_std"] == pytest.approx(case.cosines.std(dtype=float))
    assert [metrics[f"paired_similarity_{q}"] for q in ("q1", "median", "q3")] == pytest.approx(
        stats.scoreatpercentile(diagonal, [25, 50, 75])
    )


def test_groups_are_counted_where_there_are_any():
    scores, pairs = scores_of("random", 7, 7), [(i, i) for i in range(7)]
    groups = np.array([0, 0, 4, 4, 2, 2, 2])
    assert measure_scores(scores, pairs, groups=groups).metrics["groups"] == 3
    assert "groups" not in measure_scores(scores, pairs).metrics


def test_few_mismatches_that_are_equal_deviate_by_nothing():
    """Sums are exact, and the pairs' cosines are taken from them unrounded."""
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((2, 1024)).astype(np.float32)
    case = measure(audio, audio, [(0, 0), (1, 1)])
    assert case.metrics["mismatched_similarity_std"] < 2e-8
    assert case.metrics["mismatched_similarity_mean"] == pytest.approx(float(case.cosines[0, 1]), abs=1e-7)


def test_opposed_rows_of_equal_entries_stay_from_minus_1_to_1():
    """Rounding takes their products beyond it."""
    rows = np.zeros((3, 64), np.float32)
    rows[:, :24] = 1
    case = measure(rows, np.concatenate([rows[:1], -rows[:2]]), [(0, 0), (1, 1), (2, 2)])
    assert case.cosines.tolist() == [[1, -1, -1]] * 3
    assert case.metrics["paired_similarity_max"] == 1
    assert case.metrics["paired_similarity_min"] == -1


def test_a_single_pair_is_defined():
    case = measure_scores(np.array([[0.3]]), [(0, 0)])
    assert case.metrics["paired_similarity_std"] == 0
    assert case.metrics["mean_rank"] == case.metrics["median_rank"] == 1
    assert [case.metrics[f"recall_at_{k}"] for k in RECALL_AT] == [1, 1, 1]
    assert case.metrics["paired_similarity_interval"] is None
    assert "auc" not in case.metrics  # there is no mismatch
    assert "suspect" not in case.scores


def test_recall_beyond_the_set_is_certain():
    candidates = Candidates(np.array([2, 0, 1]), np.array([1, 1, 1]), np.array([3, 3, 3]))
    figures = retrieval_metrics(candidates)
    assert figures["recall_at_5"] == figures["recall_at_10"] == 1
    assert figures["recall_at_1"] == figures["recall_at_1_chance"] == pytest.approx(1 / 3)
    assert figures["recall_at_5_chance"] == 1
    assert figures["mean_reciprocal_rank"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)


def test_without_truth_ranks_are_left_out():
    case = measure_scores(scores_of("random", 3, 4), [])
    assert set(case.metrics) == {"similarity_matrix_mean", "similarity_matrix_std"}
    assert case.scores == {}


@pytest.mark.parametrize("kind", TRUTH)
def test_histograms_count_pairs_and_mismatches(kind):
    pairs = TRUTH[kind]
    audio, video = embeddings_of(scores_of("random", 11, 13))
    video[12] = video[11]
    case = measure(audio, video, pairs, video_keys=[*range(12), 11])
    edges = case.histograms["edges"]
    for side, values in (("paired", [case.cosines[pair] for pair in pairs]), ("mismatched", case.mismatches)):
        assert case.histograms[side].tolist() == np.histogram(values, edges)[0].tolist()


def test_a_case_known_by_hand():
    """Two pairs above all six mismatches but one, which is as similar as the second."""
    scores = np.array([[0.8, 0.1, 0.2, 0.4], [0.3, 0.4, 0.0, 0.1]])
    case = measure_scores(scores, [(0, 0), (1, 1)])
    assert case.metrics["mismatched_similarity_mean"] == pytest.approx(1.1 / 6, abs=1e-7)
    assert case.metrics["margin"] == pytest.approx(0.6 - 1.1 / 6, abs=1e-7)
    assert case.metrics["auc"] == pytest.approx((6 + 5.5) / 12)
    assert case.scores["percentile"].tolist() == [1, 1]
    # rank products: the pairs' are 1/4 x 1/2; of mismatches (0, 3) has 1/2 x 1/2, (1, 0) 1/2 x 1
    assert case.scores["p_value"] == pytest.approx([1 / 7, 1 / 7])
    assert case.metrics["suspects"] is None  # two pairs are too few
    assert "suspect" not in case.scores


def test_one_bad_pair_does_not_make_five_good_ones_suspects():
    scores = np.full((6, 6), 0.1) + np.eye(6) * 0.5
    scores[5, 5] = -0.2
    assert measure_scores(scores, [(i, i) for i in range(6)]).metrics["suspects"] is None
    scores = np.full((30, 30), 0.01) + np.eye(30) * 0.1
    scores[5, 5] = -0.2
    case = measure_scores(scores, [(i, i) for i in range(30)])
    assert np.flatnonzero(case.scores["suspect"]).tolist() == [5]


@pytest.mark.parametrize(("shape", "suspects"), [((4, 5), 0), ((3, 6), None)])
def test_a_single_pair_is_told_from_19_mismatches_and_not_from_17(shape, suspects):
    """1 / 20 is just the accepted rate."""
    scores = np.zeros(shape)
    scores[0, 0] = 0.5
    assert measure_scores(scores, [(0, 0)]).metrics["suspects"] == suspects


@pytest.mark.parametrize("seed", range(3))
def test_suspects_are_those_of_the_step_up(seed):
    """Where a lower p-value fails its own threshold, and where one threshold for all would tell more."""
    rng = np.random.default_rng(seed)
    audio = rng.standard_normal((40, 16)).astype(np.float32)
    video = (audio + 2 * rng.standard_normal((40, 16))).astype(np.float32)
    case = measure(audio, video, [(i, i) for i in range(40)])
    check_suspects(case)
    p_values = np.sort(case.scores["p_value"])
    assert p_values[0] > FALSE_DISCOVERY_RATE / 40
    assert 0 < (~case.scores["suspect"]).sum() < (p_values <= FALSE_DISCOVERY_RATE).sum()


def test_a_large_matrix_is_sampled_by_seed_without_true_cells():
    keys = np.arange(3000) % 700
    truth = find_positives(range(3000), keys.tolist(), enumerate(keys.tolist()))
    sample = sample_mismatches((3000, 3000), truth, 1)
    assert len(sample) == SAMPLE_SIZE
    assert not truth.contains(sample).any()
    assert not np.array_equal(sample, sample_mismatches((3000, 3000), truth, 2))
    assert np.array_equal(sample, sample_mismatches((3000, 3000), truth, 1))
    thin = find_positives(range(3), range(10**6), zip(range(3), range(3), strict=True))
    assert len(sample_mismatches((3, 10**6), thin, 0)) == SAMPLE_SIZE


def test_a_sample_gives_nearly_the_p_values_of_all_mismatches():
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((400, 32)).astype(np.float32)
    video = (audio + 1.5 * rng.standard_normal((400, 32))).astype(np.float32)
    case = measure(audio, video, [(i, i) for i in range(400)])  # 159,600 mismatches
    null = np.array(
        [
            rank_product(case, cell)
            for cell in itertools.product(range(0, 400, 4), range(400))
            if cell[0] != cell[1]
        ]
    )
    products = np.array([rank_product(case, pair) for pair in case.pairs])
    p_values = (1 + (null[:, None] <= products * (1 + 1e-9)).sum(0)) / (1 + len(null))
    assert np.abs(case.scores["p_value"] - p_values).max() < 0.02
