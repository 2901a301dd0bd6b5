"""Which pairs of two runs belong together."""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

from imagebind.evaluation.systems.runs import Pair

KEYS = ("audio_key", "video_key")
BY_GROUP = "group"
ALONE = (BY_GROUP, "audio_key")  # what says little of which pair is which
Keys = dict[str, tuple[list[str], list[str]]]  # by a name, of the pairs of two runs; "" matches nothing


def match_units(ours: Sequence[Pair], theirs: Sequence[Pair]) -> list[tuple[list[int], list[int], str]]:
    """Find what two runs have in common: pairs, and several pairs of one key against as many as there are.

    Of the pairs that match no other one, all of one video key, then of one audio key, of one group, or of one
    path of the video are matched with all of that key in the other run, as five sounds for a video with the
    one that it came with. A group has to be left whole: what is left of one is other clips than what is left
    of it in the other run.

    Returns:
        indices into both, and of ALONE what alone says so, else "".
    """
    keys = keys_of(ours, theirs)
    units = [([i], [k], by) for i, k, by in match_pairs(ours, theirs, keys)]
    for name in (*stages_of(keys, ("video_key", "audio_key")), BY_GROUP):
        of_keys = []
        for which, pairs in enumerate((ours, theirs)):
            matched = {i for unit in units for i in unit[which]}
            values = [pair.group for pair in pairs] if name == BY_GROUP else keys[name][which]
            broken = {pairs[i].group for i in matched} if name == BY_GROUP else ()
            left = defaultdict(list)
            for i, value in enumerate(values):
                if value and i not in matched and value not in broken:
                    left[value].append(i)
            of_keys.append(left)
        by = name if name in ALONE else ""
        units += [(indices, of_keys[1][key], by) for key, indices in of_keys[0].items() if key in of_keys[1]]
    return units


def stages_of(keys: Keys, names: Sequence[Any]) -> list[Any]:
    """List by what pairs match, in order: where one run has ids, the videos come before its ids.

    Where some videos are in both runs, a sound of one name tells nothing of pairs with other videos.
    """
    more = list(keys)[len(KEYS) :]
    ours, theirs = keys["video_key"]
    if (set(ours) & set(theirs)) - {""}:
        names = [name for name in names if name not in ("audio_key", ("audio_key",))]
    more = [(name,) if isinstance(names[0], tuple) else name for name in more]
    return [*more, *names] if "video_path" in keys else [*names, *more]


def match_pairs(ours: Sequence[Pair], theirs: Sequence[Pair], keys: Keys) -> list[tuple[int, int, str]]:
    """Find the pairs that two runs have in common.

    Pairs of the same audio and video key match, then among the others those of the same video key, then those
    of the same audio key; always only if each run has one such pair, or as many copies of one, in all or
    of each caption. So systems match that name their sounds, or their videos, in their own ways. Where a run
    names its pairs by ids, see stages_of.

    Returns:
        indices into both, in the order of `ours`, and of ALONE what alone says so, else "".
    """
    matched = []
    left, right = range(len(ours)), range(len(theirs))
    stages = [("audio_key", "video_key"), ("video_key",), ("audio_key",)]
    for names in stages_of(keys, stages):
        groups = defaultdict(lambda: ([], []))
        for which, indices in enumerate((left, right)):
            for i in indices:
                key = tuple(keys[name][which][i] for name in names)
                if all(key):
                    groups[key][which].append(i)
        both = [(a, b) for a, b in groups.values() if a and b]
        new = [match for a, b in both for match in match_copies(ours, theirs, a, b)]
        by = names[0] if len(names) == 1 and names[0] in ALONE else ""
        matched += [(*match, by) for match in new]
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


def keys_of(ours: Sequence[Pair], theirs: Sequence[Pair]) -> Keys:
    """List by what the pairs of two runs match: their keys, and the videos where a run names pairs by ids.

    Keys of listed files are whole paths, which differ from run to run: of these, and of the paths of videos,
    the ends count, as in strip_keys. Where both runs have ids, these say which pairs are equal, and a video
    has to be the very same file.
    """
    keys = {name: tuple([getattr(pair, name) for pair in run] for run in (ours, theirs)) for name in KEYS}
    named = [[pair.is_named for pair in run] for run in (ours, theirs)]
    if all(map(all, named)):
        return keys | {"video_file": tuple([pair.video_file for pair in run] for run in (ours, theirs))}
    keys = {
        name: strip_keys(*both) if any(map(os.path.isabs, itertools.chain(*both))) else both
        for name, both in keys.items()
    }
    if any(map(any, named)):
        paths = ([pair.video_path for pair in run] for run in (ours, theirs))
        keys["video_path"] = strip_keys(*paths)
    return keys


def strip_keys(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Drop the first parts of paths, as many of all of a run: of all ways that under which most are equal.

    Of several ways it is the one that drops least. One way for all, as ends that are chosen for each would
    match clips that either run alone has: a/v3/audio and b/v5/audio.

    Returns:
        keys that are equal, if they are, for one path of each run; "" for those of several paths.

    >>> strip_keys(["/a/v1/audio", "/a/v3/audio"], ["/b/v1/audio", "/b/v5/audio"])
    (['v1/audio', 'v3/audio'], ['v1/audio', 'v5/audio'])
    """
    runs = set(ours) - {""}, set(theirs) - {""}
    lengths = [Counter(key.count("/") + 1 for key in run) for run in runs]

    @cache
    def ends(which: int, n: int) -> set[str]:
        """The ends of the paths of a run that are of one path each."""
        found = Counter(end_of(key, n) for key in runs[which])
        return {end for end, count in found.items() if end and count == 1}

    best, most = (0, 0), 0
    ways = itertools.product(*(range(max(of_run, default=1)) for of_run in lengths))
    for i, j in sorted(ways, key=lambda way: (sum(way), abs(way[0] - way[1]))):
        possible = sum(min(n, lengths[1][length - i + j]) for length, n in lengths[0].items() if length > i)
        if possible > most and (n_equal := len(ends(0, i) & ends(1, j))) > most:
            best, most = (i, j), n_equal
    told = [ends(which, n) for which, n in enumerate(best)]
    stripped = ([end_of(key, n) for key in run] for run, n in zip((ours, theirs), best, strict=True))
    return tuple(
        [key if key in of_run else "" for key in keys] for keys, of_run in zip(stripped, told, strict=True)
    )


def end_of(key: str, n: int) -> str:
    """Return a path without its first parts; "" if it has no more."""
    parts = key.split("/", n)
    return parts[n] if len(parts) > n else ""


def are_copies(pairs: Sequence[Pair], indices: Sequence[int]) -> bool:
    """Whether some pairs of one key are one pair that was named several times."""
    return all(pairs[i].similarities == pairs[indices[0]].similarities for i in indices)
