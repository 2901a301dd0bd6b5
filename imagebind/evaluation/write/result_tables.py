"""The tables of a run: its pairs, those that are kept, their windows, and the best matches of each file."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from imagebind.evaluation.compare.pair_tables import arrow_table
from imagebind.evaluation.compare.ticks import reaches
from imagebind.evaluation.inputs.tables import load_pyarrow, write_rows
from imagebind.evaluation.options import Options
from imagebind.evaluation.write.atomic import Results, Writer
from imagebind.evaluation.write.formats import text_writer, write_csv
from imagebind.names import field


def write_pair_scores(results: Results, file: BinaryIO) -> None:
    """Write pair_scores.csv: a line for each pair, then one for each that was skipped."""
    scores, skipped = results["pair_scores"], results["skipped_pairs"]
    table = scores.table()
    columns = [
        values.tolist() if isinstance(values, np.ndarray) and values.dtype != np.float32 else values
        for values in table.values()
    ]
    similarities = scores.similarity_columns
    rest = (
        [np.float32(pair[c]) if c in similarities and pair[c] is not None else pair[c] for c in table]
        for pair in skipped
    )
    rows = itertools.chain(zip(*columns, strict=True), rest)
    of_user = set() if scores.manifest is None else set(scores.manifest.names)
    write_csv(list(table), rows, file, of_user)


def write_parquet(results: Results, file: BinaryIO) -> None:
    """Write pair_scores.parquet: pair_scores.csv in types, which are the manifest's where it has any."""
    _, parquet = load_pyarrow()
    scores, skipped = results["pair_scores"], results["skipped_pairs"]
    parquet.write_table(arrow_table(scores.table(), scores.given_types, skipped), file)


def kept_writer(options: Options) -> Writer:
    """Return what writes the pairs that reach the threshold, in the form of the manifest or of pairs.txt."""

    def write(results: Results, file: BinaryIO) -> None:
        scores = results["pair_scores"]
        kept = []
        if scores:
            kept = np.flatnonzero(reaches(scores.columns["similarity"], options.keep_above)).tolist()
        if scores.manifest is None:
            lines = ["\t".join(map(field, results["pairs"][i])) for i in kept]
            text_writer(lambda _: lines)(results, file)
            return
        manifest, rows = scores.manifest.manifest, [scores.manifest.rows[i] for i in kept]
        columns = {
            name: [values[row] for row in rows]
            for name, values in manifest.based_on(options.output_dir).items()
        }
        write_rows(columns, manifest.suffix, manifest.schema, file)

    return write


def write_window_scores(results: Results, file: BinaryIO) -> None:
    """Write window_scores.csv: a line for each window of each pair, in the order of time."""
    columns = ("name", "start", "end", "score", "weakest", "audio_start", "audio_end", "audio_is_silent")
    scores, skipped = results["pair_scores"], results["skipped_pairs"]
    pairs = list(zip(scores.names, results["windows"], strict=True))
    pairs += [(p["name"], windows) for p, windows in zip(skipped, results["skipped_windows"], strict=True)]
    lines = None
    if scores.manifest is not None:
        columns = (*columns, "line")
        lines = scores.columns["line"].tolist() + [pair["line"] for pair in skipped]

    def rows() -> Iterator[Sequence[Any]]:
        for i, (name, windows) in enumerate(pairs):
            lowest = min((window.score for window in windows), default=None)
            for w in windows:
                score, of_audio = np.float32(w.score), (w.audio_start, w.audio_end, w.is_silent)
                of_line = () if lines is None else (lines[i],)
                yield name, w.start, w.end, score, w.score == lowest, *of_audio, *of_line

    write_csv(columns, rows(), file)


def write_top_matches(results: Results, file: BinaryIO) -> None:
    """Write top_matches.csv: the most similar videos of each sound, then the other way round."""
    columns = ("side", "name", "rank", "match", "similarity", "pair")
    names = {modality: results[f"{modality}_names"] for modality in ("audio", "video")}

    def rows() -> Iterator[Sequence[Any]]:
        for axis, (modality, other) in enumerate((("audio", "video"), ("video", "audio"))):
            top, partners = results["top_matches"][modality], defaultdict(set)
            for pair in results["pair_rows"].tolist():
                partners[pair[axis]].add(pair[1 - axis])
            for row, (matches, scores) in enumerate(zip(top.indices, top.similarities, strict=True)):
                ranked = zip(matches.tolist(), scores.tolist(), strict=True)
                for rank, (match, score) in enumerate(ranked, start=1):
                    if match >= 0:
                        is_pair = match in partners[row] if partners else None
                        yield modality, names[modality][row], rank, names[other][match], score, is_pair

    write_csv(columns, rows(), file)
