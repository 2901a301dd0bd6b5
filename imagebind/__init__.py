"""ImageBind: files and texts to inputs (`data`), inputs to embeddings (`models`)."""

import importlib

__version__ = "0.2.0"

__all__ = ["ModalityType", "data", "imagebind_huge", "imagebind_model"]
MODULES = {"data": "imagebind.data", "imagebind_model": "imagebind.models.imagebind_model"}


def __getattr__(name: str):
    # Importing the model takes seconds, which --help and wrong usage need not wait for.
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    if name in __all__:
        return getattr(importlib.import_module(MODULES["imagebind_model"]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
