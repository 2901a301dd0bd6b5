"""File names as text: a name may hold anything but a slash and a zero byte, and a line may not."""

from __future__ import annotations

import re
from collections.abc import Sequence

NAMES_SHOWN = 5  # of many in one line

# Control characters, line ends, marks that turn the direction of the text that follows, and what stands
# for bytes that are not UTF-8.
UNSHOWN = r"\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def one_line(text: str) -> str:
    """Write what would break a line, or turn it around, as \\n, \\xNN or \\uNNNN."""
    return escape(UNSHOWN, text)


def field(name: str) -> str:
    r"""Write a name so that it stays in its field and can be read back, a backslash being doubled.

    >>> name = "a\tb\\c\udcff.wav"
    >>> print(field(name))
    a\tb\\c\udcff.wav
    >>> field(name).encode("latin-1", "backslashreplace").decode("unicode_escape") == name
    True
    """
    return escape(rf"{UNSHOWN}\\", name)


def escape(characters: str, text: str) -> str:
    """Write characters of a class, as of a regular expression, by their Python escapes."""
    return re.sub(f"[{characters}]", lambda m: m[0].encode("unicode_escape").decode(), text)


def shorten(names: Sequence[str]) -> str:
    """Name the first few of many."""
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
