"""What several systems have in common, and the scores of two on it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np

from imagebind.evaluation.systems.grouping import Unit, components
from imagebind.evaluation.systems.matching import match_units
from imagebind.evaluation.systems.runs import Kind
from imagebind.evaluation.systems.seeds import System

# Columns of comparison.csv, of what all systems have, and of what one lacks that another has
COMMON_COLUMNS = ("common_pairs", "common_mean", "common_low", "common_high", "lacks")

log = logging.getLogger(__name__)


class Matching:
    """Which pairs of systems belong together.

    Args:
        systems: of which those are kept that have pairs of this kind.
        kind: of the similarities.
    """

    def __init__(self, systems: Sequence[System], kind: Kind):
        self.kind = kind
        self.systems = [system for system in systems if system.having(kind)]
        self.pairs = [system.having(kind) for system in self.systems]
        seeds = [[run.having(kind) for run in system.seeds] for system in self.systems]
        of_seeds = [[[[] for _ in pairs] for pairs in of_system] for of_system in seeds]
        self.seeds = [[seed for seed, of in enumerate(of_system) for _ in of] for of_system in seeds]
        self.by_group = set()  # (system, other system, seed, pair) of what its group alone matches
        places = [(which, seed) for which, of_system in enumerate(seeds) for seed in range(len(of_system))]
        for (a, i), (b, k) in combinations(places, 2):
            for number, (*both, by) in enumerate(match_units(seeds[a][i], seeds[b][k])):
                self.by_group |= {(a, b, i, n) for n in both[0] if by}
                for labels, indices in zip((of_seeds[a][i], of_seeds[b][k]), both, strict=True):
                    for n in indices:
                        labels[n].append((a, b, i, k, number))
        # of each pair of each system: (system, other system, seed, other seed, number) of what it matches
        self.labels = [[labels for of_seed in of_system for labels in of_seed] for of_system in of_seeds]

    @property
    def has_common(self) -> bool:
        """Whether any two systems have anything in common."""
        return any(label[0] != label[1] for of in self.labels for labels in of for label in labels)

    def units(self, chosen: Sequence[int]) -> list[Unit]:
        """List what some of the systems have, matched: of each of them its pairs, which may be none."""
        items = [(which, i) for which, system in enumerate(chosen) for i in range(len(self.pairs[system]))]
        among = set(combinations_with_replacement(sorted(chosen), 2))
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
        by_group = sum(of[:2] == (a, b) for of in self.by_group)
        scores = scores_of(units, self.kind)
        return CommonPairs(self.systems[a], self.systems[b], self.kind, units, scores, by_group)

    def spread(self, which: int) -> dict[str, Any]:
        """Return how many seeds a system has, and the standard deviation of their means.

        It is over what all seeds have, as the means of other pairs differ by these too; None of one seed, or
        where nothing is in all.
        """
        of_system = self.seeds[which]
        names = [run.name for run in self.systems[which].seeds if run.having(self.kind)]
        among = [[label for label in labels if label[:2] == (which, which)] for labels in self.labels[which]]
        units = defaultdict(lambda: [[] for _ in names])
        numbers = {seed: n for n, seed in enumerate(sorted(set(of_system)))}
        for unit, pair, seed in zip(components(among).tolist(), self.pairs[which], of_system, strict=True):
            units[unit][numbers[seed]].append(pair)
        common = [unit for unit in units.values() if all(unit)]
        lacks = [sum(not unit[n] for unit in units.values()) for n in range(len(names))]
        if any(lacks) and self.kind == Kind("audio_video", self.systems[which].first_protocol):
            each = ", ".join(f"{name} lacks {n}" for name, n in zip(names, lacks, strict=True))
            log.warning("seeds have other pairs: %s; seed_std is over the %d of all", each, len(common))
        is_told = common and len(names) > 1
        deviation = float(np.std(scores_of(common, self.kind).mean(0), ddof=1)) if is_told else None
        return {"seeds": len(names), "seed_std": deviation}


def scores_of(units: Sequence[Unit], kind: Kind) -> np.ndarray:
    """Return the mean similarity of the pairs of each unit in each system (U, S)."""
    return np.array(
        [[sum(pair.similarities[kind] for pair in pairs) / len(pairs) for pairs in unit] for unit in units]
    )


@dataclass(frozen=True)
class CommonPairs:
    """What two systems have in common, U units."""

    system: System
    other: System
    kind: Kind
    units: list[Unit]
    scores: np.ndarray  # (U, 2)
    by_group: int  # how many pairs of the first match by their group alone

    def largest_first(self) -> CommonPairs:
        """Sort them by the size of the difference."""
        if not self.units:
            return self
        order = np.argsort(-abs(self.scores[:, 0] - self.scores[:, 1]), kind="stable").tolist()
        return replace(self, units=[self.units[i] for i in order], scores=self.scores[order])

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """Yield the lines of comparison_pairs.csv."""
        names = self.system.name, self.other.name, self.kind.protocol
        for unit, scores in zip(self.units, self.scores.astype(np.float32), strict=True):
            pair, other = (pairs[0] for pairs in unit)
            figures = (*scores, float(scores[0]) - float(scores[1]))
            files = (source.path for source in (pair.audio, pair.video, other.audio, other.video))
            yield *names, pair.name, *figures, *files, *map(len, unit)
