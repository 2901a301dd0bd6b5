"""Inputs -> embeddings: the model on a device, in a precision, in batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from imagebind.data import AudioInput, TextInput, VideoInput
from imagebind.data.sequences import ImageInput
from imagebind.memory import free_unused_memory, unless_out_of_memory
from imagebind.models.imagebind_model import ImageBindModel, Tower
from imagebind.spelling import option as spelled
from imagebind.torch_settings import settings_for_model

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Input = AudioInput | VideoInput | ImageInput | TextInput

log = logging.getLogger(__name__)


class Embedder:
    """ImageBind, ready to embed batches of files.

    Args:
        model: in float32; it stays as it is. A tower is copied to the device when it is first used.
        device: that computes.
        precision: of matrix multiplications, a key of DTYPES.
    """

    def __init__(self, model: ImageBindModel, device: torch.device, precision: str):
        self.model = model
        self.device = device
        self.precision = precision
        self._towers: dict[str, Tower] = {}
        # Inputs in one forward pass; None is no limit. More than one gain nothing on a CPU, and one by one an
        # embedding is the same bit for bit whatever else is in the run.
        self.max_inputs = 1 if device.type == "cpu" else None
        self.max_that_fit: dict[type[Input], int] = {}  # a video is many clips, a picture is one
        self._in_fp32: Embedder | None = None  # for what is not finite in 16 bits

    def __call__(self, modality: str, inputs: Sequence[Input]) -> torch.Tensor:
        """Embed a batch of inputs of one kind: of a file each, or of a frame.

        What is not finite in 16 bits is computed in 32.

        Returns:
            (B, E) float32 on the CPU.

        Raises:
            MemoryError: the tower, or one file, does not fit into the device's memory.
        """
        return self.launch(modality, inputs).result()

    @torch.inference_mode()
    def launch(self, modality: str, inputs: Sequence[Input]) -> Launched:
        """Begin to embed a batch: a GPU computes while the caller goes on.

        Raises:
            MemoryError: as __call__.
        """
        self.tower(modality)
        embeddings, done, kind = [], 0, type(inputs[0])
        while done < len(inputs):
            most = self.max_that_fit.get(kind, self.max_inputs)
            part = inputs[done : done + (most or len(inputs))]
            embedded = self._embed_if_it_fits(modality, part)
            if embedded is not None:
                embeddings.append(embedded)
                done += len(part)
                continue
            free_unused_memory(self.device)
            if len(part) == 1:
                raise MemoryError(f"{self.device}: one file does not fit into memory")
            if kind not in self.max_that_fit:
                log.warning(
                    "%s: out of memory with %d %s inputs, going on with fewer",
                    *(self.device, len(part), modality),
                )
            self.max_that_fit[kind] = len(part) // 2
        return Launched(self, modality, inputs, embeddings)

    def with_gradients(self, modality: str, inputs: Sequence[Input]) -> torch.Tensor:
        """Embed a batch of inputs so that gradients flow to them: (B, E) float32 on the device.

        Raises:
            MemoryError: the tower does not fit into the device's memory.
        """
        self.tower(modality)
        size = self.max_inputs or len(inputs)
        parts = (inputs[first : first + size] for first in range(0, len(inputs), size))
        with settings_for_model(self.device, self.precision):
            return torch.cat([self._embed(modality, part).float() for part in parts])

    def tower(self, modality: str) -> Tower:
        """Return the copy of a tower that is on the device and in the precision.

        Raises:
            MemoryError: it does not fit into the device's memory.
        """
        if modality not in self._towers:
            tower = self._copy_tower(modality)
            if tower is None and self._towers:
                log.warning("%s: no room for all towers; they take turns", self.device)
                self._towers.clear()
                free_unused_memory(self.device)
                tower = self._copy_tower(modality)
            if tower is None:
                raise MemoryError(
                    f"{self.device}: no room for the {modality} tower; free some, or name another "
                    f"{spelled('device')}"
                )
            self._towers[modality] = tower
        return self._towers[modality]

    def _copy_tower(self, modality: str) -> Tower | None:
        """Copy a tower to the device, if it fits."""
        tower = self.model.towers[modality]
        with torch.inference_mode(False):  # whose tensors could not be differentiated later
            return unless_out_of_memory(lambda: tower.copy_to(self.device, DTYPES[self.precision]))

    def _embed_if_it_fits(self, modality: str, inputs: Sequence[Input]) -> torch.Tensor | None:
        with settings_for_model(self.device, self.precision):
            return unless_out_of_memory(lambda: self._embed(modality, inputs))

    def _embed(self, modality: str, inputs: Sequence[Input]) -> torch.Tensor:
        """Embed each distinct clip once, and weight it by how many of the file's clips are equal to it."""
        clips = [file.clips(self.device) for file in inputs]  # each (D, *clip)
        sizes = [len(c) for c in clips]
        rows = self.tower(modality)(torch.cat(clips)).split(sizes)
        counts = torch.cat([torch.tensor([*file.counts.values()]).float() for file in inputs])
        counts = counts.to(self.device).split(sizes)  # in one copy
        # File by file: what is not finite in one must not reach the others.
        return torch.stack([count @ row / count.sum() for count, row in zip(counts, rows, strict=True)])

    def repair(self, modality: str, inputs: Sequence[Input], embeddings: torch.Tensor) -> None:
        """Compute embeddings (B, E) that are not finite again in float32, in place."""
        broken = (~embeddings.isfinite().all(1)).nonzero()[:, 0].tolist()
        if not broken:
            return
        if self._in_fp32 is None:
            log.info("an embedding is not finite in %s; such ones are computed in fp32", self.precision)
            self._in_fp32 = Embedder(self.model, self.device, "fp32")
        chosen = [inputs[i] for i in broken]
        try:
            embeddings[broken] = self._in_fp32(modality, chosen)
        except MemoryError as e:
            log.warning("%s; the CPU computes in fp32", e)
            self._in_fp32 = Embedder(self.model, torch.device("cpu"), "fp32")
            embeddings[broken] = self._in_fp32(modality, chosen)


class Launched:
    """A batch that is being embedded."""

    def __init__(self, embedder: Embedder, modality: str, inputs: Sequence[Input], rows: list[torch.Tensor]):
        self._embedder, self._modality, self._inputs, self._rows = embedder, modality, inputs, rows

    @property
    def is_running(self) -> bool:
        """Whether the device may still be at it."""
        return self._rows[0].device.type != "cpu"

    @torch.inference_mode()
    def result(self) -> torch.Tensor:
        """Wait for the embeddings, (B, E) float32 on the CPU."""
        embeddings = torch.cat([rows.cpu() for rows in self._rows])
        if DTYPES[self._embedder.precision] != torch.float32:
            self._embedder.repair(self._modality, self._inputs, embeddings)
        return embeddings
