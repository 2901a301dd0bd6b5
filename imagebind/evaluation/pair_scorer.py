"""A scorer for data pipelines: batches of rows in, the same rows with their scores out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES
from imagebind.evaluation.embed.model import TOWERS, Model
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.inputs.manifest import Manifest, read_rows
from imagebind.evaluation.inputs.tables import load_pyarrow
from imagebind.evaluation.options import DEFAULT_PROTOCOLS, Options
from imagebind.evaluation.run import embed_inputs

package_log = logging.getLogger("imagebind")


class PairScorer:
    """Scores the pairs in batches of a data pipeline, such as those of Ray Data or Hugging Face datasets.

    The model is loaded at the first call, and stays; a copy that is sent to another process loads its own. No
    file raises an error, nothing is printed, logged or written, and pairs are compared with no others.

    Args:
        audio: column of the sounds; None takes each video's own. A cell is what a manifest may have: a path,
            the bytes of a file, or {"bytes": ..., "path": ...}; an empty one takes the video's own sound.
        video: column of the videos.
        embeddings: whether to add the embeddings of both.
        **more: checkpoint, device, precision, protocols, protocol_seconds, batch_size, num_workers, timeout
            and worker_memory_gb, as in batch_inference_av_consistency.

    Raises:
        OptionError: one of them has a value that it does not take.
        TypeError: one has another name.
    """

    def __init__(
        self, audio: str | None = "audio", video: str = "video", *, embeddings: bool = False, **more: Any
    ):
        if others := [name for name in more if name not in OPTIONS]:
            raise TypeError(f"PairScorer() got an unexpected keyword argument {others[0]!r}")
        self.audio, self.video, self.embeddings = audio, video, embeddings
        more["protocols"] = more.get("protocols") or DEFAULT_PROTOCOLS
        self.options = Options(None, "", no_cache=True, **more)
        self._model: Model | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_model": None}

    def __call__(self, batch: Any) -> Any:
        """Score the pairs of a batch.

        Args:
            batch: B rows: a mapping from columns to B values, a data frame of pandas, or a table of Arrow.

        Returns:
            the batch, of the same kind, with further columns: `similarity`, the cosine of the first protocol;
            one for each further protocol, under its name; `status`, "ok" or "skipped: " and the reason; and
            if asked for `audio_embedding` and `video_embedding`, (B, E) float32. What there is not is NaN.

        Raises:
            OptionError: it is no batch, or lacks a column.
            EvaluationError: the model cannot be loaded, or no process can be started to read files.
        """
        rows = read_rows(self._rows(batch))
        n = len(rows.lines)
        columns = {name: np.full(n, np.nan) for name in ("similarity", *self.options.protocols[1:])}
        columns["status"] = [f"skipped: {rows.faults.get(row)}" for row in range(n)]
        with quiet():
            for modality in MEDIA_MODALITIES if self.embeddings else ():
                columns[f"{modality}_embedding"] = self._no_rows(modality, n)
            if rows.pairs:
                self._score(rows, columns)
        return with_columns(batch, columns)

    def _rows(self, batch: Any) -> Iterator[dict[str, Any]]:
        names = {"video": self.video} | ({} if self.audio is None else {"audio": self.audio})
        cells = {meaning: cells_of(batch, name) for meaning, name in names.items()}
        return (dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True))

    def _score(self, rows: Manifest, columns: dict[str, Any]) -> None:
        """Fill the columns of rows that are pairs."""
        self._model = self._model or Model.of(self.options)
        sides = dict(zip(MEDIA_MODALITIES, zip(*rows.pairs, strict=True), strict=True))
        inputs = {modality: tuple(dict.fromkeys(sources)) for modality, sources in sides.items()}
        embedded, protocols = embed_inputs(inputs, self.options, self._model)
        scored = [protocol.score(embedded, rows.pairs) for protocol in protocols]
        for name, scores in zip(columns, scored, strict=False):
            columns[name][rows.rows] = scores.values
        for i, (row, pair) in enumerate(zip(rows.rows, rows.pairs, strict=True)):
            reason = embedded.why_skipped(pair) or scored[0].reasons.get(i)
            columns["status"][row] = "ok" if reason is None else f"skipped: {reason}"
        for modality, sources in sides.items() if self.embeddings else ():
            column = columns[f"{modality}_embedding"]
            for row, source in zip(rows.rows, sources, strict=True):
                if source in embedded.leading[modality]:
                    column[row] = embedded.leading[modality].get(source)

    def _no_rows(self, modality: str, n: int) -> np.ndarray:
        self._model = self._model or Model.of(self.options)
        embedder, _ = self._model.load([modality])
        width = embedder.model.towers[TOWERS[modality]].config.embedding
        return np.full((n, width), np.nan, np.float32)


OPTIONS = (
    *("checkpoint", "device", "precision", "protocols", "protocol_seconds"),
    *("batch_size", "num_workers", "timeout", "worker_memory_gb"),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing."""
    level = package_log.level
    package_log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        package_log.setLevel(level)


def columns_of(batch: Any) -> list[str]:
    """Return the names of the columns of a batch.

    Raises:
        OptionError: it is none.
    """
    names = batch if isinstance(batch, Mapping) else getattr(batch, "column_names", None)
    names = getattr(batch, "columns", None) if names is None else names
    if names is None:
        wanted = "a mapping of columns, a data frame or a table of Arrow"
        raise OptionError(f"must be {wanted}, not a {type(batch).__name__}", "batch")
    return list(names)


def with_columns(batch: Any, columns: dict[str, Any]) -> Any:
    """Return a batch with further columns, of the same kind."""
    if isinstance(batch, Mapping):
        return dict(batch) | columns
    columns = {name: list(column) if np.ndim(column) > 1 else column for name, column in columns.items()}
    if hasattr(batch, "assign"):
        return batch.assign(**columns)
    pyarrow, _ = load_pyarrow()
    for name, column in columns.items():
        batch = batch.append_column(name, pyarrow.array(column, from_pandas=True))  # no value for NaN
    return batch


def cells_of(batch: Any, column: str) -> Any:
    """Return the cells of a column.

    Raises:
        OptionError: there is no such column.
    """
    names = columns_of(batch)
    if column not in names:
        raise OptionError(f"has no column {column}; it has {', '.join(map(str, names)) or 'none'}", "batch")
    cells = batch[column]
    return cells.to_pylist() if hasattr(cells, "to_pylist") else cells
