"""Embeddings that are given in place of the files of one modality, each tied to a name.

an output directory   of a finished run: video_embeddings.npy, video_names.txt and metrics.json
a file                as av-benchmark's imagebind_video.pth and imagebind_audio.pth: a dictionary, saved by
                      torch, of the names of files without extension -> vectors (E,)
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.files import MediaFiles
from imagebind.evaluation.rules import LEADING
from imagebind.names import one_line, read_field, shorten
from imagebind.packages import load
from imagebind.sources import Source

if TYPE_CHECKING:
    import torch

METRICS_NAME = "metrics.json"
AV_BENCHMARK = {"audio": "imagebind", "video": "mmaudio"}  # whose recipes its features are


class NamedRows(MediaFiles):
    """Rows that stand for files: each has a name, by which alone it is paired.

    The path of a row is where it is from, a slash, and its name.
    """

    def key(self, source: Source) -> str:
        return source.path[len(self.root) + 1 :]

    def stable_key(self, source: Source) -> str:
        return self.key(source)

    @cached_property
    def stems(self) -> dict[Source, str]:
        return {source: os.path.basename(self.key(source)) for source in self.listed}

    @property
    def any_exists(self) -> bool:
        return True


@dataclass(frozen=True)
class GivenEmbeddings:
    """Embeddings of one modality, and what is known of how they were made."""

    modality: str
    source: str  # the path that was given
    files: NamedRows
    vectors: Sequence[np.ndarray | torch.Tensor]  # of each of them (E,), of a floating-point type
    origin: str  # "run" or "av-benchmark"
    protocol: str  # whose recipe they are
    seconds: float | None = None  # that it looked at, where that is an option and known
    checkpoint: dict[str, Any] | None = None  # as in metrics.json; None: not known
    precision: str | None = None

    @property
    def recipe(self) -> str:
        """The protocol, with the seconds that it looks at where they are known."""
        return self.protocol if self.seconds is None else f"{self.protocol} of {self.seconds:g} s"

    @property
    def sha256(self) -> str | None:
        """That of the checkpoint; None: not known."""
        return self.checkpoint and self.checkpoint["sha256"]

    @cached_property
    def numbers(self) -> dict[Source, int]:
        """Which vector belongs to which row."""
        return {source: i for i, source in enumerate(self.files.listed)}

    def vector(self, source: Source) -> np.ndarray:
        """Return the embedding (E,) of a row in float32."""
        vector = self.vectors[self.numbers[source]]
        return np.asarray(vector if isinstance(vector, np.ndarray) else vector.float().numpy(), np.float32)

    def describe(self) -> dict[str, Any]:
        """Describe for metrics.json where they came from; None stands for what is not known."""
        return {
            "source": self.source,
            "origin": self.origin,
            "protocol": self.protocol,
            "seconds": self.seconds,
            "checkpoint": self.checkpoint,
            "precision": self.precision,
        }


def read_given(modality: str, path: str | os.PathLike) -> GivenEmbeddings:
    """Read the embeddings of a modality from an output directory, or from a dictionary of torch.

    Raises:
        EvaluationError: it is neither, or two rows have one name.
    """
    path = os.fspath(path).rstrip(os.sep) or os.sep
    return read_run(modality, path) if os.path.isdir(path) else read_dictionary(modality, path)


def read_run(modality: str, folder: str) -> GivenEmbeddings:
    """Read the embeddings of a modality from the output directory of a finished run.

    Raises:
        EvaluationError: it is none, or two rows have one name.
    """
    array_name, names_name = f"{modality}_embeddings.npy", f"{modality}_names.txt"
    try:
        for name in (METRICS_NAME, array_name, names_name):
            if os.path.exists(Path(folder, name)) and not os.path.isfile(Path(folder, name)):
                raise ValueError(f"{name} is no regular file")
        protocol = json.loads(Path(folder, METRICS_NAME).read_bytes())["protocol"]
        facts = facts_of(protocol, modality)
        text = Path(folder, names_name).read_text(encoding="utf-8")
        names = [read_field(line) for line in text.split("\n")[:-1]]
        array = np.load(Path(folder, array_name), mmap_mode="r")
        if array.ndim != 2 or array.dtype != np.float32 or len(array) != len(names):
            raise ValueError(f"{array_name} and {names_name} are not of one run")
    except OSError as e:
        what = Path(e.filename).name if e.filename else "output"
        raise EvaluationError(f"{folder}: no finished run ({what}: {e.strerror})") from e
    except KeyError as e:
        reason = f"{METRICS_NAME} has no {e}"
        raise EvaluationError(f"{folder}: no finished run of this version ({reason})") from e
    except (ValueError, TypeError, AttributeError, RecursionError, EOFError) as e:
        reason = one_line(str(e))
        raise EvaluationError(f"{folder}: no finished run of this version ({reason})") from e
    if twice := [one_line(name) for name, n in Counter(names).items() if n > 1]:
        raise EvaluationError(
            f"{folder}: {names_name} has several rows of one name: {shorten(twice)}; with pairs_only or "
            "retrieval_mode a run has one row a file"
        )
    return GivenEmbeddings(modality, folder, list_rows(folder, array_name, names), array, "run", **facts)


def facts_of(protocol: dict[str, Any], modality: str) -> dict[str, Any]:
    """Look up in `protocol` of metrics.json how the embeddings of a modality were made.

    Raises:
        KeyError, ValueError, TypeError, AttributeError: it does not say.
    """
    first, described = next(iter(protocol["protocols"].items()))
    facts = {
        "protocol": first,
        "seconds": described.get("seconds"),
        "checkpoint": protocol["checkpoint"],
        "precision": protocol["precision"],
    }
    if modality in (given := protocol.get("embeddings", {})):  # in that run they were given too
        facts = {key: given[modality][key] for key in facts}
    if facts["protocol"] not in LEADING:
        raise ValueError(f"{METRICS_NAME} names no protocol of this version")
    if not isinstance(facts["seconds"], int | float | None):
        raise ValueError(f"{METRICS_NAME} has no number of seconds")
    if facts["checkpoint"] is not None:
        facts["checkpoint"] = {key: facts["checkpoint"][key] for key in ("file", "sha256", "note")}
        if not all(isinstance(value, str) for value in facts["checkpoint"].values()):
            raise ValueError(f"{METRICS_NAME} does not name a checkpoint")
    return facts


def read_dictionary(modality: str, path: str) -> GivenEmbeddings:
    """Read the embeddings of a modality from a dictionary that torch saved: name -> vector (E,).

    Raises:
        EvaluationError: it is none.
    """
    wanted = "a dictionary of names and vectors saved by torch, or an output directory, is wanted"
    if not os.path.isfile(path):
        found = "is no regular file" if os.path.exists(path) else "no such file or directory"
        raise EvaluationError(f"{path}: {found}; {wanted}")
    torch = load("torch")
    try:
        is_mapped = zipfile.is_zipfile(path)  # the form of torch before 1.6 cannot be
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except OSError as e:
        raise EvaluationError(f"{path}: {e.strerror or one_line(str(e))}") from e
    except Exception as e:  # damaged files make unpickling fail in any way
        raise EvaluationError(f"{path}: is nothing that torch reads with weights_only; {wanted}") from e
    if fault := find_fault(found):
        raise EvaluationError(f"{path}: {fault}; {wanted}")
    vectors = [vector.detach() for vector in found.values()]
    rows = list_rows(path, "", list(found))
    return GivenEmbeddings(modality, path, rows, vectors, "av-benchmark", AV_BENCHMARK[modality])


def find_fault(found: Any) -> str | None:
    """Say what something has that is no dictionary of names and vectors; None where it is one."""
    torch = load("torch")
    if not isinstance(found, dict):
        shape = f" of shape {tuple(found.shape)}" if torch.is_tensor(found) else ""
        return f"has a {type(found).__name__}{shape}"
    if not found:
        return "is empty"
    for name, vector in found.items():
        if not isinstance(name, str) or not name:
            return f"has {one_line(repr(name))[:100]} for a name"
        what = type(vector).__name__
        if torch.is_tensor(vector):
            if vector.ndim == 1 and vector.is_floating_point() and vector.layout == torch.strided:
                continue
            what = f"tensor of shape {tuple(vector.shape)} and type {vector.dtype}"
        return f"has a {what} under {one_line(name)[:100]}"
    return None


def list_rows(source: str, file: str, names: Sequence[str]) -> NamedRows:
    """List rows by name.

    Args:
        file: in the source, which they are from; "": the source itself.
    """
    root = f"{source}/{file}" if file else source
    return NamedRows(tuple(Source(f"{root}/{name}") for name in names), root)
