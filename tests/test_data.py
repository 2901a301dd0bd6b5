"""Media files to inputs: parity with the recorded loaders, and files that are odd or bad."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from conftest import MEDIA, RATE, TESTS, picture, silence, tone, write_audio, write_video
from PIL import Image

from imagebind import data

AUDIO_INPUTS = np.load(TESTS / "reference" / "audio_inputs.npz")
VIDEO_INPUTS = np.load(TESTS / "reference" / "video_inputs.npz")
VIDEO_FRAMES = json.loads((TESTS / "reference" / "video_frames.json").read_text())


def timeline_of(path) -> data.Timeline:
    with data.open_stream(path, "video") as stream:
        return data.packet_timeline(stream)


def frames_of(path, numbers) -> dict[int, torch.Tensor]:
    """Read frames as files with times are read, by seeking."""
    with data.open_stream(path, "video") as stream:
        return dict(data.read_frames(stream, data.packet_timeline(stream), set(numbers)))


# Parity


@pytest.mark.parametrize("name", AUDIO_INPUTS.files)
def test_audio_input_is_the_released_loaders(name):
    inputs = data.load_and_transform_audio_data([MEDIA / name], "cpu")
    assert inputs.shape == (1, data.AUDIO_CLIPS, 1, data.MEL_BINS, data.MEL_FRAMES)
    lossy_otherwise = name.endswith((".ogg", ".m4a"))  # another decoder made the recorded numbers
    # Below a millionth of the frame's loudest bin is but the rounding of its Fourier transform, which is
    # another on another processor.
    expected = AUDIO_INPUTS[name]
    level = (expected - expected.max(axis=-2, keepdims=True)) * data.MEL_STD  # (3, 1, 128, 204), ln of energy
    tolerance = np.where((level < np.log(1e-6)) | lossy_otherwise, 1e-3, 1e-5)
    assert (np.abs(inputs[0].numpy() - expected) <= tolerance).all()


@pytest.mark.parametrize("name", VIDEO_FRAMES)
def test_video_frames_are_the_released_loaders(name):
    timeline = timeline_of(MEDIA / name)
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


def moving(n: int) -> list[np.ndarray]:
    """n pictures that move sideways and tell their number."""
    return [np.maximum(picture(i), np.roll(TEXTURE, 3 * i, axis=1)) for i in range(n)]


TEXTURE = np.random.default_rng(0).integers(0, 20, (64, 96, 3), dtype=np.uint8)
CODED = [  # suffix, codec, options, whether the container keeps times
    (".mp4", "libx264", {}, True),
    (".mkv", "libx264", {"g": "12"}, True),
    (".mp4", "libx264", {"x264-params": "keyint=25:open-gop=1:bframes=3:b-pyramid=normal:scenecut=0"}, True),
    (".mkv", "libx264", {"x264-params": "keyint=25:open-gop=1:bframes=3:scenecut=0"}, True),
    (".mov", "libx264", {"g": "1"}, True),
    (".flv", "libx264", {"g": "20"}, True),
    (".avi", "libx264", {"g": "20"}, False),
    (".avi", "libx264", {"g": "20", "bf": "0"}, True),
    (".mp4", "libx265", {"x265-params": "keyint=30:open-gop=1:temporal-layers=3:log-level=none"}, True),
    (".webm", "libvpx", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}, True),
    (".webm", "libvpx-vp9", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}, True),
    (".mkv", "libsvtav1", {"g": "32"}, True),
    (".avi", "mpeg4", {"g": "20", "bf": "2"}, False),
    (".mkv", "mpeg4", {"g": "20", "bf": "2"}, True),
    (".flv", "flv", {"g": "20"}, True),
]


@pytest.mark.parametrize(("suffix", "codec", "options", "has_times"), CODED)
def test_frames_read_by_seeking_are_those_of_decoding_all(tmp_path, suffix, codec, options, has_times):
    """Bit for bit, with B-frames, open groups of pictures and hidden frames; skipping loses nothing."""
    path = write_video(tmp_path / f"x{suffix}", moving(100), codec, options=options)
    wanted = {0, 1, 7, 33, 49, 50, 51, 77, 98, 99}
    with data.open_stream(path, "video") as stream:
        expected = {n: data.to_rgb(f) for n, f in enumerate(stream.container.decode(stream)) if n in wanted}
    timeline = timeline_of(path)
    assert (timeline.n_frames, timeline.fps, timeline.has_times) == (100, 20.0, has_times)
    found = frames_of(path, wanted) if has_times else dict(data.count_frames(path, wanted))
    assert {n for n in wanted if torch.equal(found[n], expected[n])} == wanted
    assert [brightness(found[n]) for n in sorted(wanted)] == pytest.approx(sorted(wanted), abs=1)


def test_decoding_starts_at_key_frames_and_leaves_out_what_nothing_needs(tmp_path, monkeypatch):
    """Ten frames of a long video cost its key-frame intervals, not its length."""
    path = write_video(
        tmp_path / "x.mp4", moving(100) * 10, options={"g": "20", "bf": "2", "sc_threshold": "0"}
    )
    sent = []
    decode = data.decode_packet
    monkeypatch.setattr(data, "decode_packet", lambda packet, skip: sent.append(skip) or decode(packet, skip))
    data.load_video(path)
    assert len(sent) <= 10 * 20
    assert sent.count("NONREF") > sent.count("DEFAULT")


def test_times_that_are_missing_name_no_frame(tmp_path):
    path = write_video(tmp_path / "x.h264", [picture(i) for i in range(40)], options={"bf": "0"})
    assert not timeline_of(path).has_times
    expected = data.load_video(write_video(tmp_path / "x.mkv", [picture(i) for i in range(40)]))
    assert data.load_video(path).shape == expected.shape


def test_a_variable_frame_rate_counts_frames(tmp_path):
    times = [40 * i if i < 20 else 800 + 120 * (i - 20) for i in range(40)]
    path = write_video(tmp_path / "x.mkv", [picture(i) for i in range(40)], pts=times)
    assert timeline_of(path).n_frames == 40
    found = {number: brightness(frame) for number, frame in frames_of(path, {10, 39}).items()}
    assert found == {10: pytest.approx(10, abs=1), 39: pytest.approx(39, abs=1)}


def cut_packets(whole, path, drop: int) -> None:
    """Copy a video without its first packets."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[drop:]:
            if packet.size:
                packet.stream = stream
                target.mux(packet)


def test_frames_that_the_decoder_does_not_show_are_not_counted(tmp_path):
    """A stream cut before its first key frame: the packets announce frames that never show."""
    options = {"g": "20", "bf": "0", "sc_threshold": "0"}
    whole = write_video(tmp_path / "whole.mkv", [picture(i) for i in range(60)], options=options)
    path = tmp_path / "cut.mkv"
    cut_packets(whole, path, 5)
    with pytest.raises(data.TimelineError):
        frames_of(path, {0})
    assert data.decoded_timeline(path).n_frames == 40
    kept = write_video(tmp_path / "kept.mkv", [picture(i) for i in range(20, 60)])
    assert (data.load_video(path) - data.load_video(kept)).abs().mean() < 0.05


def test_key_frames_that_are_none_are_read_from_the_start(tmp_path):
    """With intra refresh no packet but the first can be decoded alone, whatever the container says."""
    options = {"x264-params": "intra-refresh=1:keyint=40"}
    path = write_video(tmp_path / "x.mp4", moving(100), options=options)
    video, timeline = data.read_video(path), timeline_of(path)
    clips = data.clip_frames(timeline.n_frames, timeline.fps)
    expected = dict(data.count_frames(path, {n for clip in clips for n in clip}))
    for place, (first, _) in zip(video.places[::3], clips, strict=True):
        picture_of = data.normalize_rgb(data.resize_short_side(expected[first]))
        assert torch.equal(video.frames[place[0]], picture_of)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_frames_are_turned_upright(tmp_path, rotation, corner):
    """The corner that is white as coded goes where the display matrix turns it, counter-clockwise."""
    path = write_video(tmp_path / "x.mp4", [picture(0)] * 5, rotation=rotation)
    frame = frames_of(path, {2})[2]
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
    crops = [data.crop(resized, offset) for offset in data.crop_offsets(long)]
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
    frame = frames_of(path, {0})[0]
    assert frame.shape == (3, 64, 96)


def test_a_picture_that_changes_its_size_is_cropped_frame_by_frame(tmp_path):
    """Two H.264 streams of different shapes, one after the other."""
    path = tmp_path / "x.h264"
    with open(path, "wb") as file:
        for shape in ((64, 96), (64, 160)):
            images = [picture(i, *shape) for i in range(30)]
            file.write(write_video(tmp_path / "part.h264", images, options={"bf": "0"}).read_bytes())
    video = data.read_video(path)
    assert video.frames.shape[1:] == (3, 224, 224)
    assert data.load_video(path).shape == (15, 3, 2, 224, 224)


# What is shared


@pytest.mark.parametrize(
    ("n_frames", "shape", "distinct"),
    [(100, (64, 96), 15), (100, (64, 64), 5), (20, (64, 96), 3), (20, (64, 64), 1)],
)
def test_equal_clips_of_a_video_are_cut_once(tmp_path, n_frames, shape, distinct):
    """A square has three equal crops, and a video under 2 s five equal clips."""
    path = write_video(tmp_path / "x.mp4", [picture(i, *shape) for i in range(n_frames)])
    video, every = data.read_video(path), data.load_video(path)
    clips = video.clips()
    assert len(clips) == len(video.counts) == distinct
    repeated = [clip for clip, count in zip(clips, video.counts.values(), strict=True) for _ in range(count)]
    assert sorted(c.sum().item() for c in repeated) == sorted(c.sum().item() for c in every)


@pytest.mark.parametrize(("seconds", "distinct"), [(1, 1), (0.3, 1), (3, 3)])
def test_equal_clips_of_a_sound_are_kept_once(tmp_path, seconds, distinct):
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(int(seconds * RATE)) * 0.1 + 0.2).astype(np.float32)
    audio = data.read_audio(write_audio(tmp_path / "x.wav", noise))
    assert len(audio.clips()) == len(audio.counts) == distinct
    assert sum(audio.counts.values()) == 3


# Long sounds


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_windows_of_a_long_sound_are_those_of_the_whole(tmp_path, monkeypatch, rate):
    monkeypatch.setattr(data, "HELD_SECONDS", 5)
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((2, int(7.3 * rate) + 1)).astype(np.float32) * 0.1
    path = write_audio(tmp_path / "x.wav", samples, rate)
    windows = data.load_windows(path)
    monkeypatch.setattr(data, "HELD_SECONDS", 60)
    expected = data.load_windows(path)
    assert len(windows) == len(expected) == 3
    for window, whole in zip(windows, expected, strict=True):
        assert window.shape == whole.shape == (2, 2 * RATE)
        np.testing.assert_allclose(window, whole, atol=1e-6)


@pytest.mark.slow
def test_ten_hours_of_sound_are_read_in_under_a_gigabyte(tmp_path):
    """Silence but for a note at start, middle and end."""
    seconds, rate = 36000, 48000
    path = silence(tmp_path / "ten_hours.wav", seconds / 3600)
    size = path.stat().st_size
    note = (tone(2, 440, rate) * 32767).astype("<i2").tobytes()
    with open(path, "r+b") as file:
        for start in (0, (seconds - 2) // 2, seconds - 2):
            file.seek(size - (seconds - start) * rate * 2)
            file.write(note)
    code = (
        "import sys; from imagebind import data\n"
        "windows = data.load_windows(sys.argv[1])\n"
        "(peak,) = (line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(peak, *(w.std().item() for w in windows))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, path], cwd=TESTS.parent, capture_output=True, text=True
    )
    path.unlink()
    kilobytes, *deviations = map(float, result.stdout.split())
    assert kilobytes < 1e6
    assert deviations == pytest.approx([0.5 / 2**0.5] * 3, rel=1e-3)


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
