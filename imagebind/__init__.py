"""ImageBind's vision and audio towers: files to inputs (`data`), inputs to embeddings (`models`)."""

from imagebind.models.imagebind_model import ModalityType, imagebind_huge

__all__ = ["ModalityType", "imagebind_huge"]
