"""The table of pairs: what pair_scores.csv and the API say of each, also of those that were skipped."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind.evaluation.compare.pair_tables import arrow_table, html_table, pandas_frame
from imagebind.evaluation.compare.scores import WEAKEST_COLUMNS
from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES, EmbeddedFiles
from imagebind.evaluation.inputs.captions import CAPTION_COLUMNS
from imagebind.evaluation.inputs.manifest import Manifest, without_nan
from imagebind.evaluation.inputs.plan import Plan
from imagebind.evaluation.rules import PROTOCOLS, REWARD_COLUMNS
from imagebind.sources import Source

if TYPE_CHECKING:
    import pandas
    import pyarrow

SUSPECTS_LISTED = 10  # in metrics.json and the report
OTHER_COLUMNS = (  # of suspects
    *("best_other_video", "best_other_video_similarity"),
    *("best_other_audio", "best_other_audio_similarity"),
)
PAIR_COLUMNS = (  # of pair_scores.csv, after name, paths and status
    *("similarity", "video_rank", "audio_rank", "percentile"),
    *("audio_clips_alike", "video_clips_alike", "video_flags", "audio_flags", "p_value", "suspect"),
    *OTHER_COLUMNS,
    *("audio_key", "video_key"),
)
RANK_COLUMNS = ("video_rank", "audio_rank", *OTHER_COLUMNS)  # that need the whole matrix
MANIFEST_COLUMNS = ("id", "line", "start", "end")  # before these, where there is a manifest
SCORE_COLUMNS = (*PROTOCOLS, *REWARD_COLUMNS, *WEAKEST_COLUMNS)
GROUP_COLUMNS = ("group", "copy_of", "category")  # after these, where there are any
OUR_COLUMNS = {
    *("name", "audio", "video", "status", *MANIFEST_COLUMNS, *PAIR_COLUMNS, *SCORE_COLUMNS),
    *(*GROUP_COLUMNS, *CAPTION_COLUMNS),
}


@dataclass(frozen=True)
class ManifestRows:
    """Some rows of a manifest."""

    manifest: Manifest
    rows: Sequence[int]

    @property
    def names(self) -> dict[str, str]:
        """Column of pair_scores.csv -> column of the manifest, for those that are handed on as they are.

        One that has the name of one of ours is handed on as manifest_NAME.
        """
        known = {
            m: self.manifest.column_of[m] for m in ("id", "start", "end") if m in self.manifest.column_of
        }
        names, others = dict(known), self.manifest.other_columns
        for column in others:
            name = column
            while name in OUR_COLUMNS or name in names or (name != column and name in others):
                name = f"manifest_{name}"
            names[name] = column
        return names

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return what pair_scores.csv says of the rows that is not computed."""
        columns = {"line": np.array([int(self.manifest.lines[row]) for row in self.rows], np.int64)}
        for name, column in self.names.items():
            values = self.manifest.columns[column]
            columns[name] = [without_nan(values[row]) for row in self.rows]
        return columns


def list_skipped(
    plan: Plan,
    embedded: EmbeddedFiles,
    numbers: Sequence[int],
    columns: Sequence[str],
    scores: dict[str, np.ndarray],
) -> list[tuple[int | None, dict[str, Any]]]:
    """List the pairs without a similarity, and the rows of a manifest that are no pairs, with the reasons.

    Args:
        numbers: of the pairs that have one.
        columns: of these, which each of the others has too.
        scores: of all pairs by the protocols; further ones score pairs that the first one drops.

    Returns:
        the number of each pair, None of a row that is none, and its columns.
    """
    with_similarity, found = set(numbers), []
    for number, pair in enumerate(plan.pairing.pairs):
        if number not in with_similarity:
            row = number if plan.manifest is None else plan.manifest.rows[number]
            found.append(
                (
                    row,
                    number,
                    plan.names[number],
                    *(source.path for source in pair),
                    embedded.why_skipped(pair),
                )
            )
    if plan.manifest is not None:
        for row, fault in plan.manifest.faults.items():
            name = plan.manifest.get("id", row)
            paths = (plan.manifest.path(meaning, row) for meaning in MEDIA_MODALITIES)
            found.append((row, None, "" if name is None else str(name), *paths, fault))
        found.sort(key=itemgetter(0))
    skipped = [
        dict.fromkeys(columns)
        | {"name": name, "audio": audio, "video": video, "status": f"skipped: {reason}"}
        for _, _, name, audio, video, reason in found
    ]
    for values, (_, number, *_) in zip(skipped, found, strict=True):
        if number is not None and plan.categories is not None:
            values["category"] = plan.categories[number]
        known = {} if number is None else {name: of_pairs[number] for name, of_pairs in scores.items()}
        if known := {name: float(score) for name, score in known.items() if not np.isnan(score)}:
            values |= known | describe_pair(plan, number, columns)
    if plan.manifest is not None:
        given = ManifestRows(plan.manifest, [row for row, *_ in found]).columns()
        given["line"] = given["line"].tolist()
        for i, values in enumerate(skipped):
            values |= {name: of_rows[i] for name, of_rows in given.items()}
    return [(number, values) for (_, number, *_), values in zip(found, skipped, strict=True)]


def describe_pair(plan: Plan, number: int, columns: Container[str]) -> dict[str, Any]:
    """Return what is known of a pair without its embeddings, under those names that are columns."""
    known = {f"{m}_key": keys[0] for m, keys in zip(MEDIA_MODALITIES, keys_of(plan, [number]), strict=True)}
    if plan.groups is not None:
        known["group"] = plan.groups[number]
    if plan.captions is not None:
        texts = plan.captions.texts
        captions = {m: texts.get(plan.captions.of_pairs[m][number]) for m in MEDIA_MODALITIES}
        known |= {"caption": captions["video"], "audio_caption": captions["audio"]}
    return {name: value for name, value in known.items() if name in columns}


def keys_of(plan: Plan, numbers: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return what names the sound and the video of each pair in other runs too.

    That is the id of the pair, if each has its own: so systems can be compared that name files in their own
    ways.
    """
    if plan.manifest is not None and plan.manifest.has_unique_ids:
        names = [plan.names[number] for number in numbers]
        return names, names
    key_of = cache(plan.audio.stable_key), cache(plan.video.stable_key)
    pairs = (plan.pairing.pairs[number] for number in numbers)
    audio, video = (
        zip(*((key_of[0](a), key_of[1](v)) for a, v in pairs), strict=True) if numbers else ((), ())
    )
    return list(audio), list(video)


def objects(values: Sequence[Any]) -> np.ndarray:
    """Return an array (P,) of objects, also of values that are arrays themselves."""
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


class PairScores(Sequence):
    """What pair_scores.csv says of each pair that has scores, as a dictionary; stored in columns.

    Args:
        names, pairs: P of each.
        columns: further ones by name; those that have no name of ours come last.
        absent: names of columns that are left out.
        manifest: the rows that the pairs are of.
    """

    def __init__(
        self,
        names: Sequence[str],
        pairs: Sequence[tuple[Source, Source]],
        columns: dict[str, Sequence[Any]],
        absent: Sequence[str] = (),
        manifest: ManifestRows | None = None,
    ):
        self.names, self.pairs, self.manifest = names, pairs, manifest
        self.caption_columns = tuple(name for name in CAPTION_COLUMNS if name in columns)
        self.group_columns = tuple(name for name in GROUP_COLUMNS if name in columns)
        listed = (*MANIFEST_COLUMNS, *PAIR_COLUMNS, *SCORE_COLUMNS, *GROUP_COLUMNS)
        self.written_columns = tuple(
            column
            for column in (*listed, *CAPTION_COLUMNS, *(c for c in columns if c not in OUR_COLUMNS))
            if column in columns or (column in PAIR_COLUMNS and column not in absent)
        )
        self.similarity_columns = {c for c in OUR_COLUMNS if c.endswith("similarity")}
        self.similarity_columns.update(PROTOCOLS, REWARD_COLUMNS)
        self.columns = {  # texts as objects: an array of strings gives each the room of the longest
            c: objects(columns[c]) if isinstance(columns[c], list) else np.asarray(columns[c])
            for c in self.written_columns
            if c in columns
        }

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Names of all columns."""
        return ("name", "audio", "video", "status", *self.written_columns)

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
        figures = {column: without_nan(value) for column, value in figures.items()}
        paths = {"audio": audio.path, "video": video.path}
        return {"name": self.names[i], **paths, "status": "ok", **figures}

    def table(self) -> dict[str, Sequence[Any]]:
        """Return the columns of pair_scores.csv: lists of texts, arrays of figures (similarities float32)."""
        paths = {m: [pair[i].path for pair in self.pairs] for i, m in enumerate(MEDIA_MODALITIES)}
        found = {"name": self.names, **paths, "status": ["ok"] * len(self)}
        for column in self.written_columns:
            values = self.columns.get(column)
            if values is None:
                found[column] = np.full(len(self), np.nan)
            elif values.dtype == object:
                found[column] = values.tolist()
            else:
                found[column] = values.astype(np.float32) if column in self.similarity_columns else values
        return found

    def to_pandas(self) -> pandas.DataFrame:
        """Return the columns of pair_scores.csv as a data frame; raises as pandas_frame."""
        return pandas_frame(self.table())

    def to_arrow(self) -> pyarrow.Table:
        """Return the columns of pair_scores.csv as a table of Arrow; raises as arrow_table."""
        return arrow_table(self.table(), self.given_types)

    @property
    def given_types(self) -> dict[str, pyarrow.DataType]:
        """Arrow's types of the columns of the manifest, where it is a Parquet file."""
        if self.manifest is None or self.manifest.manifest.schema is None:
            return {}
        schema = self.manifest.manifest.schema
        return {name: schema.field(column).type for name, column in self.manifest.names.items()}

    def __repr__(self) -> str:
        return f"PairScores of {len(self)} pairs: {', '.join(self.row_columns)}"

    def _repr_html_(self) -> str:
        return html_table(self.row_columns, self)

    def suspects_first(self, n: int) -> list[int]:
        """Return the numbers of n pairs: the suspects, then the others, each the lowest first."""
        is_suspect = np.asarray(self.columns.get("suspect", np.zeros(len(self), bool)), bool)
        return np.lexsort((self.columns["similarity"], ~is_suspect))[:n].tolist()

    def lowest_suspects(self) -> list[dict[str, Any]]:
        """Return names, similarities and best other matches of the suspects, the lowest first."""
        n_suspects = np.count_nonzero(self.columns.get("suspect", ()))
        if not n_suspects:
            return []
        listed = ("name", "similarity", *OTHER_COLUMNS)
        pairs = (self[i] for i in self.suspects_first(min(n_suspects, SUSPECTS_LISTED)))
        return [{c: pair.get(c) for c in listed} for pair in pairs]


def tabulate(plan: Plan, numbers: Sequence[int], columns: dict[str, Sequence[Any]], mode: str) -> PairScores:
    """Make the table of the pairs that have scores, with what the plan says of them.

    Args:
        numbers: of the pairs.
        columns: that are computed.
        mode: as Options.mode.
    """
    absent = RANK_COLUMNS if mode == "pairs_only" else ()
    names, pairs = ([values[i] for i in numbers] for values in (plan.names, plan.pairing.pairs))
    audio_keys, video_keys = keys_of(plan, numbers)
    columns |= {"audio_key": audio_keys, "video_key": video_keys}
    if plan.manifest is None:
        return PairScores(names, pairs, columns, absent)
    of_manifest = ManifestRows(plan.manifest, [plan.manifest.rows[i] for i in numbers])
    return PairScores(names, pairs, columns | of_manifest.columns(), absent, of_manifest)
