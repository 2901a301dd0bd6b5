"""Measure tars against the same files unpacked: the time of a whole run, as a ratio of both in turns.

    python tests/benchmarks/tars.py  # two minutes on two cores

The model is the small one of the demo, so that reading weighs as much as it can.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "benchmarks")]

import throughput  # noqa: E402
from conftest import tone, write_audio  # noqa: E402
from throughput import DEMO, make_video  # noqa: E402

from batch_inference import batch_inference_av_consistency  # noqa: E402


def make_pairs(folder: Path, n_pairs: int, seconds: float) -> None:
    """Write pairs as files, with a table of them, and as a tar."""
    lines = ["id,video,audio"]
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for i in range(n_pairs):
            video, audio = folder / "video" / f"{i}.mp4", folder / "audio" / f"{i}.wav"
            make_video(video, seconds, *throughput.SIZES[0], i)
            write_audio(audio, tone(seconds, 200 + 50 * i))
            tar.add(video, video.name)
            tar.add(audio, audio.name)
            lines.append(f"{i},video/{i}.mp4,audio/{i}.wav")
    (folder / "pairs.csv").write_text("\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10, help="of a video")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--num_workers", type=int, help="processes that read")
    args = parser.parse_args(argv)
    times = {"pairs.csv": [], "pairs.tar": []}
    options = {"device": "cpu", "checkpoint": DEMO / "imagebind_demo.pth", "num_workers": args.num_workers}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("audio", "video"):
            (folder / name).mkdir()
        make_pairs(folder, args.pairs, args.seconds)
        for run in range(args.runs + (args.runs > 1)):  # the first of several warms up
            for name, taken in times.items():
                began = time.perf_counter()
                batch_inference_av_consistency(manifest=folder / name, **options)
                if run or args.runs == 1:
                    taken.append(time.perf_counter() - began)
    files, tar = map(statistics.median, times.values())
    print("| pairs | files, s | tar, s | tar against files |\n| --- | --- | --- | --- |")
    print(f"| {args.pairs} | {files:.2f} | {tar:.2f} | {tar / files:.2f} |")


if __name__ == "__main__":
    main()
