"""Several processes of one job: torchrun's, or the shares of a Slurm array.

Each process embeds its share of the files into its own part of the cache. The cache is the only channel for
embeddings: when all processes are done, the first one opens all parts and evaluates alone. What torchrun's
processes tell each other beside that is small: the files of each share, then content hashes, skipped files
and warnings. A process that dies ends the job, as torchrun then ends the others; what is embedded is kept.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from imagebind.evaluation.embed.embedded import EmbeddedFiles, Inputs, Wanted
from imagebind.evaluation.embed.embedding import FileEmbedder, count_inputs
from imagebind.evaluation.embed.model import Model
from imagebind.evaluation.embed.readers import count_cores, interruptible
from imagebind.evaluation.embed.store import EmbeddingStore, Key, SequenceStore
from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.evaluation.options import MARKER_PREFIX, TEMPORARY_CACHE_NAME, Options
from imagebind.evaluation.torchrun import Job, JobError
from imagebind.packages import PackageError
from imagebind.reading.cache import EmbeddingCache
from imagebind.reading.loader import Missing, get_flags, get_sequence
from imagebind.reading.workers import Workers
from imagebind.sources import Source
from imagebind.spelling import option as spelled

log = logging.getLogger(__name__)
package_log = logging.getLogger("imagebind")


@dataclass(frozen=True)
class ShareReport:
    """What a process did with its share, for the first one."""

    content_hashes: dict[str, list[tuple[Source | str, str]]]  # feature -> files that have it, with theirs
    missing: dict[tuple[str, Source | str], Missing]  # as in EmbeddedFiles
    truncated_texts: set[str]
    counts: dict[str, Counter]  # modality -> files that are done and cached
    warnings: list[tuple[int, str]]  # logging level and message


def embed_in_job(
    job: Job, options: Options, wanted: Wanted, workers: Workers | None, inputs: Inputs | None = None
) -> EmbeddedFiles | None:
    """Embed the files of a run in all processes of a job.

    Args:
        wanted: what is embedded of the files of each modality.
        inputs: as in embed_files, in the first process; None in the others.

    Returns:
        what became of all files, in the first process; None in the others.

    Raises:
        EvaluationError: this process cannot go on; as embed_files.
        JobError: another process cannot.
        KeyboardInterrupt: its message says what is kept.
    """
    is_temporary = options.no_cache
    if is_temporary:
        options = replace(
            options, no_cache=False, cache=os.path.join(options.output_dir, TEMPORARY_CACHE_NAME)
        )
    n_threads = torch.get_num_threads()
    torch.set_num_threads(max(1, count_cores() // job.n_local))
    try:
        with forwarded_warnings() as warnings, job.connected():
            file_embedder, share = open_together(job, options, wanted, workers, inputs)
            file_embedder.cache.is_temporary = is_temporary
            file_embedder.scope = " of the first process"
            with interruptible(file_embedder.summary):
                with closing(file_embedder):  # before the others read what is kept
                    file_embedder.embed(share)
                reports = job.gather(report_share(file_embedder, warnings))
        if not job.is_first:
            return None
        with interruptible(file_embedder.summary):
            take_reports(file_embedder, options, inputs, reports)
    finally:
        torch.set_num_threads(n_threads)
    counts = {m: sum((report.counts.get(m, Counter()) for report in reports), Counter()) for m in inputs}
    file_embedder.report_time(counts, job.n_ranks)
    return file_embedder.result(inputs)


def open_together(
    job: Job, options: Options, wanted: Wanted, workers: Workers | None, inputs: Inputs | None
) -> tuple[FileEmbedder, Inputs]:
    """Open model and cache in every process, and check that all have the same ones.

    Args:
        inputs: all files, in the first process; None in the others.

    Returns:
        the file_embedder and the share of this process.

    Raises:
        JobError: one of them cannot, or they differ.
    """
    directory = Path(options.cache_path).parent
    with shared_marker(directory) if job.is_first else nullcontext() as marker:
        shares = job.is_first and [(share, marker) for share in split_inputs(inputs, job.n_ranks)]
        share, marker = job.scatter(shares)
        error, file_embedder, facts, gpu = None, None, {}, None
        try:
            if not os.path.exists(marker):
                raise EvaluationError(
                    f"{directory}: process {job.rank} on {socket.gethostname()} does not see what the first "
                    "process writes there; name a directory that all hosts share with "
                    f"{spelled('output_dir')} or {spelled('cache')}"
                )
            if str(options.device).startswith("cuda"):
                options = replace(options, device=own_gpu(job, str(options.device)))
            model, n_files = Model.of(options), count_inputs(inputs or share)
            file_embedder = FileEmbedder(options, model, wanted, n_files, workers, directory, job.part)
            model.open()
            file_embedder.cache.open()
            facts = {"checkpoint": model.sha256[:16], "device": model.device.type}
            # Processes can come to share the first card unasked; other cards were numbered, or asked for.
            gpu = gpu_id(model.device) if str(model.device) == "cuda:0" else None
        except (EvaluationError, OptionError, PackageError) as e:
            error = str(e)
        states = job.all_gather((error, facts, gpu))
        n_of_gpu = Counter(gpu for _, _, gpu in states if gpu is not None)
        for rank, (reason, others_facts, gpu) in enumerate(states):
            if reason is not None:
                raise JobError(reason)
            for what, value in others_facts.items():
                if value != states[0][1][what]:
                    raise JobError(f"processes 0 and {rank} differ in {what}: {states[0][1][what]}, {value}")
            if gpu is not None and n_of_gpu[gpu] > 1:
                raise JobError(too_many(n_of_gpu[gpu], 1))
    return file_embedder, share


@contextmanager
def shared_marker(directory: Path) -> Iterator[str]:
    """Write a file that the other processes should see.

    Raises:
        EvaluationError: the directory cannot be written to.
    """
    marker = directory / f"{MARKER_PREFIX}{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as e:
        raise EvaluationError(f"{directory}: cannot write to this directory ({e.strerror})") from e
    try:
        yield os.fspath(marker)
    finally:
        marker.unlink(missing_ok=True)


def own_gpu(job: Job, device: str) -> str:
    """Name the GPU of this process: that of its number on the host, or the one that a launcher lets it see.

    Args:
        device: as asked for; one other than the first stays as it is.

    Raises:
        EvaluationError: there are not enough.
    """
    if device not in ("cuda", "cuda:0"):
        return device
    n_gpus = torch.cuda.device_count()
    if n_gpus <= 1:  # it may be another one in each process; gpu_id tells
        return device
    if job.n_local > n_gpus:
        raise EvaluationError(too_many(job.n_local, n_gpus))
    return f"cuda:{job.local_rank}"


def too_many(n_processes: int, n_gpus: int) -> str:
    return f"{n_processes} processes on a host with {n_gpus} GPUs; use --nproc_per_node {n_gpus}"


def gpu_id(device: torch.device) -> str | None:
    """Name a GPU among those of all hosts; None for the CPU."""
    if device.type != "cuda":
        return None
    return f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"


def report_share(file_embedder: FileEmbedder, warnings: list[tuple[int, str]]) -> ShareReport:
    """Describe what this process did with its share."""
    return ShareReport(
        content_hashes={name: store.hashes() for name, store in file_embedder.keeper.stores.items()},
        missing=file_embedder.keeper.missing,
        truncated_texts=file_embedder.keeper.truncated_texts,
        counts=file_embedder.keeper.progress.counts,
        warnings=list(warnings),
    )


def take_reports(
    file_embedder: FileEmbedder,
    options: Options,
    inputs: Inputs,
    reports: Sequence[ShareReport],
) -> None:
    """Read the embeddings of all other processes from their parts of the cache.

    Args:
        file_embedder: of the first process.
        reports: of all processes, in the order of ranks.
    """
    keeper, logged = file_embedder.keeper, set(reports[0].warnings)
    for rank, report in enumerate(reports[1:], 1):
        for warning in report.warnings:
            if warning not in logged:
                log.log(warning[0], "%s", warning[1])
                logged.add(warning)
        keeper.truncated_texts |= report.truncated_texts
        keeper.missing |= report.missing
        part = EmbeddingCache(options.cache_path, *file_embedder.cache.opened.computed_by[:2], str(rank))
        for name, hashes in report.content_hashes.items():
            for source, content_hash in hashes:
                take_feature(keeper.stores[name], part, name, source, content_hash)
        if options.has_page:
            for modality, pictures in keeper.thumbnails.items():
                for _, content_hash in report.content_hashes[keeper.wanted[modality][0].name]:
                    picture = part.get_thumbnail(content_hash, modality)
                    if picture is not None:
                        pictures.add(content_hash, picture)
        part.close()
    lacking = {m: [path for path in paths if keeper.lacks(m, path)] for m, paths in inputs.items()}
    if n_lacking := sum(map(len, lacking.values())):  # a process whose cache could not be written
        log.warning("%d files are not in the caches of the other processes; embedding them again", n_lacking)
        file_embedder.embed(lacking)


def take_feature(
    store: EmbeddingStore | SequenceStore, part: EmbeddingCache, name: str, source: Key, content_hash: str
) -> None:
    """Read a feature of a file from a part of the cache, if it is there."""
    if isinstance(store, EmbeddingStore):
        embedding = part.get(content_hash, name)
        if embedding is not None:
            store.add(source, embedding, content_hash, get_flags(part, content_hash, name))
        return
    parts = get_sequence(part, content_hash, name)
    facts = next(parts)
    for number, rows in enumerate(parts):
        if rows is None:
            return
        store.add_part(source, number, rows)
    if facts is not None:
        store.commit(source, content_hash, facts)


class forwarded_warnings(logging.Handler):  # noqa: N801 (used as a context manager)
    """Collect the warnings of this process, for the first one to log."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.warnings = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append((record.levelno, record.getMessage()))

    def __enter__(self) -> list[tuple[int, str]]:
        package_log.addHandler(self)
        return self.warnings

    def __exit__(self, *exc_info) -> None:
        package_log.removeHandler(self)


# Shares


def split_inputs(inputs: Inputs, n_shares: int, wanted: Iterable[int] | None = None) -> list[Inputs]:
    """Split files into shares of equal number and size; tars, where there are enough of them, as a whole.

    Args:
        wanted: which shares to return, counted from 0; None returns all.
    """
    wanted = range(n_shares) if wanted is None else list(wanted)
    shares = [{} for _ in wanted]
    tars = sorted({source.file for source in inputs.get("video", ()) if source.content is not None} - {None})
    for modality, paths in inputs.items():
        if len(tars) >= n_shares and modality != "text":
            numbers = {tar: number % n_shares for number, tar in enumerate(tars)}
            for i, share in zip(wanted, shares, strict=True):
                share[modality] = [source for source in paths if numbers.get(source.file, 0) == i]
            continue
        sizes = np.fromiter(map(len if modality == "text" else file_size, paths), np.int64, len(paths))
        order = np.argsort(sizes, kind="stable")
        for i, share in zip(wanted, shares, strict=True):
            share[modality] = [paths[k] for k in share_of(order, i, n_shares)]
    return shares


def share_of(order: np.ndarray, i: int, n_shares: int) -> list[int]:
    """Return the indices of share i, counted from 0: every n-th file in an order, that of size.

    >>> order = np.argsort([1, 8, 9, 1, 1, 1], kind="stable")
    >>> [share_of(order, i, 2) for i in (0, 1)]
    [[0, 1, 4], [2, 3, 5]]
    """
    return np.sort(order[i::n_shares]).tolist()


def file_size(source: Source) -> int:
    with suppress(OSError):
        return source.size
    return 0


def embed_shard(
    inputs: Inputs, options: Options, wanted: Wanted, workers: Workers | None, shard: tuple[int, int]
) -> Counter:
    """Embed one of several shares of the files of a run into a part of the cache, and write nothing else.

    Args:
        inputs: all files of the run.
        wanted: what is embedded of the files of each modality.
        shard: (i, n), the i-th of n shares, counted from 1.

    Returns:
        how many files were embedded, found in the cache, and skipped.

    Raises:
        EvaluationError: as embed_files.
        KeyboardInterrupt: its message says what is kept.
    """
    i, n_shares = shard
    directory = Path(options.cache_path).parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EvaluationError(f"{directory}: cannot write to this directory ({e.strerror})") from e
    (share,) = split_inputs(inputs, n_shares, [i - 1])
    part, n_files = f"{i}-of-{n_shares}", count_inputs(share)
    file_embedder = FileEmbedder(options, Model.of(options), wanted, n_files, workers, directory, part)
    with interruptible(file_embedder.summary), closing(file_embedder):
        file_embedder.embed(share)
    progress = file_embedder.keeper.progress
    file_embedder.report_time(progress.counts)
    counts = progress.total_counts
    n_embedded = counts["done"] - counts["skipped"] - counts["cached"]
    return Counter(embedded=n_embedded, found=counts["cached"], skipped=counts["skipped"])
