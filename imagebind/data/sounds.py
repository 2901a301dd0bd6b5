"""A sound -> the model's input, by one recipe or by several: one decoding serves them all.

    decode_kinds -> ClipCutter of each recipe (resample) -> log-mel spectrograms

The released loader's recipe is one of them; the others are those of other evaluators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from imagebind.data.audio import (
    AUDIO_CLIPS,
    SAMPLE_RATE,
    AudioInput,
    ClipCutter,
    HeldSound,
    clip_ranges,
    clips_to_input,
)
from imagebind.data.clips import CLIP_SECONDS
from imagebind.data.flags import HeardSamples
from imagebind.data.inputs import DroppedError
from imagebind.data.media import AnyPath, MediaError, media_errors
from imagebind.data.resampling import Filter, make_filter
from imagebind.data.samples import EXTRACTED_RATE, Extraction, decode_audio

CLIP_SAMPLES = CLIP_SECONDS * SAMPLE_RATE


@dataclass(frozen=True)
class SoundRecipe:
    """How the clips of a sound are made; by default as the released loader makes them.

    Args:
        filter_for: rate of the samples, rate of the model -> what resamples them.
        spans: number of resampled samples -> [start, end) of each of AUDIO_CLIPS clips.
        to_mels: path, clips (C, T) -> (S, 1, 128, 204).
        is_mixed: the mean of all channels is taken, and not the first one.
        is_extracted: samples are those that FFmpeg extracts, as Extraction does.
        n_needed: resampled samples, below which the sound is dropped.
        name: of the protocol that drops it.
    """

    filter_for: Callable[[int, int], Filter] = make_filter
    spans: Callable[[int], list[tuple[int, int]]] = clip_ranges
    to_mels: Callable[[AnyPath, Sequence[torch.Tensor]], torch.Tensor] = clips_to_input
    is_mixed: bool = False
    is_extracted: bool = False
    n_needed: int = 0
    name: str = ""

    def check_length(self, n_samples: int) -> None:
        """Raise a DroppedError for a sound that has fewer resampled samples than are needed."""
        if n_samples < self.n_needed:
            needed, found = (f"{n / SAMPLE_RATE:.6g}" for n in (self.n_needed, n_samples))
            if needed == found:  # as after a sound that was cut to the video's length
                needed, found = f"{self.n_needed} samples at 16 kHz", f"{n_samples}"
            else:
                needed, found = f"{needed} s of sound", f"{found} s"
            raise DroppedError(f"{self.name} needs {needed}, it has {found}")

    def mix(self, samples: torch.Tensor) -> torch.Tensor:
        """Return (C, T), what is resampled of decoded samples (C, T)."""
        return samples.mean(0, keepdim=True) if self.is_mixed and len(samples) > 1 else samples


RELEASED = SoundRecipe()
EXTRACTED = SoundRecipe(is_extracted=True)  # as T2AV-Compass extracts a sound before it is read


def mova_sound(seconds: float) -> SoundRecipe:
    """Return how MOVA's evaluator makes the clips: with a filter that is computed in float64.

    Args:
        seconds: that a sound has to have.
    """
    exact = partial(make_filter, in_float64=True)
    return SoundRecipe(filter_for=exact, n_needed=int(SAMPLE_RATE * seconds), name="mova")


def reward_spans(n_samples: int) -> list[tuple[int, int]]:
    """Spread clips as the rewards do: where one ends after the sound, it is padded."""
    spacing = max(n_samples / SAMPLE_RATE - CLIP_SECONDS, 0.0) / (AUDIO_CLIPS - 1)
    starts = (int(i * spacing * SAMPLE_RATE) for i in range(AUDIO_CLIPS))
    return [(start, start + CLIP_SAMPLES) for start in starts]


def padded_to_input(path: AnyPath, clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Make clips (1, T) of up to 2 s the model's input: silence is appended before the mean is subtracted.

    That is not in place: where clips overlap, none sees another's shift.

    Raises:
        MediaError: as clips_to_input.
    """
    return clips_to_input(path, [F.pad(clip, (0, CLIP_SAMPLES - clip.shape[1])).clone() for clip in clips])


REWARD = SoundRecipe(spans=reward_spans, to_mels=padded_to_input, is_mixed=True)


def decode_kinds(path: AnyPath, extraction: Extraction | None) -> Iterator[tuple[bool, torch.Tensor, int]]:
    """Decode a sound, and extract it too.

    Args:
        extraction: which begins; None: it is not wanted.

    Yields:
        whether they are extracted, samples (C, T), and their rate in Hz.

    Raises:
        MediaError: the file cannot be decoded.
    """
    for samples, rate in decode_audio(path, extraction and extraction.add):
        yield False, samples, rate
        if extraction is not None:
            yield from ((True, extracted, EXTRACTED_RATE) for extracted in extraction.take())
    if extraction is not None:
        extraction.add(None)
        yield from ((True, extracted, EXTRACTED_RATE) for extracted in extraction.take())


class SoundReader:
    """Makes the inputs of some recipes of one sound: it takes all samples, then gives the inputs.

    Where the sound is longer than what is held, it is decoded again for its clips.

    Args:
        path: of the sound.
        recipes: that are wanted.
    """

    def __init__(self, path: AnyPath, recipes: Sequence[SoundRecipe]):
        self.path, self.recipes = path, recipes
        self.extraction = self._begin_extraction()
        self._sounds = {False: HeldSound(), True: HeldSound()}  # by whether it is extracted

    def decode(self) -> Iterator[tuple[torch.Tensor, int]]:
        """Decode the sound, take it, and yield what decode_audio does."""
        for is_extracted, samples, rate in decode_kinds(self.path, self.extraction):
            self._sounds[is_extracted].add(samples, rate)
            if not is_extracted:
                yield samples, rate

    def inputs(self) -> list[AudioInput | DroppedError | MediaError]:
        """Return for each recipe its input, or why there is none, when all samples are taken.

        Raises:
            MediaError: there are no samples.
        """
        if not self._sounds[False].n_samples:
            raise MediaError(self.path, "no audio samples")
        cutters = [self._attempt(self._make_cutter, recipe) for recipe in self.recipes]
        to_cut = [
            (recipe, cutter)
            for recipe, cutter in zip(self.recipes, cutters, strict=True)
            if isinstance(cutter, ClipCutter) and not self._sounds[recipe.is_extracted].pieces
        ]
        again = decode_kinds(self.path, self._begin_extraction()) if to_cut else ()
        for is_extracted, samples, _ in again:
            for recipe, cutter in to_cut:
                if recipe.is_extracted == is_extracted:
                    cutter.add(recipe.mix(samples))
        return [
            self._attempt(self._make_input, recipe, cutter) if isinstance(cutter, ClipCutter) else cutter
            for recipe, cutter in zip(self.recipes, cutters, strict=True)
        ]

    def _begin_extraction(self) -> Extraction | None:
        return Extraction() if any(recipe.is_extracted for recipe in self.recipes) else None

    def _attempt(self, make: Callable[..., Any], *args: Any) -> Any:
        """Return what is made, or why it cannot be: what one recipe cannot take others may."""
        try:
            with media_errors(self.path):
                try:
                    return make(*args)
                except DroppedError as e:
                    return e
        except MediaError as e:
            return e

    def _make_cutter(self, recipe: SoundRecipe) -> ClipCutter:
        sound = self._sounds[recipe.is_extracted]
        if recipe.is_extracted and (self.extraction.fault is not None or not sound.n_samples):
            fault = self.extraction.fault or "there is no sample at 16 kHz"
            raise DroppedError(f"FFmpeg cannot extract it as t2av wants it: {fault}")
        filter = recipe.filter_for(sound.rate, SAMPLE_RATE)
        n_samples = filter.n_resampled(sound.n_samples)
        recipe.check_length(n_samples)
        return ClipCutter(filter, recipe.spans(n_samples), HeardSamples())

    def _make_input(self, recipe: SoundRecipe, cutter: ClipCutter) -> AudioInput:
        pieces = [recipe.mix(piece) for piece in self._sounds[recipe.is_extracted].pieces]
        clips = cutter.cut(pieces) if pieces else cutter.clips()
        return AudioInput(recipe.to_mels(self.path, clips), flags=cutter.heard.flags)


def read_sounds(
    path: AnyPath, recipes: Sequence[SoundRecipe]
) -> list[AudioInput | DroppedError | MediaError]:
    """Read an audio file, or a video file's sound.

    Returns:
        for each recipe its input, or why the sound cannot be used by it.

    Raises:
        MediaError: the file cannot be decoded, or has no samples.
    """
    with media_errors(path):
        reader = SoundReader(path, recipes)
        for _ in reader.decode():
            pass
        return reader.inputs()


def read_audio(path: AnyPath) -> AudioInput:
    """Read an audio file, or a video file's sound, as the released loader does; raises as load_audio."""
    (audio,) = read_sounds(path, [RELEASED])
    if isinstance(audio, MediaError):
        raise audio
    return audio
