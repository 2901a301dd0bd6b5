"""Figures told apart by category: the kind of each pair, as the user names it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from imagebind.evaluation.compare.intervals import estimate_mean
from imagebind.evaluation.inputs.groups import join_copies


def describe_categories(
    similarity: np.ndarray,
    categories: Sequence[str | None],
    groups: Sequence[Hashable | None] | None,
    seed: int,
) -> dict[str, Any]:
    """Return the mean of each category with its interval, and the mean of these means.

    Args:
        similarity: (P,) of the pairs.
        categories: (P,) None: a pair is in none.
        groups: (P,) of the pairs; None: each is its own.
        seed: of the bootstrap.
    """
    members = defaultdict(list)
    for pair, category in enumerate(categories):
        if category is not None:
            members[category].append(pair)
    described = {}
    for category, pairs in sorted(members.items()):
        of_groups = None if groups is None else join_copies([groups[pair] for pair in pairs], pairs)
        mean = estimate_mean(similarity[pairs], seed, of_groups and np.array(of_groups), most=1)
        described[category] = {"pairs": len(pairs), "mean": mean.mean, "interval": mean.interval}
    return {"categories": described, "category_mean": mean_of_categories(similarity, categories)}


def mean_of_categories(scores: np.ndarray, categories: Sequence[str | None]) -> float | None:
    """Return the mean of the means of the categories, whatever their sizes; None: no score is in any.

    Args:
        scores: (P,) of pairs, NaN where one has none.
        categories: (P,) None: a pair is in none.
    """
    members = defaultdict(list)
    for score, category in zip(scores.tolist(), categories, strict=True):
        if category is not None and not math.isnan(score):
            members[category].append(score)
    means = [math.fsum(of) / len(of) for of in members.values()]
    return math.fsum(means) / len(means) if means else None
