"""Tars of samples, as WebDataset writes them: members that share a name up to its first dot are one sample.

Nothing is unpacked: a sound or a video is read where it lies.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any, BinaryIO

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.contents import Held
from imagebind.evaluation.inputs.files import OTHER_SUFFIXES, SUFFIXES
from imagebind.evaluation.inputs.tables import Row
from imagebind.sources import Member

MAX_TEXT_BYTES = 1 << 20  # of a member that is read while samples are listed
READ_BYTES = 1 << 20
TYPE_OFFSET = 156  # in a header, of its type
END_BYTES = 2 * tarfile.BLOCKSIZE  # of zeros, by which a tar ends
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
PATHS = ("video", "path", "audio", "audio_path", "id")  # columns that a sample's own JSON may not give
MODALITIES = {
    suffix: modality for modality in SUFFIXES for suffix in (*SUFFIXES[modality], *OTHER_SUFFIXES[modality])
}

log = logging.getLogger(__name__)


def read_tars(paths: Iterable[str]) -> Iterator[Row]:
    """Read the samples of tars, a row each: `id` is their key, `.json` gives columns, `.txt` the caption.

    Raises:
        EvaluationError: one cannot be read, or is no tar.
    """
    number = 0
    for path in paths:
        with opened_tar(path) as file:
            for key, members in groupby(list_members(path, file), key_of):
                number += 1
                yield read_sample(f"{number}", path, file, key, members)


def key_of(member: tarfile.TarInfo) -> str:
    """Return what the members of a sample share.

    >>> key_of(tarfile.TarInfo("./dogs/01.left.mp4"))
    'dogs/01'
    """
    folder, name = os.path.split(os.path.normpath(member.name))
    return os.path.join(folder, name.partition(".")[0])


@contextmanager
def opened_tar(path: str) -> Iterator[BinaryIO]:
    """Open a tar.

    Raises:
        EvaluationError: it cannot be read, or is compressed.
    """
    if not os.path.isfile(path):
        raise EvaluationError(f"{path}: {'not a regular' if os.path.lexists(path) else 'no such'} file")
    try:
        with open(path, "rb") as file:
            if os.pread(file.fileno(), 6, 0).startswith(COMPRESSED):
                raise EvaluationError(f"{path}: is compressed, and is read in place; decompress it")
            yield file
    except OSError as e:
        raise EvaluationError(f"{path}: {e.strerror}") from e


def list_members(path: str, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """List the files in a tar; of a damaged one, with a warning, those before and after the damage."""
    place, name, size = 0, None, os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                if not is_filling(file, place, member.offset):
                    warn_of_damage(path, name)
                place, name = tar.offset, member.name
                tar.members = []  # it would keep them all
                if member.isreg() and not member.issparse():
                    yield member
    except (tarfile.TarError, OSError) as e:
        log.debug("%s: %s", path, e)
        place = size
    if size - place < END_BYTES or not is_filling(file, place, size):
        warn_of_damage(path, name)


def is_filling(file: BinaryIO, start: int, end: int) -> bool:
    """Whether no member is in a stretch of a tar: zeros, as between two in one, or a header for all."""
    if (
        end - start >= tarfile.BLOCKSIZE
        and os.pread(file.fileno(), 1, start + TYPE_OFFSET) == tarfile.XGLTYPE
    ):
        return True
    while start < end:
        block = os.pread(file.fileno(), min(READ_BYTES, end - start), start)
        if not block or block.strip(b"\0"):
            return False
        start += len(block)
    return True


def warn_of_damage(path: str, name: str | None) -> None:
    where = "at its start" if name is None else f"in or after {name}"
    log.warning("%s: is damaged, or cut, %s; samples may be missing there", path, where)


def read_sample(line: str, path: str, file: BinaryIO, key: str, members: Iterable[tarfile.TarInfo]) -> Row:
    """Make the row of a sample; the first sound and the first video are those of the pair."""
    size, values, fault = os.fstat(file.fileno()).st_size, {"id": key}, None
    for member in members:
        name = os.path.normpath(member.name)
        suffix = os.path.splitext(name)[1].lower()
        if (modality := MODALITIES.get(suffix)) is not None:
            if modality in values:
                fault = f"several files of its {modality}"
            elif member.offset_data + member.size > size:
                fault = f"its tar ends within its {modality}"
            content = Member(path, member.offset_data, member.size)
            values.setdefault(modality, Held(os.path.join(path, name), content))
        elif suffix in (".json", ".txt") and member.size <= MAX_TEXT_BYTES:
            text = os.pread(file.fileno(), member.size, member.offset_data).decode("utf-8", "replace")
            values |= {"caption": text.strip()} if suffix == ".txt" else columns_of(text, values)
    return Row(line, values, fault)


def columns_of(text: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a sample's JSON, but those that it has from its tar."""
    with suppress(ValueError, RecursionError):
        values = json.loads(text)
        if isinstance(values, dict):
            return {name: value for name, value in values.items() if name not in (*PATHS, *given)}
    return {}
