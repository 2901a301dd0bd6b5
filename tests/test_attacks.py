"""What an attacker found, each through the front door."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CACHE,
    DEMO,
    TESTS,
    Program,
    n_cached,
    picture,
    tone,
    write_audio,
    write_movie,
    write_video,
)

from batch_inference import batch_inference_av_consistency, compare_systems, main
from imagebind.evaluation.embed import progress
from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.evaluation.inputs.files import read_list_file, unify_spelling
from imagebind.models import checkpoints
from imagebind.models.imagebind_model import load_model, save_model

METRICS = Path("one", "metrics.json")
INPUTS = ["--audio_dir", "audio", "--video_dir", "video", "--device", "cpu"]


def error_of(capsys, *argv: str) -> str:
    """Run the command line, which fails, and give its last line."""
    with contextlib.suppress(SystemExit):
        assert main([*INPUTS, *argv]) in (1, 2)
    return capsys.readouterr().err.splitlines()[-1]


# Files


def test_a_video_that_changes_between_sound_and_picture_is_skipped(
    tmp_path, small_checkpoint, monkeypatch, caplog
):
    os.mkdir(tmp_path / "video")
    for name, hz in (("a", 300), ("b", 500), ("c", 700)):
        write_movie(tmp_path / "video" / f"{name}.mp4", hz)
    write_movie(tmp_path / "other.mp4", 900)
    update = progress.Progress.update

    def replace_a(self, modality, **how):
        if (tmp_path / "other.mp4").exists():  # after the first sound, before any picture
            os.replace(tmp_path / "other.mp4", tmp_path / "video" / "a.mp4")
        update(self, modality, **how)

    monkeypatch.setattr(progress.Progress, "update", replace_a)
    results = batch_inference_av_consistency(
        None, tmp_path / "video", "cpu", batch_size=1, checkpoint=small_checkpoint, num_workers=0
    )
    assert results["audio_names"] == ["b", "c"]
    assert {failure["reason"] for failure in results["failures"]} == {
        "it changed between reading sound and picture"
    }
    assert "skipped video file" in caplog.text


def test_a_warning_about_a_damaged_file_names_it(pairs, capsys, monkeypatch):
    monkeypatch.chdir(pairs)
    path = pairs / "video" / "a.mp4"
    shutil.copy(DEMO / "video" / "pulse_3.avi", pairs / "video" / "a.avi")
    path.unlink()
    content = (pairs / "video" / "a.avi").read_bytes()
    (pairs / "video" / "a.avi").write_bytes(content[: len(content) // 2])
    for workers in "01":
        checkpoint = str(DEMO / "imagebind_demo.pth")
        assert main([*INPUTS, "--checkpoint", checkpoint, "--num_workers", workers, "--no_cache"]) == 0
        err = capsys.readouterr().err.splitlines()
        assert any(line.startswith("warning: video/a.avi: ends early") for line in err)


def test_threads_of_one_process_read_their_own_files(pairs, small_checkpoint):
    failures = []

    def run() -> None:
        results = batch_inference_av_consistency(
            pairs / "audio", pairs / "video", "cpu", checkpoint=small_checkpoint, num_workers=0
        )
        failures.extend(results["failures"])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_one_file_in_one_directory_has_one_spelling():
    paths = ["a/x.wav", "a/../a/x.wav", "./a//x.wav", "b/x.wav"]
    assert unify_spelling(paths) == ("a/x.wav", "a/x.wav", "a/x.wav", "b/x.wav")


def test_lists_of_other_encodings(tmp_path):
    (tmp_path / "list").write_bytes("a.wav\nb.wav\n".encode("utf-32"))
    with pytest.raises(OptionError, match="is no text"):
        read_list_file(tmp_path / "list")
    (tmp_path / "list").write_bytes(b"x" * 200_000 + b"\n\0")
    with pytest.raises(OptionError, match="is no text"):
        read_list_file(tmp_path / "list")
    (tmp_path / "list").write_bytes(b"a.wav\rb.wav\r")
    assert read_list_file(tmp_path / "list") == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("name", "encoding"), [("\u96e8\u58f0", "gb18030"), ("caf\u00e9", "cp1252"), ("\u96e8", "utf-8")]
)
def test_a_list_is_read_in_the_encoding_in_which_its_files_are_there(
    pairs, monkeypatch, caplog, name, encoding
):
    monkeypatch.chdir(pairs)
    os.rename("audio/a.wav", f"audio/{name}.wav")
    lines = ["audio/b.wav", f"audio/{name}.wav", "audio/c.wav"]
    Path("list.txt").write_bytes("\r\n".join(lines).encode(encoding))
    assert read_list_file("list.txt") == lines
    warning = f"list.txt: line 2 is not UTF-8; such lines are read as {encoding.upper()}"
    assert caplog.messages == ([] if encoding == "utf-8" else [warning])
    os.rename(f"audio/{name}.wav", "audio/gone.wav")
    found, expected = read_list_file("list.txt"), "\r\n".join(lines).encode(encoding).split(b"\r\n")
    assert [os.fsencode(path) for path in found] == expected  # as they are: names may be any bytes
    if encoding != "utf-8":
        message = "list.txt: line 2 is not UTF-8, and its file is not there; save the list as UTF-8"
        assert caplog.messages[1:] == [message]


def test_each_line_of_a_list_is_read_in_its_own_encoding(pairs, monkeypatch, caplog):
    monkeypatch.chdir(pairs)
    names = ["audio/caf\u00e9.wav", "audio/\u96e8.wav", "audio/\u732b.wav"]
    for name, letter in zip(names, "abc", strict=True):
        os.rename(f"audio/{letter}.wav", name)
    in_gbk = "\n".join(["# \u96e8", f'"{names[1]}"', names[2]]).encode("gb18030")
    Path("list.txt").write_bytes(b"\xef\xbb\xbf" + f"{names[0]}\n".encode() + in_gbk)
    assert read_list_file("list.txt") == names
    assert caplog.messages[0] == "list.txt: line 3 is not UTF-8; such lines are read as GB18030"


def test_lists_whose_paths_are_not_there_say_so(pairs, capsys, monkeypatch):
    monkeypatch.chdir(pairs / "audio")
    os.mkdir(pairs / "elsewhere")
    (pairs / "elsewhere" / "x.wav").touch()
    (pairs / "elsewhere" / "list.txt").write_text("x.wav\ny.wav\n")
    argv = ["--audio_file", "../elsewhere/list.txt", "--video_dir", "../video", "--checkpoint", "none"]
    assert main(argv) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ../elsewhere/list.txt: its paths start at the working directory")
    assert error == "error: none of the audio files exists: x.wav, y.wav"


# Captions


def test_a_caption_with_a_files_own_extension_counts_before_others(pairs, small_checkpoint):
    captions = {"a.wav": "of the sound", "a.mp4": "of the picture", "b.wav": "of b"}
    results = batch_inference_av_consistency(
        pairs / "audio", pairs / "video", "cpu", checkpoint=small_checkpoint, captions=captions, num_workers=0
    )
    assert [pair["caption"] for pair in results["pair_scores"]] == ["of the picture", "of b", None, None]


def test_a_long_caption_costs_its_row(pairs, small_checkpoint, caplog):
    """The limit that csv has for it is the caller's, and stays as it is."""
    limit = csv.field_size_limit()
    (pairs / "c.csv").write_text("name,caption\na,a dog\nb," + "x" * 140_000 + "\n")
    results = batch_inference_av_consistency(
        pairs / "audio",
        pairs / "video",
        "cpu",
        checkpoint=small_checkpoint,
        captions=pairs / "c.csv",
        num_workers=0,
    )
    assert results["text_names"] == ["a"]
    assert "a caption of over 10000 characters: skipped row 3" in caplog.text
    assert csv.field_size_limit() == limit < 140_000
    os.mkfifo(pairs / "pipe.csv")
    with pytest.raises(EvaluationError, match="not a regular file"):
        batch_inference_av_consistency(pairs / "audio", pairs / "video", captions=pairs / "pipe.csv")


# Checkpoints


def test_a_damaged_directory_of_a_checkpoint_is_one_line(tmp_path, small_checkpoint):
    content, whole = small_checkpoint.read_bytes(), load_model(small_checkpoint).state_dict()
    rng, refused = np.random.default_rng(0), 0
    path = tmp_path / "x.pth"
    for _ in range(60):
        damaged = bytearray(content)
        damaged[len(content) - 1 - int(rng.integers(min(6000, len(content))))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            checkpoints.verify(path)
            state = load_model(path).state_dict()
        except checkpoints.CheckpointError:
            refused += 1
        else:
            assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())
    assert refused > 20


def test_made_up_towers_are_refused_before_a_file_is_read(pairs, small_checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(pairs)
    model = load_model(small_checkpoint)
    with torch.no_grad():
        model.towers["audio"].log_scale.fill_(-200)
    save_model(model, "vanishing.pth")
    said = error_of(capsys, "--checkpoint", "vanishing.pth")
    assert said == "error: vanishing.pth: towers.audio.log_scale makes embeddings vanish"
    content = torch.load(small_checkpoint, weights_only=True)
    name = "towers.audio.norm.weight"
    content["state_dict"][name] = torch.ones(1).expand(2**40)
    torch.save(content, "expanded.pth")
    assert f"{name} is no tensor of real numbers, or too large" in error_of(
        capsys, "--checkpoint", "expanded.pth"
    )
    content = torch.load(small_checkpoint, weights_only=True)
    towers = content["towers"]
    towers["audio"], towers["vision"] = towers["vision"], towers["audio"]
    swapped = {"audio": "vision", "vision": "audio"}
    content["state_dict"] = {
        ".".join([first, swapped.get(tower, tower), *rest]): tensor
        for full_name, tensor in content["state_dict"].items()
        for first, tower, *rest in [full_name.split(".")]
    }
    torch.save(content, "swapped.pth")
    assert "tower takes clips of" in error_of(capsys, "--checkpoint", "swapped.pth")


def test_an_empty_name_of_a_checkpoint_is_not_the_usual_one(pairs, capsys, monkeypatch):
    monkeypatch.chdir(pairs)
    assert error_of(capsys, "--checkpoint", "") == "error: argument --checkpoint: is empty"


@pytest.mark.parametrize("sha256", ["0" * 64, "", 5, True, [1]])
def test_what_is_remembered_of_a_checkpoint_is_checked(small_checkpoint, tmp_path, monkeypatch, sha256):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    right = checkpoints.verify(small_checkpoint)
    checkpoints.remember_digest(right)
    known = json.loads(checkpoints.digests_path().read_text())
    for entry in known.values():
        entry["sha256"] = sha256
    for content in (json.dumps(known), "[" * 100_000, "{}", "null"):
        checkpoints.digests_path().write_text(content)
        assert checkpoints.verify(small_checkpoint).sha256 == right.sha256
    checkpoints.digests_path().unlink()
    os.mkfifo(checkpoints.digests_path())
    assert checkpoints.verify(small_checkpoint).sha256 == right.sha256


# Files of the user, and outputs


def test_an_input_is_never_an_output(pairs, capsys, monkeypatch):
    monkeypatch.chdir(pairs)
    for name, line in (("audio_names.txt", "audio/a.wav\n"), (".job-settings", "mine")):
        (pairs / name).write_text(line)
    argv = ["--audio_file", "audio_names.txt", "--video_dir", "video", "--output_dir", "."]
    with pytest.raises(SystemExit):
        main(argv)
    said = "error: argument --output_dir: audio_names.txt is an input, and would be overwritten\n"
    assert capsys.readouterr().err == said
    assert Program(pairs, "--output_dir", ".").wait()[0] == 0
    assert (pairs / ".job-settings").read_text() == "mine"


def test_a_cache_damaged_in_the_middle_is_set_aside_beside_an_earlier_one(pairs):
    assert Program(pairs).wait()[0] == 0
    cache = pairs / CACHE
    (pairs / "outputs" / "embeddings.sqlite.bad").write_text("mine")
    content = bytearray(cache.read_bytes())
    content[4096:9000] = b"\xff" * (9000 - 4096)
    cache.write_bytes(content)
    status, out, err = Program(pairs).wait()
    assert status == 0
    assert any("damaged or of another version; set aside as embeddings.sqlite.bad1" in line for line in err)
    assert (pairs / "outputs" / "embeddings.sqlite.bad").read_text() == "mine"
    assert n_cached(pairs) == 8
    assert out[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 0 files"


@pytest.mark.parametrize("gigabytes", [0.5, 1.5])
def test_too_little_memory_for_torch_is_one_line(pairs, gigabytes):
    limit = f'ulimit -v {int(gigabytes * 1e6)}; exec "$@"'
    program = [
        sys.executable,
        TESTS.parent / "batch_inference.py",
        *INPUTS,
        "--checkpoint",
        DEMO / "imagebind_demo.pth",
    ]
    result = subprocess.run(["sh", "-c", limit, "sh", *program], cwd=pairs, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        f"error: ulimit -v allows {gigabytes:.1f} GB, which is too"
    )


# Comparing


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory, four_pairs, small_checkpoint):
    """A directory with outputs in one/ and two/."""
    folder = shutil.copytree(four_pairs, tmp_path_factory.mktemp("runs"), dirs_exist_ok=True)
    for i, name in enumerate("abd"):
        write_audio(folder / "audio2" / f"{name}.wav", tone(1, 700 + 150 * i))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for audio, out in (("audio", "one"), ("audio2", "two")):
            batch_inference_av_consistency(
                audio, "video", "cpu", output_dir=out, checkpoint=small_checkpoint, num_workers=0
            )
    return folder


@pytest.fixture
def two_runs(finished_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(finished_runs, tmp_path, dirs_exist_ok=True))


def read_metrics() -> dict:
    return json.loads(METRICS.read_text())


def rewrite(path: str, change) -> None:
    """Change the lines of a table."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        header, *lines = list(csv.reader(file))
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([header, *change(lines)])


def test_a_table_that_was_sorted_changes_no_difference(two_runs):
    expected = compare_systems(["one", "two"])
    rewrite("one/pair_scores.csv", lambda lines: lines[::-1])
    for before, after in zip(expected, compare_systems(["one", "two"]), strict=True):
        assert before["mean"] == pytest.approx(after["mean"], abs=1e-12)
        assert (before["pairs"], before.get("win_rate")) == (after["pairs"], after.get("win_rate"))


def test_one_more_file_of_the_same_name_leaves_the_pairs_in_common(pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    options = {"device": "cpu", "checkpoint": small_checkpoint, "num_workers": 0}
    batch_inference_av_consistency("audio", "video", output_dir="one", **options)
    write_audio(pairs / "audio" / "sub" / "a.wav", tone(1, 999))
    write_video(pairs / "video" / "sub" / "a.mp4", [picture(k) for k in range(9)])
    results = batch_inference_av_consistency("audio", "video", output_dir="two", **options)
    assert "sub/a" in results["audio_names"]
    difference = compare_systems(["one", "two"])[-1]
    assert (difference["pairs"], difference["mean"], difference["win_rate"]) == (4, 0, 0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"paired_similarities": None},
        {"counts": 5},
        {"video_to_audio": [1]},
        {"auc": "high"},
        {"auc": 10**400},
        {"recall_at_1": float("nan")},
        {"scores": None},
        {"scores": {"imagebind": {"n_scored": 4, "n_pairs": 4, "mean": "high"}}},
        {"scores": {"imagebind": {"n_scored": 3, "n_pairs": 4, "mean": 0.5}}},
    ],
    ids=str,
)
def test_odd_metrics_are_one_line(two_runs, changes):
    metrics = read_metrics()
    METRICS.write_text(json.dumps(metrics | changes))
    with pytest.raises(EvaluationError, match=r"^one: no finished run of this version"):
        compare_systems(["one", "two"])


@pytest.mark.parametrize("column", [3, 4], ids=["status", "similarity"])
@pytest.mark.parametrize("value", ["7e300", "nan", "x", ""])
def test_odd_similarities_are_one_line(two_runs, column, value):
    def change(lines: list[list[str]]) -> list[list[str]]:
        lines[0][column] = value
        return lines

    rewrite("one/pair_scores.csv", change)
    with pytest.raises(EvaluationError, match=r"^one: no finished run of this version"):
        compare_systems(["one", "two"])


def test_a_changed_column_of_a_compared_run_is_refused(pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    options = {"device": "cpu", "checkpoint": small_checkpoint, "num_workers": 0}
    options |= {"captions": {"a": "a dog", "b": "rain"}, "protocols": ["imagebind", "avhscore"]}
    for out in ("one", "two"):
        batch_inference_av_consistency("audio", "video", output_dir=out, **options)
    table = Path("one/pair_scores.csv").read_text(encoding="utf-8-sig")
    columns = next(iter(csv.DictReader(table.splitlines())))
    assert len(compare_systems(["one", "two"])) == 12
    for column in ("text_audio_similarity", "text_video_similarity", "avhscore", "imagebind"):
        place = list(columns).index(column)
        for change in (lambda text: "0.9", lambda text: ""):
            rows = list(csv.reader(table.splitlines()))
            for row in rows[1:]:
                row[place] = change(row[place]) if row[place] else ""
            with open("one/pair_scores.csv", "w", newline="") as file:
                csv.writer(file).writerows(rows)
            with pytest.raises(EvaluationError, match=r"^one: .*its files are of different runs"):
                compare_systems(["one", "two"])


@pytest.mark.parametrize("value", ["nan", "1e400", "0_1", "9" * 401, "-1", "soon"])
def test_a_time_of_the_users_own_is_no_part_of_a_file(two_runs, value):
    expected = compare_systems(["one", "two"])
    table = Path("one/pair_scores.csv")
    header, *lines = table.read_text(encoding="utf-8-sig").splitlines()
    text = "".join(f"{line}\n" for line in (f'{header},"start"', *(f'{x},"{value}"' for x in lines)))
    table.write_text(text, encoding="utf-8-sig")
    assert compare_systems(["one", "two"], "compared") == expected


@pytest.mark.parametrize("path", [r"a\x00b.wav", r"a\ud800.wav", r"\udcff\ud800/b.wav"])
def test_paths_that_no_file_can_have_are_shown_in_a_comparison(two_runs, path):
    def change(lines: list[list[str]]) -> list[list[str]]:
        lines[0][1] = path
        return lines

    rewrite("one/pair_scores.csv", change)
    assert len(compare_systems(["one", "two"], "compared")) == 3
    shown = path.rpartition("/")[2].replace("\\", "\\\\")
    assert shown in Path("compared/comparison.html").read_text()


def test_runs_of_other_definitions_are_refused_in_one_line(two_runs):
    metrics = read_metrics()
    del metrics["definitions"]
    METRICS.write_text(json.dumps(metrics))
    with pytest.raises(EvaluationError, match=r"^one: its figures follow other definitions"):
        compare_systems(["one", "two"])
    assert len(compare_systems(["one", "two"], force=True)) == 3


def test_a_run_named_twice_is_refused(two_runs):
    with pytest.raises(EvaluationError, match="one: named twice"):
        compare_systems(["one", "two", "./one"])


def test_the_same_weights_under_another_name_are_comparable(two_runs):
    metrics = read_metrics()
    metrics["protocol"]["checkpoint"]["file"] = "renamed.pth"
    METRICS.write_text(json.dumps(metrics))
    assert len(compare_systems(["one", "two"])) == 3
