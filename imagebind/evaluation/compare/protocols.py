"""The public ImageBind scores by name; docs/protocols.md has them side by side."""

from __future__ import annotations

from collections.abc import Sequence

from imagebind.data.features import TEXT, Feature
from imagebind.evaluation.compare.clip_protocols import T2AV, ImageBind, MMAudio, Mova, Reward
from imagebind.evaluation.compare.frame_protocols import AVHScore, JavisScore
from imagebind.evaluation.compare.protocol import Protocol
from imagebind.evaluation.embed.embedded import Wanted
from imagebind.evaluation.rules import TIMED

KINDS = (ImageBind, MMAudio, AVHScore, JavisScore, Mova, Reward, T2AV)
MAKERS = {protocol.name: protocol for protocol in KINDS}


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
