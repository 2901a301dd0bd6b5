"""The parts of the towers as the released model has them, for code that reads or patches them.

A view holds a tower's own modules and parameters under the released names (released.py). Nothing is copied:
what is changed in them, or assigned to one of these names, is changed in the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from imagebind.models import released
from imagebind.models.sizes import ModalityType

# Part -> the method of a tower that computes it
METHODS = {
    released.PREPROCESSORS: "preprocess",
    released.TRUNKS: "trunk",
    released.HEADS: "project",
    released.POSTPROCESSORS: "rescale",
}


class Held(dict):
    """Tensors or modules of a view by name: what takes the place of another does so in the tower too."""

    def __init__(self, places: dict[str, tuple[nn.Module, str]], held: Iterable[Any] = ()):
        super().__init__(held)
        self._places = places

    def __reduce__(self) -> tuple[Any, ...]:  # pickle would assign, also to a tower that is half made
        return type(self), (self._places, dict(self))

    def __setitem__(self, name: str, value: torch.Tensor | nn.Module | None) -> None:
        super().__setitem__(name, value)
        if name in self._places:
            tower, its_name = self._places[name]
            setattr(tower, its_name, value)


class PartView(nn.Module):
    """One part of a tower, or a group of names in one.

    Args:
        compute: what a call of it computes, if that can be done alone.
    """

    def __init__(self, compute: Callable[..., torch.Tensor] | None = None):
        super().__init__()
        vars(self)["_compute"] = compute
        vars(self)["_places"] = {}  # name -> tower, and name there
        vars(self).update({kind: Held(self._places) for kind in ("_parameters", "_buffers", "_modules")})

    def hold(self, path: str, tower: nn.Module, name: str) -> None:
        """Show what a tower has under a name at a path of names."""
        first, _, rest = path.partition(".")
        if rest:
            if first not in self._modules:
                self.add_module(first, PartView())
            self._modules[first].hold(rest, tower, name)
            return
        held = getattr(tower, name)
        if held is None:
            return
        if isinstance(held, nn.Module):
            self.add_module(first, held)
        elif isinstance(held, nn.Parameter):
            self.register_parameter(first, held)
        else:
            self.register_buffer(first, held)
        self._places[first] = tower, name

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._compute is None:
            raise NotImplementedError("this part is not computed alone; call the model")
        return self._compute(*args, **kwargs)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int) -> nn.Module:
        return getattr(self, self._name_of(index))

    def __setitem__(self, index: int, module: nn.Module) -> None:
        setattr(self, self._name_of(index), module)

    def _name_of(self, index: int) -> str:
        """Name the module at an index, as in the released model; from the end that of the last ones."""
        return list(self._modules)[index] if index < 0 else str(index)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("training", *self._places, *self._buffers):
            raise AttributeError(f"{name}: a view has only what the tower has; patch the modules in it")
        super().__setattr__(name, value)

    def _refuse_hook(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the model does not call its views; hook a module in it, such as a block")

    register_forward_hook = register_forward_pre_hook = _refuse_hook
    register_full_backward_hook = register_full_backward_pre_hook = _refuse_hook


class PartsView(nn.ModuleDict):
    """One part of each tower, by modality.

    Args:
        towers: of a model.
        part: of released.PARTS.
    """

    def __init__(self, towers: nn.ModuleDict, part: str):
        super().__init__()
        vars(self).update(_towers=towers, _part=part)
        for modality, tower in towers.items():
            is_wrapped = part == released.TRUNKS and tower.trunk_wrapper is not None
            self.add_module(modality, tower.trunk_wrapper if is_wrapped else view_part(tower, modality, part))

    def __setitem__(self, modality: str, module: nn.Module) -> None:
        """Have a trunk called through a wrapper, as patch code returns one whose blocks it has changed.

        Raises:
            ValueError: it is of another part, or has weights that the tower has not.
        """
        if module is self._modules.get(modality):
            return
        if self._part != released.TRUNKS or modality not in self._towers:
            raise ValueError(f"{self._part}[{modality!r}] cannot be replaced; patch the modules in it")
        tower = self._towers[modality]
        known = {id(weight) for weight in (*tower.parameters(), *tower.buffers())}
        if not known.issuperset(map(id, (*module.parameters(), *module.buffers()))):
            raise ValueError(
                f"{self._part}[{modality!r}] has weights that the tower has not; patch its blocks"
            )
        vars(tower)["trunk_wrapper"] = module
        self.add_module(modality, module)

    def __delitem__(self, modality: str) -> None:
        """Free a tower, all parts of it; deleting another part of one that is gone is no error.

        Raises:
            KeyError: no modality has this name.
        """
        if modality not in vars(ModalityType).values():
            raise KeyError(modality)
        self._towers._modules.pop(modality, None)
        self._modules.pop(modality, None)

    def pop(self, modality: str) -> nn.Module:
        """Return a part of a tower, and free the tower."""
        part = self[modality]
        del self[modality]
        return part

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._modules:
            self[name] = value
        else:
            super().__setattr__(name, value)


def view_part(tower: nn.Module, modality: str, part: str) -> PartView:
    """Make the view of one part of a tower."""
    view = PartView(getattr(tower, METHODS[part]) if part in METHODS else None)
    for name in released.PLACES:
        its_part, path = released.place(modality, name)
        if its_part == part:
            view.hold(path, tower, name)
    if part == released.PREPROCESSORS and tower.config.is_text:  # a tensor there, which no tower holds here
        view.register_buffer("mask", released.causal_mask(tower.pos_embed.detach()))
    return view
