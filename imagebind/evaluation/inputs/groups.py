"""Which pairs are not independent of each other: groups, such as the clips of one prompt.

Ten clips of one prompt say little more than one of them, so an interval has to be computed over prompts.
"""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.rules import compile_group_by
from imagebind.names import shorten
from imagebind.spelling import option as spelled

NUMBERED = re.compile(r"(.*[^\d_.-])[_.-]+\d+")  # dog_0, dog_1: one prompt's clips, it seems
LOOK_GROUPED = 0.5  # share of names that have to look like that

CONTENT_GROUP = "content_group"  # what the parentheses are called where all of a group show the same

log = logging.getLogger(__name__)


def match_groups(names: Sequence[str], expression: str) -> list[str | None]:
    """Name the group of each name: what the first parentheses of the expression match, or None."""
    pattern = compile_group_by(expression)
    which = pattern.groupindex.get(CONTENT_GROUP, 1)
    return [match and (match[which] or None) for match in map(pattern.search, names)]


def means_content(expression: str | None) -> bool:
    """Whether an expression says that all of a group show the same, by what it calls its parentheses."""
    return expression is not None and CONTENT_GROUP in compile_group_by(expression).groupindex


def are_contents(source: str, is_column: bool, group_by: str | None) -> bool:
    """Tell whether all of a group show the same: by a column of the source, or by an expression.

    Raises:
        EvaluationError: the expression would undo what the column says.
    """
    by_expression = means_content(group_by)
    if is_column and group_by is not None and not by_expression:
        raise EvaluationError(
            f"{source}: has {CONTENT_GROUP}, in whose place {spelled('group_by')} comes; leave one out, or "
            f"call its parentheses (?P<{CONTENT_GROUP}>...)"
        )
    return is_column or by_expression


def group_names(names: Sequence[str], expression: str, option: str = "group_by") -> list[str | None]:
    """As match_groups, with a warning of names that are in no group."""
    groups = match_groups(names, expression)
    if without := [name for name, group in zip(names, groups, strict=True) if group is None]:
        what = "each is its own group" if option == "group_by" else "they have none"
        log.warning("%s does not fit %d names; %s: %s", spelled(option), len(without), what, shorten(without))
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
        return in_one_spelling(group_names(names, group_by))
    if of_captions is not None and any(group is not None for group in of_captions):
        return in_one_spelling(of_captions)
    hint_at_groups(names)
    return None


def find_categories(
    names: Sequence[str], category_by: str | None, given: Sequence[str | None] | None
) -> list[str | None] | None:
    """Name the category of each pair; None where nothing is known of them.

    Args:
        names: of the pairs.
        category_by: a regular expression on these names, or None.
        given: the category of each pair, or None.
    """
    if category_by is not None:
        return in_one_spelling(group_names(names, category_by, "category_by"))
    return in_one_spelling(given) if given and any(category is not None for category in given) else None


def in_one_spelling(labels: Sequence[str | None]) -> list[str | None]:
    """Spell labels in Unicode's NFC, in which one name is spelt in one way."""
    return [label and unicodedata.normalize("NFC", label) for label in labels]


def hint_at_groups(names: Sequence[str]) -> None:
    """Say so where names look like several clips of each of several prompts."""
    matches = [match for name in names if (match := NUMBERED.fullmatch(name))]
    sizes = Counter(match[1] for match in matches)
    several = [match[0] for match in matches if sizes[match[1]] > 1]
    if len(sizes) > 1 and len(several) > LOOK_GROUPED * len(names):
        log.info(
            "names look grouped (%s); if pairs of one group are not independent, %s makes the intervals "
            "right",
            *(shorten(several), spelled("group_by", r"'(.+)[_.-]+\d+'")),
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


def name_copies(
    groups: Sequence[str | None] | None, copy_of: Sequence[int | None], names: Sequence[str]
) -> list[str | None] | None:
    """Give pairs of the same content a group: the first that one of them has, or one with their first name.

    Args:
        groups: (P,) of the pairs; None: there are none.
        copy_of: (P,) which pair was the first of the same content; None for that one.
        names: (P,) of the pairs; two may have the same.

    >>> name_copies(None, [None, None, 0, 1, None], ["a", "a", "b", "c", "d"])
    ['a', 'a (2)', 'a', 'a (2)', None]
    >>> name_copies(["g", None, None], [None, 0, None], ["a", "b", "c"])
    ['g', 'g', None]
    """
    if groups is None and all(of is None for of in copy_of):
        return None
    named = list(groups or [None] * len(names))
    copies = defaultdict(list)
    for pair, of in enumerate(copy_of):
        copies[pair if of is None else of].append(pair)
    taken = set(named)
    for pairs in copies.values():
        without = [pair for pair in pairs if named[pair] is None]
        if not without or len(pairs) == 1:
            continue
        name = next((named[pair] for pair in pairs if named[pair] is not None), None)
        if name is None:
            first = names[pairs[0]]
            others = (f"{first} ({i})" for i in itertools.count(2))
            name = next(name for name in itertools.chain([first], others) if name not in taken)
            taken.add(name)
        for pair in without:
            named[pair] = name
    return named


def join_copies(groups: Sequence[Hashable | None] | None, contents: Sequence[Hashable]) -> list[int] | None:
    """Number the groups of pairs; those without one are in that of a pair of the same content.

    Returns:
        as number_groups; None where no group is given and there are no copies.

    >>> join_copies(["a", None, None], ["x", "y", "y"]), join_copies(None, ["x", "y"])
    ([0, 1, 1], None)
    >>> join_copies(["a", None], ["x", "x"])
    [0, 0]
    """
    if groups is None and len(set(contents)) == len(contents):
        return None
    given = groups or [None] * len(contents)
    known = [pair for pair in zip(contents, given, strict=True) if pair[1] is not None]
    of_content = dict(reversed(known))  # the first of each
    return number_groups(
        [
            of_content.get(content, ("content", content)) if group is None else group
            for group, content in zip(given, contents, strict=True)
        ]
    )
