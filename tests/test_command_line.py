"""The command line as people type it, and what scripts and papers take from it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import TESTS

import imagebind
from batch_inference import main

DIRS = ("--audio_dir", "audio", "--video_dir", "video")


@pytest.fixture
def run(pairs, small_checkpoint, monkeypatch, capsys):
    """Run the command line in `pairs`, and give status, stdout and stderr."""
    monkeypatch.chdir(pairs)

    def run(*argv: str, model=("--checkpoint", str(small_checkpoint), "--device", "cpu")):
        given = (*argv, *model, "--num_workers", "0", "--no_html", "--report_lang", "en") if model else argv
        try:
            status = main(given)
        except SystemExit as e:
            status = e.code
        return status, *capsys.readouterr()

    return run


def test_without_arguments_a_short_usage_is_shown(run):
    status, out, err = run(model=None)
    assert (status, out) == (2, "")
    assert err.startswith("usage: python batch_inference.py --audio_dir DIR --video_dir DIR")
    assert len(err.splitlines()) == 5
    assert "--help has all options" in err


def test_names_may_have_dashes(run):
    status, out, _ = run("--audio-dir", "audio", "--video-dir=video", "--max-matrix-gb", "0")
    assert status == 0
    assert "evaluated 4 pairs" in out
    assert not Path("outputs/similarity_matrix.npy").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--video_dri", "video"], "unrecognized argument --video_dri; is it --video_dir?"),
        (["--outputs", "x"], "unrecognized argument --outputs; is it --output_dir?"),
        (["--gpus", "8"], "unrecognized argument --gpus; --help lists all"),
        (["videos"], "unrecognized arguments: videos"),
    ],
)
def test_a_wrong_name_gets_a_suggestion(run, argv, says):
    assert run("--video_dir", "video", *argv, model=None) == (2, "", f"error: {says}\n")


def test_the_version_is_that_of_the_package(run):
    assert run("--version", model=None) == (0, f"imagebind-av-consistency {imagebind.__version__}\n", "")
    assert 'version = { attr = "imagebind.__version__" }' in (TESTS.parent / "pyproject.toml").read_text()
    citation = (TESTS.parent / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == imagebind.__version__


def test_help_names_the_documents(run):
    _, out, _ = run("--help", model=None)
    for name in re.findall(r"\w+(?:-\w+)*\.(?:zh-CN\.)?md", out.split("documents, in")[1]):
        assert any((TESTS.parent / folder / name).exists() for folder in ("", "docs")), name


def test_json_is_all_that_is_printed(run):
    status, out, _ = run(*DIRS, "--json")
    assert status == 0
    assert json.loads(out) == json.loads(Path("outputs/metrics.json").read_text())
    assert len(out.splitlines()) == 1
    assert run(*DIRS, "--json", "--shard", "1/2")[0] == 2


def test_a_comparison_is_printed_for_scripts_and_for_papers(run):
    for name in ("a", "b_1"):
        run(*DIRS, "--output_dir", name, "--protocol", "imagebind", "reward")
    compare = ("--compare", "a", "b_1", "--output_dir", "c", "--no_html")
    rows = json.loads(run(*compare, "--json", model=None)[1])
    systems = [row for row in rows if "minus" not in row]
    assert [(row["system"], row["protocol"]) for row in systems] == [
        (system, protocol) for protocol in ("imagebind", "reward") for system in ("a", "b_1")
    ]
    cell = r"-?\d\.\d+ \[-?\d\.\d+, -?\d\.\d+\]"
    table = run(*compare, "--table", "markdown", model=None)[1].splitlines()
    assert table[:2] == ["| system | imagebind | reward |", "| --- | --- | --- |"]
    assert re.fullmatch(rf"\| a \| {cell} \| {cell} \|", table[2])
    assert re.fullmatch(rf"\| b\\_1 \| {cell} \| {cell} \|", table[3])
    assert table[-1].endswith("(imagebind: n = 4, reward: n = 4); protocols: imagebind, reward.")
    latex = run(*compare, "--table", "latex", model=None)[1].splitlines()
    assert latex[3:5] == [r"\begin{tabular}{lcc}", r"system & imagebind & reward \\"]
    assert re.fullmatch(rf"b\\_1 & {cell} & {cell} \\\\", latex[7])
    assert "95 \\% interval" in latex[2]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--compare", "a", "b", "--copy_media"], "--compare: not allowed with argument --copy_media"),
        (["--compare", "a", "b", "--table", "latex", "--json"], "--table: not allowed with argument --json"),
        ([*DIRS, "--table", "latex"], "--table: not allowed without argument --compare"),
    ],
)
def test_what_would_do_nothing_is_refused(run, argv, says):
    assert run(*argv, model=None) == (2, "", f"error: argument {says}\n")


def test_one_pair_has_a_short_report(run):
    _, out, _ = run("--audio_paths", "audio/a.wav", "--video_paths", "video/a.mp4")
    report = out.split("How it was computed")[0]
    (mean,) = re.findall(r"Mean similarity of pairs: (-?\d\.\d{4})$", report, re.M)
    metrics = json.loads(Path("outputs/metrics.json").read_text())
    assert mean == f"{metrics['paired_similarity_mean']:.4f}"
    assert "ank" not in report
    assert "Recall" not in report


def test_a_file_that_cannot_be_read_is_named_once(run):
    Path("video/a.mp4").write_text("broken")
    _, out, err = run(*DIRS, "--protocol", "all")
    assert err.count("video/a.mp4") == 1
    assert err.count("a (video file") == 0
    assert out.count("Invalid data found") == 1
    assert "mmaudio gives 4 of 4 pairs no score" in err  # of the others, which are too short
