"""Model inputs -> small pictures of them, as JPEG: frames of a video, spectrograms of a sound."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
import torch
import torch.nn.functional as F

from imagebind.data.audio import AudioInput
from imagebind.data.inputs import ModelInput
from imagebind.data.media import ONE_THREAD
from imagebind.data.video import RGB_MEAN, RGB_STD, VideoInput

HEIGHT, MAX_WIDTH = 54, 96  # of a frame, in pixels
SPECTROGRAM = (27, 96)  # height and width of a clip's
SOUNDING = 198  # of the 204 columns of a clip; the others are padding
QUALITY = 7  # FFmpeg's quantiser: 2 is best, 31 worst
LOUDEST = 1.5  # of a normalised log mel spectrogram


def make_thumbnail(input: ModelInput) -> bytes | None:
    """Return a strip of pictures of what the model sees of a file; None for a text.

    Of a video three frames side by side, of a sound the spectrograms of its clips.
    """
    if isinstance(input, VideoInput):
        return encode_jpeg(draw_frames(input.frames))
    if isinstance(input, AudioInput):
        return encode_jpeg(draw_spectrograms(input.mels))
    return None


def draw_frames(frames: torch.Tensor) -> np.ndarray:
    """Draw the first, a middle and the last of normalised frames (F, 3, H, W), (54, W', 3) uint8."""
    chosen = frames[[0, (len(frames) - 1) // 2, len(frames) - 1]]
    height, width = chosen.shape[2:]
    size = HEIGHT, min(max(round(HEIGHT * width / height), 1), MAX_WIDTH)
    mean, std = (chosen.new_tensor(values).view(3, 1, 1) for values in (RGB_MEAN, RGB_STD))
    small = F.interpolate(chosen, size=size, mode="area").mul_(std).add_(mean)
    return to_bytes(small.permute(2, 0, 3, 1).reshape(HEIGHT, -1, 3))


def draw_spectrograms(mels: torch.Tensor) -> np.ndarray:
    """Draw normalised spectrograms (S, 1, 128, 204) side by side, low tones below, (27, W', 3) uint8."""
    small = F.interpolate(mels[..., :SOUNDING], size=SPECTROGRAM, mode="area").flip(2) / (2 * LOUDEST) + 0.5
    return to_bytes(small.permute(2, 0, 3, 1).reshape(SPECTROGRAM[0], -1, 1).expand(-1, -1, 3))


def to_bytes(picture: torch.Tensor) -> np.ndarray:
    return picture.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous().numpy()


def encode_jpeg(picture: np.ndarray) -> bytes:
    """Encode a picture (H, W, 3) uint8."""
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuvj420p", **ONE_THREAD)
    return b"".join(bytes(packet) for packet in open_encoder(*picture.shape[:2]).encode(frame))


@lru_cache(maxsize=64)  # opening one takes longer than encoding
def open_encoder(height: int, width: int) -> av.VideoCodecContext:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = height, width
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuvj420p", Fraction(1), 1
    encoder.qmin = encoder.qmax = QUALITY
    return encoder
