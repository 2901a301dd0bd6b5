"""Embeddings that are given in place of files -> stores, as if they had been embedded here."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from imagebind.evaluation.embed.embedded import EmbeddedFiles, Inputs, ModelFacts, Wanted
from imagebind.evaluation.embed.keeper import NOT_FINITE, Keeper, report_skipped
from imagebind.evaluation.embed.model import Model
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.given import GivenEmbeddings
from imagebind.reading.loader import Missing

log = logging.getLogger(__name__)


def check_model(given: Mapping[str, GivenEmbeddings], model: Model) -> int:
    """Check that embeddings are of a model, as far as they say so; return the width of its own.

    Raises:
        EvaluationError: they are of another one, or it cannot be loaded.
    """
    embedder = model.open()
    for of in given.values():
        if of.sha256 not in (None, model.sha256):
            theirs, ours = f"{of.checkpoint['file']}, sha256 {of.sha256[:16]}", model.sha256[:16]
            raise EvaluationError(
                f"{of.source}: the {of.modality} embeddings are of another model ({theirs}, not {ours}): "
                f"name that one with --checkpoint, or give the {of.modality} files"
            )
        if of.sha256 is None:
            log.warning("%s does not say which checkpoint made it; it is taken for this run's", of.source)
        elif of.precision != model.precision:
            log.warning(
                "%s was computed in %s, and this run is in %s: its cosines differ a little from those in one",
                *(of.source, of.precision, model.precision),
            )
    return next(iter(embedder.model.towers.values())).config.embedding


def take_given(keeper: Keeper, given: Mapping[str, GivenEmbeddings], inputs: Inputs, width: int) -> None:
    """Keep the given embeddings of those that are compared; one that cannot be used is skipped.

    Equal embeddings are taken for those of one content.

    Args:
        width: E of the others.
    """
    for modality, of in given.items():
        (feature,) = keeper.wanted[modality]
        for source in inputs[modality]:
            vector, missing = of.vector(source), None
            if len(vector) != width:
                missing = Missing(f"its embedding has {len(vector)} numbers, not {width}", "skipped")
            elif not np.isfinite(vector).all():
                missing = NOT_FINITE
            if missing is None:
                content_hash = hashlib.blake2b(vector.tobytes(), digest_size=16).hexdigest()
                keeper.stores[feature.name].add(source, vector, content_hash)
            else:
                keeper.missing[feature.name, source] = missing
                report_skipped(modality, source, missing.reason)


def take_all(
    inputs: Inputs,
    given: Mapping[str, GivenEmbeddings],
    wanted: Wanted,
    device: torch.device,
    directory: str | os.PathLike | None,
) -> EmbeddedFiles:
    """Take the embeddings of all modalities from those that are given; no model is needed.

    Args:
        device: that compares them.
        directory: for the file behind the embeddings; None keeps them in memory.

    Raises:
        EvaluationError: they are of different checkpoints.
    """
    facts = describe_models(given, device)
    wanted = {modality: wanted[modality] for modality in inputs}
    keeper = Keeper(wanted, {m: len(sources) for m, sources in inputs.items()}, directory, cache=None)
    widths = Counter(len(given[m].vector(source)) for m, sources in inputs.items() for source in sources)
    take_given(keeper, given, inputs, max(widths, key=widths.get, default=0))
    return EmbeddedFiles(
        wanted=wanted,
        stores=keeper.stores,
        missing=keeper.missing,
        failures=keeper.failures(inputs),
        truncated_texts=set(),
        thumbnails=keeper.thumbnails,
        model=facts,
        summary="nothing had to be embedded",
        given={m: of.describe() for m, of in given.items()},
    )


def describe_models(given: Mapping[str, GivenEmbeddings], device: torch.device) -> ModelFacts:
    """Say which model made given embeddings, as far as they say so.

    Raises:
        EvaluationError: different ones did.
    """
    facts = ModelFacts(None, None, "", None, device, {})
    sources = " and ".join(of.source for of in given.values())
    for of in given.values():
        if of.sha256 is None:
            log.warning("%s does not say which checkpoint made it", of.source)
            continue
        if facts.sha256 not in (None, of.sha256):
            raise EvaluationError(
                f"{sources} are of different checkpoints: give the files of one side, and that checkpoint"
            )
        if facts.precision not in (None, of.precision):
            log.warning("%s were computed in different precisions", sources)
        both = {p: None for p in (facts.precision, of.precision) if p is not None}
        facts = replace(facts, **of.checkpoint, precision=" and ".join(both) or None)
    return facts
