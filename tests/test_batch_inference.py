"""Whole runs, through the command line and the API: what is written, said and returned."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO, TESTS, Program, picture, tone, write_audio, write_movie, write_video
from demo import make_demo
from PIL import Image

from batch_inference import (
    EvaluationError,
    batch_inference_av_consistency,
    format_report,
    main,
)
from imagebind import data
from imagebind.evaluation.embed import progress
from imagebind.evaluation.write.reasons import in_language
from imagebind.models import download, imagebind_model
from imagebind.models.imagebind_model import load_model, save_model

ROOT = TESTS.parent
OUTPUTS = {
    "audio_embeddings.npy",
    "video_embeddings.npy",
    "similarity_matrix.npy",
    "audio_names.txt",
    "video_names.txt",
    "pairs.txt",
    "pair_scores.csv",
    "top_matches.csv",
    "metrics.json",
    "consistency_report.txt",
    "report.html",
    "embeddings.sqlite",
}


def refuse_constant(name: str):
    raise AssertionError(f"{name} is not JSON")


class Outputs:
    """What a run wrote."""

    def __init__(self, folder):
        self.folder = folder
        self.audio, self.video, self.similarity = (
            np.load(folder / name)
            for name in ("audio_embeddings.npy", "video_embeddings.npy", "similarity_matrix.npy")
        )
        self.audio_names, self.video_names, pairs, self.report = (
            (folder / name).read_text(encoding="utf-8")
            for name in ("audio_names.txt", "video_names.txt", "pairs.txt", "consistency_report.txt")
        )
        self.audio_names, self.video_names = self.audio_names.splitlines(), self.video_names.splitlines()
        self.pairs = [tuple(line.split("\t")) for line in pairs.splitlines()]
        self.metrics = json.loads(
            (folder / "metrics.json").read_text("utf-8"), parse_constant=refuse_constant
        )


@pytest.fixture
def run(pairs, small_checkpoint, monkeypatch, capsys):
    """Run the command line inside the directory of `pairs`; give status, outputs, stdout and stderr."""
    monkeypatch.chdir(pairs)

    def run(*argv, audio=("--audio_dir", "audio"), video=("--video_dir", "video"), out="outputs", loads=True):
        options = ["--checkpoint", str(small_checkpoint), "--device", "cpu", "--output_dir", out]
        status = main([*audio, *video, *options, *argv])
        text = capsys.readouterr()
        outputs = Outputs(pairs / out) if status == 0 and loads else None
        if outputs:  # whatever a report says, it can say it in English
            assert format_report(outputs.metrics, "en").replace("±", "").isascii()
        return status, outputs, text.out, text.err

    return run


@pytest.fixture(scope="module")
def rows(tmp_path_factory, small_checkpoint):
    """Embed files one by one by hand: (side, path) -> row."""
    model = load_model(small_checkpoint)

    @torch.inference_mode()
    def rows(side, path):
        load, modality = {"audio": (data.load_audio, "audio"), "video": (data.load_video, "vision")}[side]
        return model({modality: load(path)[None]})[modality][0].numpy()

    return rows


# The demo


def run_demo(out, *inputs: str) -> Outputs:
    assert main([*inputs, "--checkpoint", f"{DEMO}/imagebind_demo.pth", "--output_dir", str(out)]) == 0
    return Outputs(out)


def test_the_demo_finds_its_pairs_and_not_others(tmp_path, capsys):
    """Held-out pairs are found far above chance; the same files wrongly paired score chance."""
    true = run_demo(tmp_path / "true", "--audio_dir", f"{DEMO}/audio", "--video_dir", f"{DEMO}/video")
    n = true.metrics["counts"]["pairs"]
    assert n >= 24
    assert true.audio.shape == true.video.shape == (n, 1024)
    for ranks in (true.metrics, true.metrics["video_to_audio"]):
        assert ranks["recall_at_1"] > 0.6  # chance: 1 / 24

    sounds, videos = (sorted(map(str, (DEMO / side).iterdir())) for side in ("audio", "video"))
    random.Random(0).shuffle(videos)
    renamed = [f"{tmp_path}/shuffled_{os.path.basename(path)}" for path in videos]  # to pair by position
    for path, copy in zip(videos, renamed, strict=True):
        shutil.copy(path, copy)
    (tmp_path / "sounds.txt").write_text("\n".join(sounds))
    (tmp_path / "videos.txt").write_text("\n".join(renamed))
    shuffled = run_demo(
        tmp_path / "out", "--audio_file", f"{tmp_path}/sounds.txt", "--video_file", f"{tmp_path}/videos.txt"
    )
    assert shuffled.metrics["counts"]["pairs"] == n
    assert shuffled.metrics["recall_at_1"] < 0.2
    assert shuffled.metrics["mean_rank"] > n / 4
    assert true.metrics["paired_similarity_mean"] > shuffled.metrics["paired_similarity_mean"] + 0.5
    back = [videos.index(path) for _, path in true.pairs]  # a file has its row wherever it stands
    np.testing.assert_allclose(shuffled.video[back], true.video, atol=1e-5)


def test_the_demo_says_that_it_is_one(tmp_path, capsys):
    files = ["--audio_paths", f"{DEMO}/audio/spin_1.flac", "--video_paths", f"{DEMO}/video/spin_1.mp4"]
    status = main([*files, "--checkpoint", f"{DEMO}/imagebind_demo.pth", "--output_dir", str(tmp_path)])
    assert status == 0
    note = "demo weights, trained on drawn scenes: these scores say nothing about real media"
    outputs = Outputs(tmp_path)
    assert outputs.metrics["protocol"]["checkpoint"]["note"] == note
    assert "注意: 演示权重，只用绘制的场景训练：这些分数不能说明真实的媒体" in outputs.report
    assert "演示权重" in capsys.readouterr().out
    assert (DEMO / "imagebind_demo.pth").stat().st_size <= 3_000_000


def make_pairs(folder, n: int, seed: int):
    """Make pairs as the demo's are made, of all tones."""
    rng, kinds = np.random.default_rng(seed), list(make_demo.KINDS)
    for i in range(n):
        scene = make_demo.Scene.draw(rng, kind=kinds[i % len(kinds)], tone=(i + 0.5) / n)
        write_audio(folder / "audio" / f"{i:02}.wav", make_demo.sound(scene, 3))
        frames = [make_demo.picture(scene, k / make_demo.FPS) for k in range(3 * make_demo.FPS)]
        write_video(folder / "video" / f"{i:02}.mp4", frames, fps=make_demo.FPS)


def test_a_planted_mismatch_is_the_suspect(tmp_path, capsys):
    """Among 40 pairs that the small model tells from chance, one gets another's sound."""
    make_pairs(tmp_path, 40, seed=4)
    inputs = ("--audio_dir", f"{tmp_path}/audio", "--video_dir", f"{tmp_path}/video")
    unplanted = run_demo(tmp_path / "out", *inputs)
    assert unplanted.metrics["suspects"] == 0
    assert {row["suspect"] for row in pair_scores(unplanted)} == {"no"}
    shutil.copy(tmp_path / "audio" / "07.wav", tmp_path / "audio" / "30.wav")
    planted = run_demo(tmp_path / "out", *inputs)
    assert [row["name"] for row in pair_scores(planted) if row["suspect"] == "yes"] == ["30"]
    assert [suspect["name"] for suspect in planted.metrics["lowest_suspects"]] == ["30"]
    assert "可疑配对: 1\n    30: " in planted.report


# Pairing mode


def test_pairing_mode_writes_every_output(run, rows):
    status, outputs, out, _ = run("--batch_size", "3")
    assert status == 0
    assert set(os.listdir(outputs.folder)) == OUTPUTS | {".written.json"}
    assert outputs.pairs == [(f"audio/{x}.wav", f"video/{x}.mp4") for x in "abcd"]
    assert outputs.audio_names == outputs.video_names == list("abcd")
    assert outputs.audio.dtype == outputs.video.dtype == outputs.similarity.dtype == np.float32
    np.testing.assert_allclose(outputs.audio, [rows("audio", a) for a, _ in outputs.pairs], atol=1e-5)
    np.testing.assert_allclose(outputs.video, [rows("video", v) for _, v in outputs.pairs], atol=1e-5)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (outputs.audio, outputs.video)]
    np.testing.assert_allclose(outputs.similarity, unit[0] @ unit[1].T, atol=1e-6)
    metrics = outputs.metrics
    np.testing.assert_allclose(metrics["paired_similarities"], outputs.similarity.diagonal())
    assert metrics["paired_similarity_mean"] == pytest.approx(outputs.similarity.diagonal().mean())
    assert metrics["mode"] == "pairing"
    assert metrics["pairing_rule"] == "stem"
    assert metrics["counts"] == {
        "audio": 4,
        "video": 4,
        "pairs": 4,
        "pairs_skipped": 0,
        "copies": 0,
        "unmatched": 0,
        "failed": 0,
    }
    assert outputs.report in out
    assert out.splitlines()[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 0 files"


def test_the_report_has_the_guides_form(run):
    _, outputs, _, _ = run()
    m = outputs.metrics
    assert outputs.report.startswith(
        f"""\
================================================================================
音频-视频一致性评估报告
================================================================================

注意: test weights

音频数量: 4
视频数量: 4
配对数量: 4

相似度统计:
  平均相似度: {m["similarity_matrix_mean"]:.4f}
  标准差: {m["similarity_matrix_std"]:.4f}

配对一致性:
  平均配对相似度: {m["paired_similarity_mean"]:.4f} ± {m["paired_similarity_std"]:.4f} (标准差)
  最小值: {m["paired_similarity_min"]:.4f}
  最大值: {m["paired_similarity_max"]:.4f}

检索性能:
  平均排名: {m["mean_rank"]:.2f}
  中位数排名: {m["median_rank"]:.2f}
  Recall@1: {m["recall_at_1"]:.4f}
  Recall@5: {m["recall_at_5"]:.4f}
  Recall@10: {m["recall_at_10"]:.4f}
"""
    )
    labels = [line.strip().partition(":")[0] for line in outputs.report.splitlines()]
    for label in (
        "平均相似度",
        "标准差",
        "平均配对相似度",
        "最小值",
        "最大值",
        "平均排名",
        "中位数排名",
        "Recall@1",
    ):
        assert sum(other.startswith(label) for other in labels) == (2 if label == "Recall@1" else 1), label


def test_the_report_is_english_on_request(run):
    _, outputs, out, _ = run("--report_lang", "en")
    assert "Audio-video consistency report" in outputs.report
    assert outputs.report.replace("±", "").isascii()
    assert outputs.report in out


def test_unmatched_files_are_ignored_counted_and_named(run, pairs):
    for i in range(7):
        (pairs / "video" / f"more{i}.mp4").write_text("never opened")
    (pairs / "audio" / "d.wav").unlink()
    status, outputs, out, err = run()
    assert status == 0
    assert outputs.audio_names == outputs.video_names == list("abc")
    assert outputs.metrics["counts"] == {
        "audio": 3,
        "video": 3,
        "pairs": 3,
        "pairs_skipped": 0,
        "copies": 0,
        "unmatched": 8,
        "failed": 0,
    }
    named = ", ".join(f"video/{x}.mp4" for x in ("d", "more0", "more1", "more2", "more3"))
    assert f"warning: 8 video files without a partner: {named} and 3 more\n" in err
    assert out.splitlines()[-1] == "evaluated 3 pairs, skipped 0 files, unmatched 8 files"


def test_the_protocol_says_how(run, small_checkpoint):
    _, outputs, _, _ = run()
    protocol = outputs.metrics["protocol"]
    assert protocol["checkpoint"] == {
        "file": "small.pth",
        "sha256": hashlib.sha256(small_checkpoint.read_bytes()).hexdigest(),
        "note": "test weights",
    }
    assert (protocol["precision"], protocol["device"]) == ("fp32", "cpu")
    assert (protocol["audio"]["clips"], protocol["audio"]["channel"]) == (3, "first")
    assert [protocol["video"][key] for key in ("clips", "frames_per_clip", "crops")] == [5, 2, 3]
    assert protocol["versions"]["torch"] == torch.__version__.split("+")[0]


def test_progress_is_lines_where_there_is_no_terminal(run, monkeypatch):
    _, _, _, err = run(out="quiet")
    assert " left" not in err  # a short run says nothing between
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", -1)
    _, _, _, err = run()
    assert re.findall(r"^(\d) of 8 files(?:, \d+ s left)?$", err, re.M) == list("12345678")
    _, _, _, err = run()
    assert re.findall(r"^(\d) of 8 files, (\d) cached$", err, re.M) == [(n, n) for n in "12345678"]


def test_a_line_says_where_the_time_went(run):
    time, model = r"[\d.]+ s", r"loading the model took [\d.]+ s, computing [\d.]+ s"
    waiting = rf"waiting for files {time}; 2 workers read for {time} in all"
    _, _, _, err = run("--num_workers", "2")
    assert re.search(rf"^8 files in {time}, 0 from the cache: {model}, {waiting}$", err, re.M)
    _, _, _, err = run("--num_workers", "0")
    assert re.search(rf"^8 files in {time}, 8 from the cache: reading files {time}$", err, re.M)


# Pair by pair


def pair_scores(outputs) -> list[dict[str, str]]:
    with open(outputs.folder / "pair_scores.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_each_pair_has_its_line(run, pairs, small_checkpoint):
    """In the order of pairs.txt, with the numbers of the matrix and of the rows."""
    (pairs / "video" / "b.mp4").unlink()
    write_video(pairs / "video" / "z.mp4", [picture(k) for k in range(20)])
    _, outputs, _, _ = run("--retrieval_mode")
    scale = load_model(small_checkpoint).towers["audio"].scale.item()
    table = pair_scores(outputs)
    assert [(row["audio"], row["video"]) for row in table] == outputs.pairs
    assert [row["name"] for row in table] == ["a", "c", "d"]
    places = [(outputs.audio_names.index(x), outputs.video_names.index(x)) for x in "acd"]
    for row, (i, j) in zip(table, places, strict=True):
        score = outputs.similarity[i, j]
        assert float(row["similarity"]) == pytest.approx(score, rel=1e-5)
        assert float(row["video_rank"]) == 1 + (outputs.similarity[i] > score).sum()
        assert float(row["audio_rank"]) == 1 + (outputs.similarity[:, j] > score).sum()
        beside = [*np.delete(outputs.similarity[i], j), *np.delete(outputs.similarity[:, j], i)]
        assert float(row["percentile"]) == pytest.approx(np.mean(beside < score))
        alike = np.linalg.norm(outputs.audio[i]) / scale
        assert float(row["audio_clips_alike"]) == pytest.approx(alike, rel=1e-4)
        assert float(row["video_clips_alike"]) == pytest.approx(np.linalg.norm(outputs.video[j]), rel=1e-4)
        assert row["suspect"] == ""  # 13 mismatches tell nothing
    assert "可疑配对: 配对太少，无法判断" in outputs.report


def test_clips_that_differ_show(run, pairs):
    """A second of one note has equal clips; a file of two notes has not."""
    write_audio(pairs / "audio" / "b.wav", np.concatenate([tone(4, 300), tone(4, 3000)]))
    _, outputs, _, _ = run()
    alike = {row["name"]: float(row["audio_clips_alike"]) for row in pair_scores(outputs)}
    assert alike["a"] == pytest.approx(1, abs=1e-4)
    assert alike["b"] < 0.999


def test_no_cell_of_the_table_is_a_formula(run, pairs):
    for side, suffix in (("audio", ".wav"), ("video", ".mp4")):
        for old, new in (("a", "=1+1"), ("b", "@x"), ("c", "-1pR_y-2.x"), ("d", '+,"z"')):
            (pairs / side / f"{old}{suffix}").rename(pairs / side / f"{new}{suffix}")
        shutil.copy(pairs / side / f"=1+1{suffix}", pairs / side / f"-1+1{suffix}")
    _, outputs, _, _ = run()
    assert (outputs.folder / "pair_scores.csv").read_bytes().startswith(b'\xef\xbb\xbf"name","audio",')
    table = pair_scores(outputs)
    assert {row["name"] for row in table} == {"'=1+1", "'@x", "-1pR_y-2.x", '\'+,"z"', "'-1+1"}
    assert all(not value.startswith(("=", "@", "+")) for row in table for value in row.values())


def test_the_interval_is_the_same_again(run):
    first, second = (run("--seed", "3")[1].metrics for _ in range(2))
    assert first["bootstrap_seed"] == 3
    assert first["paired_similarity_interval"] == second["paired_similarity_interval"]
    low, high = first["paired_similarity_interval"]
    assert low < first["paired_similarity_mean"] < high


def test_without_audio_each_video_is_judged_by_its_own_sound(run, pairs):
    for name, hz in (("loud", 300), ("high", 900)):
        write_movie(pairs / "video" / f"{name}.mkv", hz)
    status, outputs, out, err = run(audio=())
    assert status == 0
    assert outputs.metrics["pairing_rule"] == "file"
    assert outputs.pairs == [(f"video/{x}.mkv", f"video/{x}.mkv") for x in ("high", "loud")]
    assert "no audio is given: each video's own sound is judged against its picture" in err
    assert "warning: skipped audio file video/a.mp4: no audio stream" in err
    assert out.splitlines()[-1] == "evaluated 2 pairs, skipped 4 files, unmatched 0 files"
    alone = [
        write_audio(pairs / "audio" / f"{x}.wav", tone(1, hz)) for x, hz in (("high", 900), ("loud", 300))
    ]
    _, expected, _, _ = run(audio=("--audio_paths", *map(str, alone)), out="expected")
    np.testing.assert_allclose(outputs.similarity, expected.similarity, atol=1e-5)


# Retrieval mode


def test_retrieval_mode_keeps_distractors_and_knows_the_truth(run, pairs, rows):
    """Rows are all files; the truth is the pairing by name, not the place in the matrix."""
    (pairs / "audio" / "b.wav").unlink()
    (pairs / "video" / "a.mp4").rename(pairs / "video" / "aa.mp4")
    write_audio(pairs / "audio" / "0.wav", tone(1, 900))
    status, outputs, _, _ = run("--retrieval_mode")
    assert status == 0
    assert outputs.audio_names == ["0", "a", "c", "d"]
    assert outputs.video_names == ["aa", "b", "c", "d"]
    assert outputs.pairs == [("audio/c.wav", "video/c.mp4"), ("audio/d.wav", "video/d.mp4")]
    assert outputs.similarity.shape == (4, 4)
    np.testing.assert_allclose(outputs.video[1], rows("video", "video/b.mp4"), atol=1e-5)
    m = outputs.metrics
    assert m["mode"] == "retrieval"
    assert m["counts"] == {
        "audio": 4,
        "video": 4,
        "pairs": 2,
        "pairs_skipped": 0,
        "copies": 0,
        "unmatched": 4,
        "failed": 0,
    }
    np.testing.assert_allclose(m["paired_similarities"], [outputs.similarity[2, 2], outputs.similarity[3, 3]])
    ranks = [1 + (outputs.similarity[i] > outputs.similarity[i, i]).sum() for i in (2, 3)]
    assert m["mean_rank"] == np.mean(ranks)
    ranks = [1 + (outputs.similarity[:, i] > outputs.similarity[i, i]).sum() for i in (2, 3)]
    assert m["video_to_audio"]["mean_rank"] == np.mean(ranks)
    assert "无配对，作为干扰项: 4" in outputs.report


def test_without_any_common_name_all_are_compared_without_truth(run, pairs):
    for path in sorted((pairs / "audio").iterdir()):
        path.rename(path.with_stem(f"sound_{path.stem}"))
    status, outputs, out, err = run("--retrieval_mode")
    assert status == 0
    assert "warning: no file name is on both sides; all files are compared, without knowing the pairs" in err
    assert outputs.similarity.shape == (4, 4)
    assert outputs.pairs == []
    assert outputs.metrics["mode"] == "retrieval"
    assert outputs.metrics["pairing_rule"] == "none"
    assert "mean_rank" not in outputs.metrics
    assert "paired_similarity_mean" not in outputs.metrics
    assert outputs.report.count("无: 两侧没有相同的文件名，不知道哪些文件成对") == 2
    assert out.splitlines()[-1] == "evaluated 0 pairs, skipped 0 files, unmatched 8 files"


# Lists and paths


def test_list_files_and_paths_give_the_same_as_directories(run, pairs):
    _, expected, _, _ = run(out="expected")
    (pairs / "sounds.txt").write_text(
        "\ufeff# sounds\r\naudio/d.wav\r\n\r\naudio/b.wav\r\n", encoding="utf-8"
    )
    status, outputs, _, _ = run(
        audio=("--audio_file", "sounds.txt"), video=("--video_paths", "video/b.mp4", "video/d.mp4")
    )
    assert status == 0
    assert outputs.pairs == [("audio/d.wav", "video/d.mp4"), ("audio/b.wav", "video/b.mp4")]
    np.testing.assert_allclose(outputs.audio, expected.audio[[3, 1]], atol=1e-5)
    np.testing.assert_allclose(outputs.video, expected.video[[3, 1]], atol=1e-5)


def test_the_guides_own_names_pair_by_position(run, pairs, rows):
    for i, x in enumerate("ab", 1):
        (pairs / "audio" / f"{x}.wav").rename(pairs / f"audio{i}.wav")
        (pairs / "video" / f"{x}.mp4").rename(pairs / f"video{i}.mp4")
    status, outputs, _, err = run(
        audio=("--audio_paths", "./audio1.wav", "./audio2.wav"),
        video=("--video_paths", "./video2.mp4", "./video1.mp4"),
    )
    assert status == 0
    assert "warning: no file name is on both sides; the two lists are paired by position" in err
    assert outputs.metrics["pairing_rule"] == "position"
    assert outputs.pairs == [("./audio1.wav", "./video2.mp4"), ("./audio2.wav", "./video1.mp4")]
    np.testing.assert_allclose(outputs.video[0], rows("video", "video2.mp4"), atol=1e-5)


def test_one_sound_can_stand_against_several_videos_by_position(run):
    status, outputs, _, _ = run(
        audio=("--audio_paths", "audio/a.wav", "audio/a.wav"),
        video=("--video_paths", "video/b.mp4", "video/c.mp4"),
    )
    assert status == 0
    assert outputs.audio_names == ["a", "a"]
    np.testing.assert_array_equal(outputs.audio[0], outputs.audio[1])
    np.testing.assert_allclose(outputs.metrics["paired_similarities"], outputs.similarity.diagonal())


def test_names_stay_in_their_line_and_field(run, pairs):
    (pairs / "audio" / "a.wav").rename(pairs / "audio" / "a\tb\nc.wav")
    (pairs / "video" / "a.mp4").rename(pairs / "video" / "a\tb\nc.mp4")
    raw = b"\xff\xfe"  # not UTF-8
    os.rename(pairs / "audio" / "b.wav", os.path.join(os.fsencode(pairs), b"audio", raw + b".wav"))
    os.rename(pairs / "video" / "b.mp4", os.path.join(os.fsencode(pairs), b"video", raw + b".mp4"))
    status, outputs, _, _ = run()
    assert status == 0
    assert outputs.audio_names == ["a\\tb\\nc", "c", "d", "\\udcff\\udcfe"]
    assert outputs.pairs[0] == ("audio/a\\tb\\nc.wav", "video/a\\tb\\nc.mp4")
    assert len(outputs.pairs) == 4


# Bad files


def test_a_bad_file_costs_its_pair_and_nothing_else(run, pairs, rows):
    """One bad file on each side, in different batches: every other row stays with its own file."""
    _, whole, _, _ = run(out="whole")
    (pairs / "audio" / "b.wav").write_text("not a sound")
    (pairs / "video" / "c.mp4").write_bytes((pairs / "video" / "c.mp4").read_bytes()[:200])
    status, outputs, out, err = run("--batch_size", "2")
    assert status == 0
    assert outputs.pairs == [whole.pairs[0], whole.pairs[3]]
    assert outputs.audio_names == outputs.video_names == ["a", "d"]
    np.testing.assert_allclose(outputs.audio, whole.audio[[0, 3]], atol=1e-5)
    np.testing.assert_allclose(outputs.video, whole.video[[0, 3]], atol=1e-5)
    expected = [whole.metrics["paired_similarities"][i] for i in (0, 3)]
    np.testing.assert_allclose(outputs.metrics["paired_similarities"], expected, atol=1e-6)
    failed = {(f["path"], f["side"]) for f in outputs.metrics["failures"]}
    assert failed == {("audio/b.wav", "audio"), ("video/c.mp4", "video")}
    for failure in outputs.metrics["failures"]:
        assert f"warning: skipped {failure['side']} file {failure['path']}: {failure['reason']}\n" in err
        assert in_language(failure["reason"], "zh") != failure["reason"]
        side = {"audio": "音频", "video": "视频"}[failure["side"]]
        assert f"    {side} {failure['path']}: {in_language(failure['reason'], 'zh')}\n" in outputs.report
    assert outputs.metrics["counts"] == {
        "audio": 2,
        "video": 2,
        "pairs": 2,
        "pairs_skipped": 2,
        "copies": 0,
        "unmatched": 0,
        "failed": 2,
    }
    assert out.splitlines()[-1] == "evaluated 2 pairs, skipped 2 files, unmatched 0 files"


def test_a_bad_file_in_retrieval_mode_leaves_the_other_side(run, pairs):
    (pairs / "audio" / "b.wav").write_text("not a sound")
    status, outputs, _, _ = run("--retrieval_mode", "--batch_size", "2")
    assert status == 0
    assert outputs.audio_names == ["a", "c", "d"]
    assert outputs.video_names == ["a", "b", "c", "d"]
    assert [pair[0] for pair in outputs.pairs] == ["audio/a.wav", "audio/c.wav", "audio/d.wav"]
    np.testing.assert_allclose(
        outputs.metrics["paired_similarities"],
        [outputs.similarity[i, j] for i, j in ((0, 0), (1, 2), (2, 3))],
    )


def test_when_no_pair_is_without_doubt_retrieval_says_so(run, pairs):
    (pairs / "twice").mkdir()
    for suffix in ("mkv", "avi"):
        shutil.copy(pairs / "video" / "a.mp4", pairs / "twice" / f"a.{suffix}")
    status, outputs, _, _ = run("--retrieval_mode", video=("--video_dir", "twice"))
    assert status == 0
    assert outputs.report.count("无: 没有能够确定的配对") == 2


def test_when_every_pair_is_lost_retrieval_says_so(run, pairs):
    for x in "ab":
        (pairs / "audio" / f"{x}.wav").write_text("not a sound")
        (pairs / "video" / f"{'cd'['ab'.index(x)]}.mp4").write_text("not a video")
    status, outputs, _, _ = run("--retrieval_mode")
    assert status == 0
    assert outputs.metrics["counts"]["pairs"] == 0
    assert outputs.report.count("无: 每一对都有文件被跳过") == 2


def test_an_embedding_that_is_not_finite_costs_its_file(run, small_checkpoint, tmp_path):
    model = load_model(small_checkpoint)
    with torch.no_grad():
        model.towers["audio"].pos_embed[:] = 3e38  # finite, and what is computed with it is not
    save_model(model, tmp_path / "nan.pth")
    status, _, _, err = run("--checkpoint", str(tmp_path / "nan.pth"))
    assert status == 1
    assert "warning: skipped audio file audio/a.wav: its embedding is not finite" in err
    assert err.splitlines()[-1] == "error: nothing is left to evaluate: 4 files were skipped"


# Errors


def assert_one_line_error(result, *parts: str, said: str = "") -> None:
    status, _, out, err = result
    assert status == 1
    assert out == said
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


def test_nothing_to_evaluate_is_status_1(run, pairs):
    (pairs / "empty").mkdir()
    assert_one_line_error(run(video=("--video_dir", "empty")), "empty: no video files")
    assert_one_line_error(
        run(audio=("--audio_paths", "none.wav"), video=("--video_paths", "none.mp4")),
        "2 files were",
        said="evaluated 0 pairs, skipped 2 files, unmatched 0 files\n",
    )
    for suffix in ("mkv", "avi"):
        shutil.copy(pairs / "video" / "a.mp4", pairs / "empty" / f"a.{suffix}")
    assert_one_line_error(run(video=("--video_dir", "empty")), "without doubt", "--retrieval_mode")


def test_a_model_that_cannot_be_loaded_is_status_1(run, pairs, small_checkpoint, monkeypatch, capsys):
    assert_one_line_error(run("--checkpoint", "none.pth"), "none.pth: No such file", "--checkpoint PATH")
    (pairs / "bad.pth").write_text("bad")
    assert_one_line_error(run("--checkpoint", "bad.pth"), "bad.pth: not a checkpoint")
    deaf = load_model(small_checkpoint)
    del deaf.towers["audio"]
    save_model(deaf, pairs / "deaf.pth")
    assert_one_line_error(run("--checkpoint", "deaf.pth"), "deaf.pth: has no audio tower")
    monkeypatch.setattr(download, "RELEASED_PATH", pairs / "x" / "imagebind_huge.pth")
    monkeypatch.setattr(download, "RELEASED_URL", "http://127.0.0.1:1/x.pth")
    assert main(["--audio_dir", "audio", "--video_dir", "video", "--device", "cpu"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: cannot download http://127.0.0.1:1/x.pth (")
    assert str(pairs / "x" / "imagebind_huge.pth") in err
    assert "--checkpoint PATH or hf:OWNER/NAME" in err


def test_an_output_directory_that_cannot_be_used_is_status_1(run, pairs):
    (pairs / "file").write_text("in the way")
    assert_one_line_error(run(out="file"), "file: cannot write to this directory")


def test_a_device_without_memory_is_status_1(run, monkeypatch):
    def no_memory(*args):
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(imagebind_model.Tower, "forward", no_memory)
        assert_one_line_error(run(), "error: cpu: one file does not fit into memory")
    monkeypatch.setattr(imagebind_model.Tower, "copy_to", no_memory)
    assert_one_line_error(
        run(), "error: cpu: no room for the ", " tower; free some, or name another --device"
    )


def test_outputs_are_written_whole_or_not_at_all(run, pairs):
    """On a disk that takes no more, an earlier run's outputs stay as they were, and nothing else."""
    _, earlier, _, _ = run()
    before = {name: (earlier.folder / name).read_bytes() for name in os.listdir(earlier.folder)}
    status, _, err = Program(pairs, "--no_cache", limits={resource.RLIMIT_FSIZE: 8000}).wait()
    assert status == 1
    assert err[-1] == "error: ./outputs: cannot hold the embeddings (File too large)"
    assert {name: (earlier.folder / name).read_bytes() for name in os.listdir(earlier.folder)} == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed", "1"], "give --video_dir, --video_file, --video_paths, --video_embeddings or --manifest"),
        (
            ["--audio_dir", "audio"],
            "give --video_dir, --video_file, --video_paths, --video_embeddings or --manifest",
        ),
        (["--audio_dir", "audio", "--audio_paths", "a.wav"], "not allowed with argument --audio_dir"),
        (["--audio_dir", "nowhere"], "argument --audio_dir: nowhere: no such directory"),
        (["--audio_file", "nowhere.txt"], "argument --audio_file: nowhere.txt: No such file or directory"),
    ],
)
def test_wrong_usage_is_status_2(pairs, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(pairs)
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1]


def test_without_cuda_it_says_so_and_uses_the_cpu(run):
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    status, outputs, _, err = run("--device", "cuda:0")
    assert status == 0
    assert "warning: CUDA is not available; the CPU is used" in err
    assert outputs.metrics["protocol"]["device"] == "cpu"


def test_help_answers_without_torch():
    code = (
        "import sys, batch_inference\n"
        "try: batch_inference.main(['-h'])\nfinally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--retrieval_mode" in result.stdout


# The API


def test_the_api_returns_what_the_guide_reads(pairs, small_checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(pairs)
    results = batch_inference_av_consistency(
        audio_paths=["./audio/a.wav", "./audio/b.wav"],
        video_paths=["./video/a.mp4", "./video/b.mp4"],
        device="cpu",
        batch_size=4,
        output_dir="./outputs",
        retrieval_mode=False,
        checkpoint=small_checkpoint,
    )
    assert set(results) == {
        *("audio_embeddings", "video_embeddings", "similarity_matrix", "metrics"),
        *(
            "audio_names",
            "video_names",
            "pairs",
            "pair_rows",
            "pair_scores",
            "skipped_pairs",
            "skipped_windows",
        ),
        *("top_matches", "histograms", "candidates", "windows", "failures"),
        *("audio_paths", "video_paths", "audio_sources", "video_sources", "best_others"),
    }
    for side in ("audio", "video"):
        embeddings = results[f"{side}_embeddings"]
        assert (embeddings.shape, embeddings.dtype, embeddings.device.type) == (
            (2, 1024),
            torch.float32,
            "cpu",
        )
    assert results["similarity_matrix"].shape == (2, 2)
    assert results["pairs"] == [(f"./audio/{x}.wav", f"./video/{x}.mp4") for x in "ab"]
    outputs = Outputs(pairs / "outputs")
    assert outputs.metrics == results["metrics"]
    np.testing.assert_array_equal(outputs.audio, results["audio_embeddings"])
    for key in ("audio_embeddings", "video_embeddings", "similarity_matrix"):
        results[key].zero_()  # what is done to a result is not done to the file
        assert np.load(outputs.folder / f"{key}.npy").any()
    assert capsys.readouterr().out == ""


def test_the_api_takes_directories_and_writes_nothing_unasked(pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    results = batch_inference_av_consistency(
        pairs / "audio", pairs / "video", device="cpu", checkpoint=small_checkpoint
    )
    assert results["audio_names"] == list("abcd")
    assert sorted(os.listdir(pairs)) == ["audio", "video"]


def test_the_api_raises_one_line(pairs, small_checkpoint):
    with pytest.raises(EvaluationError, match=r"^nothing is left to evaluate: 2 files were skipped$"):
        batch_inference_av_consistency(["x.wav"], ["x.mp4"], device="cpu", checkpoint=small_checkpoint)


def test_a_script_for_the_released_package_runs(tmp_path, small_checkpoint, monkeypatch):
    """Audio, video and image, in the words of the released package, from another working directory."""
    monkeypatch.setattr(download, "RELEASED_PATH", small_checkpoint)
    monkeypatch.chdir(tmp_path)
    from imagebind.models import imagebind_model
    from imagebind.models.imagebind_model import ModalityType

    write_audio(tmp_path / "x.wav", tone(1))
    write_video(tmp_path / "x.mp4", [picture(i) for i in range(20)])
    Image.fromarray(picture(0)).save(tmp_path / "x.jpg")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = imagebind_model.imagebind_huge(pretrained=True)
    model.eval()
    model.to(device)
    for modality, load, path in (
        (ModalityType.AUDIO, data.load_and_transform_audio_data, "x.wav"),
        (ModalityType.VISION, data.load_and_transform_video_data, "x.mp4"),
        (ModalityType.VISION, data.load_and_transform_vision_data, "x.jpg"),
    ):
        inputs = {modality: load([path, path], device)}
        with torch.no_grad():
            embeddings = model(inputs)
        assert embeddings[modality].shape == (2, 1024)
        assert torch.softmax(embeddings[modality] @ embeddings[modality].T, dim=-1).isfinite().all()


# Sets that are large


def test_a_matrix_that_is_too_large_is_left_out_and_changes_nothing_else(run):
    _, outputs, _, _ = run()

    def read() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in outputs.folder.glob("[!.]*")}

    before = read()
    status, _, _, err = run("--max_matrix_gb", "0", loads=False)
    assert status == 0
    assert "similarity_matrix.npy is left out: it would take 0.0 GB; --max_matrix_gb 1 writes it\n" in err
    del before["similarity_matrix.npy"]  # that of the earlier run goes too
    assert read() == before


def test_top_matches_are_the_best_of_each_line_of_the_matrix(run, pairs):
    os.remove(pairs / "audio" / "d.wav")
    _, outputs, _, _ = run("--retrieval_mode")
    with open(outputs.folder / "top_matches.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = []
    for side, matrix, names, others in (
        ("audio", outputs.similarity, outputs.audio_names, outputs.video_names),
        ("video", outputs.similarity.T, outputs.video_names, outputs.audio_names),
    ):
        for name, line in zip(names, matrix, strict=True):
            for rank, j in enumerate(np.argsort(-line, kind="stable")[:10], 1):
                is_pair = "yes" if others[j] == name else "no"
                expected.append([side, name, str(rank), others[j], f"{line[j]:.6g}", is_pair])
    assert [list(row.values()) for row in rows] == expected
