"""What several systems have in common, and the scores of two on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from imagebind.evaluation.systems.grouping import Unit, components
from imagebind.evaluation.systems.matching import match_units
from imagebind.evaluation.systems.runs import Kind, Run

# Columns of comparison.csv, of what all systems have, and of what one lacks that another has
COMMON_COLUMNS = ("common_pairs", "common_mean", "common_low", "common_high", "lacks")


class Matching:
    """Which pairs of systems belong together.

    Args:
        systems: of which those are kept that have pairs of this kind.
        kind: of the similarities.
    """

    def __init__(self, systems: Sequence[Run], kind: Kind):
        self.kind = kind
        self.systems = [system for system in systems if system.having(kind)]
        self.pairs = [system.having(kind) for system in self.systems]
        self.labels = [[[] for _ in pairs] for pairs in self.pairs]  # (system, other system, number of match)
        for a, b in combinations(range(len(self.systems)), 2):
            for number, both in enumerate(match_units(self.pairs[a], self.pairs[b])):
                for system, indices in zip((a, b), both, strict=True):
                    for i in indices:
                        self.labels[system][i].append((a, b, number))

    def units(self, chosen: Sequence[int]) -> list[Unit]:
        """List what some of the systems have, matched: of each of them its pairs, which may be none."""
        items = [(which, i) for which, system in enumerate(chosen) for i in range(len(self.pairs[system]))]
        among = set(combinations(sorted(chosen), 2))
        labels = [
            [label for label in self.labels[chosen[which]][i] if label[:2] in among] for which, i in items
        ]
        units = defaultdict(lambda: [[] for _ in chosen])
        for number, (which, i) in zip(components(labels).tolist(), items, strict=True):
            units[number][which].append(self.pairs[chosen[which]][i])
        return list(units.values())

    def common(self, a: int, b: int) -> CommonPairs:
        """Return what two systems have in common."""
        units = [unit for unit in self.units([a, b]) if all(unit)]
        return CommonPairs(self.systems[a], self.systems[b], self.kind, units, scores_of(units, self.kind))


def scores_of(units: Sequence[Unit], kind: Kind) -> np.ndarray:
    """Return the mean similarity of the pairs of each unit in each system (U, S)."""
    return np.array(
        [[sum(pair.similarities[kind] for pair in pairs) / len(pairs) for pairs in unit] for unit in units]
    )


@dataclass(frozen=True)
class CommonPairs:
    """What two systems have in common, U units."""

    run: Run
    other: Run
    kind: Kind
    units: list[Unit]
    scores: np.ndarray  # (U, 2)

    def largest_first(self) -> CommonPairs:
        """Sort them by the size of the difference."""
        if not self.units:
            return self
        order = np.argsort(-abs(self.scores[:, 0] - self.scores[:, 1]), kind="stable").tolist()
        return replace(self, units=[self.units[i] for i in order], scores=self.scores[order])

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """Yield the lines of comparison_pairs.csv."""
        names = self.run.name, self.other.name, self.kind.protocol
        for unit, scores in zip(self.units, self.scores.astype(np.float32), strict=True):
            pair, other = (pairs[0] for pairs in unit)
            figures = (*scores, float(scores[0]) - float(scores[1]))
            files = (source.path for source in (pair.audio, pair.video, other.audio, other.video))
            yield *names, pair.name, *figures, *files, *map(len, unit)
