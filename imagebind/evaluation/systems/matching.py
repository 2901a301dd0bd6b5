"""The pairs that two systems have in common."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imagebind.evaluation.systems.runs import Kind, Pair, Run, values_of


@dataclass(frozen=True)
class CommonPairs:
    """The pairs that two systems have in common, P of them."""

    run: Run
    other: Run
    kind: Kind
    ours: list[Pair]
    theirs: list[Pair]
    scores: np.ndarray  # (P, 2)

    @classmethod
    def of(cls, run: Run, other: Run, kind: Kind) -> CommonPairs:
        """Match the pairs of two systems."""
        ours, theirs = run.having(kind), other.having(kind)
        matches = match_pairs(ours, theirs)
        ours, theirs = [ours[i] for i, _ in matches], [theirs[j] for _, j in matches]
        values = values_of(ours, run.key(kind)), values_of(theirs, other.key(kind))
        return cls(run, other, kind, ours, theirs, np.stack(values, axis=1))

    def largest_first(self) -> CommonPairs:
        """Sort them by the size of the difference."""
        order = np.argsort(-abs(self.scores[:, 0] - self.scores[:, 1]), kind="stable").tolist()
        ours, theirs = ([pairs[i] for i in order] for pairs in (self.ours, self.theirs))
        return replace(self, ours=ours, theirs=theirs, scores=self.scores[order])

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """Yield the lines of comparison_pairs.csv."""
        names = self.run.name, self.other.name, self.kind.protocol
        for pair, other, scores in zip(self.ours, self.theirs, self.scores.astype(np.float32), strict=True):
            figures = (*scores, float(scores[0]) - float(scores[1]))
            files = (source.path for source in (pair.audio, pair.video, other.audio, other.video))
            yield *names, pair.name, *figures, *files


def match_pairs(ours: Sequence[Pair], theirs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Find the pairs that two systems have in common.

    Pairs of the same audio and video key match, then among the others those of the same video key, then those
    of the same audio key; always only if each system has one such pair, or as many copies of one, in all or
    of each caption. So systems match that name their sounds, or their videos, in their own ways. Keys of
    listed files are whole paths, which differ from system to system: of these the ends are compared, the
    longest first.

    Returns:
        indices into both, in the order of `ours`.
    """
    matched = []
    left, right = range(len(ours)), range(len(theirs))
    keys = [key for pair in (*ours, *theirs) for key in (pair.audio_key, pair.video_key)]
    depths = [None]
    if any(os.path.isabs(key) for key in keys):
        depths += range(max(len(key.split("/")) for key in keys), 0, -1)
    for names in (("audio_key", "video_key"), ("video_key",), ("audio_key",)):
        for depth in depths:
            groups = defaultdict(lambda: ([], []))
            for which, (pairs, indices) in enumerate(((ours, left), (theirs, right))):
                for i in indices:
                    key = tuple(end_of(getattr(pairs[i], name), depth) for name in names)
                    groups[key][which].append(i)
            new = [match for a, b in groups.values() for match in match_copies(ours, theirs, a, b)]
            matched += new
            left, right = (sorted(set(x) - {m[i] for m in new}) for i, x in enumerate((left, right)))
    return sorted(matched)


def match_copies(
    ours: Sequence[Pair], theirs: Sequence[Pair], left: list[int], right: list[int]
) -> list[tuple[int, int]]:
    """Match the pairs of one key if each system has one, or as many copies: in all, or of each caption."""
    if len(left) == len(right) and are_copies(ours, left) and are_copies(theirs, right):
        return list(zip(left, right, strict=True))
    captions = {pairs[i].caption for pairs, indices in ((ours, left), (theirs, right)) for i in indices}
    if len(captions) < 2 or not left or not right:
        return []
    return [
        match
        for caption in captions
        for match in match_copies(
            ours,
            theirs,
            [i for i in left if ours[i].caption == caption],
            [i for i in right if theirs[i].caption == caption],
        )
    ]


def end_of(key: str, depth: int | None) -> str:
    """Return the last parts of a path, `depth` of them; all of it for None."""
    return key if depth is None else "/".join(key.split("/")[-depth:])


def are_copies(pairs: Sequence[Pair], indices: Sequence[int]) -> bool:
    """Whether some pairs of one key are one pair that was named several times."""
    return all(pairs[i].similarities == pairs[indices[0]].similarities for i in indices)
