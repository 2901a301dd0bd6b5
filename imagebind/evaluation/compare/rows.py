"""Which file, and which caption, is which row of the embeddings."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from imagebind.evaluation.inputs.captions import MatchedCaptions


def order_rows(
    audio_paths: Sequence[str], video_paths: Sequence[str], pairs: Sequence[tuple[str, str]], retrieval: bool
) -> tuple[Sequence[str], Sequence[str], list[int], np.ndarray]:
    """Choose the order of the rows, from the files that have an embedding.

    Returns:
        the files behind the rows of either modality; the numbers of the pairs among them; and the cells of
        these (P, 2): row of the sound and row of the video. In pairing mode pair i is row i of both; in
        retrieval mode all files stay, in their order.
    """
    audio_row = {path: i for i, path in enumerate(audio_paths)}
    video_row = {path: i for i, path in enumerate(video_paths)}
    numbers = [i for i, (audio, video) in enumerate(pairs) if audio in audio_row and video in video_row]
    if not retrieval:
        rows = np.arange(len(numbers))
        return (
            [pairs[i][0] for i in numbers],
            [pairs[i][1] for i in numbers],
            numbers,
            np.stack([rows, rows], 1),
        )
    cells = to_cells((audio_row[pairs[i][0]], video_row[pairs[i][1]]) for i in numbers)
    return audio_paths, video_paths, numbers, cells


def order_files(
    pairs: Sequence[tuple[str, str]], numbers: Sequence[int]
) -> tuple[Sequence[str], Sequence[str], np.ndarray]:
    """Give each file of some pairs one row, whatever the number of its pairs.

    Returns:
        the files behind the rows of either modality, and the cells of the pairs, as order_rows.
    """
    rows = [{}, {}]
    cells = to_cells(
        tuple(row_of.setdefault(path, len(row_of)) for row_of, path in zip(rows, pairs[i], strict=True))
        for i in numbers
    )
    return list(rows[0]), list(rows[1]), cells


def to_cells(indices: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return rows and columns as an array (C, 2)."""
    return np.array(list(indices), np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class CaptionRows:
    """The captions behind the rows of the text embeddings."""

    names: list[str]
    texts: list[str]
    spans: dict[str, slice]  # modality -> the rows that are compared with it
    cells: dict[str, np.ndarray]  # modality -> (K, 2) row of a caption, and row of the file it belongs to
    of_pairs: dict[str, np.ndarray]  # modality -> (P,) cell of each pair, or -1

    @property
    def are_shared(self) -> bool:
        """Whether sounds and videos have the same captions."""
        return self.spans["audio"] == self.spans["video"]


def order_captions(
    captions: MatchedCaptions,
    embedded: Container[str],
    rows: dict[str, Sequence[str]],
    numbers: Sequence[int],
    pair_cells: np.ndarray,
    retrieval: bool,
    pairs_only: bool = False,
) -> CaptionRows:
    """Choose the order of the rows of captions.

    In pairing mode a caption has a row for each of its pairs, in their order; in retrieval mode one row, in
    the order of the captions; of pairs alone each text has one row. Where sounds have captions of their own,
    these come after those of videos.

    Args:
        embedded: the texts that have an embedding.
        rows: modality -> the files behind its rows.
        numbers, pair_cells: as order_rows gives them.
    """
    found = CaptionRows([], [], {}, {}, {})
    are_shared = captions.of_pairs["audio"] == captions.of_pairs["video"]

    def row_key(name: str, i: int) -> Hashable:
        """Return what has one row: a caption, a text, or the caption of a pair."""
        return name if retrieval else captions.texts[name] if pairs_only else i

    for modalities in [list(rows)] if are_shared else [["video"], ["audio"]]:
        of_pairs = {m: [captions.of_pairs[m][i] for i in numbers] for m in modalities}
        links = {
            m: link_files(captions.of_files[m], rows[m])
            if retrieval
            else [(name, pair) for pair, name in enumerate(of_pairs[m]) if name is not None]
            for m in modalities
        }
        links = {m: [(n, i) for n, i in links[m] if captions.texts[n] in embedded] for m in modalities}
        keys = {m: [row_key(*link) for link in links[m]] for m in modalities}
        names = {
            key: name
            for m in modalities
            for key, (name, _) in zip(keys[m][::-1], links[m][::-1], strict=True)
        }
        ordered = (
            [n for n in captions.texts if n in names] if retrieval else dict.fromkeys(keys[modalities[0]])
        )
        row_of = {key: len(found.names) + i for i, key in enumerate(ordered)}
        span = slice(len(found.names), len(found.names) + len(row_of))
        found.names.extend(names[key] for key in ordered)
        for m in modalities:
            axis, found.spans[m] = list(rows).index(m), span
            files = pair_cells[:, axis].tolist() if retrieval else list(range(len(numbers)))
            found.of_pairs[m] = find_cells(links[m], of_pairs[m], files)
            own = [i if retrieval else pair_cells[i, axis] for _, i in links[m]]
            found.cells[m] = to_cells((row_of[key], file) for key, file in zip(keys[m], own, strict=True))
    found.texts.extend(captions.texts[name] for name in found.names)
    found.names[:] = [captions.labels.get(name, name) for name in found.names]
    return found


def link_files(of_files: Sequence[tuple[str, str]], paths: Sequence[str]) -> list[tuple[str, int]]:
    """Return the captions of files that have rows, each as its name and the row of the file."""
    row_of = {path: i for i, path in enumerate(paths)}
    return [(name, row_of[path]) for path, name in of_files if path in row_of]


def find_cells(
    links: Sequence[tuple[str, int]], names: Sequence[str | None], files: Sequence[int]
) -> np.ndarray:
    """Find the cell of each pair: that of its caption and its file, or else the first one of its file.

    Args:
        links: of each cell the name of the caption, and the row of the file.
        names: of each pair's caption.
        files: the row of each pair's file.

    Returns:
        (P,) numbers of cells, -1 where there is none.
    """
    numbered = list(enumerate(links))[::-1]
    exact, of_file = {link: i for i, link in numbered}, {file: i for i, (_, file) in numbered}
    found = (
        -1 if name is None else exact.get((name, file), of_file.get(file, -1))
        for name, file in zip(names, files, strict=True)
    )
    return np.fromiter(found, np.int64, len(files))
