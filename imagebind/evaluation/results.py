"""All that a run found, as one dictionary, and the scores of each pair."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from imagebind.evaluation.embedding import MEDIA_MODALITIES, EmbeddedFiles
from imagebind.evaluation.errors import NothingLeftError
from imagebind.evaluation.metrics import compute_metrics
from imagebind.evaluation.options import Options
from imagebind.evaluation.plan import Plan
from imagebind.evaluation.progress import MatrixProgress
from imagebind.evaluation.rows import CaptionRows, find_non_mismatches, order_captions, order_rows
from imagebind.evaluation.similarity import Top, look_up, scan
from imagebind.evaluation.store import OutputArrays
from imagebind.names import shorten

MATRIX_NAME = "similarity_matrix.npy"
SUSPECTS_LISTED = 10  # in metrics.json and the report
PAIR_COLUMNS = (  # of pair_scores.csv, after name and paths
    *("similarity", "video_rank", "audio_rank", "percentile"),
    *("audio_clips_alike", "video_clips_alike", "p_value", "suspect"),
)
CAPTION_COLUMNS = (  # after these, where there are captions
    *("caption", "text_audio_similarity", "text_video_similarity", "text_audio_rank", "text_video_rank"),
)

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
    audio_paths, video_paths, pairs, pair_cells = order_rows(
        with_embedding["audio"], with_embedding["video"], plan.pairing.pairs, plan.retrieval
    )
    counts = {
        "audio": len(audio_paths),
        "video": len(video_paths),
        "pairs": len(pairs),
        "unmatched": plan.pairing.n_unmatched,
        "failed": len(embedded.failures),
    }
    if not audio_paths or not video_paths:
        raise NothingLeftError(counts)
    rows, captions = {"audio": audio_paths, "video": video_paths}, None
    if plan.captions is not None:
        captions = order_captions(plan.captions, set(with_embedding["text"]), rows, pairs, plan.retrieval)
        rows["text"] = captions.texts
        counts |= count_captions(plan, captions, pairs, embedded.truncated_texts)
    embeddings = copy_embeddings(rows, embedded, arrays)
    matrix = new_matrix(arrays, (len(audio_paths), len(video_paths)), options.max_matrix_gb)
    comparison = Comparison(rows, embeddings, embedded.device, options.seed)
    metrics, scores, histograms, top = comparison.compare_modalities(
        "audio", "video", pairs, pair_cells, matrix
    )
    for modality, indices in zip(MEDIA_MODALITIES, pair_cells.T, strict=True):
        # 1 where all clips of the file have the same embedding, less the more they differ
        norms = row_norms(embeddings[modality], indices)
        scores[f"{modality}_clips_alike"] = norms / embedded.scales[modality]
    of_captions = {}
    if captions is not None:
        figures, agreements = compare_captions(comparison, captions)
        metrics |= figures
        scores |= caption_scores(captions, agreements, pair_cells)
        of_captions = {"text_names": captions.names, **agreements}
    pair_scores = PairScores([plan.audio.names[audio] for audio, _ in pairs], pairs, scores)
    failures = [
        {"path": failure.path, "side": failure.modality, "reason": failure.reason}
        for failure in embedded.failures
    ]
    metrics = {
        "mode": "retrieval" if plan.retrieval else "pairing",
        "pairing_rule": plan.pairing.rule,
        "counts": counts,
        **metrics,
        "lowest_suspects": pair_scores.lowest_suspects(),
        "failures": failures,
        "protocol": embedded.protocol,
    }
    return {
        **{f"{modality}_embeddings": torch.from_numpy(array) for modality, array in embeddings.items()},
        **of_captions,
        "similarity_matrix": None if matrix is None else torch.from_numpy(matrix),
        "metrics": metrics,
        "audio_names": [plan.audio.names[path] for path in audio_paths],
        "video_names": [plan.video.names[path] for path in video_paths],
        "pairs": pairs,
        "pair_rows": pair_cells,
        "top_matches": dict(zip(MEDIA_MODALITIES, top, strict=True)),
        "histograms": histograms,
        "pair_scores": pair_scores,
        "failures": failures,
    }


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


def row_norms(rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms (P,) of some rows of (N, E)."""
    parts = [indices[i : i + 1024] for i in range(0, len(indices), 1024)]
    norms = [np.linalg.norm(rows[part].astype(np.float64), axis=1) for part in parts]
    return np.concatenate([np.empty(0), *norms])


@dataclass(frozen=True)
class Comparison:
    """Comparisons between the modalities of a run."""

    rows: dict[str, Sequence[str]]  # modality -> the paths or texts behind its rows
    embeddings: dict[str, np.ndarray]  # modality -> (N, E)
    device: torch.device
    seed: int  # of the bootstrap

    def compare_modalities(
        self,
        modality: str,
        other: str,
        pairs: Sequence[tuple[str, str]],
        pair_cells: np.ndarray,
        matrix: np.ndarray | None = None,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray], tuple[Top, Top]]:
        """Compare all rows of one modality with all rows of another.

        Args:
            pairs: the paths or texts that belong together.
            pair_cells: (P, 2) their rows.
            matrix: to be filled in.

        Returns:
            metrics, scores of the pairs and histograms, as compute_metrics; and the best matches of both.
        """
        rows, columns = self.embeddings[modality], self.embeddings[other]
        non_mismatch_cells = find_non_mismatches(self.rows[modality], self.rows[other], pairs, pair_cells)
        found_pairs, non_mismatches = (
            look_up(rows, columns, cells) for cells in (pair_cells, non_mismatch_cells)
        )
        progress = MatrixProgress((len(rows), len(columns)))
        found = scan(rows, columns, found_pairs, matrix, progress.update, self.device)
        return *compute_metrics(found, found_pairs, non_mismatches, self.seed, (modality, other)), found.top


# Captions


def count_captions(
    plan: Plan, captions: CaptionRows, pairs: Sequence[tuple[str, str]], truncated_texts: set[str]
) -> dict[str, int]:
    """Count captions, and pairs without one; warn of those that are truncated."""
    names = set(captions.names)
    texts = plan.captions.texts
    if too_long := [name for name, text in texts.items() if name in names and text in truncated_texts]:
        log.warning("%d captions are too long, and truncated: %s", len(too_long), shorten(too_long))
    return {
        "text": len(captions.names),
        "text_unmatched": len(texts) - len(plan.captions.used),
        "text_skipped": plan.captions.n_skipped,
        "text_cut": len(too_long),
        "pairs_without_text": sum(plan.captions.of_pair.get(pair) not in names for pair in pairs),
    }


def compare_captions(
    comparison: Comparison, captions: CaptionRows
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Compare captions with sounds and with videos, if any caption has an embedding.

    Returns:
        text_audio and text_video, as they are in metrics.json, and as the API returns them.
    """
    metrics, agreements = {}, {}
    for modality in MEDIA_MODALITIES if captions.texts else ():
        cells, paths = captions.cells[modality], comparison.rows[modality]
        pairs = [(captions.texts[text], paths[file]) for text, file in cells.tolist()]
        figures, scores, histograms, _ = comparison.compare_modalities("text", modality, pairs, cells)
        metrics[f"text_{modality}"] = figures
        agreements[f"text_{modality}"] = {"pair_rows": cells, **scores, "histograms": histograms}
    return metrics, agreements


def caption_scores(
    captions: CaptionRows, agreements: dict[str, dict[str, Any]], pair_cells: np.ndarray
) -> dict[str, Sequence[Any]]:
    """Return what captions add to the columns of pair_scores.csv.

    Args:
        agreements: as compare_captions returns them.
        pair_cells: (P, 2) of the audio-video pairs.
    """
    columns = {"caption": [None] * len(pair_cells)}
    for modality, files in zip(MEDIA_MODALITIES, pair_cells.T.tolist(), strict=True):
        cells = captions.cells[modality]
        cell_of = {file: i for i, file in enumerate(cells[:, 1].tolist())}
        with_caption = [(pair, cell_of[file]) for pair, file in enumerate(files) if file in cell_of]
        for column, key in (("similarity", "similarity"), ("rank", f"{modality}_rank")):
            values = columns[f"text_{modality}_{column}"] = np.full(len(pair_cells), np.nan)
            for pair, i in with_caption:
                values[pair] = agreements[f"text_{modality}"][key][i]
        for pair, i in with_caption:
            columns["caption"][pair] = captions.texts[cells[i, 0]]
    return columns


# Pair by pair


class PairScores(Sequence):
    """What pair_scores.csv says of each pair, as a dictionary; stored in columns."""

    def __init__(
        self, names: Sequence[str], pairs: Sequence[tuple[str, str]], columns: dict[str, Sequence[Any]]
    ):
        self.names, self.pairs = names, pairs
        self.caption_columns = CAPTION_COLUMNS if "caption" in columns else ()
        self.written_columns = PAIR_COLUMNS + self.caption_columns
        self.columns = {  # texts as objects: an array of strings gives each the room of the longest
            c: np.asarray(columns[c], object if c == "caption" else None)
            for c in self.written_columns
            if c in columns
        }

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> dict[str, Any]:
        audio, video = self.pairs[i]
        figures = {column: values[i : i + 1].tolist()[0] for column, values in self.columns.items()}
        return {"name": self.names[i], "audio": audio, "video": video, **figures}

    def lowest(self, n: int) -> list[dict[str, Any]]:
        """Return the n least similar pairs, the lowest first."""
        return [self[i] for i in np.argsort(self.columns["similarity"], kind="stable")[:n].tolist()]

    def lowest_suspects(self) -> list[dict[str, Any]]:
        """Return names and similarities of the suspects, the lowest first."""
        suspects = np.flatnonzero(self.columns.get("suspect", ()))
        lowest = sorted((float(self.columns["similarity"][i]), self.names[i]) for i in suspects)
        return [{"name": name, "similarity": value} for value, name in lowest[:SUSPECTS_LISTED]]
