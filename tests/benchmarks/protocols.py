"""Measure what each public score costs, as ratios to the released loaders' in the same run.

    python tests/benchmarks/protocols.py

It makes its own media: 10 s videos of 360p with a sound each, and a long one for the memory. The model is the
small one of the demo, so that reading weighs as much as the model; with --checkpoint another one computes.
Absolute times mean nothing on another machine; ratios are what to read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "benchmarks")]

import throughput  # noqa: E402
from conftest import tone, write_audio  # noqa: E402
from throughput import in_process, make_video, peak_memory, repeat_video  # noqa: E402

from batch_inference import batch_inference_av_consistency  # noqa: E402
from imagebind.evaluation.rules import PROTOCOLS  # noqa: E402

RUNS = {  # each score alone; those of pairs alone have the released loaders' beside them
    "imagebind": ("imagebind",),
    "mmaudio": ("mmaudio",),
    "avhscore": ("imagebind", "avhscore"),
    "javisscore": ("imagebind", "javisscore"),
    "mova": ("mova",),
    "reward": ("reward",),
    "t2av": ("t2av",),
    "of clips": ("imagebind", "mova", "reward", "t2av"),
    "all": PROTOCOLS,
}


def costs(
    folder: Path, checkpoint: Path, n_videos: int, n_runs: int, seconds: float, n_workers: int | None
) -> dict[str, float]:
    """Return the median time of each of RUNS; they take turns."""
    for i in range(n_videos):
        make_video(folder / "video" / f"{i}.mp4", seconds, *throughput.SIZES[1], i)
        write_audio(folder / "audio" / f"{i}.wav", tone(seconds, 200 + 50 * i))
    times = {name: [] for name in RUNS}
    for i in range(n_runs + (n_runs > 1)):
        for name, protocols in RUNS.items():
            began = time.perf_counter()
            batch_inference_av_consistency(
                *(folder / "audio", folder / "video", "cpu"),
                **{"checkpoint": checkpoint, "protocols": protocols, "num_workers": n_workers},
            )
            if i or n_runs == 1:  # the first of several warms up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def run_all(folder: Path, checkpoint: Path, name: str) -> float:
    """Run the protocols that take all of a file over one pair; return the peak memory in GB."""
    options = {"checkpoint": checkpoint, "num_workers": 0, "output_dir": folder / f"out_{name}"}
    protocols = [name for name in PROTOCOLS if name != "mmaudio"]
    sound, video = folder / f"{name}.wav", folder / f"{name}.mp4"
    batch_inference_av_consistency(
        [sound], [video], "cpu", protocols=protocols, no_cache=True, no_html=True, **options
    )
    return peak_memory()


def memory(folder: Path, checkpoint: Path, seconds: float, times: int) -> tuple[float, float]:
    """Return the peak memory, in GB, with a video and with one that is `times` as long."""
    make_video(folder / "short.mp4", seconds, *throughput.SIZES[1])
    repeat_video(folder / "short.mp4", folder / "long.mp4", times)
    for name, n in (("short", 1), ("long", times)):
        write_audio(folder / f"{name}.wav", tone(n * seconds, 300))
    return tuple(in_process(run_all, folder, checkpoint, name) for name in ("short", "long"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=TESTS / "demo" / "imagebind_demo.pth")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of a video")
    parser.add_argument("--num_workers", type=int, help="processes that read")
    parser.add_argument("--times", type=int, default=20, help="how much longer the long one is")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("audio", "video"):
            (folder / name).mkdir()
        found = costs(folder, args.checkpoint, args.videos, args.runs, args.seconds, args.num_workers)
        short, long = memory(folder, args.checkpoint, args.seconds, args.times)
    base = found["imagebind"]
    alone = {
        name: found[name] - base * ("imagebind" in RUNS[name] and name != "imagebind") for name in PROTOCOLS
    }
    print("| score | time, in that of imagebind |\n| --- | --- |")
    for name in PROTOCOLS:
        print(f"| {name} | {alone[name] / base:.2f} |")
    print(f"| imagebind, mova, reward and t2av in one run | {found['of clips'] / base:.2f} |")
    print(f"| all in one run | {found['all'] / base:.2f} |")
    print(f"| all, against the sum of the seven | {found['all'] / sum(alone.values()):.2f} |")
    print(f"\npeak memory, {args.seconds:g} s: {short:.2f} GB; {args.times} times as long: {long:.2f} GB")
    print(json.dumps({"times": found, "memory": [short, long]}))


if __name__ == "__main__":
    main()
