"""All that a run found."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from imagebind.evaluation.compare.arrays import OutputArrays
from imagebind.evaluation.compare.categories import describe_categories
from imagebind.evaluation.compare.comparison import (
    BestOthers,
    Compared,
    Comparison,
    describe_best_others,
    find_best_others,
)
from imagebind.evaluation.compare.flags import describe_flags, flag_columns
from imagebind.evaluation.compare.intervals import Mean, share_at_most
from imagebind.evaluation.compare.method import describe_method
from imagebind.evaluation.compare.metrics import DEFINITIONS
from imagebind.evaluation.compare.pair_scores import PairScores, list_skipped, tabulate
from imagebind.evaluation.compare.positives import Labels
from imagebind.evaluation.compare.protocol import Protocol
from imagebind.evaluation.compare.rows import Rows, choose_rows
from imagebind.evaluation.compare.scores import ProtocolScores, score_protocols
from imagebind.evaluation.compare.suspects import FALSE_DISCOVERY_RATE
from imagebind.evaluation.compare.texts import (
    TextRows,
    compare_texts,
    count_captions,
    order_texts,
    text_columns,
)
from imagebind.evaluation.compare.ticks import reaches
from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES, EmbeddedFiles
from imagebind.evaluation.errors import NothingLeftError
from imagebind.evaluation.inputs.groups import name_copies
from imagebind.evaluation.inputs.plan import Plan
from imagebind.evaluation.options import Options
from imagebind.spelling import option as spelled

MATRIX_NAME = "similarity_matrix.npy"
MANY_LIKE_PAIRS = 0.03  # share of mismatches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Basis:
    """What a run compares, and how; letters in shapes are those of the comparison."""

    plan: Plan
    embedded: EmbeddedFiles
    protocols: Sequence[Protocol]
    options: Options
    rows: Rows
    texts: TextRows | None  # where there are captions
    embeddings: dict[str, np.ndarray]  # modality -> (N, E)
    counts: dict[str, int]

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Modality -> the names behind its rows."""
        files = {"audio": self.plan.audio, "video": self.plan.video}
        return {m: [files[m].names[path] for path in paths] for m, paths in self.rows.files.items()}

    @cached_property
    def contents(self) -> dict[str, list[int]]:
        """Number what is behind the rows: modality -> (N,), the same for equal contents."""
        behind = self.rows.files if self.texts is None else {**self.rows.files, "text": self.texts.texts}
        stores = self.embedded.leading
        return {m: [stores[m].content_of(source) for source in sources] for m, sources in behind.items()}

    @cached_property
    def copy_of(self) -> list[int | None]:
        """(P,) which pair was the first of the same content; None for that one."""
        first: dict[tuple[int, int], int] = {}
        of_audio, of_video = (self.contents[modality] for modality in MEDIA_MODALITIES)
        cells = self.rows.cells.tolist()
        found = [first.setdefault((of_audio[i], of_video[j]), pair) for pair, (i, j) in enumerate(cells)]
        return [None if of == pair else of for pair, of in enumerate(found)]

    @cached_property
    def groups(self) -> list[str | None] | None:
        """(P,) name of the group of each pair, and of pairs of the same content; None: each is its own."""
        given = self.plan.groups and [self.plan.groups[i] for i in self.rows.numbers]
        return name_copies(given, self.copy_of, [self.plan.names[i] for i in self.rows.numbers])

    @cached_property
    def contents_shown(self) -> tuple[Labels, Labels] | tuple[()]:
        """What rows and columns show: what their pairs do, or the file itself; () where nothing is known."""
        if not self.plan.groups_are_content:
            return ()
        is_alone = self.options.mode == "pairs_only"  # each pair has a row and a column
        cells = [(i, i) for i in range(len(self.rows))] if is_alone else self.rows.cells.tolist()
        shown = []
        for axis, (modality, files) in enumerate(self.rows.files.items()):
            lines = [cell[axis] for cell in cells]
            labels = list(zip(lines, self.groups, strict=True))
            if not is_alone:
                of_files, in_pairs = self.plan.file_groups[modality], set(lines)
                labels += [(i, of_files.get(file)) for i, file in enumerate(files) if i not in in_pairs]
            shown.append([(line, label) for line, label in labels if label is not None])
        return tuple(shown)

    @cached_property
    def groups_of_rows(self) -> dict[str, list[str | None]] | None:
        """Modality -> (N,) name of the group of each row: of its first pair, or of the file itself."""
        if self.plan.groups is None:
            return None
        named = {}
        for axis, (modality, files) in enumerate(self.rows.files.items()):
            of_files = {} if self.plan.file_groups is None else self.plan.file_groups[modality]
            named[modality] = [of_files.get(source) for source in files]
            rows = self.rows.cells[:, axis].tolist()
            for group, row in reversed(list(zip(self.groups, rows, strict=True))):
                named[modality][row] = group
        return named


@dataclass(frozen=True)
class RunResults:
    """All that a run found."""

    basis: Basis
    compared: Compared  # sounds with videos
    matrix: np.ndarray | None  # (N, M)
    best_others: dict[str, BestOthers]
    metrics: dict[str, Any]  # of metrics.json
    of_texts: dict[str, dict[str, Any]]  # text_audio and text_video, where there are captions
    pair_scores: PairScores
    skipped: list[tuple[int | None, dict[str, Any]]]  # as list_skipped
    of_protocols: ProtocolScores

    def to_dict(self) -> dict[str, Any]:
        """Return what batch_inference_av_consistency describes."""
        basis, compared, windows = self.basis, self.compared, self.of_protocols.windows
        names, skipped = basis.names, [number for number, _ in self.skipped]
        of_texts = {} if basis.texts is None else {"text_names": basis.texts.names, **self.of_texts}
        return {
            **{
                f"{modality}_embeddings": torch.from_numpy(rows)
                for modality, rows in basis.embeddings.items()
            },
            **of_texts,
            "similarity_matrix": None if self.matrix is None else torch.from_numpy(self.matrix),
            "metrics": self.metrics,
            "audio_names": names["audio"],
            "video_names": names["video"],
            "audio_paths": list(map(str, basis.rows.files["audio"])),
            "video_paths": list(map(str, basis.rows.files["video"])),
            "audio_sources": list(basis.rows.files["audio"]),
            "video_sources": list(basis.rows.files["video"]),
            "pairs": [tuple(map(str, basis.plan.pairing.pairs[number])) for number in basis.rows.numbers],
            "pair_rows": basis.rows.cells,
            "top_matches": compared.top and dict(zip(MEDIA_MODALITIES, compared.top, strict=True)),
            "best_others": self.best_others or None,
            "histograms": compared.histograms,
            "candidates": compared.candidates,
            "pair_scores": self.pair_scores,
            "skipped_pairs": [pair for _, pair in self.skipped],
            "windows": windows and [windows[number] for number in basis.rows.numbers],
            "skipped_windows": windows and [[] if n is None else windows[n] for n in skipped],
            "failures": self.metrics["failures"],
        }


def build_results(
    plan: Plan,
    embedded: EmbeddedFiles,
    protocols: Sequence[Protocol],
    arrays: OutputArrays,
    options: Options,
) -> RunResults:
    """Compare the files that have an embedding.

    Args:
        arrays: makes the arrays of the results.

    Raises:
        NothingLeftError: so many files were skipped that nothing is left.
        EvaluationError: there is no room for an array.
    """
    basis = start(plan, embedded, protocols, arrays, options)
    comparison = Comparison(basis.contents, basis.embeddings, device_of(embedded), options.seed)
    matrix, compared = compare_media(basis, comparison, arrays)
    best_others = find_best_others(compared, basis.rows.cells)
    of_protocols = score_protocols(
        plan, embedded, protocols, basis.rows.numbers, leading(compared), options.seed
    )
    warn_of_content(compared)
    text_metrics, of_texts = compare_captions(basis, comparison)
    columns = compared.columns | {name: s[basis.rows.numbers] for name, s in of_protocols.columns.items()}
    columns |= describe_best_others(compared, best_others, basis.names) | clips_alike(basis)
    columns |= group_columns(basis)
    if basis.texts is not None:
        columns |= text_columns(basis.texts, of_texts, len(basis.rows))
    flags = flag_columns(embedded, basis.rows)
    pair_scores = tabulate(plan, basis.rows.numbers, columns | flags, options.mode)
    metrics = describe(basis, compared, text_metrics, of_protocols, pair_scores)
    metrics["flags"] = describe_flags(embedded, basis.rows, flags, compared.columns.get("similarity"))
    skipped = list_skipped(plan, embedded, basis.rows.numbers, pair_scores.row_columns, of_protocols.columns)
    return RunResults(
        basis, compared, matrix, best_others, metrics, of_texts, pair_scores, skipped, of_protocols
    )


def start(
    plan: Plan,
    embedded: EmbeddedFiles,
    protocols: Sequence[Protocol],
    arrays: OutputArrays,
    options: Options,
) -> Basis:
    """Choose what is behind the rows, and copy the embeddings into this order.

    Raises:
        NothingLeftError: there is no row.
        EvaluationError: there is no room for an array.
    """
    rows, texts = choose_rows(plan, embedded, options.mode), None
    counts = count_files(plan, embedded, rows)
    if not all(rows.files.values()):
        raise NothingLeftError(counts)
    behind = dict(rows.files)
    if plan.captions is not None:
        known = {text for text in plan.inputs["text"] if text in embedded.leading["text"]}
        texts = order_texts(plan.captions, known, rows, options.mode)
        behind["text"] = texts.texts
        counts |= count_captions(plan.captions, texts, embedded.truncated_texts)
    embeddings = copy_embeddings(behind, embedded, arrays)
    return Basis(plan, embedded, protocols, options, rows, texts, embeddings, counts)


def count_files(plan: Plan, embedded: EmbeddedFiles, rows: Rows) -> dict[str, int]:
    """Count what is compared, and what is not."""
    return {
        **{modality: len(paths) for modality, paths in rows.files.items()},
        "pairs": len(rows),
        "pairs_skipped": len(plan.pairing.pairs) - len(rows),
        "unmatched": count_unmatched(plan, embedded),
        "failed": len(embedded.failures),
        **({"rows_skipped": len(plan.manifest.faults)} if plan.manifest is not None else {}),
    }


def count_unmatched(plan: Plan, embedded: EmbeddedFiles) -> int:
    """Count the files without a partner that were not skipped."""
    skipped = {(failure.modality, failure.source) for failure in embedded.failures}
    unmatched = {"audio": plan.pairing.unmatched_audio, "video": plan.pairing.unmatched_video}
    return sum((modality, path) not in skipped for modality, paths in unmatched.items() for path in paths)


def copy_embeddings(
    rows: dict[str, Sequence[str]], embedded: EmbeddedFiles, arrays: OutputArrays
) -> dict[str, np.ndarray]:
    """Copy the embeddings into the order of the rows: modality -> (N, E)."""
    embeddings, width = {}, embedded.leading["audio"].array.shape[1]
    for modality, paths in rows.items():
        embeddings[modality] = arrays.new(f"{modality}_embeddings.npy", (len(paths), width))
        embedded.leading[modality].copy_to(embeddings[modality], paths)
    return embeddings


def new_matrix(arrays: OutputArrays, shape: tuple[int, int], max_gb: float) -> np.ndarray | None:
    """Make room for the similarity matrix; None where it would be too large."""
    gigabytes = 4e-9 * math.prod(shape)
    if gigabytes <= max_gb:
        return arrays.new(MATRIX_NAME, shape)
    log.info(
        "%s is left out: it would take %.1f GB; %s writes it",
        *(MATRIX_NAME, gigabytes, spelled("max_matrix_gb", math.ceil(gigabytes))),
    )
    return None


def device_of(embedded: EmbeddedFiles) -> torch.device:
    """Return the device that counts similarities."""
    if embedded.model.device.type in ("cuda", "cpu"):
        return embedded.model.device
    log.info("%s is not used for float64: the CPU computes the similarities", embedded.model.device)
    return torch.device("cpu")


def compare_media(
    basis: Basis, comparison: Comparison, arrays: OutputArrays
) -> tuple[np.ndarray | None, Compared]:
    """Compare sounds with videos: return the similarity matrix, if it is kept, and what was found."""
    threshold, alike = basis.options.keep_above, basis.contents_shown or ((), ())
    if basis.options.mode == "pairs_only":  # each pair has a row and a column, whose files may be in others
        pairs = np.stack([np.arange(len(basis.rows))] * 2, axis=1)
        files = tuple(basis.rows.cells.T)
        matrix = comparison.matrix(MEDIA_MODALITIES, pairs, basis.groups, files, alike)
        return None, comparison.compare_drawn(matrix, threshold)
    matrix = comparison.matrix(MEDIA_MODALITIES, basis.rows.cells, basis.groups, alike=alike)
    out = new_matrix(arrays, matrix.shape, basis.options.max_matrix_gb)
    return out, comparison.compare_all(matrix, out, threshold)


def warn_of_content(compared: Compared) -> None:
    """Warn where so many mismatches look like pairs that some may be what they are compared with."""
    share = compared.metrics.get("mismatches_like_pairs", 0)
    if compared.metrics.get("suspects") is not None and share > MANY_LIKE_PAIRS:
        log.warning(
            "%.0f %% of the combinations that are no pair stand out as much as the median pair: the model "
            "cannot tell them, or content is there several times; then name it with content_group",
            100 * share,
        )


def leading(compared: Compared) -> tuple[np.ndarray, Mean] | None:
    """Return the similarities of the pairs and their mean, which are the first protocol's scores."""
    if "similarity" not in compared.columns:
        return None
    mean, interval = (compared.metrics[f"paired_similarity_{what}"] for what in ("mean", "interval"))
    return compared.columns["similarity"], Mean(mean, interval)


def compare_captions(
    basis: Basis, comparison: Comparison
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """As compare_texts, of the captions of a run, if it has any."""
    if basis.texts is None:
        return {}, {}
    is_alone, groups = basis.options.mode == "pairs_only", basis.groups_of_rows
    if is_alone and groups is not None:  # a file has one row, and may be in pairs of several groups
        groups = {modality: list(basis.groups) for modality in groups}
    shown = basis.contents_shown and dict(zip(MEDIA_MODALITIES, basis.contents_shown, strict=True))
    of_pairs = basis.groups or [None] * len(basis.rows)
    return compare_texts(comparison, basis.texts, basis.rows, groups, is_alone, shown or {}, of_pairs)


def clips_alike(basis: Basis) -> dict[str, np.ndarray]:
    """Tell how alike the clips of each pair's files are: 1 where all have the same embedding.

    Of a modality whose scale is not known, as no model was used, nothing is told.
    """
    return {
        f"{modality}_clips_alike": row_norms(basis.embeddings[modality], cells)
        / basis.embedded.model.scales[modality]
        for modality, cells in zip(MEDIA_MODALITIES, basis.rows.cells.T, strict=True)
        if modality in basis.embedded.model.scales
    }


def row_norms(rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms (P,) of some rows of (N, E)."""
    parts = [indices[i : i + 1024] for i in range(0, len(indices), 1024)]
    norms = [np.linalg.norm(rows[part].astype(np.float64), axis=1) for part in parts]
    return np.concatenate([np.empty(0), *norms])


def group_columns(basis: Basis) -> dict[str, list[str | None]]:
    """Return what pair_scores.csv says of groups and copies, where there are any."""
    columns, names = {}, [basis.plan.names[i] for i in basis.rows.numbers]
    if basis.groups is not None:
        columns["group"] = basis.groups
    if any(of is not None for of in basis.copy_of):
        columns["copy_of"] = [None if of is None else names[of] for of in basis.copy_of]
    if basis.plan.categories is not None:
        columns["category"] = [basis.plan.categories[i] for i in basis.rows.numbers]
    return columns


def describe(
    basis: Basis,
    compared: Compared,
    text_metrics: dict[str, dict[str, Any]],
    of_protocols: ProtocolScores,
    pair_scores: PairScores,
) -> dict[str, Any]:
    """Return what metrics.json holds."""
    metrics, options, embedded = compared.metrics | text_metrics, basis.options, basis.embedded
    if options.keep_above is not None:
        metrics["kept"] = count_kept(compared, options.keep_above) | {"file": options.kept_name}
    if basis.plan.categories is not None:
        categories = [basis.plan.categories[number] for number in basis.rows.numbers]
        similarity = compared.columns.get("similarity", np.empty(0))
        metrics |= describe_categories(similarity, categories, basis.groups, options.seed)
    failures = [{"path": str(f.source), "side": f.modality, "reason": f.reason} for f in embedded.failures]
    method = describe_method(embedded, basis.protocols)
    return {
        "mode": options.mode,
        "pairing_rule": basis.plan.pairing.rule,
        "definitions": DEFINITIONS,
        "counts": basis.counts | {"copies": sum(of is not None for of in basis.copy_of)},
        **metrics,
        "scores": of_protocols.metrics,
        "lowest_suspects": pair_scores.lowest_suspects(),
        "failures": failures,
        "working_directory": os.getcwd(),
        "protocol": method | {"suspects": describe_sample(compared, basis)},
    }


def describe_sample(compared: Compared, basis: Basis) -> dict[str, Any]:
    """Describe for the protocol how suspects are found."""
    return {
        "statistic": "rank product",
        "mismatches": compared.n_sampled,
        **({"mismatches_within_groups": False} if basis.plan.groups_are_content else {}),
        "seed": basis.options.seed,
        "false_discovery_rate": FALSE_DISCOVERY_RATE,
    }


def count_kept(compared: Compared, threshold: float) -> dict[str, Any]:
    """Count the pairs that reach a threshold, and the mismatches that do: of all, or of those drawn."""
    similarity = compared.columns.get("similarity", np.empty(0))
    n_mismatches, of, n_files = compared.reaching or (0, 0, 0)
    return {
        "threshold": float(threshold),
        "pairs": int(reaches(similarity, threshold).sum()),
        "mismatches": n_mismatches,
        "of_mismatches": of,
        "mismatches_share": n_mismatches / of if of else None,
        "mismatches_share_at_most": share_at_most(n_mismatches / of * n_files, n_files) if of else None,
    }
