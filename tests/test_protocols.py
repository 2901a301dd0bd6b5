"""The public scores: recorded inputs and numbers, what each drops, and what a second run computes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
from contextlib import closing, suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import RATE, TESTS, Program, picture, tone, write_audio, write_movie, write_video
from test_job import Processes

from batch_inference import OptionError, batch_inference_av_consistency, main
from imagebind import data
from imagebind.data import audio, mmaudio, sequences
from imagebind.data.features import VIDEO, VIDEO_FRAMES
from imagebind.data.frames import decoded_timeline, packet_timeline
from imagebind.data.media import open_stream
from imagebind.data.video import DroppedError, crop, crop_offsets, imagebind_clips, read_clips
from imagebind.evaluation.rules import PROTOCOLS
from imagebind.reading import loader
from imagebind.sources import Source

FOLDER = TESTS / "reference" / "protocols"
MEDIA, CHECKPOINT = FOLDER / "media", FOLDER / "tiny.pth"
SMALL = TESTS / "demo" / "imagebind_demo.pth"  # of another width
INPUTS, SCORES = (
    np.load(FOLDER / "protocol_inputs.npz"),
    json.loads((FOLDER / "protocol_scores.json").read_text()),
)
SUFFIXES = {"video": (".webm", ".mp4", ".avi", ".mkv"), "audio": (".wav", ".flac")}
SHORT = ("life_12fps_8s", "pattern_24fps_4s", "short_10fps_1.5s")  # with few frames
FEW = ("--audio_dir", "few/audio", "--video_dir", "few/video")
NEEDS_4 = "mmaudio needs 4 frames at 0.5 fps, it has {}"


# Inputs


@pytest.mark.parametrize("seconds", [8, 4])
@pytest.mark.parametrize("name", SCORES)
def test_mmaudios_frames_are_the_recorded_ones(name, seconds):
    (video,) = read_clips(MEDIA / SCORES[name]["video"], [mmaudio.mmaudio_clips(seconds)])
    if SCORES[name][f"mmaudio_{seconds}"] is None:
        assert isinstance(video, DroppedError)
        return
    offsets = crop_offsets(max(video.frames.shape[2:]))
    crops = torch.stack([crop(video.frames, offset) for offset in offsets])  # (3, T, 3, 224, 224)
    key = f"{name}:mmaudio_{seconds}"
    np.testing.assert_array_equal(crops[..., ::8, ::8], INPUTS[key])
    np.testing.assert_array_equal(crops.mean((2, 3, 4)), INPUTS[f"{key}:mean"])


@pytest.mark.parametrize("name", SCORES)
def test_all_frames_are_the_recorded_ones(name):
    recipes = [imagebind_clips(), mmaudio.mmaudio_clips(4)]
    path = MEDIA / SCORES[name]["video"]
    *parts, whole = filter(None, sequences.read_whole_video(path, recipes))
    images = torch.cat([image.clips()[:, :, 0] for part in parts for image in part.split()])
    images = images[list(whole.facts.index)]
    assert len(images) == SCORES[name]["n_frames"]
    assert whole.facts.fps == SCORES[name]["fps"]
    np.testing.assert_array_equal(
        images[SCORES[name]["avh_frames"]][..., ::8, ::8], INPUTS[f"{name}:avh_frames"]
    )
    np.testing.assert_array_equal(images.mean((1, 2, 3)), INPUTS[f"{name}:avh_mean"])
    for found, alone in zip(whole.clips, read_clips(path, recipes), strict=True):
        if isinstance(alone, DroppedError):
            assert str(found) == str(alone)
        else:  # what is picked out of all frames is what is found by seeking
            assert torch.equal(found.frames, alone.frames)
            assert found.crops == alone.crops


@pytest.mark.parametrize("name", SCORES)
def test_windows_of_sound_are_the_recorded_ones(name):
    """But for bins with almost no energy, which are the rounding of this processor's Fourier transform."""
    path = MEDIA / SCORES[name]["audio"]
    *parts, whole = sequences.read_whole_sound(path)
    assert torch.equal(whole.clips[0].mels, data.load_audio(path))
    if len(SCORES[name]["windows"]) == 1:  # everything is one window
        assert not parts
        return
    mels = torch.cat([part.mels for part in parts])[: len(SCORES[name]["windows"])]
    np.testing.assert_allclose(mels[:, 0, :, ::8, ::8], INPUTS[f"{name}:javis_audio"], atol=1e-3)
    np.testing.assert_allclose(mels.mean((2, 3, 4))[..., None], INPUTS[f"{name}:javis_audio_mean"], atol=1e-6)


def by_filter(path: Path, rate: Fraction) -> list[np.ndarray]:
    """Let FFmpeg's own filter choose the frames."""
    with open_stream(path, "video") as stream:
        graph, found = av.filter.Graph(), []
        source, sink = graph.add_buffer(template=stream), graph.add("buffersink")
        nodes = [source, graph.add("fps", f"fps={rate}"), graph.add("format", "rgb24"), sink]
        for node, following in pairwise(nodes):
            node.link_to(following)
        graph.configure()
        for frame in [*stream.container.decode(stream), None]:
            source.push(frame)
            with suppress(av.BlockingIOError, av.EOFError):
                while True:
                    found.append(sink.pull().to_ndarray())
    return found


@pytest.mark.parametrize("seed", range(8))
def test_sampled_frames_are_those_of_ffmpegs_filter(tmp_path, seed):
    """With constant and variable frame rates, and a first frame that comes late."""
    rng = np.random.default_rng(seed)
    suffix = [".mp4", ".mkv", ".avi", ".mov"][seed % 4]
    images = [picture(i % 100, 16, 16) for i in range(rng.integers(1, 120))]
    pts = None
    if seed % 4 in (1, 3):
        pts = (rng.integers(0, 2500) + np.cumsum(rng.integers(20, 300, len(images)))).tolist()
    path = write_video(tmp_path / f"x{suffix}", images, fps=int(rng.choice([1, 10, 25, 60])), pts=pts)
    with open_stream(path, "video") as stream:
        timelines = [listed := packet_timeline(stream), decoded_timeline(path, listed)]
    with open_stream(path, "video") as stream:
        frames = [frame.to_ndarray(format="rgb24") for frame in stream.container.decode(stream)]
    for timeline in timelines:
        if timeline.times is None:
            continue
        assert mmaudio.count_sampled(timeline, Fraction(25)) == len(by_filter(path, Fraction(25)))
        expected = by_filter(path, Fraction(1, 2))
        assert mmaudio.count_sampled(timeline, Fraction(1, 2)) == len(expected)
        if expected:
            numbers = mmaudio.sample_frames(timeline, Fraction(1, 2), len(expected))
            assert all((frames[n] == e).all() for n, e in zip(numbers, expected, strict=True))


def test_a_long_sound_is_cut_in_pieces(tmp_path, monkeypatch):
    path = write_audio(
        tmp_path / "x.wav", np.concatenate([tone(2.3), np.zeros(40000, np.float32), tone(3, 700)]), 44100
    )
    (whole,) = sequences.resampled_pieces(path)
    *parts, expected = sequences.read_whole_sound(path)
    for module in (audio, sequences):
        monkeypatch.setattr(module, "BUFFERED_SECONDS", 1)
    pieces = list(sequences.resampled_pieces(path))
    assert len(pieces) > 2
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-6, rtol=0)
    *in_pieces, found = sequences.read_whole_sound(path)
    assert found.facts == expected.facts
    mels, of_pieces = (torch.cat([part.mels for part in some]) for some in (parts, in_pieces))
    assert (mels - of_pieces).abs().mean() < 1e-4
    torch.testing.assert_close(found.clips[0].mels.mean(), expected.clips[0].mels.mean(), atol=1e-4, rtol=0)


def test_equal_frames_are_read_once(tmp_path):
    path = write_video(tmp_path / "x.mp4", [picture(30)] * 50 + [picture(60)] * 50, options={"crf": "0"})
    *parts, whole = filter(None, sequences.read_whole_video(path, []))
    n_distinct = sum(len(part.pixels) for part in parts)
    assert n_distinct == whole.facts.n_rows < 20
    assert len(whole.facts.index) == 100


# Scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A directory with all pairs in audio/ and video/, and the short ones in few/."""
    folder = tmp_path_factory.mktemp("protocols")
    for side, suffixes in SUFFIXES.items():
        for part in (folder, folder / "few"):
            (part / side).mkdir(parents=True)
        for path in MEDIA.iterdir():
            if path.suffix in suffixes:
                (folder / side / path.name).symlink_to(path)
                if path.stem in SHORT:
                    (folder / "few" / side / path.name).symlink_to(path)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Evaluate the recorded files; give status, scores of metrics.json, lines of stderr, and the outputs."""
    monkeypatch.chdir(folder)

    def run(*argv: str, out: str = "outputs", inputs=("--audio_dir", "audio", "--video_dir", "video")):
        options = ("--device", "cpu", "--checkpoint", str(CHECKPOINT), "--output_dir", str(tmp_path / out))
        status = main([*inputs, *options, "--no_html", "--num_workers", "0", *argv])
        captured = capsys.readouterr()
        path = tmp_path / out / "metrics.json"
        metrics = json.loads(path.read_text()) if status == 0 else {"scores": None}
        return status, metrics["scores"], captured.err, tmp_path / out

    return run


def write_expected(folder: Path, out: Path, **options) -> Path:
    batch_inference_av_consistency(
        *(folder / "audio", folder / "video", "cpu", 4, out),
        checkpoint=CHECKPOINT,
        protocols=PROTOCOLS,
        no_html=True,
        **options,
    )
    return out


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory) -> Path:
    """The outputs of all protocols."""
    return write_expected(folder, tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="module")
def expected_of_few(folder, tmp_path_factory) -> Path:
    """The outputs of all protocols, of the short pairs."""
    return write_expected(folder / "few", tmp_path_factory.mktemp("expected"), num_workers=0)


@pytest.fixture
def known(expected, tmp_path) -> tuple[str, str]:
    """Options with which a run finds what `expected` has embedded."""
    shutil.copy(expected / "embeddings.sqlite", tmp_path / "known.sqlite")
    return "--cache", str(tmp_path / "known.sqlite")


def scores_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())["scores"]


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("seconds", ["8", "4"])
def test_scores_are_the_recorded_ones(run, expected, known, seconds):
    status, scores, out = 0, scores_of(expected), expected
    if seconds == "4":
        status, scores, _, out = run("--protocol", "all", "--protocol_seconds", "4", *known)
    assert status == 0
    pairs = {row["name"]: row for row in table(out / "pair_scores.csv")}
    windows = table(out / "window_scores.csv")
    assert set(pairs) == set(SCORES)
    for name, recorded in SCORES.items():
        expected = {"mmaudio": recorded[f"mmaudio_{seconds}"]}
        expected |= {protocol: recorded[protocol] for protocol in ("avhscore", "javisscore")}
        for protocol, score in expected.items():
            text = pairs[name][protocol]
            assert (text == "") == (score is None)
            assert score is None or float(text) == pytest.approx(score, abs=1e-6)
        of_pair = [row for row in windows if row["name"] == name]
        assert [float(row["score"]) for row in of_pair] == pytest.approx(recorded["window_scores"], abs=1e-6)
        for row, (start, end) in zip(of_pair, recorded["windows"], strict=True):
            seconds_of = (start / recorded["fps"], end / recorded["fps"])
            assert (float(row["start"]), float(row["end"])) == pytest.approx(seconds_of, abs=1e-3)
        weakest = min(of_pair, key=lambda row: float(row["score"]))
        assert [row["weakest"] for row in of_pair].count("yes") == 1
        assert weakest["weakest"] == "yes"
        assert pairs[name]["weakest_start"] == weakest["start"]
    dropped = {d["name"]: d["reason"] for d in scores["mmaudio"]["dropped"]}
    if seconds == "8":
        assert dropped == {"pattern_24fps_4s": NEEDS_4.format(2), "short_10fps_1.5s": NEEDS_4.format(1)}
    else:
        assert dropped == {"short_10fps_1.5s": "mmaudio needs 2 frames at 0.5 fps, it has 1"}
    for protocol in ("imagebind", "avhscore", "javisscore"):
        assert (scores[protocol]["n_scored"], scores[protocol]["dropped"]) == (5, [])
        assert "mean_dropped_as_zero" not in scores[protocol]
    found = [r[f"mmaudio_{seconds}"] for r in SCORES.values() if r[f"mmaudio_{seconds}"] is not None]
    assert scores["mmaudio"]["mean"] == pytest.approx(np.mean(found), abs=1e-6)
    assert scores["mmaudio"]["mean_dropped_as_zero"] == pytest.approx(sum(found) / 5, abs=1e-6)
    assert (scores["mmaudio"]["n_scored"], scores["mmaudio"]["n_pairs"]) == (len(found), 5)


def test_other_protocols_change_no_byte_of_the_first(run, expected):
    _, alone, _, out = run(out="alone")
    beside, scores = expected, scores_of(expected)
    for name in ("audio_embeddings.npy", "video_embeddings.npy", "similarity_matrix.npy", "top_matches.csv"):
        assert (out / name).read_bytes() == (beside / name).read_bytes()
    assert scores["imagebind"] == alone["imagebind"]
    assert not (out / "window_scores.csv").exists()


def test_what_the_first_protocol_drops_is_in_the_scores_of_the_others(run, expected_of_few):
    order = ("mmaudio", *(name for name in PROTOCOLS if name != "mmaudio"))
    status, scores, err, out = run("--protocol", *order, inputs=FEW)
    assert status == 0
    assert f"skipped video file few/video/pattern_24fps_4s.mp4: {NEEDS_4.format(2)}" in err
    rows = table(out / "pair_scores.csv")
    assert [row["name"] for row in rows if row["status"] == "ok"] == ["life_12fps_8s"]
    recorded = SCORES["life_12fps_8s"]["mmaudio_8"]
    assert float(rows[0]["similarity"]) == pytest.approx(recorded, abs=1e-6)
    assert scores["mmaudio"]["n_scored"] == 1
    assert scores["mmaudio"]["dropped"][1]["reason"] == f"video file: {NEEDS_4.format(1)}"
    for name, score in scores_of(expected_of_few).items():  # which has imagebind first
        score["mean"] = pytest.approx(score["mean"], abs=1e-12)
        if name != "mmaudio":
            assert scores[name] == score
    in_order = {row["name"]: row for row in table(expected_of_few / "pair_scores.csv")}
    for row in rows:
        known = in_order[row["name"]]
        for column in (*order, "weakest_start", "weakest_score", "audio_key", "video_key"):
            assert row[column] == known[column]
        assert (row["similarity"] == "") == (row["mmaudio"] == "")
    windows = [table(folder / "window_scores.csv") for folder in (out, expected_of_few)]
    assert sorted(map(str, windows[0])) == sorted(map(str, windows[1]))


def test_a_second_run_reads_nothing_that_is_known(run, monkeypatch):
    others = [name for name in PROTOCOLS if name != "avhscore"]
    _, first, _, _ = run("--protocol", *others, inputs=FEW)
    for reader in ("read_whole_video", "read_whole_sound", "read_clips", "read_sounds"):
        monkeypatch.setattr(loader, reader, None)
    status, second, err, _ = run("--protocol", "all", inputs=FEW)
    assert status == 0
    assert "6 files" in err
    assert "6 from the cache" in err
    assert second["javisscore"] == first["javisscore"]
    for name in ("mmaudio", "mova"):
        assert second[name] == first[name]  # also why two are dropped
    assert second["avhscore"]["n_scored"] == 3


def test_a_damaged_part_of_a_sequence_is_computed_again(run):
    _, first, _, out = run("--protocol", "imagebind", "avhscore", inputs=FEW)
    with closing(sqlite3.connect(out / "embeddings.sqlite")) as connection, connection:
        (n,) = connection.execute(
            "SELECT count(*) FROM rows WHERE side LIKE ?", (f"{VIDEO_FRAMES.name}/%",)
        ).fetchone()
        assert n > 3
        connection.execute(
            "UPDATE rows SET row = zeroblob(length(row)) WHERE side = ?", (f"{VIDEO_FRAMES.name}/1",)
        )
    status, second, _, _ = run("--protocol", "imagebind", "avhscore", inputs=FEW)
    assert status == 0
    assert second == first


@pytest.mark.parametrize("more", [("--no_cache",), ("--retrieval_mode",)], ids=str)
def test_every_way_of_running_gives_the_same_scores(run, expected_of_few, more):
    _, scores, _, _ = run("--protocol", "all", *more, inputs=FEW)
    assert scores == scores_of(expected_of_few)


def test_several_processes_give_the_same_scores(run, folder, monkeypatch):
    monkeypatch.chdir(folder / "few")
    _, expected, _, out = run("--protocol", "all", "--checkpoint", str(SMALL), out="expected")
    argv = ("--no_html", "--protocol", "all", "--output_dir", str(out.parent / "job"))
    statuses, _, errors = Processes(folder / "few", 2, *argv).wait()
    assert statuses == [0, 0], errors
    assert json.loads((out.parent / "job" / "metrics.json").read_text())["scores"] == expected
    for name in ("pair_scores.csv", "window_scores.csv"):
        assert (out.parent / "job" / name).read_bytes() == (out / name).read_bytes()


def test_shards_and_captions_go_with_protocols(run, expected_of_few, tmp_path):
    captions = tmp_path / "captions.csv"
    captions.write_text("name,caption\n" + "".join(f"{name},a sound of {name}\n" for name in SHORT))
    argv = ("--protocol", "all", "--captions", str(captions))
    for shard in ("1/2", "2/2"):
        with pytest.raises(FileNotFoundError):  # a shard writes no metrics
            run(*argv, "--shard", shard, inputs=FEW)
    status, scores, err, _ = run(*argv, inputs=FEW)
    assert status == 0
    assert "9 from the cache" in err
    assert set(scores["reward"].pop("with_text")) == {
        f"reward_{of}" for of in ("text_audio", "text_video", "all")
    }
    assert scores == scores_of(expected_of_few)


def test_the_function_takes_protocols(folder, small_checkpoint, monkeypatch):
    """Writing nothing, keeping nothing."""
    monkeypatch.chdir(folder)
    results = batch_inference_av_consistency(
        *("few/audio", "few/video", "cpu"),
        **{"checkpoint": CHECKPOINT, "protocols": ["imagebind", "javisscore"], "num_workers": 0},
    )
    assert [len(windows) for windows in results["windows"]] == [
        len(SCORES[name]["windows"]) for name in SHORT
    ]
    assert results["pair_scores"][0]["javisscore"] == pytest.approx(
        SCORES["life_12fps_8s"]["javisscore"], abs=1e-6
    )
    for protocols in ([], ["avhscore"], ["imagebind", "imagebind"], "imagebind", ["imagebind", "clip"]):
        with pytest.raises(OptionError, match=r"protocols.* imagebind, mmaudio, mova, reward or t2av, then"):
            batch_inference_av_consistency("audio", "video", "cpu", protocols=protocols)


def test_the_command_line_says_which_protocol_may_lead(capsys):
    with pytest.raises(SystemExit):
        main(["--video_dir", str(MEDIA), "--protocol", "avhscore"])
    assert capsys.readouterr().err.startswith(
        "error: argument --protocol: must be imagebind, mmaudio, mova, reward or t2av, then"
    )


def test_compared_systems_have_a_row_for_each_protocol(run, known, tmp_path, capsys):
    _, _, _, out = run("--protocol", "all", *known, out="a")
    run("--protocol", "imagebind", "avhscore", *known, out="b")
    assert main(["--compare", str(out), str(tmp_path / "b"), "--output_dir", str(tmp_path / "c")]) == 0
    assert "\navhscore:\n" in capsys.readouterr().out
    rows = [(row["protocol"], bool(row["minus"])) for row in table(tmp_path / "c" / "comparison.csv")]
    assert rows == [
        *[("imagebind", False), ("imagebind", False), ("imagebind", True), ("mmaudio", False)],
        *[("avhscore", False), ("avhscore", False), ("avhscore", True), ("javisscore", False)],
        *[("mova", False), ("reward", False), ("t2av", False)],
    ]
    run("--protocol", "all", "--protocol_seconds", "4", *known, out="b")
    run(*known, out="d")
    for order in ("abd", "dab", "bda"):  # whichever is first
        runs = [str(tmp_path / name) for name in order]
        assert main(["--compare", *runs, "--output_dir", str(tmp_path / "c")]) == 1
        assert 'differ in mmaudio: {"seconds": ' in capsys.readouterr().err


def test_systems_of_other_first_protocols_are_compared_by_what_they_share(run, known, tmp_path):
    _, _, _, out = run("--protocol", "imagebind", "mmaudio", "avhscore", *known, out="a")
    run("--protocol", "mmaudio", "imagebind", *known, out="b")
    assert main(["--compare", str(out), str(tmp_path / "b"), "--output_dir", str(tmp_path / "c")]) == 0
    rows = table(tmp_path / "c" / "comparison.csv")
    found = [(row["protocol"], Path(row["system"]).name, Path(row["minus"]).name) for row in rows]
    assert found == [
        *[("imagebind", "a", ""), ("imagebind", "b", ""), ("imagebind", "a", "b")],
        *[("mmaudio", "a", ""), ("mmaudio", "b", ""), ("mmaudio", "a", "b"), ("avhscore", "a", "")],
    ]
    assert [(row["pairs"], row["mean"], row["win_rate"]) for row in rows if row["minus"]] == [
        *[("5", "0", "0.5"), ("3", "0", "0.5")]
    ]
    assert [row["recall_at_1"] != "" for row in rows] == [True, False, False, False, True, False, False]
    assert [row["skipped"] for row in rows[:5]] == ["0", "0", "", "2", "2"]


# Other media


@pytest.fixture
def one(tmp_path, small_checkpoint):
    """Evaluate a video with a sound; give the scores by protocol, and the windows."""

    def one(video: Path, sound: Path | None = None):
        results = batch_inference_av_consistency(
            None if sound is None else [sound],
            [video],
            "cpu",
            checkpoint=CHECKPOINT,
            protocols=["imagebind", "mmaudio", "avhscore", "javisscore"],
            num_workers=0,
        )
        return results["metrics"]["scores"], results["windows"]

    return one


def test_one_frame_is_dropped_by_name(one, tmp_path):
    video = write_video(tmp_path / "x.mp4", [picture(5)])
    scores, _ = one(video, write_audio(tmp_path / "x.wav", tone(1)))
    assert [scores[name]["n_scored"] for name in ("imagebind", "mmaudio", "avhscore", "javisscore")] == [
        1,
        0,
        1,
        0,
    ]
    (dropped,) = scores["javisscore"]["dropped"]
    assert dropped == {
        "name": "x",
        "reason": "javisscore takes the lowest 40 % of a window's frames; of 1 it is none",
    }
    assert scores["javisscore"]["mean"] is None


def test_a_frame_rate_at_which_windows_stand_still_is_dropped(one, tmp_path):
    video = write_video(tmp_path / "x.mp4", [picture(i) for i in range(9)], fps=Fraction(2, 3))
    scores, _ = one(video, write_audio(tmp_path / "x.wav", tone(13)))
    (dropped,) = scores["javisscore"]["dropped"]
    assert dropped["reason"] == "javisscore needs more frames per second than 0.6667"


def test_times_of_windows_are_those_of_their_frames_and_samples(one, tmp_path):
    """Where frames come at varying times; sound and frames have windows of their own, as in the evaluator."""
    pts = [100 * i for i in range(20)] + [6000 + 100 * i for i in range(20)]  # none from 2 to 6 s
    video = write_video(tmp_path / "x.mkv", [picture(i) for i in range(40)], fps=10, pts=pts)
    _, (windows,) = one(video, write_audio(tmp_path / "x.wav", tone(7.9)))
    assert windows[0].start == 0
    assert windows[-1].end == pytest.approx(8, abs=0.1)
    assert any(w.start < 2 and w.end > 6 for w in windows)  # across the gap
    assert [w.audio_start for w in windows] == [0.5 * k for k in range(len(windows))]


def test_copies_of_a_pair_are_one_group_in_every_score(one, tmp_path):
    video = write_video(tmp_path / "v.mp4", [picture(i) for i in range(20)])
    names = {"a": 300, "b": 400, "c": 500, "d": 600}
    sounds = [write_audio(tmp_path / f"{name}.wav", tone(1, hz)) for name, hz in names.items()]
    copies = [
        write_audio(tmp_path / f"{name}{i}.wav", tone(1, hz)) for name, hz in names.items() for i in "12"
    ]
    results = batch_inference_av_consistency(
        *([*sounds, *copies], [video] * 12, "cpu"),
        **{"checkpoint": CHECKPOINT, "protocols": ["imagebind", "avhscore"], "num_workers": 0},
    )
    metrics = results["metrics"]
    assert metrics["groups"] == 4
    assert metrics["scores"]["imagebind"]["interval"] == metrics["paired_similarity_interval"]


def test_all_keeps_the_first_in_its_place(run, known):
    _, scores, err, _ = run("--protocol", "mmaudio", "all", *known)
    assert list(scores) == ["mmaudio", "imagebind", "avhscore", "javisscore", "mova", "reward", "t2av"]
    assert "mmaudio gives 2 of 5 pairs no score: pattern_24fps_4s (video file: mmaudio needs 4" in err


def test_silent_windows_are_marked(one, tmp_path):
    sound = write_audio(
        tmp_path / "x.wav", np.concatenate([tone(3), np.zeros(3 * RATE, np.float32), tone(2)])
    )
    scores, (windows,) = one(write_video(tmp_path / "x.mp4", [picture(i) for i in range(100)]), sound)
    assert scores["javisscore"]["n_scored"] == 1
    assert [w.start for w in windows if w.is_silent] == [3.0]  # 3 to 5 s; the video ends there
    short = write_audio(tmp_path / "short.wav", np.zeros(RATE, np.float32))
    _, (windows,) = one(tmp_path / "x.mp4", short)
    assert [(w.start, w.end, w.is_silent) for w in windows] == [(0.0, 5.0, True)]


def test_a_videos_own_sound_has_all_scores(one, tmp_path):
    scores, _ = one(write_movie(tmp_path / "x.mkv", 300))
    assert [scores[name]["n_scored"] for name in ("imagebind", "avhscore", "javisscore")] == [1, 1, 1]


def test_rotation_is_left_out_as_the_evaluators_do(tmp_path):
    images = [picture(i, 64, 128) for i in range(10)]
    plain, turned = (write_video(tmp_path / f"{r}.mp4", images, rotation=r) for r in (0, 90))
    frames = [next(sequences.read_whole_video(path, [])).pixels for path in (plain, turned)]
    assert torch.equal(*frames)


def test_frames_without_times_are_dropped_by_name(one, tmp_path):
    """In a program stream H.264 has a timestamp now and then, and the filter gives what it happens to see."""
    video = write_video(tmp_path / "x.mpg", [picture(i % 100) for i in range(220)], fps=25)
    scores, _ = one(video, write_audio(tmp_path / "x.wav", tone(8)))
    (dropped,) = scores["mmaudio"]["dropped"]
    assert re.fullmatch(
        r"mmaudio needs the time of each frame, which \d+ of 220 do not have", dropped["reason"]
    )
    assert scores["imagebind"]["n_scored"] == scores["javisscore"]["n_scored"] == 1


def test_durations_that_want_other_frames_are_cached_apart(run):
    argv = ("--protocol", "imagebind", "mmaudio", "--protocol_seconds")
    run(*argv, "7.9999999", inputs=FEW)
    _, found, _, _ = run(*argv, "8", inputs=FEW)
    _, expected, _, _ = run(*argv, "8", "--no_cache", inputs=FEW)
    assert found == expected


def test_a_worker_that_dies_in_the_middle_costs_the_sequence_alone(pairs):
    video = pairs / "video" / "a.mp4"
    write_video(video, [picture(i % 100) for i in range(300)])
    argv = ("--protocol", "imagebind", "avhscore", "--num_workers", "1", "--output_dir", "outputs")
    program = Program(pairs, *argv)
    os.kill(program.reader_of(video), signal.SIGKILL)
    status, out, _ = program.wait()
    scores = json.loads((pairs / "outputs" / "metrics.json").read_text())["scores"]
    assert status == 0
    assert out[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 0 files"
    assert scores["avhscore"]["dropped"] == [{"name": "a", "reason": "its process was killed (SIGKILL)"}]
    assert scores["imagebind"]["n_scored"] == 4


def test_a_long_still_shows_that_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "FRAMES_PER_SIGN", 10)
    path = write_video(tmp_path / "x.mp4", [picture(30)] * 100, options={"crf": "0"})
    file = ("video", Source(str(path)), (VIDEO, VIDEO_FRAMES))
    *parts, whole = loader.read_file(loader.Reading(), file)
    assert sum(part.is_empty for part in parts) >= 8
    assert [part.number for part in parts if not part.is_empty] == [0]
    assert whole.features[VIDEO_FRAMES.name].facts.n_rows == 1
