"""The whole run: plan -> embed -> compare -> write.

Importing torch takes seconds. So what is imported here is without it; each run imports the rest while the
processes that read files do the same, and after what can go wrong without it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from imagebind import packages
from imagebind.evaluation.embed.readers import interruptible, start_workers
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.inputs.plan import Plan, plan_run
from imagebind.evaluation.options import Options
from imagebind.evaluation.torchrun import Job
from imagebind.evaluation.write.outputs import (
    OutputLock,
    check_can_draw,
    check_inputs,
    exclusive_use,
    output_writers,
)
from imagebind.reading.workers import Workers

if TYPE_CHECKING:
    from imagebind.evaluation.compare.protocols import Protocol
    from imagebind.evaluation.embed.embedded import EmbeddedFiles
    from imagebind.evaluation.embed.model import Model

Results = dict[str, Any]
COPIER = "imagebind.reading.previews:make_preview"  # what writes copies of media
# Evaluations in several threads would share the cores, the model, and whose warning is whose.
ONE_AT_A_TIME = threading.Lock()


def evaluate(options: Options, model: Model | None = None, job: Job | None = None) -> Results:
    """Embed sounds and videos and measure how well they belong together.

    Args:
        model: that is kept from run to run; None loads the one of the options.
        job: as in batch_inference_av_consistency.

    Returns, raises:
        as batch_inference_av_consistency.
    """
    if job is not None and options.output_dir is None:
        raise OptionError("must be given for several processes", "output_dir")
    if job is not None and not job.is_first:
        raise OptionError("is for the first process; the others call help_embed", "job")
    check_inputs(options)
    n_processes = job.n_local if job else 1
    with (
        ONE_AT_A_TIME,
        tensors_on_cpu(),
        exclusive_use(options.output_dir, output_writers(options)) as lock,
    ):
        with start_workers(options, n_processes) as workers:  # which import while files are listed
            plan = plan_run(options)
            embedded, protocols = embed(plan, options, workers, model, job)
        with interruptible(lambda: embedded.summary):
            return compare_and_write(plan, embedded, protocols, options, lock, n_processes)


def embed(
    plan: Plan, options: Options, workers: Workers | None, model: Model | None, job: Job | None
) -> tuple[EmbeddedFiles, Sequence[Protocol]]:
    """Embed the files of a plan, as the protocols need them."""
    load_packages(options)
    from imagebind.evaluation.compare.protocols import features_of, make_protocols
    from imagebind.evaluation.embed.embedding import embed_files
    from imagebind.evaluation.embed.job import embed_in_job
    from imagebind.evaluation.embed.model import Model

    protocols = make_protocols(options.protocols, options.protocol_seconds)
    wanted = features_of(protocols)
    if job is not None:
        return embed_in_job(job, options, wanted, workers, plan.inputs), protocols
    used = model or Model.of(options)
    try:
        return embed_files(plan.inputs, wanted, options, workers, used), protocols
    finally:
        used.end()
        if model is None:
            used.unload()  # similarities need the room


def compare_and_write(
    plan: Plan,
    embedded: EmbeddedFiles,
    protocols: Sequence[Protocol],
    options: Options,
    lock: OutputLock,
    n_processes: int,
) -> Results:
    """Compare what is embedded, and write the outputs."""
    from imagebind.evaluation.compare.arrays import OutputArrays
    from imagebind.evaluation.compare.results import build_results
    from imagebind.evaluation.write.outputs import write_outputs, write_page_again
    from imagebind.evaluation.write.page_media import PageMedia, shown_files

    lock.renew()
    arrays = OutputArrays(options.output_dir)
    results = build_results(plan, embedded, protocols, arrays, options)
    if options.output_dir is not None:
        media = PageMedia(options.output_dir, embedded)
        write_outputs(results, arrays, options, lock, media)
        if options.copies_media:  # last: they take long, and room
            with start_workers(options, n_processes, COPIER) as copiers:
                media.copy(shown_files(results), copiers, options.progress)
            write_page_again(results, options, media)
        media.remove_other_copies()
    return results


def help_embed(options: Options, job: Job) -> None:
    """Embed the share of the files that falls to a process of a job which is not the first.

    Raises:
        EvaluationError: as batch_inference_av_consistency.
    """
    with start_workers(options, job.n_local) as workers:
        load_packages(options)
        from imagebind.evaluation.compare.protocols import features_of, make_protocols
        from imagebind.evaluation.embed.job import embed_in_job

        wanted = features_of(make_protocols(options.protocols, options.protocol_seconds))
        embed_in_job(job, options, wanted, workers)


def evaluate_shard(options: Options, shard: tuple[int, int]) -> dict[str, int]:
    """Embed one of several shares of the files of a run, and keep the embeddings in the cache.

    Args, returns, raises:
        as embed_shard.
    """
    with start_workers(options) as workers:
        inputs = plan_run(options).inputs
        load_packages(options)
        from imagebind.evaluation.compare.protocols import features_of, make_protocols
        from imagebind.evaluation.embed.job import embed_shard

        wanted = features_of(make_protocols(options.protocols, options.protocol_seconds))
        return embed_shard(inputs, options, wanted, workers, shard)


def load_packages(options: Options) -> None:
    """Import what every run needs.

    Raises:
        PackageError: something is missing, or does not load.
    """
    for module in ("torch", "av", "einops"):
        packages.load(module)
    if options.has_page:
        check_can_draw()


def tensors_on_cpu() -> AbstractContextManager:
    """As torch_settings.on_cpu; a caller that has not imported torch has set nothing in it."""
    if "torch" not in sys.modules:
        return nullcontext()
    from imagebind.torch_settings import on_cpu

    return on_cpu()
