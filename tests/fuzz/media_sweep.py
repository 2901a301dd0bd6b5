#!/usr/bin/env python3
"""Make odd media files, and hold what is read of them to what is right and to what ffmpeg decodes.

    python tests/fuzz/media_sweep.py

Each file is read as a run reads it. Beside it is stated what is right: samples, frames and their rate,
warnings, or the reason why there is no input. Pictures show their numbers, so that a wrong or turned one is
known without another decoder. Where ffmpeg is installed (5.1 or later), samples and pictures are compared
with what it gives. Prints a line for each file; `--keep DIR` keeps them. Exit status 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from struct import pack

os.environ.setdefault("SVT_LOG", "1")  # errors alone
import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.fuzz_media import PIX_FMTS, fault, reason_of

from imagebind.data.audio import decode_audio
from imagebind.data.features import AUDIO, VIDEO, Feature
from imagebind.data.frames import Timeline
from imagebind.data.video import CROPS, ClipRecipe, VideoInput
from imagebind.reading.loader import Reading, collected_warnings, read_file
from imagebind.sources import Source

MAX_DIFFERENCE = 1e-6  # of samples in [-1, 1]: decoders of Opus differ in their rounding
RATE = 44100
SIZES = {"dvvideo": (576, 720)}  # of pictures, height and width
ENCODERS = {  # options: fast, and with key frames in the midst
    "libx264": {"preset": "ultrafast"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "10"},
    "libsvtav1": {"preset": "8", "crf": "10", "g": "10", "svtav1-params": "pred-struct=1:lp=1"},
}
AV1 = "libsvtav1" if "libsvtav1" in av.codecs_available else "libvpx-vp9"
ENDS_WITH_LINK = av.library_versions["libavformat"][0] >= 62  # a chained Ogg file of links that differ
CUT_OFF = r"cannot be read on \(.+\); what comes before is used"
NO_END = r"ends early: the last \d\S* of \S+ s cannot be decoded"
MIRRORED = "its display matrix mirrors the picture; it is not mirrored here"
OFF_RATE = r"states {} frames per second, but they come at {}; clips are 2 s of stated frames"
TAILS = {"zeros": bytes(1000), "spaces": b" " * 1000, "random": np.random.default_rng(0).bytes(1000)}


@dataclass(frozen=True)
class Case:
    """A file, and what is right."""

    name: str  # whose suffix can decide how it is decoded
    content: bytes
    times: Sequence[float] = ()  # of a video: when each frame that can be decoded is shown, in seconds
    rate: float = RATE  # of samples, or of frames, by which clips are chosen; 0: none is stated
    numbers: Sequence[int] = range(1000)  # that the frames show
    turns: int = 0  # by which pictures are turned, in quarters, counter-clockwise
    part: tuple[float, float] | None = None  # of the file that is read, in seconds
    n_samples: Sequence[int] = ()  # that there may be
    sound: np.ndarray | None = None  # (C, T) int32, these samples or more, if their coding is lossless
    warnings: Sequence[str] = ()  # an expression for each
    reason: str | None = None  # why there is no input, an expression
    beside: str = "all"  # what ffmpeg gives: the same; as far as both go ("some"); or "other", by intention

    @property
    def modality(self) -> str:
        return "video" if self.times or self.name.endswith(".mp4") else "audio"


# Videos


def picture(number: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: the last eight bits of a number, in two rows of four rectangles."""
    bits = np.array([[215 if number >> bit & 1 else 40 for bit in row] for row in (range(4), range(4, 8))])
    return np.kron(bits[..., None], np.ones((height // 2, width // 4, 3))).astype(np.uint8)


def number_of(pixels: torch.Tensor, turns: int) -> int:
    """Read the number in a picture (3, H, W) that is normalised, and was turned."""
    upright = torch.rot90(pixels[0], -turns)
    height, width = upright.shape[0] // 2, upright.shape[1] // 4
    bits = upright[: 2 * height, : 4 * width].reshape(2, height, 4, width).mean((1, 3)).flatten() > 0
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def encode_video(form: str, codec: str, times: Sequence[float], rate: int, ticks: int, **options) -> bytes:
    """Encode pictures, at times in seconds, by a clock of some ticks a second; the file states a rate."""
    target = io.BytesIO()
    with av.open(target, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options=ENCODERS.get(codec, {}) | options)
        stream.height, stream.width = SIZES.get(codec, (64, 96))
        stream.pix_fmt = PIX_FMTS.get(codec, "yuv420p")
        stream.codec_context.time_base = Fraction(1, ticks)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, stream.height, stream.width), "rgb24")
            frame.pts, frame.time_base = round(time * ticks), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # SVT-AV1 makes its callers real-time ones
    return target.getvalue()


def without_rate(content: bytes) -> bytes:
    """Have a Matroska file state no rate, like recordings of browsers: Void in place of DefaultDuration."""
    at = content.index(b"\x23\xe3\x83\x84")
    return content[:at] + b"\xec\x86" + bytes(6) + content[at + 8 :]


def with_matrix(content: bytes, *matrix: int) -> bytes:
    """Have an MP4 file shown through a matrix, row by row."""
    a, b, c, d = (value << 16 for value in matrix)
    at = content.index(b"tkhd") + 44  # behind version and flags, times, layer and volume
    return content[:at] + pack(">9i", a, b, 0, c, d, 0, 0, 0, any(matrix) << 30) + content[at + 36 :]


def with_damage(content: bytes, number: int) -> bytes:
    """Overwrite the packet of a frame with ones."""
    with av.open(io.BytesIO(content)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    at = content.index(packets[number], sum(map(len, packets[:number])))
    return content[:at] + b"\xff" * len(packets[number]) + content[at + len(packets[number]) :]


def chunk(kind: bytes, *content: bytes) -> bytes:
    """Make a chunk of AVI or WAV."""
    body = b"".join(content)
    return kind + pack("<I", len(body)) + body


def dv_in_avi(frames: bytes, size: int = 144_000) -> bytes:
    """Put PAL DV into AVI of type 1, one stream of picture and sound, which FFmpeg does not write."""
    n = len(frames) // size
    main = chunk(b"avih", pack("<14I", 40_000, 25 * size, 0, 0x10, n, 0, 1, size, 720, 576, 0, 0, 0, 0))
    header = chunk(b"strh", b"iavsdvsd", pack("<12I", 0, 0, 0, 1, 25, 0, n, size, 1, 0, 0, 0))
    header = chunk(b"LIST", b"hdrl", main, chunk(b"LIST", b"strl", header, chunk(b"strf", bytes(32))))
    movie = [chunk(b"00__", frames[i * size : (i + 1) * size]) for i in range(n)]
    index = [b"00__" + pack("<3I", 0x10, 4 + i * (size + 8), size) for i in range(n)]
    return chunk(b"RIFF", b"AVI ", header, chunk(b"LIST", b"movi", *movie), chunk(b"idx1", *index))


def videos() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    times = [i / 30 + rng.uniform(0, 0.02) * (i > 0) for i in range(241)]
    content = encode_video("matroska", "libvpx", times, 30, 1000)
    yield Case("no_rate_jitter.mkv", without_rate(content), times, 0)
    times = [*(i / 30 for i in range(16)), *(i / 2 for i in range(2, 20))]
    content = encode_video("webm", "libvpx", times, 30, 1000)
    yield Case("no_rate_30_then_2.webm", without_rate(content), times, 0)
    times = [i * 0.0394 + rng.uniform(0, 0.016) * (i > 0) for i in range(69)]
    content = encode_video("webm", "libvpx", times, 1000, 1000)
    yield Case("states_1000.webm", content, times, 1000, warnings=[OFF_RATE.format(1000, r"25\.\d+")])
    times = [0, *(8 + i / 30 for i in range(60))]
    content = encode_video("mp4", "libx264", times, 30, 30, preset="veryfast", bf="2")
    yield Case("variable.mp4", content, times, 1830 / 539, warnings=[OFF_RATE.format(r"3\.395", r"6\.1")])
    content = encode_video("webm", "libvpx-vp9", times, 30, 30)
    yield Case("variable.webm", content, times, 30, warnings=[OFF_RATE.format(30, r"6\.1")])
    times = [i / 5 for i in range(30)]
    for codec in ("mjpeg", "mpeg4"):
        content = encode_video("avi", codec, times, 25, 25)  # with empty chunks between
        warnings = [OFF_RATE.format(25, r"5\.1\d+")]
        yield Case(f"empty_chunks_{codec}.avi", content, times, 25, warnings=warnings)
    times = [*(i / 30 for i in range(300)), *(10 + i / 10 for i in range(100))]  # the last frame lasts 1/30 s
    content = encode_video("mp4", "libx264", times, 30, 30)
    yield Case("30_then_10.mp4", content, times, 400 / (19.9 + 1 / 30))
    for start, end, rate in ((12, 17, 10), (10, 20, 100 / (9.9 + 1 / 30))):
        numbers = range(10 * start + 200, 10 * end + 200)
        name, part = f"30_then_10_{start}_{end}.mp4", (start, end)
        yield Case(name, content, [times[i] for i in numbers], rate, numbers, part=part)
    times = [i / 25 for i in range(60)]
    content = encode_video("mp4", "libx264", times, 25, 25)
    yield Case("zero_matrix.mp4", with_matrix(content, 0, 0, 0, 0), times, 25)
    mirrored = with_matrix(content, 1, 0, 0, -1)
    yield Case("mirrored.mp4", mirrored, times, 25, warnings=[MIRRORED], beside="other")
    for turns, matrix in enumerate([(0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)], 1):
        yield Case(f"turned_{90 * turns}.mp4", with_matrix(content, *matrix), times, 25, turns=turns)
    content = encode_video("dv", "dvvideo", times, 25, 25)
    yield Case("pal.dv", content, times, 25)
    yield Case("type1.avi", dv_in_avi(content), times, 25)
    content = encode_video("yuv4mpegpipe", "rawvideo", times, 25, 25)
    for name, tail in TAILS.items():
        yield Case(f"{name}_behind.y4m", content + tail, times, 25, warnings=[CUT_OFF])
    content = with_damage(encode_video("webm", AV1, times, 25, 25), 49)  # which is chosen; no other needs it
    left, warnings = [*range(49), *range(50, 60)], ["1 of 60 packets are damaged and left out"]
    yield Case("damaged.webm", content, [times[i] for i in left], 25, left, warnings=warnings)


# Sounds


def tone(seconds: float, bits: int = 16) -> np.ndarray:
    """(2, T) int32: two notes with noise, in the upper bits."""
    time = np.arange(round(seconds * RATE)) / RATE
    notes = 0.3 * np.sin(np.pi * np.outer([880, 1320], time))
    notes += 0.01 * np.random.default_rng(0).standard_normal(notes.shape)
    return np.round(notes * 2 ** (bits - 1)).astype(np.int32) << 32 - bits


def encode_sound(form: str, codec: str, sound: np.ndarray, kind: str, rate: int = RATE) -> bytes:
    target, layout = io.BytesIO(), {1: "mono", 2: "stereo"}[len(sound)]
    with av.open(target, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.format = kind
        frame = av.AudioFrame.from_ndarray(sound.T.reshape(1, -1).copy(), "s32", layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return target.getvalue()


def sounds() -> Iterator[Case]:
    sound, short = tone(5), tone(0.5, 24)
    n = sound.shape[1]
    content = encode_sound("wv", "wavpack", sound, "s16p")
    item = pack("<II", 5, 0) + b"Title\0noise"
    head, foot = (b"APETAGEX" + pack("<4I8x", 2000, len(item) + 32, 1, flags << 28) for flags in (10, 8))
    yield Case("ape_tag.wv", content + head + item + foot, n_samples=[n], sound=sound, warnings=[CUT_OFF])
    for percent in (35, 70, 97):
        cut, most = content[: len(content) * percent // 100], n * (percent + 1) // 100
        n_samples = range(most - RATE // 2 - n // 50, most)  # in blocks of half a second
        yield Case(f"cut_{percent}.wv", cut, n_samples=n_samples, sound=sound, warnings=[CUT_OFF])
    cut = encode_sound("flac", "flac", short, "s32")[:-300]
    warnings = [NO_END, r"ends early: 0\.41\d+ of 0\.5 seconds of sound are there"]
    yield Case("cut.flac", cut, n_samples=[4 * 4608], sound=short, warnings=warnings)
    content = encode_sound("tta", "tta", sound, "s16")
    cut = content[: len(content) * 97 // 100]
    yield Case("cut.tta", cut, n_samples=[4 * 46080], sound=sound, warnings=[NO_END])
    content = b"".join(encode_sound("ogg", "libopus", tone(5)[:c], "flt", 48000) for c in (2, 1))
    right = {"n_samples": [n], "warnings": [CUT_OFF]} if ENDS_WITH_LINK else {"n_samples": [2 * n]}
    yield Case("chain.opus", content, rate=48000, beside="some", **right)
    form = pack("<HHIIHHHHI", 0xFFFE, 2, RATE, 8 * RATE, 8, 32, 22, 24, 3)
    form += bytes.fromhex("0100000000001000800000aa00389b71")  # whole numbers, which FFmpeg takes for floats
    samples = short.T.astype("<i4").tobytes()
    content = chunk(b"RIFF", b"WAVE", chunk(b"fmt ", form), chunk(b"data", samples))
    yield Case("24_in_32.wav", content, n_samples=[n // 10], sound=short, beside="other")
    for suffix, codec, beside in (("w64", "pcm_s16le", "other"), ("caf", "pcm_s16be", "all")):
        content = encode_sound(suffix, codec, sound, "s16")
        for name, tail in TAILS.items():  # with which older ffmpeg does not open W64
            name = f"{name}_behind.{suffix}"
            yield Case(name, content + tail, n_samples=[n], sound=sound, beside=beside)
    content = np.random.default_rng(3).bytes(2 * RATE)
    numbers = {"sb": np.frombuffer(content, "i1"), "sw": np.frombuffer(content, "<i2")}
    kinds = {kind: x.astype(np.int32)[None] << 32 - 8 * x.itemsize for kind, x in numbers.items()}
    for kind, length in (("al", 2), ("ul", 2), ("g722", 4), ("sb", 2), ("sw", 1)):
        rate, n_samples = 16000 if kind == "g722" else RATE, [length * RATE]
        yield Case(f"raw.{kind}", content, rate=rate, n_samples=n_samples, sound=kinds.get(kind))


def no_media() -> Iterator[Case]:
    mp4 = encode_video("mp4", "libx264", range(20), 1, 1)
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    for suffix in ("mp4", "wav"):
        yield Case(f"lfs.{suffix}", lfs, reason="a Git LFS pointer, not the file: git lfs pull")
        yield Case(f"page.{suffix}", b"<!DOCTYPE html>\n<html></html>\n", reason="an HTML page, not media")
        yield Case(f"zeros.{suffix}", bytes(100_000), reason="it begins with zeros, where .*")
        cut = mp4[: mp4.index(b"moov") - 4]
        yield Case(f"no_moov.{suffix}", cut, reason=r"an MP4 file without its index \(moov\): .*")


# Reading


class Recorder:
    """The recipe of the released loader, which keeps what it is given: the timeline, and decoded frames."""

    def __init__(self):
        self.feature = Feature(VIDEO.name, "video", clips=ClipRecipe(self.choose, self.prepare))

    def choose(self, timeline: Timeline) -> list[tuple[int, ...]]:
        self.timeline, self.frames = timeline, []
        return VIDEO.clips.choose(timeline)

    def prepare(self, frame: av.VideoFrame) -> torch.Tensor:
        self.frames.append((frame.height, frame.to_ndarray()))
        self.pix_fmt = frame.format.name
        return VIDEO.clips.prepare(frame)


def clips_of(n_frames: int, rate: float) -> Iterator[tuple[int, int]]:
    """First and last frame of five clips of 2 s, spread evenly from the first frame to the last."""
    last_start = max(Fraction(n_frames / rate) - 2, Fraction(0))
    for start in (last_start * k / 4 for k in range(5)):
        yield math.ceil(rate * start), min(math.ceil(rate * (start + 2)), n_frames) - 1


def check_video(
    case: Case, path: Path, clips: VideoInput, read: Recorder, ffmpeg: str | None
) -> Iterator[str]:
    """Yield what is wrong with the rate of a video, and with the frames that were chosen."""
    n, rate, times = read.timeline.n_frames, read.timeline.fps, case.times
    # Where no rate is stated, it depends on how long the last frame is shown, which is not stated either.
    low, high = (case.rate, case.rate) if case.rate else ((n - 1) / times[-1], n / times[-1])
    if n != len(times) or not low - 1e-6 <= rate <= high + 1e-6:
        yield f"not {len(times)} frames at {low:.6g} to {high:.6g}"
        return
    if ffmpeg:
        form = ("-map", "0:v:0", "-fps_mode", "passthrough", "-pix_fmt", read.pix_fmt, "-f", "rawvideo")
        pictures = run_ffmpeg(ffmpeg, path, *form, dtype=np.uint8).reshape(-1, read.frames[0][1].size)
        if not case.part and len(pictures) != n:
            yield f"ffmpeg gives {len(pictures)} frames"
            return
    for (*rows, _), wanted in zip(clips.crops[::CROPS], clips_of(n, rate), strict=True):
        for row, number in zip(rows, wanted, strict=True):
            (height, array), shown = read.frames[row], number_of(clips.frames[row], case.turns)
            if shown != case.numbers[number] % 256:
                yield f"in place of frame {number} is one that shows {shown}"
            if ffmpeg:
                # Of a turned picture the brightness, which comes first.
                seen = np.rot90(array[:height], case.turns) if case.turns else array
                other = pictures[case.numbers[number] if case.part else number]
                if not np.array_equal(other[: seen.size], seen.ravel()):
                    yield f"frame {number} is not that of ffmpeg"


def check_sound(case: Case, path: Path, ffmpeg: str | None) -> tuple[str, list[str]]:
    """Decode a sound; give what it is in words, and what is wrong with it."""
    with collected_warnings([]):
        pieces, rates = zip(*decode_audio(path), strict=True)
    samples, faults = torch.cat(pieces, dim=1).numpy(), []
    n_channels, n = samples.shape
    if {*rates} != {case.rate} or n not in case.n_samples:
        faults.append(f"not {case.n_samples} samples at {case.rate} Hz")
    sources = {} if case.sound is None else {"what was encoded": case.sound[:, :n] / 2**31}
    if ffmpeg:
        decoded = run_ffmpeg(ffmpeg, path, "-f", "f32le", dtype="<f4").reshape(-1, n_channels).T
        if decoded.shape[1] != n and case.beside == "all":
            faults.append(f"ffmpeg gives {decoded.shape[1]} samples")
        sources["what ffmpeg gives"] = decoded[:, :n]
    for name, right in sources.items():
        difference = np.abs(samples[:, : right.shape[1]] - right)
        if n_wrong := (~(difference <= MAX_DIFFERENCE)).sum():  # NaN too
            faults.append(f"{n_wrong} samples are not {name}, by up to {difference.max():.2g}")
    return f"{n} samples at {rates[0]} Hz", faults


def run_ffmpeg(ffmpeg: str, path: Path, *options: str, dtype: str | type) -> np.ndarray:
    command = [ffmpeg, "-nostdin", "-v", "quiet", "-i", path, *options, "-"]
    return np.frombuffer(subprocess.run(command, stdout=subprocess.PIPE).stdout, dtype)


def check(case: Case, folder: Path, ffmpeg: str | None) -> tuple[str, list[str]]:
    """Read a file; give what was read in words, and what is wrong with it."""
    path, recorder = folder / case.name, Recorder()
    ffmpeg = None if case.beside == "other" else ffmpeg
    path.write_bytes(case.content)
    part = Source(str(path), *case.part or ())
    feature = recorder.feature if case.modality == "video" else AUDIO
    *_, loaded = read_file(Reading(), (case.modality, part, (feature,)))
    reason, said = reason_of(loaded), [message.removeprefix(f"{part}: ") for message in loaded.warnings]
    faults = [wrong] if (wrong := fault(loaded)) else []
    faults += [f"no warning {e!r}" for e in case.warnings if not any(re.fullmatch(e, text) for text in said)]
    faults += [f"a warning: {text}" for text in said if not any(re.fullmatch(e, text) for e in case.warnings)]
    if reason or case.reason:
        if not re.fullmatch(case.reason or "", reason or ""):
            faults.append(f"reason {reason!r}, not {case.reason!r}")
        return reason or "an input", faults
    if case.modality == "audio":
        what, wrong = check_sound(case, path, ffmpeg)
    else:
        clips, timeline = loaded.features[VIDEO.name].input, recorder.timeline
        wrong = dict.fromkeys(check_video(case, path, clips, recorder, ffmpeg))
        what = f"{timeline.n_frames} frames at {timeline.fps:.6g}"
    return "; ".join([what, *said]), [*faults, *wrong]


def sweep(folder: Path, ffmpeg: str | None) -> Iterator[tuple[str, str, list[str]]]:
    """Make and read all files: yield the name of each, what was read, and what is wrong with it."""
    for case in chain(videos(), sounds(), no_media()):
        yield case.name, *check(case, folder, ffmpeg)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", metavar="DIR", help="keep the files")
    args = parser.parse_args()
    n_files = n_faults = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, what, faults in sweep(folder, shutil.which("ffmpeg")):
            print(f"{name}: {what}: {'FAULT ' + '; '.join(faults) if faults else 'ok'}", flush=True)
            n_files, n_faults = n_files + 1, n_faults + bool(faults)
    print(f"{n_files} files, {n_faults} faults")
    return 1 if n_faults else 0


if __name__ == "__main__":
    sys.exit(main())
