"""Files that are written whole or not at all, with a record of what was written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from imagebind.evaluation.compare.arrays import create, temporary_path
from imagebind.evaluation.embed.store import ensure_directory
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.options import MARKER_PREFIX, TEMPORARY_CACHE_NAME
from imagebind.reading.cache import find_parts

RECORD_NAME = ".written.json"  # of the outputs that were written
METRICS_NAME = "metrics.json"
# What versions that kept no record could write; what they kept where metrics.json says so.
UNRECORDED = (
    *("audio_embeddings.npy", "video_embeddings.npy", "text_embeddings.npy", "similarity_matrix.npy"),
    *("audio_names.txt", "video_names.txt", "text_names.txt", "pairs.txt", "pair_scores.csv"),
    *("window_scores.csv", "top_matches.csv", "consistency_report.txt", "report.html", METRICS_NAME),
)
UNRECORDED_KEPT = ("kept.txt", "kept.csv", "kept.tsv", "kept.jsonl", "kept.parquet")
Results = dict[str, Any]  # what batch_inference_av_consistency returns
Writer = Callable[[Any, BinaryIO], None]

log = logging.getLogger(__name__)


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
    record = read_json(Path(output_dir, RECORD_NAME))
    if isinstance(record, dict) and all(isinstance(sizes, list) for sizes in record.values()):
        return record
    metrics = read_json(Path(output_dir, METRICS_NAME))
    if not isinstance(metrics, dict) or not {"protocol", "counts"} <= set(metrics):
        return {}
    kept = metrics.get("kept")
    names = [name for name in UNRECORDED_KEPT if isinstance(kept, dict) and kept.get("file") == name]
    names += ["pair_scores.parquet"] if metrics.get("pairing_rule") == "manifest" else []
    paths = {name: Path(output_dir, name) for name in (*UNRECORDED, *names)}
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
