"""The arrays of the results, mapped from files that become outputs: they may be larger than memory."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from imagebind.evaluation.embed.store import ensure_directory, reserve
from imagebind.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    import torch


class OutputArrays:
    """Float32 arrays of the results, memory-mapped from the start in the files that become outputs.

    Args:
        output_dir: None keeps them in memory.
    """

    def __init__(self, output_dir: str | os.PathLike | None):
        self.output_dir = output_dir
        self.names: set[str] = set()  # of the arrays that are in temporary files

    def new(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Make an array.

        Raises:
            EvaluationError: there is no room.
        """
        if self.output_dir is None:
            return np.empty(shape, np.float32)
        try:
            ensure_directory(self.output_dir)
            with create(temporary_path(self.output_dir, name)) as file:
                write_npy_header(file, shape)
                offset = file.tell()
                file.flush()
                reserve(file, offset + 4 * math.prod(shape))
                self.names.add(name)
                return np.memmap(file, np.float32, "r+", offset, shape)
        except OSError as e:
            raise EvaluationError(f"{self.output_dir}: cannot write {name} ({e.strerror})") from e

    def private_copies(self) -> dict[str, torch.Tensor]:
        """Map the written outputs, by name without suffix, so that changing a tensor changes no file."""
        import torch

        paths = [Path(self.output_dir, name) for name in sorted(self.names)]
        return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths}


def write_npy_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file of float32 numbers."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    )


def create(path: Path) -> BinaryIO:
    """Create a file to write and read, in the place of what is there; a link there is not followed."""
    path.unlink(missing_ok=True)
    return open(path, "x+b")


def temporary_path(output_dir: str | os.PathLike, name: str) -> Path:
    """Name the file that an output is in until it is whole."""
    return Path(output_dir, f".{name}.tmp")
