"""Measure large sets: metrics over all cosines, the matrix on disk, and a million files.

    python tests/benchmarks/scale.py              # all rows; half an hour on two cores, 12 GB of disk
    python tests/benchmarks/scale.py --only metrics --rows 20000
    python tests/benchmarks/scale.py --rows 30 --files 40   # whether all rows run

Rows are made up. Each figure is a ratio to a baseline of the same run. "Bare" is the product of
the same tiles by the same threads, in float64, as the metrics take it.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "benchmarks")]

from throughput import in_process, peak_memory, timed  # noqa: E402

import batch_inference  # noqa: E402
from imagebind.evaluation.compare import scan as scans  # noqa: E402
from imagebind.evaluation.compare import similarity  # noqa: E402
from imagebind.evaluation.compare.arrays import OutputArrays, temporary_path  # noqa: E402
from imagebind.evaluation.compare.positives import find_positives  # noqa: E402
from imagebind.evaluation.compare.suspects import sample_mismatches  # noqa: E402
from imagebind.evaluation.inputs.files import gather_files, read_list_file  # noqa: E402
from imagebind.evaluation.inputs.pairing import pair_files  # noqa: E402

DEMO = TESTS / "demo"
WIDTH = 1024
MILLION = 1_000_000
FOLDERS = 1000  # in which files lie


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
    height, width = scans.GPU_TILE if device.startswith("cuda") else scans.TILE
    columns = [similarity.unit_rows(video[b]).to(device, type) for b in similarity.blocks(len(video), width)]

    def product(rows: torch.Tensor, columns: torch.Tensor) -> Callable[[], None]:
        product = torch.mm(rows, columns.T)
        return lambda: product.sum(0, keepdim=True)[0, :0].cpu()

    seconds = 0.0
    with scans.tile_threads(torch.device(device)) as run:
        for b in similarity.blocks(len(audio), height):
            rows = similarity.unit_rows(audio[b]).to(device, type)
            began = time.perf_counter()
            run(partial(product, rows, c) for c in columns)
            seconds += time.perf_counter() - began
    return seconds


def scan_all(audio: np.ndarray, video: np.ndarray, matrix: np.ndarray | None, device: str) -> None:
    """Count over all cells, the diagonal being the pairs, with a sample of mismatches."""
    n = len(audio)
    pairs = similarity.look_up(audio, video, np.stack([np.arange(n)] * 2, axis=1))
    truth = find_positives(range(n), range(n), ((i, i) for i in range(n)))
    sample = similarity.look_up(audio, video, sample_mismatches((n, n), truth, 0))
    scans.scan(audio, video, pairs, sample, matrix, None, device)


def metrics(folder: Path, size: argparse.Namespace) -> dict:
    n, device = size.rows, size.device
    audio, video = make_rows(n, folder)
    reset_peak()
    seconds = timed(lambda: scan_all(audio, video, None, device))
    memory = peak_memory()
    double, single = (bare_product(audio, video, device, t) for t in (torch.float64, torch.float32))
    tiles = math.prod(math.ceil(n / size) for size in scans.TILE)
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


def matrix(folder: Path, size: argparse.Namespace) -> dict:
    n, device = size.rows, size.device
    audio, video = make_rows(n, folder)
    size, path = 4 * n * n, folder / "matrix.npy"
    reset_peak()

    def compare() -> None:
        matrix = OutputArrays(folder).new(path.name, (n, n))
        scan_all(audio, video, matrix, device)
        with open(temporary_path(folder, path.name), "r+b") as file:
            os.fsync(file.fileno())

    seconds, memory = timed(compare), peak_memory()
    temporary_path(folder, path.name).unlink()
    tile = np.random.default_rng(0).random(scans.TILE, dtype=np.float32)

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


def pairing(folder: Path, size: argparse.Namespace) -> dict:
    """Pair a million sounds with a million videos, from list files and from directories."""
    sources = {"list files": [], "directories": []}
    for side, suffix in (("audio", "wav"), ("video", "mp4")):
        names = [f"part_{i % FOLDERS:04d}/clip_{i:08d}.{suffix}" for i in range(size.files)]
        (folder / f"{side}.txt").write_text("".join(f"/data/{side}/{name}\n" for name in names))
        sources["list files"].append(folder / f"{side}.txt")
        for i in range(FOLDERS):
            (folder / side / f"part_{i:04d}").mkdir(parents=True)
        for name in names:
            os.mknod(folder / side / name)
        sources["directories"].append(folder / side)
    figures = {"what": f"list, pair and name 2 x {size.files:,} files"}
    for what, paths in sources.items():
        seconds, memory = in_process(pair_all, list(map(str, paths)), size.files)  # with a memory of its own
        figures |= {f"seconds, {what}": seconds, f"peak GB, {what}": memory}
    return figures


def pair_all(sources: list[str], n: int) -> tuple[float, float]:
    pairs = []

    def pair() -> None:
        paths = [source if os.path.isdir(source) else read_list_file(source) for source in sources]
        sides = [gather_files(side, source) for side, source in zip(("audio", "video"), paths, strict=True)]
        pairs.extend(pair_files(*sides).pairs)
        for side in sides:
            _ = side.names

    seconds = timed(pair)
    assert len(pairs) == n
    return seconds, peak_memory()


def whole(folder: Path, size: argparse.Namespace) -> dict:
    """Run over a million sounds, and a thousandth as many videos, links to the demo's.

    Before it over a tenth of the sounds: what is linear takes a tenth.
    """
    n_videos = math.ceil(size.files / 1000)
    figures = {"what": f"a run over {size.files:,} sounds and {n_videos:,} videos"}
    for n_sounds in (size.files // 10, size.files):
        root = folder / str(n_sounds)
        for side, n_files in (("audio", n_sounds), ("video", n_videos)):
            copies = sorted((DEMO / side).iterdir())
            for i in range(FOLDERS):
                (root / side / f"part_{i:04d}").mkdir(parents=True)
            for i in range(n_files):
                path, original = root / side / f"part_{i % FOLDERS:04d}" / f"{i:08d}", copies[i % len(copies)]
                path = path.with_suffix(original.suffix)
                if i < len(copies):
                    path.write_bytes(original.read_bytes())
                    copies[i] = path
                else:
                    os.link(original, path)
        options = ("--checkpoint", str(DEMO / "imagebind_demo.pth"), "--device", size.device)
        if size.num_workers is not None:
            options += ("--num_workers", str(size.num_workers))
        seconds, reading, memory = in_process(run, root, options)
        figures |= {
            f"seconds, {n_sounds}": seconds,
            f"of these to read, {n_sounds}": reading,
            f"peak GB but for mapped files, {n_sounds}": memory,
        }
    return figures


def run(root: Path, options: tuple[str, ...]) -> tuple[float, float, float]:
    """Run over audio/ and video/ there; return the seconds, those to read, and the peak in GB."""
    os.chdir(root)
    inputs = ("--audio_dir", "audio", "--video_dir", "video", "--retrieval_mode", "--max_matrix_gb", "0")
    held, done, said = [], threading.Event(), io.StringIO()

    def watch() -> None:
        while not done.wait(0.2):  # memory that is no file's
            held.append(int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            seconds = timed(lambda: batch_inference.main([*inputs, *options]))
    finally:
        done.set()
        watcher.join()
    return seconds, float(re.findall(r"files in ([\d.]+) s", said.getvalue())[0]), max(held)


ROWS = {"metrics": metrics, "matrix": matrix, "pairing": pairing, "whole": whole}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure large sets.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rows", type=int, default=50_000, help="sounds and videos (default: %(default)s)")
    parser.add_argument("--files", type=int, default=MILLION, help="files to list (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_workers", type=int, help="processes that read")
    args = parser.parse_args(argv)
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            figures = ROWS[name](Path(folder), args)
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
