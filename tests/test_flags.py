"""Files that show or play nothing: which are flagged, and that every way to a score flags the same ones."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEMO, Program, picture, tone, write_audio, write_video
from test_job import Processes, n_from_cache

from batch_inference import batch_inference_av_consistency
from imagebind import data
from imagebind.data import sequences
from imagebind.data.flags import HeardSamples
from imagebind.data.video import to_input

LOUD = tone(3, 440, 44100) * 2.4  # that does not fit
BEHIND = np.zeros(10 * 16000, np.float32)
BEHIND[3 * 16000 : 3 * 16000 + 8000] = tone(0.5)  # the clips are at 0, 4 and 8 s
CLICKS = np.zeros(3 * 44100, np.float32)
CLICKS[::40] = 1
CHECKPOINT = DEMO / "imagebind_demo.pth"
SQUARE = np.sign(tone(3, 100, 44100))


def stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([left, right])


@pytest.mark.parametrize(
    ("samples", "rate", "codec", "suffix", "flags"),
    [
        (tone(3), 16000, "pcm_s16le", "wav", ""),
        (tone(3) * 0.005, 16000, "pcm_s16le", "wav", ""),  # -52 dB
        (tone(3) * 0, 16000, "pcm_s16le", "wav", "silent"),
        (tone(3) * 0.0019, 44100, "pcm_f32le", "wav", "silent"),
        (tone(3) * 0 - 1 / 128, 8000, "pcm_u8", "wav", "silent"),  # an offset
        (tone(3) * 0, 44100, "aac", "m4a", "silent"),
        (stereo(tone(3) * 0, tone(3)), 16000, "pcm_s16le", "wav", "silent"),  # the first channel counts
        (stereo(tone(3), tone(3) * 0), 16000, "pcm_s16le", "wav", ""),
        (BEHIND, 16000, "pcm_s16le", "wav", "silent"),
        (np.tile(tone(1, 440, 8000), 62) * 0.0019, 8000, "pcm_f32le", "wav", "silent"),  # decoded twice
        (np.tile(LOUD[::3].clip(-1, 1), 21), 14700, "pcm_f32le", "wav", "clipped"),  # likewise
        (LOUD[:20000].clip(-1, 1), 44100, "pcm_s16le", "wav", "clipped"),
        (np.tile(LOUD, 3).clip(-1, 1), 44100, "flac", "flac", "clipped"),  # clips do not overlap
        (LOUD.clip(-1, 1), 44100, "pcm_u8", "wav", "clipped"),
        (LOUD.clip(-1, 1), 48000, "libopus", "ogg", "clipped"),
        (LOUD, 44100, "pcm_f32le", "wav", "clipped"),
        (SQUARE * 0.9, 44100, "pcm_s16le", "wav", ""),
        (SQUARE * 0.9, 44100, "aac", "m4a", ""),  # which has samples beyond full scale
        (SQUARE, 44100, "pcm_s16le", "wav", "clipped"),
        (CLICKS, 44100, "pcm_s16le", "wav", ""),
        (tone(3, 50, 44100) * 2, 44100, "pcm_u8", "wav", ""),
        (tone(3, 1000, 48000) * 2, 48000, "pcm_s16le", "wav", ""),
    ],
)
def test_a_sound_has_the_flag_that_it_should(tmp_path, samples, rate, codec, suffix, flags):
    path = tmp_path / f"x.{suffix}"
    write_audio(path, samples.astype(np.float32), rate, codec)
    assert data.read_audio(path).flags == flags
    *_, whole = sequences.read_whole_sound(path)  # where the windows are wanted too
    assert whole.clips[0].flags == flags


def test_no_sine_of_full_scale_is_clipped_and_all_that_are_cut_are():
    for rate in (8000, 16000, 44100, 48000):
        for hz in (20, 50, 60, 100, 375, 440, 750, 1000, 1500, 2000, 3000):
            for phase in (0, 0.1, np.pi / 4, np.pi / 2):
                sine = torch.sin(2 * torch.pi * hz * torch.arange(2 * rate).double() / rate + phase)
                in_8_bits = (sine * 128).round().clamp(-128, 127) / 128
                flags = [heard(x, rate) for x in (sine, in_8_bits, (1.2 * sine).clamp(-1, 1))]
                assert flags[:2] == ["", ""], (rate, hz, phase)
                assert flags[2] == "clipped" or hz > rate / 16, (rate, hz, phase)


def heard(samples: torch.Tensor, rate: int) -> str:
    heard = HeardSamples()
    heard.hear(samples[None].float(), [(0, 32000)], rate, 16000)
    return heard.flags


def plain(*rgb: int) -> np.ndarray:
    return np.full((64, 96, 3), rgb, np.uint8)


def with_square(image: np.ndarray, size: int, x: int = 0) -> np.ndarray:
    image = image.copy()
    image[:size, x : x + size] = 255
    return image


@pytest.mark.parametrize(
    ("images", "flags"),
    [
        ([picture(k) for k in range(20)], ""),
        ([plain(0, 0, 0)] * 20, "black;still"),
        ([plain(24, 24, 24)] * 20, "black;still"),
        ([plain(30, 30, 30)] * 20, "still"),
        ([plain(0, 0, 255)] * 20, "still"),  # with little luma
        ([with_square(plain(0, 0, 0), 10, 4 * k) for k in range(20)], "black"),  # of 1.6 %
        ([with_square(plain(0, 0, 0), 13, 4 * k) for k in range(20)], ""),  # of 2.8 %
        ([plain(0, 0, 0)] * 19 + [picture(3)], ""),  # of the last frame alone
        ([picture(3)] * 20, "still"),
        ([picture(3)], "still"),
    ],
)
def test_a_video_has_the_flags_that_it_should(tmp_path, images, flags):
    path = write_video(tmp_path / "x.mkv", images, "ffv1", pix_fmt="bgr0")
    assert data.read_video(path).flags == flags
    assert data.read_video(write_video(tmp_path / "x.mp4", images)).flags == flags


def test_a_picture_that_changes_its_size_does_not_stand_still():
    small, large = torch.zeros(3, 224, 298), torch.zeros(3, 298, 224)
    assert to_input([(0, 1)], {0: small, 1: small}).flags == "still"
    assert to_input([(0, 1)], {0: small, 1: large}).flags == ""


# All the way


@pytest.fixture
def flagged(pairs) -> Path:
    """`pairs`, and e and f, whose pictures are black and sounds silent, and g, whose sound is clipped."""
    for name in "ef":
        write_audio(pairs / "audio" / f"{name}.wav", tone(1) * 0, codec="pcm_s16le")
        write_video(pairs / "video" / f"{name}.mp4", [plain(0, 0, 0)] * 20)
    write_audio(pairs / "audio" / "g.wav", LOUD.clip(-1, 1), 44100, "pcm_s16le")
    shutil.copy(pairs / "video" / "a.mp4", pairs / "video" / "g.mp4")
    (pairs / "video" / "h.mp4").write_text("not a video")
    shutil.copy(pairs / "audio" / "a.wav", pairs / "audio" / "h.wav")
    return pairs


KNOWN = {
    **dict.fromkeys("abcdh", ("", "")),
    **dict.fromkeys("ef", ("black;still", "silent")),
    "g": ("", "clipped"),
}
COUNTS = {
    "audio": {"silent": 2, "clipped": 1, "unknown": 0},
    "video": {"black": 2, "still": 2, "unknown": 0},
}


def columns(folder: Path) -> dict[str, tuple[str, str]]:
    with open(folder / "pair_scores.csv", encoding="utf-8-sig") as file:
        return {row["name"]: (row["video_flags"], row["audio_flags"]) for row in csv.DictReader(file)}


def flags_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["flags"]


def forget_flags(folder: Path, side: str = "%") -> None:
    """Make a cache of an earlier version of one."""
    with closing(sqlite3.connect(folder / "embeddings.sqlite")) as connection, connection:
        assert connection.execute("DELETE FROM rows WHERE side LIKE ?", (f"{side}/flags",)).rowcount


def test_a_run_tells_of_flagged_files_and_finds_them_again(flagged):
    status, out, err = Program(flagged, "--num_workers", "2", "--report_lang", "en").wait()
    assert status == 0
    assert columns(flagged / "outputs") == KNOWN
    with open(flagged / "outputs" / "pair_scores.csv", encoding="utf-8-sig") as file:
        scores = {row["name"]: row["similarity"] for row in csv.DictReader(file)}
    mean = sum(float(scores[name]) for name in "abcd") / 4
    flags = flags_of(flagged / "outputs")
    assert flags == {"pairs": 3, "mean_without": pytest.approx(mean), **COUNTS}
    (warning,) = (line for line in err if "flagged" in line)
    assert warning == (
        "warning: 3 of 7 pairs have a flagged file (black: 2, still: 2, silent: 2, clipped: 1): see "
        f"video_flags and audio_flags in pair_scores.csv; without them the mean is {mean:.4f}"
    )
    begin = out.index("Flagged files:")
    assert out[begin + 1 : begin + 7] == [
        "  Videos that are black in all frames that are seen: 2",
        "  Videos that stand still: 2",
        "  Sounds that are silent: 2",
        "  Sounds that are clipped: 1",
        "  Pairs with one of them: 3 of 7",
        f"  Mean similarity of the other pairs: {mean:.4f}",
    ]
    page = (flagged / "outputs" / "report.html").read_text()
    assert all(
        json.dumps(text) in page for text in ("pairs with a flagged file", "video flags", "black, still")
    )
    _, out, again = Program(flagged).wait()
    assert n_from_cache(again) == 15
    assert warning in again
    assert "  静音的音频: 2" in out
    assert (columns(flagged / "outputs"), flags_of(flagged / "outputs")) == (KNOWN, flags)


def test_of_embeddings_of_an_earlier_version_no_flag_is_known(flagged):
    Program(flagged).wait()
    forget_flags(flagged / "outputs")
    (flagged / "audio" / "a.wav").unlink()
    write_audio(flagged / "audio" / "a.wav", tone(1) * 0 - 0.5)  # a new one
    status, out, _ = Program(flagged, "--report_lang", "en").wait()
    assert status == 0
    assert columns(flagged / "outputs") == dict.fromkeys(KNOWN, ("unknown", "unknown")) | {
        **{"a": ("unknown", "silent"), "h": ("", "")}  # h is skipped
    }
    flags = flags_of(flagged / "outputs")
    assert (flags["pairs"], flags["audio"], flags["video"]) == (
        1,
        {"silent": 1, "clipped": 0, "unknown": 6},
        {"black": 0, "still": 0, "unknown": 7},
    )
    assert any(line.startswith("  Files of which this is not known: 13, whose embeddings") for line in out)
    results = evaluate(flagged, output_dir=flagged / "outputs")
    assert [pair["audio_flags"] for pair in results["pair_scores"]] == ["silent", *6 * ["unknown"]]
    assert evaluate(flagged, no_cache=True)["metrics"]["flags"]["audio"]["unknown"] == 0


def evaluate(folder: Path, **options) -> dict:
    options = {"num_workers": 0, "device": "cpu", "checkpoint": CHECKPOINT} | options
    return batch_inference_av_consistency(*(str(folder / m) for m in ("audio", "video")), **options)


def test_shares_and_processes_hand_flags_over(flagged):
    for share in ("1/2", "2/2"):
        assert Program(flagged, "--shard", share).wait()[0] == 0
    assert n_from_cache(Program(flagged).wait()[2]) == 15
    assert columns(flagged / "outputs") == KNOWN
    status, _, err = Processes(flagged, 2, "--output_dir", "job").wait()
    assert status == [0, 0], err
    assert columns(flagged / "job") == KNOWN
    assert flags_of(flagged / "job") == flags_of(flagged / "outputs")


def test_parts_of_files_and_pairs_alone(flagged):
    """Of a file that is black, and then not, each part is what it is; rows of one file have its flags."""
    images = [plain(0, 0, 0)] * 40 + [picture(k) for k in range(40)]
    write_video(flagged / "video" / "part.mp4", images)
    write_audio(flagged / "audio" / "part.wav", np.concatenate([tone(2), tone(2) * 0]))
    lines = ["id,audio,video,start,end,audio_flags"]
    lines += [f"{i},audio/part.wav,video/part.mp4,{i},{i + 1},mine" for i in (0, 1, 2, 3)]
    lines += ["e,audio/e.wav,video/a.mp4,,,mine", "f,audio/e.wav,video/b.mp4,,,mine", "h,,video/h.mp4,,,mine"]
    (flagged / "pairs.csv").write_text("\n".join(lines))
    for options in ((), ("--pairs_only",)):
        run = Program(flagged, "--output_dir", "out", *options, inputs=("--manifest", "pairs.csv"))
        assert run.wait()[0] == 0
        black = {str(i): ("black;still" if i < 2 else "", "" if i < 2 else "silent") for i in range(4)}
        others = {"e": ("", "silent"), "f": ("", "silent"), "h": ("", "")}
        assert columns(flagged / "out") == black | others
        assert flags_of(flagged / "out")["audio"] == {"silent": 3, "clipped": 0, "unknown": 0}
        header = (flagged / "out" / "pair_scores.csv").read_text("utf-8-sig").splitlines()[0].split(",")
        assert header.index('"manifest_audio_flags"') > header.index('"audio_flags"')


def test_files_without_a_partner_count_where_they_are_kept(flagged):
    (flagged / "video" / "e.mp4").unlink()
    assert Program(flagged, "--retrieval_mode").wait()[0] == 0
    flags = flags_of(flagged / "outputs")
    assert (flags["pairs"], flags["audio"]["silent"], flags["video"]["black"]) == (2, 2, 1)
    for path in (flagged / "audio").iterdir():
        path.rename(path.with_stem(f"other_{path.stem}"))
    assert Program(flagged, "--retrieval_mode").wait()[0] == 0
    flags = flags_of(flagged / "outputs")
    assert (flags["pairs"], flags["mean_without"], flags["audio"]["silent"]) == (0, None, 2)


@pytest.mark.parametrize("first", ["mmaudio", "imagebind"])
def test_the_frames_are_those_of_the_first_protocol(tmp_path, first):
    """At 25 fps mmaudio looks at frames 24 and 74, and the other at none of these."""
    images = [plain(0, 0, 0) if k in (24, 74) else picture(k) for k in range(110)]
    write_video(tmp_path / "video" / "a.mp4", images, fps=25)
    write_audio(tmp_path / "audio" / "a.wav", tone(4))
    protocols = sorted(["mmaudio", "imagebind"], reverse=first == "mmaudio")
    (pair,) = evaluate(tmp_path, protocols=protocols, protocol_seconds=4)["pair_scores"]
    assert pair["mmaudio"] is not None
    assert pair["video_flags"] == ("black;still" if first == "mmaudio" else "")


def test_sequences_of_a_file_change_no_flag(flagged):
    results = evaluate(flagged, protocols=["imagebind", "avhscore", "javisscore"])
    found = {pair["name"]: (pair["video_flags"], pair["audio_flags"]) for pair in results["pair_scores"]}
    assert found == {name: flags for name, flags in KNOWN.items() if name != "h"}
    assert results["skipped_pairs"][0]["video_flags"] is None


@pytest.mark.parametrize("n_flagged", [1, 2])
def test_a_hundredth_of_the_pairs_is_not_warned_of(flagged, n_flagged):
    rows = ["audio/e.wav,video/a.mp4"] * n_flagged + ["audio/a.wav,video/b.mp4"] * (100 - n_flagged)
    (flagged / "pairs.csv").write_text("\n".join(["audio,video", *rows]))
    status, _, err = Program(flagged, "--pairs_only", inputs=("--manifest", "pairs.csv")).wait()
    assert status == 0
    assert flags_of(flagged / "outputs")["pairs"] == n_flagged
    assert any("flagged" in line for line in err) == (n_flagged == 2)
