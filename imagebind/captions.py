"""Captions: a text for each of many files, from a table, lines of JSON, or a mapping.

    .csv, .tsv  a first line with the columns `name` and `caption`, in any order and among others
    .jsonl      an object with the keys `name` and `caption` on each line

All are UTF-8. A row that cannot be used is skipped, and named by its line; a file that is no such table is
refused.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagebind.names import shorten

NAME, CAPTION = COLUMNS = ("name", "caption")
DIALECTS = {".csv": "excel", ".tsv": "excel-tab"}
SUFFIXES = (*DIALECTS, ".jsonl")

log = logging.getLogger(__name__)


class CaptionsError(RuntimeError):
    """A file that gives no captions, in one line that names it."""


@dataclass(frozen=True)
class Row:
    """A name and a caption, as they stand there."""

    where: str  # its line
    name: Any = None
    caption: Any = None
    fault: str | None = None  # why it has neither


@dataclass(frozen=True)
class Captions:
    """Texts by name."""

    texts: dict[str, str]  # name, in Unicode's NFC -> text, in order
    n_skipped: int = 0  # rows that could not be used


def read_captions(source: str | os.PathLike | Mapping[str, str]) -> Captions:
    """Read captions from a file, by its suffix, or take those of a mapping: name -> text.

    Raises:
        CaptionsError: the file cannot be read, is no such table, or has not a single caption.
    """
    if isinstance(source, Mapping):
        return collect("captions", (Row(repr(name), name, text) for name, text in source.items()))
    suffix = suffix_of(source)
    try:
        with open(source, encoding="utf-8-sig", newline="" if suffix in DIALECTS else None) as file:
            rows = table_rows(file, DIALECTS[suffix]) if suffix in DIALECTS else json_rows(file)
            return collect(os.fspath(source), rows)
    except UnicodeDecodeError as e:
        raise CaptionsError(f"{source}: line {first_bad_line(source)} is not UTF-8; save it as that") from e
    except OSError as e:
        raise CaptionsError(f"{source}: {e.strerror}") from e
    except csv.Error as e:
        raise CaptionsError(f"{source}: {e}") from e


def suffix_of(path: str | os.PathLike) -> str:
    """Give the suffix of a file of captions.

    Raises:
        CaptionsError: it is another one.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CaptionsError(f"{path}: captions are {', '.join(SUFFIXES)} files")
    return suffix


def table_rows(file: Iterable[str], dialect: str) -> Iterator[Row]:
    """Read the rows of a table.

    Raises:
        csv.Error: it has no such columns, or a quote that does not end.
    """
    reader = csv.reader(file, dialect, strict=True)
    columns = [column.strip().lower() for column in next(reader, [])]
    if missing := [column for column in COLUMNS if column not in columns]:
        raise csv.Error(f"has no column {' and no column '.join(missing)}; its first line is to name them")
    name, caption = map(columns.index, COLUMNS)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise csv.Error(f"line {line}: {e}") from e
        if len(row) == len(columns):
            yield Row(f"{line}", row[name], row[caption])
        elif row:
            yield Row(f"{line}", fault="another number of columns than in the first line")


def json_rows(file: Iterable[str]) -> Iterator[Row]:
    """Read the rows of a file of JSON lines."""
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            yield Row(f"{line}", row[NAME], row[CAPTION])
        except (ValueError, RecursionError):
            yield Row(f"{line}", fault="no JSON")
        except (KeyError, TypeError):
            yield Row(f"{line}", fault=f"no object with {NAME} and {CAPTION}")


def collect(source: str, rows: Iterable[Row]) -> Captions:
    """Take the captions of all rows that can be used, and warn of the others.

    Raises:
        CaptionsError: there is none.
    """
    texts, skipped = {}, defaultdict(list)
    for row in rows:
        fault = row.fault or fault_of(row)
        name = None if fault else unicodedata.normalize("NFC", row.name.strip())
        if name in texts:
            fault = "a name that has a caption already"
        if fault:
            skipped[fault].append(row.where)
        else:
            texts[name] = row.caption
    for why, places in skipped.items():
        log.warning("%s: %s: skipped row %s", source, why, shorten(places))
    if not texts:
        raise CaptionsError(f"{source}: has no captions")
    return Captions(texts, sum(map(len, skipped.values())))


def fault_of(row: Row) -> str | None:
    """Say what is wrong with a row's name or caption; None where nothing is."""
    if not isinstance(row.name, str) or not isinstance(row.caption, str):
        return "a name or a caption that is no text"
    if not row.name.strip():
        return "no name"
    return None if row.caption.strip() else "an empty caption"


def first_bad_line(path: str | os.PathLike) -> int:
    """Find the first line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return number
