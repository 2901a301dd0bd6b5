"""Comparing systems: finished output directories against each other."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture, tone, write_audio, write_video

from batch_inference import EvaluationError, batch_inference_av_consistency, compare_systems, main
from imagebind.evaluation.compare.intervals import estimate_mean, share_interval
from imagebind.evaluation.write.formats import cell, read_cell
from imagebind.models.imagebind_model import load_model, save_model


@pytest.fixture
def systems(pairs, small_checkpoint, monkeypatch):
    """Outputs one/ and two/: other sounds for the same videos, of which two/ lacks one."""
    monkeypatch.chdir(pairs)
    for i, name in enumerate("abd"):
        write_audio(pairs / "audio2" / f"{name}.wav", tone(1, 700 + 150 * i))
    options = {"device": "cpu", "checkpoint": small_checkpoint, "num_workers": 0, "cache": "cache.sqlite"}
    results = [
        batch_inference_av_consistency(audio, "video", output_dir=out, **options)
        for audio, out in (("audio", "one"), ("audio2", "two"))
    ]
    return [{row["name"]: row["similarity"] for row in result["pair_scores"]} for result in results]


def test_each_system_and_their_difference_have_a_row(systems):
    one, two = systems
    first, second, difference = compare_systems(["one", "two"], "compared")
    for row, name, scores in ((first, "one", one), (second, "two", two)):
        assert (row["system"], row["pairs"]) == (name, len(scores))
        assert row["mean"] == pytest.approx(np.mean(list(scores.values())))
        metrics = json.loads(Path(name, "metrics.json").read_text())
        assert [row["low"], row["high"]] == (metrics["paired_similarity_interval"] or [None, None])
        assert row["recall_at_1"] == metrics["recall_at_1"]
        assert row["video_to_audio_recall_at_5"] == metrics["video_to_audio"]["recall_at_5"]
        assert (row["auc"], row["suspects"], row["skipped"]) == (metrics["auc"], None, 0)
    paired = np.array([one[name] - two[name] for name in "abd"])  # c is in one alone
    assert (difference["system"], difference["minus"], difference["pairs"]) == ("one", "two", 3)
    assert difference["mean"] == pytest.approx(paired.mean())
    assert (difference["low"], difference["p_value"]) == (None, None)  # three pairs are too few
    assert difference["win_rate"] == pytest.approx(np.mean(paired > 0))
    with open("compared/comparison.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["system"], row["minus"], row["pairs"]) for row in table] == [
        ("one", "", "4"),
        ("two", "", "3"),
        ("one", "two", "3"),
    ]
    assert float(table[2]["mean"]) == pytest.approx(paired.mean(), rel=1e-5)


def test_every_two_of_several_are_compared(systems):
    shutil.copytree("one", "three")
    rows = compare_systems(["one", "two", "three"])
    assert [(row["system"], row["minus"]) for row in rows[3:]] == [
        ("one", "two"),
        ("one", "three"),
        ("two", "three"),
    ]
    assert (rows[4]["mean"], rows[4]["low"], rows[4]["high"]) == (0, 0, 0)


def test_the_command_line_prints_both_tables(systems, capsys):
    argv = ["--compare", "one", "two", "--output_dir", "compared"]
    assert main([*argv, "--report_lang", "en"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["system", "pairs", "mean"]
    assert lines[1].split()[:2] == ["one", "4"]
    assert lines[-3].split()[:3] == ["one", "two", "3"]
    assert lines[-2:] == ["results: compared/comparison.csv", "page: compared/comparison.html"]
    assert main([*argv, "--no_html"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["系统", "成对", "平均值"]
    assert lines[1].startswith("one   4     ")  # under headings that are two columns a character
    assert lines[-1] == "results: compared/comparison.csv"


def test_runs_computed_in_different_ways_are_refused(systems, capsys):
    metrics = json.loads(Path("two", "metrics.json").read_text())
    metrics["protocol"]["precision"] = "bf16"
    Path("two", "metrics.json").write_text(json.dumps(metrics))
    assert main(["--compare", "one", "two"]) == 1
    assert capsys.readouterr().err == (
        'error: one and two differ in precision: "fp32", "bf16"; --force compares them all the same\n'
    )
    assert main(["--compare", "one", "two", "--force"]) == 0
    metrics["protocol"]["precision"] = "fp32"
    metrics["protocol"]["device"] = "cuda:0"  # may differ
    Path("two", "metrics.json").write_text(json.dumps(metrics))
    assert main(["--compare", "one", "two"]) == 0


def test_checkpoints_of_one_name_and_other_content_are_refused(pairs, systems, small_checkpoint):
    model = load_model(small_checkpoint)
    with torch.no_grad():
        model.towers["audio"].head.weight *= -1
    (pairs / "weights").mkdir()
    save_model(model, pairs / "weights" / small_checkpoint.name)
    options = {"checkpoint": pairs / "weights" / small_checkpoint.name, "num_workers": 0, "no_html": True}
    batch_inference_av_consistency("audio", "video", "cpu", output_dir="other", **options)
    with pytest.raises(EvaluationError, match=r'^one and other differ in checkpoint: \{"sha256": "'):
        compare_systems(["one", "other"])


def test_what_is_no_finished_run_is_refused(systems):
    with pytest.raises(EvaluationError, match=r"^none: no such directory$"):
        compare_systems(["one", "none"])
    os.mkdir("none")
    with pytest.raises(EvaluationError, match=r"^none: no finished run \(metrics.json: No such file"):
        compare_systems(["one", "none"])
    os.remove("two/pair_scores.csv")
    with pytest.raises(EvaluationError, match=r"^two: no finished run \(pair_scores.csv: No such file"):
        compare_systems(["one", "two"])
    shutil.copy("one/pair_scores.csv", "two/pair_scores.csv")
    with pytest.raises(EvaluationError, match=r"two: no finished run .*its files are of different runs"):
        compare_systems(["one", "two"])
    metrics = json.loads(Path("one", "metrics.json").read_text())
    for protocol in (None, [], "x"):
        Path("one", "metrics.json").write_text(json.dumps(metrics | {"protocol": protocol}))
        with pytest.raises(EvaluationError, match="one: no finished run of this version"):
            compare_systems(["one", "two"])
    Path("one", "metrics.json").write_text(json.dumps(metrics))
    table = Path("one", "pair_scores.csv").read_text()
    Path("one", "pair_scores.csv").write_text(table.replace('"name"', '"label"', 1))
    with pytest.raises(EvaluationError, match=r"version \(pair_scores.csv has no column name\)$"):
        compare_systems(["one", "two"])
    Path("one", "metrics.json").write_text("{}")
    with pytest.raises(EvaluationError, match="one: no finished run of this version"):
        compare_systems(["one", "two"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--compare", "none+"], "argument --compare: two directories or more are needed"),
        (
            ["--video_paths", "x.mp4", "--reference", "real"],
            "argument --reference: not allowed without argument --compare",
        ),
        (["--compare", "one"], "argument --compare: two directories or more are needed"),
        (
            ["--compare", "a", "b", "--video_paths", "x.mp4"],
            "argument --compare: not allowed with argument --video_paths",
        ),
    ],
)
def test_wrong_usage_is_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def listed(tmp_path, small_checkpoint, monkeypatch):
    """Evaluate pairs of listed files, folder/name; give the rows of their comparison."""
    monkeypatch.chdir(tmp_path)
    options = {"device": "cpu", "checkpoint": small_checkpoint, "num_workers": 0, "cache": "cache.sqlite"}

    def listed(*runs: tuple[dict[str, int], dict]):
        for out, (files, more) in zip("ab", runs, strict=True):
            paths = [(f"{name}.wav", f"{name}.mp4") for name in files]
            for hz, (sound, video) in zip(files.values(), paths, strict=True):
                if not os.path.exists(sound):
                    write_audio(tmp_path / sound, tone(1, hz))
                    write_video(tmp_path / video, [picture(hz // 40 + i) for i in range(20)])
            batch_inference_av_consistency(*zip(*paths, strict=True), output_dir=out, **options, **more)
        return compare_systems(["a", "b"])

    return listed


FIVE = {f"m/x/clip{i}": 200 + 150 * i for i in range(5)}


def test_one_more_file_in_another_folder_loses_no_pair(listed):
    *_, difference = listed((FIVE, {}), (FIVE | {"m/y/other": 3000}, {}))
    assert (difference["pairs"], difference["mean"], difference["win_rate"]) == (5, 0, 0.5)


def test_files_of_one_name_in_two_folders_are_not_mixed_up(listed):
    others = {f"m/clip{i}": 2000 + 100 * i for i in range(5)}
    *_, difference = listed((FIVE, {}), (FIVE | others, {"seed": 1}))
    assert (difference["pairs"], difference["mean"], difference["win_rate"]) == (5, 0, 0.5)


def test_systems_in_other_folders_match_by_what_is_equal_at_the_end(listed):
    *_, difference = listed((FIVE, {}), ({name.replace("m/", "n/o/"): hz for name, hz in FIVE.items()}, {}))
    assert difference["pairs"] == 5


def test_systems_that_name_their_videos_in_their_own_ways_match_by_the_sounds(
    tmp_path, small_checkpoint, monkeypatch
):
    """Two generators of videos for the same sounds; the second run has them in the opposite order."""
    monkeypatch.chdir(tmp_path)
    sounds = [str(write_audio(tmp_path / f"{i}.wav", tone(1, 200 + 150 * i))) for i in range(5)]
    for name, step in (("one", 1), ("two", -1)):
        videos = [tmp_path / name / f"{name}_{letter}.mp4" for letter in "abcde"]
        for i, video in enumerate(videos):
            write_video(video, [picture(10 * i + k) for k in range(20)])
        batch_inference_av_consistency(
            *(sounds[::step], list(map(str, videos)), "cpu"), checkpoint=small_checkpoint, output_dir=name
        )
    *_, difference = compare_systems(["one", "two"], "compared", no_html=True)
    assert difference["pairs"] == 5
    with open("compared/comparison_pairs.csv", encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert sorted(line["audio"] for line in lines) == sounds
    for line in lines:
        assert line["other_audio"] == line["audio"]
        assert [Path(line[of]).parent.name for of in ("video", "other_video")] == ["one", "two"]


@pytest.fixture(scope="module")
def finished_metrics(tmp_path_factory, four_pairs, small_checkpoint):
    folder = tmp_path_factory.mktemp("finished")
    sides = four_pairs / "audio", four_pairs / "video"
    batch_inference_av_consistency(*sides, "cpu", output_dir=folder, checkpoint=small_checkpoint)
    return json.loads(Path(folder, "metrics.json").read_text())


@pytest.fixture
def made(finished_metrics, tmp_path, monkeypatch):
    """Make up runs from a finished one: a dictionary a pair, with columns of pair_scores.csv."""
    monkeypatch.chdir(tmp_path)
    metrics = {key: value for key, value in finished_metrics.items() if key != "scores"}

    def made(folder: str, pairs: list[dict], **more) -> None:
        os.mkdir(folder)
        rows = [
            {"name": p["video_key"], "audio": f"{p['audio_key']}.wav", "video": f"{p['video_key']}.mp4"}
            | {"status": "ok"}
            | p
            for p in pairs
        ]
        similarities = {"paired_similarities": [pair["similarity"] for pair in pairs]}
        Path(folder, "metrics.json").write_text(json.dumps(metrics | similarities | more))
        with open(Path(folder, "pair_scores.csv"), "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
            writer.writeheader()
            writer.writerows(rows)

    return made


def keyed(scores, names: str | None = None, **columns) -> list[dict]:
    """Make up pairs p0, p1 ... of these similarities, and of these further columns, one value a pair."""
    found = []
    for i, score in enumerate(scores):
        key = f"p{i}" if names is None else names.format(i)
        of_pair = {name: values[i] for name, values in columns.items()}
        found.append({"audio_key": key, "video_key": key, "similarity": float(np.float32(score))} | of_pair)
    return found


def joined_by_hand(*labels: list[str]) -> np.ndarray:
    """Number the groups of pairs, of which those are one that share a label of any system."""
    numbers = list(range(len(labels[0])))
    for _ in numbers:
        for of_system in labels:
            for i, k in itertools.combinations(range(len(numbers)), 2):
                if of_system[i] and of_system[i] == of_system[k]:
                    numbers[i] = numbers[k] = min(numbers[i], numbers[k])
    return np.array(numbers)


def test_pairs_that_are_one_group_in_either_system_are_one(made, caplog):
    generator = np.random.default_rng(0)
    ours, theirs = generator.uniform(0, 1, (2, 40)).astype(np.float32).astype(float)
    first = [f"x{i // 2}" if i < 30 else "" for i in range(40)]
    second = [f"y{i // 3}" if i % 4 else "" for i in range(40)]
    made("a", keyed(ours, group=first))
    made("b", keyed(theirs, group=second))
    *_, difference = compare_systems(["a", "b"])
    *_, backwards = compare_systems(["b", "a"])
    groups = joined_by_hand(first, second)
    assert 4 < len(set(groups)) < 30
    expected = estimate_mean(ours - theirs, 0, groups, 2)
    assert [difference["low"], difference["high"]] == pytest.approx(expected.interval, abs=1e-12)
    wins = [difference["win_rate_low"], difference["win_rate_high"]]
    assert wins == share_interval((ours > theirs).astype(float), groups)
    assert [backwards["low"], backwards["high"]] == pytest.approx(
        [-difference["high"], -difference["low"]], abs=1e-3
    )
    assert caplog.text.count("a and b have other groups of pairs, which are joined; group_by= sets them") == 1


@pytest.mark.parametrize("groups", [[""] * 12, [f"x{i}" for i in range(12)]], ids=["none", "of one pair"])
def test_a_system_whose_pairs_are_in_no_groups_changes_nothing(made, groups, caplog):
    scores = np.random.default_rng(0).uniform(0, 1, (2, 12))
    made("a", keyed(scores[0], group=[f"y{i // 2}" for i in range(12)]))
    made("b", keyed(scores[1], group=groups))
    *_, difference = compare_systems(["a", "b"])
    expected = estimate_mean(np.subtract(*scores.astype(np.float32).astype(float)), 0, np.arange(12) // 2, 2)
    assert [difference["low"], difference["high"]] == pytest.approx(expected.interval, abs=1e-12)
    assert "groups" not in caplog.text


def test_groups_of_a_run_and_groups_by_their_names_are_the_same(listed):
    grouped = {"group_by": r"clip([01]|.)"}
    first, second = (
        listed(*runs)[-1] for runs in ([(FIVE, {}), (FIVE, grouped)], [(FIVE, grouped), (FIVE, {})])
    )
    by_names = compare_systems(["a", "b"], group_by=r"clip([01]|.)")[-1]
    for row in (first, second, by_names):
        assert (row["win_rate_low"], row["win_rate_high"]) == (first["win_rate_low"], first["win_rate_high"])


# The leaderboard


def test_the_leaderboard_is_ordered_by_the_pairs_that_all_have(made, capsys):
    """b lacks the two lowest pairs, and only so has the highest mean; c lacks one that the others have."""
    generator = np.random.default_rng(0)
    scores = np.sort(generator.uniform(0.2, 0.8, 12))
    groups = [f"x{i // 2}" for i in range(12)]
    systems = {"a": scores, "b": scores - 0.01, "c": scores - 0.1}
    lost = {"a": (), "b": (0, 1), "c": (11,)}
    of_run = {}
    for name, values in systems.items():
        pairs = keyed(values, group=groups)
        made(name, [pair for i, pair in enumerate(pairs) if i not in lost[name]])
        of_run[name] = {pair["video_key"]: pair["similarity"] for pair in pairs}
    rows = compare_systems(["c", "b", "a"])
    assert [row["system"] for row in rows[:3]] == ["a", "b", "c"]
    assert rows[1]["mean"] > rows[0]["mean"] > rows[2]["mean"]
    for row in rows[:3]:
        expected = [of_run[row["system"]][f"p{i}"] for i in range(2, 11)]
        assert (row["pairs"], row["common_pairs"]) == (12 - len(lost[row["system"]]), 9)
        assert row["common_mean"] == pytest.approx(np.mean(expected), abs=1e-12)
        of_groups = estimate_mean(np.array(expected), 0, np.arange(2, 11) // 2, 1)
        assert [row["common_low"], row["common_high"]] == pytest.approx(of_groups.interval, abs=1e-12)
    assert [row["lacks"] for row in rows[:3]] == [0, 2, 1]
    assert [(row["system"], row["minus"]) for row in rows[3:]] == [("c", "b"), ("c", "a"), ("b", "a")]
    assert main(["--compare", "c", "b", "a", "--output_dir", "compared", "--report_lang", "en"]) == 0
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    for line, row in zip(lines[1:4], rows, strict=False):
        of_line = dict(zip(lines[0], line, strict=False))
        assert [of_line["in all"], of_line["lacks"]] == ["9", str(row["lacks"])]
        assert of_line["mean in all"] == f"{row['common_mean']:.4f}"
    with open("compared/comparison.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[3:12] == [
        *("pairs", "mean", "low", "high", "common_pairs", "common_mean", "common_low", "common_high"),
        "lacks",
    ]
    assert [row["lacks"] for row in table] == ["0", "2", "1", "", "", ""]


def test_systems_of_which_no_pair_is_in_all_are_ordered_by_their_own_means(made, caplog):
    scores = np.linspace(0.3, 0.6, 6)
    for name, kept in (("a", range(4)), ("b", range(2, 6)), ("c", (0, 1, 4, 5))):
        made(name, [pair for i, pair in enumerate(keyed(scores)) if i in kept])
    rows = compare_systems(["a", "c", "b"], "compared")
    assert [row["system"] for row in rows[:3]] == ["b", "c", "a"]
    assert all("common_mean" not in row and row["lacks"] == 2 for row in rows[:3])
    assert [row["pairs"] for row in rows[3:]] == [2, 2, 2]
    warned = "no pair is in all systems, which are ordered by the means of their own pairs"
    assert caplog.text.count(warned) == 1


def test_systems_without_any_pair_in_common_are_one_line(made, capsys):
    made("a", keyed([0.1, 0.2, 0.3]))
    made("b", keyed([0.1, 0.2, 0.3], "q{}"))
    assert main(["--compare", "a", "b", "--output_dir", "compared"]) == 1
    assert capsys.readouterr().err == (
        "error: no two systems have a pair in common; give the same pairs the same `id` in their manifests, "
        "or name with --group_by what belongs together\n"
    )
    assert not os.path.exists("compared")


def named(pairs: list[dict], names: str) -> list[dict]:
    """Name pairs as those of a manifest with ids are."""
    ids = [names.format(i) for i in range(len(pairs))]
    return [
        {"id": id} | pair | {"audio_key": id, "video_key": id} for id, pair in zip(ids, pairs, strict=True)
    ]


@pytest.mark.parametrize("has_ids", ["neither", "first", "both"])
def test_pairs_of_other_ids_match_by_the_paths_of_their_videos(made, has_ids):
    """Two folders have videos of one name, so that not the last part alone counts."""
    paths = [f"{folder}/clip{i}" for folder in "xy" for i in range(3)]
    ours, theirs = keyed(np.linspace(0.1, 0.6, 6)), keyed(np.linspace(0.2, 0.3, 6))
    for pair, path in zip(ours, paths, strict=True):
        pair |= {"video": f"/data/{path}.mp4"}
    for pair, path in zip(theirs, paths, strict=True):
        pair |= {"video": f"../sets/{path}.mkv", "audio_key": f"of/{path}", "video_key": f"in/{path}"}
    made("a", ours if has_ids == "neither" else named(ours, "row {}"))
    made("b", (named(theirs, "line {}") if has_ids == "both" else theirs)[::-1])
    if has_ids != "first":  # ids say which pairs are equal
        with pytest.raises(EvaluationError, match="no two systems have a pair in common"):
            compare_systems(["a", "b"])
        return
    *_, difference = compare_systems(["a", "b"], "compared")
    assert difference["pairs"] == 6
    with open("compared/comparison_pairs.csv", encoding="utf-8-sig", newline="") as file:
        for line in csv.DictReader(file):
            assert line["video"][len("/data/") : -4] == line["other_video"][len("../sets/") : -4]


def test_parts_of_one_video_match_by_their_times(made):
    parts = [{"video": "a/long.mp4", "start": i, "end": i + 1} for i in range(4)]
    ours = [pair | part for pair, part in zip(keyed([0.1, 0.2, 0.3, 0.4]), parts, strict=True)]
    made("a", named(ours, "row {}"), working_directory="/data")
    made("b", named([pair | {"video": "../data/a/long.mp4"} for pair in ours[::-1]], "line {}"))
    with pytest.raises(EvaluationError, match="no two systems have a pair in common"):
        compare_systems(["a", "b"])
    made("c", named(ours[::-1], "line {}"), working_directory="/data/b/..")
    *_, difference = compare_systems(["a", "c"])
    assert (difference["pairs"], difference["mean"], difference["win_rate"]) == (4, 0, 0.5)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_clips_that_each_lost_are_not_compared_by_the_ends_of_their_names(made, modality, caplog):
    """A folder for each clip, in which all files have the same name."""
    scores = np.linspace(0.1, 0.8, 8)
    other = {"audio": "video", "video": "audio"}[modality]
    for name, lost, depth in (("a", 2, "deep/er/"), ("b", 5, "")):
        keys = [f"/{name}/{depth}v{i}/file" for i in range(8)]
        of_others = keys if modality == "video" else ["/data/" + key.split("/")[-2] for key in keys]
        pairs = keyed(scores, **{f"{modality}_key": keys, f"{other}_key": of_others})
        made(name, [pair for i, pair in enumerate(pairs) if i != lost])
    *_, difference = compare_systems(["a", "b"])
    assert (difference["pairs"], difference["mean"]) == (6, 0)
    assert "1 and 1 are in one alone" in caplog.text


def test_clips_that_a_run_with_ids_and_one_without_lost_are_not_compared(made):
    scores = np.linspace(0.1, 0.8, 8)
    videos = [f"clips/v{i}/file.mp4" for i in range(8)]
    made("a", named(keyed(scores, video=videos), "row {}")[1:])
    made("b", keyed(scores, "other {}", video=["/data/" + video for video in videos])[:-1])
    *_, difference = compare_systems(["a", "b"])
    assert (difference["pairs"], difference["mean"]) == (6, 0)


# Several pairs against one


def several_of(scores: np.ndarray, kind: str) -> list[dict]:
    """Make up pairs of which those of a row (V, K) belong together by something."""
    pairs = keyed(scores.ravel())
    for n, pair in enumerate(pairs):
        i, k = divmod(n, scores.shape[1])
        key = f"{scores.shape[1]}_{i}_{k}"
        pair |= {
            "videos": {"video_key": f"v{i}", "audio_key": key},
            "listed videos": {"video_key": f"/of{len(scores[0])}/v{i}", "audio_key": f"/audio/{key}"},
            "sounds": {"video_key": key, "audio_key": f"s{i}"},
            "groups": {"video_key": key, "audio_key": key, "group": f"g{i}"},
            "paths": {"video_key": key, "audio_key": key, "id": key, "video": f"of/v{i}.mp4"},
        }[kind]
    return pairs


@pytest.mark.parametrize("kind", ["videos", "listed videos", "sounds", "groups", "paths"])
def test_several_pairs_of_one_video_are_compared_by_their_mean(made, kind, caplog):
    """Five generated sounds for each video, against the one that it came with; in another order."""
    caplog.set_level("INFO")
    generator = np.random.default_rng(0)
    ours = generator.uniform(0.2, 0.6, (14, 5)).astype(np.float32).astype(float)
    theirs = generator.uniform(0.2, 0.6, (14, 1)).astype(np.float32).astype(float)
    made("a", several_of(ours, kind)[::-1])
    made("truth", several_of(theirs, kind))
    *systems, difference = compare_systems(["a", "truth"], "compared")
    expected = [sum(of_video) / 5 - theirs[i, 0] for i, of_video in enumerate(ours)]
    assert difference["pairs"] == 14
    assert difference["mean"] == pytest.approx(np.mean(expected), abs=1e-12)
    interval = estimate_mean(np.array(expected)[::-1], 0, None, 2).interval
    assert [difference["low"], difference["high"]] == pytest.approx(interval, abs=1e-12)
    assert difference["win_rate"] == np.mean([gap > 0 for gap in expected])
    for row in systems:
        values = {"a": ours, "truth": theirs}[row["system"]]
        assert (row["pairs"], row["common_pairs"], row["lacks"]) == (values.size, 14, 0)
        assert row["common_mean"] == pytest.approx(values.mean(1).mean(), abs=1e-12)
    with open("compared/comparison_pairs.csv", encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["pairs"], line["other_pairs"]) for line in lines} == {("5", "1")}
    assert sorted(float(line["difference"]) for line in lines) == pytest.approx(sorted(expected), abs=1e-6)
    said = "a and truth: 14 of 14 are compared by the means of several pairs of one video, sound or group"
    assert caplog.text.count(said) == 1
    assert "in one alone" not in caplog.text


def test_several_pairs_of_videos_of_one_name_are_not_mixed_up(made):
    """Which of two folders is meant by a file in a third one is not known."""
    of_folders = {"x": [0.1, 0.2], "y": [0.3, 0.4], "w": [0.5, 0.6]}
    ours = [
        {"audio_key": f"/s/{folder}{k}", "video_key": f"/a/{folder}/{name}", "similarity": score}
        for folder, scores in of_folders.items()
        for name in (["cat"] if folder == "w" else ["dog"])
        for k, score in enumerate(scores)
    ]
    theirs = [
        {"audio_key": f"/t/{name}", "video_key": f"/b/z/{name}", "similarity": 0.5} for name in ("dog", "cat")
    ]
    made("a", ours)
    made("b", theirs)
    *_, difference = compare_systems(["a", "b"], "compared")
    assert (difference["pairs"], difference["mean"]) == (1, pytest.approx(0.05, abs=1e-6))


def test_pairs_that_match_one_to_one_are_in_no_mean(made, caplog):
    """Both have three sounds of each video; one lost a sound."""
    pairs = several_of(np.random.default_rng(0).uniform(0, 1, (4, 3)), "videos")
    made("a", pairs)
    made("b", pairs[1:])
    *_, difference = compare_systems(["a", "b"])
    assert (difference["pairs"], difference["mean"], difference["win_rate"]) == (11, 0, 0.5)
    assert "1 and 0 are in one alone" in caplog.text


@pytest.mark.parametrize("n", [1, 2])
def test_what_only_groups_match_is_said(made, n, caplog):
    groups = [f"g{i // n}" for i in range(8)]
    made("a", keyed(np.linspace(0.1, 0.8, 8), "a{}", group=groups))
    made("b", keyed(np.linspace(0.2, 0.9, 8), "b{}", group=groups))
    assert compare_systems(["a", "b"])[-1]["pairs"] == 8 / n
    said = "a and b: 8 pairs of a are matched by the name of their group or sound alone"
    assert caplog.text.count(said) == 1


def test_what_two_systems_lost_of_a_group_is_not_compared(made, caplog):
    """Of the clips of a prompt each lost another one: those that are left are of other clips."""
    pairs = keyed(np.linspace(0.1, 0.8, 8), group=["x"] * 4 + ["y"] * 4)
    made("a", pairs[1:])
    made("b", [*pairs[:1], *pairs[2:]])
    *_, difference = compare_systems(["a", "b"])
    assert (difference["pairs"], difference["mean"]) == (6, 0)
    assert "1 and 1 are in one alone" in caplog.text


# Several seeds


def test_seeds_are_one_system_compared_by_the_means_over_them(made):
    """Three seeds of a, of which one lost a pair, against two of b, which name their sounds by the seed."""
    generator = np.random.default_rng(0)
    ours = generator.uniform(0.2, 0.6, (3, 9)).astype(np.float32).astype(float)
    theirs = generator.uniform(0.2, 0.6, (2, 9)).astype(np.float32).astype(float)
    figures = [{"auc": 0.6, "suspects": 2}, {"auc": 0.7, "suspects": 1}, {"auc": 0.9, "suspects": 3}]
    for seed, scores in enumerate(ours):
        pairs = keyed(scores)[1:] if seed == 2 else keyed(scores)
        made(f"a{seed}", pairs, **figures[seed], counts={"failed": seed})
    for seed, scores in enumerate(theirs):
        audio_keys = [f"p{i}_{seed}" for i in range(9)]
        pairs = [p | {"audio_key": key} for p, key in zip(keyed(scores), audio_keys, strict=True)]
        made(f"b{seed}", pairs, counts={"failed": 0}, auc=None if seed else 0.8)
    rows = compare_systems(["a0+a1+a2", "b0+b1"], "compared")
    with open("compared/comparison.csv", encoding="utf-8-sig", newline="") as file:
        assert {row["system"]: row["seeds"] for row in list(csv.DictReader(file))[:2]} == {
            "a0+a1+a2": "3",
            "b0+b1": "2",
        }
    by_name = {row["system"]: row for row in rows[:2]}
    of_videos = [[ours[0, i], ours[1, i], *([ours[2, i]] if i else [])] for i in range(9)]
    values = np.array([value for of_video in of_videos for value in of_video])
    a, b, difference = by_name["a0+a1+a2"], by_name["b0+b1"], rows[2]
    assert (a["pairs"], a["common_pairs"], a["lacks"], a["seeds"]) == (26, 9, 0, 3)
    assert a["mean"] == pytest.approx(values.mean(), abs=1e-12)
    groups = np.array([i for i, of_video in enumerate(of_videos) for _ in of_video])
    interval = estimate_mean(values, 0, groups, 1).interval
    assert [a["low"], a["high"]] == pytest.approx(interval, abs=1e-12)
    means = ours[:, 1:].mean(1)  # what all have
    deviations = [(mean - sum(means) / 3) ** 2 for mean in means]
    assert a["seed_std"] == pytest.approx((sum(deviations) / 2) ** 0.5, abs=1e-12)
    assert (a["auc"], a["suspects"], a["skipped"]) == (pytest.approx(2.2 / 3), 2, 3)
    assert (b["auc"], b["skipped"]) == (None, 0)
    gaps = np.array([np.mean(of_video) - theirs[:, i].mean() for i, of_video in enumerate(of_videos)])
    assert difference["pairs"] == 9
    assert difference["mean"] == pytest.approx(gaps.mean(), abs=1e-12)
    interval = estimate_mean(gaps, 0, None, 2).interval
    assert [difference["low"], difference["high"]] == pytest.approx(interval, abs=1e-12)
    assert difference["win_rate"] == np.mean(gaps > 0)


def test_all_sounds_of_a_video_over_seeds_are_one_group(made):
    """Each seed has two sounds of each video, of which the other system lacks one."""
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.2, 0.6, (2, 12)).astype(np.float32).astype(float)
    for seed, of_seed in enumerate(scores):
        pairs = keyed(of_seed, video_key=[f"v{i // 2}" for i in range(12)])
        made(f"a{seed}", [pair | {"audio_key": f"s{i}"} for i, pair in enumerate(pairs)])
    made("b", pairs_of_b := [pair | {"audio_key": f"s{i}"} for i, pair in enumerate(pairs)][2:])
    rows = {row["system"]: row for row in compare_systems(["a0+a1", "b"]) if "minus" not in row}
    values, groups = np.concatenate(scores), np.tile(np.arange(12) // 2, 2)
    interval = estimate_mean(values, 0, groups, 1).interval
    assert [rows["a0+a1"]["low"], rows["a0+a1"]["high"]] == pytest.approx(interval, abs=1e-12)
    assert (rows["b"]["lacks"], rows["b"]["common_pairs"]) == (2, len(pairs_of_b))


def test_seeds_in_the_text_and_a_directory_with_a_plus(made, capsys):
    for name in ("a", "b", "a+b"):
        made(name, keyed(np.linspace(0.1, 0.5, 5) + 0.1 * len(name)))
    made("c", keyed(np.linspace(0.2, 0.6, 5)))
    argv = ["--output_dir", "compared", "--report_lang", "en"]
    assert main(["--compare", "a+b", "c", *argv]) == 0
    assert "seeds" not in capsys.readouterr().out
    assert main(["--compare", "a+c", "b", *argv]) == 0
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    of_seeds = {line[0]: dict(zip(lines[0], line, strict=False))["seeds"] for line in lines[1:3]}
    assert of_seeds == {"a+c": "2", "b": "1"}
    assert main(["--compare", "a+b+c", "b", *argv]) == 1
    assert capsys.readouterr().err.endswith("b: named twice\n")
    assert main(["--compare", "a+", "b", *argv]) == 1
    assert capsys.readouterr().err == "error: a+: no such directory\n"


def test_the_spread_of_seeds_is_over_what_all_have(made, caplog, capsys):
    """The second one lost the hard half, and is as good as the first."""
    pairs = keyed(np.linspace(0.1, 0.8, 8))
    made("a", pairs, suspects=1)
    made("b", pairs[4:], suspects=3)
    made("c", [pair | {"audio_key": "c", "video_key": f"c{i}"} for i, pair in enumerate(pairs[:2])])
    assert compare_systems(["a+b"])[0]["seed_std"] == 0
    said = "seeds have other pairs: a lacks 0, b lacks 4; seed_std is over the 4 of all"
    assert caplog.text.count(said) == 1
    (row,) = compare_systems(["a+c"])
    assert (row["seeds"], row["seed_std"]) == (2, None)
    assert main(["--compare", "a+b", "--output_dir", "compared", "--report_lang", "en"]) == 0
    head, line = (re.split("  +", line) for line in capsys.readouterr().out.splitlines()[:2])
    shown = dict(zip(reversed(head), reversed(line), strict=False))
    assert (shown["seeds"], shown["sd over seeds"], shown["suspects"]) == ("2", "0.0000", "2")
    assert Path("compared/comparison.html").exists()


def test_seeds_of_other_ways_are_no_system(made, finished_metrics, capsys):
    for name, precision in (("a", "fp32"), ("b", "fp16"), ("c", "fp32")):
        made(name, keyed([0.1, 0.2]), protocol=finished_metrics["protocol"] | {"precision": precision})
    assert main(["--compare", "a+b", "c", "--force"]) == 1
    assert capsys.readouterr().err == (
        'error: a and b differ in precision: "fp32", "fp16"; the seeds of one system have to be computed in '
        "one way\n"
    )


def test_files_of_seeds_are_found_where_each_run_had_them(made, tmp_path):
    for name in ("a", "b", "c"):
        made(name, keyed([0.1, 0.2, 0.3]), working_directory=str(tmp_path / f"of_{name}"))
    compare_systems(["a+b", "c"], "compared")
    page = Path("compared/comparison.html").read_text()
    assert "../of_a/p0.mp4" in page
    assert "../of_c/p0.mp4" in page


# A reference


def place_by_hand(values: np.ndarray, real: np.ndarray, groups: list[str], zero: float) -> list[float]:
    """Return the place, and its interval by percentiles, of resampled groups."""
    generator, names = np.random.default_rng(7), sorted(set(groups))
    of_group = {name: [i for i, group in enumerate(groups) if group == name] for name in names}
    places = []
    for _ in range(3000):
        drawn = [i for k in generator.integers(0, len(names), len(names)) for i in of_group[names[k]]]
        places.append((np.mean(values[drawn]) - zero) / (np.mean(real[drawn]) - zero))
    return [(values.mean() - zero) / (real.mean() - zero), *np.quantile(places, [0.025, 0.975])]


def test_systems_are_placed_between_the_mismatches_and_the_pairs_of_a_reference(made, capsys):
    """b has three sounds of each video and lacks some videos; pairs of the reference are in groups."""
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 0.05, 80)
    real = 0.4 + hard + generator.normal(0, 0.04, 80)
    ours = 0.3 + 0.8 * hard + generator.normal(0, 0.04, 80)
    theirs = 0.2 + hard[:, None] + generator.normal(0, 0.04, (80, 3))
    real, ours, theirs = (x.astype(np.float32).astype(float) for x in (real, ours, theirs))
    groups = [f"g{i // 2}" for i in range(80)]
    made("real", keyed(real, "v{}", group=groups), mismatched_similarity_mean=0.1)
    made("a", keyed(ours, "v{}"), mismatched_similarity_mean=-0.3)
    made("b", [pair for pair in several_of(theirs, "videos") if int(pair["video_key"][1:]) >= 20])
    rows = compare_systems(["a", "b"], "compared", reference="real")
    by_name = {row["system"]: row for row in rows if "minus" not in row}
    assert set(by_name) == {"a", "b", "real"}
    expected = {
        "a": place_by_hand(ours, real, groups, 0.1),
        "b": place_by_hand(theirs[20:].mean(1), real[20:], groups[20:], 0.1),
    }
    for name, (place, low, high) in expected.items():
        row = by_name[name]
        assert row["place"] == pytest.approx(place, abs=1e-9)
        assert [row["place_low"], row["place_high"]] == pytest.approx([low, high], abs=(high - low) / 10)
    assert [by_name["real"][key] for key in ("place", "place_low", "place_high")] == [1, 1, 1]
    argv = ["--output_dir", "compared", "--report_lang", "en", "--reference", "real"]
    assert main(["--compare", "a", "b", *argv]) == 0
    printed = capsys.readouterr()
    assert "a and real" not in printed.err
    assert "0 and 20 are in one alone, and not in the difference or the place" in printed.err
    lines = [re.split("  +", line) for line in printed.out.splitlines()]
    places = {line[0]: dict(zip(lines[0], line, strict=False))["place"] for line in lines[1:4]}
    assert places == {name: f"{row['place']:.4f}" for name, row in by_name.items()} | {"real": "1"}
    assert "0 is the mean of the mismatches of real" in Path("compared/comparison.html").read_text()
    with open("compared/comparison.csv", encoding="utf-8-sig", newline="") as file:
        assert [bool(row["place"]) for row in csv.DictReader(file)] == [True] * 3 + [False] * 3
    again = compare_systems(["a", "real", "b"], reference="./real")  # it may be one of them
    assert [row for row in again if "minus" not in row] == [row for row in rows if "minus" not in row]
    assert main(["--compare", "a", *argv]) == 0


@pytest.mark.parametrize("n", [3, 6, 12])
def test_a_place_over_few_pairs_has_a_wide_interval_or_none(made, n):
    """By the bootstrap-t, whose interval holds the place."""
    generator = np.random.default_rng(n)
    made("a", keyed(generator.uniform(0.2, 0.4, n)))
    made("real", keyed(generator.uniform(0.4, 0.6, n)), mismatched_similarity_mean=0.1)
    row = next(row for row in compare_systems(["a"], reference="real") if row["system"] == "a")
    if n == 3:
        assert row["place_low"] is None
        return
    assert row["place_low"] < row["place"] < row["place_high"]


def test_a_reference_that_tells_no_place(made, finished_metrics, caplog):
    scores = keyed([0.1, 0.2, 0.3, 0.5, 0.4])
    made("a", scores)
    made("low", scores, mismatched_similarity_mean=0.6)
    assert all("place" not in row for row in compare_systems(["a"], reference="low"))
    warned = "low: its pairs are not above its mismatches, and tell no place"
    assert caplog.text.count(warned) == 1
    path = Path("low", "metrics.json")
    metrics = json.loads(path.read_text())
    for value in ("0.1", None, 1.5):
        path.write_text(json.dumps(metrics | {"mismatched_similarity_mean": value}))
        with pytest.raises(EvaluationError, match=r"^low: no finished run of this version"):
            compare_systems(["a"], reference="low")
    del metrics["mismatched_similarity_mean"]
    path.write_text(json.dumps(metrics))
    assert all("place" not in row for row in compare_systems(["a"], reference="low"))
    assert caplog.text.count(warned) == 1
    assert caplog.text.count("low: has no mean of mismatches, and tells no place") == 1


# Categories


def test_categories_by_an_expression(made, capsys):
    made("a", keyed(np.linspace(0.1, 0.8, 8), "rain_{}", category=["x"] * 8))
    made("b", keyed(np.linspace(0.2, 0.9, 8), "rain_{}"))
    argv = ["--output_dir", "compared", "--report_lang", "en", "--compare", "a", "b"]
    assert main([*argv, "--category_by", r"(.+)_[0-5]"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^rain +0\.4500.* +0\.3500", printed.out, re.MULTILINE)
    assert printed.err.count("--category_by does not fit 2 names") == 2
    assert {row["category"] for row in compare_systems(["a", "b"], category_by="(r)")[3:]} == {"r"}


def test_each_category_has_a_row_and_counts_as_much_in_their_mean(made, capsys):
    """Two clips of each prompt; three categories of other sizes and means, and some pairs in none."""
    generator = np.random.default_rng(0)
    kinds = ["rain"] * 12 + ["-dogs"] * 40 + ["<b>"] * 60 + [""] * 8
    centres = {"rain": 0.5, "-dogs": 0.3, "<b>": 0.1, "": 0.9}
    prompts = generator.normal(0, 0.04, 60).repeat(2)
    noise = generator.normal(0, 0.04, (2, 120))
    scores = [np.array([centres[kind] for kind in kinds]) + prompts + of_run for of_run in noise]
    scores = [x.astype(np.float32).astype(float) for x in scores]
    columns = {"group": [f"g{i // 2}" for i in range(120)], "category": kinds}
    for name, of_run in zip("ab", scores, strict=True):
        made(name, keyed(of_run.clip(-1, 1), **columns))
    rows = compare_systems(["a", "b"], "compared")
    *_, of_a, of_b = [rows[0], rows[1]] if rows[0]["system"] == "a" else [rows[1], rows[0]]
    assert "minus" in rows[2]
    for name, values, of_all in (("a", scores[0], of_a), ("b", scores[1], of_b)):
        found = {row["category"]: row for row in rows[3:] if row["system"] == name}
        assert list(found) == ["-dogs", "<b>", "rain"]
        means = {}
        for kind, row in found.items():
            chosen = np.array([i for i, of_pair in enumerate(kinds) if of_pair == kind])
            expected = estimate_mean(values[chosen], 0, chosen // 2, 1)
            means[kind] = sum(values[chosen]) / len(chosen)
            assert (row["pairs"], row["mean"]) == (len(chosen), pytest.approx(means[kind], abs=1e-12))
            assert [row["low"], row["high"]] == pytest.approx(expected.interval, abs=1e-12)
        assert of_all["category_mean"] == pytest.approx(sum(means.values()) / 3, abs=1e-12)
        resampled = []
        for _ in range(2000):  # the prompts of each category
            drawn = []
            for kind in found:
                of_kind = [i for i in range(0, 120, 2) if kinds[i] == kind]
                chosen = generator.choice(of_kind, len(of_kind))
                drawn.append(np.mean([values[i : i + 2] for i in chosen]))
            resampled.append(np.mean(drawn))
        ends = np.quantile(resampled, [0.025, 0.975])
        actual = [of_all["category_low"], of_all["category_high"]]
        assert actual == pytest.approx(ends, abs=(ends[1] - ends[0]) / 6)
    with open("compared/comparison.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["category"] for row in table] == ["", "", "", *["-dogs", "<b>", "rain"] * 2]
    assert [bool(row["category_mean"]) for row in table] == [True, True, *[False] * 7]
    assert main(["--compare", "a", "b", "--output_dir", "compared", "--report_lang", "en"]) == 0
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    head, *of_categories, last = lines[lines.index(["By category:"]) + 1 :][:5]
    assert head == ["category", *(row["system"] for row in rows[:2])]
    assert [line[0] for line in of_categories] == ["-dogs", "<b>", "rain"]
    for line, kind in zip(of_categories, ("-dogs", "<b>", "rain"), strict=True):
        of_kind = {row["system"]: row["mean"] for row in rows[3:] if row["category"] == kind}
        assert [cell.split()[0] for cell in line[1:]] == [f"{of_kind[name]:.4f}" for name in head[1:]]
    assert [cell.split()[0] for cell in last[1:]] == [f"{row['category_mean']:.4f}" for row in rows[:2]]


def test_a_category_of_too_few_pairs_leaves_the_mean_of_all_without_an_interval(made):
    scores = np.random.default_rng(0).uniform(0, 1, 12)
    made("a", keyed(scores, category=["x"] * 9 + ["y"] * 3))
    made("b", keyed(scores))
    rows = compare_systems(["a", "b"])
    row = next(row for row in rows if row["system"] == "a")
    assert row["category_mean"] == pytest.approx((scores[:9].mean() + scores[9:].mean()) / 2)
    assert row["category_low"] is None
    assert [(row["system"], row["category"]) for row in rows[3:]] == [("a", "x"), ("a", "y")]
    assert [row["low"] is None for row in rows[3:]] == [False, True]


def test_all_differences_of_protocols_are_named(systems):
    path = Path("two", "metrics.json")
    metrics = json.loads(path.read_text())
    del metrics["definitions"]
    metrics["protocol"]["precision"] = "fp16"
    path.write_text(json.dumps(metrics))
    with pytest.raises(EvaluationError, match=r"follow other definitions.*; one and two differ in precision"):
        compare_systems(["one", "two"])


@pytest.mark.parametrize("name", ["-1pR_x", "'-1pR", "=1+1", "'=1", "''@x", "-1+1", "'x", "a\\tb\nc"])
def test_a_name_is_read_as_it_was_before_it_was_written(name):
    assert read_cell(cell(name)) == name


def test_a_run_whose_table_is_cut_or_a_pipe_is_refused(tmp_path, pairs, small_checkpoint):
    for name in "ab":
        batch_inference_av_consistency(
            pairs / "audio", pairs / "video", "cpu", output_dir=tmp_path / name, checkpoint=small_checkpoint
        )
    table = tmp_path / "a" / "pair_scores.csv"
    whole = table.read_bytes()
    header, first, *rest = csv.reader(whole.decode("utf-8-sig").splitlines())
    first[header.index("similarity")] = "0.123"
    changed = io.StringIO()
    csv.writer(changed).writerows([header, first, *rest])
    for content in (whole.rstrip(b"\r\n")[:-2], changed.getvalue().encode(), b""):
        table.write_bytes(content)
        with pytest.raises(EvaluationError, match="no finished run"):
            compare_systems([tmp_path / "a", tmp_path / "b"])
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(EvaluationError, match=r"pair_scores\.csv is no regular file"):
        compare_systems([tmp_path / "a", tmp_path / "b"])


def test_sounds_of_one_name_match_no_pairs_of_other_videos(made, caplog):
    """Numbered sounds; each run lost a video of those that both name alike."""
    for folder, videos in (("a", (1, 2, 3, 5, 6)), ("b", (1, 2, 4, 5, 6))):
        made(
            folder,
            [
                {"audio_key": f"/g{folder}/{i:04}", "video_key": f"/data/v{video}", "similarity": 0.1 * i}
                for i, video in enumerate(videos)
            ],
        )
    assert compare_systems(["a", "b"])[-1]["pairs"] == 4
    assert "1 and 1 are in one alone" in caplog.text


def test_ids_of_one_run_alone_come_after_the_videos(made):
    named = [
        {"id": f"{i}", "audio_key": f"{i}", "video_key": f"{i}", "similarity": 0.1 * i}
        | {"audio": f"/ga/{i}.wav", "video": f"/data/c{i}.mp4"}
        for i in range(4)
    ]
    made("a", named)
    made(
        "b",
        [
            {"audio_key": f"/gb/{i}", "video_key": f"/data/c{i + 1}", "similarity": 0.1 * (i + 1)}
            | {"audio": f"/gb/{i}.wav", "video": f"/data/c{i + 1}.mp4"}
            for i in range(4)
        ],
    )
    difference = compare_systems(["a", "b"])[-1]
    assert (difference["pairs"], difference["mean"]) == (3, pytest.approx(0, abs=1e-6))
