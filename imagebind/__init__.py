"""ImageBind: files and texts to inputs (`data`), inputs to embeddings (`models`)."""

__all__ = ["ModalityType", "imagebind_huge"]


def __getattr__(name: str):
    # Importing the model takes seconds of torch, which a run that finds all rows in its cache spares.
    if name in __all__:
        from imagebind.models import imagebind_model

        return getattr(imagebind_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
