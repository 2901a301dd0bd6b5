"""What the user named -> the files of one modality, with a name for each."""

from __future__ import annotations

import codecs
import logging
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.evaluation.rules import Paths
from imagebind.names import can_be_path, local_path, shorten
from imagebind.sources import Source

SUFFIXES = {
    "audio": (".wav", ".mp3", ".flac", ".m4a", ".ogg"),
    "video": (".mp4", ".avi", ".mov", ".mkv", ".flv", ".webm"),
}

# Suffixes of the same kind of file that are left out of a directory, with a warning
OTHER_SUFFIXES = {
    "audio": (".aac", ".opus", ".wma", ".oga", ".aif", ".aiff", ".amr", ".ac3", ".caf", ".mka"),
    "video": (
        ".m4v",
        ".ts",
        ".mpg",
        ".mpeg",
        ".3gp",
        ".wmv",
        ".gif",
        ".ogv",
        ".mts",
        ".m2ts",
        ".vob",
        ".mxf",
    ),
}

OTHER_ENCODINGS = ("gb18030", "cp1252")  # of lists of paths
LINES_TRIED = 100
AROUND_PATHS = " \t\r\n\"'"  # that may stand around a path in a list
COPIES_LIST = ".copies.txt"  # in a directory of copies that a page plays: their names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MediaFiles:
    """The files of one modality, in order."""

    listed: tuple[Source, ...]  # a file that is listed twice is there twice
    root: str | None = None  # the directory that was searched for them; None: they were listed

    @cached_property
    def distinct(self) -> tuple[Source, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(self.listed))

    @cached_property
    def base(self) -> str:
        """The directory that keys are relative to: the searched one, or the common one of listed files."""
        folders = {os.path.dirname(os.path.abspath(source.path)) for source in self.listed}
        return self.root or os.path.commonpath(folders)

    def key(self, source: Source) -> str:
        """Return the path relative to the base, without extension."""
        return os.path.splitext(os.path.relpath(source.path, self.base))[0] + source.fragment

    def stable_key(self, source: Source) -> str:
        """Return what stays the same when files are added: the path below the searched directory.

        Of listed files, whose common directory may change with any of them, it is the absolute path.
        """
        if self.root:
            return self.key(source)
        return os.path.splitext(os.path.abspath(source.path))[0] + source.fragment

    @property
    def any_exists(self) -> bool:
        """Whether any of the files is there."""
        return any(os.path.exists(source.path) for source in self.distinct)

    @cached_property
    def stems(self) -> dict[Source, str]:
        """The stem of each file."""
        return {source: stem(source) for source in self.distinct}

    @cached_property
    def names(self) -> dict[Source, str]:
        """The stem of each file; where files share it the key, and where they share that with extension."""
        n_files = Counter(self.stems.values())
        names = {source: x if n_files[x] == 1 else self.key(source) for source, x in self.stems.items()}
        n_uses = Counter(names.values())
        return {
            source: name if n_uses[name] == 1 else os.path.relpath(source.path, self.base) + source.fragment
            for source, name in names.items()
        }


def stem(source: Source) -> str:
    """Return a file's name without folders and extension."""
    return os.path.splitext(os.path.basename(source.path))[0] + source.fragment


def gather_files(modality: str, given: Paths) -> MediaFiles:
    """Collect the files of one modality.

    Args:
        modality: "audio" or "video".
        given: a directory, which is searched; one file; or files, in order.

    Raises:
        EvaluationError: there are none.
    """
    if isinstance(given, str):
        given = local_path(given)
    if isinstance(given, str | os.PathLike) and os.path.isdir(given):
        return search_directory(modality, os.fspath(given))
    if isinstance(given, str | os.PathLike) and not os.path.lexists(given):
        raise EvaluationError(f"{os.fspath(given)}: no such file or directory")
    paths = [given] if isinstance(given, str | os.PathLike) else given
    listed = tuple(map(Source, unify_spelling(local_path(os.fspath(path)) for path in paths)))
    if not listed:
        raise EvaluationError(f"no {modality} files given; a list of them is empty")
    return MediaFiles(listed)


def unify_spelling(paths: Iterable[str]) -> tuple[str, ...]:
    """Give paths of one name in one directory, such as a.wav and ./a.wav, the spelling of the first."""
    folder_of = cache(lambda folder: os.path.realpath(folder) if can_be_path(folder) else folder)
    spellings: dict[tuple[str, str], str] = {}
    return tuple(
        spellings.setdefault((folder_of(folder), name), path)
        for path in paths
        for folder, name in [os.path.split(path)]
    )


def search_directory(modality: str, directory: str) -> MediaFiles:
    """Search a directory for the files of one modality; videos stand in for audio where there is none.

    Raises:
        EvaluationError: it has none.
    """
    by_suffix = find_files(directory)
    found = select(by_suffix, SUFFIXES[modality])
    if not found and modality == "audio" and (found := select(by_suffix, SUFFIXES["video"])):
        log.warning("%s: no audio files; the sound of its %d video files is used", directory, len(found))
    left_out = {suffix: by_suffix[suffix] for suffix in OTHER_SUFFIXES[modality] if suffix in by_suffix}
    if not found:
        message = f"{directory}: no {modality} files ({' '.join(SUFFIXES[modality])}) in this directory"
        there = describe_suffixes(by_suffix)
        raise EvaluationError(f"{message}; it has {there}" if by_suffix else f"{message}; it is empty")
    if left_out:
        pattern = " -o ".join(f"-iname '*{suffix}'" for suffix in (*SUFFIXES[modality], *left_out))
        log.warning(
            "%s: left out %s; a list file takes any format: find %s -type f \\( %s \\) > list.txt",
            directory,
            describe_suffixes(left_out),
            shlex.quote(directory),
            pattern,
        )
    return MediaFiles(tuple(map(Source, found)), directory)


def select(by_suffix: dict[str, list[str]], suffixes: Iterable[str]) -> list[str]:
    """Return the files of some suffixes, sorted."""
    return sorted(path for suffix in suffixes for path in by_suffix.get(suffix, ()))


def describe_suffixes(by_suffix: dict[str, list[str]]) -> str:
    """Count files by suffix, the most frequent first."""
    counts = sorted(((len(paths), suffix) for suffix, paths in by_suffix.items()), reverse=True)
    return shorten([f"{n} {suffix or 'without suffix'}" for n, suffix in counts])


def find_files(directory: str) -> dict[str, list[str]]:
    """List the files below a directory by their suffix in small letters, without hidden ones and our copies.

    Links to directories are followed; a directory that was searched already is not searched again, so that
    a link to a parent directory ends.
    """
    found, searched = defaultdict(list), set()

    def warn(error: OSError) -> None:
        log.warning("%s: %s; nothing in it is used", error.filename, error.strerror)

    for folder, subfolders, names in os.walk(directory, onerror=warn, followlinks=True):
        if COPIES_LIST in names and folder != directory:  # copies that a page plays are no inputs
            subfolders.clear()
            continue
        status = os.stat(folder)
        identity = status.st_dev, status.st_ino
        if identity in searched:
            subfolders.clear()
            continue
        searched.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                found[os.path.splitext(name)[1].lower()].append(os.path.join(folder, name))
    return dict(found)


def read_list_file(path: str | os.PathLike) -> list[str]:
    """Read paths from a text file, one a line; blank lines and lines that start with # are ignored.

    The file is UTF-8, with or without a byte order mark, or UTF-16 with one. Bytes that are not UTF-8 are
    kept, so that a list made by `find` names every file, unless the files are there by another encoding.

    Raises:
        OSError: it cannot be read.
        OptionError: it is no such file.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OptionError(f"{path}: not a regular file; a text file with one path a line is wanted")
    content = Path(path).read_bytes()
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if is_utf_16 and not content.startswith(codecs.BOM_UTF32_LE):
        text = content.decode("utf-16", errors="replace")
    elif b"\0" in content:
        raise OptionError(f"{path}: is no text; a text file with one path a line is wanted")
    else:
        text = decode_paths(content, path)
    lines = [line.removesuffix("\r") for line in text.split("\n" if "\n" in text else "\r")]
    paths = trim([line for line in lines if line.strip() and not line.startswith("#")], path)
    folder = os.path.dirname(os.path.abspath(path))
    if paths and not any(map(os.path.exists, paths)) and os.path.exists(os.path.join(folder, paths[0])):
        log.warning("%s: its paths start at the working directory, and lead nowhere from there", path)
    return paths


class ListFile(list):
    """The paths that were read from a list file, and where it is."""

    def __init__(self, source: str):
        super().__init__(read_list_file(source))
        self.source = source


def decode_paths(content: bytes, source: str | os.PathLike) -> str:
    """Decode lines as UTF-8; lines that name a file in another encoding alone, in that."""
    with suppress(UnicodeDecodeError):  # nearly every list, and one may have a million lines
        return content.decode("utf-8-sig")
    lines = content.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)
    texts = [line.decode("utf-8", "surrogateescape") for line in lines]

    def is_file(text: str) -> bool:
        return os.path.exists(text.strip(AROUND_PATHS))

    paths = [i for i, line in enumerate(lines) if not line.startswith(b"#")]
    others = [i for i in paths if not can_be_utf_8(texts[i])]
    tried = [i for i in others if not is_file(texts[i])][:LINES_TRIED]
    if not tried:
        return "".join(texts)
    by_encoding = {x: [lines[i].decode(x, "replace") for i in tried] for x in OTHER_ENCODINGS}
    encoding = max(by_encoding, key=lambda x: sum(map(is_file, by_encoding[x])))
    if not any(map(is_file, by_encoding[encoding])):
        cure = ", and its file is not there; save the list as UTF-8"
        log.warning("%s: line %d is not UTF-8%s", source, tried[0] + 1, cure)
        return "".join(texts)
    shown = encoding.upper()
    log.warning("%s: line %d is not UTF-8; such lines are read as %s", source, tried[0] + 1, shown)
    for i in paths:  # bytes of the other encoding can be UTF-8 too
        text = lines[i].decode(encoding, "replace")
        if text != texts[i] and not is_file(texts[i]) and is_file(text):
            texts[i] = text
    return "".join(texts)


def can_be_utf_8(text: str) -> bool:
    """Whether text has no bytes in it that are not UTF-8."""
    return not any("\udc80" <= character <= "\udcff" for character in text)


def trim(lines: list[str], source: str | os.PathLike) -> list[str]:
    """Take blanks and quotes from the ends of lines that name a file only without them."""
    trimmed = []
    for i, line in enumerate(lines):
        bare = line.strip(" \t\"'")
        if bare != line and os.path.exists(bare) and not os.path.exists(line):
            lines[i] = bare
            trimmed.append(bare)
    if trimmed:
        log.warning("%s: blanks or quotes around a path are left out: %s", source, shorten(trimmed))
    return lines
