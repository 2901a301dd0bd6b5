"""What several test files share: a small checkpoint, and media made by written recipe."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from reference.weights import fill

from imagebind.models.imagebind_model import IMAGEBIND_HUGE, ImageBindModel, save_model

TESTS = Path(__file__).parent
DEMO = TESTS / "demo"
MEDIA = TESTS / "reference" / "media"
RATE = 16000


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of our own with two narrow towers, every tensor filled."""
    towers = {
        modality: dataclasses.replace(config, width=48, n_blocks=2, n_heads=4)
        for modality, config in IMAGEBIND_HUGE.items()
    }
    model = ImageBindModel(towers, note="test weights")
    fill(model.state_dict())
    path = tmp_path_factory.mktemp("checkpoints") / "small.pth"
    save_model(model, path)
    return path


def tone(seconds: float, hz: float = 440, rate: int = RATE) -> np.ndarray:
    """(T,) float32, full of one note."""
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate).astype(np.float32) * 0.5


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
    """Write pictures (H, W, 3) uint8; `pts` are frame times in 1 / 1000 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        if pts:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            if pts:
                frame.time_base, frame.pts = Fraction(1, 1000), pts[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A directory with audio/ and video/ of four pairs, a to d."""
    for i, name in enumerate("abcd"):
        write_audio(tmp_path / "audio" / f"{name}.wav", tone(1, 200 * (i + 1)))
        write_video(tmp_path / "video" / f"{name}.mp4", [picture(20 * i + k % 5) for k in range(20)])
    return tmp_path
