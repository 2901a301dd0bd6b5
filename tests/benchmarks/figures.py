"""Measure what the figures promise: coverage of intervals, precision of suspects, equal systems.

    python tests/benchmarks/figures.py                    # all tables; half an hour on two cores
    python tests/benchmarks/figures.py --only coverage --draws 200

Scores and embeddings are drawn from distributions whose truth is known. Where a rule replaced an earlier one,
the earlier one is computed on the same draws.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent)]

from batch_inference import batch_inference_av_consistency  # noqa: E402
from imagebind.evaluation.compare.comparison import Compared, Comparison  # noqa: E402
from imagebind.evaluation.compare.intervals import (  # noqa: E402
    effective_number,
    estimate_mean,
    resampled_means,
    share_interval,
)
from imagebind.evaluation.compare.suspects import find_suspects  # noqa: E402
from imagebind.evaluation.inputs.groups import join_copies  # noqa: E402

DEMO = TESTS / "demo"
WIDTH = 64
SIZES = (4, 5, 10, 24, 100)
HARD_SIZES = (24, 100, 1000)
AUC_SIZES = (100, 300)
LARGE = 1000  # pairs, whose AUC is taken for the true one


def table(title: str, columns: list[str], rows: Iterator[list[str]]) -> None:
    """Print a table, each row as soon as it is there."""
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


# Intervals of means


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Like cosines below a ceiling: most are high, with a tail of low ones."""
    return 2 - rng.gamma(2, 1, n)


def misfits(rng: np.random.Generator, n: int, share: float = 0.15, deviation: float = 0.5) -> np.ndarray:
    """Some of the pairs are wrong; the others are nearly alike."""
    return np.where(rng.random(n) < share, 2 * share - 2, 2 * share) + deviation * rng.standard_normal(n)


def rare_misfits(rng: np.random.Generator, n: int) -> np.ndarray:
    return misfits(rng, n, 0.03, 0.1)


def mostly_equal(rng: np.random.Generator, n: int) -> np.ndarray:
    """Differences of two systems that give the same for four of five pairs."""
    return np.where(rng.random(n) < 0.8, 0, rng.standard_normal(n))


SCORES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": normal,
    "left-skewed": skewed,
    "15 % misfits": misfits,
}  # each of mean zero


def percentile_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The interval of before: percentiles of resampled means at every size."""
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return low, high


def coverage(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n in SIZES:
            row = [str(n)]
            for draw in SCORES.values():
                rng, hits, earlier = np.random.default_rng(n), 0, 0
                for i in range(n_draws):
                    values = draw(rng, n)
                    low, high = estimate_mean(values, i).interval or (-math.inf, math.inf)
                    hits += low <= 0 <= high
                    low, high = percentile_interval(values, rng)
                    earlier += low <= 0 <= high
                row += [f"{hits / n_draws:.3f}", f"{earlier / n_draws:.3f}"]
            yield row

    columns = [column for name in SCORES for column in (name, f"{name}, percentiles alone")]
    table("Coverage of the 95 % interval of the mean", ["pairs", *columns], rows())


def hard(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n in HARD_SIZES:
            row = [str(n)]
            for draw in (rare_misfits, mostly_equal):
                rng, hits = np.random.default_rng(n), 0
                for i in range(n_draws):
                    low, high = estimate_mean(draw(rng, n), i).interval or (0, 0)
                    hits += low <= 0 <= high
                row.append(f"{hits / n_draws:.3f}")
            yield row

    columns = ["pairs", "3 % misfits", "differences, of which 80 % are 0"]
    table("Coverage where what matters is rare", columns, rows())


def groups(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n_groups, size in ((10, 5), (20, 5), (40, 5)):
            rng, hits, alone = np.random.default_rng(0), 0, 0
            for i in range(n_draws):
                values = np.repeat(rng.standard_normal(n_groups), size) + rng.standard_normal(n_groups * size)
                group = np.repeat(np.arange(n_groups), size)
                low, high = estimate_mean(values, i, group).interval
                hits += low <= 0 <= high
                low, high = estimate_mean(values, i).interval
                alone += low <= 0 <= high
            yield [f"{n_groups} x {size}", f"{hits / n_draws:.3f}", f"{alone / n_draws:.3f}"]

    table("Coverage where pairs are in groups", ["prompts x clips", "groups", "no groups"], rows())


SHAPES = {  # sizes of groups
    "12 of 5": np.full(12, 5),
    "3 to 12": np.arange(3, 13),
    "20, each 4/5 of the one before": np.maximum(1, 100 * 0.8 ** np.arange(20)).astype(int),
    "100, each 93/100": np.maximum(1, 60 * 0.93 ** np.arange(100)).astype(int),
    "one of 20, 50 of 2": np.array([20] + [2] * 50),
    "3 of 40, 27 of 5": np.array([40] * 3 + [5] * 27),
    "4 of 80, 36 of 5": np.array([80] * 4 + [5] * 36),
    "6 of 40, 54 of 5": np.array([40] * 6 + [5] * 54),
    "3 of 80, 27 of 5": np.array([80] * 3 + [5] * 27),
    "20, each 3/4": np.maximum(1, 40 * 0.75 ** np.arange(20)).astype(int),
}


def unequal(n_draws: int) -> None:
    n_trials = 4 * n_draws

    def rows() -> Iterator[list[str]]:
        for name, sizes in SHAPES.items():
            rng, group = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
            sums, hits, earlier, of_shares = sizes.astype(float), 0, 0, 0
            for i in range(n_trials):
                values = rng.standard_normal(len(sizes))[group] + rng.standard_normal(len(group))
                low, high = estimate_mean(values, i, group).interval or (-math.inf, math.inf)
                hits += low <= 0 <= high
                sums = np.bincount(group, values)
                low, high = np.percentile(resampled_means(sums, sizes, rng), [2.5, 97.5])
                earlier += low <= 0 <= high
                of_group = rng.beta(1.5, 0.5, len(sizes))[group]
                shares = (rng.random(len(group)) < of_group).astype(float)
                low, high = share_interval(shares, group) or (0, 1)
                of_shares += low <= 0.75 <= high
            counts = hits, earlier, of_shares
            yield [name, f"{effective_number(sizes):.1f}", *(f"{n / n_trials:.3f}" for n in counts)]

    columns = ["groups", "count for", "mean", "mean, percentiles alone", "share of 0.75"]
    table("Coverage where groups are unequal", columns, rows())


def copies(n_draws: int) -> None:
    n_trials = 4 * n_draws

    def rows() -> Iterator[list[str]]:
        for n_clips in (12, 24, 60):
            rng, told, earlier = np.random.default_rng(0), 0, 0
            contents = np.repeat(np.arange(n_clips), 5).tolist()
            for i in range(n_trials):
                values = (rng.standard_normal(n_clips) - rng.standard_normal(n_clips))[contents]
                group = np.array(join_copies(None, contents))
                told += estimate_mean(values, i, group).p_value < 0.05
                earlier += estimate_mean(values, i).p_value < 0.05
            yield [f"{n_clips} x 5", f"{told / n_trials:.3f}", f"{earlier / n_trials:.3f}"]

    columns = ["clips x copies", "copies are one", "each is its own"]
    table("Share of trials in which two equal systems differ (p < 0.05), copies", columns, rows())


def recall(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n in (10, 24, 100):
            row = [str(n)]
            for share in (0.5, 0.75, 0.95):
                rng, hits = np.random.default_rng(0), 0
                for _ in range(10 * n_draws):
                    low, high = share_interval(rng.random(n) < share)
                    hits += low <= share <= high
                row.append(f"{hits / (10 * n_draws):.3f}")
            yield row
        for n_groups in (4, 10, 20):  # of five clips, whose hits have a correlation of 1/3
            row, group = [f"{n_groups} x 5"], np.repeat(np.arange(n_groups), 5)
            for share in (0.5, 0.75, 0.95):
                rng, hits = np.random.default_rng(0), 0
                for _ in range(n_draws):
                    of_group = rng.beta(2 * share, 2 * (1 - share), n_groups)[group]
                    low, high = share_interval((rng.random(len(group)) < of_group).astype(float), group)
                    hits += low <= share <= high
                row.append(f"{hits / n_draws:.3f}")
            yield row

    table(
        "Coverage of the interval of Recall@K", ["pairs, or prompts x clips", "0.5", "0.75", "0.95"], rows()
    )


def systems(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n in SIZES:
            row = [str(n)]
            for draw in SCORES.values():
                rng, told, earlier = np.random.default_rng(n), 0, 0
                for i in range(n_draws):
                    values = draw(rng, n) - draw(rng, n)
                    p_value = estimate_mean(values, i).p_value
                    told += p_value is not None and p_value < 0.05
                    low, high = percentile_interval(values, rng)
                    earlier += not low <= 0 <= high
                row += [f"{told / n_draws:.3f}", f"{earlier / n_draws:.3f}"]
            yield row

    columns = [column for name in SCORES for column in (name, f"{name}, percentiles alone")]
    table("Share of trials in which two equal systems differ (p < 0.05)", ["pairs", *columns], rows())


# Suspects and AUC, on embeddings


def draw_embeddings(
    rng: np.random.Generator, n: int, signal: float, hubs: float, classes: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw embeddings of n pairs, (n, WIDTH) each, with a gap between the modalities.

    Args:
        signal: how strong what a pair has in common is, beside noise of 1 on either side.
        hubs: how much some files resemble everything.
        classes: that most of the signal comes from; 0: each pair is its own.
    """
    meaning = rng.standard_normal((n, WIDTH))
    if classes:
        of_class = rng.standard_normal((classes, WIDTH))[rng.integers(0, classes, n)]
        meaning = 0.9 * of_class + 0.45 * meaning
    everything, *gaps = np.random.default_rng(1).standard_normal((3, WIDTH))  # of one population
    audio, video = (
        signal * meaning + rng.standard_normal((n, WIDTH)) + hubs * rng.gamma(1, 1, (n, 1)) * everything + gap
        for gap in gaps
    )
    return audio.astype(np.float32), video.astype(np.float32)


def compare(
    audio: np.ndarray, video: np.ndarray, alike: list[int] | None = None, drawn_by: int | None = None
) -> Compared:
    """Compare embeddings as a run does; pair i is row i of both.

    Args:
        alike: what each pair shows, if some show the same.
        drawn_by: seed of what is drawn for pairs alone; None compares all.
    """
    n = len(audio)
    contents, embeddings = {"audio": range(n), "video": range(n)}, {"audio": audio, "video": video}
    comparison = Comparison(contents, embeddings, torch.device("cpu"), seed=drawn_by or 0)
    labels = () if alike is None else [(i, f"{label}") for i, label in enumerate(alike)]
    pairs, of_lines = np.stack([np.arange(n)] * 2, 1), (labels, labels)
    if drawn_by is None:
        return comparison.compare_all(comparison.matrix(("audio", "video"), pairs, alike, alike=of_lines))
    every = (np.arange(n), np.arange(n))
    return comparison.compare_drawn(comparison.matrix(("audio", "video"), pairs, alike, every, of_lines))


def earlier_suspects(audio: np.ndarray, video: np.ndarray) -> np.ndarray:
    """The rule of before: each pair against all mismatches, whatever its row and its column are like."""
    audio, video = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (audio, video))
    cosines = audio @ video.T
    mismatches = np.sort(cosines[~np.eye(len(cosines), dtype=bool)])
    n_at_least = len(mismatches) - np.searchsorted(mismatches, np.diag(cosines), "left")
    return find_suspects((1 + n_at_least) / (1 + len(mismatches)))


class Tally:
    """Counts right and wrong flags."""

    def __init__(self):
        self.n_right = self.n_flagged = self.n_bad = 0

    def add(self, flags: np.ndarray, bad: np.ndarray) -> None:
        self.n_right += int((flags & bad).sum())
        self.n_flagged += int(flags.sum())
        self.n_bad += int(bad.sum())

    def __str__(self) -> str:
        return f"{self.n_right / max(self.n_flagged, 1):.2f} / {self.n_right / self.n_bad:.2f}"


def flags_of(audio: np.ndarray, video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find suspects by our rule and by the one of before."""
    return compare(audio, video).columns["suspect"], earlier_suspects(audio, video)


def swap(video: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Give each of some pairs the video of another one of them."""
    video = video.copy()
    video[bad] = video[np.roll(bad, 1)]
    return video


SETTINGS = {  # pairs, signal, hubs, classes
    "strong model, 1000 pairs": (1000, 1.5, 0.0, 0),
    "medium, hubs, 1000 pairs": (1000, 1.2, 0.7, 0),
    "weak, hubs, 1000 pairs": (1000, 0.8, 0.6, 0),
    "medium, 24 pairs": (24, 1.1, 0.45, 0),
    "6 strong classes, 24 pairs": (24, 2.0, 0.4, 6),
}


def suspects(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for name, (n, *setting) in SETTINGS.items():
            rng, ours, earlier = np.random.default_rng(0), Tally(), Tally()
            for _ in range(max(3, n_draws * 24 // n // 2)):
                audio, video = draw_embeddings(rng, n, *setting)
                bad = rng.choice(n, max(2, n // 20), replace=False)
                found, found_before = flags_of(audio, swap(video, bad))
                ours.add(found, np.isin(np.arange(n), bad))
                earlier.add(found_before, np.isin(np.arange(n), bad))
            yield [name, str(ours), str(earlier)]
        audio, video = demo_embeddings()
        ours, earlier = Tally(), Tally()
        every_two = list(itertools.combinations(range(len(audio)), 2))
        for bad in map(np.array, every_two[:: math.ceil(len(every_two) / n_draws)]):
            found, found_before = flags_of(audio, swap(video, bad))
            ours.add(found, np.isin(np.arange(len(audio)), bad))
            earlier.add(found_before, np.isin(np.arange(len(audio)), bad))
        yield ["the demo, every two swapped", str(ours), str(earlier)]

    columns = ["5 % of the pairs swapped", "rank product", "each pair against all mismatches"]
    table("Precision / recall of the suspects", columns, rows())


def demo_embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Embed the demo."""
    with tempfile.TemporaryDirectory() as folder:
        results = batch_inference_av_consistency(
            str(DEMO / "audio"),
            str(DEMO / "video"),
            "cpu",
            output_dir=folder,
            checkpoint=DEMO / "imagebind_demo.pth",
            no_html=True,
        )
        return tuple(results[f"{modality}_embeddings"].numpy().copy() for modality in ("audio", "video"))


def auc(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n in AUC_SIZES:
            row = [str(n)]
            for signal, hubs in ((0.9, 1.0), (1.1, 0.3)):
                rng = np.random.default_rng(0)
                drawn = (draw_embeddings(rng, LARGE, signal, hubs) for _ in range(max(2, n_draws // 50)))
                truth = np.mean([compare(*pairs).metrics["auc"] for pairs in drawn])
                hits = 0
                n_trials = max(1, n_draws // 5)
                for _ in range(n_trials):
                    low, high = compare(*draw_embeddings(rng, n, signal, hubs)).metrics["auc_interval"]
                    hits += low <= truth <= high
                row.append(f"{hits / n_trials:.3f}")
            yield row

    table("Coverage of the interval of the AUC", ["pairs", "AUC 0.80, hubs", "AUC 0.98"], rows())


def auc_width(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n in (*AUC_SIZES, 1000, 3000):
            rng, aucs, halves = np.random.default_rng(0), [], []
            for _ in range(max(4, min(n_draws, n_draws * 100 // n))):
                metrics = compare(*draw_embeddings(rng, n, 0.9, 1.0)).metrics
                low, high = metrics["auc_interval"]
                aucs.append(metrics["auc"])
                halves.append((high - low) / 2)
            deviation = 1.96 * np.std(aucs, ddof=1)
            half = np.mean(halves)
            yield [str(n), str(len(aucs)), f"{half:.4f}", f"{deviation:.4f}", f"{half / deviation:.2f}"]

    columns = ["pairs", "sets", "half width", "1.96 standard deviations of the AUC", "ratio"]
    table("Width of the interval of the AUC, 0.80, hubs", columns, rows())


def pairs_alone(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n in (300, 3000):
            embeddings = draw_embeddings(np.random.default_rng(0), n, 0.9, 1.0)
            exact = compare(*embeddings).metrics
            drawn = [compare(*embeddings, drawn_by=1 + i).metrics for i in range(max(3, n_draws // 30))]
            margins = [abs(metrics["margin"] - exact["margin"]) for metrics in drawn]
            aucs = [metrics["auc"] for metrics in drawn]
            spread = f"{min(aucs):.4f} to {max(aucs):.4f}"
            yield [str(n), str(len(drawn)), f"{max(margins):.1e}", f"{exact['auc']:.4f}", spread]

    columns = ["pairs", "seeds", "largest error of the margin", "AUC of all mismatches", "AUC of drawn ones"]
    table("Pairs alone against the whole matrix", columns, rows())


def near_copies(n_draws: int) -> None:
    def rows() -> Iterator[list[str]]:
        for n_contents, n_copies in ((8, 3), (24, 3), (100, 3)):
            rng, found = np.random.default_rng(0), {"declared": [], "not declared": []}
            for _ in range(max(2, n_draws // n_contents)):
                meaning = np.repeat(rng.standard_normal((n_contents, WIDTH)), n_copies, axis=0)
                audio, video = (
                    (meaning + 0.05 * rng.standard_normal(meaning.shape)).astype(np.float32) for _ in "av"
                )
                content = np.repeat(np.arange(n_contents), n_copies).tolist()
                for key, alike in (("declared", content), ("not declared", None)):
                    compared = compare(audio, video, alike)
                    like_pairs = compared.metrics["mismatches_like_pairs"]
                    found[key].append((compared.columns["suspect"].mean(), like_pairs))
            means = (np.mean(found[key], axis=0) for key in ("not declared", "declared"))
            yield [f"{n_contents} x {n_copies}", *(f"{x:.1%}" for of in means for x in of)]

    columns = ["contents x near copies", "suspects", "mismatches like pairs"]
    columns += [f"{column}, declared" for column in columns[1:]]
    table("A perfect model and content that is there several times", columns, rows())


TABLES = {
    f.__name__: f
    for f in (
        *(coverage, hard, groups, unequal, copies, recall, systems, suspects, near_copies),
        *(auc, auc_width, pairs_alone),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the figures promise.")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="tables to print")
    parser.add_argument("--draws", type=int, default=1000, help="trials of each cell")
    args = parser.parse_args()
    logging.getLogger("imagebind").setLevel(logging.ERROR)
    for name in args.only:
        TABLES[name](args.draws)


if __name__ == "__main__":
    main()
