"""Which pairs of two runs belong together."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from imagebind.evaluation.systems.runs import Pair


def match_pairs(ours: Sequence[Pair], theirs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Find the pairs that two runs have in common.

    Pairs of the same audio and video key match, then among the others those of the same video key, then those
    of the same audio key; always only if each run has one such pair, or as many copies of one, in all or
    of each caption. So systems match that name their sounds, or their videos, in their own ways. Where a run
    names its pairs by ids, those of the same path of the video match last. Keys of listed files are whole
    paths, which differ from run to run: of these, and of videos, the ends are compared, the longest first.

    Returns:
        indices into both, in the order of `ours`.
    """
    matched = []
    left, right = range(len(ours)), range(len(theirs))
    stages = [("audio_key", "video_key"), ("video_key",), ("audio_key",)]
    if any(pair.is_named for pair in (*ours, *theirs)):
        stages.append(("video_path",))
    for names in stages:
        for depth in depths_of((*ours, *theirs), names):
            groups = defaultdict(lambda: ([], []))
            for which, (pairs, indices) in enumerate(((ours, left), (theirs, right))):
                for i in indices:
                    key = tuple(end_of(getattr(pairs[i], name), depth) for name in names)
                    if all(key):
                        groups[key][which].append(i)
            new = [match for a, b in groups.values() for match in match_copies(ours, theirs, a, b)]
            matched += new
            left, right = (sorted(set(x) - {m[i] for m in new}) for i, x in enumerate((left, right)))
    return sorted(matched)


def match_copies(
    ours: Sequence[Pair], theirs: Sequence[Pair], left: list[int], right: list[int]
) -> list[tuple[int, int]]:
    """Match the pairs of one key if each run has one, or as many copies: in all, or of each caption."""
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


def depths_of(pairs: Sequence[Pair], names: Sequence[str]) -> list[int | None]:
    """List how many parts of the ends of keys are compared, as end_of."""
    keys = [getattr(pair, name) for pair in pairs for name in names]
    if names != ("video_path",) and not any(os.path.isabs(key) for key in keys):
        return [None]
    return [None, *range(max((len(key.split("/")) for key in keys), default=0), 0, -1)]


def end_of(key: str, depth: int | None) -> str:
    """Return the last parts of a path, `depth` of them; all of it for None."""
    return key if depth is None else "/".join(key.split("/")[-depth:])


def are_copies(pairs: Sequence[Pair], indices: Sequence[int]) -> bool:
    """Whether some pairs of one key are one pair that was named several times."""
    return all(pairs[i].similarities == pairs[indices[0]].similarities for i in indices)
