"""Frames and samples in memory -> the model's input, as of files that hold them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from imagebind.data import reward
from imagebind.data.audio import MAX_CHANNELS, MAX_SAMPLE, SAMPLE_RATE, AudioInput
from imagebind.data.media import MediaError, media_errors
from imagebind.data.resampling import resample
from imagebind.data.sounds import RELEASED, REWARD, SoundRecipe
from imagebind.data.video import (
    VideoInput,
    clip_frames,
    crop_offsets,
    normalize_rgb,
    resize_short_side,
    to_input,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorRecipe:
    """How a protocol looks at frames and samples.

    Args:
        choose: number of frames, frames per second -> the frame numbers of each clip.
        offsets: as in ClipRecipe.
        sound: of the samples.
    """

    choose: Callable[[int, float], list[tuple[int, ...]]]
    offsets: Callable[[int], tuple[int, ...]]
    sound: SoundRecipe


RECIPES = {
    "imagebind": TensorRecipe(clip_frames, crop_offsets, RELEASED),
    "reward": TensorRecipe(lambda n, fps: reward.pairs_of(n), reward.crop_offsets, REWARD),
}


def from_frames(frames: torch.Tensor, fps: float, name: str, protocol: str = "imagebind") -> VideoInput:
    """Make the model's input of frames, as of a file that shows them. Only those that it takes are looked at.

    Args:
        frames: (T, H, W, 3) or (T, 3, H, W), uint8 or float in [0, 1], on any device.
        fps: their rate.
        name: of the frames in messages.
        protocol: one of RECIPES.

    Raises:
        TypeError: they are something else.
        MediaError: there are none, or they are of an extreme shape.
    """
    frames, recipe = channels_last(frames, name), RECIPES[protocol]
    with media_errors(name):
        if not frames.numel():
            raise MediaError(name, "no video frames")
        clips = recipe.choose(len(frames), fps)
        numbers = sorted({number for clip in clips for number in clip})
        chosen = frames[numbers].cpu()
        if chosen.is_floating_point():
            chosen = chosen.float()
            if not (chosen.min() >= 0 and chosen.max() <= 1):
                low, high = chosen.min().item(), chosen.max().item()
                raise TypeError(f"{name} has floats from {low:.3g} to {high:.3g}; they must be from 0 to 1")
        pictures = (picture.contiguous().permute(2, 0, 1) for picture in chosen)
        scaled = [normalize_rgb(resize_short_side(picture)) for picture in pictures]
        return to_input(clips, dict(zip(numbers, scaled, strict=True)), recipe.offsets)


def channels_last(frames: torch.Tensor, name: str) -> torch.Tensor:
    """Return frames as (T, H, W, 3); raise a TypeError for a tensor that is none of theirs."""
    shape = tuple(frames.shape)
    is_type = frames.dtype == torch.uint8 or frames.is_floating_point()
    axes = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] == 3]
    if len(axes) == 1 and is_type:
        return frames if axes == [3] else frames.permute(0, 2, 3, 1)
    kind = str(frames.dtype).removeprefix("torch.")
    wanted = "(frames, height, width, 3) or (frames, 3, height, width), uint8 or float"
    both = ", of which both 1 and 3 could be the axis of colours" if len(axes) == 2 else ""
    raise TypeError(f"{name} is {kind} of the shape {shape}{both}; it must be {wanted}")


def from_samples(samples: torch.Tensor, rate: int, name: str, protocol: str = "imagebind") -> AudioInput:
    """Make the model's input of samples, as of a file that holds them.

    Args:
        samples: (C, N) float in [-1, 1], on any device.
        rate: in Hz.
        name: of the samples in messages.
        protocol: one of RECIPES.

    Raises:
        TypeError: they are something else.
        MediaError: as load_audio.
    """
    if not samples.is_floating_point() or samples.ndim != 2:
        kind, shape = str(samples.dtype).removeprefix("torch."), tuple(samples.shape)
        raise TypeError(f"{name} is {kind} of the shape {shape}; it must be (channels, samples), float")
    if samples.shape[0] > max(samples.shape[1], MAX_CHANNELS):
        raise TypeError(f"{name} has {samples.shape[0]} channels; it must be (channels, samples)")
    if samples.numel() and (largest := samples.abs().max()) > MAX_SAMPLE:
        log.warning("%s: samples up to %.3g; they are expected from -1 to 1", name, largest)
    recipe = RECIPES[protocol].sound
    with media_errors(name):
        if not samples.numel():
            raise MediaError(name, "no audio samples")
        waveform = resample(recipe.mix(samples.float().cpu().clone()), rate, SAMPLE_RATE)
        clips = [waveform[:, start:end] for start, end in recipe.spans(waveform.shape[1])]
        return AudioInput(recipe.to_mels(name, clips))
