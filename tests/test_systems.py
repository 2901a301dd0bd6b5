"""Comparing systems: finished output directories against each other."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tone, write_audio

from batch_inference import EvaluationError, batch_inference_av_consistency, compare_systems, main


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
    assert main(["--compare", "one", "two", "--output_dir", "compared"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["system", "pairs", "mean"]
    assert lines[1].split()[:2] == ["one", "4"]
    assert lines[-2].split()[:3] == ["one", "two", "3"]
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
    Path("one", "metrics.json").write_text("{}")
    with pytest.raises(EvaluationError, match="one: no finished run of this version"):
        compare_systems(["one", "two"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
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
