"""Which pairs of two runs belong together."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from imagebind.evaluation.systems.runs import Pair


def match_units(ours: Sequence[Pair], theirs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """Find what two runs have in common: pairs, and several pairs of one key against as many as there are.

    Of the pairs that match no other one, all of one video key, then of one audio key, of one group, or of one
    path of the video are matched with all of that key in the other run, as five sounds for a video with the
    one that it came with. Ends of keys match as in match_pairs, if each run has one such key. A group has to
    be left whole: what is left of one is other clips than what is left of it in the other run.

    Returns:
        indices into both.
    """
    units = [([i], [k]) for i, k in match_pairs(ours, theirs)]
    for name in ("video_key", "audio_key", "group", *paths_of(ours, theirs)):
        of_keys = []
        for which, pairs in enumerate((ours, theirs)):
            matched = {i for unit in units for i in unit[which]}
            left = [i for i in range(len(pairs)) if i not in matched and getattr(pairs[i], name)]
            broken = {pairs[i].group for i in matched} if name == "group" else ()
            keys = defaultdict(list)
            for i in left:
                keys[getattr(pairs[i], name)].append(i)
            of_keys.append({key: indices for key, indices in keys.items() if key not in broken})
        depths = [None] if name == "group" else depths_of((*ours, *theirs), (name,))
        units += match_keys(*of_keys, depths)
    return units


def match_keys(
    ours: dict[str, list[int]], theirs: dict[str, list[int]], depths: Sequence[int | None]
) -> list[tuple[list[int], list[int]]]:
    """Match the pairs of one key in each run if the ends of the two are equal, and of no other key."""
    matched = []
    for depth in depths:
        ends = defaultdict(lambda: ([], []))
        for which, keys in enumerate((ours, theirs)):
            for key in keys:
                ends[end_of(key, depth)][which].append(key)
        for a, b in ends.values():
            if len(a) == len(b) == 1:
                matched.append((ours.pop(a[0]), theirs.pop(b[0])))
    return matched


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
    for names in [*stages, *((name,) for name in paths_of(ours, theirs))]:
        for depth in depths_of((*ours, *theirs), names):
            if not left or not right:
                return sorted(matched)
            groups = defaultdict(lambda: ([], []))
            for which, (pairs, indices) in enumerate(((ours, left), (theirs, right))):
                for i in indices:
                    key = tuple(end_of(getattr(pairs[i], name), depth) for name in names)
                    if all(key):
                        groups[key][which].append(i)
            both = [(a, b) for a, b in groups.values() if a and b]
            new = [match for a, b in both for match in match_copies(ours, theirs, a, b)]
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
    if len(captions) < 2:
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


def paths_of(*runs: Sequence[Pair]) -> list[str]:
    """Name what pairs match by last: the paths of videos, where a run names pairs by ids."""
    return ["video_path"] if any(pair.is_named for pairs in runs for pair in pairs) else []


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
