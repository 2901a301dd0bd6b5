"""The public ImageBind scores by name; docs/protocols.md has them side by side."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from imagebind.data.features import TEXT, Feature
from imagebind.evaluation.compare.clip_protocols import T2AV, ImageBind, MMAudio, Mova, Reward
from imagebind.evaluation.compare.frame_protocols import AVHScore, JavisScore
from imagebind.evaluation.compare.protocol import Protocol
from imagebind.evaluation.embed.embedded import Wanted
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.inputs.given import GivenEmbeddings
from imagebind.evaluation.options import DEFAULT_PROTOCOLS, Options
from imagebind.evaluation.rules import TIMED

KINDS = (ImageBind, MMAudio, AVHScore, JavisScore, Mova, Reward, T2AV)
MAKERS = {protocol.name: protocol for protocol in KINDS}

log = logging.getLogger(__name__)


def make_protocols(names: Sequence[str], seconds: float | None) -> list[Protocol]:
    """Make the protocols of these names.

    Args:
        seconds: of a video that are looked at, for those that TIMED names; None: what each takes by itself.
    """
    return [
        MAKERS[name](TIMED[name] if seconds is None else seconds) if name in TIMED else MAKERS[name]()
        for name in names
    ]


def features_of(protocols: Sequence[Protocol]) -> Wanted:
    """List what is embedded of the files of each modality; what drives embeddings and ranks comes first."""
    wanted: dict[str, dict[str, Feature]] = {"audio": {}, "video": {}, "text": {TEXT.name: TEXT}}
    for protocol in protocols:
        for feature in protocol.features:
            wanted[feature.modality].setdefault(feature.name, feature)
    return {modality: tuple(features.values()) for modality, features in wanted.items()}


def settle_protocols(options: Options, given: Mapping[str, GivenEmbeddings]) -> Options:
    """Return the options with protocols: those that are asked for, or that of embeddings which are given.

    Args:
        given: modality -> embeddings in place of its files.

    Raises:
        OptionError: a protocol takes something else of these files.
    """
    if options.protocols is not None:
        settled = options
    elif not given:
        settled = replace(options, protocols=DEFAULT_PROTOCOLS)
    else:
        own = [with_protocol_of(of, options) for of in (given[m] for m in ("video", "audio") if m in given)]
        settled = next((found for found in own if find_misfit(found, given) is None), own[0])
    if (misfit := find_misfit(settled, given)) is not None:
        raise OptionError(misfit, "protocols")
    if options.protocols is None and given:
        log.info("--protocol is not given: it is %s, as of the embeddings", settled.protocols[0])
    for of in given.values():
        if of.seconds is None and of.protocol in TIMED:
            seconds = settled.protocol_seconds or TIMED[of.protocol]
            log.warning(
                "%s does not say how many seconds of each %s were looked at; it is taken for %g, see "
                "--protocol_seconds",
                *(of.source, of.modality, seconds),
            )
    return settled


def with_protocol_of(given: GivenEmbeddings, options: Options) -> Options:
    """Return the options with the protocol that embeddings were made with."""
    seconds = given.seconds if options.protocol_seconds is None else options.protocol_seconds
    return replace(options, protocols=(given.protocol,), protocol_seconds=seconds)


def find_misfit(options: Options, given: Mapping[str, GivenEmbeddings]) -> str | None:
    """Say which protocol takes something else of a modality than its embeddings are of; None: none does."""
    for i, protocol in enumerate(make_protocols(options.protocols, options.protocol_seconds)):
        for modality, of in given.items():
            seconds = options.protocol_seconds if of.seconds is None else of.seconds
            (own,) = make_protocols([of.protocol], seconds)
            taken, there = ({f.name for f in getattr(p, modality)} for p in (protocol, own))
            if taken == there:
                continue
            cure = f"leave {protocol.name} out"
            if i == 0:
                cure = f"give --protocol {of.protocol}"
                cure += "" if of.seconds is None else f" --protocol_seconds {of.seconds:g}"
            return (
                f"{protocol.name} does not go with the {modality} embeddings of {of.source}, which are of "
                f"{of.recipe}; {cure}, or give the {modality} files"
            )
    return None
