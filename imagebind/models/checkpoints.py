"""Checkpoint files: where they are, what they hold, and what is wrong with them.

Two kinds are read. One is a state dict of the released size, as torch.save or safetensors write it: under the
released names or ours, bare or as a training run saves it (state_dicts.py). A tower of which it has no tensor
is not built. A checkpoint of our own is in plain types:

    {"format": "imagebind-towers", "towers": {modality: row}, "state_dict": {name: tensor}, "note": str}
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch

from imagebind import packages
from imagebind.models import released, state_dicts
from imagebind.spelling import option as spelled

CHUNK_BYTES = 1 << 24
MAX_NOTE = 1000  # characters
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, which is safetensors' own limit
MAX_NUMBERS = 2**28  # in a tensor; a file of a few bytes can claim any number of equal ones
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

FORMAT = "imagebind-towers"


class CheckpointError(RuntimeError):
    """Weights that cannot be loaded; the message is one line that names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    towers: dict[str, dict] | None  # modality -> sizes; None in a state dict of the released size
    state_dict: dict[str, torch.Tensor]  # by our names, memory-mapped
    note: str = ""  # shown with every result
    names: dict[str, str] = field(default_factory=dict)  # our names -> the file's, where they may differ

    def name_in_file(self, name: str) -> str:
        """Return what a tensor of ours is called in the file, or would be if it were there."""
        return self.names.get(name) or (released.released_name(name) if self._has_released_names else name)

    @cached_property
    def _has_released_names(self) -> bool:
        """Whether its own names, without wrappers' prefixes, are not ours."""
        names = map(state_dicts.without_wrappers, self.names.values())
        return bool(self.names) and not any(name.startswith("towers.") for name in names)


@dataclass(frozen=True)
class Weights:
    """A checkpoint file as it was when it was read; or a model that the caller has."""

    path: Path
    sha256: str
    is_known: bool  # whether it was checked before
    status: tuple[int, ...] | None = None  # what changes when the file does; None: there is none

    def check_unchanged(self) -> None:
        """Raise a CheckpointError if the file has changed: its tensors are read from it as they are used."""
        if self.status is not None and file_status(self.path) != self.status:
            raise CheckpointError(f"{self.path}: changed during the run; run again")


def verify(path: str | os.PathLike) -> Weights:
    """Hash a checkpoint and check its tensors against their CRC-32, in one pass.

    The pass takes seconds for gigabytes. What remember_digest has remembered is not read again, for as long
    as the file is the same.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or changes meanwhile.
    """
    path = Path(path)
    with opening_errors(path):
        status = file_status(path)
        sha256 = known_digest(path, status)
        if sha256 is not None:
            return Weights(path, sha256, True, status)
        weights = Weights(path, hash_and_check(path), False, status)
        weights.check_unchanged()
        return weights


@contextmanager
def opening_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError inside into a CheckpointError that names the file."""
    try:
        yield
    except OSError as e:
        raise CheckpointError(
            f"{path}: {e.strerror}; name a checkpoint with {spelled('checkpoint', 'PATH')}"
        ) from e


def known_sha256(path: str | os.PathLike) -> str | None:
    """Return the SHA-256 of a checkpoint that was checked before and is the same since; None otherwise.

    Raises:
        CheckpointError: there is no such file, or it is none that can be read to its end.
    """
    with opening_errors(path):
        return known_digest(Path(path), file_status(Path(path)))


def file_status(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written to or replaced.

    Raises:
        OSError: there is no such file.
        CheckpointError: it is a directory, or something that has no end.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(
            f"{path}: not a regular file; name a checkpoint with {spelled('checkpoint', 'PATH')}"
        )
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def hash_and_check(path: Path) -> str:
    """Return the SHA-256 of a file; of a zip file check the CRC-32 of every stored member too.

    A safetensors file has no sums of its tensors.

    Raises:
        CheckpointError: a member is damaged.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        try:
            zipped = file.read(2) == b"PK" and zipfile.is_zipfile(file)
            members = stored_members(file) if zipped else []
        except Exception as e:  # a damaged directory makes zipfile fail in any way
            raise CheckpointError(f"{path}: truncated or damaged; download it again") from e
        sums, first, position = [0] * len(members), 0, 0
        file.seek(0)
        while chunk := memoryview(file.read(CHUNK_BYTES)):
            digest.update(chunk)
            for i in range(first, len(members)):
                start, end, _ = members[i]
                if start >= position + len(chunk):
                    break
                sums[i] = zlib.crc32(chunk[max(start - position, 0) : end - position], sums[i])
                first = i if end > position + len(chunk) else i + 1
            position += len(chunk)
    if any(computed != stated for computed, (_, _, stated) in zip(sums, members, strict=True)):
        raise CheckpointError(f"{path}: truncated or damaged; download it again")
    return digest.hexdigest()


def stored_members(file: BinaryIO) -> list[tuple[int, int, int]]:
    """List where the uncompressed members of a zip file start and end, and the CRC-32 of each."""
    members = []
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type == zipfile.ZIP_STORED:
                file.seek(member.header_offset + 26)  # of the lengths of name and extra field
                start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
                members.append((start, start + member.file_size, member.CRC))
    return sorted(members)


def digests_path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "imagebind-av-consistency", "checkpoints.json")


def known_digest(path: Path, status: tuple[int, ...]) -> str | None:
    """Return the SHA-256 of a file that was checked before and is the same since; None otherwise."""
    known = read_digests().get(os.path.realpath(path), {})
    return known.get("sha256") if known == digest_entry(known.get("sha256"), status) else None


def digest_entry(sha256: Any, status: tuple[int, ...]) -> dict[str, Any]:
    """Make what is remembered of a file, with a checksum: nobody else is to write there."""
    checksum = hashlib.sha256(repr((sha256, *status)).encode()).hexdigest()
    return {"sha256": sha256, "status": list(status), "checksum": checksum}


def read_digests() -> dict[str, dict[str, Any]]:
    """Read what is remembered, by path; whatever is not as it should be is left out."""
    path = digests_path()
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: e for name, e in known.items() if isinstance(e, dict)} if isinstance(known, dict) else {}


def remember_digest(weights: Weights) -> None:
    """Remember the SHA-256 of a file, where that can be written."""
    path = digests_path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = read_digests()
        known[os.path.realpath(weights.path)] = digest_entry(weights.sha256, weights.status)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=2))
        os.replace(temporary, path)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint of either kind; its tensors are memory-mapped, and read when they are first used.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint, it is truncated, or it contains code.
    """
    content = load_content(path)
    try:
        if isinstance(content, Mapping) and not is_our_own(content):
            content = state_dicts.unwrap(content)
        if isinstance(content, Mapping) and is_our_own(content):
            return read_our_own(path, content)
        if isinstance(content, Mapping) and all(map(torch.is_tensor, content.values())):
            return read_state_dict(path, {str(name): tensor for name, tensor in content.items()})
    except ValueError as e:
        raise CheckpointError(f"{path}: {e}") from e
    raise CheckpointError(f"{path}: not a checkpoint of ImageBind")


def load_content(path: str | os.PathLike) -> Any:
    """Load what torch.save or safetensors wrote, with tensors that are memory-mapped.

    Raises:
        CheckpointError: as read_checkpoint.
    """
    with opening_errors(path), open(path, "rb") as file:
        start = file.read(9)
    zipped = start[:2] == b"PK"  # as torch.save writes it since 1.6
    whole = zipped or is_safetensors(start)  # of a kind that says what it is in its first bytes
    try:
        if is_safetensors(start):
            with packages.load("safetensors").safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
            return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except packages.PackageError as e:
        raise CheckpointError(f"{path}: {e}") from e
    except pickle.UnpicklingError as e:
        code = "holds more than tensors and plain values; refused, save the weights alone"
        reason = code if zipped else "not a checkpoint"
        raise CheckpointError(f"{path}: {reason}") from e
    except Exception as e:  # a damaged file makes the reader fail in any way
        reason = "truncated or damaged; download it again" if whole else "not a checkpoint"
        raise CheckpointError(f"{path}: {reason}") from e


def is_safetensors(start: bytes) -> bool:
    """Whether a file that starts so is of safetensors: the length of a JSON header in 8 bytes, and that."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def is_our_own(content: Mapping[Any, Any]) -> bool:
    return str(content.get("format")) == FORMAT


def read_our_own(path: str | os.PathLike, content: Mapping[Any, Any]) -> Checkpoint:
    """Check the parts of a checkpoint of our own.

    Raises:
        CheckpointError: one of them is missing, or something else.
        ValueError: as state_dicts.refuse_lora.
    """
    if missing := {"towers", "state_dict", "note"} - set(content):
        raise CheckpointError(f"{path}: lacks its {', '.join(sorted(missing))}")
    if not isinstance(content["note"], str):
        raise CheckpointError(f"{path}: its note is not text")
    check_tensors(path, content["state_dict"])
    state_dicts.refuse_lora(content["state_dict"])
    return Checkpoint(content["towers"], content["state_dict"], content["note"][:MAX_NOTE])


def read_state_dict(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Rename the tensors of a state dict.

    Raises:
        CheckpointError: one of them cannot be taken.
        ValueError: they are those of LoRA, or two are the same.
    """
    state_dicts.refuse_lora(tensors)
    names = state_dicts.our_names(tensors)
    renamed = {ours: tensors[name] for ours, name in names.items() if ours != released.CAUSAL_MASK}
    check_tensors(path, renamed)
    return Checkpoint(None, released.in_our_shapes(renamed), names=names)


def check_tensors(path: str | os.PathLike, state_dict: Any) -> None:
    """Check that a state dict holds plain tensors of real numbers.

    Raises:
        CheckpointError: it does not.
    """
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(f"{path}: its state_dict is no mapping of names to tensors")
    for name, tensor in state_dict.items():
        is_plain = (
            isinstance(name, str)
            and torch.is_tensor(tensor)
            and tensor.layout is torch.strided
            and tensor.dtype in FLOAT_TYPES
            and tensor.device.type == "cpu"
            and tensor.numel() <= MAX_NUMBERS
        )
        if not is_plain:
            shown = state_dicts.shown(name)
            raise CheckpointError(f"{path}: {shown} is no tensor of real numbers, or too large")


def check_finite(path: str | os.PathLike, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Read all tensors, and check that their numbers are finite.

    Raises:
        CheckpointError: one is not.
    """
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite")


def check_state_dict(
    path: str | os.PathLike, checkpoint: Checkpoint, expected: Mapping[str, torch.Tensor]
) -> None:
    """Compare the tensors of a file with those of the model, by name and shape.

    Raises:
        CheckpointError: tensors are missing or unknown, by the names that the file uses; or of another shape.
    """
    tensors = checkpoint.state_dict
    missing = [checkpoint.name_in_file(name) for name in expected if name not in tensors]
    unknown = [checkpoint.name_in_file(name) for name in tensors if name not in expected]
    if misfit := state_dicts.misfit(missing, unknown):
        raise CheckpointError(f"{path}: {misfit}, of {len(expected)} tensors")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}")


def write_checkpoint(
    path: str | os.PathLike, towers: dict[str, dict], state_dict: Mapping[str, torch.Tensor], note: str = ""
) -> None:
    """Write a checkpoint of our own; `path` may be the file that the tensors are mapped from."""
    content = {"format": FORMAT, "towers": towers, "state_dict": dict(state_dict), "note": note}
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)
