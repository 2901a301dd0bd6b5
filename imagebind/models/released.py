"""The names of the released model: of its tensors, and of the parts of a tower that they are in.

PLACES is the one table behind all of it: state dicts are renamed by it in both directions, and the views of
a model's parts are made by it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

PREPROCESSORS, TRUNKS = "modality_preprocessors", "modality_trunks"
HEADS, POSTPROCESSORS = "modality_heads", "modality_postprocessors"
PARTS = (PREPROCESSORS, TRUNKS, HEADS, POSTPROCESSORS)

# What a tower of ours holds -> the part of the released model that holds it, and its name there
PLACES = {
    "cls_token": (PREPROCESSORS, "cls_token"),
    "pos_embed": (PREPROCESSORS, "pos_embedding_helper.pos_embed"),
    "stem": (PREPROCESSORS, "rgbt_stem.proj"),
    "stem_norm": (PREPROCESSORS, "rgbt_stem.norm_layer"),
    "pre_norm": (TRUNKS, "pre_transformer_layer.0"),
    "blocks": (TRUNKS, "blocks"),
    "norm": (HEADS, "0"),
    "head": (HEADS, "2"),
    "log_scale": (POSTPROCESSORS, "1.log_logit_scale"),
}
# Modality -> the names there that are others
OTHER_NAMES = {
    "vision": {"stem": "rgbt_stem.proj.1"},
    "text": {"stem": "token_embedding", "pos_embed": "pos_embed", "norm": "proj.0", "head": "proj.1"},
    "depth": {"stem": "depth_stem.proj", "stem_norm": "depth_stem.norm_layer"},
    "imu": {
        "stem": "imu_stem.proj",
        "stem_norm": "imu_stem.norm_layer",
        "pos_embed": "pos_embed",
        "head": "3",
    },
}

CAUSAL_MASK = "modality_preprocessors.text.mask"  # a constant, which attention makes for itself
TEXT_POSITIONS = "towers.text.pos_embed"
IMU_STEM, IMU_CHANNELS = "towers.imu.stem.weight", 6


def place(modality: str, name: str) -> tuple[str, str]:
    """Return the released part that holds something of a tower, and its name there."""
    part, usual = PLACES[name]
    return part, OTHER_NAMES.get(modality, {}).get(name, usual)


def released_name(name: str) -> str:
    """Return the released name of a tensor; one that has none stays as it is.

    >>> released_name("towers.imu.head.weight")
    'modality_heads.imu.3.weight'
    """
    towers, _, rest = name.partition(".")
    modality, _, rest = rest.partition(".")
    held, dot, rest = rest.partition(".")
    if towers != "towers" or held not in PLACES:
        return name
    part, there = place(modality, held)
    return f"{part}.{modality}.{there}{dot}{rest}"


def our_name(name: str) -> str:
    """Return our name of a released tensor; one that has none stays as it is.

    >>> our_name("modality_heads.imu.3.weight")
    'towers.imu.head.weight'
    """
    part, _, rest = name.partition(".")
    modality, _, rest = rest.partition(".")
    for held in PLACES:
        its_part, there = place(modality, held)
        if part == its_part and f"{rest}.".startswith(f"{there}."):
            return f"towers.{modality}.{held}{rest[len(there) :]}"
    return name


def is_released(name: str) -> bool:
    """Whether this is a released tensor's name."""
    return name == CAUSAL_MASK or our_name(name) != name


def from_released(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a released state dict; unknown names stay as they are."""
    renamed = {our_name(name): tensor for name, tensor in state_dict.items() if name != CAUSAL_MASK}
    return in_our_shapes(renamed)


def in_our_shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give tensors that have our names, and released shapes, our shapes too."""
    stem = state_dict.get(IMU_STEM)
    if torch.is_tensor(stem) and stem.ndim == 2 and not stem.shape[1] % IMU_CHANNELS:
        # A matrix product with windows of all channels, (D, 6 x 8), is the convolution (D, 6, 8).
        return {**state_dict, IMU_STEM: stem.unflatten(1, (IMU_CHANNELS, -1))}
    return state_dict


def to_released(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give a state dict the names and shapes of the released one, with the constant that is stored there."""
    renamed = {released_name(name): tensor for name, tensor in state_dict.items()}
    if IMU_STEM in state_dict:
        renamed[released_name(IMU_STEM)] = state_dict[IMU_STEM].flatten(1)
    if TEXT_POSITIONS in state_dict:
        renamed[CAUSAL_MASK] = causal_mask(state_dict[TEXT_POSITIONS].detach())
    return renamed


def causal_mask(like: torch.Tensor) -> torch.Tensor:
    """Return what is added to attention so that no token sees a later one, (N, N).

    Args:
        like: (B, N, D), of the same number of tokens, type and device.
    """
    n_tokens = like.shape[1]
    return like.new_full((n_tokens, n_tokens), -torch.inf).triu(1)
