"""What became of the files of a run: their embeddings, and what is missing and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from imagebind.evaluation.embed.store import BlobStore, EmbeddingStore, SequenceStore
from imagebind.sources import Source

if TYPE_CHECKING:  # torch takes seconds to import, and outputs are listed without it
    import torch

    from imagebind.data.features import Feature
    from imagebind.reading.loader import Missing

MEDIA_MODALITIES = ("audio", "video")
Inputs = dict[str, Sequence[Source | str]]  # modality -> sources, each once; of captions the texts
# Modality -> what is embedded; the first leads: it gives the matrix and the ranks.
Wanted = dict[str, tuple["Feature", ...]]


@dataclass(frozen=True)
class Failure:
    """A file that was skipped."""

    source: Source | str  # of a caption the text
    modality: str
    reason: str


@dataclass(frozen=True)
class ModelFacts:
    """Which model made the embeddings, and how."""

    file: str | None  # name of the checkpoint; None, as further ones: embeddings are given that do not say
    sha256: str | None  # of the weights
    note: str
    precision: str | None
    device: torch.device
    scales: dict[str, float]  # modality -> length of one clip's embedding


@dataclass
class EmbeddedFiles:
    """What became of the files of a run."""

    wanted: Wanted
    stores: dict[str, EmbeddingStore | SequenceStore]  # by feature
    missing: dict[tuple[str, Source | str], Missing]  # (feature, source) -> why there is none
    failures: list[Failure]  # files without the leading feature, in the order of the inputs
    truncated_texts: set[str]
    thumbnails: dict[str, BlobStore]  # by modality: content hash -> JPEG
    model: ModelFacts
    summary: str  # how many are embedded, and where they are kept
    given: dict[str, dict[str, Any]] = field(default_factory=dict)  # modality -> where embeddings are from

    @cached_property
    def leading(self) -> dict[str, EmbeddingStore]:
        """By modality: what drives the matrix and the ranks."""
        return {modality: self.stores[features[0].name] for modality, features in self.wanted.items()}

    def why_missing(self, feature: Feature, source: Source) -> str | None:
        """Say why a file has no such feature; None if it has it."""
        if source in self.stores[feature.name]:
            return None
        missing = self.missing.get((feature.name, source))
        of_file = self.missing.get((self.wanted[feature.modality][0].name, source))
        if of_file is not None and (missing is None or missing.reason == of_file.reason):
            return f"{feature.modality} file: {of_file.reason}"
        return "it was skipped" if missing is None else missing.reason

    def why_skipped(self, pair: tuple[Source, Source]) -> str:
        """Say why the sound or the video of a pair was skipped; "" where neither was."""
        of_pair = [
            (modality, self.missing.get((self.wanted[modality][0].name, source)))
            for modality, source in zip(MEDIA_MODALITIES, pair, strict=True)
        ]
        return "; ".join(f"{modality} file: {missing.reason}" for modality, missing in of_pair if missing)

    def has_fault(self, pair: tuple[Source, Source]) -> bool:
        """Whether the sound or the video of a pair could not be read, which is said of the file."""
        of_pair = (
            self.missing.get((self.wanted[modality][0].name, source))
            for modality, source in zip(MEDIA_MODALITIES, pair, strict=True)
        )
        return any(missing is not None and missing.kind != "dropped" for missing in of_pair)
