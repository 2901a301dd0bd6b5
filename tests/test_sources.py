"""Parts of files: what is read of them is what a file that holds that part alone gives, bit for bit."""

from __future__ import annotations

import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import RATE, picture, reason, tone, write_audio, write_video

from batch_inference import Evaluator
from imagebind.data import read_audio, read_video
from imagebind.data.audio import BUFFERED_SECONDS, decode_audio
from imagebind.evaluation.rules import PROTOCOLS
from imagebind.sources import Source


def test_a_part_is_another_source_than_the_file_or_a_file_of_its_name():
    part = Source("a/b.c.mp4", 1.5, 4.0)
    assert str(part) == "a/b.c.mp4#t=1.5,4"
    assert part not in (Source("a/b.c.mp4"), Source("a/b.c.mp4#t=1.5,4"), Source("a/b.c.mp4", 1.5))
    assert pickle.loads(pickle.dumps(part)) == part
    assert Source.of(part) is part
    assert Source.of(Path("a.wav")) == Source("a.wav")


def noise(seconds: float, channels: int, rate: int) -> np.ndarray:
    shape = (channels, round(seconds * rate))
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


@pytest.mark.parametrize("codec", ["pcm_f32le", "flac"])
@pytest.mark.parametrize(
    ("seconds", "start", "end"),
    [(6, 1.25, 4.0), (6, 0, 0.5), (6, 5.5, 9.0), (6, 2.0, 2.01), (BUFFERED_SECONDS + 30, 3.0, 85.5)],
)
def test_a_part_of_a_sound_is_that_of_its_samples(tmp_path, codec, seconds, start, end):
    rate, suffix = (44100, "wav") if codec == "pcm_f32le" else (22050, "flac")
    samples = noise(seconds, 2, rate)
    if codec == "flac":
        samples = np.round(samples * 2**15) / np.float32(2**15)
        write = {"rate": rate, "codec": "flac"}
    else:
        write = {"rate": rate}
    whole = write_sound(tmp_path / f"whole.{suffix}", samples, **write)
    part = write_sound(
        tmp_path / f"part.{suffix}", samples[:, round(start * rate) : round(end * rate)], **write
    )
    assert torch.equal(read_audio(Source(str(whole), start, end)).mels, read_audio(part).mels)


def write_sound(path, samples, rate, codec="pcm_f32le"):
    if codec != "flac":
        return write_audio(path, samples, rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="stereo")
        integers = (samples * 2**15).astype(np.int16).T.reshape(1, -1).copy()
        frame = av.AudioFrame.from_ndarray(integers, "s16", "stereo")
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


TIMES = [0, 90, 130, 300, 340, 610, 700, 1000, 1033, 1500, 1567, 1900]  # in ms, of a variable frame rate


@pytest.mark.parametrize(
    ("options", "start", "end", "numbers"),
    [
        ({"fps": 10}, 1.0, 3.5, range(10, 35)),
        ({"fps": 10}, 0, 0.1, range(1)),
        ({"fps": 10}, 4.9, 99, range(49, 50)),
        ({"fps": 10, "codec": "libx264rgb", "options": {"qp": "0", "bf": "3"}}, 1.05, 4.0, range(11, 40)),
        ({"pts": TIMES}, 0.13, 1.0, range(2, 7)),
    ],
)
def test_a_part_of_a_video_is_that_of_its_frames(tmp_path, options, start, end, numbers):
    options = {"codec": "ffv1", "pix_fmt": "bgr0"} | options
    if options["codec"] == "libx264rgb":
        options["pix_fmt"] = "rgb24"
    images = [picture(i) for i in range(12 if "pts" in options else 50)]
    whole = write_video(tmp_path / "whole.mkv", images, **options)
    found = read_video(Source(str(whole), start, end))
    chosen = options | ({"pts": [TIMES[i] - TIMES[2] for i in numbers]} if "pts" in options else {})
    part = write_video(tmp_path / "part.mkv", [images[i] for i in numbers], **chosen)
    if "pts" in options:  # its average rate is another one; what is shown is not
        assert {image.sum().item() for image in found.frames} <= {x.sum().item() for x in frames_of(part)}
        return
    expected = read_video(part)
    assert found.crops == expected.crops
    assert torch.equal(found.frames, expected.frames)


def frames_of(path):
    """All frames of a video, each prepared."""
    from imagebind.data.video import prepare_frame

    with av.open(str(path)) as container:
        return [prepare_frame(frame) for frame in container.decode(video=0)]


def test_frames_without_times_are_counted(tmp_path):
    images = [picture(i) for i in range(30)]
    whole = write_video(tmp_path / "whole.avi", images, codec="mpeg4", fps=10, options={"bf": "2"})
    found = read_video(Source(str(whole), 1.0, 2.0))
    every = frames_of(whole)
    assert all(any(torch.equal(frame, known) for known in every[10:20]) for frame in found.frames)


def test_a_part_that_is_not_there_is_a_reason(tmp_path, caplog):
    sound = write_audio(tmp_path / "x.wav", tone(2))
    video = write_video(tmp_path / "x.mp4", [picture(i) for i in range(20)], fps=10)
    assert reason(read_audio, Source(str(sound), 2.0, 3.0)) == "no audio samples"
    assert reason(read_video, Source(str(video), 2.0, 3.0)) == "no video frames"
    caplog.clear()
    read_audio(Source(str(sound), 1.0, 4.0))
    read_video(Source(str(video), 1.0, 4.0))
    assert caplog.messages == [
        f"{sound}#t=1,4: ends early: 1 of 3 seconds of this part are there",
        f"{video}#t=1,4: ends early: 1 of 3 seconds of this part are there",
    ]


def test_every_protocol_takes_a_part_as_a_file_of_its_own(tmp_path, small_checkpoint):
    images = [picture(i, 70, 90) for i in range(100)]
    samples = np.concatenate([tone(4), tone(6, 700)])
    options = {"codec": "ffv1", "fps": 10, "pix_fmt": "bgr0"}
    write_video(tmp_path / "x.mkv", images, **options)
    write_audio(tmp_path / "x.wav", samples)
    write_video(tmp_path / "part.mkv", images[5:95], **options)
    write_audio(tmp_path / "part.wav", samples[RATE // 2 : 19 * RATE // 2])
    rows = [
        {"video": str(tmp_path / "x.mkv"), "audio": str(tmp_path / "x.wav"), "start": 0.5, "end": 9.5},
        {"video": str(tmp_path / "part.mkv"), "audio": str(tmp_path / "part.wav")},
    ]
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu")
    protocols = PROTOCOLS
    results = evaluator.evaluate(manifest=rows, protocols=protocols, output_dir=tmp_path / "out")
    part, whole = results["pair_scores"]
    scores = ("similarity", *protocols, "weakest_start", "weakest_end", "weakest_score")
    assert [part[name] for name in scores] == [whole[name] for name in scores]
    assert None not in [part[name] for name in protocols]
    again = evaluator.evaluate(manifest=rows, protocols=protocols, output_dir=tmp_path / "out")
    assert list(again["pair_scores"]) == [part, whole]


def test_windows_of_a_part_are_those_of_its_own_rate(tmp_path, small_checkpoint):
    """A video of 30 frames per second, then 10: of the second half a window of 2 s has 20 frames."""
    images = [picture(i % 100, 70, 90) for i in range(150)]
    samples = np.concatenate([tone(5), tone(4, 700)])
    pts = [round(i * 1000 / 30) for i in range(90)] + [3000 + 100 * i for i in range(60)]
    options = {"codec": "libx264rgb", "pix_fmt": "rgb24", "options": {"qp": "0"}}
    write_video(tmp_path / "x.mp4", images, fps=30, pts=pts, **options)
    write_audio(tmp_path / "x.wav", samples)
    write_video(tmp_path / "part.mp4", images[90:], fps=10, **options)
    write_audio(tmp_path / "part.wav", samples[3 * RATE :])
    rows = [
        {"video": str(tmp_path / "x.mp4"), "audio": str(tmp_path / "x.wav"), "start": 3, "end": 9},
        {"video": str(tmp_path / "part.mp4"), "audio": str(tmp_path / "part.wav")},
    ]
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu")
    results = evaluator.evaluate(manifest=rows, protocols=("imagebind", "javisscore"), num_workers=0)
    part, whole = results["pair_scores"]
    assert part["javisscore"] == whole["javisscore"]
    starts = [[window.start for window in windows] for windows in results["windows"]]
    assert starts[0] == pytest.approx(starts[1])
    assert len(starts[0]) == 9


def test_parts_of_one_file_are_found_in_the_cache_each(tmp_path, small_checkpoint):
    video = write_video(
        tmp_path / "x.mkv", [picture(i) for i in range(40)], codec="ffv1", fps=10, pix_fmt="bgr0"
    )
    sound = write_audio(tmp_path / "x.wav", np.concatenate([tone(2), tone(2, 900)]))
    rows = [{"video": str(video), "audio": str(sound), "start": i, "end": i + 1} for i in range(4)]
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu")
    first = evaluator.evaluate(manifest=rows, output_dir=tmp_path / "out")
    second = evaluator.evaluate(manifest=rows[::-1], output_dir=tmp_path / "out")
    fresh = evaluator.evaluate(manifest=rows, num_workers=0)
    similarities = [pair["similarity"] for pair in first["pair_scores"]]
    assert len(set(similarities)) == 4
    assert [pair["similarity"] for pair in second["pair_scores"]] == similarities[::-1]
    assert [pair["similarity"] for pair in fresh["pair_scores"]] == similarities


@pytest.mark.parametrize("end", [2.722, 2.302])
def test_an_end_is_no_extension(tmp_path, end):
    """.722 and .302 are formats of FFmpeg's, which a name may decide for."""
    sound = write_audio(tmp_path / "x.mp3", tone(4, rate=44100), rate=44100, codec="libmp3lame")
    frames = write_audio(tmp_path / "part.wav", load_samples(sound)[:, : round(end * 44100)], rate=44100)
    assert torch.equal(read_audio(Source(str(sound), 0, end)).mels, read_audio(frames).mels)


def load_samples(path):
    """All samples of a file, (C, T)."""
    return torch.cat([samples for samples, _ in decode_audio(path)], dim=1).numpy()


def test_a_format_that_is_known_by_its_extension_alone(tmp_path):
    sound = write_audio(tmp_path / "x.g722", tone(4), codec="g722")
    assert read_audio(Source(str(sound), 1, 2)).mels.shape == read_audio(sound).mels.shape


def test_frames_without_times_are_dropped_by_mmaudio_alone(tmp_path, small_checkpoint):
    images = [picture(i % 100, 70, 90) for i in range(250)]
    video = write_video(tmp_path / "x.h264", images, fps=25)
    sound = write_audio(tmp_path / "x.wav", tone(10))
    rows = [{"video": str(video), "audio": str(sound), "start": 0, "end": 9}]
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu")
    protocols = ("imagebind", "mmaudio", "avhscore")
    results = evaluator.evaluate(manifest=rows, protocols=protocols, num_workers=0)
    (pair,) = results["pair_scores"]
    assert (pair["mmaudio"] is None, pair["avhscore"] is None) == (True, False)
    (dropped,) = results["metrics"]["scores"]["mmaudio"]["dropped"]
    assert "mmaudio needs the time of each frame" in dropped["reason"]


def test_the_rate_of_a_part_is_its_own(tmp_path, caplog):
    """Ten frames a second for 3 s, then fifty: the part of the first is a video of ten a second."""
    images = [picture(i) for i in range(80)]
    times = [100 * i for i in range(30)] + [3000 + 20 * i for i in range(50)]
    options = {"codec": "ffv1", "pix_fmt": "bgr0"}
    whole = write_video(tmp_path / "whole.mkv", images, pts=times, **options)
    part = write_video(tmp_path / "part.mkv", images[:30], fps=10, **options)
    found, expected = read_video(Source(str(whole), 0, 3)), read_video(part)
    assert found.crops == expected.crops
    assert torch.equal(found.frames, expected.frames)
    assert caplog.messages == []


def test_a_part_that_is_all_of_a_file_is_the_same_thing(tmp_path, small_checkpoint):
    """Its true partners are no mismatches, whichever way the file is named."""
    rows = []
    for i in range(3):
        video = write_video(tmp_path / f"{i}.mkv", [picture(40 * i + k % 5) for k in range(20)])
        sound = write_audio(tmp_path / f"{i}.wav", tone(1, 200 * (i + 1)))
        rows.append({"video": str(video), "audio": str(sound)})
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu")
    twice = evaluator.evaluate(manifest=[*rows, *rows])["metrics"]
    parts = evaluator.evaluate(manifest=[*rows, *(row | {"end": 10} for row in rows)])["metrics"]
    for figure in ("auc", "margin", "mean_rank", "recall_at_1", "recall_at_1_chance"):
        assert parts[figure] == pytest.approx(twice[figure], abs=1e-12)
