"""All that a run found, as one dictionary."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from imagebind.evaluation.compare.arrays import OutputArrays
from imagebind.evaluation.compare.comparison import (
    Compared,
    Comparison,
    Lines,
    describe_best_others,
    find_best_others,
)
from imagebind.evaluation.compare.intervals import Mean
from imagebind.evaluation.compare.keys import from_keys, reaches
from imagebind.evaluation.compare.method import describe_method
from imagebind.evaluation.compare.metrics import DEFINITIONS
from imagebind.evaluation.compare.pair_scores import RANK_COLUMNS, ManifestRows, PairScores, list_skipped
from imagebind.evaluation.compare.protocols import Protocol
from imagebind.evaluation.compare.rows import CaptionRows, order_captions, order_files, order_rows
from imagebind.evaluation.compare.scores import score_protocols
from imagebind.evaluation.compare.suspects import FALSE_DISCOVERY_RATE
from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES, EmbeddedFiles
from imagebind.evaluation.errors import NothingLeftError
from imagebind.evaluation.inputs.groups import number_groups
from imagebind.evaluation.inputs.plan import Plan
from imagebind.evaluation.options import Options
from imagebind.names import shorten

MATRIX_NAME = "similarity_matrix.npy"
Results = dict[str, Any]  # what batch_inference_av_consistency returns

log = logging.getLogger(__name__)


def build_results(
    plan: Plan,
    embedded: EmbeddedFiles,
    protocols: Sequence[Protocol],
    arrays: OutputArrays,
    options: Options,
) -> Results:
    """Compare the files that have an embedding.

    Args:
        arrays: makes the arrays of the results.

    Returns:
        what batch_inference_av_consistency describes.

    Raises:
        NothingLeftError: so many files were skipped that nothing is left.
        EvaluationError: there is no room for an array.
    """
    rows, numbers, pair_cells = choose_rows(plan, embedded, options.pairs_only)
    pairs = [plan.pairing.pairs[i] for i in numbers]
    counts = count_files(plan, embedded, rows, len(pairs))
    if not all(rows.values()):
        raise NothingLeftError(counts)
    captions = None
    if plan.captions is not None:
        texts = {text for text in plan.inputs["text"] if text in embedded.stores["text"]}
        captions = order_captions(
            *(plan.captions, texts, rows, numbers, pair_cells, plan.retrieval, options.pairs_only)
        )
        rows["text"] = captions.texts
        counts |= count_captions(plan, captions, embedded.truncated_texts)
    embeddings = copy_embeddings(rows, embedded, arrays)
    contents = {m: [embedded.stores[m].content_of(path) for path in paths] for m, paths in rows.items()}
    groups = number_groups(plan.groups and [plan.groups[i] for i in numbers])
    device = embedded.model.device
    if device.type not in ("cuda", "cpu"):
        log.info("%s is not used for float64: the CPU computes the similarities", device)
        device = torch.device("cpu")
    comparison = Comparison(contents, embeddings, device, options.seed)
    names = [
        [files.names[path] for path in rows[m]]
        for m, files in zip(MEDIA_MODALITIES, (plan.audio, plan.video), strict=True)
    ]
    matrix, best_others = None, {}
    if options.pairs_only:
        lines = Lines(tuple(pair_cells.T), np.stack([np.arange(len(pairs))] * 2, axis=1))
        compared = comparison.compare_pairs("audio", "video", lines, groups)
    else:
        matrix = new_matrix(arrays, (len(names[0]), len(names[1])), options.max_matrix_gb)
        compared = comparison.compare_modalities("audio", "video", pair_cells, groups, matrix)
        best_others = find_best_others(compared, pair_cells)
    metrics, leading = compared.metrics, None
    if pairs:
        interval = metrics["paired_similarity_interval"]
        leading = compared.scores["similarity"], Mean(metrics["paired_similarity_mean"], interval)
    of_protocols = score_protocols(plan, embedded, protocols, numbers, leading, options.seed)
    columns = compared.scores | {name: scores[numbers] for name, scores in of_protocols.columns.items()}
    columns |= describe_best_others(compared, best_others, dict(zip(MEDIA_MODALITIES, names, strict=True)))
    columns |= describe_files(plan, embedded, embeddings, rows, pair_cells)
    if plan.groups is not None:
        columns["group"] = [plan.groups[i] for i in numbers]
    of_captions = {}
    if captions is not None:
        of_rows = groups_of_rows(plan, numbers, pair_cells, rows)
        of_pairs = (pair_cells, groups) if options.pairs_only else None
        figures, agreements = compare_captions(comparison, captions, of_rows, of_pairs)
        metrics |= figures
        columns |= caption_scores(captions, agreements, len(pairs))
        of_captions = {"text_names": captions.names, **agreements}
    pair_scores = tabulate(plan, numbers, columns, RANK_COLUMNS if options.pairs_only else ())
    if options.keep_above is not None:
        similarity = columns.get("similarity", np.empty(0))
        metrics["kept"] = count_kept(similarity, compared, options.keep_above) | {"file": options.kept_name}
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
        "scores": of_protocols.metrics,
        "lowest_suspects": pair_scores.lowest_suspects(),
        "failures": failures,
        "working_directory": os.getcwd(),
        "protocol": describe_method(embedded, protocols)
        | {"suspects": describe_sample(compared, options.seed)},
    }
    skipped = list_skipped(plan, embedded, numbers, pair_scores.row_columns, of_protocols.columns)
    windows = of_protocols.windows
    return {
        **{f"{modality}_embeddings": torch.from_numpy(array) for modality, array in embeddings.items()},
        **of_captions,
        "similarity_matrix": None if matrix is None else torch.from_numpy(matrix),
        "metrics": metrics,
        "audio_names": names[0],
        "video_names": names[1],
        "audio_paths": list(rows["audio"]),
        "video_paths": list(rows["video"]),
        "pairs": pairs,
        "pair_rows": pair_cells,
        "top_matches": compared.top and dict(zip(MEDIA_MODALITIES, compared.top, strict=True)),
        "best_others": best_others or None,
        "histograms": compared.histograms,
        "candidates": compared.candidates,
        "pair_scores": pair_scores,
        "skipped_pairs": [pair for _, pair in skipped],
        "windows": windows and [windows[number] for number in numbers],
        "skipped_windows": windows and [[] if number is None else windows[number] for number, _ in skipped],
        "failures": failures,
    }


def choose_rows(
    plan: Plan, embedded: EmbeddedFiles, pairs_only: bool
) -> tuple[dict[str, Sequence[str]], list[int], np.ndarray]:
    """Choose the files behind the rows, from those that have an embedding.

    Returns:
        modality -> files; the numbers of the pairs among them, and the cells of these, as order_rows.
    """
    found = [[path for path in plan.inputs[m] if path in embedded.stores[m]] for m in MEDIA_MODALITIES]
    audio_paths, video_paths, numbers, cells = order_rows(*found, plan.pairing.pairs, plan.retrieval)
    if pairs_only:
        audio_paths, video_paths, cells = order_files(plan.pairing.pairs, numbers)
    return {"audio": audio_paths, "video": video_paths}, numbers, cells


def count_files(
    plan: Plan, embedded: EmbeddedFiles, rows: dict[str, Sequence[str]], n_pairs: int
) -> dict[str, int]:
    """Count what is compared, and what is not."""
    return {
        **{modality: len(paths) for modality, paths in rows.items()},
        "pairs": n_pairs,
        "pairs_skipped": len(plan.pairing.pairs) - n_pairs,
        "unmatched": count_unmatched(plan, embedded),
        "failed": len(embedded.failures),
        **({"rows_skipped": len(plan.manifest.faults)} if plan.manifest is not None else {}),
    }


def tabulate(
    plan: Plan, numbers: Sequence[int], columns: dict[str, Sequence[Any]], absent: Sequence[str]
) -> PairScores:
    """Make the table of the pairs that have scores, with what the manifest says of them.

    Args:
        numbers: of the pairs.
        columns: that are computed.
        absent: as in PairScores.
    """
    names, pairs = ([values[i] for i in numbers] for values in (plan.names, plan.pairing.pairs))
    if plan.manifest is None:
        return PairScores(names, pairs, columns, absent)
    of_manifest = ManifestRows(plan.manifest, [plan.manifest.rows[i] for i in numbers])
    columns |= of_manifest.columns()
    if plan.manifest.has_unique_ids:  # by which systems can be compared that name files in their own ways
        columns |= {"audio_key": names, "video_key": names}
    return PairScores(names, pairs, columns, absent, of_manifest)


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
        columns[f"{modality}_clips_alike"] = norms / embedded.model.scales[modality]
        key_of = cache(files.stable_key)
        columns[f"{modality}_key"] = [key_of(rows[modality][i]) for i in indices.tolist()]
    return columns


def row_norms(rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms (P,) of some rows of (N, E)."""
    parts = [indices[i : i + 1024] for i in range(0, len(indices), 1024)]
    norms = [np.linalg.norm(rows[part].astype(np.float64), axis=1) for part in parts]
    return np.concatenate([np.empty(0), *norms])


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


def count_kept(similarity: np.ndarray, compared: Compared, threshold: float) -> dict[str, Any]:
    """Count the pairs (P,) that reach a threshold, and the share of mismatches that do."""
    mismatches = reaches(from_keys(compared.sampled.keys), threshold)
    return {
        "threshold": float(threshold),
        "pairs": int(reaches(similarity, threshold).sum()),
        "mismatches_share": float(mismatches.mean()) if len(mismatches) else None,
    }


# Captions


def count_captions(plan: Plan, captions: CaptionRows, truncated_texts: set[str]) -> dict[str, int]:
    """Count captions, and pairs without one; warn of those that are truncated."""
    texts = plan.captions.texts
    rows = zip(captions.names, captions.texts, strict=True)
    if too_long := list(dict.fromkeys(name for name, text in rows if text in truncated_texts)):
        log.warning("%d captions are too long, and truncated: %s", len(too_long), shorten(too_long))
    return {
        "text": len(captions.names),
        "text_unmatched": len(texts) - len(plan.captions.used),
        "text_skipped": plan.captions.n_skipped,
        "text_cut": len(too_long),
        "pairs_without_text": int((captions.of_pairs["video"] < 0).sum()),
    }


def compare_captions(
    comparison: Comparison,
    captions: CaptionRows,
    groups: dict[str, list[int]] | None,
    of_pairs: tuple[np.ndarray, Sequence[int] | None] | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Compare captions with sounds and with videos, if any caption has an embedding.

    Args:
        groups: modality -> the group of each row.
        of_pairs: where pairs alone are compared the rows of the files of all pairs (P, 2), and their groups.

    Returns:
        text_audio and text_video, as they are in metrics.json, and as the API returns them.
    """
    metrics, agreements = {}, {}
    for axis, modality in enumerate(MEDIA_MODALITIES if captions.texts else ()):
        cells, span = captions.cells[modality], captions.spans[modality]
        if not captions.texts[span]:  # where sounds alone have captions, or videos
            continue
        if of_pairs is None:
            of_cells = groups and [groups[modality][file] for file in cells[:, 1].tolist()]
            compared = comparison.compare_modalities("text", modality, cells, of_cells, span=span)
        elif len(cells):
            files, pair_groups = of_pairs
            with_caption = np.flatnonzero(captions.of_pairs[modality] >= 0)
            pairs = np.stack([np.arange(len(cells)), with_caption], axis=1)
            lines = Lines((cells[:, 0], files[:, axis]), pairs)
            of_cells = pair_groups and [pair_groups[i] for i in with_caption.tolist()]
            compared = comparison.compare_pairs("text", modality, lines, of_cells)
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
