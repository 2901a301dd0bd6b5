"""What the user named -> the files of one modality, with a name for each."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from imagebind.evaluation.errors import EvaluationError

SUFFIXES = {
    "audio": (".wav", ".mp3", ".flac", ".m4a", ".ogg"),
    "video": (".mp4", ".avi", ".mov", ".mkv", ".flv", ".webm"),
}

Source = str | os.PathLike | Sequence[str | os.PathLike]  # a directory, a file, or files in order

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MediaFiles:
    """The files of one modality, in order."""

    paths: tuple[str, ...]  # a file that is listed twice is there twice
    root: str | None = None  # the directory that was searched for them; None: they were listed

    @cached_property
    def distinct(self) -> tuple[str, ...]:
        """The paths, each once."""
        return tuple(dict.fromkeys(self.paths))

    @cached_property
    def base(self) -> str:
        """The directory that keys are relative to: the searched one, or the common one of listed files."""
        folders = {os.path.dirname(os.path.abspath(path)) for path in self.paths}
        return self.root or os.path.commonpath(folders)

    def key(self, path: str) -> str:
        """Return the path relative to the base, without extension."""
        return os.path.splitext(os.path.relpath(path, self.base))[0]

    @cached_property
    def names(self) -> dict[str, str]:
        """Path -> its stem; where files share the stem its key, and where they share that with extension."""
        stems = Counter(map(stem, self.distinct))
        names = {path: stem(path) if stems[stem(path)] == 1 else self.key(path) for path in self.distinct}
        n_uses = Counter(names.values())
        return {
            path: name if n_uses[name] == 1 else os.path.relpath(path, self.base)
            for path, name in names.items()
        }


def stem(path: str) -> str:
    """Return a file's name without folders and extension."""
    return os.path.splitext(os.path.basename(path))[0]


def gather_files(modality: str, source: Source) -> MediaFiles:
    """Collect the files of one modality.

    Args:
        modality: "audio" or "video".
        source: a directory, which is searched; one file; or files, in order.

    Raises:
        EvaluationError: there are none.
    """
    if not isinstance(source, str | os.PathLike):
        files = MediaFiles(tuple(map(os.fspath, source)))
    elif os.path.isdir(source):
        files = search_directory(modality, os.fspath(source))
    else:
        files = MediaFiles((os.fspath(source),))
    if not files.paths:
        raise EvaluationError(f"no {modality} files given")
    return files


def search_directory(modality: str, directory: str) -> MediaFiles:
    """Search a directory for the files of one modality; videos stand in for audio where there is none.

    Raises:
        EvaluationError: it has none.
    """
    found = find_files(directory, SUFFIXES[modality])
    if not found and modality == "audio" and (found := find_files(directory, SUFFIXES["video"])):
        log.warning("%s: no audio files; the sound of its %d video files is used", directory, len(found))
    if not found:
        suffixes = " ".join(SUFFIXES[modality])
        raise EvaluationError(f"{directory}: no {modality} files ({suffixes}) in this directory")
    return MediaFiles(tuple(found), directory)


def find_files(directory: str, suffixes: Sequence[str]) -> list[str]:
    """List the files below a directory that end in one of `suffixes`, sorted, without hidden ones.

    Links to directories are followed; a directory that was searched already is not searched again, so that
    a link to a parent directory ends.
    """
    found, searched = [], set()

    def warn(error: OSError) -> None:
        log.warning("%s: %s; nothing in it is used", error.filename, error.strerror)

    for folder, subfolders, names in os.walk(directory, onerror=warn, followlinks=True):
        status = os.stat(folder)
        identity = status.st_dev, status.st_ino
        if identity in searched:
            subfolders.clear()
            continue
        searched.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [
            os.path.join(folder, name)
            for name in names
            if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
        ]
    return sorted(found)


def read_list_file(path: str | os.PathLike) -> list[str]:
    """Read paths from a text file, one a line; blank lines and lines that start with # are ignored.

    The file is UTF-8, with or without a byte order mark. Bytes that are not UTF-8 are kept, so that a list
    made by `find` names every file.
    """
    text = Path(path).read_bytes().decode("utf-8-sig", errors="surrogateescape")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return [line for line in lines if line.strip() and not line.startswith("#")]
