"""Media files to inputs: parity with the recorded loaders, and files that are odd or bad."""

from __future__ import annotations

import json
import logging
import math
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from conftest import MEDIA, RATE, TESTS, picture, tone, write_audio, write_video
from PIL import Image

from imagebind import data

AUDIO_INPUTS = np.load(TESTS / "reference" / "audio_inputs.npz")
VIDEO_INPUTS = np.load(TESTS / "reference" / "video_inputs.npz")
VIDEO_FRAMES = json.loads((TESTS / "reference" / "video_frames.json").read_text())


# Parity


@pytest.mark.parametrize("name", AUDIO_INPUTS.files)
def test_audio_input_is_the_released_loaders(name):
    inputs = data.load_and_transform_audio_data([MEDIA / name], "cpu")
    assert inputs.shape == (1, data.AUDIO_CLIPS, 1, data.MEL_BINS, data.MEL_FRAMES)
    lossy_otherwise = name.endswith((".ogg", ".m4a"))  # another decoder made the recorded numbers
    np.testing.assert_allclose(inputs[0], AUDIO_INPUTS[name], rtol=0, atol=1e-3 if lossy_otherwise else 1e-5)


@pytest.mark.parametrize("name", VIDEO_FRAMES)
def test_video_frames_are_the_released_loaders(name):
    timeline = data.packet_timeline(MEDIA / name)
    recorded = VIDEO_FRAMES[name]
    assert timeline.n_frames == recorded["frames"]
    assert timeline.fps == recorded["fps"]
    assert data.clip_frames(timeline.n_frames, timeline.fps) == [tuple(c) for c in recorded["clip_frames"]]


@pytest.mark.parametrize("name", VIDEO_FRAMES)
def test_video_input_is_the_released_loaders(name):
    inputs = data.load_and_transform_video_data([MEDIA / name], "cpu")
    n_clips = data.VIDEO_CLIPS * data.CROPS
    assert inputs.shape == (1, n_clips, 3, data.FRAMES_PER_CLIP, data.SIZE, data.SIZE)
    np.testing.assert_allclose(inputs[0, ..., ::8, ::8], VIDEO_INPUTS[name], rtol=0, atol=1e-5)
    np.testing.assert_allclose(inputs[0].mean((1, 2, 3, 4)), VIDEO_INPUTS[f"{name}:mean"], rtol=0, atol=1e-5)


def test_image_input_is_resized_cropped_and_normalized(tmp_path):
    """The short side goes to 224 by Pillow's bicubic filter, and the centre is cut out."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 450, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    inputs = data.load_and_transform_vision_data([tmp_path / "image.png"], "cpu")
    expected = np.asarray(image.resize((336, 224), Image.BICUBIC).crop((56, 0, 280, 224))) / 255
    expected = (expected - np.array(data.RGB_MEAN)) / np.array(data.RGB_STD)
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


# Time


@pytest.mark.parametrize(("duration", "n_clips"), [(10.0, 3), (10.01, 5), (2.0, 3), (0.3, 5), (7.5, 1)])
def test_clips_spread_evenly_from_start_to_end(duration, n_clips):
    spans = data.clip_spans(duration, n_clips)
    free = max(Fraction(duration) - 2, 0)
    assert spans == [
        (free * k / max(n_clips - 1, 1), free * k / max(n_clips - 1, 1) + 2) for k in range(n_clips)
    ]


@pytest.mark.parametrize(("n_frames", "fps"), [(1, 25.0), (1, 0.1), (3, 0.2), (2, 1000.0), (10**6, 29.97)])
def test_every_clip_has_frames_of_the_video(n_frames, fps):
    for first, last in data.clip_frames(n_frames, fps):
        assert 0 <= first <= last < n_frames


# Sound


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_every_sample_format_gives_the_same_waveform(tmp_path, codec):
    samples = np.stack([tone(0.5, 300), tone(0.5, 700)])
    waveform = data.load_waveform(write_audio(tmp_path / "x.wav", samples, codec=codec))
    assert waveform.shape == samples.shape
    np.testing.assert_allclose(waveform, samples, atol=1.01 / 128 if codec == "pcm_u8" else 1.01 / 32768)


def test_the_first_channel_counts(tmp_path):
    samples = np.stack([tone(1, 300), tone(1, 3000)])
    both = data.load_audio(write_audio(tmp_path / "both.wav", samples))
    first = data.load_audio(write_audio(tmp_path / "first.wav", samples[0]))
    other = data.load_audio(write_audio(tmp_path / "other.wav", samples[1]))
    assert (both - first).abs().mean() < 0.01 < 0.2 < (both - other).abs().mean()


def test_a_sound_under_one_frame_is_padded_and_named(tmp_path, caplog):
    path = write_audio(tmp_path / "click.wav", tone(0.01))
    inputs = data.load_audio(path)
    assert inputs.shape == (3, 1, 128, 204)
    assert inputs.isfinite().all()
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: 10.0 ms of sound, padded with silence to 25"
    ]


def test_a_sound_of_one_frame_is_not_padded(tmp_path, caplog):
    data.load_audio(write_audio(tmp_path / "x.wav", tone(0.025)))
    assert not caplog.records


def test_the_sound_of_a_video_file_is_read(tmp_path):
    with av.open(str(tmp_path / "both.mkv"), "w") as container:
        video = container.add_stream("mpeg4", rate=20)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for i in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(i), "rgb24")))
        frame = av.AudioFrame.from_ndarray((tone(1)[None] * 32767).astype(np.int16), "s16", "mono")
        frame.sample_rate = RATE
        container.mux(audio.encode(frame))
        container.mux([*video.encode(None), *audio.encode(None)])
    alone = write_audio(tmp_path / "alone.wav", tone(1), codec="pcm_s16le")
    waveform, expected = data.load_waveform(tmp_path / "both.mkv"), data.load_waveform(alone)
    np.testing.assert_allclose(waveform, expected, atol=1.01 / 32768)
    assert data.load_video(tmp_path / "both.mkv").shape == (15, 3, 2, 224, 224)


# Pictures


def brightness(frame: torch.Tensor) -> int:
    """Give the number that conftest.picture wrote into a frame (3, H, W) uint8."""
    return round((frame[:, -10:, -10:].float().mean().item() - 20) / 2)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".mp4", "libx264"),
        (".mp4", "libx265"),
        (".mkv", "libsvtav1"),
        (".webm", "libvpx"),
        (".avi", "mpeg4"),
        (".avi", "libx264"),
        (".flv", "libx264"),
    ],
)
def test_frames_are_found_by_number(tmp_path, suffix, codec):
    """Frames come in display order, whatever order they are coded in."""
    path = write_video(tmp_path / f"x{suffix}", [picture(i) for i in range(60)], codec)
    timeline = data.packet_timeline(path)
    assert (timeline.n_frames, timeline.fps) == (60, 20.0)
    wanted = {0, 1, 17, 44, 59}
    found = {number: brightness(frame) for number, frame in data.read_frames(path, timeline, wanted)}
    assert found == {number: pytest.approx(number, abs=1) for number in wanted}


def test_frames_without_timestamps_are_counted(tmp_path):
    path = write_video(tmp_path / "x.mp4", [picture(i) for i in range(40)])
    counted = data.decoded_timeline(path)
    assert counted == data.Timeline(40, 20.0, None)
    named = data.packet_timeline(path)
    for timeline in (counted, named):
        found = {number: brightness(frame) for number, frame in data.read_frames(path, timeline, {3, 30})}
        assert found == {3: pytest.approx(3, abs=1), 30: pytest.approx(30, abs=1)}


def test_repeated_timestamps_name_no_frame(tmp_path):
    """An H.264 stream without a container that keeps time has none; numbers are counted then."""
    path = write_video(tmp_path / "x.h264", [picture(i) for i in range(40)], options={"bf": "0"})
    timeline = data.packet_timeline(path)
    assert timeline.timestamps is None
    found = {number: brightness(frame) for number, frame in data.read_frames(path, timeline, {25})}
    assert found == {25: pytest.approx(25, abs=1)}


def test_variable_frame_rate_counts_frames(tmp_path):
    times = [40 * i if i < 20 else 800 + 120 * (i - 20) for i in range(40)]
    path = write_video(tmp_path / "x.mkv", [picture(i) for i in range(40)], pts=times)
    timeline = data.packet_timeline(path)
    assert timeline.n_frames == 40
    found = {number: brightness(frame) for number, frame in data.read_frames(path, timeline, {10, 39})}
    assert found == {10: pytest.approx(10, abs=1), 39: pytest.approx(39, abs=1)}


def test_frames_that_the_decoder_does_not_show_are_not_counted(tmp_path):
    """A stream cut before its first key frame: the packets announce frames that never show."""
    whole = write_video(
        tmp_path / "whole.mkv",
        [picture(i) for i in range(60)],
        options={"g": "20", "bf": "0", "sc_threshold": "0"},
    )
    path = tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[5:]:
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with pytest.raises(data.TimelineError):
        list(data.read_frames(path, data.packet_timeline(path), {0}))
    assert data.decoded_timeline(path).n_frames == 40
    expected = data.load_video(write_video(tmp_path / "kept.mkv", [picture(i) for i in range(20, 60)]))
    assert (data.load_video(path) - expected).abs().mean() < 0.05


@pytest.mark.parametrize(("rotation", "corner"), [(90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_frames_are_turned_upright(tmp_path, rotation, corner):
    """The corner that is white as coded goes where the display matrix turns it, counter-clockwise."""
    path = write_video(tmp_path / "x.mp4", [picture(0)] * 5, rotation=rotation)
    ((_, frame),) = data.read_frames(path, data.packet_timeline(path), {2})
    assert frame.shape == ((3, 64, 96) if rotation == 180 else (3, 96, 64))
    corners = {(0, 0), (0, 1), (1, 0), (1, 1)}
    values = {(y, x): frame[:, -y * 5 : 5 - y * 5 or None, -x * 5 : 5 - x * 5 or None] for y, x in corners}
    white = {at for at, pixels in values.items() if pixels.float().mean() > 200}
    assert white == {corner}


@pytest.mark.parametrize("shape", [(224, 400), (400, 224), (225, 225), (64, 97), (101, 66), (224, 224)])
def test_resize_and_crops_match_torchvision(shape):
    """Against the plain way: interpolate whole, slice at start, centre (rounded up) and end."""
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8))
    resized = data.resize_short_side(frame)
    long = math.floor(max(shape) / min(shape) * 224)
    assert sorted(resized.shape[1:]) == sorted((224, long))
    crops = data.three_crops(resized)
    along = resized if shape[1] >= shape[0] else resized.transpose(1, 2)
    for crop, start in zip(crops, (0, math.ceil((long - 224) / 2), long - 224), strict=True):
        expected = along[:, :, start : start + 224]
        assert torch.equal(crop, expected if shape[1] >= shape[0] else expected.transpose(1, 2))


def test_the_best_video_stream_is_taken(tmp_path):
    """The one that the container calls its default, as ffmpeg chooses, not the first."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width in (32, 96):
            stream = container.add_stream("mpeg4", rate=20)
            stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
            streams.append(stream)
        streams[0].disposition, streams[1].disposition = Disposition(0), Disposition.default
        for i in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(picture(i, 64, stream.width), "rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    ((_, frame),) = data.read_frames(path, data.packet_timeline(path), {0})
    assert frame.shape == (3, 64, 96)


# Bad files


def reason(load, path) -> str:
    with pytest.raises(data.MediaError) as caught:
        load(path)
    assert caught.value.path == str(path)
    assert "\n" not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("load", [data.load_audio, data.load_video])
def test_a_file_that_is_no_media_gives_a_reason(tmp_path, load):
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    assert reason(load, tmp_path / "missing.mp4") == "No such file or directory"
    assert reason(load, tmp_path / "folder.mp4") == "Is a directory"
    assert reason(load, tmp_path / "text.mp4") == "Invalid data found when processing input"
    assert reason(load, tmp_path / "empty.mp4") == "the file is empty"


def test_an_image_that_is_none_gives_a_reason(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    assert "cannot identify" in reason(
        lambda p: data.load_and_transform_vision_data([p], "cpu"), tmp_path / "text.png"
    )


def test_a_missing_stream_gives_a_reason(tmp_path):
    assert reason(data.load_video, write_audio(tmp_path / "x.wav", tone(1))) == "no video stream"
    assert reason(data.load_audio, write_video(tmp_path / "x.mp4", [picture(0)])) == "no audio stream"


def test_a_cover_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        cover = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), "rgb24")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(1)[None], "fltp", "mono")
        frame.sample_rate = RATE
        container.mux([*audio.encode(frame), *audio.encode(None)])
    assert reason(data.load_video, path) == "no video stream"
    assert data.load_audio(path).isfinite().all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_give_a_reason(tmp_path, bad):
    samples = tone(1)
    samples[5000] = bad
    assert reason(data.load_audio, write_audio(tmp_path / "x.wav", samples)) == "NaN or infinite samples"


def test_a_sound_without_samples_gives_a_reason(tmp_path):
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
    assert reason(data.load_audio, tmp_path / "x.wav") == "no audio samples"


def test_a_playlist_opens_no_other_file(tmp_path):
    """A text that FFmpeg takes for a list of files must not make it read them."""
    secret = write_audio(tmp_path / "secret.wav", tone(1))
    (tmp_path / "list.wav").write_text(f"ffconcat version 1.0\nfile '{secret.name}'\n")
    (tmp_path / "list.ogg").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    assert reason(data.load_audio, tmp_path / "list.wav")
    assert reason(data.load_audio, tmp_path / "list.ogg")


def test_an_address_is_a_file_name(tmp_path, monkeypatch):
    write_audio(tmp_path / "x.wav", tone(1))
    monkeypatch.chdir(tmp_path)
    assert reason(data.load_audio, "concat:x.wav") == "No such file or directory"


def test_warnings_go_to_the_packages_log():
    assert data.log.name.split(".")[0] == "imagebind"
    assert isinstance(data.log, logging.Logger)
