"""The sizes of ImageBind's towers: the table of the released model, and its constructor's names for them.

Every tower is the same Transformer with other sizes; another modality is another row.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

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


# Sizes of the released model: clip_shape, kernel, stride, width, n_blocks, n_heads, scale
# fmt: off
IMAGEBIND_HUGE = {
    ModalityType.VISION: TowerConfig(
        (3, 2, 224, 224), (2, 14, 14), (2, 14, 14), 1280, 32, 16, 1.0,
        stem_norm=False, pre_norm=True, bias_kv=False,
    ),
    ModalityType.AUDIO: TowerConfig((1, 128, 204), (16, 16), (10, 10), 768, 12, 12, 20.0),
    ModalityType.TEXT: TowerConfig(
        (77,), (), (), 1024, 24, 16, 1 / 0.07, stem_norm=False, bias_kv=False, vocabulary=49408
    ),
    ModalityType.DEPTH: TowerConfig((1, 224, 224), (16, 16), (16, 16), 384, 12, 8, 5.0),
    ModalityType.THERMAL: TowerConfig((1, 224, 224), (16, 16), (16, 16), 768, 12, 12, 10.0),
    ModalityType.IMU: TowerConfig((6, 2000), (8,), (8,), 512, 6, 8, 5.0),
}
# fmt: on


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
