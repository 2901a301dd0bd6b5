"""The names of the released package."""

from __future__ import annotations

import numpy as np
from conftest import MEDIA, reason
from PIL import Image

from imagebind import data
from imagebind.data.video import RGB_MEAN, RGB_STD


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
