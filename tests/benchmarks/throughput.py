"""Measure how fast it is, each figure as a ratio to a baseline of the same run on the same cores.

    pip install decord soundfile
    python tests/benchmarks/throughput.py                      # all rows; under half an hour on two cores
    python tests/benchmarks/throughput.py --only decode hour   # some
    python tests/benchmarks/throughput.py --small              # whether all rows run; the figures say nothing

It makes its own media and, for the rows about the full-size model, a checkpoint of the released kind
with the weights of tests/reference/weights.py (4.8 GB, in the temporary directory). It prints the table of
docs/speed.md. Absolute times mean nothing on another machine; ratios are what to read. "The released way" is
what the released code does, written anew: every frame and sample is decoded, and all of a file's clips go
through a model that was built and then filled.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from torchaudio.compliance import kaldi

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from conftest import tone, write_audio  # noqa: E402
from test_model import released_state_dict  # noqa: E402

from batch_inference import Options, batch_inference_av_consistency  # noqa: E402
from imagebind import data  # noqa: E402
from imagebind.data.clips import clip_spans  # noqa: E402
from imagebind.data.features import AUDIO, VIDEO  # noqa: E402
from imagebind.data.video import crop, crop_offsets, normalize_rgb  # noqa: E402
from imagebind.evaluation.compare.protocols import features_of, make_protocols  # noqa: E402
from imagebind.evaluation.embed import progress  # noqa: E402
from imagebind.evaluation.embed.embedding import FileEmbedder  # noqa: E402
from imagebind.evaluation.embed.model import Model  # noqa: E402
from imagebind.evaluation.embed.readers import start_workers  # noqa: E402
from imagebind.evaluation.rules import PROTOCOLS  # noqa: E402
from imagebind.models.embedder import Embedder  # noqa: E402
from imagebind.models.imagebind_model import (  # noqa: E402
    IMAGEBIND_HUGE,
    ImageBindModel,
    config_of,
    load_model,
)
from imagebind.models.tower import MLP_RATIO, Tower  # noqa: E402
from imagebind.reading.loader import load_files  # noqa: E402
from imagebind.sources import Source  # noqa: E402

DEMO = TESTS / "demo"
CPU = torch.device("cpu")
CONTEXT = multiprocessing.get_context("spawn")
IN_OPEN = 0x20  # of inotify(7)
FPS = 25
SIZES = ((224, 400), (360, 640), (720, 1280))  # height and width
H100_FLOPS, GOAL_SHARE = 989e12, 0.6  # in float16, by its data sheet; what the tower is to reach of it


def timed(work: Callable) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_process(work: Callable, *arguments: object) -> Any:
    """Call a function of this module in a process of its own."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=send_result, args=(theirs, work, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def send_result(to: Connection, work: Callable, *arguments: object) -> None:
    to.send(work(*arguments))


# ------------------------------------------------------------------------------------------------
# Media and weights
# ------------------------------------------------------------------------------------------------


def make_video(path: Path, seconds: float, height: int, width: int, seed: int = 0) -> Path:
    """Write an H.264 video of a moving, changing texture, as a camera gives it: noise and B-frames."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    noise = rng.integers(0, 12, (height, width, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "g": "250"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(int(seconds * FPS)):
            image = np.roll(texture, (2 * i, 3 * i), (0, 1)) * 0.9 + np.roll(noise, 37 * i, 1)
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def repeat_video(source: Path, path: Path, times: int) -> Path:
    """Write a video over and over into one file, without encoding it again."""
    with av.open(str(path), "w") as target:
        stream, offset = None, 0
        for _ in range(times):
            with av.open(str(source)) as container:
                stream = stream or target.add_stream_from_template(container.streams.video[0])
                span = container.streams.video[0].duration
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = stream
                        target.mux(packet)
            offset += span
    return path


def make_clips(folder: Path, n_each: int = 8, seconds: float = 10) -> list[Path]:
    """Write n_each clips at 224p, 360p and 720p."""
    folder.mkdir(exist_ok=True)
    return [
        make_video(folder / f"{height}_{i}.mp4", seconds, height, width, i)
        for height, width in SIZES
        for i in range(n_each)
    ]


def make_sounds(folder: Path, n_each: int = 4) -> list[Path]:
    """Write n_each sounds of 10 s of each of five kinds that libsndfile reads too."""
    forms = (
        *(("wav", "pcm_s16le", 44100, 2), ("wav", "pcm_s16le", 48000, 2), ("wav", "pcm_s16le", 16000, 1)),
        *(("flac", "flac", 48000, 2), ("mp3", "libmp3lame", 44100, 2)),
    )
    paths = []
    for suffix, codec, rate, n_channels in forms:
        for i in range(n_each):
            noise = np.random.default_rng(i).standard_normal((n_channels, 10 * rate)).astype(np.float32)
            path = folder / f"{codec}_{rate}_{i}.{suffix}"
            paths.append(write_audio(path, 0.1 * noise + tone(10, 200 + i, rate), rate, codec))
    return paths


def huge_checkpoint(folder: Path) -> Path:
    """Write a checkpoint of the released kind and size under reference weights, once."""
    path = folder / "huge.pth"
    if not path.exists():
        torch.save(released_state_dict("huge"), path)
    return path


@dataclass(frozen=True)
class Setup:
    """Where a row writes, and how large it is."""

    folder: Path
    base: Path  # that all rows share
    is_small: bool

    def n(self, full: int, small: int) -> int:
        return small if self.is_small else full

    @property
    def n_workers(self) -> int | None:
        """Processes that read: as many as usual; in a small run none, as their imports take seconds."""
        return 0 if self.is_small else None

    @cached_property
    def checkpoint(self) -> Path:
        """Weights of full size; in a small run those of the demo."""
        return DEMO / "imagebind_demo.pth" if self.is_small else huge_checkpoint(self.base)


# ------------------------------------------------------------------------------------------------
# Reading
# ------------------------------------------------------------------------------------------------


def read_video_as_released(path: Path) -> torch.Tensor:
    """Load a video as the released loader does: every frame of every clip, by decord."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    video = EncodedVideo.from_path(str(path), decoder="decord", decode_audio=False)
    clips = []
    for start, end in clip_spans(float(video.duration), data.VIDEO_CLIPS):
        frames = video.get_clip(start, end)["video"]  # (3, T, H, W)
        frames = frames[:, torch.linspace(0, frames.shape[1] - 1, 2).long()] / 255
        height, width = frames.shape[2:]
        long = math.floor(max(height, width) / min(height, width) * data.SIZE)
        shape = (data.SIZE, long) if width >= height else (long, data.SIZE)
        frames = F.interpolate(frames, size=shape, mode="bilinear", align_corners=False)
        frames = normalize_rgb(frames.transpose(0, 1)).transpose(0, 1)
        clips += [crop(frames, offset) for offset in crop_offsets(long)]
    return torch.stack(clips)


def read_audio_as_released(path: Path) -> torch.Tensor:
    """Load a sound as the released loader does: all of it, by libsndfile, resampled as a whole."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples.T.copy())
    waveform = torchaudio.functional.resample(waveform, rate, data.SAMPLE_RATE)
    mels = []
    for start, end in clip_spans(waveform.shape[1] / data.SAMPLE_RATE, data.AUDIO_CLIPS):
        clip = waveform[:, int(start * data.SAMPLE_RATE) : int(end * data.SAMPLE_RATE)]
        clip -= clip.mean()
        mel = kaldi.fbank(
            clip, htk_compat=True, sample_frequency=data.SAMPLE_RATE, use_energy=False, window_type="hanning",
            num_mel_bins=data.MEL_BINS, dither=0.0, frame_length=25, frame_shift=10, channel=0,
        ).T  # fmt: skip
        mels.append(F.pad(mel, (0, data.MEL_FRAMES - mel.shape[1]))[None])
    return (torch.stack(mels) - data.audio.MEL_MEAN) / data.audio.MEL_STD


def read_files(how: str, modality: str, n_cores: int, paths: list[str]) -> float:
    """Read files in a process a core; return the seconds, without those for imports and filters."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])
    torch.set_num_threads(1)
    if how == "ours":
        options = Options(None, "", num_workers=n_cores if n_cores > 1 else 0)
        feature = AUDIO if modality == "audio" else VIDEO
        with start_workers(options) as workers:
            loaded = load_files(
                [(modality, Source(str(path)), (feature,)) for path in [paths[0]] * n_cores + paths], workers
            )
            for _ in range(n_cores):
                next(loaded)
            return timed(lambda: [file.features[feature.name].input.clips() for file in loaded])
    work = read_video_as_released if modality == "video" else read_audio_as_released
    if n_cores == 1:
        work(paths[0])
        return timed(lambda: [work(path) for path in paths])
    with ProcessPoolExecutor(n_cores, multiprocessing.get_context("fork")) as pool:
        list(pool.map(torch.set_num_threads, [1] * n_cores))
        list(pool.map(work, [paths[0]] * n_cores))
        return timed(lambda: list(pool.map(work, paths)))


def read(modality: str, paths: list[Path], n_cores: int) -> dict[str, float]:
    """Time the released way and ours on a number of cores, with a process each; ours hashes the files too."""
    paths = [str(path) for path in paths]
    baseline, ours = (in_process(read_files, how, modality, n_cores, paths) for how in ("released", "ours"))
    return {"baseline_s": baseline, "ours_s": ours, "ratio": baseline / ours}


def decode(setup: Setup, n_cores: int) -> Iterator[float]:
    paths = make_clips(setup.folder / "clips", setup.n(8, 1), setup.n(10, 1))
    yield read("video", paths, n_cores)


def sounds(setup: Setup) -> Iterator[float]:
    yield read("audio", make_sounds(setup.folder, setup.n(8, 1)), 1)


def rates(setup: Setup) -> Iterator[dict]:
    """Files a second that one core reads, and how many cores keep a GPU busy."""
    paths = make_clips(setup.folder / "clips", setup.n(8, 1), setup.n(10, 1))
    yield {"value": f"{video_flops() / 1e12:.1f} TFLOP; {gpu_rate():.0f} a second by 60 % of an H100"}
    for height, _ in SIZES:
        of_height = [str(path) for path in paths if path.stem.startswith(f"{height}_")]
        rate = len(of_height) / in_process(read_files, "ours", "video", 1, of_height)
        yield {"per_second": rate, "value": f"{rate:.0f} a second; {gpu_rate() / rate:.1f} cores for that"}
    paths = [str(path) for path in make_sounds(setup.folder, setup.n(8, 1))]
    rate = len(paths) / in_process(read_files, "ours", "audio", 1, paths)
    yield {"per_second": rate, "value": f"{rate:.0f} a second; {gpu_rate() / rate:.1f} cores for that"}


def video_flops() -> float:
    """Count the floating-point operations of the full-size vision tower for the clips of a video."""
    config = IMAGEBIND_HUGE["vision"]
    n, width = config.n_tokens, config.width
    per_token = 2 * width * (3 * width + width + 2 * MLP_RATIO * width) + 4 * n * width  # and attention
    return data.VIDEO_CLIPS * data.CROPS * config.n_blocks * n * per_token


def gpu_rate() -> float:
    """Return the videos a second that an H100 embeds at the share of its peak that is the goal."""
    return H100_FLOPS * GOAL_SHARE / video_flops()


def hour(setup: Setup) -> Iterator[dict]:
    minute = make_video(setup.folder / "minute.mp4", setup.n(60, 2), *SIZES[-1])
    path = repeat_video(minute, setup.folder / "hour.mp4", setup.n(60, 2))
    data.read_video(minute), read_video_as_released(minute)  # imports
    ours = timed(lambda: data.read_video(path).clips())
    baseline = timed(lambda: read_video_as_released(path))
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = container.decode(video=0)
        every_frame = timed(lambda: sum(frame.to_ndarray(format="rgb24").size for frame in frames))
    yield {"baseline_s": baseline, "ours_s": ours, "ratio": baseline / ours}
    yield {"baseline_s": every_frame, "ours_s": ours, "ratio": every_frame / ours}


# ------------------------------------------------------------------------------------------------
# Starting
# ------------------------------------------------------------------------------------------------


def released_model(path: Path) -> ImageBindModel:
    """Build a model, read the weights, and fill it."""
    content = torch.load(path, weights_only=True)
    rows = content.get("towers") and {name: config_of(row) for name, row in content["towers"].items()}
    model = ImageBindModel(rows or IMAGEBIND_HUGE).eval()
    model.load_state_dict(content.get("state_dict", content))
    return model


def embed_pair(how: str, checkpoint: Path, sound: Path, video: Path, home: Path) -> tuple[float, float]:
    """Load a model and embed a pair; return the seconds, without those for imports, and the peak in GB."""
    os.environ["XDG_CACHE_HOME"] = str(home)
    inputs = data.read_audio(sound), data.read_video(video)

    @torch.inference_mode()
    def embed() -> None:
        if how == "ours":
            embedder, _ = Model(checkpoint, "cpu", "fp32").load(["audio", "video"])
            embedder("audio", inputs[:1]), embedder("vision", inputs[1:])
        else:
            model = released_model(checkpoint)
            model({"audio": inputs[0].mels[None], "vision": inputs[1].clips()[None]})

    return timed(embed), peak_memory()


def peak_memory() -> float:
    """Return the most memory that this process has had, in GB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1e6


def first(setup: Setup) -> Iterator[dict]:
    """Embed a pair in a fresh process, the file being in the page cache: seconds and memory."""
    checkpoint, media = setup.checkpoint, TESTS / "reference" / "media"
    files = media / "gated_48k_10s.flac", media / "wide_ntsc_10s.mkv", setup.folder
    checkpoint.read_bytes()
    baseline, baseline_gb = in_process(embed_pair, "released", checkpoint, *files)
    for _ in range(2):  # the checkpoint is checked once
        ours, ours_gb = in_process(embed_pair, "ours", checkpoint, *files)
        yield {"baseline_s": baseline, "ours_s": ours, "ratio": baseline / ours}
    yield {"baseline_gb": baseline_gb, "ours_gb": ours_gb, "value": f"{ours_gb:.1f} of {baseline_gb:.1f} GB"}


# ------------------------------------------------------------------------------------------------
# The model
# ------------------------------------------------------------------------------------------------


def tower_of(setup: Setup, precision: str = "fp32") -> Tower:
    return Embedder(load_model(setup.checkpoint), CPU, precision).tower("vision")


def clips_of(n: int) -> torch.Tensor:
    return torch.randn(n, *IMAGEBIND_HUGE["vision"].clip_shape)


def multiplications(setup: Setup) -> Iterator[dict]:
    """Time the vision tower against its matrix multiplications alone, at the same shapes."""
    tower = tower_of(setup)
    clips, width = clips_of(setup.n(8, 1)), tower.config.width
    n = len(clips) * tower.config.n_tokens
    shapes = [(width, 3 * width), (width, width), (width, MLP_RATIO * width), (MLP_RATIO * width, width)]
    operands = [(torch.randn(n, k), torch.randn(m, k)) for k, m in shapes]

    def multiply() -> None:
        for _ in range(tower.config.n_blocks):
            for x, w in operands:
                F.linear(x, w)

    with torch.inference_mode():
        tower(clips[:1]), multiply()  # warm
        bare = min(timed(multiply) for _ in range(2))
        ours = min(timed(lambda: tower(clips)) for _ in range(2))
    yield {"baseline_s": bare, "ours_s": ours, "ratio": bare / ours, "value": f"{100 * bare / ours:.0f} %"}


def half(setup: Setup) -> Iterator[dict]:
    clips, seconds = clips_of(setup.n(8, 1)), {}
    for precision in ("fp32", "bf16"):
        tower = tower_of(setup, precision)
        with torch.inference_mode():
            tower(clips[:1])
            seconds[precision] = min(timed(lambda tower=tower: tower(clips)) for _ in range(2))
    ratio = seconds["fp32"] / seconds["bf16"]
    yield {"baseline_s": seconds["fp32"], "ours_s": seconds["bf16"], "ratio": ratio}


def shared(setup: Setup) -> Iterator[dict]:
    """Embed a square video and a 1 s sound with equal clips once, and with every clip by itself."""
    embedder = Embedder(load_model(setup.checkpoint), CPU, "fp32")
    square = make_video(setup.folder / "square.mp4", 10, 240, 240)
    sound = write_audio(setup.folder / "short.wav", tone(1))
    for modality, read, load, path in (
        ("vision", data.read_video, data.load_video, square),
        ("audio", data.read_audio, data.load_audio, sound),
    ):
        distinct, every = read(path), load(path)
        embed_all = partial(embedder.model, {modality: every})
        embed_distinct = partial(embedder, modality, [distinct])
        with torch.inference_mode():
            embedder.model({modality: every[:1]})  # warm
            baseline = min(timed(embed_all) for _ in range(2))
            ours = min(timed(embed_distinct) for _ in range(2))
        yield {"baseline_s": baseline, "ours_s": ours, "ratio": baseline / ours}


# ------------------------------------------------------------------------------------------------
# Whole runs
# ------------------------------------------------------------------------------------------------


def program(setup: Setup, *options: object) -> list[str]:
    """Return the command of a run on the CPU."""
    if setup.n_workers is not None:
        options += ("--num_workers", setup.n_workers)
    return [sys.executable, str(TESTS.parent / "batch_inference.py"), *map(str, options), "--device", "cpu"]


def run_twice(setup: Setup, audio: Path, video: Path, checkpoint: Path) -> dict:
    """Time the whole program on an empty and on a full cache."""
    output_dir = tempfile.mkdtemp(dir=setup.folder)
    argv = program(setup, "--audio_dir", audio, "--video_dir", video, "--checkpoint", checkpoint)
    argv += ["--output_dir", output_dir]
    environment = {**os.environ, "XDG_CACHE_HOME": str(setup.folder)}
    first, second = (
        timed(lambda: subprocess.run(argv, check=True, capture_output=True, env=environment))
        for _ in range(2)
    )
    return {"baseline_s": first, "ours_s": second, "ratio": first / second}


def make_pairs(folder: Path, n: int) -> tuple[Path, Path]:
    """Write n pairs of the demo's kind; six videos differ by a byte at their end."""
    for i in range(n):
        write_audio(folder / "a" / f"{i}.wav", tone(5 + i % 7, 200 + i))
    (folder / "v").mkdir(exist_ok=True)
    for i in range(-(-n // 6)):
        content = make_video(folder / "v.mp4", 4 + i % 3, 144, 192, i).read_bytes()
        for k in range(min(6, n - 6 * i)):
            (folder / "v" / f"{6 * i + k}.mp4").write_bytes(content + b"\0" * k)
    return folder / "a", folder / "v"


def cached_demo(setup: Setup) -> Iterator[dict]:
    audio, video = make_pairs(setup.folder, setup.n(360, 4))
    yield run_twice(setup, audio, video, DEMO / "imagebind_demo.pth")


def full_size(setup: Setup) -> Iterator[dict]:
    """Run twice over the demo's pairs, and see when the first file is open, and how long all takes."""
    baseline = timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
    for side in ("audio", "video"):
        (setup.folder / side).mkdir()
        for path in sorted((DEMO / side).iterdir())[: setup.n(24, 2)]:
            (setup.folder / side / path.name).write_bytes(path.read_bytes())
    argv = program(setup, "--audio_dir", "audio", "--video_dir", "video", "--checkpoint", setup.checkpoint)
    runs = [run_until_first_file(argv, setup.folder) for _ in range(2)]
    for first_file, _ in runs:
        value = f"{first_file:.1f} s; `import torch` takes {baseline:.1f} s"
        yield {"baseline_s": baseline, "ours_s": first_file, "value": value}
    (_, first), (_, second) = runs
    yield {"baseline_s": first, "ours_s": second, "ratio": first / second}


def run_until_first_file(argv: list[str], folder: Path) -> tuple[float, float]:
    """Run the program; return the seconds until it opens a media file, and until the end.

    The kernel tells: a small file is open for less time than a look at all processes takes.
    """
    libc = ctypes.CDLL(None)
    with os.fdopen(libc.inotify_init(), "rb") as opened:
        for path in (*folder.glob("audio/*"), *folder.glob("video/*")):
            libc.inotify_add_watch(opened.fileno(), bytes(path), IN_OPEN)
        began = time.perf_counter()
        run = subprocess.Popen(
            argv,
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with os.fdopen(os.pidfd_open(run.pid)) as ended:
            ready, _, _ = select.select([opened, ended], [], [])
        first_file = time.perf_counter() - began
    if run.wait() or opened not in ready:
        raise RuntimeError("the run failed, or opened no file")
    return first_file, time.perf_counter() - began


def estimates(
    audio: Path, video: Path, checkpoint: Path, n_workers: int | None
) -> list[tuple[float, float, float]]:
    """Run all protocols.

    Returns:
        of each file, when it is done: the share of all that are, and the seconds left as said and as came.
    """
    noted, left = [], progress.Progress.seconds_left

    def note(self: progress.Progress) -> float:
        noted.append((time.perf_counter(), self.total_counts["done"] / self.total, left(self)))
        return noted[-1][2]

    progress.SECONDS_PER_LINE = -1
    progress.Progress.seconds_left = note
    options = {"protocols": PROTOCOLS, "protocol_seconds": 4, "output_dir": None, "checkpoint": checkpoint}
    batch_inference_av_consistency(audio, video, "cpu", num_workers=n_workers, **options)
    end = noted[-1][0]
    return [(share, estimate, end - at) for at, share, estimate in noted]


def estimate(setup: Setup) -> Iterator[dict]:
    """Compare the time left that is said after a tenth of a run with what comes."""
    audio, video = make_pairs(setup.folder, setup.n(120, 5))
    said = in_process(estimates, audio, video, DEMO / "imagebind_demo.pth", setup.n_workers)
    errors = [abs(left / came - 1) for share, left, came in said if 0.1 <= share <= 0.5]
    value = f"{100 * errors[0]:.0f} %; until the half {100 * sum(errors) / len(errors):.0f} % on average"
    yield {"first": errors[0], "mean": sum(errors) / len(errors), "value": value}


def reading_and_model(clips: Path, checkpoint: Path) -> tuple[float, float, float]:
    """Time reading alone, the model alone, and both, with a core each."""
    torch.set_num_threads(1)
    files, held = sorted(map(str, clips.iterdir())), []
    options = Options(None, "", num_workers=1, batch_size=1)
    with start_workers(options) as workers:
        loaded = load_files([("video", Source(path), (VIDEO,)) for path in [files[0], *files]], workers)
        next(loaded)
        decode = timed(lambda: held.extend(loaded))
    model = Model(checkpoint, "cpu", "fp32")
    model.begin(["video"])
    inputs = [file.features["video"].input for file in held]
    embedder = model.open()
    embedder("vision", inputs[:1])
    alone = timed(lambda: [embedder("vision", [input]) for input in inputs])
    with start_workers(options) as workers:
        wanted = features_of(make_protocols(["imagebind"], 8))
        whole = FileEmbedder(options, model, wanted, {"video": len(files)}, workers, None)
        run = timed(lambda: whole.embed({"video": list(map(Source, files))}))
    return decode, alone, run


def overlap(setup: Setup) -> Iterator[dict]:
    """The whole of reading and embedding, with a core each, against the longer of the two alone."""
    make_clips(setup.folder / "clips", setup.n(10, 1), setup.n(10, 1))
    clips = setup.folder / "clips"
    decode, model, run = in_process(reading_and_model, clips, DEMO / "imagebind_demo.pth")
    longer = max(decode, model)
    yield {"decode_s": decode, "model_s": model, "ours_s": run, "value": f"{run / longer:.2f}"}


ROWS = {  # name -> how it is measured, and for each of its figures what, against what, and the goal
    "decode": (
        partial(decode, n_cores=2),
        [("read 10 s clips of 224p, 360p and 720p, two processes", "the released way in two", "15 x")],
    ),
    "decode_alone": (
        partial(decode, n_cores=1),
        [("the same, one process on one core", "the released way in one", "15 x")],
    ),
    "sounds": (sounds, [("read 10 s sounds, one process on one core", "the released way in one", "2 x")]),
    "rates": (
        rates,
        [
            ("the 15 clips of a video in the vision tower", "", ""),
            *((f"read 10 s clips of {height}p, one core", "", "") for height, _ in SIZES),
            ("read 10 s sounds, one core", "", ""),
        ],
    ),
    "hour": (
        hour,
        [
            ("read a one-hour 720p file", "the released way, which seeks too", "100 x"),
            ("the same", "decoding every frame", "100 x"),
        ],
    ),
    "first": (
        first,
        [
            ("load the full-size model and embed a pair, first run", "the released way", "10 x"),
            ("the same, later runs", "the released way", "10 x"),
            ("peak memory of that, fp32", "the released way", "4 GB"),
        ],
    ),
    "multiplications": (
        multiplications,
        [("vision tower, fp32: rate", "its matrix multiplications alone, at the same shapes", "75 %")],
    ),
    "half": (half, [("vision tower, bf16", "fp32", "2.5 x")]),
    "shared": (
        shared,
        [
            ("a square video, equal clips once", "every clip by itself", "2.8 x"),
            ("a sound of 1 s, equal clips once", "every clip by itself", "2.8 x"),
        ],
    ),
    "cached_demo": (cached_demo, [("second run, small model, 360 pairs", "the first run", "10 x")]),
    "full_size": (
        full_size,
        [
            ("from the command to the first file being read, full size, first run", "", "2 s"),
            ("the same, second run", "", "2 s"),
            ("second run, full size, 24 pairs", "the first run", "100 x"),
        ],
    ),
    "estimate": (
        estimate,
        [("time left, as said after a tenth of a run of all protocols: error", "what came", "20 %")],
    ),
    "overlap": (
        overlap,
        [("reading and embedding, a core each", "the longer of the two alone", "1.10")],
    ),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure throughput as ratios to baselines.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    parser.add_argument("--work_dir", type=Path, help="keep the weights here (default: temporary)")
    parser.add_argument("--small", action="store_true", help="only see whether the rows run")
    args = parser.parse_args(argv)
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        base = args.work_dir or Path(temporary)
        base.mkdir(exist_ok=True)
        print("| what | against | goal | measured |\n| --- | --- | --- | --- |")
        for name in args.only:
            measure, labels = ROWS[name]
            with tempfile.TemporaryDirectory(dir=base) as folder:
                rows = measure(Setup(Path(folder), base, args.small))
                for (what, against, goal), row in zip(labels, rows, strict=True):
                    value = row.get("value") or f"{row['ratio']:.3g} x"
                    print(f"| {what} | {against} | {goal} | {value} |", flush=True)
                    measured[f"{name}: {what}"] = row
    if args.json:
        args.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
