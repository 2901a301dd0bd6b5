"""The model of a run: which weights, on which device, in which precision."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from imagebind.evaluation.embed.embedded import ModelFacts
from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.evaluation.forks import check_can_compute
from imagebind.evaluation.options import Options
from imagebind.memory import free_unused_memory
from imagebind.models import checkpoints, download, imagebind_model
from imagebind.models.checkpoints import CheckpointError, Weights
from imagebind.models.embedder import Embedder
from imagebind.models.imagebind_model import ImageBindModel, Tower
from imagebind.models.tower import scale_of
from imagebind.spelling import option as spelled

SLOW_SECONDS = 1  # after which loading is worth a word
TOWERS = {"audio": "audio", "video": "vision", "text": "text"}  # modality of a file -> tower of the model

log = logging.getLogger(__name__)


class Model:
    """ImageBind of some weights, on a device: loaded when it is first needed, and kept from run to run.

    Args:
        checkpoint: weights; None takes the released ones.
        device, precision: as the options of these names.
        given: to be used instead, as it is at the time of each run; it stays as it is.

    Attributes:
        sha256: of the weights of this run; None until they are checked.
        seconds: that loading them took in this run.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike | None,
        device: str | torch.device,
        precision: str,
        given: ImageBindModel | None = None,
    ):
        self.checkpoint, self.given, self._asked = checkpoint, given, (str(device), precision)
        self._loaded: tuple[Embedder, Weights] | None = None  # that stay
        self._opened: tuple[Embedder, Weights] | None = None  # of this run
        self.modalities: list[str] = []
        self.sha256, self.seconds = None, 0.0

    @classmethod
    def of(cls, options: Options) -> Model:
        """Make the model that the options of a run name."""
        return cls(options.checkpoint, options.device, options.precision)

    @cached_property
    def device(self) -> torch.device:
        """The device that computes; nothing is allocated there yet.

        Raises:
            EvaluationError: there is no device of this name.
        """
        return choose_device(self._asked[0])

    @property
    def precision(self) -> str:
        """That of the model's matrix multiplications."""
        return choose_precision(self._asked[1], self.device)

    @cached_property
    def path(self) -> Path:
        """The checkpoint, which is downloaded if it is the released one and not there.

        Raises:
            EvaluationError: it cannot be downloaded.
        """
        with checkpoint_errors():
            return download.find_checkpoint(self.checkpoint)

    def begin(self, modalities: Iterable[str]) -> None:
        """Begin a run: it may need no model, where all embeddings are in the cache.

        Args:
            modalities: of which files may come.

        Raises:
            EvaluationError: the checkpoint cannot be had, or there is no such device.
        """
        self.modalities, self._opened, self.sha256 = list(modalities), None, None
        self.device  # noqa: B018 (before a download)
        if self.given is None and self._loaded is None:
            self.sha256 = self._known_sha256()
        else:
            self.open()
        self.seconds = 0.0  # it was loaded before

    def load_now(self) -> None:
        """Load the weights before a run needs them.

        Raises:
            EvaluationError: as load.
        """
        with logged_if_slow("loading the model"):
            self.load(())

    def open(self) -> Embedder:
        """Return the model, ready to embed files of this run.

        Raises:
            EvaluationError: as load; or the checkpoint has changed since its hash was looked up.
        """
        if self._opened is None:
            start = time.perf_counter()
            with logged_if_slow("loading the model"):
                embedder, weights = self.load(self.modalities)
            self.seconds = time.perf_counter() - start
            if self.sha256 not in (None, weights.sha256):
                raise EvaluationError(f"{weights.path}: changed during the run; run again")
            self._opened, self.sha256 = (embedder, weights), weights.sha256
        return self._opened[0]

    def load(self, modalities: Iterable[str]) -> tuple[Embedder, Weights]:
        """Return the model on its device, with towers for some modalities, and what it was read from.

        Raises:
            EvaluationError: the weights cannot be had, have changed, or the device cannot be used.
        """
        check_can_compute()
        if self.given is not None:
            check_given(self.given)
            weights = describe_given(self.given, modalities)
            check_device(self.device)
            return Embedder(self.given, self.device, self.precision), weights
        if self._loaded is None:
            check_device(self.device)
            model, weights = load_model(self.path)
            self._loaded = Embedder(model, self.device, self.precision), weights
        embedder, weights = self._loaded
        check_unchanged(weights, "changed since it was loaded; load it again")
        check_towers(embedder.model, weights.path, modalities)
        return self._loaded

    def check_unchanged(self) -> None:
        """Raise an EvaluationError if the checkpoint has changed, before an embedding of it is kept."""
        if self._opened is not None:
            check_unchanged(self._opened[1], "changed during the run; run again")

    def facts(self) -> ModelFacts:
        """Say which model made the embeddings of this run; it need not have been loaded.

        Raises:
            EvaluationError: the checkpoint cannot be read any more, or has changed.
        """
        if self._opened is not None:
            embedder, weights = self._opened
            path, note = weights.path, embedder.model.note
            tensors = embedder.model.state_dict(released_names=False)
        else:
            path = self.path
            with checkpoint_errors():
                checkpoint = checkpoints.read_checkpoint(path)
            note, tensors = checkpoint.note, checkpoint.state_dict
            if self._known_sha256() != self.sha256:
                raise EvaluationError(f"{path}: changed during the run; run again")
        log_scales = {m: tensors.get(f"towers.{TOWERS[m]}.log_scale") for m in self.modalities}
        scales = {m: float(scale_of(log_scale)) for m, log_scale in log_scales.items()}
        return ModelFacts(path.name, self.sha256, note, self.precision, self.device, scales)

    def end(self) -> None:
        """End a run; of a given model nothing is kept."""
        self._opened = None

    def unload(self) -> None:
        """Free the memory of the device; the model is loaded again when it is needed."""
        self.end()
        if self._loaded is not None:
            self._loaded = None
            free_unused_memory(self.device)

    def _known_sha256(self) -> str | None:
        with checkpoint_errors():
            return checkpoints.known_sha256(self.path)


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """Turn a CheckpointError inside into an EvaluationError."""
    try:
        yield
    except CheckpointError as e:
        raise EvaluationError(str(e)) from e


def check_unchanged(weights: Weights, how: str) -> None:
    """Raise an EvaluationError if a checkpoint has changed, which says how."""
    try:
        weights.check_unchanged()
    except (CheckpointError, OSError) as e:
        raise EvaluationError(f"{weights.path}: {how}") from e


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


def describe_given(model: ImageBindModel, modalities: Iterable[str]) -> Weights:
    """Describe the weights of a model that the caller has, as they are now.

    Embeddings are kept under the hash of the weights. What a patch computes is not in them: a factor of LoRA
    is a plain number. So patched towers get a hash of their own at each call.

    Raises:
        EvaluationError: as check_towers.
    """
    path = Path("given model")
    check_towers(model, path, modalities)
    towers = {TOWERS[modality] for modality in modalities}
    sha256 = hash_towers(model, towers)
    patched = [modality for modality in sorted(towers) if is_patched(model.towers[modality])]
    if patched:
        log.info("embeddings of a patched model are not found again (patched: %s)", ", ".join(patched))
        sha256 = hashlib.sha256(f"{sha256} {uuid.uuid4()}".encode()).hexdigest()
    return Weights(path, sha256, is_known=True)


def is_patched(tower: Tower) -> bool:
    """Whether a tower may compute something else than another one of its sizes with the same weights."""
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
    with checkpoint_errors():
        weights = checkpoints.verify(path)
        model = imagebind_model.load_model(weights.path)
        if not weights.is_known:
            checkpoints.check_finite(weights.path, model.state_dict(released_names=False))
            checkpoints.remember_digest(weights)
    return model, weights


def check_towers(model: ImageBindModel, path: Path, modalities: Iterable[str]) -> None:
    """Check that a model has the tower of each modality, and that it takes the clips that are made here.

    Raises:
        EvaluationError: it does not.
    """
    for modality in modalities:
        tower = TOWERS[modality]
        if tower not in model.towers:
            raise EvaluationError(f"{path}: has no {tower} tower")
        taken, made = model.towers[tower].config.clip_shape, imagebind_model.IMAGEBIND_HUGE[tower].clip_shape
        if taken != made or model.towers[tower].config.is_text != (tower == "text"):
            raise EvaluationError(f"{path}: its {tower} tower takes clips of {taken}, not of {made}")


def choose_device(device: str) -> torch.device:
    """Return the device, or the CPU where CUDA is asked for and not available.

    Raises:
        EvaluationError: there is no device of this name.
    """
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
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise unusable(str(device), e) from e


def unusable(device: str, error: Exception) -> EvaluationError:
    reason = str(error).splitlines()[0].split(". ")[0][:200]
    return EvaluationError(f"{device}: cannot be used ({reason}); name another {spelled('device')}")


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto": the fastest precision that changes every cosine by at most 5e-4, their mean by 1e-4.

    With made-up weights of full size on a CPU that is fp16 (2.4e-5 and 5e-6), not bf16 (4.6e-4 and 1.1e-4).
    """
    if precision != "auto":
        return precision
    return "fp16" if device.type == "cuda" else "fp32"
