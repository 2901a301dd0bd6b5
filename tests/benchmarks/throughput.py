"""Measure how fast it is, each figure as a ratio to a baseline of the same run.

    pip install decord
    python tests/benchmarks/throughput.py                      # all rows; 20 minutes on two cores
    python tests/benchmarks/throughput.py --only decode hour   # some

It makes its own media and, for the rows about the full-size model, a checkpoint of the released kind
with the weights of tests/reference/weights.py (4.8 GB, in the temporary directory). It prints a table
and writes throughput.json. Absolute times mean nothing on another machine; ratios are what to read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from test_model import released_state_dict  # noqa: E402

from batch_inference import Options  # noqa: E402
from imagebind import data  # noqa: E402
from imagebind.data.clips import clip_spans  # noqa: E402
from imagebind.data.features import VIDEO  # noqa: E402
from imagebind.data.video import crop, crop_offsets, normalize_rgb  # noqa: E402
from imagebind.evaluation.embedding import start_workers  # noqa: E402
from imagebind.models.embedder import Embedder  # noqa: E402
from imagebind.models.imagebind_model import IMAGEBIND_HUGE, MLP_RATIO, load_model  # noqa: E402
from imagebind.reading.loader import load_files  # noqa: E402

DEMO = TESTS / "demo"
CPU = torch.device("cpu")
FPS = 25


def timed(work: Callable) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_process(code: str, *argv: object, **environment: str) -> Any:
    """Run code in a process of its own; it prints one JSON value."""
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


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


def make_clips(folder: Path, n_each: int = 8) -> list[Path]:
    """Write n_each 10 s clips at 224p, 360p and 720p."""
    sizes = ((224, 400), (360, 640), (720, 1280))
    return [
        make_video(folder / f"{height}_{i}.mp4", 10, height, width, i)
        for height, width in sizes
        for i in range(n_each)
    ]


def huge_checkpoint(folder: Path) -> Path:
    """Write a checkpoint of the released kind and size under reference weights, once."""
    path = folder / "huge.pth"
    if not path.exists():
        torch.save(released_state_dict("huge"), path)
    return path


# ------------------------------------------------------------------------------------------------
# Rows: each gives baseline, ours and their ratio
# ------------------------------------------------------------------------------------------------


def released_way(path: Path) -> torch.Tensor:
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


def decode(folder: Path) -> dict:
    paths = make_clips(folder)
    baseline = timed(lambda: [released_way(path) for path in paths])
    files = [("video", str(path), (VIDEO,)) for path in paths]
    with start_workers(Options(None, "", num_workers=2), len(files)) as workers:
        ours = timed(lambda: list(load_files(files, workers)))
    return {"baseline_s": baseline, "ours_s": ours, "ratio": baseline / ours}


def hour(folder: Path) -> dict:
    path = repeat_video(make_video(folder / "minute.mp4", 60, 720, 1280), folder / "hour.mp4", 60)
    ours = min(timed(lambda: data.read_video(path)) for _ in range(2))
    baseline = timed(lambda: released_way(path))
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = container.decode(video=0)
        every_frame = timed(lambda: sum(frame.to_ndarray(format="rgb24").size for frame in frames))
    return {
        "baseline_s": baseline,
        "every_frame_s": every_frame,
        "ours_s": ours,
        "ratio": baseline / ours,
        "ratio_every_frame": every_frame / ours,
    }


READY = """
import json, sys, time, torch
from imagebind.models.imagebind_model import IMAGEBIND_HUGE, ImageBindModel, load_model
began = time.perf_counter()
if sys.argv[2] == "ours":
    load_model(sys.argv[1])
else:
    released = torch.load(sys.argv[1], weights_only=True)
    ImageBindModel(IMAGEBIND_HUGE).load_state_dict(released)
print(json.dumps({"s": time.perf_counter() - began}))
"""


def ready(folder: Path) -> dict:
    path = huge_checkpoint(folder)
    path.read_bytes()  # both from the page cache
    ours, baseline = (in_process(READY, path, how)["s"] for how in ("ours", "baseline"))
    return {"baseline_s": baseline, "ours_s": ours, "ratio": baseline / ours}


MEMORY = """
import json, sys, torch
from imagebind import data
from imagebind.models.embedder import Embedder
from imagebind.models.imagebind_model import load_model
embedder = Embedder(load_model(sys.argv[1]), torch.device("cpu"), "fp32")
embedder("audio", [data.read_audio(sys.argv[2])])
embedder("vision", [data.read_video(sys.argv[3])])
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"kb": int(peak)}))
"""


def memory(folder: Path) -> dict:
    media = TESTS / "reference" / "media"
    files = (media / "gated_48k_10s.flac", media / "wide_ntsc_10s.mkv")
    ours = in_process(MEMORY, huge_checkpoint(folder), *files)["kb"] / 1e6
    return {"baseline_gb": 10.1, "ours_gb": ours, "ratio": 10.1 / ours}


def clips_of(n: int) -> torch.Tensor:
    return torch.randn(n, *IMAGEBIND_HUGE["vision"].clip_shape)


def products(folder: Path) -> dict:
    """Time the vision tower against its matrix products alone, at the same shapes."""
    tower = load_model(huge_checkpoint(folder)).towers["vision"]
    clips, width = clips_of(8), tower.config.width
    n = len(clips) * (tower.config.n_tokens)
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
    return {"baseline_s": bare, "ours_s": ours, "ratio": bare / ours}


def half(folder: Path) -> dict:
    clips = clips_of(8)
    seconds = {}
    for precision in ("fp32", "bf16"):
        tower = Embedder(load_model(huge_checkpoint(folder)), CPU, precision).tower("vision")
        with torch.inference_mode():
            tower(clips[:1])
            seconds[precision] = min(timed(lambda tower=tower: tower(clips)) for _ in range(2))
    ratio = seconds["fp32"] / seconds["bf16"]
    return {"baseline_s": seconds["fp32"], "ours_s": seconds["bf16"], "ratio": ratio}


def shared(folder: Path) -> dict:
    """Embed a square video and a 1 s sound with equal clips once, and with every clip by itself."""
    from conftest import tone, write_audio

    embedder = Embedder(load_model(huge_checkpoint(folder)), CPU, "fp32")
    square = make_video(folder / "square.mp4", 10, 240, 240)
    sound = write_audio(folder / "short.wav", tone(1))
    row = {}
    for name, modality, read, load, path in (
        ("video", "vision", data.read_video, data.load_video, square),
        ("sound", "audio", data.read_audio, data.load_audio, sound),
    ):
        distinct, every = read(path), load(path)
        embed_all = partial(embedder.model, {modality: every})
        embed_distinct = partial(embedder, modality, [distinct])
        with torch.inference_mode():
            embedder.model({modality: every[:1]})  # warm
            row[f"baseline_{name}_s"] = min(timed(embed_all) for _ in range(2))
            row[f"ours_{name}_s"] = min(timed(embed_distinct) for _ in range(2))
        row[f"ratio_{name}"] = row[f"baseline_{name}_s"] / row[f"ours_{name}_s"]
    return {**row, "ratio": min(row["ratio_video"], row["ratio_sound"])}


def run_twice(folder: Path, audio: Path, video: Path, checkpoint: Path) -> dict:
    """Time the whole program on an empty and on a full cache."""
    argv = [sys.executable, TESTS.parent / "batch_inference.py", "--audio_dir", audio, "--video_dir", video]
    argv += ["--checkpoint", checkpoint, "--device", "cpu", "--output_dir", tempfile.mkdtemp(dir=folder)]
    first, second = (timed(lambda: subprocess.run(argv, check=True, capture_output=True)) for _ in range(2))
    return {"baseline_s": first, "ours_s": second, "ratio": first / second}


def cached_demo(folder: Path) -> dict:
    """The demo's way, on 360 pairs of its making."""
    from conftest import tone, write_audio

    for i in range(360):
        write_audio(folder / "a" / f"{i}.wav", tone(8, 200 + i))
    for i in range(60):
        make_video(folder / f"v{i}.mp4", 4, 144, 192, i)
        (folder / "v").mkdir(exist_ok=True)
        for k in range(6):  # one byte more is another content
            (folder / "v" / f"{6 * i + k}.mp4").write_bytes((folder / f"v{i}.mp4").read_bytes() + b"\0" * k)
    return run_twice(folder, folder / "a", folder / "v", DEMO / "imagebind_demo.pth")


def cached_huge(folder: Path) -> dict:
    return run_twice(folder, DEMO / "audio", DEMO / "video", huge_checkpoint(folder))


OVERLAP = """
import json, os, sys, time, torch
from imagebind.data.features import VIDEO
from imagebind.evaluation.protocols import make_protocols
from imagebind.reading.loader import load_files
from imagebind.models.embedder import Embedder
from imagebind.models.imagebind_model import load_model
from batch_inference import Options
from imagebind.evaluation.embedding import FileEmbedder, start_workers
torch.set_num_threads(1)
files = sorted(os.path.join(sys.argv[1], name) for name in os.listdir(sys.argv[1]))
def seconds(work):
    began = time.perf_counter(); work(); return time.perf_counter() - began
cores = sorted(os.sched_getaffinity(0))
held = []
with start_workers(Options(None, "", num_workers=1), len(files)) as workers:
    decode = seconds(lambda: held.extend(load_files([("video", path, (VIDEO,)) for path in files], workers)))
embedder = Embedder(load_model(sys.argv[2]), torch.device("cpu"), "fp32")
inputs = [file.features["video"].input for file in held]
embedder("vision", inputs[:1])
model = seconds(lambda: [embedder("vision", [input]) for input in inputs])
with start_workers(Options(None, "", num_workers=1), len(files)) as workers:
    whole = FileEmbedder(embedder, None, 1, workers, {"video": len(files)}, make_protocols(["imagebind"], 8))
    run = seconds(lambda: whole.embed({"video": files}))
print(json.dumps({"decode_s": decode, "model_s": model, "ours_s": run, "ratio": run / max(decode, model)}))
"""


def overlap(folder: Path) -> dict:
    """The whole of reading and embedding, with a core each, against the longer of the two alone."""
    (folder / "clips").mkdir()
    make_clips(folder / "clips", 10)
    return in_process(OVERLAP, folder / "clips", DEMO / "imagebind_demo.pth", OMP_NUM_THREADS="1")


ROWS = {  # name -> what is measured, goal, how
    "decode": ("read 10 s clips of 224p, 360p, 720p, 2 workers", "15 x or more", decode),
    "hour": ("read a one-hour 720p file", "100 x or more", hour),
    "ready": ("ready to embed, full size", "10 x or more", ready),
    "memory": ("peak memory, full size, fp32, CPU", "4 GB or less", memory),
    "products": (
        "vision tower, fp32, CPU: share of the bare matrix products' rate",
        "0.75 or more",
        products,
    ),
    "half": ("vision tower, bf16 against fp32, CPU", "2.5 x or more", half),
    "shared": ("square video, 1 s sound: equal clips once", "2.8 x or more", shared),
    "cached_demo": ("second run, small model, 360 pairs", "10 x or more", cached_demo),
    "cached_huge": ("second run, full size, 24 pairs", "100 x or more", cached_huge),
    "overlap": ("whole run against the longer of reading and model", "1.10 or less", overlap),
}
FULL_SIZE = {"ready", "memory", "products", "half", "shared", "cached_huge"}  # rows that need its weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure throughput as ratios to baselines.")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--json", type=Path, default=Path("throughput.json"))
    parser.add_argument("--work_dir", type=Path, help="keep media and weights here (default: temporary)")
    args = parser.parse_args()
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        base = args.work_dir or Path(temporary)
        base.mkdir(exist_ok=True)
        print("| what | goal | measured | from |\n| --- | --- | --- | --- |")
        for name in args.only:
            what, goal, measure = ROWS[name]
            with tempfile.TemporaryDirectory(dir=base) as scratch:
                folder = Path(scratch)
                if (base / "huge.pth").exists() or measure in (
                    ready,
                    memory,
                    products,
                    half,
                    shared,
                    cached_huge,
                ):
                    (folder / "huge.pth").symlink_to(huge_checkpoint(base))
                row = measured[name] = measure(folder)
            figures = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if not k.startswith("ratio"))
            value = f"{row['ours_gb']:.1f} GB" if "ours_gb" in row else f"{row['ratio']:.3g}"
            print(f"| {what} | {goal} | {value} | {figures} |", flush=True)
    args.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
