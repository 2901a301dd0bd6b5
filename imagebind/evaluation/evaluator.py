"""An evaluator that keeps its model from run to run, for files and for tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from imagebind.evaluation.compare.similarity import look_up
from imagebind.evaluation.compare.ticks import from_ticks
from imagebind.evaluation.embed.model import Model, check_given
from imagebind.evaluation.embed.tensors import embed_tensors, list_rates, list_tensors
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.options import Options
from imagebind.evaluation.rules import Paths
from imagebind.evaluation.run import Results, evaluate, tensors_on_cpu
from imagebind.models.imagebind_model import ImageBindModel


@dataclass(frozen=True)
class Score:
    """How well a video and a sound belong together, or B of each."""

    similarity: float | torch.Tensor  # cosine; of a batch (B,) float32
    audio_embedding: torch.Tensor  # (E,), or (B, E) of a batch; float32, as the model gives them
    video_embedding: torch.Tensor


class Evaluator:
    """ImageBind, loaded when it is made, to evaluate files and tensors again and again.

    It sets no signal handler and looks at no environment of torchrun: each process evaluates what it is
    given, on its own device.

    Args:
        checkpoint: weights; None takes the released ones, which are downloaded if they are not there.
        device: that runs the model; None is cuda:0, or the device of a given model.
        precision: as the option of that name.
        model: to be used instead of a checkpoint, as it is at the time of each call; it stays as it is.

    Raises:
        OptionError: one of them has a value that it does not take.
        EvaluationError: the weights cannot be had, or the device cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        precision: str = Options.precision,
        model: ImageBindModel | None = None,
    ):
        if model is not None and checkpoint is not None:
            raise OptionError("is for an evaluator without a given model", "checkpoint")
        if model is not None:
            check_given(model)
        if device is None:
            device = Options.device if model is None else next(model.parameters()).device
        self.options = {"checkpoint": checkpoint, "device": device, "precision": precision}
        Options(None, "", **self.options)  # checks them
        self.model = Model(checkpoint, device, precision, model)
        if model is None:
            with tensors_on_cpu():
                self.model.load_now()

    def evaluate(
        self,
        audio_paths: Paths | None = None,
        video_paths: Paths | None = None,
        batch_size: int = Options.batch_size,
        output_dir: str | os.PathLike | None = Options.output_dir,
        retrieval_mode: bool = Options.retrieval_mode,
        **more: Any,
    ) -> Results:
        """Embed files and measure how well they belong together.

        Args, returns, raises:
            as batch_inference_av_consistency, without checkpoint, device and precision.
        """
        if taken := set(more) & set(self.options):
            raise OptionError("is that of the evaluator", taken.pop())
        options = Options(
            audio_paths, video_paths, batch_size=batch_size, output_dir=output_dir,
            retrieval_mode=retrieval_mode, **self.options, **more,
        )  # fmt: skip
        return evaluate(options, self.model)

    def score(
        self,
        video: torch.Tensor | Sequence[torch.Tensor],
        fps: float | Sequence[float],
        audio: torch.Tensor | Sequence[torch.Tensor],
        sample_rate: int | Sequence[int],
    ) -> Score:
        """Score frames and samples, or a batch of them, as a file that holds them would be.

        Args:
            video: (T, H, W, 3) uint8, RGB; of a batch B of them, of any lengths.
            fps: frames per second; of a batch one for all, or B.
            audio: (C, N) float32 in [-1, 1]; of a batch B of them.
            sample_rate: in Hz; of a batch one for all, or B.

        Raises:
            OptionError: one of them is of another shape or type.
            MediaError: a tensor cannot be used; its path says which, as video[0].
            EvaluationError: as evaluate.
        """
        is_batch = isinstance(video, Sequence)
        videos, audios = (list_tensors(x, name) for x, name in ((video, "video"), (audio, "audio")))
        if len(videos) != len(audios) or not videos:
            raise OptionError(f"has {len(audios)} sounds for {len(videos)} videos", "audio")
        rates = [
            list_rates(rate, len(videos), name, of)
            for rate, name, of in ((fps, "fps", float), (sample_rate, "sample_rate", int))
        ]
        with tensors_on_cpu():
            rows = embed_tensors(self.model, videos, rates[0], audios, rates[1])
            index = np.stack([np.arange(len(videos))] * 2, axis=1)
            cells = look_up(rows["audio"].numpy(), rows["video"].numpy(), index)
        similarity = torch.from_numpy(from_ticks(cells.ticks))
        if is_batch:
            return Score(similarity, rows["audio"], rows["video"])
        return Score(similarity.item(), rows["audio"][0], rows["video"][0])
