"""What is compared: a finished run, or several seeds of one system."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.systems.grouping import components
from imagebind.evaluation.systems.matching import match_units
from imagebind.evaluation.systems.runs import (
    COMPARED,
    Kind,
    Pair,
    Run,
    compared_figures,
    find_difference,
    read_run,
    regroup,
)

BETWEEN = "+"  # the directories of the seeds of one system


@dataclass(frozen=True)
class System:
    """A system by its finished runs: one, or several seeds."""

    name: str
    seeds: list[Run]
    pairs: list[Pair]  # of all seeds; those of one video are one group

    @property
    def first_protocol(self) -> str:
        return self.seeds[0].first_protocol

    def having(self, kind: Kind) -> list[Pair]:
        """The pairs that have a similarity of this kind, seed by seed."""
        return [pair for pair in self.pairs if kind in pair.similarities]

    def figures(self, kind: Kind) -> dict[str, Any]:
        """Look up the figures of COMPARED: means over the seeds, and how many were skipped in all of them.

        Of a protocol that is not the first of a run, the pairs that it dropped.
        """
        of_seeds = [figures_of(run, kind) for run in self.seeds if run.having(kind)]
        if len(of_seeds) == 1:
            return of_seeds[0]
        found = {}
        for column in COMPARED:
            values = [figures[column] for figures in of_seeds]
            total = None if None in values else sum(values)
            mean = total if column == "skipped" or total is None else total / len(values)
            found[column] = int(mean) if column == "suspects" and mean is not None and mean % 1 == 0 else mean
        return found


def figures_of(run: Run, kind: Kind) -> dict[str, Any]:
    """Look up the figures of COMPARED; of a protocol that is not the first, the pairs it dropped."""
    if kind.protocol == run.first_protocol:
        return compared_figures(
            run.metrics if kind.agreement == "audio_video" else run.metrics[kind.agreement]
        )
    score = run.metrics["scores"][kind.protocol]
    return dict.fromkeys(COMPARED) | {"skipped": score["n_pairs"] - score["n_scored"]}


def read_systems(
    names: Sequence[str | os.PathLike],
    group_by: str | None,
    category_by: str | None,
    reference: str | os.PathLike | None,
) -> tuple[list[System], System | None]:
    """Read the finished runs of systems, and of the reference, which is one of them, or the last.

    Raises, and the arguments:
        as compare_systems.
    """
    names = list(map(os.fspath, names))
    folders = [folders_of(name) for name in names]
    if reference is not None:
        names.append(os.fspath(reference))
        folders.append(folders_of(names[-1]))
        real = [sorted(map(os.path.realpath, of_system)) for of_system in folders]
        place = real.index(real[-1])
        if place < len(names) - 1:  # one of the systems
            del names[-1], folders[-1]
    for folder, n_uses in Counter(os.path.realpath(f) for of_system in folders for f in of_system).items():
        if n_uses > 1:
            raise EvaluationError(f"{folder}: named twice")
    systems = []
    for name, of_system in zip(names, folders, strict=True):
        seeds = [regroup(read_run(folder), group_by, category_by) for folder in of_system]
        if len(seeds) > 1 and (difference := find_difference(seeds)):
            raise EvaluationError(f"{difference}; the seeds of one system have to be computed in one way")
        systems.append(System(name, seeds, seeds[0].pairs if len(seeds) == 1 else join_seeds(seeds)))
    return systems, None if reference is None else systems[place]


def folders_of(name: str) -> list[str]:
    """List the directories of a system; one whose very name has a "+" is one.

    >>> folders_of("out/seed1+out/seed2"), folders_of("out+")
    (['out/seed1', 'out/seed2'], ['out+'])
    """
    folders = name.split(BETWEEN)
    return [name] if os.path.isdir(name) or not all(folders) else folders


def join_seeds(seeds: Sequence[Run]) -> list[Pair]:
    """List the pairs of all seeds; those of one video are one group, and so are those of one group."""
    labels = [[[("video", pair.video_key)] for pair in run.pairs] for run in seeds]
    for of_run, run in zip(labels, seeds, strict=True):
        for of_pair, pair in zip(of_run, run.pairs, strict=True):
            of_pair += [] if pair.group is None else [("group", pair.group)]
    for a, b in combinations(range(len(seeds)), 2):
        for number, (*both, _) in enumerate(match_units(seeds[a].pairs, seeds[b].pairs)):
            for which, indices in zip((a, b), both, strict=True):
                for i in indices:
                    labels[which][i].append((a, b, number))
    pairs = [pair for run in seeds for pair in run.pairs]
    groups = components([of_pair for of_run in labels for of_pair in of_run]).tolist()
    return [replace(pair, group=str(group)) for pair, group in zip(pairs, groups, strict=True)]
