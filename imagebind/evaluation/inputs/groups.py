"""Which pairs are not independent of each other: groups, such as the clips of one prompt.

Ten clips of one prompt say little more than one of them, so an interval has to be computed over prompts.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Hashable, Sequence

from imagebind.evaluation.rules import compile_group_by
from imagebind.names import shorten

NUMBERED = re.compile(r"(.*[^\d_.-])[_.-]+\d+")  # dog_0, dog_1: one prompt's clips, it seems
LOOK_GROUPED = 0.5  # share of names that have to look like that

log = logging.getLogger(__name__)


def match_groups(names: Sequence[str], expression: str) -> list[str | None]:
    """Name the group of each name: what the first group of the expression matches, or None."""
    matches = map(compile_group_by(expression).search, names)
    return [match and (match[1] or None) for match in matches]


def group_names(names: Sequence[str], expression: str) -> list[str | None]:
    """As match_groups, with a warning of names that are in no group."""
    groups = match_groups(names, expression)
    if without := [name for name, group in zip(names, groups, strict=True) if group is None]:
        log.warning(
            "--group_by does not fit %d names; each is its own group: %s", len(without), shorten(without)
        )
    return groups


def find_groups(
    names: Sequence[str], group_by: str | None, of_captions: Sequence[str | None] | None
) -> list[str | None] | None:
    """Name the group of each pair; None where nothing is known of groups.

    Args:
        names: of the pairs.
        group_by: a regular expression on these names, or None.
        of_captions: the group that the pair's caption is in, or None.
    """
    if group_by is not None:
        return group_names(names, group_by)
    if of_captions is not None and any(group is not None for group in of_captions):
        return list(of_captions)
    hint_at_groups(names)
    return None


def hint_at_groups(names: Sequence[str]) -> None:
    """Say so where names look like several clips of each of several prompts."""
    matches = [match for name in names if (match := NUMBERED.fullmatch(name))]
    sizes = Counter(match[1] for match in matches)
    several = [match[0] for match in matches if sizes[match[1]] > 1]
    if len(sizes) > 1 and len(several) > LOOK_GROUPED * len(names):
        log.info(
            "names look grouped (%s); if pairs of one group are not independent, "
            r"--group_by '(.+)[_.-]+\d+' makes the intervals right",
            shorten(several),
        )


def number_groups(groups: Sequence[Hashable | None] | None) -> list[int] | None:
    """Number groups from 0; a pair without one is its own.

    >>> number_groups(["a", None, "a", None])
    [0, 1, 0, 3]
    """
    if groups is None:
        return None
    number: dict[Hashable, int] = {}
    return [i if group is None else number.setdefault(group, i) for i, group in enumerate(groups)]
