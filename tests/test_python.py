"""What Python has beside the function: words of messages, tables, figures for a log, notebooks, forks."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from conftest import DEMO, RATE, TESTS, tone

import batch_inference
from batch_inference import (
    EvaluationError,
    Evaluator,
    OptionError,
    batch_inference_av_consistency,
    main,
    scalars,
)
from imagebind.evaluation import forks
from imagebind.packages import PackageError

CHECKPOINT = DEMO / "imagebind_demo.pth"
PAIR = [str(DEMO / "audio" / "bounce_1.wav")], [str(DEMO / "video" / "bounce_1.mp4")]
ON_CPU = {"checkpoint": CHECKPOINT, "device": "cpu"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of twelve pairs of the demo with captions, and the path of metrics.json."""
    out = tmp_path_factory.mktemp("python")
    found = batch_inference_av_consistency(
        *(sorted((DEMO / kind).iterdir())[:12] for kind in ("audio", "video")), output_dir=out,
        captions=DEMO / "captions.csv", protocols=("imagebind", "mmaudio"), num_workers=0,
        no_html=True, **ON_CPU,
    )  # fmt: skip
    return found, out / "metrics.json"


# Messages


def test_an_evaluator_says_at_once_what_is_wrong_in_the_words_of_python(tmp_path):
    missing = tmp_path / "none.pth"
    for options, message in (
        (
            {"checkpoint": missing},
            f"{missing}: No such file or directory; name .* with checkpoint=PATH",
        ),
        ({"device": "xpu:99"}, r"xpu:99: cannot be used \(.*\); name another device="),
    ):
        with pytest.raises(EvaluationError, match=f"^{message}$"):
            Evaluator(**ON_CPU | options)


def test_each_start_of_a_run_has_its_words_for_options(tmp_path, monkeypatch, capsys):
    """A run of the command line leaves nothing behind for one of Python."""
    monkeypatch.chdir(tmp_path)
    for folder, name in (("a", "x.wav"), ("v", "y.mp4")):
        Path(folder).mkdir()
        Path(folder, name).touch()
    Path("cache").write_text("no cache")
    runs = (
        ({}, "compare all with --retrieval_mode", "compare all with retrieval_mode=True"),
        (
            {"retrieval_mode": True, "cache": "cache", "checkpoint": CHECKPOINT},
            "file with --cache",
            "file with cache=",
        ),
        ({"retrieval_mode": True, "checkpoint": "none"}, "with --checkpoint PATH", "with checkpoint=PATH"),
    )
    for options, of_line, of_python in runs:
        options = {"device": "cpu", "num_workers": 0, "output_dir": "out", **options}
        argv = [
            part for k, v in options.items() for part in ([f"--{k}"] if v is True else [f"--{k}", str(v)])
        ]
        assert main(["--audio_dir", "a", "--video_dir", "v", *argv]) in (1, 2)
        assert capsys.readouterr().err.splitlines()[-1].endswith(of_line)
        with pytest.raises((EvaluationError, OptionError), match=f"{of_python}$"):
            batch_inference_av_consistency("a", "v", **options)


def test_the_module_offers_its_own_names_alone():
    code = "from batch_inference import *; print(*sorted(name for name in dir() if name[0] != '_'))"
    root = TESTS.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(batch_inference.__all__) == dir(batch_inference)


# Tables


def test_pair_scores_become_tables(results):
    scores = results[0]["pair_scores"]
    frame, table = scores.to_pandas(), scores.to_arrow()
    assert list(frame) == table.column_names == list(scores.row_columns)
    assert table.schema.field("similarity").type == pyarrow.float32()
    assert table.schema.field("suspect").type == pyarrow.bool_()
    for i, (row, of_frame) in enumerate(zip(scores, frame.to_dict("records"), strict=True)):
        of_table = {name: column[i].as_py() for name, column in zip(table.column_names, table, strict=True)}
        for name, value in row.items():
            if name in scores.similarity_columns and value is not None:
                value = np.float32(value)
            assert of_table[name] == value
            assert (None if pandas.isna(of_frame[name]) else of_frame[name]) == value
    assert frame["mmaudio"].isna().all()
    assert table["mmaudio"].null_count == len(scores)


def test_a_package_that_is_missing_is_named(results, monkeypatch):
    for package in ("pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(PackageError, match=rf"^{package} .*pip install.* {package}$"):
            getattr(results[0]["pair_scores"], f"to_{package.replace('py', '')}")()


def test_a_notebook_shows_the_first_and_the_last_pairs(results):
    scores = results[0]["pair_scores"]
    assert repr(scores).startswith("PairScores of 12 pairs: name, audio, video, status, similarity")
    shown = scores._repr_html_()
    rows = re.findall(r"<tr>(.*)</tr>", shown)
    assert len(rows) == 1 + 5 + 1 + 5
    assert all(row.count("<td>") + row.count("<th>") == 1 + len(scores.row_columns) for row in rows)
    assert [row.split("</td>")[0] for row in rows[1:]] == [
        f"<td>{i}" for i in (0, 1, 2, 3, 4, "…", 7, 8, 9, 10, 11)
    ]
    assert f"<td>{scores[11]['name']}</td>" in rows[-1]
    assert f"<td>{scores[11]['similarity']:.4g}</td>" in rows[-1]
    assert shown.endswith("<p>12 pairs</p>")
    assert isinstance(results[0], dict)


IPYTHON = """
class Shell:
    config = {"IPKernelApp": {}}

def get_ipython():
    return Shell
"""


def test_a_notebook_without_widgets_has_bars_of_text_and_no_warning(tmp_path):
    """IPython is a stand-in that says what tqdm asks it."""
    (tmp_path / "IPython.py").write_text(IPYTHON)
    code = f"""
import IPython
from batch_inference import batch_inference_av_consistency
batch_inference_av_consistency(*{PAIR}, "cpu", checkpoint={str(CHECKPOINT)!r}, num_workers=0, progress=True)
"""
    path = os.pathsep.join([str(tmp_path), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "100%|" in done.stderr
    assert "Warning" not in done.stderr


# Figures for a log


def test_scalars_are_the_figures_of_metrics_json_under_flat_names(results):
    found, path = results
    values, metrics = scalars(found), found["metrics"]
    assert values == scalars(metrics) == scalars(path) == scalars(str(path))
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    assert all(re.fullmatch(r"[\w/]+", name, re.ASCII) for name in values)  # what each of the logs takes
    text = metrics["text_audio"]
    assert values.items() >= {
        "n_pairs": 12, "n_skipped": 0, "n_audio": 12,
        "imagebind/similarity": metrics["paired_similarity_mean"],
        "imagebind/similarity_low": metrics["paired_similarity_interval"][0],
        "imagebind/similarity_high": metrics["paired_similarity_interval"][1],
        "imagebind/auc": metrics["auc"], "imagebind/margin": metrics["margin"],
        "imagebind/mismatched_similarity": metrics["mismatched_similarity_mean"],
        "mmaudio/n_scored": 0,
        "audio_to_video/recall_at_1": metrics["recall_at_1"],
        "audio_to_video/recall_at_5_low": metrics["recall_at_5_interval"][0],
        "audio_to_video/recall_at_5_chance": metrics["recall_at_5_chance"],
        "video_to_audio/mean_rank": metrics["video_to_audio"]["mean_rank"],
        "text_audio/similarity": text["paired_similarity_mean"],
        "text_audio/auc": text["auc"],
        "text_to_audio/recall_at_1": text["recall_at_1"],
        "audio_to_text/recall_at_1": text["audio_to_text"]["recall_at_1"],
    }.items()  # fmt: skip
    assert "mmaudio/similarity" not in values  # no clip is long enough


def test_ends_of_the_interval_of_an_auc_have_names(results):
    metrics = results[0]["metrics"] | {"auc_interval": [0.25, 0.75], "margin": math.nan}
    values = scalars(metrics)
    assert (values["imagebind/auc_low"], values["imagebind/auc_high"]) == (0.25, 0.75)
    assert "imagebind/margin" not in values


def test_pairs_alone_have_scalars_of_each_protocol_without_ranks():
    found = batch_inference_av_consistency(
        *PAIR, pairs_only=True, num_workers=0, captions=DEMO / "captions.csv",
        protocols=("reward", "imagebind"), **ON_CPU,
    )  # fmt: skip
    values, scores = scalars(found), found["metrics"]["scores"]
    assert values["reward/similarity"] == scores["reward"]["mean"]
    assert values["reward_all/similarity"] == scores["reward"]["with_text"]["reward_all"]["mean"]
    assert values["imagebind/similarity"] == scores["imagebind"]["mean"]
    assert not any("recall" in name or "rank" in name for name in values)


class Recorder:
    """Takes scalars as TensorBoard's SummaryWriter does."""

    def __init__(self):
        self.added = {}

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.added[tag] = scalar_value, global_step


def test_a_training_loop_logs_scalars_as_documented(results):
    writer, step = Recorder(), 7
    text = (TESTS.parent / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^for name, value in scalars\(results\).*\n.*add_scalar.*$", text, re.M)
    exec(block, {"scalars": scalars, "results": results[0], "writer": writer, "step": step})
    assert writer.added == {name: (value, 7) for name, value in scalars(results[0]).items()}


def test_what_has_no_figures_is_refused(results, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"counts": {}}))
    (tmp_path / "text.json").write_text("{")
    for wrong, message in (
        (tmp_path / "none.json", "No such file or directory; name the metrics.json of a run"),
        (tmp_path, "Is a directory; name the metrics.json of a run"),
        (tmp_path / "other.json", "not the metrics.json of a run"),
        (tmp_path / "text.json", "not the metrics.json of a run"),
    ):
        with pytest.raises(EvaluationError, match=f"^{wrong}: {message}$"):
            scalars(wrong)
    for wrong in (None, {}, [results[0]], results[0]["pair_scores"]):
        with pytest.raises(OptionError, match=r"^results must be those of an evaluation"):
            scalars(wrong)


# Forks


def tensors() -> tuple:
    images = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 64, 64, 3) * 20
    return images.contiguous(), 25, torch.from_numpy(tone(1))[None], RATE


def compute_in_fork(evaluator, given, n_threads, sender) -> None:
    """Be a forked child: say what comes of a computation in it, or of its refusal."""
    torch.set_num_threads(n_threads)
    for work in (
        lambda: evaluator.score(*given).similarity,
        lambda: evaluator.evaluate(*PAIR, num_workers=0)["metrics"]["paired_similarity_mean"],
        lambda: Evaluator(**ON_CPU) and "loaded",
    ):
        try:
            sender.send(work())
        except EvaluationError as e:
            sender.send(f"refused: {e}")


@pytest.fixture
def four_threads(monkeypatch):
    """As on a machine of four cores, in a process of which nothing is known yet."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(forks, "_first_process", None)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("n_threads", [1, 4])
def test_a_fork_after_a_computation_ends_or_computes(four_threads, n_threads):
    """It would wait for the threads of the process that it was forked from."""
    evaluator = Evaluator(**ON_CPU)
    given = tensors()
    expected = [evaluator.score(*given).similarity]
    expected.append(evaluator.evaluate(*PAIR, num_workers=0)["metrics"]["paired_similarity_mean"])
    expected.append("loaded")
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=compute_in_fork, args=(evaluator, given, n_threads, sender)
    )
    child.start()
    try:
        found = []
        while len(found) < len(expected) and receiver.poll(60):
            found.append(receiver.recv())
    finally:
        child.kill()
    assert len(found) == len(expected)
    if n_threads == 1:
        assert found == expected
    else:
        message = f"refused: this process was forked from process {os.getpid()}, which had computed"
        assert all(one.startswith(message) and "torch.set_num_threads(1)" in one for one in found)


# Jobs

RANK = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
from test_python import PAIR, call_three_times
from batch_inference import Evaluator
import torch
torch.set_num_threads(2)
evaluator = Evaluator(checkpoint=sys.argv[1], device="cpu", precision="fp16")
found = call_three_times(evaluator)
with open(f"rank{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
"""


def call_three_times(evaluator) -> list:
    """Score and evaluate three times in this thread, and three times in threads; give all figures."""

    def score() -> list:
        found = evaluator.score(*tensors())
        return [found.similarity, found.audio_embedding.sum().item(), found.video_embedding.sum().item()]

    def evaluate() -> list:
        found = evaluator.evaluate(*PAIR, num_workers=1)
        sums = [found[f"{modality}_embeddings"].sum().item() for modality in ("audio", "video")]
        return [found["metrics"]["paired_similarity_mean"], *sums, found["failures"]]

    found = [[score(), evaluate()] for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        pending = [(pool.submit(score), pool.submit(evaluate)) for _ in range(3)]
        return found + [[future.result() for future in pair] for pair in pending]


def test_ranks_of_torchrun_evaluate_in_half_precision_in_threads_too(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "rank.py"]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, *launcher, str(CHECKPOINT)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = [call for i in (0, 1) for call in json.loads((tmp_path / f"rank{i}.json").read_text())]
    assert len(calls) == 12
    assert all(call == calls[0] for call in calls)
    assert calls[0][1][-1] == []  # no file is skipped
