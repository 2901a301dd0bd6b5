"""What is known of the files of a run: embeddings, tied to files, and why others are missing."""

from __future__ import annotations

import logging
import os
from functools import partial

import numpy as np

from imagebind.data.features import Feature
from imagebind.data.sequences import PART_SIZE
from imagebind.evaluation.embed.batches import EqualFiles
from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES, Failure, Inputs, Wanted
from imagebind.evaluation.embed.progress import Progress
from imagebind.evaluation.embed.run_cache import RunCache
from imagebind.evaluation.embed.store import BlobStore, EmbeddingStore, SequenceStore
from imagebind.reading.loader import LoadedFeature, LoadedFile, Missing
from imagebind.sources import Source

NOT_FINITE = Missing("its embedding is not finite", "skipped")

log = logging.getLogger(__name__)


class Keeper:
    """Keeps what is embedded, for this run and in the cache, and reports files that are skipped.

    Args:
        wanted: what is embedded of the files of each modality; the first leads: a file must have it.
        n_files: modality -> how many files may come.
        directory: for the file behind the embeddings; None keeps them in memory.
        cache: of the run.

    Attributes:
        stores: feature -> embeddings.
        missing: as in EmbeddedFiles.
        progress: of the files that are being embedded.
    """

    def __init__(
        self, wanted: Wanted, n_files: dict[str, int], directory: str | os.PathLike | None, cache: RunCache
    ):
        self.wanted, self.cache = wanted, cache
        self.stores: dict[str, EmbeddingStore | SequenceStore] = {
            feature.name: open_store(feature, n, directory)
            for modality, n in n_files.items()
            for feature in wanted[modality]
        }
        self.thumbnails = {modality: BlobStore(directory) for modality in MEDIA_MODALITIES}
        self.missing: dict[tuple[str, Source | str], Missing] = {}
        self.truncated_texts: set[str] = set()
        self.progress = Progress({})

    def find(self, feature: Feature, file: LoadedFile) -> np.ndarray | None:
        """Return the embedding (E,) of a file that is known already: of an equal file, or from the cache."""
        from_cache = file.features[feature.name].embedding
        return self.stores[feature.name].find(file.content_hash) if from_cache is None else from_cache

    def keep(self, feature: str, file: LoadedFile, embedding: np.ndarray) -> None:
        """Keep an embedding (E,) of a file for this run."""
        flags = file.features[feature].flags
        self.stores[feature].add(file.source, embedding, file.content_hash, flags)
        if self._is_leading(feature, file.modality):
            self.progress.update(file.modality, skipped=False, cached=file.is_cached)

    def keep_batch(self, files: EqualFiles, embeddings: np.ndarray) -> None:
        """Keep embeddings (B, E) that were computed, also for features that have an equal input.

        One that is not finite is missing.
        """
        rows = dict(zip(files, embeddings, strict=True))
        features = (name for equal in files.values() for file in equal for name in file.features)
        for name in dict.fromkeys(features):
            of_feature = {h: [file for file in equal if name in file.features] for h, equal in files.items()}
            self._keep_rows(name, {h: equal for h, equal in of_feature.items() if equal}, rows)

    def _keep_rows(self, feature: str, files: EqualFiles, rows: dict[str, np.ndarray]) -> None:
        finite = {content_hash: rows[content_hash] for content_hash in files}
        finite = {content_hash: row for content_hash, row in finite.items() if np.isfinite(row).all()}
        pictures = [
            (content_hash, first.modality, first.thumbnail)
            for content_hash, (first, *_) in files.items()
            if content_hash in finite and first.thumbnail
        ]
        flags = {content_hash: files[content_hash][0].features[feature].flags for content_hash in finite}
        flags = {content_hash: known for content_hash, known in flags.items() if known is not None}
        self.cache.keep(feature, finite.items(), pictures, flags)
        for content_hash, equal_files in files.items():
            for file in equal_files:
                if content_hash in finite:
                    self.keep(feature, file, finite[content_hash])
                else:
                    self.miss(feature, file, NOT_FINITE)

    def keep_sequence(self, feature: str, file: LoadedFile, loaded: LoadedFeature | Missing) -> None:
        """Keep a sequence of which all parts have come, or forget what is there of it."""
        store = self.stores[feature]
        if isinstance(loaded, LoadedFeature):
            loaded = self._check_sequence(store, file.source, loaded)
        if isinstance(loaded, Missing):
            store.abandon(file.source)
            self.miss(feature, file, loaded)
            return
        store.commit(file.source, file.content_hash, loaded.facts)
        if not loaded.is_cached:
            parts = partial(store.parts, file.source)
            self.cache.keep_sequence(feature, file.content_hash, loaded.facts, parts)

    def _check_sequence(
        self, store: SequenceStore, source: Source, loaded: LoadedFeature
    ) -> LoadedFeature | Missing:
        if not loaded.facts.n_rows:
            store.abandon(source)  # of an earlier attempt
        if store.n_growing(source) != loaded.facts.n_rows:
            return Missing("not all of it was read", "skipped")
        return loaded if store.is_finite(source) else Missing("an embedding of it is not finite", "skipped")

    def miss(self, feature: str, file: LoadedFile, missing: Missing) -> None:
        """Note that a feature of a file cannot be had; without the leading one the file is skipped."""
        self.missing[feature, file.source] = missing
        if missing.kind == "dropped" and not missing.is_cached:
            self.cache.keep_reason(feature, file.content_hash, missing.reason)
        if self._is_leading(feature, file.modality):
            report_skipped(file.modality, file.source, missing.reason)
            self.progress.update(file.modality, skipped=True, cached=False)

    def drop_changed(self) -> None:
        """Skip files that were read for their sound and for their picture, and were not the same then."""
        audio, video = (
            dict(found for feature in self.wanted[m] for found in self.stores[feature.name].hashes())
            for m in MEDIA_MODALITIES
        )
        for source in [s for s in audio if s in video and audio[s] != video[s]]:
            for modality in MEDIA_MODALITIES:
                reason = "it changed between reading sound and picture"
                if (self.wanted[modality][0].name, source) not in self.missing:
                    report_skipped(modality, source, reason)
                for feature in self.wanted[modality]:
                    self.stores[feature.name].discard(source)
                    self.missing.setdefault((feature.name, source), Missing(reason, "skipped"))

    def lacks(self, modality: str, source: Source | str) -> bool:
        """Tell whether something is wanted of a file that is not skipped, and neither here nor missing."""
        names = [feature.name for feature in self.wanted[modality]]
        is_skipped = (names[0], source) in self.missing
        unknown = (source not in self.stores[name] and (name, source) not in self.missing for name in names)
        return not is_skipped and any(unknown)

    def failures(self, inputs: Inputs) -> list[Failure]:
        """List the files that are skipped, in the order of `inputs`."""
        return [
            Failure(source, modality, missing.reason)
            for modality, sources in inputs.items()
            for source in sources
            if (missing := self.missing.get((self.wanted[modality][0].name, source))) is not None
        ]

    def _is_leading(self, feature: str, modality: str) -> bool:
        return feature == self.wanted[modality][0].name


def report_skipped(modality: str, source: Source | str, reason: str) -> None:
    """Warn of a file that is skipped."""
    what = "caption" if modality == "text" else f"{modality} file"
    log.warning("skipped %s %s: %s", what, source, reason)


def open_store(
    feature: Feature, n_files: int, directory: str | os.PathLike | None
) -> EmbeddingStore | SequenceStore:
    """Make room for a feature of n files."""
    return SequenceStore(directory, PART_SIZE) if feature.is_sequence else EmbeddingStore(n_files, directory)
