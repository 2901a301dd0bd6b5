"""Checkpoint files: where they are, what is in them, and what is wrong with them.

Two kinds are read. The released one is a bare state dict of all six modalities, whose tensors get our names;
a tower of which it has nothing is not built. One of our own is in plain types:

    {"format": "imagebind-towers", "towers": {modality: row}, "state_dict": {name: tensor}, "note": str}
"""

from __future__ import annotations

import os
import pickle
import re
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

RELEASED_URL = "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth"
RELEASED_PATH = Path(__file__).resolve().parents[2] / ".checkpoints" / "imagebind_huge.pth"
DOWNLOAD_TIMEOUT_SECONDS = 60  # without a byte
CHUNK_BYTES = 1 << 20

FORMAT = "imagebind-towers"

# Names in the released file -> ours, the first that fits; the group is the modality.
RENAMES = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"modality_preprocessors\.(\w+)\.cls_token$", r"towers.\1.cls_token"),
        (r"modality_preprocessors\.(\w+)\.(?:pos_embedding_helper\.)?pos_embed$", r"towers.\1.pos_embed"),
        (r"modality_preprocessors\.(\w+)\.token_embedding\.", r"towers.\1.stem."),
        (r"modality_preprocessors\.(\w+)\.\w+_stem\.proj(?:\.1)?\.", r"towers.\1.stem."),
        (r"modality_preprocessors\.(\w+)\.\w+_stem\.norm_layer\.", r"towers.\1.stem_norm."),
        (r"modality_trunks\.(\w+)\.pre_transformer_layer\.0\.", r"towers.\1.pre_norm."),
        (r"modality_trunks\.(\w+)\.blocks\.", r"towers.\1.blocks."),
        (r"modality_heads\.(\w+)\.(?:proj\.)?0\.", r"towers.\1.norm."),
        (r"modality_heads\.(\w+)\.(?:proj\.1|2|3)\.", r"towers.\1.head."),
        (r"modality_postprocessors\.(\w+)\.1\.log_logit_scale$", r"towers.\1.log_scale"),
    )
]

CAUSAL_MASK = "modality_preprocessors.text.mask"  # a constant, which attention makes for itself
IMU_STEM, IMU_CHANNELS = "towers.imu.stem.weight", 6


class CheckpointError(RuntimeError):
    """Weights that cannot be had, in one line that names the file and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    towers: dict[str, dict] | None  # modality -> row; None in the released file, which has none
    state_dict: dict[str, torch.Tensor]  # under our names, mapped from the file
    note: str = ""  # what to say with every result


def released_checkpoint() -> Path:
    """Give the path of the released weights, and download them when they are not there.

    Raises:
        CheckpointError: they cannot be downloaded.
    """
    if not RELEASED_PATH.exists():
        download(RELEASED_URL, RELEASED_PATH)
    return RELEASED_PATH


def download(url: str, path: Path) -> None:
    """Download a checkpoint to a temporary file beside `path` and rename it when it is whole.

    Raises:
        CheckpointError: no connection, a broken one, or something that is not a checkpoint.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response,
            tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part,
        ):
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, desc=path.name, unit="B", unit_scale=True) as bar:
                while chunk := response.read(CHUNK_BYTES):
                    part.write(chunk)
                    bar.update(len(chunk))
            if size and part.tell() != size:
                raise OSError(f"the connection broke after {part.tell():,} of {size:,} bytes")
        if not zipfile.is_zipfile(part.name):
            raise OSError("the answer is not a checkpoint")
        os.replace(part.name, path)
    except (OSError, ValueError) as e:
        if isinstance(e, urllib.error.HTTPError):
            e.close()  # the error is the open answer as well
        raise CheckpointError(
            f"cannot download {url} ({e}); put the file at {path}, or name one with --checkpoint PATH"
        ) from e
    finally:
        if part is not None:
            Path(part.name).unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint of either kind, its tensors mapped from the file and not yet read.

    Raises:
        CheckpointError: no such file, not a checkpoint, cut off, or with code in it.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"  # as torch.save writes it since 1.6
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror}; name a checkpoint with --checkpoint PATH") from e
    try:
        content = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as e:
        reason = "holds more than tensors and plain values; refused" if zipped else "not a checkpoint"
        raise CheckpointError(f"{path}: {reason}") from e
    except Exception as e:  # a damaged file makes the reader fail in any way
        reason = "cut off or damaged; get it again" if zipped else "not a checkpoint"
        raise CheckpointError(f"{path}: {reason}") from e
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        try:
            return Checkpoint(content["towers"], content["state_dict"], content["note"])
        except KeyError as e:
            raise CheckpointError(f"{path}: lacks its {e}") from e
    if isinstance(content, Mapping) and all(torch.is_tensor(value) for value in content.values()):
        return Checkpoint(None, _rename_released(content))
    raise CheckpointError(f"{path}: not a checkpoint of ImageBind")


def _rename_released(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors of a released state dict our names; unknown names stay as they are."""
    renamed = {}
    for name, tensor in state_dict.items():
        if name == CAUSAL_MASK:
            continue
        fits = (pattern.sub(ours, name) for pattern, ours in RENAMES if pattern.match(name))
        renamed[next(fits, name)] = tensor
    if IMU_STEM in renamed and renamed[IMU_STEM].ndim == 2 and not renamed[IMU_STEM].shape[1] % IMU_CHANNELS:
        # A product with windows of all channels (D, 6 x 8): the same numbers are a convolution's.
        renamed[IMU_STEM] = renamed[IMU_STEM].unflatten(1, (IMU_CHANNELS, -1))
    return renamed


def check_state_dict(
    path: str | os.PathLike, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Hold the tensors of a file against those of the model, by name and shape.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape; one line says which.
    """
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    for names, fault in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{path}: {fault} {names[0]}{more}, of {len(expected)} tensors")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}")


def write_checkpoint(
    path: str | os.PathLike, towers: dict[str, dict], state_dict: Mapping[str, torch.Tensor], note: str = ""
) -> None:
    """Write a checkpoint of our own; also over the file that its tensors are mapped from."""
    content = {"format": FORMAT, "towers": towers, "state_dict": dict(state_dict), "note": note}
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)
