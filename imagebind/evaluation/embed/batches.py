"""Inputs that wait for the model -> batches -> embeddings; one is computed while the next is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from imagebind.data.inputs import ModelInput
from imagebind.evaluation.embed.model import TOWERS, Model
from imagebind.evaluation.embed.progress import Timing
from imagebind.models.embedder import Launched
from imagebind.reading.loader import LoadedFeature, LoadedFile

EqualFiles = dict[str, list[LoadedFile]]  # content hash -> files, without their inputs


class Waiting(NamedTuple):
    """The input of files of one content."""

    input: ModelInput
    files: list[LoadedFile]


class LaunchedBatch(NamedTuple):
    """Files whose embeddings are being computed."""

    feature: str
    files: EqualFiles
    launched: Launched


class Batches:
    """Embeds inputs in batches; files of the same content get the same embedding.

    Args:
        model: that embeds them.
        size: contents of a batch.
        timing: that the time of the model is added to.
        take: is given the files of a batch, each with the features of one input, and their embeddings (B, E).
    """

    def __init__(
        self,
        model: Model,
        size: int,
        timing: Timing,
        take: Callable[[EqualFiles, np.ndarray], None],
    ):
        self.model, self.size, self.timing, self._take = model, size, timing, take
        self._waiting: dict[tuple[str, str], dict[str, Waiting]] = {}  # (modality, feature) -> content hash
        self._launched: LaunchedBatch | None = None

    def add(self, feature: str, file: LoadedFile) -> None:
        """Let the input of a feature of a file wait for the model, or for that of an equal file.

        Features that have an equal input wait with it.
        """
        self.model.open()  # now, while more files are read
        loaded = file.features[feature]
        features = {
            name: replace(other, input=None)
            for name, other in file.features.items()
            if name == feature or (isinstance(other, LoadedFeature) and other.same_as == feature)
        }
        without_input = replace(file, features=features)
        launched = self._launched.files if self._launched and self._launched.feature == feature else {}
        if file.content_hash in launched:
            launched[file.content_hash].append(without_input)
            return
        waiting = self._waiting.setdefault((file.modality, feature), {})
        waiting.setdefault(file.content_hash, Waiting(loaded.input, [])).files.append(without_input)
        if len(waiting) == self.size:
            self._embed(file.modality, feature)

    def flush(self) -> None:
        """Embed all that waits."""
        for modality, feature in list(self._waiting):
            self._embed(modality, feature)
        self._finish()

    def launch(self, modality: str, inputs: Sequence[Any]) -> Launched:
        """Begin to embed a batch of inputs."""
        embedder = self.model.open()
        self.model.check_unchanged()  # before pages of its weights are used that may be gone
        return self.timing.measure("model", lambda: embedder.launch(TOWERS[modality], inputs))

    def result(self, launched: Launched) -> np.ndarray:
        """Wait for the embeddings (B, E) of a batch."""
        return self.timing.measure("model", lambda: launched.result().numpy())

    def _embed(self, modality: str, feature: str) -> None:
        waiting = self._waiting.pop((modality, feature))
        launched = self.launch(modality, [one.input for one in waiting.values()])
        self._finish()  # the one before it
        files = {content_hash: one.files for content_hash, one in waiting.items()}
        self._launched = LaunchedBatch(feature, files, launched)
        if not launched.is_running:
            self._finish()

    def _finish(self) -> None:
        if self._launched is None:
            return
        _, files, launched = self._launched
        embeddings = self.result(launched)
        self.model.check_unchanged()  # before what was computed with its weights is kept
        self._launched = None
        self._take(files, embeddings)
