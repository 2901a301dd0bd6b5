"""All that a run found, as one dictionary, and the scores of each pair."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from imagebind.evaluation.captions import CAPTION_COLUMNS
from imagebind.evaluation.embedding import MEDIA_MODALITIES, EmbeddedFiles
from imagebind.evaluation.errors import NothingLeftError
from imagebind.evaluation.groups import number_groups
from imagebind.evaluation.intervals import Mean
from imagebind.evaluation.keys import Cells
from imagebind.evaluation.manifest import Manifest
from imagebind.evaluation.metrics import (
    DEFINITIONS,
    Beside,
    Candidates,
    Found,
    SampledFound,
    compute_metrics,
    compute_sampled_metrics,
)
from imagebind.evaluation.options import Options
from imagebind.evaluation.plan import Plan
from imagebind.evaluation.progress import MatrixProgress
from imagebind.evaluation.protocols import NAMES as PROTOCOLS
from imagebind.evaluation.rows import CaptionRows, order_captions, order_files, order_rows
from imagebind.evaluation.scores import WEAKEST_COLUMNS, score_protocols
from imagebind.evaluation.similarity import Top, count_among, look_up, scan
from imagebind.evaluation.store import OutputArrays
from imagebind.evaluation.suspects import (
    FALSE_DISCOVERY_RATE,
    Sample,
    choose_references,
    sample_mismatches,
)
from imagebind.evaluation.truth import TrueCells, Truth, find_truth
from imagebind.names import shorten
from imagebind.segments import file_of

MATRIX_NAME = "similarity_matrix.npy"
SUSPECTS_LISTED = 10  # in metrics.json and the report
OTHER_COLUMNS = (  # of suspects
    *("best_other_video", "best_other_video_similarity"),
    *("best_other_audio", "best_other_audio_similarity"),
)
PAIR_COLUMNS = (  # of pair_scores.csv, after name, paths and status
    *("similarity", "video_rank", "audio_rank", "percentile"),
    *("audio_clips_alike", "video_clips_alike", "p_value", "suspect"),
    *OTHER_COLUMNS,
    *("audio_key", "video_key"),
)
RANK_COLUMNS = ("video_rank", "audio_rank", *OTHER_COLUMNS)  # that need the whole matrix
MANIFEST_COLUMNS = ("id", "line", "start", "end")  # before these, where there is a manifest
GROUP_COLUMNS = ("group",)  # after these, where there are groups
OUR_COLUMNS = {
    *("name", "audio", "video", "status", *MANIFEST_COLUMNS, *PAIR_COLUMNS, *PROTOCOLS, *WEAKEST_COLUMNS),
    *(*GROUP_COLUMNS, *CAPTION_COLUMNS),
}

Results = dict[str, Any]  # what batch_inference_av_consistency returns

log = logging.getLogger(__name__)


def build_results(plan: Plan, embedded: EmbeddedFiles, arrays: OutputArrays, options: Options) -> Results:
    """Compare the files that have an embedding.

    Args:
        arrays: makes the arrays of the results.

    Returns:
        what batch_inference_av_consistency describes.

    Raises:
        NothingLeftError: so many files were skipped that nothing is left.
        EvaluationError: there is no room for an array.
    """
    with_embedding = {
        modality: [path for path in paths if path in embedded.stores[modality]]
        for modality, paths in plan.inputs.items()
    }
    audio_paths, video_paths, numbers, pair_cells = order_rows(
        with_embedding["audio"], with_embedding["video"], plan.pairing.pairs, plan.retrieval
    )
    pairs = [plan.pairing.pairs[i] for i in numbers]
    if options.pairs_only:
        audio_paths, video_paths, pair_cells = order_files(plan.pairing.pairs, numbers)
    counts = {
        "audio": len(audio_paths),
        "video": len(video_paths),
        "pairs": len(pairs),
        "pairs_skipped": len(plan.pairing.pairs) - len(pairs),
        "unmatched": count_unmatched(plan, embedded),
        "failed": len(embedded.failures),
        **({"rows_skipped": len(plan.manifest.faults)} if plan.manifest is not None else {}),
    }
    if not audio_paths or not video_paths:
        raise NothingLeftError(counts)
    rows, captions = {"audio": audio_paths, "video": video_paths}, None
    if plan.captions is not None:
        captions = order_captions(
            *(plan.captions, set(with_embedding["text"]), rows, numbers, pair_cells),
            *(plan.retrieval, options.pairs_only),
        )
        rows["text"] = captions.texts
        counts |= count_captions(plan, captions, numbers, embedded.truncated_texts)
    embeddings = copy_embeddings(rows, embedded, arrays)
    contents = {m: [embedded.stores[m].content_of(path) for path in paths] for m, paths in rows.items()}
    matrix = None
    groups = number_groups(plan.groups and [plan.groups[i] for i in numbers])
    device = embedded.device if embedded.device.type == "cuda" else torch.device("cpu")  # that has float64
    comparison = Comparison(contents, embeddings, device, options.seed)
    if options.pairs_only:
        lines = Lines(tuple(pair_cells.T), np.stack([np.arange(len(pairs))] * 2, axis=1))
        compared = comparison.compare_pairs("audio", "video", lines, groups)
    else:
        matrix = new_matrix(arrays, (len(audio_paths), len(video_paths)), options.max_matrix_gb)
        compared = comparison.compare_modalities("audio", "video", pair_cells, groups, matrix)
    metrics, scores = compared.metrics, compared.scores
    audio_names, video_names = (
        [files.names[path] for path in paths]
        for files, paths in ((plan.audio, audio_paths), (plan.video, video_paths))
    )
    if not options.pairs_only:
        scores |= find_best_others(compared, pair_cells, (audio_names, video_names))
    scores |= describe_files(plan, embedded, embeddings, rows, pair_cells)
    if plan.groups is not None:
        scores["group"] = [plan.groups[i] for i in numbers]
    leading = None
    if pairs:
        interval = metrics["paired_similarity_interval"]
        leading = scores["similarity"], Mean(metrics["paired_similarity_mean"], interval)
    protocol_scores = score_protocols(plan, embedded, numbers, leading, options.seed, compared.groups)
    scores |= protocol_scores.columns
    of_captions = {}
    if captions is not None:
        of_rows = groups_of_rows(plan, numbers, pair_cells, rows)
        files = pair_cells if options.pairs_only else None
        figures, agreements = compare_captions(comparison, captions, of_rows, files)
        metrics |= figures
        scores |= caption_scores(captions, agreements, len(pairs))
        of_captions = {"text_names": captions.names, **agreements}
    if plan.manifest is not None:
        scores |= given_columns(plan.manifest, [plan.manifest.rows[i] for i in numbers])
        if plan.manifest.has_unique_ids:  # by which systems can be compared that name files in their own ways
            scores["audio_key"] = scores["video_key"] = [plan.names[i] for i in numbers]
    absent = RANK_COLUMNS if options.pairs_only else ()
    pair_scores = PairScores([plan.names[i] for i in numbers], pairs, scores, absent)
    failures = [
        {"path": failure.path, "side": failure.modality, "reason": failure.reason}
        for failure in embedded.failures
    ]
    metrics = {
        "mode": "retrieval" if plan.retrieval else "pairs_only" if options.pairs_only else "pairing",
        "pairing_rule": plan.pairing.rule,
        "definitions": DEFINITIONS,
        "counts": counts,
        **metrics,
        "scores": protocol_scores.metrics,
        "lowest_suspects": pair_scores.lowest_suspects(),
        "failures": failures,
        "working_directory": os.getcwd(),
        "protocol": embedded.protocol | {"suspects": describe_sample(compared, options.seed)},
    }
    return {
        **{f"{modality}_embeddings": torch.from_numpy(array) for modality, array in embeddings.items()},
        **of_captions,
        "similarity_matrix": None if matrix is None else torch.from_numpy(matrix),
        "metrics": metrics,
        "audio_names": audio_names,
        "video_names": video_names,
        "pairs": pairs,
        "pair_rows": pair_cells,
        "top_matches": compared.top and dict(zip(MEDIA_MODALITIES, compared.top, strict=True)),
        "histograms": compared.histograms,
        "candidates": compared.candidates,
        "pair_scores": pair_scores,
        "skipped_pairs": list_skipped(plan, embedded, numbers),
        "windows": protocol_scores.windows,
        "failures": failures,
    }


def count_unmatched(plan: Plan, embedded: EmbeddedFiles) -> int:
    """Count the files without a partner that were not skipped."""
    skipped = {(failure.modality, failure.path) for failure in embedded.failures}
    unmatched = {"audio": plan.pairing.unmatched_audio, "video": plan.pairing.unmatched_video}
    return sum((modality, path) not in skipped for modality, paths in unmatched.items() for path in paths)


def copy_embeddings(
    rows: dict[str, Sequence[str]], embedded: EmbeddedFiles, arrays: OutputArrays
) -> dict[str, np.ndarray]:
    """Copy the embeddings into the order of the rows: modality -> (N, E)."""
    embeddings, width = {}, embedded.stores["audio"].array.shape[1]
    for modality, paths in rows.items():
        embeddings[modality] = arrays.new(f"{modality}_embeddings.npy", (len(paths), width))
        embedded.stores[modality].copy_to(embeddings[modality], paths)
    return embeddings


def new_matrix(arrays: OutputArrays, shape: tuple[int, int], max_gb: float) -> np.ndarray | None:
    """Make room for the similarity matrix; None where it would be too large."""
    gigabytes = 4e-9 * math.prod(shape)
    if gigabytes <= max_gb:
        return arrays.new(MATRIX_NAME, shape)
    log.info(
        "%s is left out: it would take %.1f GB; --max_matrix_gb %d writes it",
        *(MATRIX_NAME, gigabytes, math.ceil(gigabytes)),
    )
    return None


def describe_files(
    plan: Plan,
    embedded: EmbeddedFiles,
    embeddings: dict[str, np.ndarray],
    rows: dict[str, Sequence[str]],
    pair_cells: np.ndarray,
) -> dict[str, Sequence[Any]]:
    """Return what the columns of pair_scores.csv say of the two files of each pair."""
    columns = {}
    for modality, files, indices in zip(
        MEDIA_MODALITIES, (plan.audio, plan.video), pair_cells.T, strict=True
    ):
        # 1 where all clips of the file have the same embedding, less the more they differ
        norms = row_norms(embeddings[modality], indices)
        columns[f"{modality}_clips_alike"] = norms / embedded.scales[modality]
        key_of = cache(files.stable_key)
        columns[f"{modality}_key"] = [key_of(rows[modality][i]) for i in indices.tolist()]
    return columns


def row_norms(rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms (P,) of some rows of (N, E)."""
    parts = [indices[i : i + 1024] for i in range(0, len(indices), 1024)]
    norms = [np.linalg.norm(rows[part].astype(np.float64), axis=1) for part in parts]
    return np.concatenate([np.empty(0), *norms])


@dataclass(frozen=True)
class Compared:
    """What the comparison of two modalities gives."""

    metrics: dict[str, Any]
    scores: dict[str, np.ndarray]  # of the pairs
    histograms: dict[str, np.ndarray]
    candidates: dict[str, Candidates]  # direction -> what each pair competes with
    top: tuple[Top, Top] | None  # of each row the best columns, of each column the best rows
    truth: Truth
    sampled: Cells  # mismatches
    groups: Sequence[int] | None  # (P,) number of the group of each pair


@dataclass(frozen=True)
class Lines:
    """A matrix in which a file of several pairs has several rows or columns, and the pairs in it."""

    rows: tuple[np.ndarray, np.ndarray]  # (N,) of each row of the matrix the row of the embeddings; (M,)
    pairs: np.ndarray  # (P, 2) row and column

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)"""
        return len(self.rows[0]), len(self.rows[1])

    def look_up(self, vectors: tuple[np.ndarray, np.ndarray], index: np.ndarray) -> Cells:
        """Compute cells (C, 2) of the matrix."""
        places = np.stack([rows[of] for rows, of in zip(self.rows, index.T, strict=True)], axis=1)
        return replace(look_up(*vectors, places), index=index)


@dataclass(frozen=True)
class Comparison:
    """Comparisons between the modalities of a run."""

    contents: dict[str, Sequence[int]]  # modality -> for each row a number, the same for equal contents
    embeddings: dict[str, np.ndarray]  # modality -> (N, E)
    device: torch.device
    seed: int  # of the bootstrap and of the sample

    def compare_modalities(
        self,
        modality: str,
        other: str,
        pair_cells: np.ndarray,
        groups: Sequence[int] | None,
        matrix: np.ndarray | None = None,
        span: slice = slice(None),
    ) -> Compared:
        """Compare all rows of one modality with all rows of another.

        Args:
            pair_cells: (P, 2) the rows that belong together.
            groups: (P,) number of the group of each pair; None: each is its own, and copies of one together.
            matrix: to be filled in.
            span: of the rows, if not all of the modality.
        """
        rows, columns = self.embeddings[modality][span], self.embeddings[other]
        contents = self.contents[modality][span], self.contents[other]
        pair_cells = pair_cells - [span.start or 0, 0]
        of_pairs = [(contents[0][i], contents[1][j]) for i, j in pair_cells.tolist()]
        truth = find_truth(*contents, of_pairs)
        if groups is None and len(set(of_pairs)) < len(of_pairs):  # copies of a pair say no more than one
            groups = number_groups(of_pairs)
        shape = len(rows), len(columns)
        sampled = (
            sample_mismatches(shape, truth, self.seed) if len(pair_cells) else np.empty((0, 2), np.int64)
        )
        pairs, true, sample = (look_up(rows, columns, index) for index in (pair_cells, truth.index, sampled))
        found = scan(rows, columns, pairs, sample, matrix, MatrixProgress(shape).update, self.device)
        metrics, scores, histograms, candidates = compute_metrics(
            Found(
                found,
                pairs,
                TrueCells(truth, true),
                Sample(sample, found.n_at_least, shape),
                None if groups is None else np.asarray(groups),
            ),
            self.seed,
            (modality, other),
        )
        return Compared(metrics, scores, histograms, candidates, found.top, truth, sample, groups)

    def compare_pairs(
        self, modality: str, other: str, lines: Lines, groups: Sequence[int] | None
    ) -> Compared:
        """Compare pairs with sampled mismatches, without counting over all rows and columns.

        Args:
            lines: of the matrix that compare_modalities would count over, in pairing mode.
            groups: as in compare_modalities.
        """
        vectors = self.embeddings[modality], self.embeddings[other]
        contents = [
            np.asarray(self.contents[m])[of_lines].tolist()
            for m, of_lines in zip((modality, other), lines.rows, strict=True)
        ]
        of_pairs = [(contents[0][i], contents[1][j]) for i, j in lines.pairs.tolist()]
        truth = find_truth(*contents, of_pairs)
        if groups is None and len(truth.index) < len(of_pairs):  # copies of a pair say no more than one
            groups = number_groups(of_pairs)
        sampled = sample_mismatches(lines.shape, truth, self.seed)
        pairs, mismatches = (lines.look_up(vectors, index) for index in (lines.pairs, sampled))
        beside = [[], []]
        for axis in (0, 1):
            references = choose_references(lines.shape, 1 - axis, self.seed)
            chosen = list(contents)
            chosen[1 - axis] = [contents[1 - axis][i] for i in references.tolist()]
            nearby = find_truth(*chosen, truth.combinations(contents))
            index = nearby.index.copy()
            index[:, 1 - axis] = references[index[:, 1 - axis]]
            true = TrueCells(nearby, replace(lines.look_up(vectors, index), index=nearby.index))
            others = vectors[1 - axis][lines.rows[1 - axis][references]]
            for found, cells in zip(beside, (pairs, mismatches), strict=True):
                own = lines.rows[axis][cells.index[:, axis]]
                counts = count_among(vectors[axis], own, cells.keys, others)
                is_counted = np.isin(cells.index[:, 1 - axis], references) & (cells is mismatches)
                found.append(compare_beside(cells, axis, counts, true, len(references), is_counted))
        metrics, scores, histograms = compute_sampled_metrics(
            SampledFound(
                *(pairs, mismatches, tuple(beside[0]), tuple(beside[1])),
                math.prod(lines.shape) - int(truth.n_cells.sum()),
                None if groups is None else np.asarray(groups),
            ),
            self.seed,
        )
        return Compared(metrics, scores, histograms, {}, None, truth, mismatches, groups)


def compare_beside(
    cells: Cells,
    axis: int,
    counts: tuple[np.ndarray, np.ndarray],
    true: TrueCells,
    n_references: int,
    is_counted: np.ndarray,
) -> Beside:
    """Leave the true cells, and the cell itself, out of counts over the references.

    Args:
        cells: C of them.
        axis: 0 for their rows, 1 for their columns.
        counts: (C,) references that are more similar than the cell, and those that are as similar.
        true: the true cells among the references.
        is_counted: (C,) whether the cell itself is among the references, and no true cell.
    """
    n_true, n_better, n_equal = true.count_in_lines(cells, axis)
    return Beside(
        counts[0] - n_better,
        counts[1] - n_equal - is_counted,
        n_references - n_true - is_counted,
        (n_better + n_equal) / np.maximum(n_true, 1),
        n_true > 0,
    )


def find_best_others(
    compared: Compared, pair_cells: np.ndarray, names: tuple[Sequence[str], Sequence[str]]
) -> dict[str, Sequence[Any]]:
    """Find for each suspect the mismatch of its row, and of its column, that is the most similar.

    Args:
        names: of the rows and of the columns.

    Returns:
        columns of pair_scores.csv; empty where a pair is no suspect, or the TOP best are all true.
    """
    columns, suspects = {}, np.flatnonzero(compared.scores.get("suspect", ()))
    for axis, modality in ((0, "video"), (1, "audio")):
        found, similarities = [None] * len(pair_cells), np.full(len(pair_cells), np.nan)
        lines = pair_cells[suspects, axis]
        matches, scores = compared.top[axis].indices[lines], compared.top[axis].similarities[lines]
        cells = np.stack([np.broadcast_to(lines[:, None], matches.shape), matches], axis=-1).reshape(-1, 2)
        is_true = compared.truth.contains(cells if axis == 0 else cells[:, ::-1]).reshape(matches.shape)
        is_wrong = ~is_true & (matches >= 0)
        first = is_wrong.argmax(1)
        for i in np.flatnonzero(is_wrong.any(1)).tolist():
            pair, match = suspects[i], matches[i, first[i]]
            found[pair], similarities[pair] = names[1 - axis][match], scores[i, first[i]]
        columns |= {f"best_other_{modality}": found, f"best_other_{modality}_similarity": similarities}
    return columns


def groups_of_rows(
    plan: Plan, numbers: Sequence[int], pair_cells: np.ndarray, rows: dict[str, Sequence[str]]
) -> dict[str, list[int]] | None:
    """Number the group of each row of a modality: that of its first pair, or of the file itself.

    Args:
        numbers, pair_cells: as order_rows gives them.
    """
    if plan.file_groups is None:
        return None
    numbered = {}
    for axis, modality in enumerate(MEDIA_MODALITIES):
        groups = [plan.file_groups[modality][path] for path in rows[modality]]
        for i, row in reversed(list(zip(numbers, pair_cells[:, axis].tolist(), strict=True))):
            groups[row] = plan.groups[i]
        numbered[modality] = number_groups(groups)
    return numbered


def describe_sample(compared: Compared, seed: int) -> dict[str, Any]:
    """Describe for the protocol how suspects are found."""
    return {
        "statistic": "rank product",
        "mismatches": len(compared.sampled.keys),
        "seed": seed,
        "false_discovery_rate": FALSE_DISCOVERY_RATE,
    }


# Captions


def count_captions(
    plan: Plan, captions: CaptionRows, numbers: Sequence[int], truncated_texts: set[str]
) -> dict[str, int]:
    """Count captions, and pairs without one; warn of those that are truncated.

    Args:
        numbers: of the pairs, as order_rows gives them.
    """
    names = set(captions.names)
    texts = plan.captions.texts
    if too_long := [name for name, text in texts.items() if name in names and text in truncated_texts]:
        log.warning("%d captions are too long, and truncated: %s", len(too_long), shorten(too_long))
    return {
        "text": len(captions.names),
        "text_unmatched": len(texts) - len(plan.captions.used),
        "text_skipped": plan.captions.n_skipped,
        "text_cut": len(too_long),
        "pairs_without_text": sum(plan.captions.of_pairs["video"][i] not in names for i in numbers),
    }


def compare_captions(
    comparison: Comparison,
    captions: CaptionRows,
    groups: dict[str, list[int]] | None,
    files: np.ndarray | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Compare captions with sounds and with videos, if any caption has an embedding.

    Args:
        groups: modality -> the group of each row.
        files: (P, 2) the rows of the files of all pairs, where pairs alone are compared; else None.

    Returns:
        text_audio and text_video, as they are in metrics.json, and as the API returns them.
    """
    metrics, agreements = {}, {}
    for axis, modality in enumerate(MEDIA_MODALITIES if captions.texts else ()):
        cells = captions.cells[modality]
        of_pairs = groups and [groups[modality][file] for file in cells[:, 1].tolist()]
        if files is None:
            span = captions.spans[modality]
            compared = comparison.compare_modalities("text", modality, cells, of_pairs, span=span)
        elif len(cells):
            with_caption = np.flatnonzero(captions.of_pairs[modality] >= 0)
            pairs = np.stack([np.arange(len(cells)), with_caption], axis=1)
            lines = Lines((cells[:, 0], files[:, axis]), pairs)
            compared = comparison.compare_pairs("text", modality, lines, of_pairs)
        else:
            continue
        metrics[f"text_{modality}"] = compared.metrics
        agreements[f"text_{modality}"] = {
            "pair_rows": cells,
            **compared.scores,
            "histograms": compared.histograms,
            "candidates": compared.candidates,
        }
    return metrics, agreements


def caption_scores(
    captions: CaptionRows, agreements: dict[str, dict[str, Any]], n_pairs: int
) -> dict[str, Sequence[Any]]:
    """Return what captions add to the columns of pair_scores.csv.

    Args:
        agreements: as compare_captions returns them.
    """
    columns = {"caption": [None] * n_pairs}
    if not captions.are_shared:
        columns["audio_caption"] = [None] * n_pairs
    for modality in MEDIA_MODALITIES:
        cells, of_pairs = captions.cells[modality], captions.of_pairs[modality]
        with_caption = np.flatnonzero(of_pairs >= 0)
        for column, key in (("similarity", "similarity"), ("rank", f"{modality}_rank")):
            found = agreements.get(f"text_{modality}", {}).get(key)
            if found is not None:
                values = columns[f"text_{modality}_{column}"] = np.full(n_pairs, np.nan)
                values[with_caption] = found[of_pairs[with_caption]]
        is_own = modality == "audio" and not captions.are_shared
        texts = columns["audio_caption" if is_own else "caption"]
        for pair in with_caption.tolist():
            texts[pair] = captions.texts[cells[of_pairs[pair], 0]]
    return columns


# Pair by pair


def given_columns(manifest: Manifest, rows: Sequence[int]) -> dict[str, list[Any]]:
    """Return what pair_scores.csv says of some rows of a manifest that is not computed.

    A column that has the name of one of ours is handed on as manifest_NAME.
    """
    columns = {"line": [int(manifest.lines[row]) for row in rows]}
    for meaning in ("id", "start", "end"):
        if meaning in manifest.column_of:
            columns[meaning] = [manifest.get(meaning, row) for row in rows]
    for name in manifest.other_columns:
        values = manifest.columns[name]
        columns[f"manifest_{name}" if name in OUR_COLUMNS else name] = [values[row] for row in rows]
    return columns


def list_skipped(plan: Plan, embedded: EmbeddedFiles, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """List the pairs without scores, and the rows of a manifest that are no pairs, each with its reason.

    Args:
        numbers: of the pairs that have scores.
    """
    scored, found = set(numbers), []
    for number, pair in enumerate(plan.pairing.pairs):
        if number not in scored:
            row = number if plan.manifest is None else plan.manifest.rows[number]
            found.append((row, plan.names[number], *map(file_of, pair), embedded.why_skipped(pair)))
    if plan.manifest is not None:
        for row, fault in plan.manifest.faults.items():
            name, *paths = (plan.manifest.get(meaning, row) for meaning in ("id", "audio", "video"))
            found.append((row, *("" if x is None else str(x) for x in (name, *paths)), fault))
        found.sort(key=itemgetter(0))
        given = given_columns(plan.manifest, [row for row, *_ in found])
    skipped = [
        {"name": name, "audio": audio, "video": video, "status": f"skipped: {reason}"}
        for _, name, audio, video, reason in found
    ]
    if plan.manifest is not None:
        for i, values in enumerate(skipped):
            values |= {column: given[column][i] for column in given}
    return skipped


class PairScores(Sequence):
    """What pair_scores.csv says of each pair that has scores, as a dictionary; stored in columns.

    Args:
        names, pairs: P of each.
        columns: further ones by name; those that have no name of ours come last.
        absent: names of columns that are left out.
    """

    def __init__(
        self,
        names: Sequence[str],
        pairs: Sequence[tuple[str, str]],
        columns: dict[str, Sequence[Any]],
        absent: Sequence[str] = (),
    ):
        self.names, self.pairs = names, pairs
        self.caption_columns = tuple(name for name in CAPTION_COLUMNS if name in columns)
        self.protocol_columns = tuple(name for name in PROTOCOLS if name in columns)
        listed = (*MANIFEST_COLUMNS, *PAIR_COLUMNS, *PROTOCOLS, *WEAKEST_COLUMNS, *GROUP_COLUMNS)
        self.written_columns = tuple(
            column
            for column in (*listed, *CAPTION_COLUMNS, *(c for c in columns if c not in OUR_COLUMNS))
            if column in columns or (column in PAIR_COLUMNS and column not in absent)
        )
        self.similarity_columns = {c for c in OUR_COLUMNS if c.endswith("similarity")} | set(PROTOCOLS)
        self.columns = {  # texts as objects: an array of strings gives each the room of the longest
            c: np.asarray(columns[c], object if isinstance(columns[c], list) else None)
            for c in self.written_columns
            if c in columns
        }

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the columns of pair_scores.csv of one pair; None for a figure that cannot be told."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]  # also from the end; or an IndexError
        audio, video = self.pairs[i]
        figures = dict.fromkeys(self.written_columns)
        figures |= {column: values[i : i + 1].tolist()[0] for column, values in self.columns.items()}
        figures = {column: None if value != value else value for column, value in figures.items()}  # NaN
        paths = {"audio": file_of(audio), "video": file_of(video)}
        return {"name": self.names[i], **paths, "status": "ok", **figures}

    def rows(self, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
        """Yield some columns of each pair; similarities as float32, which is what they are."""
        texts = {"name": self.names, "status": itertools.repeat("ok", len(self))}
        texts |= {
            modality: [file_of(pair[axis]) for pair in self.pairs]
            for axis, modality in enumerate(MEDIA_MODALITIES)
        }
        found = []
        for column in columns:
            values = self.columns.get(column)
            if column in texts:
                found.append(texts[column])
            elif values is None:
                found.append(itertools.repeat(None, len(self)))
            elif column in self.similarity_columns and values.dtype != object:
                found.append(values.astype(np.float32))
            else:
                found.append(values.tolist())
        return zip(*found, strict=True)

    def lowest(self, n: int) -> list[int]:
        """Return the numbers of the n least similar pairs, the lowest first."""
        return np.argsort(self.columns["similarity"], kind="stable")[:n].tolist()

    def lowest_suspects(self) -> list[dict[str, Any]]:
        """Return names, similarities and best other matches of the suspects, the lowest first."""
        suspects = np.flatnonzero(self.columns.get("suspect", ()))
        if not len(suspects):
            return []
        listed = ("name", "similarity", *OTHER_COLUMNS)
        lowest = suspects[np.argsort(self.columns["similarity"][suspects], kind="stable")]
        pairs = (self[i] for i in lowest[:SUSPECTS_LISTED].tolist())
        return [{c: pair.get(c) for c in listed} for pair in pairs]
