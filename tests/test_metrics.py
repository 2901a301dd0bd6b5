"""Metrics, each against an obvious second computation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batch_inference import RECALL_AT, compute_metrics, cosine_similarity, retrieval_metrics, true_ranks


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
    similarity = scores_of(kind, n, n)
    metrics = compute_metrics(similarity, [(i, i) for i in range(n)])
    for scores, figures in ((similarity, metrics), (similarity.T, metrics["video_to_audio"])):
        ranks = [plain_rank(list(scores[i]), i) for i in range(n)]
        assert figures["mean_rank"] == pytest.approx(sum(ranks) / n)
        assert figures["median_rank"] == pytest.approx(
            sorted(ranks)[n // 2] / 2 + sorted(ranks)[(n - 1) // 2] / 2
        )
        for k in RECALL_AT:
            assert figures[f"recall_at_{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / n)


def test_truth_needs_no_diagonal():
    """In retrieval mode a sound's video stands anywhere, and other videos belong to nobody."""
    similarity = scores_of("random", 5, 9)
    truth = [(3, 0), (0, 8), (4, 4)]
    ranks = true_ranks(similarity, truth)
    assert ranks.tolist() == [plain_rank(list(similarity[i]), j) for i, j in truth]
    paired = compute_metrics(similarity, truth)["paired_similarities"]
    assert paired == [float(similarity[i, j]) for i, j in truth]


def test_statistics_are_those_of_the_numbers():
    similarity = scores_of("random", 7, 7).astype(np.float64)
    metrics = compute_metrics(similarity, [(i, i) for i in range(7)])
    diagonal = [similarity[i, i] for i in range(7)]
    mean = math.fsum(diagonal) / 7
    assert metrics["paired_similarity_mean"] == pytest.approx(mean)
    assert metrics["paired_similarity_std"] == pytest.approx(
        math.sqrt(math.fsum((x - mean) ** 2 for x in diagonal) / 7)
    )
    assert metrics["paired_similarity_min"] == min(diagonal)
    assert metrics["paired_similarity_max"] == max(diagonal)
    every = similarity.ravel().tolist()
    mean = math.fsum(every) / 49
    assert metrics["similarity_matrix_mean"] == pytest.approx(mean)
    assert metrics["similarity_matrix_std"] == pytest.approx(
        math.sqrt(math.fsum((x - mean) ** 2 for x in every) / 49)
    )


def test_a_single_pair_is_defined():
    metrics = compute_metrics(np.array([[0.3]], np.float32), [(0, 0)])
    assert metrics["paired_similarity_std"] == 0
    assert metrics["mean_rank"] == metrics["median_rank"] == 1
    assert [metrics[f"recall_at_{k}"] for k in RECALL_AT] == [1, 1, 1]


def test_recall_beyond_the_set_is_certain():
    figures = retrieval_metrics(np.array([3.0, 1.0, 2.0]))
    assert figures["recall_at_5"] == figures["recall_at_10"] == 1
    assert figures["recall_at_1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("n", [2, 24, 1500])
def test_an_embedder_that_always_says_the_same_scores_chance(n):
    """One constant vector for every file: the middle rank, and no hit that a tie could make."""
    row = np.random.default_rng(0).standard_normal((1, 1024)).astype(np.float32)
    similarity = cosine_similarity(np.repeat(row, n, 0), np.repeat(-3 * row, n, 0))
    metrics = compute_metrics(similarity, [(i, i) for i in range(n)])
    assert metrics["mean_rank"] == metrics["median_rank"] == (n + 1) / 2
    assert metrics["recall_at_1"] == 0


def test_without_truth_ranks_are_left_out():
    assert set(compute_metrics(scores_of("random", 3, 4), [])) == {
        "similarity_matrix_mean",
        "similarity_matrix_std",
    }


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (1100, 2)])
def test_cosines_are_those_of_normalised_rows(n, m):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((n, 64)).astype(np.float32) * rng.uniform(0.1, 20, (n, 1)).astype(np.float32)
    b = rng.standard_normal((m, 64)).astype(np.float32)
    similarity = cosine_similarity(a, b)
    assert similarity.shape == (n, m)
    assert similarity.dtype == np.float32
    for i, j in {(0, 0), (n - 1, m - 1), (n // 2, m // 2)}:
        assert similarity[i, j] == pytest.approx(plain_cosine(a[i], b[j]), abs=1e-7)


def test_a_row_of_zeros_is_like_nothing():
    assert cosine_similarity(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)).tolist() == [[0]]
