"""Measure what a precision does to the cosines of the full-size model.

    python tests/benchmarks/precision.py

It uses the media of tests/reference and the weights of tests/reference/weights.py. A default is to
keep every cosine within 5e-4 and their mean within 1e-4. It measures the GPU where there is one; on the
CPU fp16 takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))

from throughput import DEMO, TESTS, Embedder, data, huge_checkpoint, load_model

SOUNDS = (
    "mono_16k_5s.wav",
    "short_16k_0.5s.wav",
    "stereo_44k_3s.wav",
    "sweep_22k_7s.mp3",
    "sweep_44k_4s.m4a",
)
VIDEOS = ("short_flv1_2.5s.flv", "square_mpeg4_6s.avi", "landscape_h264_3s.mp4")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what a precision does to cosines.")
    parser.add_argument("--small", action="store_true", help="only see whether it runs, with a small model")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    media = TESTS / "reference" / "media"
    sounds = [data.read_audio(media / name) for name in SOUNDS]
    videos = [data.read_video(media / name) for name in VIDEOS]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = DEMO / "imagebind_demo.pth" if args.small else huge_checkpoint(Path(folder))
        full = None
        for precision in ("fp32", "tf32", "bf16", "fp16"):
            embedder = Embedder(load_model(checkpoint), device, precision)
            audio, video = (F.normalize(embedder(*side)) for side in (("audio", sounds), ("vision", videos)))
            cosines = audio @ video.T
            full = cosines if full is None else full
            largest, mean = (cosines - full).abs().max(), (cosines.mean() - full.mean()).abs()
            print(f"{precision}: largest difference {largest:.1e}, of the mean {mean:.1e}", flush=True)


if __name__ == "__main__":
    main()
