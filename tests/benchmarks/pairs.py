"""Measure pairs alone: a manifest of many rows over the demo's files, whose embeddings are in the cache.

    python tests/benchmarks/pairs.py  # three minutes on two cores

It prints, for each number of rows, the seconds and the peak memory of `--pairs_only`, each also as a ratio to
those of the fewest rows, which pay for the imports and the model.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "benchmarks")]

from throughput import DEMO, in_process, peak_memory  # noqa: E402

from batch_inference import batch_inference_av_consistency  # noqa: E402


def score(manifest: Path, cache: Path, output_dir: Path, n_workers: int | None) -> float:
    """Score the pairs of a manifest; return the peak memory in GB."""
    options = {"cache": cache, "output_dir": output_dir, "checkpoint": DEMO / "imagebind_demo.pth"}
    options["num_workers"] = n_workers
    batch_inference_av_consistency(manifest=manifest, pairs_only=True, device="cpu", no_html=True, **options)
    return peak_memory()


def write_manifest(path: Path, n_rows: int) -> None:
    """Pair the demo's sounds and videos at random."""
    rng = random.Random(0)
    sounds, videos = (sorted(map(str, (DEMO / modality).iterdir())) for modality in ("audio", "video"))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "video", "audio"))
        writer.writerows((i, rng.choice(videos), rng.choice(sounds)) for i in range(n_rows))


def evaluate(manifest: Path, cache: Path, output_dir: Path, n_workers: int | None) -> tuple[float, float]:
    """Evaluate a manifest in a process of its own: seconds, and peak memory in GB."""
    start = time.perf_counter()
    memory = in_process(score, manifest, cache, output_dir, n_workers)
    return time.perf_counter() - start, memory


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure pairs alone.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--num_workers", type=int, help="processes that read")
    args = parser.parse_args(argv)
    print("| rows | seconds | against the fewest | peak memory, GB | against the fewest |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        first = None
        for n_rows in (args.rows[0], *args.rows):  # the first fills the cache
            manifest = Path(folder, f"{n_rows}.csv")
            write_manifest(manifest, n_rows)
            places = Path(folder, "cache.sqlite"), Path(folder, "outputs")
            seconds, memory = evaluate(manifest, *places, args.num_workers)
            if first is None:
                first = ()
                continue
            first = first or (seconds, memory)
            ratios = (seconds / first[0], memory / first[1])
            print(f"| {n_rows:,} | {seconds:.1f} | {ratios[0]:.2f} | {memory:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
