"""How the figures of a run were computed: what a reader needs to get the same ones again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from imagebind import data, packages
from imagebind.data.text import TOKENIZER
from imagebind.evaluation.compare.protocol import Protocol
from imagebind.evaluation.embed.embedded import EmbeddedFiles

PACKAGES = ("torch", "numpy", "av", "einops")  # whose versions are told of every run


def describe_method(embedded: EmbeddedFiles, protocols: Sequence[Protocol]) -> dict[str, Any]:
    """Describe for metrics.json how embeddings and similarities are computed."""
    model, has_texts, used = embedded.model, "text" in embedded.wanted, [*PACKAGES]
    for protocol in protocols:
        used += [name for name in protocol.packages if name not in used]
    used += map(packages.package_of, TOKENIZER) if has_texts else ()
    is_card = model.device.type == "cuda"
    card = f" ({torch.cuda.get_device_name(model.device)})" if is_card else ""
    return {
        "checkpoint": {"file": model.file, "sha256": model.sha256, "note": model.note},
        "protocols": {protocol.name: protocol.describe() for protocol in protocols},
        **({"embeddings": embedded.given} if embedded.given else {}),
        "precision": model.precision,
        "device": f"{model.device}{card}",
        "audio": {
            "clips": data.AUDIO_CLIPS,
            "clip_seconds": data.CLIP_SECONDS,
            "sample_rate": data.SAMPLE_RATE,
            "mel_bins": data.MEL_BINS,
            "mel_frames": data.MEL_FRAMES,
            "channel": protocols[0].channel,
        },
        "video": protocols[0].describe(),
        **({"text": {"tokens": data.TEXT_TOKENS, "tokenizer": "CLIP"}} if has_texts else {}),
        "file_embedding": "mean over clips of unit rows times the scale of the tower",
        "similarity": "cosine",
        "rank": "1 + better mismatches + equal ones / 2",
        "versions": packages.versions_of(used),
    }
