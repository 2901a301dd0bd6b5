"""Measure the model on a GPU, and the reading of its host: what docs/speed.md says of GPUs.

    pip install decord soundfile
    python tests/benchmarks/gpu.py          # under eight minutes
    python tests/benchmarks/gpu.py --small  # whether all rows run, with the demo's model; also on a CPU

Each figure is a ratio to a baseline of the same run, or a rate. It makes its own media and, as
tests/benchmarks/throughput.py, a checkpoint of full size with made-up weights.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "benchmarks")]

from conftest import tone, write_audio  # noqa: E402
from throughput import (  # noqa: E402
    Setup,
    clips_of,
    make_clips,
    read_audio_as_released,
    read_video_as_released,
    released_model,
    timed,
)

from batch_inference import Options, batch_inference_av_consistency  # noqa: E402
from imagebind.data.features import VIDEO  # noqa: E402
from imagebind.evaluation.embed.model import choose_precision  # noqa: E402
from imagebind.evaluation.embed.readers import start_workers  # noqa: E402
from imagebind.models.embedder import DTYPES, Embedder  # noqa: E402
from imagebind.models.imagebind_model import load_model  # noqa: E402
from imagebind.models.tower import MLP_RATIO  # noqa: E402
from imagebind.reading.loader import Reading, load_files  # noqa: E402
from imagebind.sources import Source  # noqa: E402

REPEATS = 5


def timed_on(device: torch.device, work: Callable) -> float:
    """Return the seconds of one of several rounds, after a first one that does not count."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def rounds() -> None:
        for _ in range(REPEATS):
            work()
        wait()

    work(), wait()
    return timed(rounds) / REPEATS


@torch.inference_mode()
def model(setup: Setup, device: torch.device) -> Iterator[str]:
    """The vision tower's rate against that of its matrix multiplications, and videos a second."""
    precision = choose_precision("auto", device)
    dtype, n_videos = DTYPES[precision], setup.n(8, 1)
    tower = Embedder(load_model(setup.checkpoint), device, precision).tower("vision")
    clips, width = clips_of(15 * n_videos).to(device, dtype), tower.config.width
    n = len(clips) * tower.config.n_tokens
    shapes = [(width, 3 * width), (width, width), (width, MLP_RATIO * width), (MLP_RATIO * width, width)]
    operands = [(torch.randn(n, k), torch.randn(m, k)) for k, m in shapes]
    operands = [(x.to(device, dtype), w.to(device, dtype)) for x, w in operands]

    def multiply() -> None:
        for _ in range(tower.config.n_blocks):
            for x, w in operands:
                F.linear(x, w)

    bare = timed_on(device, multiply)
    ours = timed_on(device, lambda: tower(clips))
    flops = 2 * n * tower.config.n_blocks * sum(k * m for k, m in shapes)
    yield (
        f"vision tower, {precision} | its matrix multiplications alone | 60 % | {100 * bare / ours:.0f} % of "
        f"{flops / bare / 1e12:.0f} TFLOP/s; {n_videos / ours:.0f} videos/s"
    )
    if device.type == "cuda":
        compiled = torch.compile(tower)
        start = timed(lambda: compiled(clips))
        fused = timed_on(device, lambda: compiled(clips))
        yield f"vision tower, torch.compile | without | | {ours / fused:.2f} x, after {start:.0f} s"


def reading(setup: Setup, device: torch.device) -> Iterator[str]:
    """Videos a second that the host reads, by number of workers."""
    n_cores = len(os.sched_getaffinity(0))
    paths = [str(path) for path in make_clips(setup.folder / "clips", setup.n(4, 1), setup.n(10, 1))]
    for n_workers in sorted({1, max(n_cores // 2, 1), n_cores}):
        files = [("video", Source(path), (VIDEO,)) for path in paths * setup.n(max(n_workers, 2), 1)]
        with start_workers(Options(None, "", num_workers=n_workers)) as workers:
            loaded = load_files([files[0]] * n_workers + files, workers, Reading(half=device.type == "cuda"))
            for _ in range(n_workers):
                next(loaded)
            seconds = timed(lambda loaded=loaded: list(loaded))
        rate = len(files) / seconds
        yield f"read 10 s clips of 224p, 360p and 720p, {n_workers} workers | | | {rate:.1f} videos/s"


def whole(setup: Setup, device: torch.device) -> Iterator[str]:
    """A whole run, with loading, against the released way on the same device."""
    folder, n_each = setup.folder, setup.n(8, 1)
    videos = make_clips(folder / "video", n_each, setup.n(10, 2))
    for i, video in enumerate(videos):
        write_audio(folder / "audio" / f"{video.stem}.wav", tone(10, 200 + i, 44100), 44100, "pcm_s16le")
    sounds = sorted((folder / "audio").iterdir())

    @torch.inference_mode()
    def released(n: int | None = None) -> None:
        model = released_model(setup.checkpoint).to(device)
        for paths, read, modality in (
            (sounds, read_audio_as_released, "audio"),
            (videos, read_video_as_released, "vision"),
        ):
            for path in paths[:n]:
                model({modality: read(path)[None].to(device)})[modality].cpu()

    def ours() -> None:
        batch_inference_av_consistency(
            folder / "audio", folder / "video", str(device), output_dir=folder / "out",
            checkpoint=setup.checkpoint, no_cache=True,
        )  # fmt: skip

    ours(), released(1)  # imports; the checkpoint is checked once
    baseline, seconds = timed(released), timed(ours)
    yield f"whole run of {len(videos)} pairs | the released way, fp32 | 10 x | {baseline / seconds:.1f} x"


ROWS = {"model": model, "reading": reading, "whole": whole}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a GPU and the reading of its host.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--small", action="store_true", help="only see whether the rows run")
    args = parser.parse_args(argv)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.small:
        parser.error("there is no GPU; --small runs without one")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    print(f"{card}, {len(os.sched_getaffinity(0))} cores\n")
    print("| what | against | goal | measured |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as base:
        for name in args.only:
            with tempfile.TemporaryDirectory() as folder:
                for row in ROWS[name](Setup(Path(folder), Path(base), args.small), device):
                    print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
