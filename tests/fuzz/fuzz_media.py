#!/usr/bin/env python3
"""Damage media files by seed, and hold their reading to one rule.

    python tests/fuzz/fuzz_media.py --cases 5000

A damaged file gives an input of the right shape, finite, or a reason, in bounded time and memory; no
process crashes. Prints what became of the cases; a case that breaks the rule is named by its seed,
and `--first SEED --cases 1 --keep DIR` makes it again. Exit status 1 where there is one.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from imagebind import data
from imagebind.data.features import AUDIO, VIDEO, Feature
from imagebind.reading.loader import load_files
from imagebind.reading.workers import Workers
from imagebind.sources import Source

TIMEOUT_SECONDS = 60
MEMORY_BYTES = 1_000_000_000
BAD_REASONS = r"^$|\n|its process|--timeout|Error: "  # a crash, a hang, and what nobody thought of
SHAPES = {"audio": (1, 128, 204), "video": (3, 2, 224, 224)}  # of a clip

# Whole files

VIDEOS = [  # suffix, codec, options
    (".mp4", "libx264", {"bf": "2", "g": "12"}),
    (".mov", "mpeg4", {}),
    (".mkv", "libx265", {"x265-params": "log-level=none:keyint=12"}),
    (".webm", "libvpx-vp9", {"g": "12"}),
    (".mp4", "libsvtav1", {"g": "12"}),
    (".avi", "mpeg4", {"g": "12"}),
    (".flv", "flv", {"g": "12"}),
    (".ts", "mpeg2video", {"g": "12"}),
    (".mkv", "mjpeg", {}),
    (".mov", "png", {}),
]
SOUNDS = [
    (".wav", "pcm_s16le"),
    (".wav", "pcm_f32le"),
    (".flac", "flac"),
    (".mp3", "libmp3lame"),
    (".m4a", "aac"),
    (".ogg", "libopus"),
    (".mkv", "ac3"),
    (".wav", "adpcm_ima_wav"),
]
PIX_FMTS = {"mjpeg": "yuvj420p", "png": "rgb24"}


def encode(suffix: str, video: tuple | None, sound: str | None) -> bytes:
    """Encode 3 s of moving texture, of noise, or both."""
    rng = np.random.default_rng(0)
    container_format = {".m4a": "ipod", ".mkv": "matroska", ".ts": "mpegts"}.get(suffix, suffix[1:])
    target = io.BytesIO()
    with av.open(target, "w", format=container_format) as container:
        streams = []
        if video is not None:
            codec, options = video
            stream = container.add_stream(codec, rate=12, options=options)
            stream.width, stream.height, stream.pix_fmt = 96, 64, PIX_FMTS.get(codec, "yuv420p")
            texture = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
            frames = [av.VideoFrame.from_ndarray(np.roll(texture, i, axis=1), "rgb24") for i in range(36)]
            streams.append((stream, frames))
        if sound is not None:
            stream = container.add_stream(sound, rate=48000, layout="mono")
            samples = (rng.standard_normal((1, 3 * 48000)) * 0.1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            frame.sample_rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), 0
            streams.append((stream, [frame]))
        for stream, frames in streams:
            for frame in [*frames, None]:
                container.mux(stream.encode(frame))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # SVT-AV1 makes its callers real-time ones
    return target.getvalue()


def whole_files() -> list[tuple[str, str, bytes]]:
    """List (side, suffix, content)."""
    files = [("video", suffix, encode(suffix, (codec, options), None)) for suffix, codec, options in VIDEOS]
    files += [("audio", suffix, encode(suffix, None, codec)) for suffix, codec in SOUNDS]
    both = encode(".mp4", ("libx264", {}), "aac")
    return [*files, ("video", ".mp4", both), ("audio", ".mp4", both)]


# Damage

INTERESTING = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
MARKS = [  # where numbers that matter stand
    *(b"moov", b"mvhd", b"tkhd", b"mdhd", b"elst", b"stsd", b"stts", b"ctts", b"stss", b"stsc", b"stsz"),
    *(b"stco", b"avcC", b"hvcC", b"av1C", b"esds", b"RIFF", b"fmt ", b"data", b"avih", b"strh", b"strf"),
    *(b"idx1", b"fLaC", b"OggS", b"OpusHead", b"Xing", b"LAME", b"FLV", b"onMetaData", b"\x1aE\xdf\xa3"),
    *(b"\x16T\xaek", b"\x1fC\xb6u", b"\x00\x00\x00\x01", b"\x00\x00\x01", b"IHDR", b"IDAT", b"\xff\xd8"),
]


def flip_bits(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 3, 10, 100])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def overwrite(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 5, 20])):
        at, n = rng.randrange(len(content)), rng.choice([1, 4, 16, 256])
        content[at : at + n] = rng.choice([rng.randbytes(n), bytes(n), b"\xff" * n])


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.choice([rng.randrange(64), rng.randrange(len(content)), len(content) - 1]) :]


def cut_out(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content))
    del content[at : at + rng.choice([1, 2, 100, 5000])]


def repeat(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(content))
    content[at:at] = content[at : at + rng.choice([1, 4, 100, 5000])] * rng.choice([1, 3])


def edit_numbers(content: bytearray, rng: random.Random) -> None:
    """Write telling numbers into headers."""
    places = [at for mark in MARKS for at in find_all(content, mark)]
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.choice(places) + rng.randrange(0, 40) if places else rng.randrange(len(content))
        order, kind = rng.choice("<>"), rng.choice("BHIQ")
        size = struct.calcsize(kind)
        value = rng.choice([rng.choice(INTERESTING), rng.getrandbits(8 * size)]) % (1 << 8 * size)
        content[at : at + size] = struct.pack(order + kind, value)


def find_all(content: bytearray, mark: bytes, most: int = 20) -> Iterator[int]:
    at = content.find(mark)
    while at >= 0 and (most := most - 1):
        yield at
        at = content.find(mark, at + 1)


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    *(flip_bits, overwrite, cut, cut_out, repeat, edit_numbers, edit_numbers, edit_numbers),
]


def damaged(files: list[tuple[str, str, bytes]], seed: int) -> tuple[str, str, bytes]:
    """Make case number `seed`."""
    rng = random.Random(seed)
    side, suffix, content = rng.choice(files)
    content = bytearray(content)
    if rng.random() < 0.1:  # the end of another file
        other = rng.choice(files)[2]
        content[rng.randrange(len(content)) :] = other[rng.randrange(len(other)) :]
    else:
        for _ in range(rng.choice([1, 1, 2, 4])):
            if content:
                rng.choice(DAMAGES)(content, rng)
    return side, rng.choice([suffix] * 9 + [".bin"]), bytes(content)


# The rule


def fault(loaded) -> str | None:
    """Say what is wrong with the result of reading a file, if anything is."""
    if (reason := reason_of(loaded)) is not None:
        return reason if re.search(BAD_REASONS, reason) else None
    input = loaded.features[loaded.modality].input
    clips = input.clips()
    if clips.shape[1:] != SHAPES[loaded.modality]:
        return f"shape {tuple(clips.shape)}"
    if sum(input.counts.values()) != {"audio": data.AUDIO_CLIPS, "video": 15}[loaded.modality]:
        return f"counts {dict(input.counts)}"
    return None if torch.isfinite(clips).all() else "not finite"


def reason_of(loaded) -> str | None:
    """Return why a file gives no input, or None."""
    return getattr(loaded.features[loaded.modality], "reason", None)


def fuzz(first: int, n_cases: int, folder: Path, n_workers: int = 2) -> tuple[Counter, dict[Path, str]]:
    """Make and read cases.

    Returns:
        how many gave an input, and how many each reason; and the faults by file.
    """
    whole, outcomes, faults = whole_files(), Counter(), {}

    def cases() -> Iterator[tuple[str, Source, tuple[Feature]]]:
        for seed in range(first, first + n_cases):
            side, suffix, content = damaged(whole, seed)
            path = folder / f"{seed}{suffix}"
            path.write_bytes(content)
            yield side, Source(str(path)), ({"audio": AUDIO, "video": VIDEO}[side],)

    workers = Workers("imagebind.reading.loader:read_file", n_workers, TIMEOUT_SECONDS, MEMORY_BYTES)
    with workers:
        for loaded in load_files(list(cases()), workers):
            kind = re.sub(r"\d+", "#", reason_of(loaded) or "input")
            outcomes["input, with a warning" if kind == "input" and loaded.warnings else kind] += 1
            if wrong := fault(loaded):
                faults[Path(loaded.source.path)] = wrong
            else:
                Path(loaded.source.path).unlink()
    return outcomes, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", metavar="DIR", help="keep the files that break the rule")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes, faults = fuzz(args.first, args.cases, folder, args.workers)
    for outcome, n in outcomes.most_common():
        print(f"{n:6} {outcome}")
    for path, wrong in sorted(faults.items()):
        print(f"FAULT {path.name}: {wrong}")
    print(f"{sum(outcomes.values())} cases, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
