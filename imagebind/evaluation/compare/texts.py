"""Captions -> rows of text embeddings, and how these compare with sounds and with videos.

In pairing mode a caption has a row for each of its pairs, in their order; in retrieval mode one row, in the
order of the captions; of pairs alone each text has one row. Where sounds have captions of their own, these
come after those of videos.

Letters in shapes: T rows of texts, K cells of a text and a file that belong together, P pairs.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from imagebind.evaluation.compare.comparison import Comparison
from imagebind.evaluation.compare.positives import Labels
from imagebind.evaluation.compare.rows import Rows, to_cells
from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES
from imagebind.evaluation.inputs.captions import MatchedCaptions
from imagebind.evaluation.inputs.groups import join_copies
from imagebind.names import shorten

log = logging.getLogger(__name__)


class OfFiles(NamedTuple):
    """The captions of the files of a modality."""

    cells: np.ndarray  # (K, 2) row of a caption, and row of the file it belongs to
    of_pairs: np.ndarray  # (P,) cell of each pair, or -1
    span: slice  # the rows of texts that are compared with it


@dataclass(frozen=True)
class TextRows:
    """The captions behind the rows of the text embeddings."""

    names: list[str]
    texts: list[str]
    of_files: dict[str, OfFiles]  # by modality

    @property
    def are_shared(self) -> bool:
        """Whether sounds and videos have the same captions."""
        return self.of_files["audio"].span == self.of_files["video"].span


# Rows: what captions, by name, have them, and which of these belongs to which file


def order_texts(captions: MatchedCaptions, embedded: Container[str], rows: Rows, mode: str) -> TextRows:
    """Choose the order of the rows of captions.

    Args:
        embedded: the texts that have an embedding.
        mode: as Options.mode.
    """
    order = {"pairing": row_a_pair, "pairs_only": row_a_text, "retrieval": row_a_caption}[mode]
    known = {name: text for name, text in captions.texts.items() if text in embedded}
    are_shared = captions.of_pairs["audio"] == captions.of_pairs["video"]
    names, of_files = [], {}
    for modalities in [list(MEDIA_MODALITIES)] if are_shared else [["video"], ["audio"]]:
        ordered, found = order(captions, known, rows, modalities)
        span = slice(len(names), len(names) + len(ordered))
        for modality, (cells, of_pairs) in found.items():
            of_files[modality] = OfFiles(cells + np.array([span.start, 0]), of_pairs, span)
        names += ordered
    texts = [captions.texts[name] for name in names]
    return TextRows([captions.labels.get(name, name) for name in names], texts, of_files)


Found = dict[str, tuple[np.ndarray, np.ndarray]]  # modality -> cells (K, 2), and of each pair (P,) its cell


def row_a_pair(
    captions: MatchedCaptions, known: dict[str, str], rows: Rows, modalities: list[str]
) -> tuple[list[str], Found]:
    """Give the caption of each pair a row: return the names behind the rows, and what belongs to them.

    Args:
        known: name -> text, of those that have an embedding.
        modalities: that have the same captions.
    """
    names = [captions.of_pairs[modalities[0]][i] for i in rows.numbers]
    with_caption = [pair for pair, name in enumerate(names) if name in known]
    of_row = np.arange(len(with_caption))
    return [names[pair] for pair in with_caption], link_pairs(of_row, with_caption, rows, modalities)


def row_a_text(
    captions: MatchedCaptions, known: dict[str, str], rows: Rows, modalities: list[str]
) -> tuple[list[str], Found]:
    """Give each text of a pair a row; as row_a_pair."""
    names = [captions.of_pairs[modalities[0]][i] for i in rows.numbers]
    with_caption = [pair for pair, name in enumerate(names) if name in known]
    row_of: dict[str, int] = {}
    of_row = [row_of.setdefault(known[names[pair]], len(row_of)) for pair in with_caption]
    first = {row: names[pair] for row, pair in reversed(list(zip(of_row, with_caption, strict=True)))}
    return [first[row] for row in range(len(row_of))], link_pairs(of_row, with_caption, rows, modalities)


def link_pairs(of_row: Sequence[int], with_caption: list[int], rows: Rows, modalities: list[str]) -> Found:
    """Link rows of captions with the files of their pairs.

    Args:
        of_row: (K,) row of the caption of each pair that has one.
        with_caption: (K,) these pairs.
    """
    of_pairs = np.full(len(rows), -1)
    of_pairs[with_caption] = np.arange(len(with_caption))
    files = {m: rows.cells[with_caption, MEDIA_MODALITIES.index(m)].tolist() for m in modalities}
    return {m: (to_cells(zip(of_row, files[m], strict=True)), of_pairs) for m in modalities}


def row_a_caption(
    captions: MatchedCaptions, known: dict[str, str], rows: Rows, modalities: list[str]
) -> tuple[list[str], Found]:
    """Give each caption of a file a row; as row_a_pair."""
    links = {}
    for modality in modalities:
        row_of_file = {path: i for i, path in enumerate(rows.files[modality])}
        links[modality] = [
            (name, row_of_file[path])
            for path, name in captions.of_files[modality]
            if path in row_of_file and name in known
        ]
    used = {name for of_modality in links.values() for name, _ in of_modality}
    names = [name for name in captions.texts if name in used]
    row_of, found = {name: i for i, name in enumerate(names)}, {}
    for modality, of_modality in links.items():
        files = rows.cells[:, MEDIA_MODALITIES.index(modality)].tolist()
        of_pairs = [captions.of_pairs[modality][i] for i in rows.numbers]
        cells = to_cells((row_of[name], file) for name, file in of_modality)
        found[modality] = cells, find_links(of_modality, of_pairs, files)
    return names, found


def find_links(
    links: Sequence[tuple[str, int]], names: Sequence[str | None], files: Sequence[int]
) -> np.ndarray:
    """Find the link of each pair: that of its caption and its file, or else the first one of its file.

    Args:
        links: of each the name of the caption, and the row of the file.
        names: of each pair's caption.
        files: the row of each pair's file.

    Returns:
        (P,) numbers of links, -1 where there is none.
    """
    numbered = list(enumerate(links))[::-1]
    exact, of_file = {link: i for i, link in numbered}, {file: i for i, (_, file) in numbered}
    found = (
        -1 if name is None else exact.get((name, file), of_file.get(file, -1))
        for name, file in zip(names, files, strict=True)
    )
    return np.fromiter(found, np.int64, len(files))


def count_captions(captions: MatchedCaptions, texts: TextRows, truncated_texts: set[str]) -> dict[str, int]:
    """Count captions, and pairs without one; warn of those that are truncated."""
    rows = zip(texts.names, texts.texts, strict=True)
    if too_long := list(dict.fromkeys(name for name, text in rows if text in truncated_texts)):
        log.warning("%d captions are too long, and truncated: %s", len(too_long), shorten(too_long))
    return {
        "text": len(texts.names),
        "text_unmatched": len(captions.texts) - len(captions.used),
        "text_skipped": captions.n_skipped,
        "text_cut": len(too_long),
        "pairs_without_text": int((texts.of_files["video"].of_pairs < 0).sum()),
    }


# Comparison


def compare_texts(
    comparison: Comparison,
    texts: TextRows,
    rows: Rows,
    groups: dict[str, list[str | None]] | None,
    pairs_only: bool,
    shown: dict[str, Labels],
    groups_of_pairs: Sequence[str | None],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Compare captions with sounds and with videos, if any caption has an embedding.

    Args:
        groups: modality -> the group of each row, of pairs alone that of each pair; the captions of a file
            in none are one.
        shown: modality -> what its rows, of pairs alone the pairs, show, where that is known.
        groups_of_pairs: (P,)

    Returns:
        text_audio and text_video, as they are in metrics.json, and as the API returns them.
    """
    metrics, agreements = {}, {}
    for axis, modality in enumerate(MEDIA_MODALITIES):
        cells, of_pairs, span = texts.of_files[modality]
        cell_of_pairs, modalities = of_pairs.tolist(), ("text", modality)
        if not texts.texts[span]:  # where sounds alone have captions, or videos
            continue
        files = cells[:, 1].tolist()
        if pairs_only:
            pairs = np.stack([np.arange(len(cells)), np.flatnonzero(of_pairs >= 0)], axis=1)
            lines, compare = (cells[:, 0], rows.cells[:, axis]), comparison.compare_drawn
        else:
            pairs, lines = cells - np.array([span.start, 0]), (span, slice(None))
            compare = comparison.compare_all
        of_lines = None if groups is None else groups[modality]
        of_pairs = of_lines and [of_lines[line] for line in pairs[:, 1].tolist()]
        joined = join_copies(of_pairs, [comparison.contents[modality][file] for file in files])
        of_files = shown.get(modality, ())
        in_pairs = set(range(len(rows)) if pairs_only else rows.cells[:, axis].tolist())
        others = [(file, label) for file, label in of_files if file not in in_pairs]
        own = [
            (int(pairs[cell, 0]), group)
            for cell, group in zip(cell_of_pairs, groups_of_pairs, strict=True)
            if of_files and cell >= 0 and group is not None
        ]
        alike = own + labels_of_texts(pairs, others), of_files
        compared = compare(comparison.matrix(modalities, pairs, joined, lines, alike))
        metrics[f"text_{modality}"] = compared.metrics
        agreements[f"text_{modality}"] = {
            "pair_rows": cells,
            **compared.columns,
            "histograms": compared.histograms,
            "candidates": compared.candidates,
        }
    return metrics, agreements


def labels_of_texts(pairs: np.ndarray, of_files: Labels) -> list[tuple[int, str]]:
    """Return what rows of texts show: all that their files do.

    Args:
        pairs: (K, 2) row of a text, and of a file.
        of_files: of the rows of files.
    """
    labels = defaultdict(list)
    for file, label in of_files:
        labels[file].append(label)
    return [(text, label) for text, file in pairs.tolist() for label in labels.get(file, ())]


def text_columns(
    texts: TextRows, agreements: dict[str, dict[str, Any]], n_pairs: int
) -> dict[str, Sequence[Any]]:
    """Return what captions add to the columns of pair_scores.csv.

    Args:
        agreements: as compare_texts returns them.
    """
    columns = {"caption": [None] * n_pairs}
    if not texts.are_shared:
        columns["audio_caption"] = [None] * n_pairs
    for modality in MEDIA_MODALITIES:
        cells, of_pairs, _ = texts.of_files[modality]
        with_caption = np.flatnonzero(of_pairs >= 0)
        for column, key in (("similarity", "similarity"), ("rank", f"{modality}_rank")):
            found = agreements.get(f"text_{modality}", {}).get(key)
            if found is not None:
                values = columns[f"text_{modality}_{column}"] = np.full(n_pairs, np.nan)
                values[with_caption] = found[of_pairs[with_caption]]
        is_own = modality == "audio" and not texts.are_shared
        shown = columns["audio_caption" if is_own else "caption"]
        for pair in with_caption.tolist():
            shown[pair] = texts.texts[cells[of_pairs[pair], 0]]
    return columns
