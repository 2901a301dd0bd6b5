"""File names as text: a name may hold any byte but a slash and zero, and a line of text may not."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote

NAMES_SHOWN = 5  # in a message that names many

# Control characters, line ends, marks that change the direction of text, and surrogates, which stand for
# bytes that are not UTF-8.
UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def one_line(text: str) -> str:
    """Escape what would break a line or change its direction, as \\n, \\xNN or \\uNNNN."""
    return escape(UNPRINTABLE, text)


def field(name: str) -> str:
    r"""Escape a name so that it stays in its field and can be read back; a backslash is doubled.

    >>> name = "a\tb\\c\udcff.wav"
    >>> print(field(name))
    a\tb\\c\udcff.wav
    >>> field(name).encode("latin-1", "backslashreplace").decode("unicode_escape") == name
    True
    """
    return escape(rf"{UNPRINTABLE}\\", name)


def read_field(text: str) -> str:
    """Return the name that field() escaped.

    >>> read_field(field("a\\tb")) == "a\\tb"
    True
    """
    if "\\" not in text:
        return text
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError:  # not of this program
        return text


def escape(characters: str, text: str) -> str:
    """Replace the characters of a regular expression's class by their Python escapes."""
    if text.isprintable() and "\\" not in text:  # nearly all are, and a million names take a while
        return text
    return re.sub(f"[{characters}]", lambda match: match[0].encode("unicode_escape").decode(), text)


def local_path(text: str) -> str:
    """Return the path that a file: address names; any other text as it is.

    >>> local_path("file:///data/a%20dog.wav"), local_path("a dog.wav")
    ('/data/a dog.wav', 'a dog.wav')
    """
    host, slash, path = text.removeprefix("file://").partition("/")
    if not text.startswith("file://") or host not in ("", "localhost"):
        return text
    return slash + unquote(path)


def can_be_path(text: str) -> bool:
    """Whether a file can have a path: it has no NUL, and no half of a pair of surrogates."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def shorten(names: Sequence[object], n_shown: int = NAMES_SHOWN) -> str:
    """List the first few of many names, and how many more there are.

    >>> shorten(["a", "b", "c", "d", "e"], 3)
    'a, b, c and 2 more'
    """
    rest = len(names) - n_shown
    return ", ".join(map(str, names[:n_shown])) + (f" and {rest} more" if rest > 0 else "")
