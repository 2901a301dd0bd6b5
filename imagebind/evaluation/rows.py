"""Which file, and which caption, is which row of the embeddings."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from imagebind.evaluation.captions import MatchedCaptions


def order_rows(
    audio_paths: Sequence[str], video_paths: Sequence[str], pairs: Sequence[tuple[str, str]], retrieval: bool
) -> tuple[Sequence[str], Sequence[str], list[tuple[str, str]], np.ndarray]:
    """Choose the order of the rows, from the files that have an embedding.

    Returns:
        the files behind the rows of either modality; the pairs among them; and the pairs' cells (P, 2): row
        of the sound and row of the video. In pairing mode pair i is row i of both; in retrieval mode all
        files stay, in their order.
    """
    audio_row = {path: i for i, path in enumerate(audio_paths)}
    video_row = {path: i for i, path in enumerate(video_paths)}
    pairs = [(audio, video) for audio, video in pairs if audio in audio_row and video in video_row]
    if not retrieval:
        rows = np.arange(len(pairs))
        return [audio for audio, _ in pairs], [video for _, video in pairs], pairs, np.stack([rows, rows], 1)
    cells = to_cells((audio_row[audio], video_row[video]) for audio, video in pairs)
    return audio_paths, video_paths, pairs, cells


def to_cells(indices: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return rows and columns as an array (C, 2)."""
    return np.array(list(indices), np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class CaptionRows:
    """The captions behind the rows of the text embeddings."""

    names: list[str]
    texts: list[str]
    cells: dict[str, np.ndarray]  # modality -> (K, 2) row of a caption, and row of the file it belongs to


def order_captions(
    captions: MatchedCaptions,
    embedded: Container[str],
    rows: dict[str, Sequence[str]],
    pairs: Sequence[tuple[str, str]],
    retrieval: bool,
) -> CaptionRows:
    """Choose the order of the rows of captions.

    In pairing mode a caption has a row for each of its pairs, in their order; in retrieval mode one row, in
    the order of the captions.

    Args:
        embedded: the texts that have an embedding.
        rows: modality -> the files behind its rows.
        pairs: as order_rows gives them.
    """

    def is_embedded(name: str | None) -> bool:
        return name is not None and captions.texts[name] in embedded

    if not retrieval:
        named = [(i, captions.of_pair.get(pair)) for i, pair in enumerate(pairs)]
        named = [(i, name) for i, name in named if is_embedded(name)]
        names = [name for _, name in named]
        cells = to_cells((row, i) for row, (i, _) in enumerate(named))
        return CaptionRows(names, [captions.texts[name] for name in names], dict.fromkeys(rows, cells))
    of_rows = {
        modality: [captions.of_file[modality].get(path) for path in paths] for modality, paths in rows.items()
    }
    used = {name for names in of_rows.values() for name in names if is_embedded(name)}
    names = [name for name in captions.texts if name in used]
    row_of = {name: row for row, name in enumerate(names)}
    cells = {
        modality: to_cells((row_of[name], i) for i, name in enumerate(of_rows[modality]) if name in used)
        for modality in rows
    }
    return CaptionRows(names, [captions.texts[name] for name in names], cells)
