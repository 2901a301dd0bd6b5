#!/usr/bin/env python3
"""Make up manifests by seed, and hold a run over each to a plain oracle.

    python tests/fuzz/fuzz_manifest.py --cases 1000

A case is a table in any of the forms, over a few small files, with what tables have: columns by either name,
cells without a value, odd ids, parts of files, repeated rows, one file by several paths, rows that cannot be
used. What a row means is known before it is written. The oracle embeds each part of a file once, and computes
in numpy what docs/outputs.md says of each row and of all pairs. Embeddings, similarities and ranks have to be
equal bit for bit, for products of rounded unit vectors are exact; means and shares to 1e-9. Tables are read
back with csv, json and pyarrow.

Prints what became of the cases, and what is wrong by seed; `--first SEED --cases 1 --keep DIR` makes a case
again, and keeps it. Exit status 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import io
import json
import logging
import math
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import DEMO, picture, tone, write_audio, write_movie, write_video

from batch_inference import EvaluationError, batch_inference_av_consistency
from imagebind.data.features import AUDIO, TEXT, VIDEO
from imagebind.evaluation.embed.model import Model
from imagebind.reading.loader import Missing, Reading, read_file
from imagebind.sources import Source

try:
    import pandas
except ImportError:
    pandas = None

CHECKPOINT = DEMO / "imagebind_demo.pth"
DIALECTS = {".csv": "excel", ".tsv": "excel-tab"}  # all cells are text
FREE = (".jsonl", "rows")  # a cell holds anything
FORMS = (*DIALECTS, *FREE, ".parquet", *(["frame"] if pandas else []))
SHOWN = 6  # of what is wrong in a case
MAX_ROWS = 24

# What stands in cells

NAMES = {  # meaning -> names of its column
    **{"video": ("video", "path"), "audio": ("audio", "audio_path"), "caption": ("caption", "text")},
    **{"audio_caption": ("audio_caption", "audio_text")},
    **{name: (name,) for name in ("id", "group", "start", "end")},
}
KNOWN = {name: meaning for meaning, names in NAMES.items() for name in names}
HANDED_ON = (None, "id", "start", "end")  # meanings of columns that the tables of scores have as they are
SHARE = {
    "audio": 0.9,
    "id": 0.7,
    "caption": 0.4,
    "audio_caption": 0.2,
    "group": 0.4,
    "start": 0.4,
    "end": 0.4,
}
SOUNDS = ["a.wav", "b.wav", "copy/a.wav", "\xe9.wav", "e\u0301.wav", "t\tb.wav", "-c.wav", "own.mkv"]
VIDEOS = ["a.mp4", "copy/a.mp4", "own.mkv", "=2.mkv", "e\u0301.mkv"]  # the first two are silent
NO_MEDIA = ["none.mp4", "text.mp4", "empty.wav", "copy"]
WORDS = [
    *("x", "-Bu7Yas", "=1+1", "+1", "@a", "'q", "\xe9", "e\u0301", "a\tb", "a\nb", 'a,"b"', "a\\tb"),
    *("\u202ex", "\u2028", " blank ", "0", "\x01"),
]
ODD = NUL, SURROGATE = "a\0b", "a\ud800b"
PROMPTS = ["dog", "=cat", "-e\u0301"]
CAPTIONS = ["a dog barks", "A  dog barks", "rain", "=1+1", "rain, and\tthunder", "\xe9", "so much " * 60]
SECONDS = {  # what a time means
    **{"0": 0, "0.0": 0, "0.25": 0.25, "0.250": 0.25, ".5": 0.5, "5e-1": 0.5, "0.75": 0.75, "1e0": 1},
    **{"2": 2, "2.0": 2, "5": 5, "5.0": 5},
}
NO_TIMES = ["soon", "-1", -0.5, "inf", "1e999", "0_1", "1" * 401, True]
EXTRAS = {  # columns without a meaning
    **dict.fromkeys(("note", "Prompt Version", "=f", "status", "name", "3", "Unnamed: 0", *ODD), WORDS),
    **{"similarity": [0.123456789, -2.5], "x": [1e-7, 123456.789, -0.5], "n": [0, -3, 12345678]},
    **{"flag": [True, False], "tags": [[1, 2], [], [3]]},
}
SPELT = {"3": 3, "Unnamed: 0": ""}  # in the table: no text, and no name in the first column
ONLY_IN = {
    **{"3": ("rows", "frame"), "Unnamed: 0": DIALECTS, "tags": (*FREE, ".parquet")},
    **{NUL: (*FREE, ".parquet", "frame"), SURROGATE: FREE},
}


@dataclass(frozen=True)
class Embedded:
    """A part of a file, or a text: its embedding, or why there is none."""

    path: str | None
    row: np.ndarray | None = None  # as the model gives it
    content: bytes = b""  # the same for what is one thing under several names
    reason: str = ""

    @property
    def unit(self) -> np.ndarray:
        row = self.row.astype(np.float64)
        return np.rint(row / np.linalg.norm(row) * 2**26) / 2**26  # so that sums of products are exact


@dataclass
class Row:
    """What a row says; a cell without a value is None."""

    cells: dict[str, Any] = field(default_factory=dict)  # by column
    is_broken: bool = False  # a line that is no row
    line: int = 0
    files: dict[str, Embedded] = field(default_factory=dict)  # by side, of a row that can be used

    def get(self, meaning: str) -> Any:
        values = (self.cells.get(name) for name in NAMES[meaning])
        return next((x for x in values if not (x is None or (isinstance(x, str) and x.isspace()))), None)

    @property
    def span(self) -> list[float | None]:
        """Start and end; None for what is no time."""
        times = [(self.get("start"), 0), (self.get("end"), math.inf)]
        return [default if time is None else SECONDS.get(str(time)) for time, default in times]

    @property
    def is_usable(self) -> bool:
        """Whether it is a pair, be its files what they may."""
        texts = [self.get(meaning) for meaning in ("video", "audio", "caption", "audio_caption")]
        if self.is_broken or any(not isinstance(text, str | Path | None) for text in texts):
            return False
        start, end = self.span
        is_path = not any(mark in str(text) for text in texts[:2] for mark in ("\0", "\ud800"))
        return texts[0] is not None and is_path and None not in (start, end) and start < end

    @property
    def is_scored(self) -> bool:
        return bool(self.files) and all(file.row is not None for file in self.files.values())

    def text_of(self, side: str) -> str | None:
        """Return what a file is compared with."""
        return (side == "audio" and self.get("audio_caption")) or self.get("caption")

    def fits(self, status: Any) -> bool:
        """Tell whether it is scored, or skipped for the reasons that its files have."""
        is_right = status == "ok" if self.is_scored else str(status).startswith("skipped: ")
        return is_right and all(file.reason in status for file in self.files.values())


@dataclass
class Case:
    form: str
    rows: list[Row]
    columns: dict[str, Any]  # in order -> as it is spelt in the table
    base: Path  # that relative paths start from
    output_dir: str
    options: dict[str, Any]
    source: Any = None


def make_media(folder: Path) -> None:
    """Make the files, of a second each; `link` beside the folder is another way to them."""
    for i, name in enumerate(name for name in SOUNDS if name.endswith(".wav") and "/" not in name):
        write_audio(folder / name, np.concatenate([tone(0.5, 200 * 2**i), tone(0.5, 150 + 90 * i)]))
    write_video(folder / "a.mp4", [picture(5 * k) for k in range(20)])
    for i, name in enumerate(name for name in VIDEOS if name.endswith(".mkv")):
        write_movie(folder / name, 300 + 400 * i)
    (folder / "copy").mkdir()
    for name in ("a.wav", "a.mp4"):
        shutil.copy(folder / name, folder / "copy")
    (folder / "text.mp4").write_text("no media")
    (folder / "empty.wav").touch()
    (folder.parent / "link").symlink_to(folder)


# Tables


def make_case(seed: int, folder: Path, media: Path) -> Case:
    """Make case number `seed`; its folder is the working directory of the run."""
    rng = random.Random(seed)
    form = rng.choice(FORMS)
    (folder / "deep" / "lists").mkdir(parents=True)
    (folder / "linked").symlink_to(folder / "deep" / "lists")
    base = folder if form in ("rows", "frame") else folder / rng.choice(["", "deep", "deep/lists", "linked"])
    output_dir = rng.choice(["out", "deep/out", str(folder / "o"), "linked"])
    options = rng.choice([{}, {}, {"pairs_only": True}, {"retrieval_mode": True}])
    options |= {"group_by": r"(\w+)_\d+"} if rng.random() < 0.2 else {}
    rows = make_rows(rng, form, media, base)
    columns = sorted({column for row in rows for column in row.cells}) or ["video"]
    rng.shuffle(columns)
    columns.sort(key=lambda column: column != "Unnamed: 0")
    case_of = {name: rng.choice([str, str, str, str.upper, str.title]) for name in KNOWN}
    spelt = {column: SPELT.get(column, case_of.get(column, str)(column)) for column in columns}
    case = Case(form, rows, spelt, base, output_dir, options)
    settle(case)
    write(case, rng)
    return case


def make_rows(rng: random.Random, form: str, media: Path, base: Path) -> list[Row]:
    """Make the rows of a table whose relative paths start from `base`."""

    def ways(names: Sequence[str]) -> list[str | Path]:
        near = [os.path.relpath(media / name, os.path.realpath(base)) for name in names]
        far = [path.replace("media/", other) for path in near for other in ("media//", "link/")]
        found = [*near, *near, *(f"./{path}" for path in near), *far, *(str(media / name) for name in names)]
        return [*found, *map(Path, near)] if form == "rows" else found

    odd = [text for text in ODD if form in ONLY_IN[text]]
    words = [*WORDS, *odd] if rng.random() < 0.2 else WORDS
    whole, n_own = [None] * rng.choice([0, 5, 50]), rng.choice([0, 0, 10, 1000])  # rows without a value
    pools = {
        "video": ways(VIDEOS),
        "audio": ways(SOUNDS) + [None] * n_own,
        "start": [0, 0.25, 0.25, "0.250", ".5", "5e-1", "0", 2, *whole],
        "end": [0.75, 0.75, "0.75", "1e0", 5, 0.25, *whole],
        "caption": [*CAPTIONS, None],
        "audio_caption": [*CAPTIONS, None],
        "group": ["p1", "p1", "p2", "=p", "\xe9", 0, 1, None, None],
        **{name: [*(words if values is WORDS else values), None] for name, values in EXTRAS.items()},
    }
    broken = {
        "video": [*ways(NO_MEDIA), *[None, None, "  ", 7, *odd] * 5],
        "audio": [*ways(NO_MEDIA), *[7, *odd] * 5],
        **{key: [*NO_TIMES, *([10**400, math.inf] if form in FREE else [])] for key in ("start", "end")},
        **{key: [7] for key in ("caption", "audio_caption")},
    }
    ids = rng.choice(
        [
            [f"{rng.choice(words)}{i}" for i in range(MAX_ROWS)],
            list(range(MAX_ROWS)),
            [f"{rng.choice(PROMPTS)}_{i}" for i in range(MAX_ROWS)],
            rng.choices([*words, None], k=MAX_ROWS),
        ]
    )
    meanings = ["video", *(meaning for meaning, share in SHARE.items() if rng.random() < share)]
    extras = rng.sample([name for name in EXTRAS if form in ONLY_IN.get(name, FORMS)], rng.randrange(4))
    fixed, is_mixed = {m: rng.choice(NAMES[m]) for m in meanings}, rng.random() < 0.15
    share, rows = rng.choice([0, 0.03, 0.08]), []  # of what is broken
    for i in range(rng.randint(1, MAX_ROWS)):
        if rows and rng.random() < 0.1:
            row = rng.choice(rows)  # once more, as it is
            rows.append(Row(dict(row.cells), row.is_broken))
        elif rng.random() < share and form in (*DIALECTS, ".jsonl"):
            rows.append(Row(is_broken=True))
        else:
            names = {m: rng.choice(NAMES[m]) for m in meanings} if is_mixed else fixed
            drawn = {
                key: rng.choice(broken[key] if key in broken and rng.random() < share else pools[key])
                for key in (*meanings, *extras)
                if key != "id"
            }
            drawn |= {"id": ids[i]} if "id" in meanings else {}
            rows.append(Row({names.get(key, key): value for key, value in drawn.items()}))
    return rows


def settle(case: Case) -> None:
    """Give the values the types that the form has for them: text, or one for each column."""
    for column in case.columns:
        rows = [row for row in case.rows if row.cells.get(column) is not None]
        kinds = {type(row.cells[column]) for row in rows}
        if case.form in DIALECTS or (case.form == ".parquet" and len(kinds) > 1):
            to = float if case.form == ".parquet" and kinds == {int, float} else str
            for row in rows:
                row.cells[column] = to(row.cells[column])


def write(case: Case, rng: random.Random) -> None:
    """Write the table, with all that stands for no value in its form, and number the rows by their lines."""
    path, rows, header = case.base / f"pairs{case.form}", case.rows, list(case.columns.values())
    case.source = str(path)
    for number, row in enumerate(rows, 1):
        row.line = number
    if case.form in DIALECTS:
        text, end = io.StringIO(), rng.choice(["\n", "\r\n"])
        writer = csv.writer(text, DIALECTS[case.form], lineterminator=end, quoting=rng.choice([0, 1]))
        writer.writerow(header)
        for row in rows:
            text.write(end * (rng.random() < 0.05))
            row.line = text.getvalue().count("\n") + 1
            cells = [row.cells.get(column) for column in case.columns]
            writer.writerow(["?", *cells] if row.is_broken else cells)
        path.write_bytes(text.getvalue().encode(rng.choice(["utf-8", "utf-8-sig"])))
        return
    tables = [[row.cells.get(column) for row in rows] for column in case.columns]
    is_object = case.form == "frame" and rng.random() < 0.3  # otherwise a column has a type of its own
    of_pandas = [pandas.NA] if pandas and case.form != ".jsonl" and rng.random() < 0.3 else []
    for values in tables:
        kinds = {type(value) for value in values if value is not None}
        none = [None, *([""] if kinds == {str} else [math.nan] if kinds == {float} else [])]
        if is_object or case.form in FREE:
            none = [None, math.nan, "", *of_pandas]
        values[:] = [rng.choice(none) if value is None else value for value in values]
    if case.form == ".parquet":
        table = pyarrow.table([pyarrow.array(values) for values in tables], names=header)
        pyarrow.parquet.write_table(table, path, row_group_size=rng.choice([1, 5, 100]))
    elif case.form == "frame":
        frame = pandas.DataFrame(dict(zip(header, tables, strict=True)), dtype=object if is_object else None)
        frame = frame.set_axis(rng.sample(range(100), len(frame)))
        case.source = frame if is_object else rng.choice([frame, frame.convert_dtypes()])
    else:
        case.source, lines = [], []
        for row, values in zip(rows, zip(*tables, strict=True), strict=True):
            cells = zip(case.columns, header, values, strict=True)
            has = [(h, v) for c, h, v in cells if row.cells.get(c) is not None or rng.random() < 0.6]
            case.source.append(dict(has))
            lines += [""] * (rng.random() < 0.05)
            lines.append(rng.choice(['{"video": "a', "[1]", "null"]) if row.is_broken else None)
            row.line = len(lines) if case.form == ".jsonl" else row.line
            lines[-1] = lines[-1] or (json.dumps(dict(has)) if case.form == ".jsonl" else "")
        if case.form == ".jsonl":
            case.source = str(path)
            path.write_text("".join(f"{line}\n" for line in lines))


# The oracle


def make_reference() -> Callable[..., Embedded]:
    """Return what embeds a part of a file, alone and once, with the program's readers and its model."""
    embedder, _ = Model(str(CHECKPOINT), "cpu", "fp32").load(["audio", "video", "text"])
    features = {"audio": (AUDIO, "audio"), "video": (VIDEO, "vision"), "text": (TEXT, "text")}

    @functools.cache
    def embed(side: str, path: str | None, start: float = 0, end: float = math.inf) -> Embedded:
        if path is None:
            return Embedded(None)
        feature, tower = features[side]
        source = path if side == "text" else Source(path, start, end)
        (loaded,) = read_file(Reading(), (side, source, (feature,)))
        if isinstance(loaded.features[side], Missing):
            return Embedded(path, reason=loaded.features[side].reason)
        input = loaded.features[side].input
        row = embedder(tower, [input]).numpy()[0]
        content = input.tokens.numpy().tobytes() if side == "text" else Path(path).read_bytes()
        return Embedded(path, row, hashlib.sha256(content + row.tobytes()).digest())

    return embed


def real(folder: str | Path, path: str | Path) -> str | None:
    """Return the file that a path leads to; None where no file can have such a name."""
    try:
        return os.path.realpath(os.path.join(folder, path))
    except ValueError:
        return None


def figures(
    rows: list[Embedded], columns: list[Embedded], cells: list[tuple[int, int]], sides: tuple[str, str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare rows with columns, of which `cells` are pairs: figures, and the scores of each pair."""
    cosines = np.stack([x.unit for x in rows]) @ np.stack([x.unit for x in columns]).T
    keys = np.rint((cosines * 2**24).astype(np.float32)).astype(np.float64)
    true = {(rows[i].content, columns[j].content) for i, j in cells}
    is_other = np.array([[(a.content, b.content) not in true for b in columns] for a in rows])
    pairs, others = np.array([keys[cell] for cell in cells]), keys[is_other]
    found, scores = (
        {"paired_similarity_mean": pairs.mean() / 2**24},
        {"similarity": (pairs / 2**24).astype(np.float32)},
    )
    n_lower, n_rivals = 0, 0
    for axis in (0, 1):
        lines = [np.s_[i] if axis == 0 else np.s_[:, j] for i, j in cells]
        rivals = zip([keys[line][is_other[line]] for line in lines], pairs, strict=True)
        b, e, n = np.array([((x > key).sum(), (x == key).sum() + 1, len(x) + 1) for x, key in rivals]).T
        ranks = scores[f"{sides[1 - axis]}_rank"] = b + (e + 1) / 2
        n_lower, n_rivals = n_lower + n - b - e + (e - 1) / 2, n_rivals + n - 1
        harmonic = np.append(0, np.cumsum(1 / np.arange(1, 1 + max(b + e))))
        of_axis = {"mean_rank": ranks.mean(), "median_rank": np.median(ranks)}
        of_axis["mean_reciprocal_rank"] = ((harmonic[b + e] - harmonic[b]) / e).mean()
        for k in (1, 5, 10):
            of_axis[f"recall_at_{k}"] = np.clip((k - b) / e, 0, 1).mean()
            of_axis[f"recall_at_{k}_chance"] = np.minimum(k / n, 1).mean()
        if axis and sides[0] == "text":
            files = [(columns[j].content, rows[i].content) for i, j in cells]
            owned = dict(zip(files, zip(b, e, n, strict=True), strict=True))
            if len({file for file, _ in owned}) < len(owned):
                of_axis = best_of_captions(owned)
        where = f"{sides[1]}_to_{sides[0]}/" if axis else ""
        found |= {f"{where}{name}": value for name, value in of_axis.items()}
    if others.size:
        wins = [(others < key).mean() + (others == key).mean() / 2 for key in pairs]
        found |= {"auc": np.mean(wins), "mismatched_similarity_mean": cosines[is_other].mean()}
        scores["percentile"] = [x / n if n else None for x, n in zip(n_lower, n_rivals, strict=True)]
    return found, scores


def best_of_captions(owned: dict[tuple[bytes, bytes], list[int]]) -> dict[str, float]:
    """Say how far the first caption of each file is, over all orders of equals.

    Args:
        owned: (file, caption) -> others before it, equals with itself, and all with itself.
    """
    files = defaultdict(list)
    for (file, _), counts in owned.items():
        files[file].append([int(x) for x in counts])
    ranks, found = [], defaultdict(list)
    for captions in files.values():
        b, e, n = min(captions)
        n_own = sum(caption[0] == b for caption in captions)

        def share(
            place: int, n_others: int, n_own: int
        ) -> float:  # of orders with the first of its own there
            return comb(n_others + n_own - place, n_own - 1) / comb(n_others + n_own, n_own)

        places = {b + j: share(j, e - 1, n_own) for j in range(1, e + 1)}
        by_chance = {j: share(j, n - 1, len(captions)) for j in range(1, n + 1)}
        ranks.append(sum(rank * p for rank, p in places.items()))
        found["mean_reciprocal_rank"].append(sum(p / rank for rank, p in places.items()))
        for k in (1, 5, 10):
            for name, chances in (("", places), ("_chance", by_chance)):
                found[f"recall_at_{k}{name}"].append(sum(p for rank, p in chances.items() if rank <= k))
    means = {name: np.mean(values) for name, values in found.items()}
    return {"mean_rank": np.mean(ranks), "median_rank": np.median(ranks), **means}


def distinct(files: Iterator[Embedded]) -> list[Embedded]:
    return list({id(file): file for file in files if file.row is not None}.values())


def expect(case: Case, embed: Callable[..., Embedded]) -> tuple[list[Row], dict[str, Any], dict[str, Any]]:
    """Return the rows that have scores, the figures of metrics.json, and columns of these rows."""
    sides = ("audio", "video")
    for row in case.rows:
        if row.is_usable:
            paths = row.get("audio") or row.get("video"), row.get("video")
            row.files = {
                s: embed(s, real(case.base, p), *row.span) for s, p in zip(sides, paths, strict=True)
            }
    pairs = [row for row in case.rows if row.is_scored]
    if not pairs:
        return [], {}, {}
    rows, cells = [[row.files[side] for row in pairs] for side in sides], [(i, i) for i in range(len(pairs))]
    counted = rows
    if "pairs_only" in case.options:
        counted = [distinct(files) for files in rows]
    if "retrieval_mode" in case.options:  # whose files without a partner stay
        rows = counted = [distinct(row.files[side] for row in case.rows if row.files) for side in sides]
        order = [{id(file): i for i, file in enumerate(files)} for files in rows]
        cells = [tuple(order[axis][id(row.files[side])] for axis, side in enumerate(sides)) for row in pairs]
    found, scores = figures(*rows, cells, sides)
    found |= {f"counts/{side}": len(files) for side, files in zip(sides, counted, strict=True)}
    scores["caption"], scores["audio_caption"] = (
        [row.text_of(side) for row in pairs] for side in sides[::-1]
    )
    for side in sides:
        having = [i for i, row in enumerate(pairs) if row.text_of(side)]
        if having:
            texts, files = (
                [embed("text", pairs[i].text_of(side)) for i in having],
                [r.files[side] for r in pairs],
            )
            of_text, of_pairs = figures(texts, files, list(enumerate(having)), ("text", side))
            if "retrieval_mode" not in case.options:
                found |= {f"text_{side}/{name}": value for name, value in of_text.items()}
            similarity = dict(zip(having, of_pairs["similarity"], strict=True))
            scores[f"text_{side}_similarity"] = [similarity.get(i) for i in range(len(pairs))]
    if "pairs_only" in case.options:
        found = {name: value for name, value in found.items() if not re.search(r"_rank|recall", name)}
        scores = {name: values for name, values in scores.items() if not name.endswith("_rank")}
    return pairs, found, scores


# What is wrong


def judge(case: Case, embed: Callable[..., Embedded]) -> Iterator[str]:
    """Run a case, and yield what became of it, then what is wrong."""
    pairs, found, scores = expect(case, embed)
    similarity = scores.get("similarity", [])
    rng = random.Random(len(case.rows))
    threshold = float(rng.choice([rng.choice(similarity), np.median(similarity), -1])) if pairs else -1
    run = {"manifest": case.source, "output_dir": case.output_dir, "keep_above": threshold, "no_html": True}
    run |= {"checkpoint": CHECKPOINT, "cache": "../cache.sqlite", "num_workers": 0}
    try:
        results = batch_inference_av_consistency(None, None, "cpu", **run, **case.options)
    except EvaluationError as e:
        yield "refused"
        yield from [f"refused: {e}"] if pairs or "\n" in str(e) else []
        return
    yield "evaluated"
    api = [*results["pair_scores"], *results["skipped_pairs"]]
    status = {cells["line"]: cells["status"] for cells in api}
    wrong = {row.line: status.get(row.line) for row in case.rows if not row.fits(status.get(row.line))}
    if wrong or len(api) != len(case.rows):
        yield f"rows that are not so: {wrong}; lines {list(status)}"
        return
    for axis, side in enumerate(("audio", "video")):
        rows = results[f"{side}_embeddings"].numpy()[results["pair_rows"][:, axis]]
        if not np.array_equal(rows, [row.files[side].row for row in pairs]):
            yield f"{side}_embeddings: not those of the files {[row.files[side].path for row in pairs]}"
            return
    metrics, names = json.loads(Path(case.output_dir, "metrics.json").read_text()), []
    for row, number in zip(pairs, results["pair_rows"][:, 0], strict=True):
        names.append(results["audio_names"][number] if row.get("id") is None else row.get("id"))
        if row.get("id") is None and Path(row.files["audio"].path).stem not in names[-1]:
            yield f"line {row.line}: its name is {names[-1]!r}"
    ids = [row.get("id") for row in case.rows]
    is_key = None not in ids and len(set(map(str, ids))) == len(ids)
    scores |= dict.fromkeys(["name", *(["audio_key", "video_key"] if is_key else [])], names)
    groups = [row.get("group") for row in pairs]
    if "group_by" in case.options:
        groups = [m and m[1] for m in (re.search(case.options["group_by"], str(name)) for name in names)]
    contents = [tuple(row.files[side].content for side in ("audio", "video")) for row in pairs]
    groups = with_copies(groups, contents, names)
    if any(group is not None for group in groups):
        found["groups"] = groups.count(None) + len({str(group) for group in groups if group is not None})
        scores["group"] = groups
    yield from judge_metrics(case, len(pairs), found, metrics)
    for name in ("API", "pair_scores.csv", *(["pair_scores.parquet"] if case.form == ".parquet" else [])):
        table = api if name == "API" else read(Path(case.output_dir, name))
        yield from (f"{name}: {what}" for what in judge_scores(case, pairs, scores, table))
    kept = [row for row, x in zip(pairs, similarity, strict=True) if x >= np.float32(threshold)]
    if metrics["kept"]["pairs"] != len(kept):
        yield f"kept: {metrics['kept']}, not {len(kept)}"
    yield from judge_kept(case, kept)


def with_copies(groups: list[Any], contents: list[Any], names: list[Any]) -> list[Any]:
    """Give copies without a group the first one that a copy has, or the name of the first, made unique."""
    groups, taken = list(groups), {None if group is None else str(group) for group in groups}
    for i, content in enumerate(contents):
        all_copies = [j for j, other in enumerate(contents) if other == content]
        same_content = [j for j in all_copies if groups[j] is None]
        known = [groups[j] for j in all_copies if groups[j] is not None]
        if groups[i] is None and known:
            for j in same_content:
                groups[j] = known[0]
        elif groups[i] is None and len(all_copies) > 1:
            name, n = str(names[i]), 1
            while name in taken:
                n += 1
                name = f"{names[i]} ({n})"
            taken.add(name)
            for j in same_content:
                groups[j] = name
    return groups


def judge_metrics(
    case: Case, n_pairs: int, found: dict[str, float], metrics: dict[str, Any]
) -> Iterator[str]:
    n_unusable, counts = sum(not row.is_usable for row in case.rows), metrics["counts"]
    n_skipped, n_lost = counts["rows_skipped"], counts["pairs_skipped"]
    if counts["pairs"] != n_pairs or n_pairs + n_skipped + n_lost != len(case.rows):
        yield f"counts: {counts} of {len(case.rows)} rows, of which {n_pairs} have scores"
    if n_skipped != n_unusable:
        yield f"counts/rows_skipped: {n_skipped}, not {n_unusable}"
    if "pairs_only" in case.options and "recall_at_1" in metrics:
        yield "ranks of pairs alone"
    for name, value in found.items():
        have = functools.reduce(lambda part, key: part.get(key, {}), name.split("/"), metrics)
        if not isinstance(have, int | float) or not math.isclose(have, value, rel_tol=0, abs_tol=1e-9):
            yield f"{name}: {have}, not {value}"


def judge_scores(case: Case, pairs: list[Row], scores: dict[str, list], table: list[dict]) -> Iterator[str]:
    """Judge a table of all rows: the pairs in their order, then those that were skipped."""
    skipped = sorted((row for row in case.rows if not row.is_scored), key=lambda row: row.line)
    table = [*table[: len(pairs)], *sorted(table[len(pairs) :], key=lambda cells: int(cells["line"]))]
    if [int(cells["line"]) for cells in table] != [row.line for row in (*pairs, *skipped)]:
        yield f"lines {[cells['line'] for cells in table]}"
        return
    for i, (row, cells) in enumerate(zip((*pairs, *skipped), table, strict=True)):
        wrong = {} if row.fits(cells["status"]) else {"status": cells["status"]}
        for column, value in row.cells.items():
            name = f"manifest_{column}" if column in ("similarity", "status", "name") else column
            if KNOWN.get(column) in HANDED_ON and not same(cells.get(name, cells.get(encoded(name))), value):
                wrong[name] = value
        expected = {name: values[i] for name, values in scores.items()} if row.is_scored else {}
        if not row.is_broken and row.get("id") is not None:
            expected["name"] = row.get("id")
        for name, value in expected.items():
            have = cells.get("caption" if name == "audio_caption" and name not in cells else name)
            if not same(have, value) and not same(written(have), value):
                wrong[name] = value
        for side in row.files if row.is_scored else ():
            if row.files[side].path not in (real(".", cells[side]), real(".", written(cells[side]))):
                wrong[side] = row.files[side].path
        yield from (f"line {row.line}: {name}: {cells.get(name)!r}, not {wrong[name]!r}" for name in wrong)


def judge_kept(case: Case, kept: list[Row]) -> Iterator[str]:
    """Judge kept.*: the rows that reach the threshold, as they were, with paths that start where it lies."""
    path = Path(case.output_dir, f"kept{case.form if case.form[0] == '.' else '.csv'}")
    table, is_typed = read(path), path.suffix in (".jsonl", ".parquet")
    if len(table) != len(kept):
        yield f"{path.name}: {len(table)} rows, not {len(kept)}"
        return
    if path.suffix == ".parquet":
        types = [pyarrow.parquet.read_schema(file).types for file in (case.source, path)]
        yield from [] if types[0] == types[1] else [f"{path.name}: {types[1]}, not {types[0]}"]
    for row, cells in zip(kept, table, strict=True):
        unknown = set(cells) - set(case.columns) - set(map(encoded, case.columns))
        for column in (*case.columns, *unknown):
            have, value = cells.get(column, cells.get(encoded(column))), row.cells.get(column)
            if KNOWN.get(column) in ("video", "audio") and value is not None:
                is_right = have and real(case.output_dir, have) == row.files[KNOWN[column]].path
            else:
                is_right = column not in unknown and same(have, value)
                is_right = is_right and (value is None or not is_typed or type(have) is type(value))
            if not is_right:
                yield f"{path.name}: line {row.line}: {column}: {have!r}, not {value!r}"


def read(path: Path) -> list[dict[str, Any]]:
    """Read a table of the run."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n")[:-1]]
    return list(csv.DictReader(io.StringIO(text, newline=""), dialect=DIALECTS[path.suffix]))


def same(have: Any, value: Any) -> bool:
    """Compare a cell, which may be text, with what was given, or computed (numpy's)."""
    if value is None:
        return have is None or have == "" or have != have
    if isinstance(value, np.floating) and isinstance(have, str):
        return have == (str(value) if isinstance(value, np.float32) else f"{value:.6g}")
    if isinstance(value, np.floating):  # computed; np.float64 but for the order of additions
        is_close = have is not None and isinstance(value, np.float64) and math.isclose(have, value)
        return have == value or is_close
    if str(have) in (str(value), encoded(str(value))):
        return True
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and float(have) == value
    except (TypeError, ValueError, OverflowError):
        return False


def encoded(text: str) -> str:
    """Write what is no Unicode as it has to stand in a file."""
    return text.encode("utf-8", "backslashreplace").decode()


def written(cell: Any) -> Any:
    """Give back the text that docs/outputs.md, "How names are written", makes fit for a spreadsheet."""
    if not isinstance(cell, str):
        return cell
    cell = cell[1:] if re.match("'[=+@-]", cell) else cell
    return cell.encode("latin-1", "backslashreplace").decode("unicode_escape", "replace")


def fuzz(first: int, n_cases: int, folder: Path) -> tuple[Counter, list[str]]:
    """Return what became of the cases, and what is wrong."""
    outcomes, faults, before = Counter(), [], os.getcwd()
    folder = Path(os.path.realpath(folder))
    make_media(folder / "media")
    embed = make_reference()
    try:
        for seed in range(first, first + n_cases):
            own = folder / f"{seed}"
            own.mkdir()
            os.chdir(own)
            case, wrong, outcome = make_case(seed, own, folder / "media"), [], "crashed"
            try:
                outcome, *wrong = judge(case, embed)
            except Exception as e:
                wrong.append(f"{type(e).__name__}: {' '.join(str(e).split())}")
            outcomes[f"{case.form}: {outcome}"] += 1
            more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
            faults += [f"{seed}: {what[:300]}" for what in (*wrong[:SHOWN], *more)]
            if not wrong:
                shutil.rmtree(own)
    finally:
        os.chdir(before)
    return outcomes, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument(
        "--keep", metavar="DIR", help="keep the media, and the cases in which something is wrong"
    )
    args = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes, faults = fuzz(args.first, args.cases, folder)
    for outcome, n in outcomes.most_common():
        print(f"{n:6} {outcome}")
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{sum(outcomes.values())} cases, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
