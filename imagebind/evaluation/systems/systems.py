"""Comparing systems by their finished output directories, without model and media."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import east_asian_width

import numpy as np

from imagebind.evaluation.compare.intervals import bootstrap_mean, digits_of, holm, share_interval
from imagebind.evaluation.compare.metrics import DEFINITIONS, RECALL_AT
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.groups import group_names, number_groups
from imagebind.evaluation.inputs.manifest import read_seconds
from imagebind.evaluation.rules import PROTOCOLS
from imagebind.evaluation.write.outputs import (
    METRICS_NAME,
    check_can_draw,
    exclusive_use,
    read_cell,
    write_csv,
    write_files,
)
from imagebind.evaluation.write.words import PAGE_WORDS
from imagebind.names import one_line
from imagebind.segments import Segment, file_of

COMPARISON_NAME = "comparison.csv"
COMPARISON_PAGE = "comparison.html"
PAIRS_NAME = "comparison_pairs.csv"
# Parts of the protocol that have to be equal for scores to be comparable; device and versions may differ.
COMPARABLE = ("checkpoint", "precision", "audio", "file_embedding", "similarity", "rank")
COMPARED = {  # column of comparison.csv -> where it is in metrics.json
    **{f"recall_at_{k}": (f"recall_at_{k}",) for k in RECALL_AT},
    **{f"video_to_audio_recall_at_{k}": ("video_to_audio", f"recall_at_{k}") for k in RECALL_AT},
    "auc": ("auc",),
    "suspects": ("suspects",),
    "skipped": ("counts", "failed"),
}
TABLE = "pair_scores.csv"
DIFFERENCE_COLUMNS = ("p_value", "p_value_holm", "win_rate", "win_rate_low", "win_rate_high")
COMPARISON_COLUMNS = (
    *("system", "minus", "pairs", "mean", "low", "high"),
    *(*COMPARED, "agreement", *DIFFERENCE_COLUMNS, "protocol"),
)
PAIR_TABLE_COLUMNS = (
    *("system", "minus", "protocol", "name", "score", "other_score", "difference"),
    *("audio", "video", "other_audio", "other_video"),
)
# Which two modalities agree -> the column of pair_scores.csv with the similarity of each pair, by the first
# protocol. The figures of captions are in metrics.json under the same keys.
AGREEMENTS = {
    "audio_video": "similarity",
    "text_audio": "text_audio_similarity",
    "text_video": "text_video_similarity",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """What can be compared: an agreement by a protocol."""

    agreement: str  # one of AGREEMENTS
    protocol: str


@dataclass(frozen=True)
class Pair:
    """A pair of a finished run."""

    audio_key: str  # what stays the same from system to system: the path below the searched directory
    video_key: str
    caption: str
    name: str
    audio: str  # path, as the run was given it; of a part of a file a Segment
    video: str
    group: str | None
    similarities: dict[str, float]  # of those AGREEMENTS that it has, and of the protocols by name


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    metrics: dict[str, Any]
    pairs: list[Pair]

    def having(self, kind: Kind) -> list[Pair]:
        """The pairs that have a similarity of this kind."""
        if kind.agreement != "audio_video" and kind.protocol != self.first_protocol:
            return []
        return [pair for pair in self.pairs if self.key(kind) in pair.similarities]

    def key(self, kind: Kind) -> str:
        """Return where in `similarities` those of a kind are."""
        is_first = kind.protocol == self.first_protocol
        return kind.agreement if is_first else kind.protocol

    def find(self, path: str) -> str:
        """Return where a file of the run is, seen from here."""
        folder = str(self.metrics.get("working_directory", ""))
        if isinstance(path, Segment):
            return Segment(os.path.join(folder, path.file), path.start, path.end)
        return os.path.join(folder, path)

    @property
    def protocols(self) -> dict[str, Any]:
        """The protocols of its scores, and how each looks at a video; the first gave all figures."""
        return self.metrics["protocol"].get("protocols") or {
            "imagebind": self.metrics["protocol"].get("video")
        }

    @property
    def first_protocol(self) -> str:
        return next(iter(self.protocols))


@dataclass(frozen=True)
class CommonPairs:
    """The pairs that two systems have in common, P of them, the largest difference first."""

    run: Run
    other: Run
    kind: Kind
    ours: list[Pair]
    theirs: list[Pair]
    scores: np.ndarray  # (P, 2)

    @classmethod
    def of(cls, run: Run, other: Run, kind: Kind, ours: list[Pair], theirs: list[Pair]) -> CommonPairs:
        """Sort pairs that match."""
        keys = run.key(kind), other.key(kind)
        scores = np.stack([values_of(p, key) for p, key in zip((ours, theirs), keys, strict=True)], axis=1)
        order = np.argsort(-abs(scores[:, 0] - scores[:, 1]), kind="stable").tolist()
        ours, theirs = ([pairs[i] for i in order] for pairs in (ours, theirs))
        return cls(run, other, kind, ours, theirs, scores[order])

    def lines(self) -> Iterator[tuple[Any, ...]]:
        """Yield the lines of comparison_pairs.csv."""
        names = self.run.name, self.other.name, self.kind.protocol
        for pair, other, scores in zip(self.ours, self.theirs, self.scores.astype(np.float32), strict=True):
            figures = (*scores, float(scores[0]) - float(scores[1]))
            files = (file_of(path) for path in (pair.audio, pair.video, other.audio, other.video))
            yield *names, pair.name, *figures, *files


def compare_systems(
    runs: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike | None = None,
    force: bool = False,
    seed: int = 0,
    report_lang: str = "zh",
    no_html: bool = False,
    group_by: str | None = None,
) -> list[dict[str, Any]]:
    """Compare finished runs, such as those of several generators on the same prompts.

    Args:
        runs: two or more output directories.
        output_dir: where to write comparison.csv, comparison_pairs.csv and comparison.html; None writes none.
        force: compare runs with different protocols.
        seed: of the bootstrap.
        report_lang: of comparison.html, "zh" or "en".
        no_html: leave comparison.html out.
        group_by: as in Options, on the keys of the videos; None takes the groups of the runs.

    Returns:
        the rows of comparison.csv: one for each system, and one for every two systems, of the mean difference
        on the pairs that both have; where there are captions, the same for text_audio and text_video.

    Raises:
        EvaluationError: a run is not finished, has no pairs or is named twice, or the protocols differ.
        OptionError: group_by is no regular expression with a group.
        ImportError: plotly, which the page needs, is missing or does not load.
    """
    for folder, n_uses in Counter(map(os.path.realpath, runs)).items():
        if n_uses > 1:
            raise EvaluationError(f"{folder}: named twice")
    if output_dir is not None and not no_html:
        check_can_draw()
    found = [read_run(os.fspath(run)) for run in runs]
    if group_by is not None:
        found = [regroup(run, group_by) for run in found]
    difference = find_difference(found)
    if difference and not force:
        raise EvaluationError(f"{difference}; --force compares them all the same")
    if difference:
        log.warning("%s", difference)
    leading = list(dict.fromkeys(run.first_protocol for run in found))
    kinds = [Kind(agreement, protocol) for protocol in leading for agreement in AGREEMENTS]
    kinds += [Kind("audio_video", protocol) for protocol in PROTOCOLS if protocol not in leading]
    rows, common = [], []
    for kind in kinds:
        of_kind, pairs = compare_kind(found, kind, seed)
        rows += of_kind
        common += pairs if kind.agreement == "audio_video" else []
    if output_dir is not None:
        leading = [(run, Kind("audio_video", run.first_protocol)) for run in found]
        similarities = [values_of(run.having(kind), run.key(kind)) for run, kind in leading]

        def write_page(rows: Sequence[dict[str, Any]], file: BinaryIO) -> None:
            from imagebind.evaluation.write import page  # plotly is slow to import

            page.write_comparison_page(file, rows, similarities, common, difference, report_lang, output_dir)

        def write_pairs(_: Any, file: BinaryIO) -> None:
            write_csv(PAIR_TABLE_COLUMNS, (line for pairs in common for line in pairs.lines()), file)

        outputs = {COMPARISON_NAME: write_comparison, PAIRS_NAME: write_pairs}
        outputs[COMPARISON_PAGE] = None if no_html else write_page
        with exclusive_use(output_dir, outputs):
            write_files(outputs, rows, output_dir, marker=COMPARISON_NAME)
    return rows


def compare_kind(
    runs: Sequence[Run], kind: Kind, seed: int
) -> tuple[list[dict[str, Any]], list[CommonPairs]]:
    """Return the rows of comparison.csv for what can be compared, and the pairs of every two systems."""
    having = [(run, pairs) for run in runs if (pairs := run.having(kind))]
    names, rows = {"agreement": kind.agreement, "protocol": kind.protocol}, []
    for run, pairs in having:
        mean = describe_mean(values_of(pairs, run.key(kind)), groups_of(pairs), seed)
        del mean["p_value"]
        rows.append(names | {"system": run.name} | mean | figures_of(run, kind))
    differences, common = [], []
    for (run, pairs), (other, other_pairs) in itertools.combinations(having, 2):
        matched = match_pairs(pairs, other_pairs)
        if len(matched) < max(len(pairs), len(other_pairs)) and kind.agreement == "audio_video":
            log.warning(
                "%s and %s: %d pairs are in both%s; %d and %d are in one alone, and not in the difference",
                *(run.name, other.name, len(matched)),
                f" with a score by {kind.protocol}" if run.key(kind) == kind.protocol else "",
                *(len(pairs) - len(matched), len(other_pairs) - len(matched)),
            )
        ours, theirs = [pairs[i] for i, _ in matched], [other_pairs[j] for _, j in matched]
        common.append(CommonPairs.of(run, other, kind, ours, theirs))
        if kind.agreement == "audio_video" and group_differently(ours, theirs):
            log.warning(
                "%s and %s have other groups of pairs; those of the first count; or give --group_by",
                *(run.name, other.name),
            )
        values = [values_of(ours, run.key(kind)), values_of(theirs, other.key(kind))]
        described = describe_difference(*values, groups_of(ours), groups_of(theirs), seed)
        differences.append(names | {"system": run.name, "minus": other.name} | described)
    told = [row for row in differences if row.get("p_value") is not None]
    for row, p_value in zip(told, holm([row["p_value"] for row in told]), strict=True):
        row["p_value_holm"] = p_value
    return rows + differences, common


def figures_of(run: Run, kind: Kind) -> dict[str, Any]:
    """Look up the figures of COMPARED; of a protocol that is not the first, the pairs it dropped."""
    if kind.protocol == run.first_protocol:
        return compared_figures(
            run.metrics if kind.agreement == "audio_video" else run.metrics[kind.agreement]
        )
    score = run.metrics["scores"][kind.protocol]
    return dict.fromkeys(COMPARED) | {"skipped": score["n_pairs"] - score["n_scored"]}


def values_of(pairs: Iterable[Pair], key: str) -> np.ndarray:
    """Return the similarities (P,) of some pairs."""
    return np.array([pair.similarities[key] for pair in pairs])


def groups_of(pairs: Sequence[Pair]) -> np.ndarray | None:
    """Number the groups of some pairs, (P,); None where they have none."""
    groups = [pair.group for pair in pairs]
    return None if all(group is None for group in groups) else np.array(number_groups(groups))


def group_differently(ours: Sequence[Pair], theirs: Sequence[Pair]) -> bool:
    """Whether both systems have groups, and other ones, of the pairs that they have in common."""
    found = [groups_of(pairs) for pairs in (ours, theirs)]
    return all(groups is not None for groups in found) and not np.array_equal(*found)


def describe_mean(
    values: np.ndarray, groups: np.ndarray | None, seed: int, most: float = 1
) -> dict[str, Any]:
    """Return the number of values (P,), their mean, its interval, and its p-value of being zero.

    Args:
        most: that a mean can be, or -most.
    """
    found = bootstrap_mean(values, seed, groups, most)
    low, high = found.interval or (None, None)
    return {"pairs": len(values), "mean": found.mean, "low": low, "high": high, "p_value": found.p_value}


def describe_difference(
    ours: np.ndarray,
    theirs: np.ndarray,
    our_groups: np.ndarray | None,
    their_groups: np.ndarray | None,
    seed: int,
) -> dict[str, Any]:
    """Describe by how much, and how often, the pairs of one system are more similar than those of another.

    Args:
        ours, theirs: (P,) similarities.
        our_groups, their_groups: (P,) or None; those of ours count where both have them.
    """
    if not len(ours):
        return {"pairs": 0}
    differences, groups = ours - theirs, their_groups if our_groups is None else our_groups
    wins = (np.sign(differences) + 1) / 2  # ties count half
    low, high = share_interval(wins, groups) or (None, None)
    win_rate = {"win_rate": float(wins.mean()), "win_rate_low": low, "win_rate_high": high}
    return describe_mean(differences, groups, seed, most=2) | {"p_value_holm": None} | win_rate


def match_pairs(ours: Sequence[Pair], theirs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Find the pairs that two systems have in common.

    Pairs of the same audio and video key match, then among the others those of the same video key, then those
    of the same audio key; always only if there is one such pair on either side, or as many copies of one, in
    all or of each caption. So systems match that name their sounds in their own ways. Keys of listed files
    are whole paths, which differ from system to system: of these the ends are compared, the longest first.

    Returns:
        indices into both, in the order of `ours`.
    """
    matched = []
    left, right = range(len(ours)), range(len(theirs))
    keys = [key for pair in (*ours, *theirs) for key in (pair.audio_key, pair.video_key)]
    depths = [None]
    if any(os.path.isabs(key) for key in keys):
        depths += range(max(len(key.split("/")) for key in keys), 0, -1)
    for names in (("audio_key", "video_key"), ("video_key",), ("audio_key",)):
        for depth in depths:
            groups = defaultdict(lambda: ([], []))
            for side, (pairs, indices) in enumerate(((ours, left), (theirs, right))):
                for i in indices:
                    groups[tuple(end_of(getattr(pairs[i], name), depth) for name in names)][side].append(i)
            found = [match for a, b in groups.values() for match in match_copies(ours, theirs, a, b)]
            matched += found
            left, right = (sorted(set(x) - {m[i] for m in found}) for i, x in enumerate((left, right)))
    return sorted(matched)


def match_copies(
    ours: Sequence[Pair], theirs: Sequence[Pair], left: list[int], right: list[int]
) -> list[tuple[int, int]]:
    """Match the pairs of one key if each side has one, or as many copies: in all, or of each caption."""
    if len(left) == len(right) and are_copies(ours, left) and are_copies(theirs, right):
        return list(zip(left, right, strict=True))
    captions = {pairs[i].caption for pairs, indices in ((ours, left), (theirs, right)) for i in indices}
    if len(captions) < 2 or not left or not right:
        return []
    return [
        match
        for caption in captions
        for match in match_copies(
            ours,
            theirs,
            [i for i in left if ours[i].caption == caption],
            [i for i in right if theirs[i].caption == caption],
        )
    ]


def end_of(key: str, depth: int | None) -> str:
    """Return the last parts of a path, `depth` of them; all of it for None."""
    return key if depth is None else "/".join(key.split("/")[-depth:])


def are_copies(pairs: Sequence[Pair], indices: Sequence[int]) -> bool:
    """Whether some pairs of one key are one pair that was named several times."""
    return all(pairs[i].similarities == pairs[indices[0]].similarities for i in indices)


def regroup(run: Run, group_by: str) -> Run:
    """Put the pairs of a run into other groups."""
    groups = group_names([pair.video_key for pair in run.pairs], group_by)
    pairs = [replace(pair, group=group) for pair, group in zip(run.pairs, groups, strict=True)]
    return replace(run, pairs=pairs)


def read_run(name: str) -> Run:
    """Read a finished run.

    Raises:
        EvaluationError: it is none, or has no pairs.
    """
    if not os.path.isdir(name):
        raise EvaluationError(f"{name}: no such directory")
    try:
        for file_name in (METRICS_NAME, TABLE):
            if os.path.exists(Path(name, file_name)) and not os.path.isfile(Path(name, file_name)):
                raise ValueError(f"{file_name} is no regular file")
        metrics = json.loads(Path(name, METRICS_NAME).read_bytes())
        with open(Path(name, TABLE), "rb") as file:
            file.seek(-min(1, os.fstat(file.fileno()).st_size), os.SEEK_END)
            if file.read() != b"\n":
                raise ValueError(f"{TABLE} is cut off")
        with open(Path(name, TABLE), encoding="utf-8-sig", newline="") as file:
            pairs = [pair for row in csv.DictReader(file) if (pair := read_pair(row)).similarities]
        if not isinstance(metrics["protocol"], dict):
            raise ValueError("no protocol")
        known = [p.similarities["audio_video"] for p in pairs if "audio_video" in p.similarities]
        for agreement in AGREEMENTS:
            figures = metrics if agreement == "audio_video" else metrics.get(agreement, {})
            found = [p.similarities[agreement] for p in pairs if agreement in p.similarities]
            is_part = agreement != "audio_video" and metrics.get("mode") == "retrieval"
            check_similarities(figures.get("paired_similarities", []), found, is_part)
        if not isinstance(metrics["protocol"].get("protocols", {}), dict):
            raise ValueError("its protocols are no names")
        scores = metrics.get("scores", {})
        for protocol in PROTOCOLS:
            values = [p.similarities[protocol] for p in pairs if protocol in p.similarities]
            if values or protocol in scores:
                check_score(scores[protocol], values)
        for agreement in ("", *(a for a in AGREEMENTS if a in metrics)):
            compared_figures(metrics[agreement] if agreement else metrics)
    except OSError as e:
        raise EvaluationError(f"{name}: no finished run ({Path(e.filename).name}: {e.strerror})") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as e:
        reason = str(e)
        if isinstance(e, KeyError):
            reason = f"{METRICS_NAME} has no {reason}"
        elif isinstance(e, TypeError | AttributeError):
            reason = f"{METRICS_NAME} or {TABLE} has something else than figures"
        raise EvaluationError(f"{name}: no finished run of this version ({reason})") from e
    if not known:
        raise EvaluationError(f"{name}: has no pairs to compare")
    return Run(name, metrics, pairs)


def check_similarities(expected: Sequence[float], found: Sequence[float], is_part: bool) -> None:
    """Check what metrics.json says of the similarities of pairs against their table, which may be sorted.

    Args:
        is_part: whether metrics.json has more: those of captions with files that are in no pair.

    Raises:
        ValueError, TypeError: it says something else.
    """
    expected, found = np.sort(np.asarray(expected, float)), np.sort(found)
    if is_part and len(found) < len(expected):
        places = np.searchsorted(expected, found).clip(1, len(expected) - 1)
        nearest = np.minimum(abs(expected[places - 1] - found), abs(expected[places] - found))
        is_right = (nearest < 1e-6).all()
    else:
        is_right = found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=1e-6)
    if not is_right:
        raise ValueError("its files are of different runs")


def check_score(score: dict[str, Any], values: Sequence[float]) -> None:
    """Check what metrics.json says of a protocol's score against the values of the pairs.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    n_scored, n_pairs, mean = (score[key] for key in ("n_scored", "n_pairs", "mean"))
    if not (type(n_scored) is type(n_pairs) is int and 0 <= n_scored <= n_pairs):
        raise ValueError(f"{METRICS_NAME} has no numbers of pairs with a score")
    if n_scored != len(values) or (values and not abs(mean - np.mean(values)) < 1e-6):
        raise ValueError("its files are of different runs")


def read_pair(row: dict[str, str]) -> Pair:
    """Read a line of pair_scores.csv; before version 2 of the definitions the name stood for the keys.

    A pair that the first protocol dropped may have a score by another one.

    Raises:
        ValueError: it has no similarity, or one though it was skipped.
    """
    texts = {kind: row.get(column) for kind, column in AGREEMENTS.items()}
    texts |= {protocol: row.get(protocol) for protocol in PROTOCOLS}
    similarities = {kind: float(text) for kind, text in texts.items() if text}
    has_its_own = ("audio_video" in similarities) == (row.get("status", "ok") == "ok")
    if not has_its_own or not all(-1 <= value <= 1 for value in similarities.values()):
        raise ValueError(f"pair_scores.csv has no similarity of {row['name']}")
    similarities = {agreement: float(np.float32(value)) for agreement, value in similarities.items()}
    return Pair(
        row.get("audio_key", row["name"]),
        row.get("video_key", row["name"]),
        row.get("caption") or "",
        read_cell(row["name"]),
        *(part_of_file(row, modality) for modality in ("audio", "video")),
        row.get("group") or None,
        similarities,
    )


def part_of_file(row: dict[str, str], modality: str) -> str:
    """Return the path of a file of a pair, or the part of it that was judged."""
    path = read_cell(row.get(modality) or "")
    try:
        start, end = (read_seconds(row.get(column)) for column in ("start", "end"))
    except ValueError:  # of the user's, with another meaning
        return path
    return path if not start and end is None else Segment(path, start or 0, math.inf if end is None else end)


def find_difference(runs: Sequence[Run]) -> str | None:
    """Describe the differences between the protocols of runs; None if there is none."""
    differences = [
        f"{run.name}: its figures follow other definitions; evaluate it again with this version"
        for run in runs
        if run.metrics.get("definitions") != DEFINITIONS
    ]
    protocols = [comparable(run.metrics["protocol"]) for run in runs]
    for run, protocol in zip(runs[1:], protocols[1:], strict=True):
        for key in COMPARABLE:
            if protocol[key] != protocols[0][key]:
                ways = ", ".join(json.dumps(p[key], ensure_ascii=False) for p in (protocols[0], protocol))
                differences.append(f"{runs[0].name} and {run.name} differ in {key}: {ways}")
    for run, other in itertools.combinations(runs, 2):
        for name, ways in run.protocols.items():
            if name in other.protocols and other.protocols[name] != ways:
                both = ", ".join(json.dumps(w, ensure_ascii=False) for w in (ways, other.protocols[name]))
                differences.append(f"{run.name} and {other.name} differ in {name}: {both}")
        if not set(run.protocols) & set(other.protocols):
            differences.append(f"{run.name} and {other.name} have no protocol in common")
    return "; ".join(differences) or None


def comparable(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a protocol that have to be equal; of the checkpoint its content, not its name."""
    parts = {key: protocol.get(key) for key in COMPARABLE}
    if isinstance(parts["checkpoint"], dict):
        parts["checkpoint"] = {key: parts["checkpoint"].get(key) for key in ("sha256", "note")}
    return parts


def compared_figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Look up the figures of COMPARED; None for one that a run does not have.

    Raises:
        ValueError, AttributeError: one is no number.
    """
    figures = {}
    for column, keys in COMPARED.items():
        value = metrics
        for key in keys:
            value = value.get(key, {})
        figures[column] = None if value == {} else value
        if type(figures[column]) not in (int, float, type(None)) or not abs(figures[column] or 0) < 1e12:
            raise ValueError(f"{column} is no number")
    return figures


def write_comparison(rows: Sequence[dict[str, Any]], file: BinaryIO) -> None:
    """Write comparison.csv: systems, then differences, whose second system is under `minus`."""
    write_csv(COMPARISON_COLUMNS, ([row.get(column) for column in COMPARISON_COLUMNS] for row in rows), file)


def format_comparison(rows: Sequence[dict[str, Any]], lang: str = "zh") -> str:
    """Format the comparison as text: for each agreement a table of systems and one of differences."""
    words = PAGE_WORDS[lang]

    def text(row: dict[str, Any], column: str) -> str:
        value = row.get(column)
        if not isinstance(value, float):
            return "" if value is None else one_line(str(value))
        start = column.removesuffix("low").removesuffix("high")
        interval = (row.get(f"{start}low"), row.get(f"{start}high"))
        is_end = column.endswith(("low", "high")) and None not in interval
        return f"{value:.{digits_of(list(interval)) if is_end else 4}f}"

    def table(columns: dict[str, str], chosen: Sequence[dict[str, Any]]) -> list[str]:
        lines = [list(columns.values())]
        lines += [[text(row, column) for column in columns] for row in chosen]
        widths = [max(map(width, cells)) for cells in zip(*lines, strict=True)]
        return [
            "  ".join(c + " " * (w - width(c)) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]

    mean = {key: words[key] for key in ("pairs", "mean", "low", "high")}
    figures = {f"recall_at_{k}": f"R@{k}" for k in RECALL_AT}
    figures |= {"auc": "AUC", "suspects": words["suspects"], "skipped": words["skipped files"]}
    lines = []
    for (agreement, protocol), chosen in sections_of(rows).items():
        systems = [row for row in chosen if "minus" not in row]
        differences = [row for row in chosen if "minus" in row]
        title = words.get(agreement, protocol)
        lines += ["", f"{title}:"] if title else []
        shown = {key: label for key, label in figures.items() if any(row[key] is not None for row in systems)}
        lines += table({"system": words["system"], **mean, **shown}, systems)
        if differences:
            lines += ["", f"{words['difference on common']}:"]
            tests = {key: words[key] for key in DIFFERENCE_COLUMNS}
            names = {"system": words["system"], "minus": words["minus"]}
            lines += table(names | mean | tests, differences)
    return "\n".join(lines).lstrip("\n")


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(1 + (east_asian_width(character) in "FW") for character in text)


def sections_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Sort the rows by what was compared: agreement and protocol, "" where all have one protocol."""
    several = len({row["protocol"] for row in rows}) > 1
    sections = defaultdict(list)
    for row in rows:
        is_text = row["agreement"] != "audio_video"
        sections[row["agreement"], "" if is_text or not several else row["protocol"]].append(row)
    return dict(sections)
