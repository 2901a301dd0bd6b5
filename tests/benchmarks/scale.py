"""Measure large sets: metrics over all cosines, the matrix on disk, and pairing a million files.

    python tests/benchmarks/scale.py              # all rows; 5 minutes on two cores, 12 GB of disk
    python tests/benchmarks/scale.py --only metrics --rows 20000

Rows are made up. Each figure is a ratio to a baseline of the same run; it prints a table and writes
scale.json. "Bare" is the product of the same tiles by the same threads, in float64, as the metrics take it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "benchmarks")]

from throughput import make_clips  # noqa: E402

from batch_inference import OutputArrays, compare_rows, gather_files, pair_files, read_list_file  # noqa: E402
from imagebind import similarity  # noqa: E402

DEMO = TESTS / "demo"
WIDTH = 1024
MILLION = 1_000_000


def timed(work: Callable) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_memory() -> float:
    """Give the most memory that this process has had, in GB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1e6


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def make_rows(n: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Make rows (n, WIDTH) of n pairs in files, one pair in twenty of them wrong."""
    rng = np.random.default_rng(0)
    common = 0.3 * rng.standard_normal(WIDTH, dtype=np.float32)
    sides = [np.lib.format.open_memmap(folder / f"{side}.npy", "w+", np.float32, (n, WIDTH)) for side in "av"]
    for block in similarity.blocks(n, 1000):
        shape = block.stop - block.start, WIDTH
        shared = rng.standard_normal(shape, dtype=np.float32)
        for i, side in enumerate(sides):
            side[block] = 1.2 * rng.standard_normal(shape, dtype=np.float32) + common
            side[block][: shape[0] * 19 // 20 if i else None] += shared[: shape[0] * 19 // 20 if i else None]
    return tuple(sides)


def bare_product(audio: np.ndarray, video: np.ndarray, device: str, type: torch.dtype) -> float:
    """Time the product of all tiles alone."""
    height, width = similarity.GPU_TILE if device.startswith("cuda") else similarity.TILE
    columns = [similarity.unit_rows(video[b]).to(device, type) for b in similarity.blocks(len(video), width)]

    def product(rows: torch.Tensor, columns: torch.Tensor) -> Callable[[], None]:
        product = torch.mm(rows, columns.T)
        return lambda: product.sum(0, keepdim=True)[0, :0].cpu()

    began, seconds = time.perf_counter(), 0.0
    with similarity.tile_threads(torch.device(device)) as run:
        for b in similarity.blocks(len(audio), height):
            rows = similarity.unit_rows(audio[b]).to(device, type)
            began = time.perf_counter()
            run(partial(product, rows, c) for c in columns)
            seconds += time.perf_counter() - began
    return seconds


def metrics(folder: Path, n: int, device: str) -> dict:
    audio, video = make_rows(n, folder)
    truth = np.stack([np.arange(n)] * 2, axis=1)
    compare = partial(compare_rows, audio, video, truth, truth)
    reset_peak()
    seconds = timed(lambda: compare(OutputArrays(None), 0, torch.device(device)))
    memory = peak_memory()
    double, single = (bare_product(audio, video, device, t) for t in (torch.float64, torch.float32))
    tiles = math.prod(math.ceil(n / size) for size in similarity.TILE)
    rate = 2 * n * n * WIDTH / seconds / 1e12
    return {
        "what": f"metrics of {n} x {n}",
        "against the bare product": seconds / double,
        "against it in float32": seconds / single,
        "peak GB": memory,
        "TFLOP/s": rate,
        "days for a million x a million": seconds * (MILLION / n) ** 2 / 86400,
        "tiles": tiles,
    }


def matrix(folder: Path, n: int, device: str) -> dict:
    audio, video = make_rows(n, folder)
    truth = np.stack([np.arange(n)] * 2, axis=1)
    size = 4 * n * n
    reset_peak()

    def compare() -> None:
        compare_rows(audio, video, truth, truth, OutputArrays(folder), size / 1e9 + 1, torch.device(device))
        with open(folder / ".similarity_matrix.npy.tmp", "r+b") as file:
            os.fsync(file.fileno())

    seconds, memory = timed(compare), peak_memory()
    (folder / ".similarity_matrix.npy.tmp").unlink()
    tile = np.random.default_rng(0).random(similarity.TILE, dtype=np.float32)

    def write() -> None:
        with open(folder / "plain", "wb") as file:
            for _ in range(math.ceil(size / tile.nbytes)):
                file.write(tile.data)
            file.flush()
            os.fsync(file.fileno())

    plain = timed(write)
    (folder / "plain").unlink()
    product = bare_product(audio, video, device, torch.float64)
    return {
        "what": f"{n} x {n} with the matrix on disk",
        "against writing as many bytes": seconds / plain,
        "against the bare product": seconds / product,
        "against both, one after the other": seconds / (plain + product),
        "peak GB": memory,
    }


def pairing(folder: Path, n: int, device: str) -> dict:
    for side, suffix in (("audio", "wav"), ("video", "mp4")):
        with open(folder / f"{side}.txt", "w", encoding="utf-8") as file:
            file.writelines(
                f"/data/part_{i % 1000:04d}/{side}/clip_{i:08d}.{suffix}\n" for i in range(MILLION)
            )
    reset_peak()
    pairs = []

    def pair() -> None:
        sides = [gather_files(side, read_list_file(folder / f"{side}.txt")) for side in ("audio", "video")]
        pairs.extend(pair_files(*sides).pairs)
        for side in sides:
            _ = side.names

    seconds = timed(pair)
    assert len(pairs) == MILLION
    return {"what": "list, pair and name 2 x 1,000,000 files", "seconds": seconds, "peak GB": peak_memory()}


def ranks(folder: Path, n: int, device: str) -> dict:
    """Measure two processes on two cores against one on one, over videos that take long to read."""
    (folder / "video").mkdir()
    for clip in make_clips(folder, n_each=1):
        for i in range(40):
            os.link(clip, folder / "video" / f"{clip.stem}_{i}.mp4")
    (folder / "audio").mkdir()
    for path in (folder / "video").iterdir():
        (folder / "audio" / f"{path.stem}.wav").write_bytes((DEMO / "audio" / "scroll_1.wav").read_bytes())
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    seconds = []
    for start in (("taskset", "-c", "0", sys.executable), ("taskset", "-c", "0,1", *launch)):
        result = subprocess.run(
            [
                *(
                    *start,
                    TESTS.parent / "batch_inference.py",
                    "--audio_dir",
                    "audio",
                    "--video_dir",
                    "video",
                ),
                *("--checkpoint", DEMO / "imagebind_demo.pth", "--device", device),
                *("--no_cache", "--no_html"),
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        (line,) = re.findall(r"^\d+ files in ([\d.]+) s", result.stderr, re.M)  # of the first process
        seconds.append(float(line))
    return {"what": "embed with 2 ranks on two cores", "against 1 rank on one": seconds[0] / seconds[1]}


ROWS = {"metrics": metrics, "matrix": matrix, "pairing": pairing, "ranks": ranks}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure large sets.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rows", type=int, default=50_000, help="sounds and videos (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    figures = []
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            figures.append(ROWS[name](Path(folder), args.rows, args.device))
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in figures[-1].items()))
    Path("scale.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
