"""The stages of a run that need torch: embed -> compare -> write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from imagebind.evaluation.compare.arrays import OutputArrays
from imagebind.evaluation.compare.protocol import Protocol
from imagebind.evaluation.compare.protocols import (
    features_of,
    make_protocols,
    settle_protocols,  # noqa: F401 (for run.py)
)
from imagebind.evaluation.compare.results import build_results
from imagebind.evaluation.embed import job as jobs
from imagebind.evaluation.embed.embedded import EmbeddedFiles, Inputs, Wanted
from imagebind.evaluation.embed.embedding import embed_files
from imagebind.evaluation.embed.given import take_all
from imagebind.evaluation.embed.model import Model
from imagebind.evaluation.embed.readers import start_workers
from imagebind.evaluation.inputs.given import GivenEmbeddings
from imagebind.evaluation.inputs.plan import Plan
from imagebind.evaluation.options import Options
from imagebind.evaluation.torchrun import Job
from imagebind.evaluation.write.atomic import Results
from imagebind.evaluation.write.outputs import write_outputs, write_page_again
from imagebind.evaluation.write.page_media import PageMedia, shown_files
from imagebind.reading.workers import Workers

COPIER = "imagebind.reading.previews:make_preview"  # what writes copies of media


def embed(
    inputs: Inputs,
    options: Options,
    workers: Workers | None,
    model: Model | None,
    job: Job | None = None,
    given: Mapping[str, GivenEmbeddings] | None = None,
) -> tuple[EmbeddedFiles, Sequence[Protocol]]:
    """Embed files, as the protocols need them, but for those whose embeddings are given."""
    protocols = protocols_of(options)
    wanted = features_of(protocols)
    if job is not None:
        return jobs.embed_in_job(job, options, wanted, workers, inputs), protocols
    used = model or Model.of(options)
    if given and given.keys() >= inputs.keys():
        return take_all(inputs, given, wanted, used.device, options.output_dir), protocols
    try:
        return embed_files(inputs, wanted, options, workers, used, given or {}), protocols
    finally:
        used.end()
        if model is None:
            used.unload()  # similarities need the room


def compare(
    plan: Plan, embedded: EmbeddedFiles, protocols: Sequence[Protocol], options: Options
) -> tuple[Results, OutputArrays]:
    """Compare what is embedded; the arrays lie where the outputs will be."""
    arrays = OutputArrays(options.output_dir)
    return build_results(plan, embedded, protocols, arrays, options).to_dict(), arrays


def write(
    results: Results,
    arrays: OutputArrays,
    embedded: EmbeddedFiles,
    options: Options,
    n_processes: int,
) -> None:
    """Write the outputs, and copies of media where they are asked for."""
    media = PageMedia(options.output_dir, embedded)
    write_outputs(results, arrays, options, media)
    if options.copies_media:  # last: they take long, and room
        with start_workers(options, n_processes, COPIER) as copiers:
            media.copy(shown_files(results), copiers, options.progress)
        write_page_again(results, options, media)
    media.remove_other_copies()


def wanted_of(options: Options) -> Wanted:
    """List what the protocols of a run need to be embedded, by modality."""
    return features_of(protocols_of(options))


def protocols_of(options: Options) -> list[Protocol]:
    """Make the protocols that the options of a run name."""
    return make_protocols(options.protocols, options.protocol_seconds)
