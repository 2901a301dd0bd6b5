"""Inputs -> embeddings: the model on a device, in a precision, in batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from imagebind.data import AudioInput, TextInput, VideoInput
from imagebind.models.imagebind_model import ImageBindModel, Tower

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

log = logging.getLogger(__name__)


class Embedder:
    """ImageBind, ready to embed batches of files.

    Args:
        model: a tower is moved and converted, in place, when it is first used.
        device: that computes.
        precision: of matrix multiplications, a key of DTYPES.
    """

    def __init__(self, model: ImageBindModel, device: torch.device, precision: str):
        self.model = model
        self.device = device
        self.precision = precision
        self._ready: set[str] = set()  # towers
        # Files in one forward pass; None is no limit. More than one gain nothing on a CPU, and one by one an
        # embedding is the same bit for bit whatever else is in the run.
        self.max_files = 1 if device.type == "cpu" else None

    @torch.inference_mode()
    def __call__(self, modality: str, inputs: Sequence[AudioInput | VideoInput | TextInput]) -> torch.Tensor:
        """Embed a batch of files.

        Returns:
            (B, E) float32 on the CPU.

        Raises:
            MemoryError: one file does not fit into the device's memory.
        """
        self.tower(modality)
        rows, done = [], 0
        while done < len(inputs):
            part = inputs[done : done + (self.max_files or len(inputs))]
            try:
                with float32_precision(self.precision):
                    rows.append(self._embed(modality, part).cpu())
            except RuntimeError as e:
                if not is_out_of_memory(e):
                    raise
                if len(part) == 1:
                    raise MemoryError(f"{self.device}: one file does not fit into memory") from e
                if self.max_files is None:
                    log.warning(
                        "%s: out of memory with %d files, going on with fewer", self.device, len(part)
                    )
                self.max_files = len(part) // 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            else:
                done += len(part)
        return torch.cat(rows)

    def tower(self, modality: str) -> Tower:
        """Return a tower, on the device and in the precision."""
        tower = self.model.towers[modality]
        if modality not in self._ready:
            tower.to(self.device).set_dtype(DTYPES[self.precision])
            self._ready.add(modality)
        return tower

    def _embed(self, modality: str, inputs: Sequence[AudioInput | VideoInput | TextInput]) -> torch.Tensor:
        """Embed each distinct clip once, and weight it by how many of the file's clips are equal to it."""
        clips = [file.clips(self.device) for file in inputs]  # each (D, *clip)
        rows = self.model({modality: torch.cat(clips)})[modality].split([len(c) for c in clips])
        counts = [torch.tensor(list(file.counts.values()), device=self.device) for file in inputs]  # (D,)
        return torch.stack(
            [count.float() @ row / count.sum() for row, count in zip(rows, counts, strict=True)]
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error is a lack of memory, of a GPU or of the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Let CUDA round the inputs of float32 multiplications to TF32, or not, as `precision` says."""
    before = torch.get_float32_matmul_precision()
    allowed = precision == "tf32"
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
