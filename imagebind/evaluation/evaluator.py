"""An evaluator that keeps its model from run to run, for files and for tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from imagebind.evaluation.compare.clip_protocols import REWARD_WEIGHTS
from imagebind.evaluation.compare.similarity import look_up
from imagebind.evaluation.compare.ticks import from_ticks
from imagebind.evaluation.embed.model import Model, check_given
from imagebind.evaluation.embed.tensors import (
    N_AXES,
    embed_tensors,
    is_batch,
    list_rates,
    list_tensors,
    list_texts,
)
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.options import Options
from imagebind.evaluation.rules import Paths
from imagebind.evaluation.run import Results, evaluate, tensors_on_cpu
from imagebind.models.imagebind_model import ImageBindModel


@dataclass(frozen=True)
class Score:
    """How well a video and a sound belong together, or B of each."""

    similarity: float | torch.Tensor  # cosine; of a batch, and with gradients, a tensor; of a batch (B,)
    audio_embedding: torch.Tensor  # (E,), or (B, E) of a batch; float32, as the model gives them
    video_embedding: torch.Tensor
    text_audio: float | torch.Tensor | None = None  # cosines with the text, where there is one
    text_video: float | torch.Tensor | None = None
    reward_all: float | torch.Tensor | None = None  # by `reward`, with a text: the weighted sum of the three


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
        text: str | Sequence[str] | None = None,
        *,
        protocol: str = "imagebind",
        gradients: bool = False,
    ) -> Score:
        """Score frames and samples, or a batch of them, as a file that holds them would be.

        Args:
            video: (T, H, W, 3) or (T, 3, H, W), RGB, uint8 or float in [0, 1], on any device; of a batch B of
                them, of any lengths, or one tensor with an axis more.
            fps: frames per second; of a batch one for all, or B.
            audio: (C, N) float in [-1, 1], likewise.
            sample_rate: in Hz; of a batch one for all, or B.
            text: that belongs to both; of a batch B of them.
            protocol: "imagebind", or "reward", as generators are trained with.
            gradients: whether figures and embeddings are tensors on the device of the model, from which
                gradients flow to floats in video and audio. Cosines are not rounded then.

        Raises:
            OptionError: one of them is of another shape or type.
            MediaError: a tensor cannot be used; its path says which, as video[0].
            EvaluationError: as evaluate.
        """
        videos, audios = (list_tensors(x, name) for x, name in ((video, "video"), (audio, "audio")))
        texts = None if text is None else list_texts(text)
        for name, listed in (("audio", audios), ("text", texts)):
            if listed is not None and (len(listed) != len(videos) or not videos):
                raise OptionError(f"has {len(listed)} of them for {len(videos)} videos", name)
        rows = self._embed(videos, fps, audios, sample_rate, texts, protocol, gradients)
        cosine, sides = F.cosine_similarity if gradients else cosines, ("audio", "video")
        similarity = cosine(rows["audio"], rows["video"])
        of_text = [None if texts is None else cosine(rows["text"], rows[side]) for side in sides]
        total = None
        if protocol == "reward" and texts is not None:
            parts = zip(REWARD_WEIGHTS, (similarity, *of_text), strict=True)
            total = sum(weight * part for weight, part in parts)
        figures = (similarity, *of_text, total)
        rows_of_both = rows["audio"], rows["video"]
        if not is_batch(video, N_AXES["video"]):
            one = (lambda figure: figure[0]) if gradients else torch.Tensor.item
            figures = (None if figure is None else one(figure) for figure in figures)
            rows_of_both = (row[0] for row in rows_of_both)
        similarity, text_audio, text_video, total = figures
        return Score(similarity, *rows_of_both, text_audio, text_video, total)

    def embed(
        self,
        video: torch.Tensor | Sequence[torch.Tensor] | None = None,
        fps: float | Sequence[float] | None = None,
        audio: torch.Tensor | Sequence[torch.Tensor] | None = None,
        sample_rate: int | Sequence[int] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        protocol: str = "imagebind",
        gradients: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Embed frames, samples and texts, each as score takes it; one alone is a batch of one.

        Returns:
            "video", "audio" and "text", as given -> (B, E) float32 on the CPU, as the model gives them;
            with gradients on its device.

        Raises:
            as score.
        """
        videos = None if video is None else list_tensors(video, "video")
        audios = None if audio is None else list_tensors(audio, "audio")
        texts = None if text is None else list_texts(text)
        return self._embed(videos, fps, audios, sample_rate, texts, protocol, gradients)

    def _embed(
        self,
        videos: Sequence[torch.Tensor] | None,
        fps: Any,
        audios: Sequence[torch.Tensor] | None,
        sample_rate: Any,
        texts: Sequence[str] | None,
        protocol: str,
        gradients: bool,
    ) -> dict[str, torch.Tensor]:
        given = {}
        if audios is not None:
            rates = list_rates(sample_rate, len(audios), "sample_rate", int)
            given["audio"] = list(zip(audios, rates, strict=True))
        if videos is not None:
            given["video"] = list(zip(videos, list_rates(fps, len(videos), "fps", float), strict=True))
        if texts is not None:
            given["text"] = texts
        with tensors_on_cpu():
            return embed_tensors(self.model, given, protocol, gradients)


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the cosine (B,) of each row of a with that of b, rounded as the cells of a matrix are."""
    with tensors_on_cpu():
        index = np.stack([np.arange(len(a))] * 2, axis=1)
        return torch.from_numpy(from_ticks(look_up(a.numpy(), b.numpy(), index).ticks))
