"""ImageBind (Girdhar et al., "ImageBind: One Embedding Space To Bind Them All", CVPR 2023).

The model is a tower (tower.py) for each modality, of the sizes in a table (sizes.py). Here are its names in
the released package: its constructor's, its parts' and its tensors'. What is imported from those files and
not used is a name that other code takes from here, and pickled models.

Letters in shapes: B files, S clips of a file, N tokens, D width, E embedding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from imagebind.models import checkpoints, download, released
from imagebind.models.sizes import IMAGEBIND_HUGE, ModalityType, TowerConfig, towers_of  # noqa: F401
from imagebind.models.tower import Attention, Block, Mlp, Tower  # noqa: F401
from imagebind.models.views import PartsView
from imagebind.torch_settings import on_cpu

MIN_SCALE = 1e-6  # of a checkpoint that is taken


class ImageBindModel(nn.Module):
    """The towers of all modalities.

    Its parts have the released model's names too: `modality_preprocessors`, `modality_trunks`,
    `modality_heads` and `modality_postprocessors` are views of the towers, made anew each time.

    Args:
        towers: the sizes for each modality.
        note: shown with every result, for example that the weights are a demo's.
        sizes: instead of towers, by the names and with the defaults of the released constructor, such as
            vision_embed_dim.
    """

    def __init__(self, towers: dict[str, TowerConfig] | None = None, note: str = "", **sizes: Any):
        super().__init__()
        if (towers is not None and sizes) or not isinstance(towers, Mapping | None):
            raise TypeError("give towers, or sizes by the names of the released constructor")
        towers = towers_of(**sizes) if towers is None else towers
        if len({config.embedding for config in towers.values()}) != 1:
            raise ValueError("towers are of one embedding size")
        self.note = note
        self.towers = nn.ModuleDict({modality: Tower(config) for modality, config in towers.items()})
        self._loading = None  # what _give_released_names needs of a load that is going on
        self.register_load_state_dict_pre_hook(ImageBindModel._take_released_names)
        self.register_load_state_dict_post_hook(ImageBindModel._give_released_names)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *, map_location: str | torch.device = "cpu", **options: Any
    ) -> ImageBindModel:
        """Load a model from the Hugging Face Hub, in eval mode.

        Args:
            name: of a repository, such as "nielsr/imagebind-huge", or of one file in it; or the path of a
                checkpoint, or of a directory that holds one.
            map_location: device of the model.
            options: of huggingface_hub.hf_hub_download, such as revision, cache_dir and token.

        Raises:
            CheckpointError: the weights cannot be had, or cannot be loaded.
        """
        places = [name, *(os.path.join(name, file) for file in download.HUB_NAMES)]
        path = next(filter(os.path.isfile, places), None)
        return load_model(path or download.hub_checkpoint(os.fspath(name), **options)).to(map_location)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embed the inputs of any modalities.

        Args:
            inputs: modality -> (B, *clip_shape) or, of several clips a file, (B, S, *clip_shape).
                Vision takes images too, (B, 3, H, W) or (B, S, 3, H, W), and clips of one frame. Pictures are
                squares, also of other sizes than the weights were trained on. Text is token ids, int64.

        Returns:
            modality -> (B, E): the mean over a file's clips of embeddings of norm `scale`. The more the clips
            differ the smaller its norm, so a cosine needs both vectors normalised.

        Raises:
            ValueError: the model has no tower for a modality, or an input has another shape, or is empty.
        """
        return {modality: self._embed(modality, x) for modality, x in inputs.items()}

    @property
    def modality_preprocessors(self) -> PartsView:
        """What makes tokens: stems, class tokens and positions."""
        return PartsView(self.towers, released.PREPROCESSORS)

    @property
    def modality_trunks(self) -> PartsView:
        """The Transformers; each is called as (B, N, D) -> (B, N, D)."""
        return PartsView(self.towers, released.TRUNKS)

    @property
    def modality_heads(self) -> PartsView:
        """Norms and projections; each is called as (B, N, D) -> (B, E)."""
        return PartsView(self.towers, released.HEADS)

    @property
    def modality_postprocessors(self) -> PartsView:
        """Scales; each is called as (B, E) -> (B, E)."""
        return PartsView(self.towers, released.POSTPROCESSORS)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in released.PARTS:
            raise AttributeError(f"{name} is a view of the towers; patch the modules in it")
        super().__setattr__(name, value)

    def state_dict(
        self,
        destination: dict[str, torch.Tensor] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
        released_names: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Return the tensors by name, as torch does; also of a model in another module.

        Args:
            released_names: give them the names and shapes of the released checkpoint; otherwise ours.
        """
        tensors = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        if released_names:
            names = [name for name in tensors if name.startswith(prefix)]
            own = {name[len(prefix) :]: tensors.pop(name) for name in names}
            tensors.update({prefix + name: tensor for name, tensor in released.to_released(own).items()})
        return tensors

    @staticmethod
    def _take_released_names(
        model: ImageBindModel,
        state_dict: dict[str, torch.Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Give tensors that are to be loaded our names; torch calls this inside other modules too."""
        given = {name[len(prefix) :]: name for name in state_dict if name.startswith(prefix)}
        is_released = any(map(released.is_released, given))
        has_ours = any(released.released_name(name) != name for name in given)
        model._loading = (prefix, error_msgs) if is_released or not has_ours else None
        if is_released:
            tensors = {name: state_dict.pop(key) for name, key in given.items()}
            own = dict(model.named_parameters()) | dict(model.named_buffers())
            for name in given:  # torch.distributed.checkpoint adds the model's own tensors, under our names
                ours = released.our_name(name)
                is_twice = ours != name and ours in tensors and ours in own
                if is_twice and tensors[ours].data_ptr() == own[ours].data_ptr():
                    del tensors[ours]
            renamed = released.from_released(tensors)
            if len(renamed) + (released.CAUSAL_MASK in given) < len(tensors):
                error_msgs.append("the state dict has a tensor under its released name and under ours")
            state_dict.update({prefix + name: tensor for name, tensor in renamed.items()})

    @staticmethod
    def _give_released_names(model: ImageBindModel, keys: Any) -> None:
        """Name what does not fit as state_dict() does, unless our names were given."""
        if model._loading is None:
            return
        (prefix, error_msgs), model._loading = model._loading, None

        def rename(name: str) -> str:
            return prefix + released.released_name(name[len(prefix) :]) if name.startswith(prefix) else name

        for names in keys:
            names[:] = map(rename, names)
        for i, message in enumerate(error_msgs):
            error_msgs[i] = re.sub(r"(?<= for )[\w.]+(?=:)", lambda match: rename(match[0]), message)

    def _embed(self, modality: str, x: torch.Tensor) -> torch.Tensor:
        if modality not in self.towers:
            raise ValueError(f"no {modality!r} tower in this model; it has {', '.join(self.towers)}")
        tower, shape = self.towers[modality], tuple(x.shape)
        clip_shape = tower.config.clip_shape
        if len(clip_shape) == 4 and x.ndim in (4, 5) and tower.config.takes((clip_shape[0], 1, *shape[-2:])):
            is_clip = x.ndim == 5 and tower.config.takes(shape[1:])
            x = x.unsqueeze(-3) if shape[-3] == clip_shape[0] and not is_clip else x  # an image is one frame
        n_axes = x.ndim - len(clip_shape)
        if n_axes not in (1, 2) or not tower.config.takes(tuple(x.shape[n_axes:])):
            raise ValueError(f"{modality} input is (B, [S,] {clip_shape}), not {shape}")
        if 0 in shape:
            raise ValueError(f"{modality} input is empty: {shape}")
        if n_axes == 1:
            return tower(x)
        return tower(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


def imagebind_huge(pretrained: bool = False, checkpoint: str | os.PathLike | None = None) -> ImageBindModel:
    """Build ImageBind in its released size, in eval mode; the released function gives it in training mode.

    Args:
        pretrained: load the released weights from .checkpoints/imagebind_huge.pth at the project's
            root or in the working directory, downloaded on first use.
        checkpoint: load this file instead, or "hf:" and a repository of the Hub: a state dict of the
            released size, fine-tuned or not, or a checkpoint of our own, which holds the sizes of its towers.

    Raises:
        CheckpointError: the weights cannot be loaded.
    """
    if checkpoint is None and not pretrained:
        return ImageBindModel(IMAGEBIND_HUGE).eval()
    return load_model(download.find_checkpoint(checkpoint))


@on_cpu()
def load_model(path: str | os.PathLike) -> ImageBindModel:
    """Load a model from a checkpoint file, in eval mode and on the CPU.

    The tensors are memory-mapped; nothing is initialised or copied.

    Raises:
        CheckpointError: the file is not a checkpoint, or not a complete one.
    """
    checkpoint = checkpoints.read_checkpoint(path)
    try:
        if checkpoint.towers is None:
            held = {name.split(".")[1] for name in checkpoint.state_dict if name.startswith("towers.")}
            towers = {modality: row for modality, row in IMAGEBIND_HUGE.items() if modality in held}
            towers = towers or IMAGEBIND_HUGE  # of which it has no name, as is said below
        else:
            towers = {modality: config_of(row) for modality, row in checkpoint.towers.items()}
        with torch.device("meta"):
            model = ImageBindModel(towers, checkpoint.note)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as e:
        if isinstance(e, checkpoints.CheckpointError):
            raise
        reason = " ".join(str(e).split())[:200]
        raise checkpoints.CheckpointError(f"{path}: its towers cannot be built ({reason})") from e
    checkpoints.check_state_dict(path, checkpoint, model.state_dict(released_names=False))
    model.load_state_dict(checkpoint.state_dict, strict=True, assign=True)
    for modality, tower in model.towers.items():
        if not torch.as_tensor(tower.scale).item() > MIN_SCALE:
            raise checkpoints.CheckpointError(f"{path}: towers.{modality}.log_scale makes embeddings vanish")
    return model.float().eval()


def config_of(row: Mapping[str, Any]) -> TowerConfig:
    """Make the sizes of a tower from a row of a checkpoint, where lists stand for tuples."""
    if not isinstance(row, Mapping):
        raise ValueError("the sizes of a tower are a mapping")
    return TowerConfig(**{name: tuple(x) if isinstance(x, list) else x for name, x in row.items()})


def save_model(model: ImageBindModel, path: str | os.PathLike) -> None:
    """Write a checkpoint of our own: sizes and tensors of the towers in plain types."""
    rows = {modality: asdict(tower.config) for modality, tower in model.towers.items()}
    checkpoints.write_checkpoint(path, rows, model.state_dict(released_names=False), model.note)
