"""Copies of media that a page plays: what is in them, and what happens to files."""

from __future__ import annotations

import math
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import RATE, picture, tone, write_audio, write_movie, write_video
from test_page import content_of

from batch_inference import OptionError, batch_inference_av_consistency
from imagebind.data import MediaError
from imagebind.evaluation.write.page_media import address
from imagebind.reading.cache import hash_file
from imagebind.reading.previews import make_preview, write_preview
from imagebind.sources import Source


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    """Decode a copy: time and pixels of each frame."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def sound_of(path: Path) -> np.ndarray:
    """Decode the sound of a copy, one channel at 44.1 kHz."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def number_of(image: np.ndarray) -> float:
    """Tell the number of a `picture` by its brightness, to about one."""
    return (float(image[-8:, -8:].mean()) - 20) / 2


@pytest.mark.parametrize(
    ("start", "end", "first", "seconds"),
    [(0, math.inf, 0, 4), (0.2, 0.7, 0, 0.5), (2.2, 3.5, 2, 1.3), (2.2, 2.8, 2, 0.6)],
)
def test_a_part_begins_with_the_frame_that_is_shown_then(tmp_path, start, end, first, seconds):
    """Of one frame a second the part's first one was shown before it begins."""
    path = write_video(tmp_path / "x.mp4", [picture(10 * k) for k in range(4)], fps=1)
    write_preview("video", Source(str(path), start, end), tmp_path / "copy.mp4")
    frames = frames_of(tmp_path / "copy.mp4")
    assert frames[0][0] == 0
    assert [round(number_of(image) / 10) for _, image in frames] == list(range(first, first + len(frames)))
    assert len(frames) == math.ceil(start % 1 + seconds)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "h264"])
def test_files_that_are_hard_to_search_are_copied_whole(tmp_path, suffix):
    path = write_video(tmp_path / f"x.{suffix}", [picture(k) for k in range(80)])
    write_preview("video", Source(str(path)), tmp_path / "copy.mp4")
    times, images = zip(*frames_of(tmp_path / "copy.mp4"), strict=True)
    assert [number_of(image) for image in images] == pytest.approx(range(80), abs=1.5)
    assert times[-1] == pytest.approx(79 / (25 if suffix == "h264" else 20), abs=0.01)
    if suffix != "h264":
        write_preview("video", Source(str(path), 2, 2.5), tmp_path / "part.mp4")
        numbers = [number_of(image) for _, image in frames_of(tmp_path / "part.mp4")]
        assert numbers == pytest.approx(range(40, 50), abs=1.5)


def test_a_picture_keeps_its_shape(tmp_path):
    """It is turned upright, and pixels that are not square count as wide as they are."""
    path = write_video(tmp_path / "x.mp4", [picture(k, 480, 640) for k in range(3)], rotation=90)
    write_preview("video", Source(str(path)), tmp_path / "copy.mp4")
    assert frames_of(tmp_path / "copy.mp4")[0][1].shape == (320, 240, 3)
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 360, 288, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        for k in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k, 288, 360), "rgb24")))
        container.mux(stream.encode(None))
    write_preview("video", Source(str(tmp_path / "wide.mp4")), tmp_path / "copy.mp4")
    assert frames_of(tmp_path / "copy.mp4")[0][1].shape == (240, 426, 3)


def test_gaps_of_a_sound_stay_silent(tmp_path):
    """A sound in the first and in the fourth second."""
    with av.open(str(tmp_path / "x.mka"), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for second in (0, 3):
            samples = (tone(1) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), second * RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_preview("audio", Source(str(tmp_path / "x.mka")), tmp_path / "copy.m4a")
    seconds = sound_of(tmp_path / "copy.m4a")[: 4 * 44100].reshape(4, 44100)
    middles = np.abs(seconds[:, 11025:33075]).max(1)
    assert (middles > 0.3).tolist() == [True, False, False, True]


def test_what_holds_no_sound_gives_a_reason(tmp_path):
    write_audio(tmp_path / "x.wav", tone(0)[:0])
    with pytest.raises(MediaError):
        write_preview("audio", Source(str(tmp_path / "x.wav")), tmp_path / "copy.m4a")
    write_video(tmp_path / "x.mp4", [picture(k) for k in range(20)])
    write_preview("video", Source(str(tmp_path / "x.mp4")), tmp_path / "copy.mp4")  # a video without sound
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_a_file_that_changed_is_not_copied(tmp_path):
    path, target = write_audio(tmp_path / "x.wav", tone(1)), tmp_path / "copy.m4a"
    with open(path, "rb") as file:
        content_hash = hash_file(file)
    write_audio(path, tone(1, 500))
    assert list(make_preview(None, ("audio", Source(str(path)), content_hash, str(target)))) == [
        "it changed since it was evaluated"
    ]
    assert os.listdir(tmp_path) == ["x.wav"]


def test_copies_are_no_inputs_of_a_later_run(pairs, small_checkpoint):
    """Where the output directory lies in that of the files."""
    (pairs / "all").mkdir()
    for name in "ab":
        shutil.copy(pairs / "video" / f"{name}.mp4", pairs / "all")
        shutil.copy(pairs / "audio" / f"{name}.wav", pairs / "all")
    options = {"checkpoint": small_checkpoint, "output_dir": pairs / "all" / "out", "copy_media": True}
    for _ in range(2):
        results = batch_inference_av_consistency(pairs / "all", pairs / "all", "cpu", **options)
        assert results["metrics"]["counts"]["pairs"] == 2
        assert results["metrics"]["counts"]["unmatched"] == 0


def test_a_place_that_is_taken_is_refused_before_the_work(pairs, small_checkpoint):
    (pairs / "out").mkdir()
    (pairs / "out" / "report_media").symlink_to(pairs / "video")
    options = {"checkpoint": small_checkpoint, "output_dir": pairs / "out"}
    with pytest.raises(OptionError, match=r"^copy_media .*report_media is no directory, and copies"):
        batch_inference_av_consistency(pairs / "audio", pairs / "video", "cpu", copy_media=True, **options)
    batch_inference_av_consistency(pairs / "audio", pairs / "video", "cpu", **options)
    assert len(os.listdir(pairs / "video")) == 4


def test_all_players_have_copies(pairs, small_checkpoint):
    """Those of the matrix and of other matches too, also of sounds that are a video's own."""
    (pairs / "own").mkdir()
    for i, name in enumerate("abc"):
        write_movie(pairs / "own" / f"{name}.mkv", 200 * (i + 1))
    for inputs in ((None, pairs / "own"), (pairs / "audio", pairs / "own")):
        batch_inference_av_consistency(
            *inputs,
            "cpu",
            retrieval_mode=True,
            checkpoint=small_checkpoint,
            output_dir=pairs / "out",
            copy_media=True,
        )
        players = content_of(pairs / "out" / "report.html")["players"]
        assert len(players) >= 6
        assert {os.path.dirname(player[1]) for player in players} == {"report_media"}
        assert all((pairs / "out" / player[1]).exists() for player in players)


def test_an_address_leads_where_the_kernel_goes(tmp_path):
    """After a link `..` is the parent of where it leads."""
    for folder in ("real/inner", "page", "audio", "real/audio"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    (tmp_path / "real" / "audio" / "x.wav").touch()
    (tmp_path / "audio" / "x.wav").touch()
    found = address(f"{tmp_path}/link/../audio/x.wav", tmp_path / "page")
    assert (tmp_path / "page" / found).resolve() == tmp_path / "real" / "audio" / "x.wav"
