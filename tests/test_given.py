"""Embeddings in place of files: of a finished run, and as av-benchmark saves them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEMO, tone, write_audio
from test_docs import text_of
from test_job import Processes
from test_page import browser  # noqa: F401 (a fixture)

from batch_inference import EvaluationError, Evaluator, OptionError, batch_inference_av_consistency, main

MODEL = ("--checkpoint", str(DEMO / "imagebind_demo.pth"), "--device", "cpu", "--num_workers", "0")
FILES = {"audio": ("--audio_dir", str(DEMO / "audio")), "video": ("--video_dir", str(DEMO / "video"))}
COLUMNS = ("similarity", "video_rank", "audio_rank", "p_value", "suspect")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The outputs of the demo, all sounds with all videos."""
    folder = tmp_path_factory.mktemp("finished") / "outputs"
    assert main([*FILES["audio"], *FILES["video"], *MODEL, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def saved(finished, tmp_path_factory) -> dict[str, Path]:
    """The same embeddings as av-benchmark saves them, by the recipe of the documentation."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "outputs").symlink_to(finished)
        (recipe,) = (
            block
            for block in re.findall(r"^```python\n(.*?)^```$", text_of("docs/inputs.md"), re.M | re.S)
            if "torch.save" in block
        )
        exec(compile(recipe, "recipe", "exec"), {})
    return {modality: folder / f"imagebind_{modality}.pth" for modality in FILES}


def run(*argv: str | Path) -> int:
    return main([*map(str, argv), *MODEL])


def pair_figures(folder: Path) -> dict[str, list[str]]:
    with open(folder / "pair_scores.csv", encoding="utf-8-sig", newline="") as file:
        return {row["name"]: [row.get(column) for column in COLUMNS] for row in csv.DictReader(file)}


def save(path: Path, rows: object) -> Path:
    torch.save(rows, path)
    return path


def said(capsys) -> str:
    """Give the last line of stderr, an error of one line."""
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("mode", ["pairing", "retrieval_mode", "pairs_only"])
@pytest.mark.parametrize("form", ["run", "file"])
@pytest.mark.parametrize("sides", [("video",), ("audio",), ("audio", "video")], ids="+".join)
def test_numbers_are_those_of_the_run_over_files(finished, saved, form, sides, mode, tmp_path):
    """Those of one file are the same bits whatever it is compared with."""
    given = {m: (f"--{m}_embeddings", saved[m] if form == "file" else finished) for m in sides}
    argv = [value for m in FILES for value in given.get(m, FILES[m])]
    flags = [] if mode == "pairing" else [f"--{mode}"]
    cache = ("--cache", finished / "embeddings.sqlite")
    assert run(*argv, *flags, "--output_dir", tmp_path, "--no_html", *cache) == 0
    for name in ("audio_names.txt", "video_names.txt", "audio_embeddings.npy", "video_embeddings.npy"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    of_run = pair_figures(finished)
    if mode == "pairs_only":
        assert [row[0] for row in pair_figures(tmp_path).values()] == [row[0] for row in of_run.values()]
        return
    assert pair_figures(tmp_path) == of_run
    for name in ("similarity_matrix.npy", "top_matches.csv"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    metrics, before = (json.loads((f / "metrics.json").read_text()) for f in (tmp_path, finished))
    for key in ("paired_similarities", "recall_at_1", "mean_rank", "auc", "video_to_audio", "counts"):
        assert metrics[key] == before[key]


def test_metrics_and_report_say_where_they_are_from(finished, saved, tmp_path, capsys):
    checkpoint = json.loads((finished / "metrics.json").read_text())["protocol"]["checkpoint"]
    argv = ["--audio_embeddings", finished, "--video_embeddings", saved["video"], "--protocol", "mmaudio"]
    assert run(*argv, "--protocol_seconds", "10", "--report_lang", "en", "--output_dir", tmp_path) == 0
    protocol = json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    assert protocol["embeddings"] == {
        "audio": {
            **{"source": str(finished), "origin": "run", "protocol": "imagebind", "seconds": None},
            **{"checkpoint": checkpoint, "precision": "fp32"},
        },
        "video": {
            **{"source": str(saved["video"]), "origin": "av-benchmark", "protocol": "mmaudio"},
            **{"seconds": None, "checkpoint": None, "precision": None},
        },
    }
    assert protocol["checkpoint"] == checkpoint
    assert protocol["protocols"]["mmaudio"]["seconds"] == 10
    out, err = capsys.readouterr()
    known = f"checkpoint imagebind_demo.pth (sha256 {checkpoint['sha256'][:16]}), precision fp32"
    assert f"  Audio embeddings: of the run in {finished}, as of imagebind; {known}\n" in out
    assert (
        f"  Video embeddings: given in {saved['video']}, as av-benchmark's: those of mmaudio; checkpoint not "
        "known, precision not known\n"
    ) in out
    assert "earlier version" not in out  # of flags, which only files tell
    assert f"{saved['video']} does not say which checkpoint made it" in err
    assert "it is taken for 10, see --protocol_seconds" in err
    # Of the outputs of this run no more is known.
    again = tmp_path / "again"
    argv = ["--audio_embeddings", tmp_path, "--video_embeddings", tmp_path, "--output_dir", again]
    assert run(*argv, "--report_lang", "zh") == 0
    further = json.loads((again / "metrics.json").read_text())["protocol"]
    assert {of["origin"] for of in further["embeddings"].values()} == {"run"}
    for modality, of in protocol["embeddings"].items():
        same = {key: of[key] for key in ("protocol", "checkpoint", "precision")}
        assert further["embeddings"][modality] == {**further["embeddings"][modality], **same}
    out = capsys.readouterr().out
    assert f"  视频嵌入: 取自 {tmp_path} 中的运行，按 mmaudio 计算；模型权重 未知，精度 未知\n" in out


def test_of_two_dictionaries_no_checkpoint_is_known(saved, tmp_path, capsys):
    argv = [value for m, path in saved.items() for value in (f"--{m}_embeddings", path)]
    assert main([*map(str, argv), "--output_dir", str(tmp_path), "--report_lang", "en"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["protocol"]["checkpoint"] == {"file": None, "sha256": None, "note": ""}
    assert "  Checkpoint: not known\n" in capsys.readouterr().out


def test_the_protocol_is_that_of_the_embeddings(finished, saved, tmp_path, capsys):
    argv = [*FILES["audio"], "--output_dir", tmp_path, "--no_html", "--video_embeddings"]
    assert run(*argv, saved["video"]) == 0
    assert "--protocol is not given: it is mmaudio, as of the embeddings" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "metrics.json").read_text())["scores"]) == ["mmaudio"]


MISFITS = {
    "other": (
        ["imagebind"],
        "imagebind does not go with {}; give --protocol mmaudio, or give the video files",
    ),
    "seconds": (
        ["mmaudio", "--protocol_seconds", "8"],
        "mmaudio does not go with {}; give --protocol mmaudio --protocol_seconds 4, or give the video files",
    ),
    "further": (
        ["mmaudio", "avhscore"],
        "avhscore does not go with {}; leave avhscore out, or give the video files",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_another_protocol_is_refused(name, finished, saved, tmp_path, capsys):
    """So is a further one that needs the files of that side."""
    given, of = saved["video"], "mmaudio"
    if name == "seconds":
        given = shutil.copytree(finished, tmp_path / "finished")
        metrics = json.loads((given / "metrics.json").read_text())
        metrics["protocol"]["protocols"] = {"mmaudio": {"seconds": 4}}
        (given / "metrics.json").write_text(json.dumps(metrics))
        of = "mmaudio of 4 s"
    protocols, message = MISFITS[name]
    argv = [*FILES["audio"], "--video_embeddings", given, "--output_dir", tmp_path / "out"]
    assert run(*argv, "--protocol", *protocols) == 2
    message = message.format(f"the video embeddings of {given}, which are of {of}")
    assert said(capsys) == f"error: argument --protocol: {message}"


def test_a_further_protocol_of_the_same_features_is_scored(finished, tmp_path):
    """The sounds of imagebind and of avhscore are the same; frames are read."""
    name = "bounce_1"
    video = tmp_path / "video" / f"{name}.mp4"
    video.parent.mkdir()
    shutil.copy(DEMO / "video" / f"{name}.mp4", video)
    argv = ["--video_dir", video.parent, "--protocol", "imagebind", "avhscore", "--no_html", "--no_cache"]
    assert run(*argv, "--audio_embeddings", finished, "--output_dir", tmp_path / "a") == 0
    assert run(*argv, *FILES["audio"], "--output_dir", tmp_path / "b") == 0
    scores = [json.loads((tmp_path / out / "metrics.json").read_text())["scores"] for out in "ab"]
    assert scores[0] == scores[1]


def test_how_many_videos_were_padded_is_not_known(finished, tmp_path):
    given = shutil.copytree(finished, tmp_path / "finished")
    metrics = json.loads((given / "metrics.json").read_text())
    metrics["protocol"]["protocols"] = {"mova": {"seconds": 4}}
    (given / "metrics.json").write_text(json.dumps(metrics))
    results = batch_inference_av_consistency(audio_embeddings=given, video_embeddings=given)
    assert results["metrics"]["protocol"]["protocols"]["mova"]["seconds"] == 4
    assert "padded" not in results["metrics"]["scores"]["mova"]


def test_another_checkpoint_is_refused(finished, small_checkpoint, tmp_path, capsys):
    argv = [*FILES["audio"], "--video_embeddings", str(finished), "--device", "cpu", "--num_workers", "0"]
    assert main([*argv, "--checkpoint", str(small_checkpoint), "--output_dir", str(tmp_path)]) == 1
    assert re.fullmatch(
        rf"error: {finished}: the video embeddings are of another model \(imagebind_demo.pth, sha256 "
        r"\w{16}, not \w{16}\): name that one with --checkpoint, or give the video files",
        said(capsys),
    )
    other = shutil.copytree(finished, tmp_path / "other")
    text = (other / "metrics.json").read_text()
    sha256 = json.loads(text)["protocol"]["checkpoint"]["sha256"]
    (other / "metrics.json").write_text(text.replace(sha256, sha256[::-1]))
    argv = ["--audio_embeddings", other, "--video_embeddings", finished, "--output_dir", tmp_path / "out"]
    assert run(*argv) == 1
    assert "are of different checkpoints: give the files of one side" in said(capsys)


def test_another_precision_is_told(finished, tmp_path, capsys):
    other = shutil.copytree(finished, tmp_path / "other")
    text = (other / "metrics.json").read_text()
    (other / "metrics.json").write_text(text.replace('"precision": "fp32"', '"precision": "fp16"'))
    assert (
        run(*FILES["audio"], "--video_embeddings", other, "--output_dir", tmp_path / "out", "--no_html") == 0
    )
    assert f"warning: {other} was computed in fp16, and this run is in fp32" in capsys.readouterr().err
    both = ["--audio_embeddings", finished, "--video_embeddings", other, "--output_dir", tmp_path / "out"]
    assert run(*both, "--no_html") == 0
    assert (
        json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"]["precision"]
        == "fp32 and fp16"
    )


@pytest.mark.parametrize("both", [False, True])
def test_a_row_that_cannot_be_used_costs_no_other(saved, tmp_path, both, capsys):
    rows = torch.load(saved["video"])
    rows["bounce_2"], rows["pulse_1"] = torch.ones(5), torch.full_like(rows["pulse_1"], torch.nan)
    rows["sweep_1"] = torch.zeros(1024, dtype=torch.bfloat16)
    path = save(tmp_path / "rows.pth", rows)
    sounds = ("--audio_embeddings", saved["audio"]) if both else FILES["audio"]
    assert run(*sounds, "--video_embeddings", path, "--output_dir", tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert f"warning: skipped video file {path}/bounce_2: its embedding has 5 numbers, not 1024\n" in err
    assert f"warning: skipped video file {path}/pulse_1: its embedding is not finite\n" in err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [failure["path"] for failure in metrics["failures"]] == [f"{path}/bounce_2", f"{path}/pulse_1"]
    names = (tmp_path / "out" / "video_names.txt").read_text().splitlines()
    assert set(rows) - set(names) == {"bounce_2", "pulse_1"}
    stored = np.load(tmp_path / "out" / "video_embeddings.npy")
    for name, row in zip(names, stored, strict=True):
        assert np.array_equal(row, rows[name].float())


def test_rows_pair_by_their_whole_names(tmp_path):
    """A name has no extension that could be cut off; and rows never pair by position."""
    vectors = torch.eye(3, 1024)
    for i, name in enumerate(("x.1", "x.2", "y.1")):
        write_audio(tmp_path / "audio" / f"{name}.wav", tone(1, 300 + 100 * i))
    rows = save(tmp_path / "rows.pth", {"x.2": vectors[0], "x.1": vectors[1], "y": vectors[2]})
    options = {"checkpoint": DEMO / "imagebind_demo.pth", "device": "cpu", "num_workers": 0}
    results = batch_inference_av_consistency(tmp_path / "audio", video_embeddings=rows, **options)
    assert results["video_names"] == ["x.1", "x.2"]
    assert torch.equal(results["video_embeddings"], vectors[[1, 0]])
    assert results["pairs"][0] == (str(tmp_path / "audio" / "x.1.wav"), f"{rows}/x.1")
    other = save(tmp_path / "other.pth", dict(zip("abc", vectors, strict=True)))
    with pytest.raises(EvaluationError, match="no file name is on both sides"):
        batch_inference_av_consistency(None, None, audio_embeddings=rows, video_embeddings=other)


def test_an_evaluator_takes_them_too(finished, saved, tmp_path):
    evaluator = Evaluator(DEMO / "imagebind_demo.pth", "cpu")
    rows = evaluator.evaluate(DEMO / "audio", video_embeddings=finished, num_workers=0)
    assert torch.equal(rows["video_embeddings"], torch.from_numpy(np.load(finished / "video_embeddings.npy")))
    assert rows["metrics"]["protocol"]["embeddings"]["video"]["source"] == str(finished)


NO_DICTIONARIES = {
    "is nothing that torch reads with weights_only": b"nothing",
    "is empty": {},
    "has a list": [1, 2],
    "has a Tensor of shape (3, 64)": torch.ones(3, 64),
    "has 1 for a name": {1: torch.ones(64)},
    "has a str under format": {"format": "imagebind-towers"},
    "has a tensor of shape (2, 64) and type torch.float32 under a": {"a": torch.ones(2, 64)},
    "has a tensor of shape (64,) and type torch.int64 under a": {"a": torch.ones(64, dtype=torch.int64)},
}


@pytest.mark.parametrize("fault", NO_DICTIONARIES)
def test_what_is_no_dictionary_of_vectors_is_refused(fault, tmp_path, capsys):
    path, content = tmp_path / "rows.pth", NO_DICTIONARIES[fault]
    path.write_bytes(content) if isinstance(content, bytes) else save(path, content)
    assert run(*FILES["audio"], "--video_embeddings", path, "--output_dir", tmp_path / "out") == 1
    wanted = "a dictionary of names and vectors saved by torch, or an output directory, is wanted"
    assert said(capsys) == f"error: {path}: {fault}; {wanted}"


def test_a_dictionary_of_torch_before_1_6_is_read(saved, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(torch.load(saved["video"]), path, _use_new_zipfile_serialization=False)
    results = batch_inference_av_consistency(audio_embeddings=saved["audio"], video_embeddings=path)
    assert results["metrics"]["counts"]["pairs"] == 24


NO_RUNS = {
    "metrics.json": (None, "no finished run (metrics.json: No such file or directory)"),
    "video_names.txt": ("a\n", "video_embeddings.npy and video_names.txt are not of one run"),
    "video_embeddings.npy": ("", "no finished run of this version (No data left in file)"),
}


@pytest.mark.parametrize("name", NO_RUNS)
def test_what_is_no_finished_run_is_refused(name, finished, tmp_path, capsys):
    folder, (text, message) = shutil.copytree(finished, tmp_path / "finished"), NO_RUNS[name]
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    assert run(*FILES["audio"], "--video_embeddings", folder, "--output_dir", tmp_path / "out") == 1
    line = said(capsys)
    assert line.startswith(f"error: {folder}: ")
    assert message in line


def test_rows_of_one_name_are_refused_by_it(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "finished")
    names = (folder / "video_names.txt").read_text()
    (folder / "video_names.txt").write_text(names.replace("pulse_1\n", "bounce_1\n"))
    assert run(*FILES["audio"], "--video_embeddings", folder, "--output_dir", tmp_path / "out") == 1
    assert f"{folder}: video_names.txt has several rows of one name: bounce_1; " in said(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video_embeddings": "x"}, "video_embeddings has no sound: name sound files, or audio_embeddings"),
        ({"audio_embeddings": "x"}, "video_paths must be given"),
        (
            {"audio_embeddings": "x", "audio_paths": "a", "video_paths": "v"},
            "audio_embeddings stands for the audio files: leave one of the two out",
        ),
        (
            {"video_embeddings": "x", "manifest": []},
            "video_embeddings is not for a run with a manifest, which names its files",
        ),
        ({"video_embeddings": {"a": 1}, "audio_paths": "a"}, "video_embeddings must be a path, not {'a': 1}"),
    ],
)
def test_options_that_do_not_go_with_them(options, message):
    with pytest.raises(OptionError) as caught:
        batch_inference_av_consistency(**options)
    assert str(caught.value) == message


def test_a_directory_that_would_be_written_over_is_refused(finished, capsys):
    with pytest.raises(SystemExit):
        run(*FILES["audio"], "--video_embeddings", finished, "--output_dir", finished)
    path = finished / "video_embeddings.npy"
    assert said(capsys) == f"error: argument --output_dir: {path} is an input, and would be overwritten"


def test_shards_embed_the_other_side(finished, saved, tmp_path, capsys):
    argv = [*FILES["audio"], "--video_embeddings", finished, "--output_dir", tmp_path]
    assert run(*argv, "--shard", "1/2") == 0
    assert capsys.readouterr().out == "shard 1/2: 12 files embedded, 0 found in the cache, 0 skipped\n"
    assert run(*argv, "--no_html") == 0
    assert "24 files in" in (err := capsys.readouterr().err)
    assert "12 from the cache" in err
    argv = ["--audio_embeddings", saved["audio"], "--video_embeddings", saved["video"]]
    assert run(*argv, "--shard", "1/2", "--output_dir", tmp_path) == 2
    assert said(capsys) == "error: argument --shard: has nothing to embed: both sides have their embeddings"


def test_torchrun_is_refused_once(finished, pairs):
    job = Processes(pairs, 2, "--video_embeddings", str(finished), inputs=("--audio_dir", "audio"))
    status, _, err = job.wait()
    assert status == [2, 0]
    assert err == [["error: argument --video_embeddings: is for one process: run without torchrun"], []]


def test_captions_go_with_them(finished, tmp_path):
    argv = ["--captions", DEMO / "captions.csv", "--no_html"]
    both = ["--audio_embeddings", finished, "--video_embeddings", finished]
    assert run(*both, *argv, "--output_dir", tmp_path / "a") == 0
    assert run(*FILES["audio"], *FILES["video"], *argv, "--output_dir", tmp_path / "b") == 0
    metrics = [json.loads((tmp_path / out / "metrics.json").read_text()) for out in "ab"]
    for key in ("text_audio", "text_video", "counts"):
        assert metrics[0][key] == metrics[1][key]


def test_the_page_shows_pairs_without_files(browser, saved, tmp_path, capsys):  # noqa: F811
    rows = torch.load(saved["video"])
    rows["pulse_1"] = torch.ones(5)
    path = save(tmp_path / "rows.pth", rows)
    argv = [*FILES["audio"], "--video_embeddings", path, "--output_dir", tmp_path / "out", "--copy_media"]
    assert run(*argv, "--report_lang", "en") == 0
    assert "no copy of" not in capsys.readouterr().err
    browser.open(tmp_path / "out" / "report.html")
    browser.run(
        "[...document.querySelectorAll('button.open')].find(b => b.textContent === 'pulse_4').click()"
    )
    said = browser.wait_for("document.querySelector('.fault')?.textContent")
    assert said == "Of pulse_4 the embedding alone is known; there is no file to play."
    links = browser.run(
        "[...document.querySelectorAll('.opened-pair h3 a')].map(a => a.getAttribute('href'))"
    )
    assert [Path(link).suffix for link in links] == [".m4a"]
    cells = "[...document.querySelectorAll('td')].filter(td => td.title === {!r} && !td.className)"
    cells += ".map(td => td.querySelector('a'))"
    for name in ("pulse_4", "pulse_1"):  # in the table of pairs, and in that of skipped files
        assert browser.run(cells.format(name)) == [None]
    assert not [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]
