"""A tower: the encoder of one modality, clips -> embeddings in the space that all modalities share.

Letters in shapes: B clips, N tokens, D width, H heads, E embedding.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from imagebind.models import released
from imagebind.models.sizes import TowerConfig

NORM_EPS = 1e-6
STEM_NORM_EPS = 1e-5
MAX_SCALE = 100.0
MLP_RATIO = 4


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
