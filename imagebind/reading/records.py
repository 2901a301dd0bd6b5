"""What a cache knows of a file beside an embedding: sequences, flags, and why something was dropped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from imagebind.data.features import AUDIO_WINDOWS, VIDEO_FRAMES
from imagebind.data.sequences import PART_SIZE, FrameFacts, WindowFacts
from imagebind.reading.cache import EmbeddingCache

FACTS = {AUDIO_WINDOWS.name: WindowFacts, VIDEO_FRAMES.name: FrameFacts}


def dropped_name(feature: str) -> str:
    """Name the record of the cache that says why a file has no such feature."""
    return f"{feature}/dropped"


def flags_name(feature: str) -> str:
    """Name the record of the cache that has the flags of a file, as a feature of it shows them."""
    return f"{feature}/flags"


def get_flags(cache: EmbeddingCache, content_hash: str, feature: str) -> str | None:
    """Look up the flags of a file; None where they are not known."""
    flags = (cache.get_facts(content_hash, flags_name(feature)) or {}).get("flags")
    return flags if isinstance(flags, str) else None


def get_sequence(
    cache: EmbeddingCache, content_hash: str, name: str
) -> Iterator[FrameFacts | WindowFacts | np.ndarray | None]:
    """Yield what a cache knows of a sequence, None if it has none; then its parts, None for a missing one."""
    try:
        facts = FACTS[name](**cache.get_facts(content_hash, name) or {})
        n_rows = facts.n_rows
    except (TypeError, ValueError):  # none, or damaged
        yield None
        return
    yield facts
    for number, first in enumerate(range(0, n_rows, PART_SIZE)):
        yield cache.get_part(content_hash, name, number, min(PART_SIZE, n_rows - first))
