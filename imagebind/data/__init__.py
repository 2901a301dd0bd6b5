"""Media files and texts as ImageBind's inputs, under the names of the released package.

    load_and_transform_audio_data     audio files -> (B, 3, 1, 128, 204)
    load_and_transform_video_data     video files -> (B, 15, 3, 2, 224, 224)
    load_and_transform_vision_data    image files -> (B, 3, 224, 224)
    load_and_transform_text           texts       -> (B, 77)
    waveform2melspec                  a waveform  -> (1, 128, 204)
    get_clip_timepoints               a duration  -> (start, end) of each clip
    NormalizeVideo, SpatialCrop       (C, T, H, W) -> (C, T, 224, 224), three of each

The recipe is that of the ImageBind paper (Girdhar et al., CVPR 2023) as the released loaders carry it out:
the constants of these modules are the ones behind published scores. Nothing here knows the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from imagebind import packages
from imagebind.data.audio import (
    AUDIO_CLIPS,
    MEL_BINS,
    MEL_FRAMES,
    MEL_MEAN,
    MEL_STD,
    SAMPLE_RATE,
    AudioInput,
    load_audio,
    waveform2melspec,
)
from imagebind.data.clips import CLIP_SECONDS, get_clip_timepoints
from imagebind.data.media import AnyPath, MediaError, media_errors
from imagebind.data.sequences import scale_and_crop
from imagebind.data.sounds import read_audio
from imagebind.data.text import TEXT_TOKENS, TextInput, read_text, return_bpe_path
from imagebind.data.video import (
    CROPS,
    FRAMES_PER_CLIP,
    SIZE,
    VIDEO_CLIPS,
    NormalizeVideo,
    SpatialCrop,
    VideoInput,
    load_video,
    normalize_rgb,
    read_video,
)
from imagebind.torch_settings import on_cpu

# What the released module has because it imports it, and other code takes from there
PASSED_ON = {
    "ConstantClipsPerVideoSampler": ("pytorchvideo.data.clip_sampling", "ConstantClipsPerVideoSampler"),
    "SimpleTokenizer": ("imagebind.models.multimodal_preprocessors", "SimpleTokenizer"),
    "transforms": ("torchvision.transforms", None),
}


def __getattr__(name: str) -> Any:
    if name not in PASSED_ON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, held = PASSED_ON[name]
    module = packages.load(module)
    return module if held is None else getattr(module, held)


@on_cpu()
def load_and_transform_audio_data(
    audio_paths: Sequence[AnyPath] | None,
    device: str | torch.device,
    num_mel_bins: int = MEL_BINS,
    target_length: int = MEL_FRAMES,
    sample_rate: int = SAMPLE_RATE,
    clip_duration: float = CLIP_SECONDS,
    clips_per_video: int = AUDIO_CLIPS,
    mean: float = MEL_MEAN,
    std: float = MEL_STD,
) -> torch.Tensor | None:
    """Load audio files into one batch on a device.

    Returns:
        (B, S, 1, 128, 204) float32, S = clips_per_video; None for None.

    Raises:
        MediaError: as load_audio.
    """
    options = (num_mel_bins, target_length, sample_rate, clip_duration, clips_per_video, mean, std)
    if audio_paths is None:
        return None
    return torch.stack([load_audio(path, *options) for path in audio_paths]).to(device)


@on_cpu()
def load_and_transform_video_data(
    video_paths: Sequence[AnyPath] | None,
    device: str | torch.device,
    clip_duration: int = CLIP_SECONDS,
    clips_per_video: int = VIDEO_CLIPS,
    sample_rate: int = SAMPLE_RATE,
) -> torch.Tensor | None:
    """Load video files into one batch on a device; `sample_rate` has no effect, as in the release.

    Returns:
        (B, S, 3, T, 224, 224) float32, S = 3 clips_per_video, T = clip_duration: one frame a second, as in
        the release. The model takes T = 2. None for None.

    Raises:
        TypeError, ValueError: clip_duration is no whole number, or below 1.
        MediaError: as load_video.
    """
    if video_paths is None:
        return None
    return torch.stack([load_video(path, clip_duration, clips_per_video) for path in video_paths]).to(device)


@on_cpu()
def load_and_transform_vision_data(
    image_paths: Sequence[AnyPath] | None, device: str | torch.device
) -> torch.Tensor | None:
    """Load image files into one batch on a device.

    Returns:
        (B, 3, 224, 224) float32; None for None.

    Raises:
        MediaError: a file is not an image that can be read.
    """
    if image_paths is None:
        return None
    images, pillow = [], packages.load("PIL.Image")
    for path in image_paths:
        with media_errors(path), pillow.open(path) as image:
            pixels = scale_and_crop(image.convert("RGB"))  # (224, 224, 3)
        images.append(normalize_rgb(pixels.permute(2, 0, 1).contiguous().float().div_(255)))
    return torch.stack(images).to(device)


@on_cpu()
def load_and_transform_text(text: Sequence[str] | None, device: str | torch.device) -> torch.Tensor | None:
    """Tokenize texts into one batch on a device.

    Returns:
        (B, 77) int64; None for None.

    Raises:
        MediaError: as read_text.
    """
    if text is None:
        return None
    return torch.stack([read_text(one).tokens for one in text]).to(device)
