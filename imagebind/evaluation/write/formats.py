"""The formats of outputs: arrays, lines of text, JSON, and tables for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np

from imagebind.evaluation.compare.arrays import write_npy_header
from imagebind.evaluation.write.atomic import Results, Writer
from imagebind.names import field, read_field

# Starts of cells that a spreadsheet takes for formulas; a name such as -x_1 is none. One with an apostrophe
# is none either, but gets one more, so that it can be read back.
FORMULA = re.compile(r"[=+@]|-(?![\w.-]*$)|'+[=+@-]")


def npy_writer(key: str) -> Writer:
    """Return what writes a tensor of the results as .npy."""

    def write(results: Results, file: BinaryIO) -> None:
        array = np.ascontiguousarray(results[key].numpy())
        write_npy_header(file, array.shape)
        file.write(array.data)  # np.save would hide why writing fails

    return write


def text_writer(lines_of: Callable[[Results], Iterable[str]]) -> Writer:
    """Return what writes lines as UTF-8; a byte of a file name that is not UTF-8 is written as \\udcNN."""

    def write(results: Results, file: BinaryIO) -> None:
        file.writelines(f"{line}\n".encode("utf-8", "backslashreplace") for line in lines_of(results))

    return write


def to_json(metrics: dict[str, Any]) -> str:
    """Format strict JSON: NaN and infinity are errors."""
    return json.dumps(metrics, ensure_ascii=False, allow_nan=False, indent=2)


def write_csv(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], file: BinaryIO, of_user: Container[str] = ()
) -> None:
    """Write a table for spreadsheets: UTF-8 with a byte order mark, and no cell that is a formula.

    Args:
        of_user: columns that are written as they were given, so that tables can be joined on them.
    """
    text = io.TextIOWrapper(file, "utf-8-sig", newline="", write_through=True)
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)  # so that a spreadsheet splits at no other mark
    writer.writerow(map(decodable, columns))
    formats = [as_given if column in of_user else cell for column in columns]
    writer.writerows([form(value) for form, value in zip(formats, row, strict=True)] for row in rows)
    text.detach()


def as_given(value: Any) -> Any:
    """Format a value of the user's: all digits, and text as it is but for what is not UTF-8."""
    return decodable(value) if isinstance(value, str) else value


def cell(value: Any) -> Any:
    """Format the value of a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, np.float32):  # as many digits as tell it from its neighbours
        return "" if np.isnan(value) else str(value)
    if isinstance(value, float):
        digits = 6 if abs(value) < 1e5 else 12  # a rank of a large set is whole or a half
        return "" if math.isnan(value) else f"{value:.{digits}g}"
    if not isinstance(value, str):
        return value
    text = field(value)
    return f"'{text}" if FORMULA.match(text) else text


def read_cell(text: str) -> str:
    """Return the text that cell() formatted; earlier versions had an apostrophe before each -."""
    return read_field(text[1:] if re.match(r"'+[=+@-]", text) else text)


def decodable(text: str) -> str:
    r"""Write a byte of a file name that is not UTF-8 as \udcNN."""
    return text.encode("utf-8", "backslashreplace").decode()
