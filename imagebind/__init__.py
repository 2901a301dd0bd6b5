"""ImageBind: files and texts to inputs (`data`), inputs to embeddings (`models`)."""

__all__ = ["ModalityType", "imagebind_huge"]


def __getattr__(name: str):
    # Importing the model takes seconds, which --help and wrong usage need not wait for.
    if name in __all__:
        from imagebind.models import imagebind_model

        return getattr(imagebind_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
