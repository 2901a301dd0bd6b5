"""The model of a run: which weights, on which device, in which precision."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagebind.evaluation.errors import EvaluationError, OptionError

if TYPE_CHECKING:  # torch takes seconds to import, and files are listed and paired without it
    import torch
    from torch.nn import Module

    from imagebind.evaluation.options import Options
    from imagebind.models.checkpoints import Weights
    from imagebind.models.embedder import Embedder
    from imagebind.models.imagebind_model import ImageBindModel, Tower

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

    @classmethod
    def of(cls, options: Options) -> ModelHolder:
        """Make a holder of the model that the options of a run name."""
        return cls(options.checkpoint, options.device, options.precision)

    def open(self, modalities: Iterable[str]) -> tuple[Embedder, Weights | GivenWeights]:
        """Return the model on its device, with towers for some modalities.

        Raises:
            EvaluationError: the weights cannot be had, have changed, or there is no such device.
        """
        from imagebind.models.checkpoints import CheckpointError
        from imagebind.models.embedder import Embedder

        if self.model is not None:
            check_given(self.model)
            check_towers(self.model, GivenWeights(Path("given model"), ""), modalities)
            weights = describe_given(self.model, {TOWERS[modality] for modality in modalities})
            device = choose_device(str(self.device))
            return Embedder(self.model, device, choose_precision(self.precision, device)), weights
        if self._opened is None:
            model, weights = load_model(self.checkpoint)
            device = choose_device(str(self.device))
            self._opened = Embedder(model, device, choose_precision(self.precision, device)), weights
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
        from imagebind.reading.loader import single_thread

        embedder, _ = self.open(("audio", "video"))
        inputs = {"audio": [], "video": []}
        try:
            with single_thread():  # as files are read
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


def load_model(checkpoint: str | os.PathLike | None) -> tuple[ImageBindModel, Weights]:
    """Check and open a checkpoint; its tensors are memory-mapped, and read when they are first used.

    Raises:
        EvaluationError: the weights cannot be had, or are not what they should be.
    """
    from imagebind.models import checkpoints, imagebind_model

    try:
        weights = checkpoints.verify(checkpoint or checkpoints.released_checkpoint())
        model = imagebind_model.load_model(weights.path)
        if not weights.is_known:
            checkpoints.check_finite(weights.path, model.state_dict())
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
        EvaluationError: there is no such device.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("CUDA is not available; the CPU is used")
        device = "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0][:100]
        raise EvaluationError(f"{device}: cannot be used ({reason}); name another --device") from e


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto": the fastest precision that changes every cosine by at most 5e-4, their mean by 1e-4.

    With made-up weights of full size on a CPU that is fp16 (2.4e-5 and 5e-6), not bf16 (4.6e-4 and 1.1e-4).
    """
    if precision != "auto":
        return precision
    return "fp16" if device.type == "cuda" else "fp32"
