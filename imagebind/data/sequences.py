"""Every frame of a video, and the sliding windows of a sound, in parts: long ones need no more memory.

What else is wanted of the file comes from the same reading. Frames are prepared as the released loader
prepares an image; windows, as it prepares a sound of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
import numpy as np
import torch

from imagebind import packages
from imagebind.data.audio import (
    AUDIO_CLIPS,
    BUFFERED_SECONDS,
    SAMPLE_RATE,
    AudioInput,
    clips_to_input,
)
from imagebind.data.frames import Timeline, duration_of, packet_timeline, rgb_array
from imagebind.data.inputs import DroppedError, ModelInput
from imagebind.data.media import AnyPath, MediaError, decode, media_errors, open_stream
from imagebind.data.resampling import make_filter
from imagebind.data.samples import decode_audio
from imagebind.data.sounds import RELEASED, SoundReader, SoundRecipe
from imagebind.data.video import (
    SIZE,
    ChosenFrames,
    ClipRecipe,
    VideoInput,
    normalize_rgb,
    read_clips,
    scaled_shape,
)
from imagebind.sources import Source

if TYPE_CHECKING:
    from PIL import Image

WINDOW_SAMPLES, WINDOW_HOP = 2 * SAMPLE_RATE, SAMPLE_RATE // 2  # windows of 2 s that overlap by 1.5 s
PART_SIZE = 64  # frames or windows that are handed over together
FRAMES_PER_SIGN = 250  # that may be decoded without handing over anything


def scale_and_crop(image: Image.Image) -> torch.Tensor:
    """Scale an image and take its middle, (224, 224, 3) uint8, as the released loader does.

    Raises:
        UnsupportedError: it is too long and narrow.
    """
    height, width = scaled_shape(image.height, image.width)
    scaled = image.resize((width, height), packages.load("PIL.Image").Resampling.BICUBIC)
    top, left = (round((side - SIZE) / 2) for side in (height, width))  # a half to the even number
    return torch.from_numpy(np.array(scaled.crop((left, top, left + SIZE, top + SIZE))))


@dataclass(frozen=True)
class ImageInput(ModelInput):
    """A picture as the model sees it."""

    pixels: torch.Tensor  # (224, 224, 3) uint8
    counts = {0: 1}  # noqa: RUF012 (one clip, which occurs once)

    def clips(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return the picture on a device, (1, 3, 2, 224, 224): the model takes it twice."""
        pixels = self.pixels.to(device, non_blocking=True).permute(2, 0, 1).contiguous()
        image = normalize_rgb(pixels.float().div_(255))
        return image[None, :, None].expand(-1, -1, 2, -1, -1)


@dataclass(frozen=True)
class FramesPart(ModelInput):
    """Some of the distinct frames of a video, in order."""

    pixels: torch.Tensor  # (F, 224, 224, 3) uint8

    def split(self) -> list[ImageInput]:
        return [ImageInput(pixels) for pixels in self.pixels]


@dataclass(frozen=True)
class WindowsPart(ModelInput):
    """Some of the windows of a sound, in order."""

    mels: torch.Tensor  # (W, 3, 1, 128, 204)

    def split(self) -> list[AudioInput]:
        return [AudioInput(mels) for mels in self.mels]


@dataclass(frozen=True)
class FrameFacts:
    """What is known of the frames of a video beside their pixels."""

    fps: float
    index: tuple[int, ...]  # of each frame which of the distinct ones it is
    times: tuple[float, ...]  # when each frame begins, in seconds from the start of the file
    duration: float  # of the last frame, in seconds

    @property
    def n_rows(self) -> int:
        """How many distinct frames there are."""
        return 1 + max(self.index)


@dataclass(frozen=True)
class WindowFacts:
    """What is known of the windows of a sound beside their samples; there are none in one of up to 2 s."""

    is_silent: tuple[bool, ...]  # of each window whether all its samples are 0
    whole_is_silent: bool
    seconds: float  # of the whole sound

    @property
    def n_rows(self) -> int:
        """How many windows there are."""
        return len(self.is_silent)


@dataclass(frozen=True)
class WholeVideo:
    """What comes of a video after its frames."""

    facts: FrameFacts
    clips: list[VideoInput | DroppedError]  # what read_clips returns for the recipes


def read_whole_video(
    path: AnyPath, recipes: Sequence[ClipRecipe]
) -> Iterator[FramesPart | WholeVideo | None]:
    """Decode all of a video; equal frames are handed over once.

    Yields:
        parts, then the rest; None now and then where no new frame comes, as a sign of life.

    Raises:
        MediaError: the file cannot be decoded, shows no frame, or one of an extreme shape.
    """
    with media_errors(path):
        with open_stream(path, "video") as stream:
            timeline = packet_timeline(stream)
        chosen = ChosenFrames(path, timeline, recipes)
        watched = WatchedFrames(timeline, chosen.numbers)
        number_of, index, waiting = {}, [], []
        with open_stream(path, "video") as stream:
            fps, times, duration = chosen.fps, [], 0.0
            begins = (stream.container.start_time or 0) / av.time_base
            for number, frame in watched.count(decode(stream)):
                if not 0 <= number - chosen.first < chosen.n_frames:
                    continue
                chosen.take(number, frame)
                pixels = prepare_image(frame)
                digest = hashlib.blake2b(pixels.numpy(), digest_size=16).digest()
                if digest not in number_of:
                    number_of[digest] = len(number_of)
                    waiting.append(pixels)
                index.append(number_of[digest])
                times.append(number / fps if frame.time is None else frame.time - begins)
                duration = float(duration_of(frame, timeline) * frame.time_base) or 1 / fps
                if len(waiting) == PART_SIZE:
                    yield FramesPart(torch.stack(waiting))
                    waiting.clear()
                elif len(index) % FRAMES_PER_SIGN == 0:
                    yield None
        if not index:
            raise MediaError(path, "no video frames")
        if waiting:
            yield FramesPart(torch.stack(waiting))
        if Source.of(path).is_part:
            if not watched.is_as_listed:
                raise MediaError(path, "damaged: its frames cannot be told by their times")
            times = [time - times[0] for time in times]
        # Where it is damaged, or no times name its frames, what is picked above may be other frames.
        is_right = watched.is_as_listed or not recipes
        clips = chosen.inputs() if is_right else read_clips(path, recipes)
        yield WholeVideo(FrameFacts(fps, tuple(index), tuple(times), duration), clips)


class WatchedFrames:
    """Counts decoded frames, and notices when they are not those that the timeline lists."""

    def __init__(self, timeline: Timeline, wanted: set[int]):
        self.timeline, self.wanted = timeline, wanted
        self.expected = [pts for pts, _ in timeline.times] if timeline.has_times else None
        self.is_as_listed, self.n = True, 0

    def count(self, frames: Iterator[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        for number, frame in enumerate(frames):
            self.n = number + 1
            if frame.is_corrupt and number in self.wanted:
                self.is_as_listed = False
            if self.expected is not None and self.expected[number : number + 1] != [frame.pts]:
                self.is_as_listed = False
            yield number, frame
        self.is_as_listed &= self.n == self.timeline.n_frames


def prepare_image(frame: av.VideoFrame) -> torch.Tensor:
    """Scale and crop a frame as Pillow does, (224, 224, 3) uint8; not rotated: neither do the evaluators."""
    return scale_and_crop(packages.load("PIL.Image").fromarray(rgb_array(frame)))


@dataclass(frozen=True)
class WholeSound:
    """What comes of a sound after its windows."""

    facts: WindowFacts
    clips: list[AudioInput | DroppedError | MediaError]  # what read_sounds returns for the recipes


def read_whole_sound(
    path: AnyPath, recipes: Sequence[SoundRecipe] = (RELEASED,)
) -> Iterator[WindowsPart | WholeSound]:
    """Cut all of a sound into windows of 2 s, one every half second; the last one ends with the sound.

    The mean of a window is subtracted three times, and in place: a window sees the shifts of those before it
    that it overlaps. So it is in the evaluator, and on copies a score differs by up to 4e-4.

    Yields:
        parts, then the rest.

    Raises:
        MediaError: as load_audio.
    """
    with media_errors(path):
        sound = SoundReader(path, recipes)
        reader, waiting = WindowReader(path), []
        for mels in reader.windows(resampled_pieces(path, sound.decode())):
            waiting.append(mels)
            if len(waiting) == PART_SIZE:
                yield WindowsPart(torch.stack(waiting))
                waiting.clear()
        if waiting:
            yield WindowsPart(torch.stack(waiting))
        yield WholeSound(
            WindowFacts(tuple(reader.is_silent), reader.whole_is_silent, reader.n_samples / SAMPLE_RATE),
            sound.inputs(),
        )


def resampled_pieces(
    path: AnyPath, decoded: Iterable[tuple[torch.Tensor, int]] | None = None
) -> Iterator[torch.Tensor]:
    """Resample all of a sound to SAMPLE_RATE, in bounded memory: one of up to BUFFERED_SECONDS in one piece.

    Args:
        decoded: what decode_audio yields for the path, if somebody else decodes it.

    Yields:
        (C, T), in order; together the whole resampled sound.

    Raises:
        MediaError: the file cannot be decoded, or has no samples.
    """
    held, begin, end, n_done = [], 0, 0, 0  # `held` are the file's samples [begin, end)
    for samples, rate in decode_audio(path) if decoded is None else decoded:
        held.append(samples)
        end += samples.shape[1]
        if end - begin > BUFFERED_SECONDS * rate:
            filter = make_filter(rate, SAMPLE_RATE)
            step, new = filter.step, filter.new
            stop = (end - filter.margin) // step  # in steps
            whole = torch.cat(held, dim=1)
            offset = begin // step * new
            yield filter.apply(whole)[:, n_done - offset : stop * new - offset]
            n_done = stop * new
            kept = max(stop * step - filter.margin, 0) // step * step
            held, begin = [whole[:, kept - begin :]], kept
    if not end:
        raise MediaError(path, "no audio samples")
    filter = make_filter(rate, SAMPLE_RATE)
    yield filter.apply(torch.cat(held, dim=1))[:, n_done - begin // filter.step * filter.new :]


class WindowReader:
    """Cuts a sound into windows; afterwards it knows which of them are silent.

    Attributes:
        is_silent: of each window whether all its samples are 0.
        whole_is_silent: whether all samples are.
        n_samples: of the whole sound.
    """

    def __init__(self, path: AnyPath):
        self.path, self.is_silent, self.whole_is_silent, self.n_samples = path, [], True, 0

    def windows(self, pieces: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the mels (3, 1, 128, 204) of each window; of a sound of up to 2 s none."""
        held, is_zero = torch.empty(0), torch.empty(0)  # samples from number `begin` on
        begin, start = 0, 0  # the next window begins at `start`
        for piece in pieces:
            zeros = (piece == 0).all(0)
            self.whole_is_silent &= bool(zeros.all())
            if self.n_samples == 0:
                held, is_zero = piece, zeros
            else:
                held, is_zero = torch.cat([held, piece], dim=1), torch.cat([is_zero, zeros])
            self.n_samples += piece.shape[1]
            while start + WINDOW_SAMPLES < begin + held.shape[1]:
                yield self._window(held, is_zero, start - begin)
                start += WINDOW_HOP
            kept = max(start - WINDOW_HOP - begin, 0)
            held, is_zero, begin = held[:, kept:], is_zero[kept:], begin + kept
        if start:  # the last window ends with the sound
            yield self._window(held, is_zero, held.shape[1] - WINDOW_SAMPLES)

    def _window(self, held: torch.Tensor, is_zero: torch.Tensor, start: int) -> torch.Tensor:
        samples = slice(start, start + WINDOW_SAMPLES)
        self.is_silent.append(bool(is_zero[samples].all()))
        return clips_to_input(self.path, [held[:, samples]] * AUDIO_CLIPS)
