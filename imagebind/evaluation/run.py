"""The whole run: plan -> embed -> compare -> write.

Importing torch takes seconds. So what is imported here is without it; `stages` has the rest, which each run
imports while the processes that read files do the same, and after what can go wrong without it.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING

from imagebind import packages
from imagebind.evaluation.embed.readers import interruptible, start_workers
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.inputs.plan import plan_run
from imagebind.evaluation.options import Options, given_embeddings
from imagebind.evaluation.torchrun import Job
from imagebind.evaluation.write.atomic import Results
from imagebind.evaluation.write.lock import exclusive_use
from imagebind.evaluation.write.outputs import check_can_draw, check_inputs, output_writers

if TYPE_CHECKING:
    from imagebind.evaluation.compare.protocol import Protocol
    from imagebind.evaluation.embed.embedded import EmbeddedFiles, Inputs
    from imagebind.evaluation.embed.model import Model

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
    if job is not None and (given := given_embeddings(options)):
        raise OptionError("is for one process: run without torchrun", f"{min(given)}_embeddings")
    check_inputs(options)
    n_processes = job.n_local if job else 1
    with (
        ONE_AT_A_TIME,
        tensors_on_cpu(),
        exclusive_use(options.output_dir, output_writers(options)) as lock,
    ):
        with start_workers(options, n_processes) as workers:  # which import while files are listed
            plan = plan_run(options)
            stages = load_stages()
            options = stages.settle_protocols(options, plan.given)
            if options.has_page:
                check_can_draw()
            embedded, protocols = stages.embed(plan.inputs, options, workers, model, job, plan.given)
        with interruptible(lambda: embedded.summary):
            lock.renew()
            results, arrays = stages.compare(plan, embedded, protocols, options)
            if options.output_dir is not None:
                lock.renew()
                stages.write(results, arrays, embedded, options, n_processes)
    return results


def embed_inputs(inputs: Inputs, options: Options, model: Model) -> tuple[EmbeddedFiles, Sequence[Protocol]]:
    """Embed files, as the protocols of the options need them, and compare nothing.

    Raises:
        EvaluationError: the model cannot be loaded, or no process can be started.
    """
    with ONE_AT_A_TIME, tensors_on_cpu(), start_workers(options) as workers:
        return load_stages().embed(inputs, options, workers, model)


def help_embed(options: Options, job: Job) -> None:
    """Embed the share of the files that falls to a process of a job which is not the first.

    Raises:
        EvaluationError: as batch_inference_av_consistency.
    """
    if given_embeddings(options):
        return  # the first process refuses them
    with start_workers(options, job.n_local) as workers:
        stages = load_stages()
        options = stages.settle_protocols(options, {})
        stages.jobs.embed_in_job(job, options, stages.wanted_of(options), workers)


def evaluate_shard(options: Options, shard: tuple[int, int]) -> Counter:
    """Embed one of several shares of the files of a run, and keep the embeddings in the cache.

    Args, returns, raises:
        as embed_shard.
    """
    with start_workers(options) as workers:
        plan = plan_run(options)
        if not plan.to_embed:
            raise OptionError("has nothing to embed: both sides have their embeddings", "shard")
        stages = load_stages()
        options = stages.settle_protocols(options, plan.given)
        return stages.jobs.embed_shard(plan.to_embed, options, stages.wanted_of(options), workers, shard)


def load_stages() -> ModuleType:
    """Import what every run needs.

    Raises:
        PackageError: something is missing, or does not load.
        EvaluationError: as check_can_compute.
    """
    for module in ("torch", "av", "einops"):
        packages.load(module)
    from imagebind.evaluation import forks, stages

    forks.check_can_compute()
    return stages


def tensors_on_cpu() -> AbstractContextManager:
    """As torch_settings.on_cpu; a caller that has not imported torch has set nothing in it."""
    if "torch" not in sys.modules:
        return nullcontext()
    from imagebind.torch_settings import on_cpu

    return on_cpu()
