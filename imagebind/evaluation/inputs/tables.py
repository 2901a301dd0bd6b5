"""Tables that the user gives: the rows of a .csv, .tsv, .jsonl or .parquet file, one after the other.

Text is UTF-8, with or without a byte order mark. A row that is no row is handed over with its fault; a file
that is no such table is refused.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO
from uuid import UUID

from imagebind import packages
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.rules import PARQUET
from imagebind.names import shorten

DIALECTS = {".csv": "excel", ".tsv": "excel-tab"}
MAX_FIELD = 2**31 - 1  # characters that csv reads at most

log = logging.getLogger(__name__)

Needed = Sequence[Sequence[str]]  # columns that a table has to have, each by any of several names


@dataclass(frozen=True)
class Row:
    """A row as it is in the source."""

    line: str  # its number; of a mapping its name
    values: Mapping[str, Any] = field(default_factory=dict)  # by column
    fault: str | None = None  # why it cannot be used


@contextmanager
def fields_of_any_length() -> Iterator[None]:
    """Let csv read a long text, which costs its row alone; its limit is the whole process's, and put back."""
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def read_table(path: str | os.PathLike, needed: Needed, known: Sequence[str]) -> Iterator[Row]:
    """Read the rows of a file, whose suffix says its format.

    Args:
        needed: columns that it has to have.
        known: names of columns that are found in any case of the letters; none may be there twice.

    Raises:
        EvaluationError: it cannot be read, or is no such table.
    """
    suffix = Path(path).suffix.lower()
    if os.path.exists(path) and not os.path.isfile(path):
        raise EvaluationError(f"{path}: not a regular file")
    try:
        if suffix == PARQUET:
            yield from parquet_rows(path, needed, known)
            return
        newline = "" if suffix in DIALECTS else None
        with fields_of_any_length(), open(path, encoding="utf-8-sig", newline=newline) as file:
            if suffix in DIALECTS:
                yield from csv_rows(file, DIALECTS[suffix], needed, known)
            else:
                yield from json_rows(file, needed, known)
    except UnicodeDecodeError as e:
        raise EvaluationError(f"{path}: line {first_bad_line(path)} is not UTF-8; save it as that") from e
    except OSError as e:
        raise EvaluationError(f"{path}: {e.strerror or e}") from e
    except csv.Error as e:
        raise EvaluationError(f"{path}: {e}") from e


def csv_rows(file: Iterable[str], dialect: str, needed: Needed, known: Sequence[str]) -> Iterator[Row]:
    """Read the rows of a table whose first line names the columns.

    Raises:
        csv.Error: it lacks a column, has one twice, or a quote is not closed.
    """
    reader = csv.reader(file, dialect, strict=True)
    columns = spell_columns(next(reader, []), known)
    separators = "commas" if dialect == "excel" else "tabs"
    check_columns(
        columns, needed, f"its first line has to name the columns, separated by {separators}, and is"
    )
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            raise csv.Error(f"line {line}: {e}") from e
        if len(row) == len(columns):
            yield Row(f"{line}", dict(zip(columns, row, strict=True)))
        elif row:
            yield Row(f"{line}", fault="another number of columns than in the first line")


def spell_columns(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    """Give known columns their names, whatever the case of their letters, and unnamed ones a name."""
    return [spell(column, known) if column.strip() else f"Unnamed: {i}" for i, column in enumerate(columns)]


def spell(column: str, known: Sequence[str]) -> str:
    return name if (name := column.strip().lower()) in known else column


def spelt(row: Row, known: Sequence[str]) -> Row:
    """Give the known columns of a row their names."""
    values = {spell(str(name), known): value for name, value in row.values.items()}
    return replace(
        row, values=values, fault=row.fault if len(values) == len(row.values) else "a column twice"
    )


def check_columns(columns: Sequence[str], needed: Needed, how: str) -> None:
    """Raise a csv.Error for columns that are missing or there twice.

    Args:
        how: to name columns, for the message.
    """
    if missing := [names[0] for names in needed if not set(names) & set(columns)]:
        raise csv.Error(f"no column {' and '.join(missing)}; {how}: {' | '.join(columns)[:80]}")
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise csv.Error(f"several columns {twice[0]}")


def json_rows(file: Iterable[str], needed: Needed, known: Sequence[str]) -> Iterator[Row]:
    """Read the rows of a file of JSON lines, an object each."""
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            yield Row(f"{line}", fault="no JSON")
            continue
        row = spelt(Row(f"{line}", values), known) if isinstance(values, dict) else None
        if row is not None and all(set(names) & set(row.values) for names in needed):
            yield row
        else:
            fault = f"no object with {' and '.join(names[0] for names in needed)}"
            yield replace(row or Row(f"{line}"), fault=fault)


def parquet_rows(path: str | os.PathLike, needed: Needed, known: Sequence[str]) -> Iterator[Row]:
    """Read the rows of a Parquet file; their lines are numbers from 1."""
    pyarrow, parquet = load_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            columns = spell_columns(file.schema_arrow.names, known)
            check_columns(columns, needed, "its columns are")
            line = 0
            for batch in file.iter_batches():
                for values in batch.rename_columns(columns).to_pylist():
                    line += 1
                    yield Row(f"{line}", values)
    except (OSError, pyarrow.ArrowException) as e:
        raise EvaluationError(f"{path}: {describe_arrow_error(e)}") from e


def load_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Import pyarrow, which few tables need, and its part for Parquet.

    Raises:
        PackageError: it cannot be imported.
    """
    return packages.load("pyarrow"), packages.load("pyarrow.parquet")


def read_schema(path: str | os.PathLike, known: Sequence[str]) -> Any:
    """Return pyarrow's schema of a Parquet file that read_table takes.

    Raises:
        EvaluationError: it is none.
    """
    pyarrow, parquet = load_pyarrow()
    try:
        schema = parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as e:
        raise EvaluationError(f"{path}: {describe_arrow_error(e)}") from e
    fields = zip(spell_columns(schema.names, known), schema, strict=True)
    return pyarrow.schema([field.with_name(name) for name, field in fields])


def typed_array(values: Sequence[Any], type: Any) -> Any:
    """Make an Arrow array of values that were read from one of this type.

    Raises:
        ArrowException: they cannot be turned back.
    """
    pyarrow, _ = load_pyarrow()
    if isinstance(type, pyarrow.BaseExtensionType):  # not all of these take what they give
        plain = pyarrow.array([value.bytes if isinstance(value, UUID) else value for value in values])
        return pyarrow.ExtensionArray.from_storage(type, plain.cast(type.storage_type))
    return pyarrow.array(values, type=type)


def describe_arrow_error(error: Exception) -> str:
    """Say in one line what is wrong with a Parquet file."""
    strerror = getattr(error, "strerror", None)
    return strerror or f"no Parquet file that can be read ({' '.join(str(error).split())[:100]})"


def write_rows(columns: Mapping[str, Sequence[Any]], suffix: str, schema: Any, file: BinaryIO) -> None:
    """Write a table in the form of read_table's.

    Args:
        columns: by name, as they were read.
        suffix: says the form.
        schema: pyarrow's, of a Parquet file.
    """
    if suffix == PARQUET:
        pyarrow, parquet = load_pyarrow()
        arrays = [typed_array(values, schema.field(name).type) for name, values in columns.items()]
        parquet.write_table(pyarrow.table(arrays, names=list(columns)), file)
        return
    rows = zip(*columns.values(), strict=True)
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="", write_through=True)
    if suffix in DIALECTS:
        writer = csv.writer(text, DIALECTS[suffix], lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    else:
        for row in rows:
            values = {name: value for name, value in zip(columns, row, strict=True) if value is not None}
            text.write(f"{json.dumps(values, ensure_ascii=False)}\n")
    text.detach()


def warn_of_skipped(source: str, skipped: Iterable[tuple[str, str]]) -> None:
    """Warn of rows that cannot be used, the faults and the lines of which are given, once for each fault."""
    lines = defaultdict(list)
    for fault, line in skipped:
        lines[fault].append(line)
    for fault in lines:
        log.warning("%s: %s: skipped row %s", source, fault, shorten(lines[fault]))


def first_bad_line(path: str | os.PathLike) -> int:
    """Find the first line that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return number
