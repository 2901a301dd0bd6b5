"""Video files to inputs: which frames are decoded, and what becomes of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from conftest import MEDIA, RATE, TESTS, picture, set_display_matrix, tone, write_video
from PIL import Image
from torchvision.transforms import v2

from imagebind import data
from imagebind.data import frames, mmaudio
from imagebind.data.frames import (
    Timeline,
    TimelineError,
    count_frames,
    decoded_timeline,
    packet_timeline,
    read_frames,
)
from imagebind.data.media import open_stream
from imagebind.data.sequences import prepare_image, scale_and_crop
from imagebind.data.video import SIZE, clip_frames, crop, crop_offsets, normalize_rgb, resize_short_side

VIDEO_INPUTS = np.load(TESTS / "reference" / "video_inputs.npz")


VIDEO_FRAMES = json.loads((TESTS / "reference" / "video_frames.json").read_text())


def timeline_of(path) -> Timeline:
    with open_stream(path, "video") as stream:
        return packet_timeline(stream)


def counted(path, numbers) -> dict[int, torch.Tensor]:
    """Read frames as files without times are read."""
    return {number: frames.to_rgb(frame) for number, frame in count_frames(path, numbers)}


def frames_of(path, numbers) -> dict[int, torch.Tensor]:
    """Read frames as files with times are read, by seeking."""
    with open_stream(path, "video") as stream:
        found = read_frames(stream, packet_timeline(stream), set(numbers))
        return {number: frames.to_rgb(frame) for number, frame in found}


@pytest.mark.parametrize("name", VIDEO_FRAMES)
def test_video_frames_are_the_released_loaders(name):
    timeline = timeline_of(MEDIA / name)
    recorded = VIDEO_FRAMES[name]
    assert timeline.n_frames == recorded["frames"]
    assert timeline.fps == recorded["fps"]
    assert clip_frames(timeline.n_frames, timeline.fps) == [tuple(c) for c in recorded["clip_frames"]]


@pytest.mark.parametrize("name", VIDEO_FRAMES)
def test_video_input_is_the_released_loaders(name):
    inputs = data.load_and_transform_video_data([MEDIA / name], "cpu")
    n_clips = data.VIDEO_CLIPS * data.CROPS
    assert inputs.shape == (1, n_clips, 3, data.FRAMES_PER_CLIP, data.SIZE, data.SIZE)
    np.testing.assert_allclose(inputs[0, ..., ::8, ::8], VIDEO_INPUTS[name], rtol=0, atol=1e-5)
    np.testing.assert_allclose(inputs[0].mean((1, 2, 3, 4)), VIDEO_INPUTS[f"{name}:mean"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n_frames", "fps"), [(1, 25.0), (1, 0.1), (3, 0.2), (2, 1000.0), (10**6, 29.97)])
def test_every_clip_has_frames_of_the_video(n_frames, fps):
    for first, last in clip_frames(n_frames, fps):
        assert 0 <= first <= last < n_frames


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
    with open_stream(path, "video") as stream:
        expected = {n: frames.to_rgb(f) for n, f in enumerate(stream.container.decode(stream)) if n in wanted}
    timeline = timeline_of(path)
    assert (timeline.n_frames, timeline.fps, timeline.has_times) == (100, 20.0, has_times)
    found = frames_of(path, wanted) if has_times else counted(path, wanted)
    assert {n for n in wanted if torch.equal(found[n], expected[n])} == wanted
    assert [brightness(found[n]) for n in sorted(wanted)] == pytest.approx(sorted(wanted), abs=1)


def test_decoding_starts_at_key_frames_and_leaves_out_what_nothing_needs(tmp_path, monkeypatch):
    """Ten frames of a long video cost its key-frame intervals, not its length."""
    path = write_video(
        tmp_path / "x.mp4", moving(100) * 10, options={"g": "20", "bf": "2", "sc_threshold": "0"}
    )
    sent = []
    decode = frames.decode_packet
    monkeypatch.setattr(
        frames, "decode_packet", lambda packet, skip: sent.append(skip) or decode(packet, skip)
    )
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


@pytest.mark.skipif(av.__version__ < "15", reason="PyAV before 15 cannot write such a file")
def test_frames_that_the_decoder_does_not_show_are_not_counted(tmp_path):
    """A stream cut before its first key frame: the packets announce frames that never show."""
    options = {"g": "20", "bf": "0", "sc_threshold": "0"}
    whole = write_video(tmp_path / "whole.mkv", [picture(i) for i in range(60)], options=options)
    path = tmp_path / "cut.mkv"
    cut_packets(whole, path, 5)
    with pytest.raises(TimelineError):
        frames_of(path, {0})
    assert decoded_timeline(path, timeline_of(path)).n_frames == 40
    kept = write_video(tmp_path / "kept.mkv", [picture(i) for i in range(20, 60)])
    assert (data.load_video(path) - data.load_video(kept)).abs().mean() < 0.05


def test_key_frames_that_are_none_are_read_from_the_start(tmp_path):
    """With intra refresh no packet but the first can be decoded alone, whatever the container says."""
    options = {"x264-params": "intra-refresh=1:keyint=40"}
    path = write_video(tmp_path / "x.mp4", moving(100), options=options)
    video, timeline = data.read_video(path), timeline_of(path)
    clips = clip_frames(timeline.n_frames, timeline.fps)
    expected = counted(path, {n for clip in clips for n in clip})
    for place, (first, _) in zip(video.crops[::3], clips, strict=True):
        picture_of = normalize_rgb(resize_short_side(expected[first]))
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
    resized = resize_short_side(frame)
    long = math.floor(max(shape) / min(shape) * 224)
    assert sorted(resized.shape[1:]) == sorted((224, long))
    crops = [crop(resized, offset) for offset in crop_offsets(long)]
    along = resized if shape[1] >= shape[0] else resized.transpose(1, 2)
    for cropped, start in zip(crops, (0, math.ceil((long - 224) / 2), long - 224), strict=True):
        expected = along[:, :, start : start + 224]
        assert torch.equal(cropped, expected if shape[1] >= shape[0] else expected.transpose(1, 2))


@pytest.mark.parametrize("shape", [(224, 400), (401, 224), (225, 225), (64, 97), (720, 481), (224, 224)])
def test_pictures_of_public_scores_are_scaled_as_by_torchvision(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    frame, image = av.VideoFrame.from_ndarray(pixels, "rgb24"), Image.fromarray(pixels)
    bicubic = v2.Resize(SIZE, interpolation=v2.InterpolationMode.BICUBIC)
    of_tensors = v2.Compose([bicubic, v2.ToDtype(torch.float32, scale=True), normalize_rgb])
    assert torch.equal(mmaudio.prepare_frame(frame), of_tensors(torch.from_numpy(pixels).permute(2, 0, 1)))
    of_images = v2.Compose([bicubic, v2.CenterCrop(SIZE), np.array, torch.from_numpy])
    assert torch.equal(prepare_image(frame), of_images(image))
    assert torch.equal(scale_and_crop(image), of_images(image))


def test_the_best_video_stream_is_taken(tmp_path):
    """The one that the container calls its default, as ffmpeg chooses, not the first."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width in (32, 96):
            stream = container.add_stream("mpeg4", rate=20)
            stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
            streams.append(stream)
        streams[0].disposition, streams[1].disposition = 0, Disposition.default.value
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


def test_a_cover_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        cover = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic.value
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), "rgb24")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(1)[None], "fltp", "mono")
        frame.sample_rate = RATE
        container.mux([*audio.encode(frame), *audio.encode(None)])
    with pytest.raises(data.MediaError, match="no video stream"):
        data.load_video(path)
    assert data.load_audio(path).isfinite().all()


# Rates and times that do not agree

CASES = TESTS / "fuzz" / "cases"


@pytest.mark.parametrize(
    ("name", "fps", "last"),
    [
        ("video_norate_jitter30.mkv", 30.246, (181, 240)),
        ("video_norate_30fps_then_2fps.webm", 3.6715, (28, 34)),
    ],
)
def test_where_no_rate_is_stated_clips_are_spread_by_the_times_of_frames(name, fps, last):
    """FFmpeg guesses 1000 and 30, by which all clips would be the first and the last frame."""
    timeline = timeline_of(CASES / name)
    assert timeline.fps == pytest.approx(fps, abs=0.001)
    clips = clip_frames(timeline.n_frames, timeline.fps)
    assert clips[-1] == last
    assert len(set(clips)) == 5
    video = data.read_video(CASES / name)
    assert len(video.frames) == len({number for clip in clips for number in clip})


def screen_recording(path, fps: int) -> Path:
    """Write 61 frames in 10 s, in a container that states a rate."""
    pts = [i * 40 for i in range(41)] + [1600 + i * 420 for i in range(1, 21)]
    return write_video(path, [picture(i) for i in range(61)], fps=fps, pts=pts)


def test_a_stated_rate_that_is_not_that_of_the_frames_is_kept_and_said(tmp_path, caplog):
    """The released loader takes it; so the frames are those of published scores."""
    path = screen_recording(tmp_path / "x.mkv", 1000)
    timeline = timeline_of(path)
    assert timeline.fps == 1000
    assert clip_frames(timeline.n_frames, timeline.fps) == [(0, 60)] * 5
    (message,) = caplog.messages
    assert re.fullmatch(rf"{path}: states 1000 frames per second, but they come at 6\.\d+; clips .*", message)


def test_frames_that_an_avi_file_repeats_are_not_missing(tmp_path, caplog):
    path = write_video(
        tmp_path / "x.avi", [picture(i) for i in range(30)], "mpeg4", 25, [200 * i for i in range(30)]
    )
    timeline = timeline_of(path)
    assert timeline.n_frames == 30
    assert "ends early" not in caplog.text
    assert "frames per second, but they come at 5" in caplog.text


def test_dv_has_25_frames_per_second(tmp_path):
    """Its clock has 60000 ticks a second, which FFmpeg calls the average rate of a raw file."""
    images = [np.full((576, 720, 3), 8 * i, np.uint8) for i in range(12)]
    path = write_video(tmp_path / "x.dv", images, "dvvideo", 25)
    assert timeline_of(path).fps == 25


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 1, -1, 1)])
def test_a_matrix_that_is_no_quarter_turn_turns_nothing(tmp_path, matrix):
    plain = write_video(tmp_path / "x.mp4", [picture(i) for i in range(5)])
    expected = data.load_video(plain)
    set_display_matrix(plain, *matrix)
    assert torch.equal(data.load_video(plain), expected)


def test_a_mirrored_picture_stays_and_is_said(tmp_path, caplog):
    path = write_video(tmp_path / "x.mp4", [picture(i) for i in range(5)])
    expected = data.load_video(path)
    set_display_matrix(path, 1, 0, 0, -1)
    assert torch.equal(data.load_video(path), expected)
    assert caplog.messages == [f"{path}: its display matrix mirrors the picture; it is not mirrored here"]
