"""What belongs together over several systems: what is compared as one, and what is not independent."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

import numpy as np

from imagebind.evaluation.systems.runs import Pair

Unit = Sequence[Sequence[Pair]]  # what is compared as one: of each system its pairs


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


def groups_of(units: Sequence[Unit]) -> np.ndarray | None:
    """Number the groups of units (U,); those that are in one group in any system are in one.

    Returns:
        None where each is its own.
    """
    labels = [
        {(which, pair.group) for which, pairs in enumerate(unit) for pair in pairs if pair.group is not None}
        for unit in units
    ]
    groups = components(labels)
    return None if np.array_equal(groups, np.arange(len(groups))) else groups


def groups_of_pairs(pairs: Sequence[Pair]) -> np.ndarray | None:
    """As groups_of, for the pairs of one system."""
    return groups_of([[[pair]] for pair in pairs])


def is_new(groups: np.ndarray | None, units: Sequence[Unit]) -> bool:
    """Whether the joined groups of units are those of no system alone."""
    if not units:
        return False
    of_each = (groups_of([[pairs] for pairs in side]) for side in zip(*units, strict=True))
    return not any(np.array_equal(groups, own) for own in of_each)
