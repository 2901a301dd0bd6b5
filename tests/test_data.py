"""The names of the released package."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import MEDIA, RATE, picture, reason, tone, write_audio, write_video
from PIL import Image
from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler

from imagebind import data
from imagebind.data.clips import clip_spans
from imagebind.data.video import RGB_MEAN, RGB_STD, resize_short_side


def test_image_input_is_resized_cropped_and_normalized(tmp_path):
    """The short side goes to 224 by Pillow's bicubic filter, and the centre is cut out."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 450, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    inputs = data.load_and_transform_vision_data([tmp_path / "image.png"], "cpu")
    expected = np.asarray(image.resize((336, 224), Image.BICUBIC).crop((56, 0, 280, 224))) / 255
    expected = (expected - np.array(RGB_MEAN)) / np.array(RGB_STD)
    np.testing.assert_allclose(inputs[0].permute(1, 2, 0), expected, atol=1e-5)


def test_no_paths_give_no_input():
    assert data.load_and_transform_audio_data(None, "cpu") is None
    assert data.load_and_transform_video_data(None, "cpu") is None
    assert data.load_and_transform_vision_data(None, "cpu") is None


def test_released_options_are_taken():
    audio = data.load_and_transform_audio_data(
        [MEDIA / "mono_16k_5s.wav"],
        "cpu",
        num_mel_bins=64,
        target_length=100,
        clip_duration=1,
        clips_per_video=2,
    )
    assert audio.shape == (1, 2, 1, 64, 100)
    video = data.load_and_transform_video_data([MEDIA / "square_mpeg4_6s.avi"], "cpu", clips_per_video=2)
    assert video.shape == (1, 6, 3, 2, 224, 224)


def test_an_image_that_is_none_gives_a_reason(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    assert "cannot identify" in reason(
        lambda p: data.load_and_transform_vision_data([p], "cpu"), tmp_path / "text.png"
    )


def test_a_clip_of_four_seconds_has_four_frames(tmp_path):
    """Evenly spread over it, rounded down; the same as by hand with the public parts."""
    images = [picture(i, 70, 90) for i in range(100)]
    path = write_video(tmp_path / "x.mkv", images, codec="ffv1", fps=12, pix_fmt="bgr0")
    found = data.load_and_transform_video_data([path], "cpu", clip_duration=4)
    assert found.shape == (1, 15, 3, 4, 224, 224)
    normalize, crop = data.NormalizeVideo(RGB_MEAN, RGB_STD), data.SpatialCrop(224, num_crops=3)
    videos = []
    for start, end in clip_spans(100 / 12, 5, 4):
        first, after = math.ceil(12.0 * start), min(math.ceil(12.0 * end), 100)
        assert after - first in (47, 48)
        numbers = [first + i for i in ((0, 15, 31, 47) if after - first == 48 else (0, 15, 30, 46))]
        frames = [torch.from_numpy(images[number]).permute(2, 0, 1) for number in numbers]
        videos.append(normalize(torch.stack([resize_short_side(frame) for frame in frames], dim=1)))
    assert torch.equal(found[0], torch.stack(crop(videos)))


@pytest.mark.parametrize(
    ("seconds", "error"), [(1.5, TypeError), (2.0, TypeError), ("2", TypeError), (0, ValueError)]
)
def test_the_frames_of_a_clip_are_a_whole_number(seconds, error):
    with pytest.raises(error, match="a clip takes"):
        data.load_and_transform_video_data([MEDIA / "square_mpeg4_6s.avi"], "cpu", clip_duration=seconds)


def test_a_clip_of_one_second_has_one_frame():
    one = data.load_and_transform_video_data([MEDIA / "square_mpeg4_6s.avi"], "cpu", clip_duration=1)
    assert one.shape == (1, 15, 3, 1, 224, 224)


@pytest.mark.parametrize(("height", "width"), [(6, 11), (11, 6), (8, 8), (6, 6)])
def test_crops_are_start_centre_and_end_of_the_long_side(height, width):
    video = torch.arange(2 * 3 * height * width).view(2, 3, height, width)
    top, left = math.ceil((height - 6) / 2), math.ceil((width - 6) / 2)
    corners = [(0, left), (top, left), (height - 6, left)]
    if height <= width:
        corners = [(top, 0), (top, left), (top, width - 6)]
    expected = [video[:, :, y : y + 6, x : x + 6] for y, x in corners]
    found = data.SpatialCrop(6)([video, video + 1])
    assert len(found) == 6
    for i in range(3):
        assert torch.equal(found[i], expected[i])
        assert torch.equal(found[3 + i], expected[i] + 1)
    (centre,) = data.SpatialCrop(6, num_crops=1)([video])
    assert torch.equal(centre, expected[1])


def test_crops_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="num_crops is 1 or 3, not 2"):
        data.SpatialCrop(6, num_crops=2)
    for shape in ((3, 2, 5, 9), (2, 9, 9)):
        with pytest.raises(ValueError, match="H and W at least 6"):
            data.SpatialCrop(6)([torch.zeros(shape)])


def test_normalizing_takes_the_channels_of_a_video():
    video = torch.rand(3, 2, 4, 5)
    expected = (video - torch.tensor(RGB_MEAN)[:, None, None, None]) / torch.tensor(RGB_STD)[
        :, None, None, None
    ]
    before = video.clone()
    assert torch.equal(data.NormalizeVideo(mean=RGB_MEAN, std=RGB_STD)(video), expected)
    assert torch.equal(video, before)
    data.NormalizeVideo(RGB_MEAN, RGB_STD, inplace=True)(video)
    assert torch.equal(video, expected)


def test_a_sound_by_hand_is_that_of_the_loader(tmp_path):
    """Of three clips that overlap, whose means are subtracted in place one after the other."""
    samples = tone(3.3, 300) + 0.1 * tone(3.3, 21) + 0.05
    path = write_audio(tmp_path / "x.wav", samples)
    waveform = torch.from_numpy(samples)[None].clone()
    mels = []
    for start, end in clip_spans(waveform.shape[1] / RATE, 3, 2):
        clip = waveform[:, int(start * RATE) : int(end * RATE)]
        mels.append(data.waveform2melspec(clip, RATE, 128, 204))
        assert abs(clip.mean()) < 1e-6
    by_hand = (torch.stack(mels) - data.MEL_MEAN) / data.MEL_STD
    assert torch.equal(by_hand, data.load_and_transform_audio_data([path], "cpu")[0])
    assert data.waveform2melspec(waveform, RATE, 64, 100).shape == (1, 64, 100)


def test_timepoints_are_those_of_a_sampler():
    spans = data.get_clip_timepoints(ConstantClipsPerVideoSampler(clip_duration=2, clips_per_video=3), 8.0)
    assert spans == [(0, 2), (2, 4), (4, 6)]  # pytorchvideo's, which do not reach the end
    assert clip_spans(8.0, 3) == [(0, 2), (3, 5), (6, 8)]
    sampler = ConstantClipsPerVideoSampler(clip_duration=2, clips_per_video=4)
    for duration in (0.5, 10 / 3, 8.0):  # one sampler serves many files
        spans = data.get_clip_timepoints(sampler, duration)
        assert len(spans) == 4
        assert all(a <= b for (a, _), (b, _) in pairwise(spans))
