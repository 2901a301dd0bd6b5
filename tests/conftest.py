"""What several test files share: a small checkpoint, and media made by written recipe."""

from __future__ import annotations

import ctypes
import dataclasses
import http.server
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from fractions import Fraction
from functools import partial
from pathlib import Path

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # not the user's own
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: a core for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import pytest
import torch
from reference.weights import fill

from batch_inference import main
from imagebind.data import MediaError
from imagebind.data.resampling import resample
from imagebind.data.samples import decode_audio
from imagebind.models.imagebind_model import IMAGEBIND_HUGE, ImageBindModel, save_model

TESTS = Path(__file__).parent
DEMO = TESTS / "demo"
MEDIA = TESTS / "reference" / "media"
RATE = 16000
CACHE = Path("outputs", "embeddings.sqlite")
LONG = 10  # hours of sound: what is being read while something happens


def skip(reason: str) -> None:
    """Skip a test that this machine cannot run; where tests are to be complete, that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"cannot be skipped here: {reason}")
    pytest.skip(reason)


def pytest_collection_modifyitems(items) -> None:
    """Start with the longest tests, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of our own with two narrow towers, every tensor filled."""
    towers = {
        modality: dataclasses.replace(config, width=48, n_blocks=2, n_heads=4)
        for modality, config in IMAGEBIND_HUGE.items()
    }
    model = ImageBindModel(towers, note="test weights")
    fill(model.state_dict(released_names=False))
    path = tmp_path_factory.mktemp("checkpoints") / "small.pth"
    save_model(model, path)
    return path


def tone(seconds: float, hz: float = 440, rate: int = RATE) -> np.ndarray:
    """(T,) float32, full of one note."""
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate).astype(np.float32) * 0.5


def load_waveform(path: Path) -> torch.Tensor:
    """Decode and resample a whole sound: (C, T) at 16 kHz."""
    pieces, rates = zip(*decode_audio(path), strict=True)
    return resample(torch.cat(pieces, dim=1), rates[0], RATE)


def reason(load, path) -> str:
    """Read a file that gives no input, and give the reason, which is one line."""
    with pytest.raises(MediaError) as caught:
        load(path)
    assert caught.value.path == str(path)
    assert "\n" not in caught.value.reason
    return caught.value.reason


def write_audio(path: Path, samples: np.ndarray, rate: int = RATE, codec: str = "pcm_f32le") -> Path:
    """Write (C, T) float32 samples, or (T,) for mono."""
    samples = np.atleast_2d(samples)
    layout = {1: "mono", 2: "stereo", 3: "2.1", 6: "5.1", 8: "7.1", 16: "hexadecagonal"}[len(samples)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if samples.size:
            frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), "flt", layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            container.mux(stream.encode(frame))
        container.start_encoding()  # also where there is nothing to encode
        container.mux(stream.encode(None))
    return path


def silence(path: Path, hours: float) -> Path:
    """Write 16-bit mono at 48 kHz: no room on disk, and for ten hours half a minute to read."""
    n_samples = round(hours * 3600) * 48000
    header = b"RF64" + b"\xff" * 4 + b"WAVE"
    header += b"ds64" + struct.pack("<IQQQI", 28, 2 * n_samples + 72, 2 * n_samples, n_samples, 0)
    header += b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 48000, 96000, 2, 16) + b"data" + b"\xff" * 4
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header)
    os.truncate(path, len(header) + 2 * n_samples)
    return path


def picture(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """(H, W, 3) uint8, whose brightness tells the frame's number and whose top left corner is white."""
    image = np.full((height, width, 3), 20 + 2 * number, np.uint8)
    image[: height // 4, : width // 4] = 255
    return image


def write_video(
    path: Path,
    images: list[np.ndarray],
    codec: str = "libx264",
    fps: int = 20,
    pts: list[int] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Write pictures (H, W, 3) uint8; `pts` are in 1 / 1000 s, `rotation` in degrees counter-clockwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = options or ({"preset": "ultrafast"} if codec == "libx264" else {})
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if pts:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            if pts:
                frame.time_base, frame.pts = Fraction(1, 1000), pts[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # SVT-AV1 makes its callers real-time ones
    if rotation:
        cos, sin = round(np.cos(np.radians(rotation))), round(np.sin(np.radians(rotation)))
        set_display_matrix(path, cos, -sin, sin, cos)
    return path


def set_display_matrix(path: Path, *matrix: int) -> None:
    """Have an MP4 file shown through a matrix, row by row; PyAV before 16 writes none."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # behind the type, version and flags, times, layer and volume
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def write_movie(path: Path, hz: int) -> Path:
    """Write a second of pictures with a note."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("pcm_f32le", rate=RATE, layout="mono")
        for i in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(hz // 20 + i), "rgb24")))
        frame = av.AudioFrame.from_ndarray(tone(1, hz)[None], "flt", "mono")
        frame.sample_rate = RATE
        container.mux([*sound.encode(frame), *stream.encode(None), *sound.encode(None)])
    return path


@pytest.fixture(scope="session")
def four_pairs(tmp_path_factory) -> Path:
    """What `pairs` are copies of."""
    folder = tmp_path_factory.mktemp("pairs")
    for i, name in enumerate("abcd"):
        write_audio(folder / "audio" / f"{name}.wav", tone(1, 200 * (i + 1)))
        write_video(folder / "video" / f"{name}.mp4", [picture(20 * i + k % 5) for k in range(20)])
    return folder


@pytest.fixture
def pairs(tmp_path, four_pairs) -> Path:
    """A directory with audio/ and video/ of four pairs, a to d."""
    return shutil.copytree(four_pairs, tmp_path, dirs_exist_ok=True)


class Server(http.server.ThreadingHTTPServer):
    """A server of one file on this machine, which may break each connection.

    Attributes:
        body: of the file.
        etag: its version; None states none.
        most: bytes that each connection brings before it breaks, the last number all further ones.
        stalls: what a connection waits for before it breaks.
        knows_versions, sends_parts: whether another version is sent whole, and parts at all.
        status: of the answers; None is that of HTTP.
        ranges: what the requests asked for, in order; None is everything.
        headers: beside the usual ones.
    """

    def __init__(self, handler: type | None = None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.body, self.etag, self.most, self.status = b"", '"1"', [None], None
        self.stalls, self.knows_versions, self.sends_parts = None, True, True
        self.ranges, self.headers = [], {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.address}/imagebind_huge.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.ranges.append(wanted)
        is_same = self.headers["If-Range"] in (None, server.etag) or not server.knows_versions
        can_part = wanted and is_same and server.sends_parts
        first = int(wanted.removeprefix("bytes=").split("-")[0]) if can_part else 0
        self.send_response(server.status or (416 if first >= len(server.body) > 0 else 206 if first else 200))
        length = str(max(len(server.body) - first, 0))
        if first:
            span = f"{first}-{len(server.body) - 1}" if first < len(server.body) else "*"
            self.send_header("Content-Range", f"bytes {span}/{len(server.body)}")
        for name, value in {"Content-Length": length, "ETag": server.etag, **server.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            most = server.most[min(len(server.ranges), len(server.most)) - 1]
            self.wfile.write(server.body[first:][:most])
            if server.stalls is not None:
                server.stalls.wait(60)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


# Programs: whole runs in processes of their own, which can be killed

DIRS = ("--audio_dir", "audio", "--video_dir", "video")
PROGRAM = [  # from its very start, which takes seconds
    *(sys.executable, TESTS.parent / "batch_inference.py", *DIRS),
    *("--checkpoint", DEMO / "imagebind_demo.pth", "--device", "cpu"),
]
FORKSERVER = multiprocessing.get_context("forkserver")
N_PROGRAMS = itertools.count()
CLONE_NEWNS = 0x20000  # of unshare(2)
FORKSERVER.set_forkserver_preload(
    [
        *("batch_inference", "imagebind.reading.loader", "imagebind.models.embedder"),
        *("imagebind.evaluation.compare.results", "imagebind.evaluation.write.page"),
        *("numpy.random", "plotly.graph_objects", "plotly.offline", "pytest", "torchvision"),
    ]
)


class Program:
    """A run of the command line in `folder`, in a process that has all imports done.

    It reads its files itself, unless `argv` has --num_workers: processes that read begin with imports of
    their own, which take seconds.

    Args:
        folder: where it runs; what it says goes to files there.
        argv: options beside inputs and model.
        inputs: other ones than audio/ and video/ there.
        limits: of the process, {resource.RLIMIT_...: number}.
        environment: variables beside those of this process.
        checkpoint: of the model.
        inside: makes a context in that process, in which it runs.
        run: what runs there, instead of the command line itself.
    """

    def __init__(
        self,
        folder: Path,
        *argv: str,
        inputs: Sequence[str] = DIRS,
        limits: dict[int, int] | None = None,
        environment: dict[str, str] | None = None,
        checkpoint: Path = DEMO / "imagebind_demo.pth",
        inside: Callable[[], AbstractContextManager] = nullcontext,
        run: Callable[[Sequence[str]], int] = main,
    ):
        self.folder = folder
        self.logs = [f"{name}{next(N_PROGRAMS)}" for name in ("stdout", "stderr")]
        model = ("--checkpoint", str(checkpoint), "--device", "cpu")
        argv = (*inputs, *model, "--num_workers", "0", *argv)
        arguments = folder, partial(run, argv), limits or {}, environment or {}, inside, self.logs
        self.process = FORKSERVER.Process(target=run_program, args=arguments)
        self.process.start()

    def wait(self) -> tuple[int, list[str], list[str]]:
        """Give exit status, and the lines of stdout and stderr."""
        self.process.join(300)
        assert self.process.exitcode is not None, "hangs"
        out, err = ((self.folder / name).read_text().splitlines() for name in self.logs)
        assert not any("Traceback" in line for line in err), "\n".join(err)
        return self.process.exitcode, out, err

    def readers(self) -> list[int]:
        """List the processes that read files."""
        return readers(self.process.pid)

    def reader_of(self, path: Path) -> int:
        """Wait until a process reads a file, and give it."""
        while self.process.is_alive():
            for pid in (self.process.pid, *self.readers()):
                if str(path) in open_files(pid):
                    return pid
            self.process.join(0.02)
        raise AssertionError((self.folder / self.logs[1]).read_text())


def run_program(
    folder: Path,
    run: Callable[[], int],
    limits: dict[int, int],
    environment: dict[str, str],
    inside: Callable[[], AbstractContextManager],
    logs: list[str],
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in enumerate(logs, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    with inside():
        status = run()
    sys.stdout.flush()
    sys.exit(status)


def readers(pid: int) -> list[int]:
    """List the processes that read files for one; between them are the starter and a server."""
    servers = [server for starter in children(pid) for server in children(starter)]
    return [worker for server in servers for worker in children(server)]


def children(pid: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def open_files(pid: int) -> set[str]:
    try:
        return {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
    except FileNotFoundError:
        return set()


def end_long_sound(path: Path) -> None:
    """Put a short sound into the place of one that is being read, which is then read again."""
    short = write_audio(path.parent.with_name("short.wav"), tone(1))
    with open(path, "r+b") as file:  # never empty, as a file that cannot be read would be
        file.write(short.read_bytes())
        file.truncate()
    short.unlink()


@pytest.fixture
def with_long(pairs):
    """`pairs`, and a fifth whose sound takes half a minute to read."""
    silence(pairs / "audio" / "long.wav", LONG)
    write_video(pairs / "video" / "long.mp4", [picture(k) for k in range(20)])
    return pairs


def failures(folder) -> dict[str, str]:
    metrics = json.loads((folder / "outputs" / "metrics.json").read_text())
    return {failure["path"]: failure["reason"] for failure in metrics["failures"]}


def contents(folder) -> dict[str, bytes]:
    """Read all outputs but the cache, and the record of them."""
    others = (CACHE.name, ".written.json")
    return {
        path.name: path.read_bytes() for path in (folder / "outputs").iterdir() if path.name not in others
    }


def n_cached(folder) -> int:
    try:
        with closing(sqlite3.connect(f"file:{folder / CACHE}?mode=ro", uri=True)) as connection:
            ((n,),) = connection.execute(
                "SELECT count(*) FROM rows WHERE side NOT LIKE '%/thumbnail' AND side NOT LIKE '%/flags'"
            ).fetchall()
            return n
    except sqlite3.OperationalError:  # not made yet
        return 0


@contextmanager
def own_mounts(script: str, after: str = "true") -> Iterator[None]:
    """Give this process file systems of its own, which a script mounts; and end with a command in them."""
    assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
    subprocess.run(["sh", "-c", f"mount --make-rprivate / && {script}"], check=True)
    yield
    subprocess.run(["sh", "-c", after], check=True)


def need_mounts() -> None:
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode:
        skip("no leave to mount")
