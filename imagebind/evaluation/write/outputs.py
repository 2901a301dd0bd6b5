"""Results -> files: which output is written how; each whole or not at all; by one run at a time."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import logging
import math
import os
import re
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from imagebind import packages
from imagebind.evaluation.compare.arrays import OutputArrays, create, temporary_path, write_npy_header
from imagebind.evaluation.compare.ticks import reaches
from imagebind.evaluation.embed.store import ensure_directory
from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.evaluation.inputs.tables import load_pyarrow, typed_array, write_rows
from imagebind.evaluation.options import MARKER_PREFIX, TEMPORARY_CACHE_NAME, Options
from imagebind.evaluation.rules import MANIFEST_SUFFIXES, PARQUET, suffix_of
from imagebind.evaluation.write.page_media import PageMedia, check_copies
from imagebind.evaluation.write.report import format_report, report_sections
from imagebind.names import field, read_field
from imagebind.reading.cache import find_parts

if TYPE_CHECKING:
    from imagebind.evaluation.compare.results import Results

LOCK_NAME = ".in_use"
RECORD_NAME = ".written.json"  # of the outputs that were written
REPORT_PAGE = "report.html"
METRICS_NAME = "metrics.json"
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # of a file system
KEPT_NAMES = [f"kept{suffix}" for suffix in (".txt", *MANIFEST_SUFFIXES)]
TABLE_NAME = "pair_scores.parquet"
OPTIONAL_NAMES = (TABLE_NAME, *KEPT_NAMES)  # of files that may be the user's where no run wrote them
# Starts of cells that a spreadsheet takes for formulas; a name such as -x_1 is none. One with an apostrophe
# is none either, but gets one more, so that it can be read back.
FORMULA = re.compile(r"[=+@]|-(?![\w.-]*$)|'+[=+@-]")

Writer = Callable[[Any, BinaryIO], None]

log = logging.getLogger(__name__)


def write_outputs(
    results: Results, arrays: OutputArrays, options: Options, lock: OutputLock, media: PageMedia
) -> None:
    """Write the outputs of a run; the arrays of the results are then mapped from those files.

    An output that this run does not have is removed, if an earlier run wrote it.

    Raises:
        EvaluationError: one cannot be written; the outputs of an earlier run stay as they were.
    """
    outputs = output_writers(options, media)
    absent = {name for name in outputs if name.endswith(".npy")} - arrays.names
    absent |= set() if "text_names" in results else {"text_names.txt"}
    absent |= set() if results["windows"] is not None else {"window_scores.csv"}
    absent |= set() if results["top_matches"] is not None else {"top_matches.csv"}
    lock.renew()
    write_files({**outputs, **dict.fromkeys(absent)}, results, options.output_dir, arrays.names)
    results |= arrays.private_copies()


def write_page_again(results: Results, options: Options, media: PageMedia) -> None:
    """Write the page with the copies of media that are there now.

    Raises:
        EvaluationError: it cannot be written; the one without them stays.
    """
    write_files({REPORT_PAGE: output_writers(options, media)[REPORT_PAGE]}, results, options.output_dir)


def check_can_draw() -> None:
    """Raise a PackageError where the charts of a page cannot be drawn."""
    for module in ("plotly.graph_objects", "plotly.offline"):
        packages.load(module, ", or leave the page out with --no_html")


def check_inputs(options: Options) -> None:
    """Raise an OptionError for an input that the run would write over, or remove."""
    if options.copies_media:
        check_copies(options.output_dir)
    for source in (options.manifest, options.captions):
        if isinstance(source, str | os.PathLike) and is_output(source, options):
            raise OptionError(f"{os.fspath(source)} is an input, and would be overwritten", "output_dir")


def is_output(path: str | os.PathLike, options: Options) -> bool:
    """Tell whether a run would write or remove this file."""
    if options.output_dir is None:
        return False
    folder, name = os.path.split(os.path.abspath(path))
    is_there = os.path.realpath(folder) == os.path.realpath(options.output_dir)
    return is_there and name in output_writers(options)


def output_writers(options: Options, media: PageMedia | None = None) -> dict[str, Writer | None]:
    """List the outputs of a run, each with what writes it; None for one that is left out.

    Args:
        media: of the page; None where no output is to be written.
    """

    def write_page(results: Results, file: BinaryIO) -> None:
        from imagebind.evaluation.write import page  # plotly is slow to import

        sections = report_sections(results["metrics"], options.report_lang)
        page.write_report_page(file, results, sections, options.report_lang, media)

    def report_lines(results: Results) -> list[str]:
        return format_report(results["metrics"], options.report_lang).splitlines()

    is_parquet = options.manifest is not None and suffix_of(options.manifest) == PARQUET
    return {
        "audio_embeddings.npy": npy_writer("audio_embeddings"),
        "video_embeddings.npy": npy_writer("video_embeddings"),
        "text_embeddings.npy": npy_writer("text_embeddings"),
        "similarity_matrix.npy": npy_writer("similarity_matrix"),
        "audio_names.txt": text_writer(lambda results: map(field, results["audio_names"])),
        "video_names.txt": text_writer(lambda results: map(field, results["video_names"])),
        "text_names.txt": text_writer(lambda results: map(field, results["text_names"])),
        "pairs.txt": text_writer(lambda results: ("\t".join(map(field, pair)) for pair in results["pairs"])),
        "pair_scores.csv": write_pair_scores,
        TABLE_NAME: write_parquet if is_parquet else None,
        **{name: kept_writer(options) if name == options.kept_name else None for name in KEPT_NAMES},
        "window_scores.csv": write_window_scores,
        "top_matches.csv": write_top_matches,
        "consistency_report.txt": text_writer(report_lines),
        REPORT_PAGE: None if options.no_html else write_page,
        METRICS_NAME: text_writer(lambda results: [to_json(results["metrics"])]),
    }


# Formats


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


def write_pair_scores(results: Results, file: BinaryIO) -> None:
    """Write pair_scores.csv: a line for each pair, then one for each that was skipped."""
    scores, skipped = results["pair_scores"], results["skipped_pairs"]
    table = scores.table()
    found = [
        values.tolist() if isinstance(values, np.ndarray) and values.dtype != np.float32 else values
        for values in table.values()
    ]
    similarities = scores.similarity_columns
    rest = (
        [np.float32(pair[c]) if c in similarities and pair[c] is not None else pair[c] for c in table]
        for pair in skipped
    )
    rows = itertools.chain(zip(*found, strict=True), rest)
    of_user = set() if scores.manifest is None else set(scores.manifest.names)
    write_csv(list(table), rows, file, of_user)


def write_parquet(results: Results, file: BinaryIO) -> None:
    """Write pair_scores.parquet: pair_scores.csv in types, which are the manifest's where it has any."""
    pyarrow, parquet = load_pyarrow()
    scores, skipped = results["pair_scores"], results["skipped_pairs"]
    manifest, columns = scores.manifest.manifest, {}
    given = {name: manifest.schema.field(column).type for name, column in scores.manifest.names.items()}
    for name, values in scores.table().items():
        rest = [pair.get(name) for pair in skipped]
        if name in given:
            columns[name] = typed_array([*values, *rest], given[name])
        elif name == "suspect":  # also where there are too few pairs to tell
            known = values.tolist() if values.dtype == bool else [None] * len(values)
            columns[name] = pyarrow.array([*known, *rest], pyarrow.bool_())
        elif isinstance(values, np.ndarray):
            found = pyarrow.array(values, from_pandas=True)  # NaN becomes null
            columns[name] = pyarrow.concat_arrays([found, pyarrow.array(rest, type=found.type)])
        else:
            texts = (None if text is None else str(text) for text in (*values, *rest))
            columns[name] = pyarrow.array([text and decodable(text) for text in texts], pyarrow.string())
    parquet.write_table(pyarrow.table(columns), file)


def decodable(text: str) -> str:
    r"""Write a byte of a file name that is not UTF-8 as \udcNN."""
    return text.encode("utf-8", "backslashreplace").decode()


def kept_writer(options: Options) -> Writer:
    """Return what writes the pairs that reach the threshold, in the form of the manifest or of pairs.txt."""

    def write(results: Results, file: BinaryIO) -> None:
        scores = results["pair_scores"]
        kept = []
        if scores:
            kept = np.flatnonzero(reaches(scores.columns["similarity"], options.keep_above)).tolist()
        if scores.manifest is None:
            pairs = (results["pairs"][i] for i in kept)
            text_writer(lambda _: ("\t".join(map(field, pair)) for pair in pairs))(results, file)
            return
        manifest, rows = scores.manifest.manifest, [scores.manifest.rows[i] for i in kept]
        columns = {
            name: [values[row] for row in rows]
            for name, values in manifest.based_on(options.output_dir).items()
        }
        write_rows(columns, manifest.suffix, manifest.schema, file)

    return write


def write_window_scores(results: Results, file: BinaryIO) -> None:
    """Write window_scores.csv: a line for each window of each pair, in the order of time."""
    columns = ("name", "start", "end", "score", "weakest", "audio_start", "audio_end", "audio_is_silent")
    scores, skipped = results["pair_scores"], results["skipped_pairs"]
    pairs = list(zip(scores.names, results["windows"], strict=True))
    pairs += [(p["name"], windows) for p, windows in zip(skipped, results["skipped_windows"], strict=True)]
    lines = None
    if scores.manifest is not None:
        columns = (*columns, "line")
        lines = scores.columns["line"].tolist() + [pair["line"] for pair in skipped]

    def rows() -> Iterator[Sequence[Any]]:
        for i, (name, windows) in enumerate(pairs):
            lowest = min((window.score for window in windows), default=None)
            for w in windows:
                score, of_audio = np.float32(w.score), (w.audio_start, w.audio_end, w.is_silent)
                of_line = () if lines is None else (lines[i],)
                yield name, w.start, w.end, score, w.score == lowest, *of_audio, *of_line

    write_csv(columns, rows(), file)


def write_top_matches(results: Results, file: BinaryIO) -> None:
    """Write top_matches.csv: the most similar videos of each sound, then the other way round."""
    columns = ("side", "name", "rank", "match", "similarity", "pair")
    names = {modality: results[f"{modality}_names"] for modality in ("audio", "video")}

    def rows() -> Iterator[Sequence[Any]]:
        for axis, (modality, other) in enumerate((("audio", "video"), ("video", "audio"))):
            top, partners = results["top_matches"][modality], defaultdict(set)
            for pair in results["pair_rows"].tolist():
                partners[pair[axis]].add(pair[1 - axis])
            for row, (matches, scores) in enumerate(zip(top.indices, top.similarities, strict=True)):
                for rank, (match, score) in enumerate(
                    zip(matches.tolist(), scores.tolist(), strict=True), start=1
                ):
                    if match >= 0:
                        is_pair = match in partners[row] if partners else None
                        yield modality, names[modality][row], rank, names[other][match], score, is_pair

    write_csv(columns, rows(), file)


# Whole or not at all


def write_files(
    files: dict[str, Writer | None],
    results: Any,
    output_dir: str | os.PathLike,
    in_temporary_files: Iterable[str] = (),
    marker: str = METRICS_NAME,
) -> None:
    """Write files: first each to a temporary one, then, when all are whole, rename them.

    The marker is removed first and renamed last: where it exists, all outputs are of one run. A record
    tells what was written, so that nothing else is ever removed.

    Args:
        files: name -> what writes it; None removes it, if it was written here before.
        in_temporary_files: names of those that are written already.
        marker: name of one of them.

    Raises:
        EvaluationError: one cannot be written; those of an earlier run stay as they were.
    """
    name, sizes = "outputs", {}
    try:
        ensure_directory(output_dir)
        record = read_record(output_dir)
        for name, write in files.items():
            if write is None:
                continue
            path = temporary_path(output_dir, name)
            is_written = name in in_temporary_files and path.exists()
            with open(path, "r+b") if is_written else create(path) as file:
                if not is_written:
                    write(results, file)
                file.flush()
                os.fsync(file.fileno())
                sizes[name] = os.fstat(file.fileno()).st_size
        both = {name: [*record.get(name, []), size] for name, size in sizes.items()}  # until all are renamed
        write_record(output_dir, record | both)
        if marker in files:
            Path(output_dir, marker).unlink(missing_ok=True)
        for name, write in sorted(files.items(), key=lambda item: item[0] == marker):
            if write is not None:
                os.replace(temporary_path(output_dir, name), Path(output_dir, name))
            elif os.path.lexists(path := Path(output_dir, name)):
                if os.lstat(path).st_size in record.get(name, ()):
                    path.unlink()
                    del record[name]
                else:
                    log.warning("%s: is not of a run, and stays", path)
        with suppress(OSError):  # all is written, and the record of before says so too
            write_record(output_dir, record | {name: [size] for name, size in sizes.items()})
    except OSError as e:
        raise EvaluationError(f"{output_dir}: cannot write {name} ({e.strerror or e})") from e
    finally:
        remove_temporary_files(output_dir, files)


def read_record(output_dir: str | os.PathLike) -> dict[str, list[int]]:
    """Read what runs wrote to a directory: name -> the sizes that the file may have.

    Earlier versions kept none: where their metrics.json is, all that is called as their outputs is theirs.
    """
    found = read_json(Path(output_dir, RECORD_NAME))
    if isinstance(found, dict) and all(isinstance(sizes, list) for sizes in found.values()):
        return found
    metrics = read_json(Path(output_dir, METRICS_NAME))
    if not isinstance(metrics, dict) or not {"protocol", "counts"} <= set(metrics):
        return {}
    kept = metrics.get("kept")
    optional = {name for name in KEPT_NAMES if isinstance(kept, dict) and kept.get("file") == name}
    optional |= {TABLE_NAME} if metrics.get("pairing_rule") == "manifest" else set()
    names = {*output_writers(Options(None, "", output_dir=output_dir)), *optional} - (
        {*OPTIONAL_NAMES} - optional
    )
    paths = {name: Path(output_dir, name) for name in names if name}
    return {name: [path.stat().st_size] for name, path in paths.items() if path.is_file()}


def write_record(output_dir: str | os.PathLike, record: dict[str, list[int]]) -> None:
    path = temporary_path(output_dir, RECORD_NAME)
    with create(path) as file:
        file.write(json.dumps(record, sort_keys=True).encode())
    os.replace(path, Path(output_dir, RECORD_NAME))


def read_json(path: Path) -> Any:
    """Read a file of JSON; None where there is none, or something that could block."""
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def remove_temporary_files(output_dir: str | os.PathLike, names: Iterable[str]) -> None:
    """Remove the temporary files of these outputs, which a run that was killed may have left."""
    leftovers = [temporary_path(output_dir, name) for name in (*names, RECORD_NAME)]
    with suppress(OSError):  # where no more files can be opened, a directory cannot be listed
        leftovers += [
            *find_parts(Path(output_dir, TEMPORARY_CACHE_NAME)),
            *Path(output_dir).glob(MARKER_PREFIX + 32 * "[0-9a-f]"),
        ]
    for path in leftovers:
        with suppress(OSError):
            path.unlink()


# One run at a time


class OutputLock:
    """Keeps other runs out of an output directory, which is created.

    The lock is the operating system's and ends with the process, however that ends; the text in the locked
    file only says who holds it.

    Args:
        output_dir: the directory; None locks nothing.

    Raises:
        EvaluationError: the directory cannot be written to, or another run uses it.
    """

    def __init__(self, output_dir: str | os.PathLike | None):
        self.output_dir = output_dir
        if output_dir is not None:
            self.path = Path(output_dir, LOCK_NAME)
            self.lock = FileLock(self.path, fallback_to_soft=False)
            self._acquire()

    def renew(self) -> None:
        """Lock again if the directory was removed, as another run may have it by now.

        Raises:
            EvaluationError: it does.
        """
        if self.output_dir is None or not self.lock.is_locked or self.is_held():
            return
        self.lock.release()
        self._acquire()
        log.warning("%s: gone during the run; made again", self.output_dir)

    def is_held(self) -> bool:
        """Whether the directory is still the one that was locked."""
        return self.output_dir is not None and self.identity == file_identity(self.path) is not None

    def release(self) -> None:
        """Let other runs in."""
        if self.is_held():
            self.path.unlink()  # while it is locked: who waits for it then locks a new file
        if self.output_dir is not None:
            self.lock.release()

    def _acquire(self) -> None:
        held_by = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}"
        try:
            os.makedirs(self.output_dir, exist_ok=True)
            if self.path.is_symlink():  # it would be followed
                self.path.unlink()
            self.lock.acquire(blocking=False)
            self.path.write_text(held_by)
        except Timeout as e:
            raise EvaluationError(
                f"{self.output_dir}: in use by {read_holder(self.path)}; wait for it, or name another "
                "--output_dir"
            ) from e
        except OSError as e:
            if e.errno not in NO_LOCKS:
                raise EvaluationError(
                    f"{self.output_dir}: cannot write to this directory ({e.strerror})"
                ) from e
            log.warning(
                "%s: cannot be locked (%s); make sure that no other run writes there", self.path, e.strerror
            )
        self.identity = file_identity(self.path)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of the same name; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def exclusive_use(output_dir: str | os.PathLike | None, names: Iterable[str]) -> Iterator[OutputLock]:
    """Keep other runs out of an output directory, and clear it of the temporary files of killed ones.

    Args:
        names: of the outputs.

    Raises:
        EvaluationError: as OutputLock.
    """
    lock = OutputLock(output_dir)
    try:
        if lock.is_held():
            remove_temporary_files(output_dir, names)
        yield lock
    finally:
        if lock.is_held():  # another run may have the directory if it was removed
            remove_temporary_files(output_dir, names)
        lock.release()


def read_holder(path: Path) -> str:
    """Return what the process that holds a lock wrote into its file."""
    try:
        return path.read_text() or "another run"
    except OSError:
        return "another run"
