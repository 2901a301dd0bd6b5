"""State dicts as training code saves them: in other things, under prefixes, with LoRA beside the weights.

What is wrong with one is a ValueError, whose message is a line that goes on after the name of the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from imagebind.models import released
from imagebind.names import shorten

# Under which a training checkpoint has the weights, beside an optimizer's state, an epoch and the like
WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
MAX_DEPTH = 2  # of wrappers in each other
# Of DataParallel and its like, of a model that is an attribute of another, and of torch.compile
PREFIXES = re.compile(r"^(?:(?:module|model|_orig_mod)\.)+")
COMPILED = "._orig_mod."  # around a submodule
# peft's names, and those of ImageBind-LoRA: in files of their own, and in a patched model
LORA = re.compile(r"(?:^|[._])lora_|\.base_layer\.|(?:^|\.)w_[ab](?:_\d+|\.weight)$")
MAX_NAMED = 3
MAX_LENGTH = 200  # of a shown name


def unwrap(content: Mapping[Any, Any], depth: int = MAX_DEPTH) -> Mapping[Any, Any]:
    """Return the state dict in what a training run saved; a bare one is returned as it is.

    Raises:
        ValueError: there are several.
    """
    held = [key for key in WRAPPERS if _holds_tensors(content.get(key), depth)]
    if len(held) > 1:
        raise ValueError(f"has weights under {held[0]!r} and {held[1]!r}; save those that are meant alone")
    return unwrap(content[held[0]], depth - 1) if held else content


def _holds_tensors(value: Any, depth: int) -> bool:
    if not (isinstance(value, Mapping) and depth):
        return False
    return any(map(torch.is_tensor, value.values())) or any(
        _holds_tensors(value.get(key), depth - 1) for key in WRAPPERS
    )


def refuse_lora(names: Iterable[str]) -> None:
    """Raise a ValueError if some of the names are those of LoRA that is not merged into the weights."""
    of_lora = [name for name in names if LORA.search(name)]
    if of_lora:
        raise ValueError(
            f"holds LoRA that is not merged, {len(of_lora)} tensors such as {shown(of_lora[0])}; "
            "merge it into the weights (peft has merge_and_unload) and save those"
        )


def our_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names of a file's tensors by ours, without wrappers' prefixes; unknown ones stay theirs.

    Raises:
        ValueError: two of them are the same.
    """
    ours = {name: released.our_name(without_wrappers(name)) for name in names}
    for name, n_equal in Counter(ours.values()).items():
        if n_equal > 1:
            first, second, *_ = (in_file for in_file in ours if ours[in_file] == name)
            raise ValueError(f"has {shown(first)} and {shown(second)}, which are one tensor; save it once")
    return {our: name for name, our in ours.items()}


def without_wrappers(name: str) -> str:
    """Take off what wrappers of a module put into its tensors' names.

    >>> without_wrappers("module._orig_mod.modality_trunks._orig_mod.audio.blocks.0.norm_1.bias")
    'modality_trunks.audio.blocks.0.norm_1.bias'
    """
    return PREFIXES.sub("", name, count=1).replace(COMPILED, ".")


def misfit(missing: list[str], unknown: list[str]) -> str:
    """Say which names do not fit, in one line; an empty one where all do."""
    return "; ".join(
        f"{fault} {shorten(list(map(shown, names)), MAX_NAMED)}"
        for fault, names in (("lacks", missing), ("has unknown", unknown))
        if names
    )


def shown(name: str) -> str:
    """Return a name of a file's tensor, which can be anything, as it fits into a line."""
    return " ".join(str(name).split())[:MAX_LENGTH]
