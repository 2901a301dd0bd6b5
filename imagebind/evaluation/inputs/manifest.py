"""A manifest of pairs: a table with a row for each pair.

    video           path of the video file; a relative one is relative to the manifest
    audio           path of the sound; empty: the video's own sound
    id              of the row, which names the pair
    caption         text that belongs to the pair
    audio_caption   text that belongs to its sound instead
    group           what belongs together beyond the pair, such as the prompt of several clips
    content_group   the same instead of it, where all of one show the same
    category        a kind of pair, of which figures are told apart
    start, end      in seconds: only this part of both files

All but `video` may be left out. The names of JavisBench's tables are understood too. Other columns are handed
on to pair_scores.csv.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.captions import MAX_CAPTION, MatchedCaptions
from imagebind.evaluation.inputs.contents import Held, read_cell
from imagebind.evaluation.inputs.files import unify_spelling
from imagebind.evaluation.inputs.tables import (
    Row,
    read_schema,
    read_table,
    spelt,
    typed_array,
    warn_of_skipped,
)
from imagebind.evaluation.inputs.tars import read_tars
from imagebind.evaluation.rules import PARQUET, TABLE_METHODS, Rows, is_table, suffix_of, tars_of
from imagebind.names import can_be_path, shorten
from imagebind.sources import Content, Source

# meaning -> names of the column; the second is JavisBench's
COLUMNS = {
    "video": ("video", "path"),
    "audio": ("audio", "audio_path"),
    "id": ("id",),
    "caption": ("caption", "text"),
    "audio_caption": ("audio_caption", "audio_text"),
    "group": ("group", "content_group"),
    "category": ("category",),
    "start": ("start",),
    "end": ("end",),
}
KNOWN = [name for names in COLUMNS.values() for name in names]
PATHS_TRIED = 100
MEDIA = ("audio", "video")
TEXTS = ("video", "audio", "caption", "audio_caption")
SECONDS = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)
log = logging.getLogger(__name__)


@dataclass
class Manifest:
    """A manifest as it was read. Rows are numbered from 0, those that can be used are pairs."""

    source: str
    folder: str = ""  # that relative paths are relative to
    lines: list[str] = field(default_factory=list)  # of each row the line that it begins in
    columns: dict[str, list[Any]] = field(default_factory=dict)  # as they are in the source, of all rows
    schema: Any = None  # pyarrow's, of a Parquet file
    faults: dict[int, str] = field(default_factory=dict)  # row -> why it cannot be used
    rows: list[int] = field(default_factory=list)  # of each pair its row
    pairs: list[tuple[Source, Source]] = field(default_factory=list)  # of a sound and a video
    replaced: set[str] = field(default_factory=set)  # meanings that options give: the columns are as others

    @cached_property
    def column_of(self) -> dict[str, str]:
        """Meaning -> name of its column, for those that are there; of two names the first."""
        found = {meaning: [n for n in names if n in self.columns] for meaning, names in COLUMNS.items()}
        return {meaning: names[0] for meaning, names in found.items() if names}

    @property
    def other_columns(self) -> list[str]:
        """Names of the columns without a meaning here, such as `path` beside a `video` in every row."""
        known = {name for meaning, name in self.column_of.items() if meaning not in self.replaced}
        for meaning, names in COLUMNS.items():
            if meaning not in self.replaced and len(names) > 1 and self.columns.keys() >= set(names):
                known |= {self.name_in(row, meaning) for row in range(len(self.lines))}
        return [name for name in self.columns if name and name not in known]

    @property
    def suffix(self) -> str:
        return suffix_of(self.source)

    def name_in(self, row: int, meaning: str) -> str | None:
        """Return the name under which a row has a value, None where it has none; blanks are none."""
        for name in COLUMNS[meaning]:
            value = self.columns[name][row] if name in self.columns else None
            if value is not None and not (isinstance(value, str) and not value.strip()):
                return name
        return None

    def get(self, meaning: str, row: int) -> Any:
        """Return the value of a row, or None; of a sound or a video its path, or what is Held."""
        name = self.name_in(row, meaning)
        value = None if name is None else self.columns[name][row]
        return read_cell(value, f"row {self.lines[row]}/{meaning}") if meaning in MEDIA else value

    def based_on(self, folder: str | os.PathLike) -> dict[str, list[Any]]:
        """Return all columns, with relative paths so that they lead from a folder to the same files.

        Raises:
            OSError: the folder of the manifest is gone.
        """
        own = os.path.realpath(os.path.dirname(self.source))
        way = os.path.relpath(own, os.path.realpath(folder))
        columns = dict(self.columns)
        for meaning in ("audio", "video"):
            for name in columns.keys() & set(COLUMNS[meaning]):
                columns[name] = list(columns[name])
                for row in self.rows:
                    if self.name_in(row, meaning) == name:
                        columns[name][row] = self._based_on(way, self.get(meaning, row), columns[name][row])
        return columns

    def _based_on(self, way: str, value: str | Held, cell: Any) -> Any:
        if not isinstance(value, Held):
            return os.path.join(way, value)
        return cell if self.suffix == PARQUET else value.name

    def path(self, meaning: str, row: int) -> str:
        """Return the path of a sound or a video, or its name; "" where there is none."""
        value = self.get(meaning, row)
        if isinstance(value, str) and "://" not in value:
            return os.path.join(self.folder, value)
        return "" if value is None else str(value)

    def content(self, meaning: str, row: int) -> Content | None:
        """Return that of a sound or a video which is in no file of its own."""
        value = self.get(meaning, row)
        return value.content if isinstance(value, Held) else None

    @cached_property
    def ids(self) -> list[str | None]:
        """The id of each pair."""
        return [None if (value := self.get("id", row)) is None else str(value) for row in self.rows]

    @cached_property
    def has_unique_ids(self) -> bool:
        """Whether every pair has an id of its own."""
        return None not in self.ids and len(set(self.ids)) == len(self.ids)

    def texts(self, meaning: str) -> list[str | None] | None:
        """Return a value of each pair as a text; None where no pair has one."""
        values = [self.get(meaning, row) for row in self.rows]
        texts = [None if value is None else str(value) for value in values]
        return texts if any(text is not None for text in texts) else None

    def captions(self, names: Sequence[str]) -> MatchedCaptions | None:
        """Return the captions of the pairs; None where no pair has one.

        Args:
            names: of the pairs.
        """
        texts, labels, of_pairs = {}, {}, {"audio": [], "video": []}
        for row, name in zip(self.rows, names, strict=True):
            key = None
            for modality, meaning in (("video", "caption"), ("audio", "audio_caption")):
                text = self.get(meaning, row)
                if text is not None:
                    key = f"{row} {meaning}"
                    texts[key] = text
                    labels[key] = name if meaning == "caption" else f"{name} (audio_caption)"
                of_pairs[modality].append(key)
        if not texts:
            return None
        paths = {"audio": [audio for audio, _ in self.pairs], "video": [video for _, video in self.pairs]}
        of_files = {
            modality: [(path, key) for path, key in zip(paths[modality], keys, strict=True) if key]
            for modality, keys in of_pairs.items()
        }
        if without := [name for name, key in zip(names, of_pairs["video"], strict=True) if key is None]:
            log.warning("%d pairs without a caption: %s", len(without), shorten(without))
        return MatchedCaptions(texts, of_pairs, of_files, 0, labels)


def read_manifest(source: Rows) -> Manifest:
    """Read a manifest, and warn of the rows that cannot be used.

    Raises:
        EvaluationError: it cannot be read, is no such table, or no row can be used.
    """
    if tars := tars_of(source):
        manifest = Manifest(tars[0] if len(tars) == 1 else f"{tars[0]} to {os.path.basename(tars[-1])}")
        rows = (spelt(row, KNOWN) for row in read_tars(tars))
    elif isinstance(source, str | os.PathLike):
        manifest = Manifest(os.fspath(source), folder=os.path.dirname(source))
        rows = read_table(source, [COLUMNS["video"]], KNOWN)
        if manifest.suffix == PARQUET:
            manifest.schema = read_schema(source, KNOWN)
    else:
        manifest = Manifest("manifest")
        rows = (spelt(Row(f"{i}", row), KNOWN) for i, row in enumerate(records_of(source), 1))
    collect(manifest, rows)
    if manifest.schema is not None:
        check_can_write(manifest)
    own = find_pairs(manifest)
    labels = manifest.lines if not tars else [manifest.path("id", row) for row in range(len(manifest.lines))]
    warn_of_skipped(manifest.source, [(fault, labels[row]) for row, fault in manifest.faults.items()])
    if not manifest.pairs:
        raise EvaluationError(f"{manifest.source}: has no row that can be used")
    if 0 < len(own) < len(manifest.pairs):
        log.warning("%s: no audio, so the video's own sound is judged: row %s", manifest.source, shorten(own))
    if set(COLUMNS["group"]) <= manifest.columns.keys():
        raise EvaluationError(f"{manifest.source}: has {' and '.join(COLUMNS['group'])}; leave one out")
    report_columns(manifest, len(own) == len(manifest.pairs))
    uses = Counter(filter(None, manifest.ids))
    if shared := [name for name, n in uses.items() if n > 1]:
        log.warning("%s: ids that several rows have: %s", manifest.source, shorten(shared))
    return manifest


def read_rows(rows: Iterable[Mapping[str, Any]]) -> Manifest:
    """Read rows without a word; those that cannot be used are in `faults`."""
    manifest = Manifest("rows")
    collect(manifest, (Row(f"{i}", row) for i, row in enumerate(rows)))
    find_pairs(manifest)
    return manifest


def records_of(source: Any) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a data frame, or those that are given as such.

    Raises:
        EvaluationError: it has a column twice, or a row is none.
    """
    if hasattr(source, "with_format"):  # a dataset of Hugging Face, which would decode what it has
        source = source.with_format("arrow")[:]
    if not is_table(source):
        return check_rows(source)
    names = map(str, getattr(source, "column_names", None) or source.columns)
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise EvaluationError(f"manifest: several columns {twice[0]}")
    method = next(name for name in TABLE_METHODS if hasattr(source, name))
    return getattr(source, method)(*TABLE_METHODS[method])


def check_rows(rows: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise EvaluationError(f"manifest: row {number} is a {kind}, not a mapping of columns to values")
        yield row


def report_columns(manifest: Manifest, is_own_sound: bool) -> None:
    """Say which columns have no meaning here, whether sounds are missing, and where paths should start."""
    others = shorten(manifest.other_columns)
    if is_own_sound:
        there = f"; columns without a meaning here: {others}" if others else ""
        log.warning("%s: names no audio: each video's own sound is judged%s", manifest.source, there)
    elif others:
        log.info("%s: columns that are handed on as they are: %s", manifest.source, others)
    first = [video.path for _, video in manifest.pairs[:PATHS_TRIED]]
    if manifest.folder and not any(map(os.path.exists, first)):
        from_here = [os.path.relpath(path, manifest.folder) for path in first]
        if any(map(os.path.exists, from_here)):
            log.warning(
                "%s: its paths start at its own directory, and lead nowhere from there", manifest.source
            )


def collect(manifest: Manifest, rows: Iterable[Row]) -> None:
    """Keep the rows, column by column; what stands for no value, such as NaN, is None."""
    for number, row in enumerate(rows):
        manifest.lines.append(row.line)
        if row.fault:
            manifest.faults[number] = row.fault
        for name, value in row.values.items():
            if name not in manifest.columns:
                manifest.columns[name] = [None] * number
            manifest.columns[name].append(without_nan(value))
        for values in manifest.columns.values():
            if len(values) == number:
                values.append(None)


def check_can_write(manifest: Manifest) -> None:
    """Check that the columns of a Parquet file can be handed on in their types.

    Raises:
        EvaluationError: one of them cannot.
    """
    for column in manifest.schema:
        name, type = column.name, column.type
        try:
            typed_array(manifest.columns.get(name, ()), type)
        except Exception as e:  # types are many, and what each raises too
            reason = " ".join(str(e).split())[:100]
            raise EvaluationError(
                f"{manifest.source}: column {name}: values of type {type} cannot be written ({reason}); "
                "leave it out"
            ) from e


def find_pairs(manifest: Manifest) -> list[str]:
    """Find the pairs of the rows that can be used.

    Returns:
        the lines of those that name no sound, so that the video's own is judged.

    Raises:
        EvaluationError: a file has the name of a part of another.
    """
    found, own = [], []
    for row, line in enumerate(manifest.lines):
        if row in manifest.faults:
            continue
        try:
            audio, video, span = read_row(manifest, row)
        except RowError as e:
            manifest.faults[row] = str(e)
            continue
        video_content = manifest.content("video", row)
        contents = manifest.content("audio", row) if audio else video_content, video_content
        found.append((row, contents, audio or video, video, span))
        if not audio:
            own.append(line)
    manifest.faults = dict(sorted(manifest.faults.items()))
    spellings = iter(unify_spelling(path for *_, audio, video, _ in found for path in (audio, video)))
    named: dict[str, Source] = {}
    for row, contents, _, _, span in found:
        pair = tuple(Source(next(spellings), *span, content=content) for content in contents)
        for source in pair:
            if named.setdefault(str(source), source) != source:
                raise EvaluationError(f"{source}: is a file and a part of another one; rename the file")
        manifest.rows.append(row)
        manifest.pairs.append(pair)
    return own


class RowError(ValueError):
    """A row that cannot be used; the message says why."""


def read_row(manifest: Manifest, row: int) -> tuple[str, str, tuple[float, float]]:
    """Return the path of the sound, or "", the path of the video, and start and end of a row.

    Raises:
        RowError: it cannot be used.
    """
    for meaning in TEXTS:
        value = manifest.get(meaning, row)
        if isinstance(value, Held) and meaning in MEDIA:
            continue
        if not isinstance(value, str | None):
            wanted = "neither a path nor bytes" if meaning in MEDIA else "no text"
            raise RowError(f"{meaning}, of the type {type(value).__name__}, is {wanted}")
        if len(value or "") > MAX_CAPTION:
            raise RowError(f"{meaning} of over {MAX_CAPTION} characters")
    audio, video = (manifest.path(meaning, row) for meaning in ("audio", "video"))
    if not video:
        raise RowError("no video")
    for path in (audio, video):
        if not can_be_path(path):
            raise RowError("a path that no file can have")
    try:
        start, end = (read_seconds(manifest.get(meaning, row)) for meaning in ("start", "end"))
    except (TypeError, ValueError, OverflowError) as e:
        raise RowError("a start or an end that is no time in seconds") from e
    span = start or 0.0, math.inf if end is None else end
    if span[1] <= span[0]:
        raise RowError("an end that is not after its start")
    return audio, video, span


def read_seconds(value: Any) -> float | None:
    """Read a time; None where there is none.

    Raises:
        TypeError, ValueError, OverflowError: it is no time.
    """
    if value is None or value == "":
        return None
    is_truth = isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"
    if is_truth or (isinstance(value, str) and not SECONDS.fullmatch(value)):
        raise ValueError(value)
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(value)
    return seconds


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, or pandas' NA and NaT."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ArithmeticError):  # NA, and a signalling NaN, of which nothing can be said
        return True
    except ValueError:  # an array
        return False


def without_nan(value: Any) -> Any:
    """Return a value, or None for one that stands for none."""
    return None if is_missing(value) else value
