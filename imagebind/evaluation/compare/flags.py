"""Files that show or play nothing that a score could be of: what is flagged, and the mean without it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from imagebind.data.flags import FLAGS, without_notes
from imagebind.evaluation.compare.rows import Rows
from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES, EmbeddedFiles
from imagebind.sources import Source

UNKNOWN = "unknown"  # of embeddings that a cache of an earlier version kept
WARNED_SHARE = 0.01  # of the pairs: with more flagged ones a warning says so

log = logging.getLogger(__name__)


def flag_columns(embedded: EmbeddedFiles, rows: Rows) -> dict[str, list[str | None]]:
    """Return the flags of the sound and of the video of each pair: "" for none, "unknown" where not known."""
    columns = {}
    for modality, cells in zip(MEDIA_MODALITIES, rows.cells.T, strict=True):
        of_files = flags_of(embedded, modality, rows.files[modality])
        of_rows = [UNKNOWN if flags is None else flags for flags in of_files]
        columns[f"{modality}_flags"] = [of_rows[row] for row in cells.tolist()]
    return columns


def flags_of(embedded: EmbeddedFiles, modality: str, files: Iterable[Source]) -> list[str | None]:
    """Return the flags of some files, None where not known."""
    return [without_notes(embedded.leading[modality].flags_of(file), modality) for file in files]


def describe_flags(
    embedded: EmbeddedFiles, rows: Rows, columns: dict[str, list[str | None]], similarity: np.ndarray | None
) -> dict[str, Any]:
    """Count flagged pairs and files, and warn of them where they are more than a few.

    Args:
        columns: as of flag_columns.
        similarity: (P,) of the pairs; None: there are none.

    Returns:
        `flags` of metrics.json.
    """
    of_pairs = zip(*columns.values(), strict=True)
    is_flagged = np.array([any(of not in ("", UNKNOWN) for of in flags) for flags in of_pairs], bool)
    others = np.empty(0) if similarity is None else similarity[~is_flagged]
    described = {
        "pairs": int(is_flagged.sum()),
        "mean_without": float(others.mean()) if len(others) else None,
        **{m: count_flags(embedded, rows, m) for m in MEDIA_MODALITIES},
    }
    if described["pairs"] > WARNED_SHARE * len(rows):
        mean = described["mean_without"]
        log.warning(
            "%d of %d pairs have a flagged file (%s): see video_flags and audio_flags in pair_scores.csv; "
            "without them the mean is %s",
            *(described["pairs"], len(rows), name_counts(described)),
            "not known" if mean is None else f"{mean:.4f}",
        )
    return described


def count_flags(embedded: EmbeddedFiles, rows: Rows, modality: str) -> dict[str, int]:
    """Count the files of a modality that have each flag, and those of which it is not known."""
    of_files = flags_of(embedded, modality, set(rows.files[modality]))
    counts = Counter(flag for flags in of_files for flag in (flags or "").split(";"))
    return {flag: counts[flag] for flag in FLAGS[modality]} | {"unknown": of_files.count(None)}


def name_counts(described: dict[str, Any]) -> str:
    """Say how many files have which flag."""
    counts = {flag: described[m][flag] for m in reversed(MEDIA_MODALITIES) for flag in FLAGS[m]}
    return ", ".join(f"{flag}: {n}" for flag, n in counts.items() if n)
