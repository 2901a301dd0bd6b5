"""Files -> embeddings, tied to files: workers read, the model embeds, the cache keeps."""

from __future__ import annotations

import heapq
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from imagebind import packages
from imagebind.evaluation.compare.protocols import Protocol, features_of, make_protocols
from imagebind.evaluation.embed.model import TOWERS, ModelHolder, RunModel, check_device
from imagebind.evaluation.embed.progress import Progress
from imagebind.evaluation.embed.store import BlobStore, EmbeddingStore, SequenceStore
from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.evaluation.options import Options
from imagebind.reading.cache import EmbeddingCache, NotACacheError, find_parts, part_of
from imagebind.reading.workers import CAN_LIMIT_MEMORY, Workers, WorkersError

if TYPE_CHECKING:  # torch takes seconds to import, and files are listed and paired without it
    import torch

    from imagebind.data.features import Feature
    from imagebind.models.embedder import Embedder, Launched
    from imagebind.reading.loader import Loaded, LoadedFeature, LoadedFile, LoadedPart

MEDIA_MODALITIES = ("audio", "video")
MAX_WRITES = 8  # batches that may wait to be written to the cache
PACKAGES = ("torch", "numpy", "av", "einops")  # whose versions are in the protocol, of every run
TEXT_PACKAGES = ("open_clip_torch", "ftfy", "regex")

Inputs = dict[str, Sequence[str]]  # modality -> paths, each once; of captions the texts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A file that was skipped."""

    path: str  # of a caption the text
    modality: str
    reason: str


@dataclass
class EmbeddedFiles:
    """What became of the files of a run."""

    stores: dict[str, EmbeddingStore]  # by modality: what drives the matrix and the ranks
    features: dict[str, EmbeddingStore | SequenceStore]  # by name: all that protocols ask for
    protocols: list[Protocol]
    dropped: dict[tuple[str, str], str]  # (feature, path) -> why there is none, though the file can be used
    failures: list[Failure]
    truncated_texts: set[str]
    scales: dict[str, float]  # modality -> length of one clip's embedding
    device: torch.device
    protocol: dict[str, Any]  # how embeddings are computed
    thumbnails: dict[str, BlobStore]  # by modality: content hash -> JPEG
    summary: str  # how many are embedded, and where they are kept

    def why_missing(self, feature: Feature, path: str) -> str | None:
        """Say why a file has no such feature; None if it has it."""
        if path in self.features[feature.name]:
            return None
        reason = self.dropped.get((feature.name, path))
        of_file = self.reasons.get((feature.modality, path))
        if of_file is not None and reason in (None, of_file):
            return f"{feature.modality} file: {of_file}"
        return reason or "it was skipped"

    def why_skipped(self, pair: tuple[str, str]) -> str:
        """Say why files of a pair (audio path, video path) were skipped; "" where none was."""
        found = zip(MEDIA_MODALITIES, pair, strict=True)
        return "; ".join(f"{m} file: {self.reasons[m, p]}" for m, p in found if (m, p) in self.reasons)

    @cached_property
    def reasons(self) -> dict[tuple[str, str], str]:
        """Why files were skipped, by modality and path."""
        return {(failure.modality, failure.path): failure.reason for failure in self.failures}


@contextmanager
def interruptible(summarise: Callable[[], str]) -> Iterator[None]:
    """Let a KeyboardInterrupt say what is embedded, and where it is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(summarise()) from None


class LaunchedBatch(NamedTuple):
    """Files whose embeddings are being computed."""

    feature: str
    files: dict[str, list[LoadedFile]]  # content hash -> equal files
    launched: Launched


class Writer:
    """Writes in a thread, one thing after the other, while the model goes on."""

    def __init__(self):
        self._thread, self._waiting = None, deque()

    def submit(self, write: Callable[[], None]) -> None:
        """Write soon; wait if much is to be written already."""
        self._thread = self._thread or ThreadPoolExecutor(1)
        self._waiting.append(self._thread.submit(write))
        if len(self._waiting) > MAX_WRITES:
            self._waiting.popleft().result()

    def flush(self) -> None:
        """Wait until all is written, and end the thread."""
        while self._waiting:
            self._waiting.popleft().result()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


class FileEmbedder:
    """Turns files into embeddings. It begins to read them before the model is loaded.

    Args:
        model: turns inputs into embeddings.
        batch_size: files that go through the model together.
        workers: processes that read files; None reads in this one.
        n_files: modality -> how many files may come.
        protocols: the scores for which they are embedded.
        directory: for the file behind the embeddings; None keeps them in memory.
        cache_path: of the cache of embeddings; None is none.
        part: of the cache that this process writes to.
        has_bar: whether progress is drawn.
        has_thumbnails: whether a picture of each file is kept.

    Raises:
        OptionError: the cache is no cache.
    """

    def __init__(
        self,
        model: RunModel,
        batch_size: int,
        workers: Workers | None,
        n_files: dict[str, int],
        protocols: list[Protocol],
        directory: str | os.PathLike | None = None,
        cache_path: str | os.PathLike | None = None,
        part: str = "",
        has_bar: bool = False,
        has_thumbnails: bool = False,
    ):
        self.timing, self.has_bar = Timing(), has_bar
        self.model, self.batch_size, self.workers = model, batch_size, workers
        self.cache_path, self.part, self.cache = cache_path, part, None
        self.kept_in = None if cache_path is None else part_of(Path(cache_path), part)  # for the user to know
        if cache_path is not None:
            self._prepare_cache()
        self.scope = ""  # whose files these are, if not all
        self.protocols, self.wanted = protocols, wanted_features(protocols, n_files)
        self.stores: dict[str, EmbeddingStore | SequenceStore] = {
            feature.name: open_store(feature, n, directory)
            for modality, n in n_files.items()
            for feature in self.wanted[modality]
        }
        self.has_thumbnails = has_thumbnails
        self.thumbnails = {modality: BlobStore(directory) for modality in MEDIA_MODALITIES}
        self.dropped: dict[tuple[str, str], str] = {}  # as in EmbeddedFiles
        self.failures: list[Failure] = []
        self.truncated_texts: set[str] = set()
        self.progress = Progress({})
        self._has_met_fault = False
        self._launched: LaunchedBatch | None = None
        self._writer = Writer()

    def _prepare_cache(self) -> None:
        """Open the cache if there is one; a new one can wait for the weights to be hashed."""
        main = Path(self.cache_path)
        with suppress(OSError):  # which the cache itself reports
            main.parent.mkdir(parents=True, exist_ok=True)
        is_there = find_parts(main) or main.exists() or self.kept_in.exists()  # a directory is no part
        if self.model.sha256 is not None or is_there:
            self.open_cache()

    def open_cache(self) -> None:
        """Open the cache, if any; the model is loaded if its hash, which tells what is kept, is not known.

        Raises:
            OptionError: it is no cache.
        """
        if self.cache is not None or self.cache_path is None:
            return
        if self.model.sha256 is None:
            self.model.open()
        try:
            self.cache = EmbeddingCache(self.cache_path, self.model.sha256, self.model.precision, self.part)
        except NotACacheError as e:
            raise OptionError(str(e)) from e
        self.cache.warn_of_unreadable_parts()

    def open_model(self) -> Embedder:
        """Return the model, with the cache of its embeddings open."""
        embedder = self.model.open()
        self.open_cache()
        return embedder

    def read(self, inputs: Inputs) -> Iterator[Loaded]:
        """Begin to read files, of all modalities in turn, and return what comes of them."""
        from imagebind.reading.loader import Reading, load_files

        files = [(m, path, self.wanted[m]) for m, path in interleaved(inputs)]
        ahead, on_gpu = 2 * self.batch_size, self.model.device.type == "cuda"
        if on_gpu:
            check_device(self.model.device)  # memory that is pinned first would open the first card
        reading = Reading(self.cache, self.model.precision == "fp16", self.has_thumbnails)
        return load_files(files, self.workers, reading, ahead, on_gpu)

    def embed(self, inputs: Inputs) -> None:
        """Embed files; one that fails is left out and costs no other.

        Args:
            inputs: the files.

        Raises:
            EvaluationError: a file does not fit into the device's memory, or no process can be started.
            KeyboardInterrupt: its message says what is kept.
        """
        from imagebind.reading.loader import LoadedFile

        self.progress = Progress(count_inputs(inputs), self.has_bar)
        # (modality, feature) -> content hash -> equal files with their inputs
        waiting = {(m, f.name): {} for m in inputs for f in self.wanted[m] if not f.is_sequence}
        loaded = self.read(inputs)
        try:
            while (file := self.timing.measure("waiting", lambda: next(loaded, None))) is not None:
                if not isinstance(file, LoadedFile):
                    self._take_part(file)
                    continue
                self._take(file, waiting)
                for (modality, feature), batch in waiting.items():
                    if len(batch) == self.batch_size:
                        self._embed_batch(modality, feature, batch)
            for (modality, feature), batch in waiting.items():
                self._embed_batch(modality, feature, batch)
            self._finish_batch()
            self.model.check_unchanged()
            self._writer.flush()
        except (MemoryError, WorkersError) as e:
            raise EvaluationError(str(e) or "out of memory") from e
        finally:
            self.progress.close()

    def result(self, inputs: Inputs) -> EmbeddedFiles:
        """Return what became of the files, with failures in the order of `inputs`."""
        self._drop_changed()
        order = {(m, path): i for i, (m, path) in enumerate((m, p) for m in inputs for p in inputs[m])}
        self.failures.sort(key=lambda failure: order[failure.modality, failure.path])
        scales = {m: self.model.facts.scales[m] for m in MEDIA_MODALITIES}
        return EmbeddedFiles(
            stores={modality: self.main_store(modality) for modality in self.wanted},
            features=self.stores,
            protocols=self.protocols,
            dropped=self.dropped,
            failures=self.failures,
            truncated_texts=self.truncated_texts,
            scales=scales,
            device=self.model.device,
            protocol=describe_protocol(self.model, self.wanted, self.protocols),
            thumbnails=self.thumbnails,
            summary=self.summary(),
        )

    def main_store(self, modality: str) -> EmbeddingStore:
        """Return the store of what drives the matrix and the ranks."""
        return self.stores[self.wanted[modality][0].name]

    def _drop_changed(self) -> None:
        """Skip files that were read for their sound and for their picture, and were not the same then."""
        audio, video = (
            dict(found for feature in self.wanted[m] for found in self.stores[feature.name].hashes())
            for m in MEDIA_MODALITIES
        )
        failed = {(failure.modality, failure.path) for failure in self.failures}
        for path in [path for path in audio if path in video and audio[path] != video[path]]:
            for modality in MEDIA_MODALITIES:
                for feature in self.wanted[modality]:
                    self.stores[feature.name].discard(path)
                if (modality, path) not in failed:
                    reason = "it changed between reading sound and picture"
                    self._report_failure(Failure(path, modality, reason))

    def summary(self) -> str:
        """Say how many files are embedded, and where they are kept."""
        counts = self.progress.total_counts
        n_embedded = counts["done"] - counts["skipped"]
        done = f"{n_embedded} of {self.progress.total} files{self.scope} are embedded"
        if self.kept_in is None or self.cache is None or not self.cache.is_writable:
            return done
        return f"{done} and kept in {self.kept_in}; the same command goes on from there"

    def report_time(self, counts: dict[str, Counter], n_processes: int = 1) -> None:
        """Log where the time went."""
        n_workers = self.workers.n_workers if self.workers else 0
        log.info("%s", self.timing.describe(counts, self.model.seconds, n_workers, n_processes))

    def close(self) -> None:
        """Close the cache, when all is written to it."""
        self._writer.flush()
        if self.cache is not None:
            self.cache.close()

    def lacks(self, modality: str, path: str) -> bool:
        """Tell whether something that is wanted of a file is neither here nor known not to be had."""
        return any(
            path not in self.stores[feature.name] and (feature.name, path) not in self.dropped
            for feature in self.wanted[modality]
        )

    def _take_part(self, part: LoadedPart) -> None:
        """Store a part of a sequence, embedded if it is not from the cache."""
        if part.is_empty:
            return
        rows = part.rows
        if rows is None:
            launched = self._launch(part.modality, part.input.split())
            rows = self.timing.measure("model", lambda: launched.result().numpy())
        self.stores[part.feature].add_part(part.path, part.number, rows)

    def _take(self, file: LoadedFile, waiting: dict[tuple[str, str], dict[str, list]]) -> None:
        """Store what is known of a file; what is not waits for the model. Skip a file that failed."""
        self.timing.seconds["reading"] += file.seconds
        for warning in file.warnings:
            log.warning("%s", warning)
        if file.fault is not None and not self._has_met_fault:
            self._has_met_fault = True
            shown = {"traceback": file.fault}
            log.error("this is an error of the program, at %s; please report it:", file.path, extra=shown)
        if file.is_truncated:
            self.truncated_texts.add(file.path)
        if file.thumbnail is not None:
            self.thumbnails[file.modality].add(file.content_hash, file.thumbnail)
        for feature in self.wanted[file.modality]:
            loaded = file.features.get(feature.name)
            if feature.is_sequence:
                self._close_sequence(feature.name, file, loaded)
            if loaded is None or loaded.reason is not None:
                self._remember_dropped(feature.name, file, loaded)
                self._miss(feature.name, file, file.reason or (loaded.reason if loaded else file.lost_reason))
            elif not feature.is_sequence:
                self._take_feature(feature.name, file, loaded, waiting[file.modality, feature.name])

    def _remember_dropped(self, name: str, file: LoadedFile, loaded: LoadedFeature | None) -> None:
        """Keep why a file has no such feature, so that it is not read again for that."""
        from imagebind.reading.loader import dropped_name

        if loaded is not None and loaded.is_dropped and not loaded.is_cached and self.cache_path is not None:
            self.open_cache()
            self.cache.put_facts(file.content_hash, dropped_name(name), {"reason": loaded.reason})

    def _take_feature(
        self, name: str, file: LoadedFile, loaded: LoadedFeature, waiting: dict[str, list[LoadedFile]]
    ) -> None:
        """Store an embedding that is known, or let the file wait for the model."""
        known = self.stores[name].find(file.content_hash)
        embedding = known if loaded.embedding is None else loaded.embedding
        if embedding is not None:
            self._store(name, file, embedding)
            return
        self.open_model()  # now, while more files are read
        launched = self._launched.files if self._launched and self._launched.feature == name else {}
        equal_files = launched.get(file.content_hash) or waiting.setdefault(file.content_hash, [])
        loaded = replace(loaded, input=None) if equal_files else loaded  # one input is enough
        equal_files.append(replace(file, features={name: loaded}))

    def _close_sequence(self, name: str, file: LoadedFile, loaded: LoadedFeature | None) -> None:
        """Keep a sequence of which all parts have come, or forget what is there of it."""
        store = self.stores[name]
        if loaded is None or loaded.facts is None:
            store.abandon(file.path)
            return
        self.model.check_unchanged()  # before what was computed with its weights is kept
        if not loaded.facts.n_rows:
            store.abandon(file.path)
        if store.n_growing(file.path) != loaded.facts.n_rows:
            store.abandon(file.path)
            self._miss(name, file, "not all of it was read")
            return
        if not store.is_finite(file.path):
            store.abandon(file.path)
            self._miss(name, file, "an embedding of it is not finite")
            return
        store.commit(file.path, file.content_hash, loaded.facts)
        if self.cache_path is not None and not loaded.is_cached:
            self.open_cache()
            self._writer.flush()
            facts, path = asdict(loaded.facts), file.path
            self.cache.put_sequence(file.content_hash, name, facts, lambda: store.parts(path))

    def _embed_batch(self, modality: str, feature: str, waiting: dict[str, list[LoadedFile]]) -> None:
        """Embed the waiting files; files of the same content get the same embedding."""
        if not waiting:
            return
        inputs = [equal_files[0].features[feature].input for equal_files in waiting.values()]
        launched = self._launch(modality, inputs)
        self._finish_batch()  # the one before it
        self._launched = LaunchedBatch(feature, dict(waiting), launched)
        waiting.clear()
        if not launched.is_running:
            self._finish_batch()

    def _finish_batch(self) -> None:
        """Store what was launched last, and let it be kept in the cache."""
        if self._launched is None:
            return
        feature, batch, launched = self._launched
        embeddings = self.timing.measure("model", lambda: launched.result().numpy())
        finite = {key: e for key, e in zip(batch, embeddings, strict=True) if np.isfinite(e).all()}
        self.model.check_unchanged()
        if self.cache is not None:
            pictures = [
                (key, f.modality, f.thumbnail)
                for key, (f, *_) in batch.items()
                if key in finite and f.thumbnail
            ]
            self._writer.submit(lambda: self.cache.put(feature, finite.items(), pictures))
        self._launched = None
        for key, equal_files in batch.items():
            for file in equal_files:
                if key in finite:
                    self._store(feature, file, finite[key])
                else:
                    self._miss(feature, file, "its embedding is not finite")

    def _launch(self, modality: str, inputs: Sequence[Any]) -> Launched:
        """Begin to embed a batch of inputs."""
        embedder = self.open_model()
        self.model.check_unchanged()  # before pages of its weights are used that may be gone
        return self.timing.measure("model", lambda: embedder.launch(TOWERS[modality], inputs))

    def _store(self, feature: str, file: LoadedFile, embedding: np.ndarray) -> None:
        self.stores[feature].add(file.path, embedding, file.content_hash)
        if self._is_main(feature, file):
            self.progress.update(file.modality, skipped=False, cached=file.is_cached)

    def _miss(self, feature: str, file: LoadedFile, reason: str) -> None:
        """Skip a file, or note that one of the further features of it cannot be had."""
        if not self._is_main(feature, file):
            self.dropped[feature, file.path] = reason
            return
        self._report_failure(Failure(file.path, file.modality, reason))
        self.progress.update(file.modality, skipped=True, cached=False)

    def _is_main(self, feature: str, file: LoadedFile) -> bool:
        return feature == self.wanted[file.modality][0].name

    def _report_failure(self, failure: Failure) -> None:
        what = "caption" if failure.modality == "text" else f"{failure.modality} file"
        log.warning("skipped %s %s: %s", what, failure.path, failure.reason)
        self.failures.append(failure)


def wanted_features(
    protocols: Sequence[Protocol], modalities: Iterable[str]
) -> dict[str, tuple[Feature, ...]]:
    """List what is embedded of the files of each modality; the first drives the matrix and the ranks."""
    from imagebind.data.features import TEXT

    wanted = features_of(protocols) | {"text": (TEXT,)}
    return {modality: wanted[modality] for modality in modalities}


def open_store(
    feature: Feature, n_files: int, directory: str | os.PathLike | None
) -> EmbeddingStore | SequenceStore:
    """Make room for a feature of n files."""
    from imagebind.data.sequences import PART_SIZE

    return SequenceStore(directory, PART_SIZE) if feature.is_sequence else EmbeddingStore(n_files, directory)


class Timing:
    """Where the time of a run goes."""

    def __init__(self):
        self.start = time.perf_counter()
        self.seconds = Counter()  # reading (in the workers), waiting for them, model

    def measure(self, what: str, work: Callable[[], Any]) -> Any:
        """Do some work and add its time."""
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[what] += time.perf_counter() - start

    def describe(
        self, counts: dict[str, Counter], loading: float, n_workers: int, n_processes: int = 1
    ) -> str:
        """Say where the time went; of several processes, that of this one.

        Args:
            counts: modality -> files that are done and cached, of all processes.
            loading: seconds that loading the model took; 0 if it was not needed.
        """
        n_texts = counts["text"]["done"] if "text" in counts else 0
        n_files = sum(count["done"] for count in counts.values()) - n_texts
        n_cached = sum(count["cached"] for count in counts.values())
        took = time.perf_counter() - self.start
        line = f"{n_files} files" + (f" and {n_texts} captions" if n_texts else "") + f" in {took:.1f} s"
        line += f" by {n_processes} processes" if n_processes > 1 else ""
        line += f", {n_cached} from the cache: " + ("in the first one " if n_processes > 1 else "")
        if loading:
            line += f"loading the model took {loading:.1f} s, computing {self.seconds['model']:.1f} s, "
        if not n_workers:
            return line + f"reading files {self.seconds['reading']:.1f} s"
        plural = "s" if n_workers > 1 else ""
        line += f"waiting for files {self.seconds['waiting']:.1f} s; "
        return line + f"{n_workers} worker{plural} read for {self.seconds['reading']:.1f} s in all"


def embed_files(
    inputs: Inputs, options: Options, workers: Workers | None, holder: ModelHolder
) -> EmbeddedFiles:
    """Embed the files of a run in this process.

    Args:
        inputs: the files.
        holder: of the model.

    Raises:
        EvaluationError: the weights cannot be had, there is no such device, or as FileEmbedder.embed.
        KeyboardInterrupt: its message says what is kept.
    """
    file_embedder = open_file_embedder(options, count_inputs(inputs), workers, options.output_dir, holder)
    with interruptible(file_embedder.summary), closing(file_embedder):
        file_embedder.embed(inputs)
    file_embedder.report_time(file_embedder.progress.counts)
    return file_embedder.result(inputs)


def interleaved(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """List (modality, path) of all files so that each stretch of the list has its share of every modality.

    What is done then tells how long the rest takes.

    >>> list(interleaved({"audio": ["a", "b"], "video": ["v"]}))
    [('audio', 'a'), ('video', 'v'), ('audio', 'b')]
    """

    def ranked(order: int, modality: str, paths: Sequence[str]) -> Iterator[tuple[float, int, str, str]]:
        return (((i + 0.5) / len(paths), order, modality, path) for i, path in enumerate(paths))

    of_modalities = (ranked(order, *item) for order, item in enumerate(inputs.items()))
    return ((modality, path) for _, _, modality, path in heapq.merge(*of_modalities))


def count_inputs(inputs: Inputs) -> dict[str, int]:
    """Count the files of each modality."""
    return {modality: len(paths) for modality, paths in inputs.items()}


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_workers(
    options: Options, n_processes: int = 1, work: str = "imagebind.reading.loader:read_file"
) -> AbstractContextManager[Workers | None]:
    """Start the processes that read files; None reads them in this one.

    Args:
        n_processes: processes of this job on this host, which share its cores.
        work: as in Workers.
    """
    n_workers = options.num_workers
    if n_workers is None:
        n_workers = max(1, count_cores() // n_processes)
    if n_workers == 0:
        return nullcontext()
    memory_bytes = round(options.worker_memory_gb * 1e9)
    if not CAN_LIMIT_MEMORY:
        log.info("readers run without a limit on memory: this system has none")
    return Workers(work, n_workers, options.timeout, memory_bytes)


def open_file_embedder(
    options: Options,
    n_files: dict[str, int],
    workers: Workers | None,
    directory: str | os.PathLike | None,
    holder: ModelHolder,
    part: str = "",
) -> FileEmbedder:
    """Prepare to embed the files of a run; the model is opened when it is needed.

    Args:
        n_files, directory: as in FileEmbedder.
        part: of the cache that this process writes to.

    Raises:
        EvaluationError: the weights cannot be had, or there is no such device.
        OptionError: the cache is no cache.
        PackageError: torch or PyAV does not load.
    """
    for module in ("torch", "av", "einops"):
        packages.load(module)
    return FileEmbedder(
        RunModel(holder, n_files),
        options.batch_size,
        workers,
        n_files,
        make_protocols(options.protocols, options.protocol_seconds),
        directory,
        options.cache_path,
        part,
        has_bar=options.progress,
        has_thumbnails=options.has_page,
    )


def describe_protocol(
    model: RunModel, modalities: Iterable[str], protocols: Sequence[Protocol]
) -> dict[str, Any]:
    """Describe how embeddings are computed: what a reader needs to get the same figures again."""
    import torch

    from imagebind import data

    device, used = model.device, [*PACKAGES]
    for protocol in protocols:
        used += [name for name in protocol.packages if name not in used]
    used += TEXT_PACKAGES if "text" in modalities else ()
    card = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "checkpoint": {"file": model.path.name, "sha256": model.sha256, "note": model.facts.note},
        "protocols": {protocol.name: protocol.describe() for protocol in protocols},
        "precision": model.precision,
        "device": f"{device}{card}",
        "audio": {
            "clips": data.AUDIO_CLIPS,
            "clip_seconds": data.CLIP_SECONDS,
            "sample_rate": data.SAMPLE_RATE,
            "mel_bins": data.MEL_BINS,
            "mel_frames": data.MEL_FRAMES,
            "channel": "first",
        },
        "video": protocols[0].describe(),
        **({"text": {"tokens": data.TEXT_TOKENS, "tokenizer": "CLIP"}} if "text" in modalities else {}),
        "file_embedding": "mean over clips of unit rows times the scale of the tower",
        "similarity": "cosine",
        "rank": "1 + better mismatches + equal ones / 2",
        "versions": packages.versions_of(used),
    }
