"""Outputs that are whole or not there, and one run at a time."""

from __future__ import annotations

import io
import os
import shutil
import signal
from functools import partial

import pytest
from conftest import (
    DIRS,
    Program,
    contents,
    end_long_sound,
    need_mounts,
    own_mounts,
    tone,
    write_audio,
)

from batch_inference import EvaluationError, batch_inference_av_consistency, main
from imagebind.evaluation.compare.pair_scores import PairScores
from imagebind.evaluation.write.formats import write_csv
from imagebind.evaluation.write.lock import exclusive_use
from imagebind.sources import Source


def test_strict_is_status_3_with_all_outputs_written(pairs):
    (pairs / "audio" / "b.wav").write_text("not a sound")
    status, out, _ = Program(pairs, "--strict").wait()
    assert status == 3
    assert len(contents(pairs)) == 11
    assert out[-1] == "evaluated 3 pairs, skipped 1 files, unmatched 0 files"
    write_audio(pairs / "audio" / "b.wav", tone(1))
    assert Program(pairs, "--strict").wait()[0] == 0


def test_a_disk_too_full_for_the_outputs_is_one_line_and_keeps_earlier_ones(pairs):
    need_mounts()
    assert Program(pairs).wait()[0] == 0
    kept = contents(pairs)
    shutil.move(pairs / "outputs", pairs / "earlier")
    mounts = (
        "mkdir outputs after && mount -t tmpfs -o size=6m none outputs && cp earlier/[!e]* outputs"
        " && head -c 1m /dev/zero > outputs/padding"
    )
    small = partial(own_mounts, mounts, after="cp outputs/[!e]* after; rm after/padding")
    status, _, err = Program(pairs, "--no_cache", inside=small).wait()
    assert status == 1
    assert err[-1] == "error: ./outputs: cannot write report.html (No space left on device)"
    assert {path.name: path.read_bytes() for path in (pairs / "after").iterdir()} == kept


def test_no_figures_of_an_earlier_run_lie_beside_the_files_of_a_later_one(
    pairs, small_checkpoint, monkeypatch, capsys
):
    """A directory where a file has to go ends the second run when some outputs are replaced already."""
    monkeypatch.chdir(pairs)
    argv = [*DIRS, "--device", "cpu", "--checkpoint", str(small_checkpoint), "--num_workers", "0"]
    assert main([*argv, "--no_html"]) == 0
    names = (pairs / "outputs" / "audio_names.txt").read_text()
    (pairs / "audio" / "a.wav").unlink()
    (pairs / "outputs" / "top_matches.csv").unlink()
    (pairs / "outputs" / "top_matches.csv").mkdir()
    assert main([*argv, "--no_html"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "error: ./outputs: cannot write top_matches.csv (Is a directory)"
    assert (pairs / "outputs" / "audio_names.txt").read_text() != names
    assert not (pairs / "outputs" / "metrics.json").exists()


def test_a_disk_too_full_for_the_cache_ends_the_cache_alone(pairs):
    need_mounts()
    small = partial(own_mounts, "mkdir small && mount -t tmpfs -o size=32k none small")
    argv = ("--cache", "small/cache.sqlite", "--batch_size", "1")
    status, out, err = Program(pairs, *argv, inside=small).wait()
    assert status == 0
    assert out[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 0 files"
    (warning,) = (line for line in err if "small" in line)
    assert warning == (
        "warning: small/cache.sqlite: cannot be written (database or disk is full);"
        " this run keeps no more embeddings"
    )


def test_an_output_directory_that_vanishes_is_made_again(with_long):
    program = Program(with_long)
    program.reader_of(with_long / "audio" / "long.wav")
    shutil.rmtree(with_long / "outputs")
    end_long_sound(with_long / "audio" / "long.wav")
    status, out, err = program.wait()
    assert status == 0
    assert "warning: ./outputs: gone during the run; made again" in err
    assert len([name for name in contents(with_long) if not name.startswith(".")]) == 11
    assert out[-1] == "evaluated 5 pairs, skipped 0 files, unmatched 0 files"


def test_an_output_directory_that_cannot_be_written_is_one_line(pairs):
    status, out, err = Program(pairs, "--output_dir", "/proc/outputs").wait()
    assert (status, out) == (1, [])
    assert err == ["error: /proc/outputs: cannot write to this directory (No such file or directory)"]


def test_a_second_run_keeps_out_of_an_output_directory_in_use(with_long):
    first = Program(with_long)
    os.kill(first.reader_of(with_long / "audio" / "long.wav"), signal.SIGSTOP)
    (with_long / "audio" / "long.wav").unlink()
    status, out, err = Program(with_long).wait()
    assert (status, out) == (1, [])
    assert err[-1].startswith(f"error: ./outputs: in use by process {first.process.pid} on ")
    assert err[-1].endswith("; wait for it, or name another --output_dir")
    assert Program(with_long, "--output_dir", "other").wait()[0] == 0
    first.process.kill()  # and leaves its lock behind
    first.process.join()
    assert (with_long / "outputs" / ".in_use").exists()
    (with_long / "outputs" / ".metrics.json.tmp").write_text("half a file")
    assert Program(with_long).wait()[0] == 0
    assert not any(name.startswith(".") for name in contents(with_long))


def test_a_run_whose_directory_was_taken_leaves_it_alone(with_long):
    """It was removed in mid-run, and a second run is in it: that one's files stay as they are."""
    path = with_long / "audio" / "long.wav"
    first = Program(with_long, "--cache", "cache.sqlite")
    os.kill(first.reader_of(path), signal.SIGSTOP)
    shutil.rmtree(with_long / "outputs")
    second = Program(with_long, "--no_cache")
    os.kill(second.reader_of(path), signal.SIGSTOP)
    (with_long / "outputs" / ".metrics.json.tmp").write_text("of the second run")
    end_long_sound(path)
    os.kill(first.process.pid, signal.SIGCONT)
    status, out, err = first.wait()
    assert (status, out) == (1, [])
    assert err[-1].startswith(f"error: ./outputs: in use by process {second.process.pid} on ")
    assert (with_long / "outputs" / ".metrics.json.tmp").read_text() == "of the second run"
    os.kill(second.process.pid, signal.SIGCONT)
    assert second.wait()[0] == 0


def test_two_runs_of_one_process_do_not_both_get_in(pairs, small_checkpoint):
    with exclusive_use(pairs / "outputs", []), pytest.raises(EvaluationError, match="in use by process"):
        batch_inference_av_consistency(
            pairs / "audio", pairs / "video", "cpu", output_dir=pairs / "outputs", checkpoint=small_checkpoint
        )
    assert not (pairs / "outputs" / ".in_use").exists()


def test_a_table_keeps_its_digits_and_splits_at_commas_alone():
    file = io.BytesIO()
    rows = [
        ("a;b", 123456.5, 1234567.0, 0.12345678, True, None),
        ('"q",', 99999.5, 1.0, float("nan"), False, "x\ty"),
    ]
    write_csv(("name", "rank", "large", "score", "pair", "text"), rows, file)
    assert file.getvalue().decode("utf-8-sig").splitlines() == [
        '"name","rank","large","score","pair","text"',
        '"a;b","123456.5","1234567","0.123457","yes",""',
        '"""q"",","99999.5","1","","no","x\\ty"',
    ]


def test_one_long_caption_does_not_make_all_of_them_long():
    captions = ["x" * 10_000, *[""] * 100_000]
    scores = PairScores(captions, [(Source(""), Source(""))] * len(captions), {"caption": captions})
    assert scores.columns["caption"].nbytes < 1_000_000
    assert scores[0]["caption"] == "x" * 10_000


def test_only_what_a_run_wrote_is_removed(pairs, caplog):
    """A directory of the user's with files of these names; then one that a run wrote to."""
    (pairs / "outputs").mkdir()
    own = ("report.html", "similarity_matrix.npy", "text_embeddings.npy", "window_scores.csv", "kept.txt")
    for name in own:
        (pairs / "outputs" / name).write_text("mine")
    assert Program(pairs, "--no_html", "--max_matrix_gb", "0").wait()[0] == 0
    assert all((pairs / "outputs" / name).read_text() == "mine" for name in own)
    for path in (pairs / "outputs").glob("*.*"):
        path.unlink()
    assert Program(pairs, "--keep_above", "-1").wait()[0] == 0
    (pairs / "outputs" / "similarity_matrix.npy").write_text("mine")
    status, _, err = Program(pairs, "--no_html", "--max_matrix_gb", "0").wait()
    assert status == 0
    assert not {"report.html", "kept.txt"} & set(os.listdir(pairs / "outputs"))
    assert (pairs / "outputs" / "similarity_matrix.npy").read_text() == "mine"
    assert any("similarity_matrix.npy: is not of a run, and stays" in line for line in err)


def test_no_link_in_an_output_directory_is_followed(pairs):
    (pairs / "outputs").mkdir()
    (pairs / "mine").write_text("mine")
    for name in (".pair_scores.csv.tmp", ".audio_embeddings.npy.tmp", "metrics.json", "..written.json.tmp"):
        (pairs / "outputs" / name).symlink_to(pairs / "mine")
    assert Program(pairs).wait()[0] == 0
    assert (pairs / "mine").read_text() == "mine"


def test_a_pipe_where_an_earlier_run_would_have_its_metrics_is_replaced(pairs):
    (pairs / "outputs").mkdir()
    os.mkfifo(pairs / "outputs" / "metrics.json")
    os.mkfifo(pairs / "outputs" / ".written.json")
    assert Program(pairs).wait()[0] == 0
    assert (pairs / "outputs" / "metrics.json").is_file()
