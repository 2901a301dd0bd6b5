"""Files -> embeddings, tied to files: workers read, the model embeds in batches, the keeper keeps."""

from __future__ import annotations

import heapq
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from imagebind.data.features import Feature
from imagebind.evaluation.embed.batches import Batches
from imagebind.evaluation.embed.embedded import EmbeddedFiles, Inputs, Wanted
from imagebind.evaluation.embed.given import check_model, take_given
from imagebind.evaluation.embed.keeper import Keeper
from imagebind.evaluation.embed.model import Model, check_device
from imagebind.evaluation.embed.progress import Progress, Timing
from imagebind.evaluation.embed.readers import interruptible
from imagebind.evaluation.embed.run_cache import RunCache
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.given import GivenEmbeddings
from imagebind.evaluation.options import Options
from imagebind.reading.loader import Loaded, LoadedFile, LoadedPart, Missing, Reading, load_files
from imagebind.reading.workers import Workers, WorkersError
from imagebind.sources import Source

log = logging.getLogger(__name__)


class FileEmbedder:
    """Turns files into embeddings. It begins to read them before the model is loaded.

    Args:
        options: of the run.
        model: turns inputs into embeddings.
        wanted: what is embedded of the files of each modality.
        n_files: modality -> how many files may come.
        workers: processes that read files; None reads in this one.
        directory: for the file behind the embeddings; None keeps them in memory.
        part: of the cache that this process writes to.

    Raises:
        EvaluationError: the weights cannot be had, or there is no such device.
        OptionError: the cache is no cache.
    """

    def __init__(
        self,
        options: Options,
        model: Model,
        wanted: Wanted,
        n_files: dict[str, int],
        workers: Workers | None,
        directory: str | os.PathLike | None,
        part: str = "",
    ):
        self.options, self.model, self.workers, self.timing = options, model, workers, Timing()
        self.wanted = {modality: wanted[modality] for modality in n_files}
        self.scope = ""  # whose files these are, if not all
        model.begin(n_files)
        self.cache = RunCache(options.cache_path, part, model)
        self.keeper = Keeper(self.wanted, n_files, directory, self.cache)
        self.batches = Batches(model, options.batch_size, self.timing, self.keeper.keep_batch)
        self._has_met_fault = False

    def embed(self, inputs: Inputs) -> None:
        """Embed files; one that fails is left out and costs no other.

        Raises:
            EvaluationError: a file does not fit into the device's memory, or no process can be started.
            KeyboardInterrupt: its message says what is kept.
        """
        self.keeper.progress = Progress(count_inputs(inputs), self.options.progress)
        loaded = self._read(inputs)
        try:
            while (next_one := self.timing.measure("waiting", lambda: next(loaded, None))) is not None:
                if isinstance(next_one, LoadedPart):
                    self._take_part(next_one)
                else:
                    self._take_file(next_one)
            self.batches.flush()
            self.model.check_unchanged()
            self.cache.flush()
        except (MemoryError, WorkersError) as e:
            raise EvaluationError(str(e) or "out of memory") from e
        finally:
            self.keeper.progress.close()

    def _read(self, inputs: Inputs) -> Iterator[Loaded]:
        """Begin to read files, of all modalities in turn, and return what comes of them."""
        files = [(modality, source, self.wanted[modality]) for modality, source in interleaved(inputs)]
        ahead, on_gpu = 2 * self.options.batch_size, self.model.device.type == "cuda"
        if on_gpu:
            check_device(self.model.device)  # memory that is pinned first would open the first card
        reading = Reading(self.cache.opened, self.model.precision == "fp16", self.options.has_page)
        return load_files(files, self.workers, reading, ahead, on_gpu)

    def _take_part(self, part: LoadedPart) -> None:
        """Keep a part of a sequence, embedded if it is not from the cache."""
        if part.is_empty:
            return
        rows = part.rows
        if rows is None:
            rows = self.batches.result(self.batches.launch(part.modality, part.input.split()))
        self.keeper.stores[part.feature].add_part(part.source, part.number, rows)

    def _take_file(self, file: LoadedFile) -> None:
        """Keep what is known of a file; what is not waits for the model."""
        self.timing.seconds["reading"] += file.seconds
        self._report(file)
        if file.is_truncated:
            self.keeper.truncated_texts.add(file.source)
        if file.thumbnail is not None:
            self.keeper.thumbnails[file.modality].add(file.content_hash, file.thumbnail)
        for feature in self.wanted[file.modality]:
            loaded = file.features[feature.name]
            if feature.is_sequence:
                self.model.check_unchanged()  # before what was computed with its weights is kept
                self.keeper.keep_sequence(feature.name, file, loaded)
            elif isinstance(loaded, Missing):
                self.keeper.miss(feature.name, file, loaded)
            else:
                self._take_feature(feature, file)

    def _take_feature(self, feature: Feature, file: LoadedFile) -> None:
        embedding = self.keeper.find(feature, file)
        if embedding is None and file.features[feature.name].same_as is not None:
            self._take_equal(feature, file)
        elif embedding is None:
            self.cache.open()  # before anything is computed
            self.batches.add(feature.name, file)
        else:
            self.keeper.keep(feature.name, file, embedding)

    def _take_equal(self, feature: Feature, file: LoadedFile) -> None:
        """Keep the embedding of an equal input, if it is here; else it waits, and this one with it."""
        same = file.features[feature.name].same_as
        if (embedding := self.keeper.stores[same].find(file.content_hash)) is not None:
            self.keeper.keep(feature.name, file, embedding)

    def _report(self, file: LoadedFile) -> None:
        """Log what reading a file has to say."""
        for warning in file.warnings:
            log.warning("%s", warning)
        if file.fault is not None and not self._has_met_fault:
            self._has_met_fault = True
            shown = {"traceback": file.fault}
            log.error("this is an error of the program, at %s; please report it:", file.source, extra=shown)

    def result(self, inputs: Inputs) -> EmbeddedFiles:
        """Return what became of the files."""
        self.keeper.drop_changed()
        return EmbeddedFiles(
            wanted=self.wanted,
            stores=self.keeper.stores,
            missing=self.keeper.missing,
            failures=self.keeper.failures(inputs),
            truncated_texts=self.keeper.truncated_texts,
            thumbnails=self.keeper.thumbnails,
            model=self.model.facts(),
            summary=self.summary(),
        )

    def summary(self) -> str:
        """Say how many files are embedded, and where they are kept."""
        progress = self.keeper.progress
        n_embedded = progress.total_counts["done"] - progress.total_counts["skipped"]
        done = f"{n_embedded} of {progress.total} files{self.scope} are embedded"
        if not self.cache.keeps:
            return done
        return f"{done} and kept in {self.cache.file}; the same command goes on from there"

    def report_time(self, counts: dict[str, Counter], n_processes: int = 1) -> None:
        """Log where the time went."""
        n_workers = self.workers.n_workers if self.workers else 0
        log.info("%s", self.timing.describe(counts, self.model.seconds, n_workers, n_processes))

    def close(self) -> None:
        """Close the cache, when all is written to it."""
        self.cache.close()


def embed_files(
    inputs: Inputs,
    wanted: Wanted,
    options: Options,
    workers: Workers | None,
    model: Model,
    given: Mapping[str, GivenEmbeddings],
) -> EmbeddedFiles:
    """Embed the files of a run in this process.

    Args:
        inputs: the files.
        wanted: what is embedded of the files of each modality.
        given: modality -> embeddings in place of its files.

    Raises:
        EvaluationError: the weights cannot be had or are not those of given embeddings, there is no such
            device, or as FileEmbedder.embed.
        KeyboardInterrupt: its message says what is kept.
    """
    file_embedder = FileEmbedder(options, model, wanted, count_inputs(inputs), workers, options.output_dir)
    with interruptible(file_embedder.summary), closing(file_embedder):
        if given:
            take_given(file_embedder.keeper, given, inputs, check_model(given, model))
        file_embedder.embed({m: sources for m, sources in inputs.items() if m not in given})
    file_embedder.report_time(file_embedder.keeper.progress.counts)
    embedded = file_embedder.result(inputs)
    embedded.given = {m: of.describe() for m, of in given.items()}
    return embedded


def interleaved(inputs: Inputs) -> Iterator[tuple[str, Source | str]]:
    """List (modality, source) of all files so that each stretch of the list has its share of every modality.

    What is done then tells how long the rest takes.

    >>> list(interleaved({"audio": ["a", "b"], "video": ["v"]}))
    [('audio', 'a'), ('video', 'v'), ('audio', 'b')]
    """

    def ranked(order: int, modality: str, sources: Sequence[Any]) -> Iterator[tuple[float, int, str, Any]]:
        return (((i + 0.5) / len(sources), order, modality, source) for i, source in enumerate(sources))

    of_modalities = (ranked(order, *item) for order, item in enumerate(inputs.items()))
    return ((modality, source) for _, _, modality, source in heapq.merge(*of_modalities))


def count_inputs(inputs: Inputs) -> dict[str, int]:
    """Count the files of each modality."""
    return {modality: len(sources) for modality, sources in inputs.items()}
