"""What is embedded of a file: one embedding, or a sequence of them."""

from __future__ import annotations

from dataclasses import dataclass

from imagebind.data.mmaudio import FRAME_RATE, SYNCHRONY_RATE, mmaudio_clips, mova_clips, n_wanted
from imagebind.data.reward import reward_clips
from imagebind.data.sounds import EXTRACTED, RELEASED, REWARD, SoundRecipe, mova_sound
from imagebind.data.video import ClipRecipe, imagebind_clips


@dataclass(frozen=True)
class Feature:
    """Something that is embedded of a file.

    Args:
        name: of it in the cache; raise the cache's RECIPE where the same name gets other inputs.
        modality: of the file.
        is_sequence: it is a row for each frame or window, and not one embedding.
        clips: of a video, whose embedding is the mean of theirs.
        sound: how the clips of a sound are made, whose embedding is the mean of theirs.
    """

    name: str
    modality: str
    is_sequence: bool = False
    clips: ClipRecipe | None = None
    sound: SoundRecipe | None = None


AUDIO = Feature("audio", "audio", sound=RELEASED)  # as the released loader takes it
VIDEO = Feature("video", "video", clips=imagebind_clips())
TEXT = Feature("text", "text")
AUDIO_WINDOWS = Feature("audio_windows", "audio", is_sequence=True)
AUDIO_REWARD = Feature("audio_reward", "audio", sound=REWARD)
AUDIO_EXTRACTED = Feature("audio_t2av", "audio", sound=EXTRACTED)
VIDEO_REWARD = Feature("video_reward", "video", clips=reward_clips())
VIDEO_FRAMES = Feature("video_frames", "video", is_sequence=True)


def mmaudio_video(seconds: float) -> Feature:
    """Return what av-benchmark's IB-score takes of a video, for a duration in seconds."""
    n_frames = [n_wanted(rate, seconds) for rate in (FRAME_RATE, SYNCHRONY_RATE)]  # all that it changes
    return Feature("video_mmaudio_{}_{}".format(*n_frames), "video", clips=mmaudio_clips(seconds))


def mova_audio(seconds: float) -> Feature:
    """Return what MOVA's evaluator takes of a sound, which has to have a duration in seconds."""
    recipe = mova_sound(seconds)
    return Feature(f"audio_mova_{recipe.n_needed}", "audio", sound=recipe)


def mova_video(seconds: float) -> Feature:
    """Return what MOVA's evaluator takes of a video, for a duration in seconds."""
    return Feature(f"video_mova_{n_wanted(FRAME_RATE, seconds)}", "video", clips=mova_clips(seconds))
