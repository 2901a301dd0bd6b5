"""ImageBind (Girdhar et al., "ImageBind: One Embedding Space To Bind Them All", CVPR 2023).

A tower embeds the clips of one modality into a space that all modalities share. Every tower is the same
Transformer with other sizes, and IMAGEBIND_HUGE is the table of those sizes.

Letters in shapes: B files, S clips of a file, N tokens, D width, H heads, E embedding.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from imagebind.models import checkpoints, download, released
from imagebind.models.views import PartsView
from imagebind.torch_settings import on_cpu

MAX_SIZE = 1 << 20  # of anything in a tower

log = logging.getLogger(__name__)


# The names of the modalities: the keys of the model's inputs and outputs; vars() lists them
ModalityType = SimpleNamespace(
    VISION="vision", TEXT="text", AUDIO="audio", THERMAL="thermal", DEPTH="depth", IMU="imu"
)


@dataclass(frozen=True)
class TowerConfig:
    """The sizes of one tower."""

    clip_shape: tuple[int, ...]  # of one clip, channels first; for text (number of tokens,)
    kernel: tuple[int, ...]  # of the convolution that turns a clip into tokens
    stride: tuple[int, ...]
    width: int  # D
    n_blocks: int
    n_heads: int  # H
    scale: float  # norm of a clip's embedding; for text, which learns it, the initial one
    stem_norm: bool = True  # LayerNorm on the tokens after the convolution
    pre_norm: bool = False  # LayerNorm before the first block
    bias_kv: bool = True  # a learned key and value appended to every sequence
    embedding: int = 1024  # E
    vocabulary: int | None = None  # for text, which has token embeddings and no convolution

    def __post_init__(self):
        """Raise a ValueError for sizes that no tower has."""
        sizes = (*self.clip_shape, *self.kernel, *self.stride, self.width, self.n_blocks, self.n_heads)
        sizes += (self.embedding, *([] if self.vocabulary is None else [self.vocabulary]))
        if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes):
            raise ValueError(f"sizes are whole numbers from 1 to {MAX_SIZE}")
        n_axes = len(self.clip_shape) - 1
        if not len(self.kernel) == len(self.stride) == n_axes or n_axes > 3 or (n_axes == 0) != self.is_text:
            raise ValueError("kernel and stride have one size for each axis of a clip")
        if any(kernel > size for kernel, size in zip(self.kernel, self.clip_shape[1:], strict=True)):
            raise ValueError("a kernel is larger than the clip")
        if self.width % self.n_heads:
            raise ValueError(f"a width of {self.width} has no {self.n_heads} equal heads")
        if not (type(self.scale) in (int, float) and 0 < self.scale < math.inf):
            raise ValueError("the scale is a number above 0")

    @property
    def is_text(self) -> bool:
        """Whether clips are token ids, which come with a causal mask; the end token gives the embedding."""
        return self.vocabulary is not None

    @property
    def is_square(self) -> bool:
        """Whether clips are square pictures, of one step in time; those of other sizes are taken too."""
        grid = self.grid(self.clip_shape[1:])
        sides = (self.clip_shape[-2:], self.kernel[-2:], self.stride[-2:])
        return len(grid) > 1 and math.prod(grid[:-2]) == 1 and all(a == b for a, b in sides)

    def grid(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return how many tokens a clip of these sizes, without channels, gives along each axis."""
        axes = zip(sizes, self.kernel, self.stride, strict=True)
        return tuple((size - kernel) // stride + 1 for size, kernel, stride in axes)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a tower takes clips of a shape: its own, one frame of a video, squares of other sizes."""
        if shape == self.clip_shape:
            return True
        if len(shape) < 3 or len(shape) != len(self.clip_shape) or shape[0] != self.clip_shape[0]:
            return False
        if len(shape) == 4 and shape[1] not in (1, self.clip_shape[1]):
            return False
        if shape[-2:] == self.clip_shape[-2:]:
            return len(shape) == 4
        return self.is_square and shape[-2] == shape[-1] >= self.kernel[-1]

    @property
    def n_tokens(self) -> int:
        """N, including the class token."""
        if self.is_text:
            return self.clip_shape[0]
        return 1 + math.prod(self.grid(self.clip_shape[1:]))


IMAGEBIND_HUGE = {
    ModalityType.VISION: TowerConfig(
        clip_shape=(3, 2, 224, 224),
        kernel=(2, 14, 14),
        stride=(2, 14, 14),
        width=1280,
        n_blocks=32,
        n_heads=16,
        stem_norm=False,
        pre_norm=True,
        bias_kv=False,
        scale=1.0,
    ),
    ModalityType.AUDIO: TowerConfig(
        clip_shape=(1, 128, 204),
        kernel=(16, 16),
        stride=(10, 10),
        width=768,
        n_blocks=12,
        n_heads=12,
        scale=20.0,
    ),
    ModalityType.TEXT: TowerConfig(
        clip_shape=(77,),
        kernel=(),
        stride=(),
        width=1024,
        n_blocks=24,
        n_heads=16,
        stem_norm=False,
        bias_kv=False,
        scale=1 / 0.07,
        vocabulary=49408,
    ),
    ModalityType.DEPTH: TowerConfig(
        clip_shape=(1, 224, 224),
        kernel=(16, 16),
        stride=(16, 16),
        width=384,
        n_blocks=12,
        n_heads=8,
        scale=5.0,
    ),
    ModalityType.THERMAL: TowerConfig(
        clip_shape=(1, 224, 224),
        kernel=(16, 16),
        stride=(16, 16),
        width=768,
        n_blocks=12,
        n_heads=12,
        scale=10.0,
    ),
    ModalityType.IMU: TowerConfig(
        clip_shape=(6, 2000),
        kernel=(8,),
        stride=(8,),
        width=512,
        n_blocks=6,
        n_heads=8,
        scale=5.0,
    ),
}

NORM_EPS = 1e-6
STEM_NORM_EPS = 1e-5
MAX_SCALE = 100.0
MIN_SCALE = 1e-6  # of a checkpoint that is taken
MLP_RATIO = 4


def towers_of(
    video_frames: int = 2,
    kernel_size: tuple[int, int, int] = (2, 14, 14),
    audio_kernel_size: int = 16,
    audio_stride: int = 10,
    audio_num_mel_bins: int = 128,
    audio_target_len: int = 204,
    depth_kernel_size: int = 16,
    thermal_kernel_size: int = 16,
    imu_kernel_size: int = 8,
    out_embed_dim: int = 768,
    **sizes: Any,
) -> dict[str, TowerConfig]:
    """Return the towers for sizes by the names, and with the defaults, of the released constructor.

    Args:
        sizes: MODALITY_embed_dim, MODALITY_num_blocks, MODALITY_num_heads, and MODALITY_drop_path, which has
            no effect.

    Raises:
        TypeError, ValueError: a name or a size that there is not.
    """
    shapes = {
        "vision": ((3, video_frames, 224, 224), kernel_size, kernel_size, (1024, 24, 16)),
        "audio": (
            *((1, audio_num_mel_bins, audio_target_len), (audio_kernel_size,) * 2, (audio_stride,) * 2),
            (768, 12, 12),
        ),
        "text": ((77,), (), (), (768, 12, 12)),
        "depth": ((1, 224, 224), (depth_kernel_size,) * 2, (depth_kernel_size,) * 2, (384, 12, 8)),
        "thermal": ((1, 224, 224), (thermal_kernel_size,) * 2, (thermal_kernel_size,) * 2, (768, 12, 12)),
        "imu": ((6, 2000), (imu_kernel_size,), (imu_kernel_size,), (512, 6, 8)),
    }
    towers = {}
    for modality, (clip_shape, kernel, stride, defaults) in shapes.items():
        names = (f"{modality}_{name}" for name in ("embed_dim", "num_blocks", "num_heads"))
        width, n_blocks, n_heads = (sizes.pop(name, size) for name, size in zip(names, defaults, strict=True))
        if sizes.pop(f"{modality}_drop_path", 0):
            log.warning("%s_drop_path has no effect: there is no drop path here", modality)
        towers[modality] = replace(
            IMAGEBIND_HUGE[modality], clip_shape=clip_shape, kernel=tuple(kernel), stride=tuple(stride),
            width=width, n_blocks=n_blocks, n_heads=n_heads, embedding=out_embed_dim,
        )  # fmt: skip
    if sizes:
        raise TypeError(f"ImageBindModel has no size {next(iter(sizes))!r}")
    return towers


class Attention(nn.Module):
    """Multi-head self-attention with packed projections, laid out as torch.nn.MultiheadAttention."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.n_heads = config.n_heads
        width = config.width
        self.embed_dim, self.num_heads, self.head_dim = width, config.n_heads, width // config.n_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        if config.bias_kv:
            self.bias_k = nn.Parameter(torch.empty(1, 1, width))
            self.bias_v = nn.Parameter(torch.empty(1, 1, width))
        else:
            self.bias_k = self.bias_v = None

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attend, (B, N, D) -> (B, N, D).

        Args:
            attn_mask: as torch.nn.MultiheadAttention takes it, (N, N) or (B H, N, N): to be added before the
                softmax, or of type bool, True where a token is not to be seen.
        """
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)  # (B, N, D)
        if self.bias_k is not None:
            n = k.shape[0]  # of which a traced or exported model knows that it varies, not so of len(k)
            k = torch.cat([k, self.bias_k.expand(n, -1, -1)], dim=1)  # (B, N + 1, D)
            v = torch.cat([v, self.bias_v.expand(n, -1, -1)], dim=1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.n_heads) for t in (q, k, v))
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(attn_mask, -torch.inf)
            attn_mask = attn_mask if attn_mask.ndim == 2 else attn_mask.unflatten(0, (-1, self.n_heads))
            n_more = k.shape[2] - attn_mask.shape[-1]  # the learned key, which no mask hides
            attn_mask = F.pad(attn_mask.to(q.dtype), (0, n_more))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.out_proj(rearrange(x, "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """The perceptron of a layer, (B, N, D) -> (B, N, D), with the names of timm's."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """One layer of the Transformer, normalised before each half."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config)
        self.norm_2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Mlp(config.width)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        # x stays in float32 in every precision, so that rounding errors do not accumulate. The mask is passed
        # on as in the released model, for what may stand in the place of `attn`.
        x = x + self.attn(self.norm_1(x).to(type_of(self.attn)), attn_mask)
        return x + self.mlp(self.norm_2(x).to(type_of(self.mlp)))


def type_of(module: nn.Module) -> torch.dtype:
    """Return the type that a module computes in: that of its first weight."""
    for weight in module.parameters():  # loops, as torch 2.5 exports no next(...)
        if weight.is_floating_point():
            return weight.dtype
    for each in module.modules():  # a replica of DataParallel has no parameters, but tensors in their place
        for weight in vars(each).get("_former_parameters", {}).values():
            if weight.is_floating_point():
                return weight.dtype
    return torch.float32


class Tower(nn.Module):
    """The encoder of one modality.

    Attributes:
        trunk_wrapper: a module that is called in the place of `trunk`, and calls it; no submodule, as it has
            no weights but those of the tower.
    """

    trunk_wrapper: nn.Module | None = None

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.stem = make_stem(config)
        self.stem_norm = nn.LayerNorm(width, eps=STEM_NORM_EPS) if config.stem_norm else nn.Identity()
        self.cls_token = None if config.is_text else nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.n_tokens, width))
        self.pre_norm = nn.LayerNorm(width, eps=NORM_EPS) if config.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_blocks)))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, config.embedding, bias=False)
        # The released checkpoint has no tensor for a scale of 1.
        log_scale = None if config.scale == 1 else torch.tensor(math.log(config.scale))
        if config.is_text:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.apply(_init_weights)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Embed clips, (B, *clip_shape) -> (B, E), each of norm `scale`."""
        inputs = self.preprocess(clips)
        trunk = self.trunk if self.trunk_wrapper is None else self.trunk_wrapper
        tokens = inputs["trunk"].pop("tokens")
        return self.rescale(self.project(trunk(tokens, **inputs["trunk"]), **inputs["head"]))

    def preprocess(self, *clips: torch.Tensor, **named: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        """Turn clips (B, *clip_shape) into what `trunk` and `project` are called with.

        Args:
            clips, named: one tensor, alone or, as the released model is called, by the name of its modality.

        Returns:
            under "trunk" tokens (B, N, D) and, of texts, a causal attn_mask (N, N); under "head", of texts,
            seq_len (B,): where the end token is, which has the largest id and summarises the text. Of other
            clips the class token does that, which comes first.
        """
        (clips,) = (*clips, *named.values())
        x = self.stem_norm(self.tokens(clips))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, N, D)
        x = x + self.positions(clips.shape[-1])
        if not self.config.is_text:
            return {"trunk": {"tokens": x}, "head": {}}
        of_trunk = {"tokens": x, "attn_mask": released.causal_mask(x)}
        return {"trunk": of_trunk, "head": {"seq_len": clips.argmax(dim=-1)}}

    def positions(self, size: int) -> torch.Tensor:
        """Return the embeddings of positions (1, N, D); of squares of another size a bicubic resampling.

        Args:
            size: of the last axis of a clip.
        """
        config = self.config
        if size == config.clip_shape[-1]:
            return self.pos_embed
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        n, n_new = (config.grid((*config.clip_shape[1:-2], s, s))[-1] for s in (config.clip_shape[-1], size))
        grid = grid.unflatten(1, (n, n)).movedim(-1, 1).float()  # (1, D, n, n)
        grid = F.interpolate(grid, (n_new, n_new), mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([first, grid.to(first.dtype)], dim=1)

    def trunk(
        self, tokens: torch.Tensor, attn_mask: torch.Tensor | None = None, **checkpointing: Any
    ) -> torch.Tensor:
        """Run the Transformer, (B, N, D) -> (B, N, D).

        Args:
            attn_mask: as in Attention.
            checkpointing: the released options that save memory in training, and change no number.
        """
        tokens = self.pre_norm(tokens)
        if attn_mask is None:
            return self.blocks(tokens)
        for block in self.blocks:
            tokens = block(tokens, attn_mask)
        return tokens

    def project(self, tokens: torch.Tensor, seq_len: torch.Tensor | None = None) -> torch.Tensor:
        """Project one token of each clip, (B, N, D) -> (B, E): that at `seq_len` (B,), else the first."""
        if seq_len is None:
            summary = tokens[:, 0]  # (B, D)
        else:
            summary = tokens[torch.arange(tokens.shape[0], device=tokens.device), seq_len]
        return self.head(self.norm(summary))

    def rescale(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Give embeddings (B, E) the norm `scale`."""
        return F.normalize(embeddings, dim=-1) * self.scale

    def tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Turn clips into tokens, (B, *clip_shape) -> (B, N, D), N without the class token.

        A picture (B, 3, H, W) is a video of one frame, and one frame stands for all.
        """
        if self.config.is_text:
            return self.stem(clips)
        if len(self.config.clip_shape) == 4:
            clips = clips.unsqueeze(2) if clips.ndim == 4 else clips
            if clips.shape[2] == 1:
                clips = clips.expand(-1, -1, self.config.clip_shape[1], -1, -1)
        return self.stem(clips.to(type_of(self.stem))).to(self.pos_embed.dtype).flatten(2).transpose(1, 2)

    def copy_to(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """Return a copy on a device, in eval mode, with the weights of stem and blocks converted to a type.

        Norms, positions and head stay in float32, and so does the stem of text, which is a lookup. Modules
        are copied as they are, patched or not. Where neither the device nor the type is another, the copy
        shares its memory with this tower.
        """
        converted = () if self.config.is_text else ("stem.",)
        copies = {}  # of weights, for deepcopy: it takes what is there, and copies the rest
        for name, weight in (*self.named_parameters(), *self.named_buffers()):
            is_converted = name.startswith(converted) or ".attn." in name or ".mlp." in name
            to_type = dtype if is_converted else torch.float32
            to_type = to_type if weight.is_floating_point() else weight.dtype
            copy = weight.detach().to(to_type).to(device)
            is_parameter = isinstance(weight, nn.Parameter)
            copies[id(weight)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
        return deepcopy(self, copies).eval()

    @property
    def scale(self) -> torch.Tensor | float:
        """The norm of a clip's embedding."""
        return scale_of(self.log_scale)


def scale_of(log_scale: torch.Tensor | None) -> torch.Tensor | float:
    """Return the norm that a tower's `log_scale` gives to embeddings; None is 1."""
    return 1.0 if log_scale is None else log_scale.exp().clamp(max=MAX_SCALE)


def make_stem(config: TowerConfig) -> nn.Module:
    """Make the layer that turns clips into tokens."""
    if config.is_text:
        # of a tensor: to initialise one without memory, torch would import its compiler, which takes a second
        return nn.Embedding.from_pretrained(torch.empty(config.vocabulary, config.width), freeze=False)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(config.kernel)]
    return conv(config.clip_shape[0], config.width, config.kernel, config.stride, bias=False)


@torch.no_grad()
def _init_weights(module: nn.Module) -> None:
    """Initialise a module as usual for a vision Transformer: truncated normals, zero biases."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.is_meta:  # takes no values, but time
            continue
        if name.endswith("bias"):
            parameter.zero_()
        elif not isinstance(module, nn.LayerNorm) and name != "log_scale":
            nn.init.trunc_normal_(parameter, std=0.02)


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
        found = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        if released_names:
            own = {name[len(prefix) :]: found.pop(name) for name in list(found) if name.startswith(prefix)}
            found.update({prefix + name: tensor for name, tensor in released.to_released(own).items()})
        return found

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
            if not towers:
                raise checkpoints.CheckpointError(f"{path}: not a checkpoint of ImageBind")
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
