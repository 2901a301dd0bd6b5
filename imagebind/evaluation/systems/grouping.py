"""Which pairs of systems are not independent of each other."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np

from imagebind.evaluation.systems.runs import Pair


def components(labels: Sequence[Collection[Hashable]]) -> np.ndarray:
    """Number the connected components of items; those that share a label are connected.

    Returns:
        (P,) the number of the first item in the component of each.

    >>> components([["a"], ["b"], [], ["a", "b"]]).tolist()
    [0, 0, 2, 0]
    """
    above = list(range(len(labels)))
    first: dict[Hashable, int] = {}

    def root(i: int) -> int:
        while above[i] != i:
            above[i] = above[above[i]]
            i = above[i]
        return i

    for i, of_item in enumerate(labels):
        for label in of_item:
            low, high = sorted((root(i), root(first.setdefault(label, i))))
            above[high] = low
    return np.array([root(i) for i in range(len(labels))], np.int64)


def groups_of(*sides: Sequence[Pair]) -> np.ndarray | None:
    """Number the groups (P,) of the pairs of one system, or of those that several have in common.

    Pairs that are in one group in any of them are in one.

    Args:
        sides: the same P pairs as each system has them.

    Returns:
        None where each pair is its own.
    """
    labels = [
        [(which, pair.group) for which, pair in enumerate(pairs) if pair.group is not None]
        for pairs in zip(*sides, strict=True)
    ]
    groups = components(labels)
    return None if np.array_equal(groups, np.arange(len(groups))) else groups


def is_new(groups: np.ndarray | None, *sides: Sequence[Pair]) -> bool:
    """Whether joined groups are those of no system alone."""
    return all(not np.array_equal(groups, groups_of(pairs)) for pairs in sides)
