"""Which values options take: rules with a sentence for what they do not take.

The command line reads values by them, and Options checks those of Python by the same ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from imagebind.evaluation.errors import OptionError

PROTOCOLS = ("imagebind", "mmaudio", "avhscore", "javisscore", "mova", "reward", "t2av")
LEADING = ("imagebind", "mmaudio", "mova", "reward", "t2av")  # one embedding a file, so a matrix and ranks
TIMED = {"mmaudio": 8, "mova": 7.9}  # look at the first seconds of a video: how many by default
LEAST_SECONDS = {"mmaudio": 4, "mova": 2}  # with fewer there is no clip
REWARD_COLUMNS = ("reward_text_audio", "reward_text_video", "reward_all")  # beside `reward`, with captions
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
LANGUAGES = ("zh", "en")
PARQUET, TAR = ".parquet", ".tar"
TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl")
MANIFEST_SUFFIXES = (*TEXT_SUFFIXES, PARQUET)
# Of a data frame of polars, a table of Arrow, and a data frame of pandas: what gives their rows
TABLE_METHODS = {"to_dicts": (), "to_pylist": (), "to_dict": ("records",)}
MAX_SHOWN = 500  # characters of a wrong value

Paths = str | os.PathLike | Sequence[str | os.PathLike]  # a directory, a file, or files in order
Rows = str | os.PathLike | Iterable[Any]  # a table: a file, tars, rows as mappings, or a data frame


@dataclass(frozen=True)
class Rule:
    """Which values an option takes.

    Args:
        sentence: says it, after the option's name.
        read: text of the command line -> value; raises ValueError.
        holds: whether a value is allowed.
        metavar: stands for the value in --help.
    """

    sentence: str
    read: Callable[[str], Any]
    holds: Callable[[Any], bool]
    metavar: str

    def parse(self, text: str) -> Any:
        """Read a value of the command line.

        Raises:
            OptionError: it is not allowed.
        """
        try:
            value = self.read(text)
        except OptionError:
            raise
        except ValueError as e:
            raise OptionError(f"{self.sentence}, not {text!r}") from e
        self.check(value, shown=text)
        return value

    def check(self, value: Any, name: str = "", shown: Any = None) -> None:
        """Raise an OptionError for a value that is not allowed."""
        if not self.holds(value):
            shown = repr(value if shown is None else shown)
            shown = shown if len(shown) <= MAX_SHOWN and "\n" not in shown else f"a {type(value).__name__}"
            raise OptionError(f"{self.sentence}, not {shown}", name)


def whole(low: int, high: int, metavar: str = "N") -> Rule:
    """Whole numbers of a range."""

    def holds(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"must be a whole number from {low} to {high}", int, holds, metavar)


def number(low: float, high: float, metavar: str) -> Rule:
    """Numbers of a range."""

    def holds(value: Any) -> bool:
        return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"must be a number from {low} to {high}", float, holds, metavar)


def one_of(*choices: str) -> Rule:
    """A choice of words."""
    return Rule(f"must be one of {', '.join(choices)}", str, choices.__contains__, f"{{{','.join(choices)}}}")


def is_device(value: Any) -> bool:
    value = str(value) if type(value).__module__ == "torch" else value  # a torch.device
    return isinstance(value, str) and re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", value) is not None


def read_directory(text: str) -> str:
    if os.path.isfile(text):
        raise OptionError(f"{text}: is a file; name files with the options for paths")
    if not os.path.isdir(text):
        raise OptionError(f"{text}: no such directory")
    return text


def is_captions(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, str | os.PathLike) and os.fspath(value).lower().endswith(TEXT_SUFFIXES)


def read_captions_path(text: str) -> str:
    if is_captions(text) and not os.path.isfile(text):
        raise OptionError(f"{text}: no such file")
    return text


def is_manifest(value: Any) -> bool:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value).lower().endswith((*MANIFEST_SUFFIXES, TAR))
    if isinstance(value, Sequence):
        return bool(tars_of(value)) or all(isinstance(row, Mapping) for row in value)
    return is_table(value) or (isinstance(value, Iterable) and not isinstance(value, bytes | Mapping))


def read_manifest_path(text: str) -> str:
    if is_manifest(text) and (missing := [p for p in tars_of(text) or [text] if not os.path.isfile(p)]):
        raise OptionError(f"{missing[0]}: no such file")
    return text


def tars_of(manifest: Any) -> list[str]:
    """List the tars that a manifest is; none where it is something else."""
    named = [manifest] if isinstance(manifest, str | os.PathLike) else manifest
    if not isinstance(named, Sequence) or not all(isinstance(path, str | os.PathLike) for path in named):
        return []
    paths = [path for pattern in named for path in expand_range(os.fspath(pattern))]
    return paths if all(path.lower().endswith(TAR) for path in paths) else []


def expand_range(pattern: str) -> list[str]:
    """List the paths that a range in braces names, as a shell does.

    >>> expand_range("shard-{008..010}.tar")
    ['shard-008.tar', 'shard-009.tar', 'shard-010.tar']
    """
    if os.path.exists(pattern) or not (found := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)):
        return [pattern]
    first, last = found.groups()
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = range(int(first), int(last) + 1)
    return [path for n in numbers for path in expand_range(f"{before}{n:0{len(first)}}{after}")]


def read_embeddings_path(text: str) -> str:
    if not os.path.exists(text):
        raise OptionError(f"{text}: no such file or directory")
    return text


def read_group_by(text: str) -> str:
    compile_group_by(text)
    return text


def is_group_by(value: Any) -> bool:
    return isinstance(value, str) and bool(compile_group_by(value))


def read_shard(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d+)/(\d+)", text)):
        raise ValueError(text)
    return int(match[1]), int(match[2])


def is_protocols(value: Any) -> bool:
    return (
        not isinstance(value, str)
        and bool(value)
        and all(name in PROTOCOLS for name in value)
        and len(set(value)) == len(value)
        and value[0] in LEADING
    )


def compile_group_by(expression: str) -> re.Pattern:
    """Compile the regular expression of --group_by.

    Raises:
        OptionError: it is none, or has no group.
    """
    try:
        pattern = re.compile(expression)
    except (re.error, RecursionError, OverflowError) as e:
        raise OptionError(f"{expression}: no regular expression ({e})") from e
    if not pattern.groups:
        raise OptionError(rf"{expression}: put what names a group into parentheses, such as '(.+)_\d+'")
    return pattern


def is_table(source: Any) -> bool:
    """Whether something is a data frame or a table that gives its rows as mappings."""
    has_columns = hasattr(source, "columns") or hasattr(source, "column_names")
    return has_columns and any(hasattr(source, name) for name in TABLE_METHODS)


def suffix_of(source: Rows) -> str:
    """Return the suffix of a manifest in small letters; ".csv" of one that is no table in a file."""
    is_file = isinstance(source, str | os.PathLike)
    suffix = Path(source).suffix.lower() if is_file else ""
    return suffix if suffix in MANIFEST_SUFFIXES else ".csv"


DEVICE = Rule("must be a device such as cuda:0 or cpu", str, is_device, "NAME")
CAPTIONS = Rule("must be a .csv, .tsv or .jsonl file", read_captions_path, is_captions, "FILE")
MANIFEST = Rule(
    "must be a .csv, .tsv, .jsonl or .parquet file, or tars", read_manifest_path, is_manifest, "FILE"
)
EMBEDDINGS = Rule(
    "must be a path", read_embeddings_path, lambda value: isinstance(value, str | os.PathLike), "PATH"
)
PROTOCOL = Rule(
    f"must be {', '.join(LEADING[:-1])} or {LEADING[-1]}, then any of {', '.join(PROTOCOLS)}, each once",
    str,
    is_protocols,
    "NAME",
)
GROUP_BY = Rule("must be a regular expression", read_group_by, is_group_by, "REGEX")
SHARD = Rule(
    "must be I/N, such as 3/64: the third of 64 shares", read_shard, lambda s: 1 <= s[0] <= s[1], "I/N"
)
PRECISION = one_of(*PRECISIONS)
LANGUAGE = one_of(*LANGUAGES)
