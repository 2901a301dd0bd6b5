"""The whole run: plan -> embed -> compare -> write; and an evaluator that keeps its model from run to run."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind.evaluation.embed.embedding import embed_files, interruptible, start_workers
from imagebind.evaluation.embed.job import Job, embed_in_job
from imagebind.evaluation.embed.model import ModelHolder, check_given
from imagebind.evaluation.embed.store import OutputArrays
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.inputs.plan import plan_run
from imagebind.evaluation.options import Options
from imagebind.evaluation.rules import Paths
from imagebind.evaluation.write.outputs import (
    check_can_draw,
    check_inputs,
    exclusive_use,
    output_writers,
    write_outputs,
    write_page_again,
)
from imagebind.evaluation.write.page_media import PageMedia, shown_files

if TYPE_CHECKING:  # torch takes seconds to import, and files are listed and paired without it
    import torch

    from imagebind.models.imagebind_model import ImageBindModel

Results = dict[str, Any]
COPIER = "imagebind.reading.previews:make_preview"  # what writes copies of media
# Evaluations in several threads would share the cores, the model, and whose warning is whose.
ONE_AT_A_TIME = threading.Lock()


def evaluate(options: Options, holder: ModelHolder | None = None, job: Job | None = None) -> Results:
    """Embed sounds and videos and measure how well they belong together.

    Args:
        holder: of the model; None loads the one of the options.
        job: as in batch_inference_av_consistency.

    Returns, raises:
        as batch_inference_av_consistency.
    """
    is_kept = holder is not None
    holder = holder or ModelHolder.of(options)
    if job is not None and options.output_dir is None:
        raise OptionError("must be given for several processes", "output_dir")
    if job is not None and not job.is_first:
        raise OptionError("is for the first process; the others call embed_in_job", "job")
    check_inputs(options)
    n_processes = job.n_local if job else 1
    with (
        ONE_AT_A_TIME,
        tensors_on_cpu(),
        exclusive_use(options.output_dir, output_writers(options)) as lock,
    ):
        with start_workers(options, n_processes) as workers:  # which import while files are listed
            if options.has_page:
                check_can_draw()
            plan = plan_run(options)
            if job is None:
                embedded = embed_files(plan.inputs, options, workers, holder)
            else:
                embedded = embed_in_job(job, options, workers, plan.inputs)
        if not is_kept:
            holder.unload()  # similarities need the room
        with interruptible(lambda: embedded.summary):
            from imagebind.evaluation.compare.results import build_results  # imports torch

            lock.renew()
            arrays = OutputArrays(options.output_dir)
            results = build_results(plan, embedded, arrays, options)
            if options.output_dir is not None:
                media = PageMedia(options.output_dir, embedded)
                write_outputs(results, arrays, options, lock, media)
                if options.copies_media:  # last: they take long, and room
                    with start_workers(options, n_processes, COPIER) as copiers:
                        media.copy(shown_files(results), copiers, options.progress)
                    write_page_again(results, options, media)
                media.remove_other_copies()
    return results


def tensors_on_cpu() -> AbstractContextManager:
    """As torch_settings.on_cpu; a caller that has not imported torch has set nothing in it."""
    if "torch" not in sys.modules:
        return nullcontext()
    from imagebind.torch_settings import on_cpu

    return on_cpu()


@dataclass(frozen=True)
class Score:
    """How well a video and a sound belong together, or B of each."""

    similarity: float | torch.Tensor  # cosine; of a batch (B,) float32
    audio_embedding: torch.Tensor  # (E,), or (B, E) of a batch; float32, as the model gives them
    video_embedding: torch.Tensor


def list_tensors(given: Any, name: str) -> list[torch.Tensor]:
    """Return a batch of tensors; one alone is a batch of one.

    Raises:
        OptionError: they are something else.
    """
    import torch

    tensors = list(given) if isinstance(given, Sequence) else [given]
    for tensor in tensors:
        if not torch.is_tensor(tensor):
            hint = "; torch.from_numpy makes one of an array" if type(tensor).__module__ == "numpy" else ""
            kind = type(tensor).__name__
            raise OptionError(f"must be a torch tensor, or a list of them, not a {kind}{hint}", name)
    return tensors


def list_rates(given: Any, n: int, name: str, of: type) -> list[Any]:
    """Return the rates of n tensors; one number is that of all.

    Args:
        of: float or int, which rates become: equal numbers of two types would choose other frames.

    Raises:
        OptionError: they are no rates, or not as many.
    """
    rates = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * n
    if len(rates) != n:
        raise OptionError(f"has {len(rates)} rates for {n}", name)
    try:
        found = [of(rate) for rate in rates]
        if any(isinstance(rate, str) for rate in rates) or not all(
            0 < x < math.inf and x == float(rate) for x, rate in zip(found, rates, strict=True)
        ):
            raise ValueError(rates)
    except (TypeError, ValueError, OverflowError, RuntimeError) as e:
        kind = "whole numbers" if of is int else "numbers"
        raise OptionError(f"must be {kind} above 0, not {given!r}", name) from e
    return found


class Evaluator:
    """ImageBind, loaded once, to evaluate files and tensors again and again.

    It sets no signal handler and looks at no environment of torchrun: each process evaluates what it is
    given, on its own device.

    Args:
        checkpoint: weights; None takes the released ones.
        device: that runs the model; None is cuda:0, or the device of a given model.
        precision: as the option of that name.
        model: to be used instead of a checkpoint, as it is at the time of each call; it stays as it is.

    Raises:
        OptionError: one of them has a value that it does not take.
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
        self.holder = ModelHolder(checkpoint, device, precision, model)

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
        return evaluate(options, self.holder)

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
        import torch

        from imagebind.evaluation.compare.keys import from_keys
        from imagebind.evaluation.compare.similarity import look_up

        is_batch = isinstance(video, Sequence)
        videos, audios = (list_tensors(x, name) for x, name in ((video, "video"), (audio, "audio")))
        if len(videos) != len(audios) or not videos:
            raise OptionError(f"has {len(audios)} sounds for {len(videos)} videos", "audio")
        rates = [
            list_rates(rate, len(videos), name, of)
            for rate, name, of in ((fps, "fps", float), (sample_rate, "sample_rate", int))
        ]
        with tensors_on_cpu():
            rows = self.holder.embed_tensors(videos, rates[0], audios, rates[1])
            index = np.stack([np.arange(len(videos))] * 2, axis=1)
            cells = look_up(rows["audio"].numpy(), rows["video"].numpy(), index)
        similarity = torch.from_numpy(from_keys(cells.keys))
        if is_batch:
            return Score(similarity, rows["audio"], rows["video"])
        return Score(similarity.item(), rows["audio"][0], rows["video"][0])
