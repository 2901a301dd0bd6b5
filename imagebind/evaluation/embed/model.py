"""The model of a run: which weights, on which device, in which precision."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imagebind.evaluation.errors import EvaluationError, OptionError

if TYPE_CHECKING:  # torch takes seconds to import, and files are listed and paired without it
    import torch
    from torch.nn import Module

    from imagebind.evaluation.options import Options
    from imagebind.models.checkpoints import Weights
    from imagebind.models.embedder import Embedder
    from imagebind.models.imagebind_model import ImageBindModel, Tower

SLOW_SECONDS = 1  # after which loading is worth a word
TOWERS = {"audio": "audio", "video": "vision", "text": "text"}  # modality of a file -> tower of the model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GivenWeights:
    """The weights of a model that the caller has, as they are at the time of a call."""

    path: Path
    sha256: str  # of the weights; of a patched model one that never comes again
    is_patched: bool = False  # whether the weights alone do not tell what the model computes

    def check_unchanged(self) -> None:
        """The towers were copied, or stay as they are during the call."""


class ModelHolder:
    """Loads a model when it is first needed, and keeps it.

    Args:
        checkpoint: weights; None takes the released ones.
        device, precision: as the options of these names.
        model: to be used instead, as it is at the time of each call; it stays as it is.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike | None,
        device: str | torch.device,
        precision: str,
        model: ImageBindModel | None = None,
    ):
        self.checkpoint, self.device, self.precision, self.model = checkpoint, device, precision, model
        self._opened: tuple[Embedder, Weights] | None = None

    def unload(self) -> None:
        """Free the memory of the device; the model is loaded again when it is needed."""
        from imagebind.memory import free_unused_memory

        if self._opened is not None:
            device, self._opened = self._opened[0].device, None
            free_unused_memory(device)

    @classmethod
    def of(cls, options: Options) -> ModelHolder:
        """Make a holder of the model that the options of a run name."""
        return cls(options.checkpoint, options.device, options.precision)

    @property
    def is_loaded(self) -> bool:
        return self.model is not None or self._opened is not None

    @cached_property
    def chosen_device(self) -> torch.device:
        """The device that computes; nothing is allocated there yet.

        Raises:
            EvaluationError: there is no device of this name.
        """
        return choose_device(str(self.device))

    @property
    def chosen_precision(self) -> str:
        return choose_precision(self.precision, self.chosen_device)

    @cached_property
    def path(self) -> Path:
        """The checkpoint, which is downloaded if it is the released one and not there.

        Raises:
            EvaluationError: it cannot be downloaded.
        """
        from imagebind.models import checkpoints, download

        try:
            return download.find_checkpoint(self.checkpoint)
        except checkpoints.CheckpointError as e:
            raise EvaluationError(str(e)) from e

    def recall(self) -> str | None:
        """Return the SHA-256 of the checkpoint, if it was checked before and is the same since.

        Raises:
            EvaluationError: it cannot be had.
        """
        from imagebind.models import checkpoints

        try:
            return checkpoints.recall(self.path)
        except checkpoints.CheckpointError as e:
            raise EvaluationError(str(e)) from e

    def open(self, modalities: Iterable[str]) -> tuple[Embedder, Weights | GivenWeights]:
        """Return the model on its device, with towers for some modalities.

        Raises:
            EvaluationError: the weights cannot be had, have changed, or the device cannot be used.
        """
        from imagebind.models.checkpoints import CheckpointError
        from imagebind.models.embedder import Embedder

        if self.model is not None:
            check_given(self.model)
            check_towers(self.model, GivenWeights(Path("given model"), ""), modalities)
            weights = describe_given(self.model, {TOWERS[modality] for modality in modalities})
            check_device(self.chosen_device)
            return Embedder(self.model, self.chosen_device, self.chosen_precision), weights
        if self._opened is None:
            check_device(self.chosen_device)
            model, weights = load_model(self.path)
            self._opened = Embedder(model, self.chosen_device, self.chosen_precision), weights
        embedder, weights = self._opened
        try:
            weights.check_unchanged()
        except (CheckpointError, OSError) as e:
            raise EvaluationError(f"{weights.path}: changed since it was loaded; load it again") from e
        check_towers(embedder.model, weights, modalities)
        return self._opened

    def embed_tensors(
        self,
        videos: Sequence[torch.Tensor],
        fps: Sequence[float],
        sounds: Sequence[torch.Tensor],
        sample_rates: Sequence[int],
    ) -> dict[str, torch.Tensor]:
        """Embed B videos (T, H, W, 3) uint8 and B sounds (C, N) float32: modality -> (B, E).

        Raises:
            OptionError: one of them is of another shape or type.
            MediaError: one cannot be used.
            EvaluationError: as open.
        """
        from imagebind.data.audio import from_samples
        from imagebind.data.video import from_frames
        from imagebind.torch_settings import settings_for_inputs

        embedder, _ = self.open(("audio", "video"))
        inputs = {"audio": [], "video": []}
        try:
            with settings_for_inputs():  # as files are read
                for i, (frames, rate) in enumerate(zip(videos, fps, strict=True)):
                    inputs["video"].append(from_frames(frames, rate, f"video[{i}]"))
                for i, (samples, rate) in enumerate(zip(sounds, sample_rates, strict=True)):
                    inputs["audio"].append(from_samples(samples, rate, f"audio[{i}]"))
        except TypeError as e:
            raise OptionError(str(e)) from e
        try:
            return {modality: embedder(TOWERS[modality], found) for modality, found in inputs.items()}
        except MemoryError as e:
            raise EvaluationError(str(e) or "out of memory") from e


class ModelFacts(NamedTuple):
    """What is known of a model beside its weights."""

    note: str
    scales: dict[str, float]  # modality -> length of one clip's embedding


class RunModel:
    """The model of one run, opened when it is first needed: not where all embeddings are in the cache.

    Args:
        holder: of the model.
        modalities: of which files may come.

    Attributes:
        device, precision: that compute.
        path: of the checkpoint.
        sha256: of the weights; None until they are checked.
        embedder, weights: the model and its checkpoint; None until it is opened.
        seconds: that opening it took.

    Raises:
        EvaluationError: the checkpoint cannot be had, or there is no such device.
    """

    def __init__(self, holder: ModelHolder, modalities: Iterable[str]):
        self.holder, self.modalities = holder, list(modalities)
        self.device, self.precision = holder.chosen_device, holder.chosen_precision
        self.embedder, self.weights, self.seconds, self.sha256 = None, None, 0.0, None
        if holder.is_loaded:
            self.open()
            self.seconds = 0.0  # it was loaded before
        else:
            self.path, self.sha256 = holder.path, holder.recall()

    def open(self) -> Embedder:
        """Return the model, ready to embed.

        Raises:
            EvaluationError: as ModelHolder.open; or the checkpoint has changed since it was recalled.
        """
        if self.embedder is None:
            start = time.perf_counter()
            with logged_if_slow("loading the model"):
                self.embedder, self.weights = self.holder.open(self.modalities)
            self.seconds = time.perf_counter() - start
            if self.sha256 not in (None, self.weights.sha256):
                raise EvaluationError(f"{self.path}: changed during the run; run again")
            self.path, self.sha256 = self.weights.path, self.weights.sha256
        return self.embedder

    def check_unchanged(self) -> None:
        """Raise an EvaluationError if the checkpoint has changed, before an embedding of it is kept."""
        if self.weights is not None:
            try:
                self.weights.check_unchanged()
            except (RuntimeError, OSError) as e:
                raise EvaluationError(f"{self.weights.path}: changed during the run; run again") from e

    @cached_property
    def facts(self) -> ModelFacts:
        """What the checkpoint says of the model."""
        from imagebind.models import checkpoints
        from imagebind.models.imagebind_model import scale_of

        if self.embedder is not None:
            note, tensors = self.embedder.model.note, self.embedder.model.state_dict(released_names=False)
        else:
            try:
                checkpoint = checkpoints.read_checkpoint(self.path)
            except checkpoints.CheckpointError as e:
                raise EvaluationError(str(e)) from e
            note, tensors = checkpoint.note, checkpoint.state_dict
            if self.holder.recall() != self.sha256:
                raise EvaluationError(f"{self.path}: changed during the run; run again")
        log_scales = {m: tensors.get(f"towers.{TOWERS[m]}.log_scale") for m in self.modalities}
        return ModelFacts(note, {m: float(scale_of(log_scale)) for m, log_scale in log_scales.items()})


@contextmanager
def logged_if_slow(message: str) -> Iterator[None]:
    """Log a message if what is done inside takes longer than a second."""
    timer = threading.Timer(SLOW_SECONDS, log.info, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_given(model: Any) -> None:
    """Raise an OptionError for a model whose towers alone would not be what the caller evaluates."""
    from imagebind.models.imagebind_model import ImageBindModel

    if not isinstance(model, ImageBindModel):
        kind = type(model).__name__
        raise OptionError(
            f"must be an ImageBindModel, such as the module of a wrapper, not a {kind}", "model"
        )
    has_hooks = model._forward_hooks or model._forward_pre_hooks
    if has_hooks or "forward" in vars(model) or type(model).forward is not ImageBindModel.forward:
        raise OptionError(
            "has hooks or a forward of its own, which an evaluation does not call; patch its towers", "model"
        )


def describe_given(model: ImageBindModel, towers: Iterable[str]) -> GivenWeights:
    """Describe the weights of some towers of a model that the caller has.

    Embeddings are kept under the hash of the weights. What a patch computes is not in them: a factor of LoRA
    is a plain number. So patched towers get a hash of their own at each call.
    """
    sha256 = hash_towers(model, towers)
    patched = [modality for modality in sorted(towers) if is_patched(model.towers[modality])]
    if patched:
        log.info("embeddings of a patched model are not found again (patched: %s)", ", ".join(patched))
        sha256 = hashlib.sha256(f"{sha256} {uuid.uuid4()}".encode()).hexdigest()
    return GivenWeights(Path("given model"), sha256, bool(patched))


def is_patched(tower: Tower) -> bool:
    """Whether a tower may compute something else than another one of its sizes with the same weights."""
    import torch

    from imagebind.models.imagebind_model import Tower

    with torch.device("meta"):
        fresh = Tower(tower.config)
    return describe_code(tower) != describe_code(fresh)


def describe_code(tower: Module) -> list[tuple[str, type, dict[str, str], list[str]]]:
    """Describe what of a module's computation is not in its weights.

    Returns:
        of each module name, type, plain attributes (sizes, and a forward of its own) and hooks.
    """
    found = []
    for name, module in tower.named_modules():
        plain = {k: repr(v) for k, v in vars(module).items() if k[0] != "_" and k != "training"}
        hooks = [k for k in ("_forward_hooks", "_forward_pre_hooks") if vars(module)[k]]
        found.append((name, type(module), plain, hooks))
    return found


def hash_towers(model: ImageBindModel, towers: Iterable[str]) -> str:
    """Return the SHA-256 of the weights of some towers."""
    import torch

    digest = hashlib.sha256()
    for modality in sorted(set(towers)):
        for name, tensor in sorted(model.towers[modality].state_dict().items()):
            digest.update(f"{modality}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_model(path: Path) -> tuple[ImageBindModel, Weights]:
    """Check and open a checkpoint; its tensors are memory-mapped, and read when they are first used.

    Raises:
        EvaluationError: the weights cannot be read, or are not what they should be.
    """
    from imagebind.models import checkpoints, imagebind_model

    try:
        weights = checkpoints.verify(path)
        model = imagebind_model.load_model(weights.path)
        if not weights.is_known:
            checkpoints.check_finite(weights.path, model.state_dict(released_names=False))
            checkpoints.remember_digest(weights)
    except checkpoints.CheckpointError as e:
        raise EvaluationError(str(e)) from e
    return model, weights


def check_towers(model: ImageBindModel, weights: Weights | GivenWeights, modalities: Iterable[str]) -> None:
    """Check that a model has the tower of each modality, and that it takes the clips that are made here.

    Raises:
        EvaluationError: it does not.
    """
    from imagebind.models import imagebind_model

    for modality in modalities:
        tower = TOWERS[modality]
        if tower not in model.towers:
            raise EvaluationError(f"{weights.path}: has no {tower} tower")
        taken, made = model.towers[tower].config.clip_shape, imagebind_model.IMAGEBIND_HUGE[tower].clip_shape
        if taken != made or model.towers[tower].config.is_text != (tower == "text"):
            raise EvaluationError(f"{weights.path}: its {tower} tower takes clips of {taken}, not of {made}")


def choose_device(device: str) -> torch.device:
    """Return the device, or the CPU where CUDA is asked for and not available.

    Raises:
        EvaluationError: there is no device of this name.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("CUDA is not available; the CPU is used")
        device = "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as e:
        raise unusable(device, e) from e
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)
    return chosen


def check_device(device: torch.device) -> None:
    """Allocate something on a device.

    Raises:
        EvaluationError: it cannot be used.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise unusable(str(device), e) from e


def unusable(device: str, error: Exception) -> EvaluationError:
    reason = str(error).splitlines()[0].split(". ")[0][:200]
    return EvaluationError(f"{device}: cannot be used ({reason}); name another --device")


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto": the fastest precision that changes every cosine by at most 5e-4, their mean by 1e-4.

    With made-up weights of full size on a CPU that is fp16 (2.4e-5 and 5e-6), not bf16 (4.6e-4 and 1.1e-4).
    """
    if precision != "auto":
        return precision
    return "fp16" if device.type == "cuda" else "fp32"
