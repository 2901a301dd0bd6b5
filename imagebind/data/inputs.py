"""What a file becomes before the model sees it: the base class of AudioInput, VideoInput and TextInput."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch


class ModelInput:
    """A dataclass of tensors that is pickled as plain bytes.

    By default torch moves tensors between processes through shared memory; where /dev/shm is full, a worker
    loses the file without an error.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {k: v.numpy() if torch.is_tensor(v) else v for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(
            {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}
        )

    def half(self) -> ModelInput:
        """Return a copy in float16, where a model in that precision computes the same with it."""
        return self

    def equals(self, other: ModelInput) -> bool:
        """Whether the model sees the same of another input; what is flagged may differ."""

        def are_equal(name: str) -> bool:
            ours, theirs = vars(self)[name], vars(other)[name]
            return torch.equal(ours, theirs) if torch.is_tensor(ours) else ours == theirs

        names = [field.name for field in fields(self) if field.name != "flags"]
        return type(self) is type(other) and all(map(are_equal, names))

    def pin_memory(self) -> ModelInput:
        """Return a copy in page-locked memory, which is copied to a GPU asynchronously."""
        tensors = {name: value.pin_memory() for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **tensors)


class DroppedError(ValueError):
    """A file that a recipe cannot be applied to, though others can; the message says why."""
