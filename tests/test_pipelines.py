"""Scores inside data pipelines: those of a run, to the last digit, whatever the rows come from."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import DEMO, RATE, TESTS, picture, tone, write_audio, write_movie, write_video

from batch_inference import (
    EvaluationError,
    Evaluator,
    OptionError,
    PairScorer,
    batch_inference_av_consistency,
)
from imagebind.models import download

CHECKPOINT = str(DEMO / "imagebind_demo.pth")
MODEL = {"checkpoint": CHECKPOINT, "device": "cpu"}
RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
N_PAIRS, FPS = 24, 10


def frames_of(number: int) -> np.ndarray:
    return np.stack([np.roll(picture(4 * number + k), number, axis=1) for k in range(25)])


def samples_of(number: int) -> np.ndarray:
    return tone(2.5, 100 + 40 * number)


@pytest.fixture(scope="module")
def lossless(tmp_path_factory) -> Path:
    """A folder of pairs that hold frames_of and samples_of, and a table of them."""
    folder, rows = tmp_path_factory.mktemp("lossless"), []
    for i in range(N_PAIRS):
        video = write_video(folder / f"video/{i:02d}.mkv", list(frames_of(i)), "ffv1", FPS, pix_fmt="bgr0")
        audio = write_audio(folder / f"audio/{i:02d}.wav", samples_of(i))
        rows.append({"id": f"{i:02d}", "audio": str(audio), "video": str(video)})
    pd.DataFrame(rows).to_csv(folder / "pairs.csv", index=False)
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for row in rows:
            tar.add(row["video"], f"{row['id']}.mkv")
            tar.add(row["audio"], f"{row['id']}.wav")
    return folder


@pytest.fixture(scope="module")
def rows(lossless) -> list[dict[str, str]]:
    return pd.read_csv(lossless / "pairs.csv", dtype=str).to_dict("records")


@pytest.fixture(scope="module")
def expected(lossless) -> list[float]:
    """The similarities of the files."""
    return similarities(audio_paths=lossless / "audio", video_paths=lossless / "video")


def similarities(**options) -> list[float]:
    results = batch_inference_av_consistency(**MODEL, **options)
    pairs = sorted(results["pair_scores"], key=lambda pair: pair["name"])
    assert len(pairs) == N_PAIRS
    return [pair["similarity"] for pair in pairs]


def columns(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def run_in_process(code: str, folder: Path) -> str:
    """Run a script where Ray may start what it likes, and give what it prints."""
    (folder / "example.py").write_text(code, encoding="utf-8")
    environment = os.environ | RAY | {"PYTHONPATH": os.fspath(TESTS.parent)}
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_a_manifest_gives_the_same(lossless, rows, expected):
    assert similarities(manifest=lossless / "pairs.csv") == expected


def test_bytes_give_the_same(rows, expected):
    held = [
        {name: Path(row[name]).read_bytes() for name in ("audio", "video")} | {"id": row["id"]}
        for row in rows
    ]
    assert similarities(manifest=held) == expected


def test_a_tar_gives_the_same(lossless, expected):
    assert similarities(manifest=lossless / "pairs.tar") == expected


def test_embeddings_of_an_earlier_run_give_the_same(lossless, expected, tmp_path):
    similarities(audio_paths=lossless / "audio", video_paths=lossless / "video", output_dir=tmp_path)
    assert similarities(audio_paths=lossless / "audio", video_embeddings=tmp_path) == expected


def test_tensors_give_the_same(expected):
    videos = [torch.from_numpy(frames_of(i)) for i in range(N_PAIRS)]
    sounds = [torch.from_numpy(samples_of(i))[None] for i in range(N_PAIRS)]
    assert Evaluator(**MODEL).score(videos, FPS, sounds, RATE).similarity.tolist() == expected


def test_batches_give_the_same_in_every_form(rows, expected):
    scorer = pickle.loads(pickle.dumps(PairScorer(**MODEL)))
    found, given = [], columns(rows)
    for first in range(0, N_PAIRS, 9):  # of which one is shorter
        part = {name: values[first : first + 9] for name, values in given.items()}
        scored = scorer(part)
        assert {name: scored[name] for name in part} == part
        found += scored["similarity"].tolist()
    assert found == expected
    frame = scorer(pd.DataFrame(given))
    assert list(frame.columns) == ["id", "audio", "video", "similarity", "status"]
    assert frame["similarity"].tolist() == expected
    table = scorer(pa.table(given))
    assert table.schema.field("similarity").type == pa.float64()
    assert table.column("similarity").to_pylist() == expected
    assert PairScorer(**MODEL, num_workers=0)(given)["similarity"].tolist() == expected
    assert pickle.loads(pickle.dumps(scorer))(given)["similarity"].tolist() == expected


def test_ray_gives_the_same(lossless, expected, tmp_path):
    code = f"""
import json, ray
from batch_inference import PairScorer
ray.init(num_cpus=4, include_dashboard=False)
scored = ray.data.read_csv({str(lossless / "pairs.csv")!r}).repartition(4).map_batches(
    PairScorer,
    fn_constructor_kwargs={{"checkpoint": {CHECKPOINT!r}, "device": "cpu", "num_workers": 1}},
    compute=ray.data.ActorPoolStrategy(size=2),
    batch_size=6,
)
rows = sorted(scored.take_all(), key=lambda row: int(row["id"]))
print("\\n" + json.dumps([row["similarity"] for row in rows]))
"""
    assert json.loads(run_in_process(code, tmp_path).splitlines()[-1]) == expected


# What a batch may hold


@pytest.fixture
def scorer() -> PairScorer:
    return PairScorer(**MODEL, protocols=("imagebind", "mmaudio"), embeddings=True)


def test_a_row_that_cannot_be_scored_is_there_with_its_reason(scorer, rows, tmp_path, caplog, capfd):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    cells = [rows[0]["video"], str(tmp_path / "x.mp4"), "none.mp4", None, 5, rows[1]["video"]]
    sounds = [rows[0]["audio"]] * 4 + ["", None]
    with caplog.at_level(logging.INFO, "imagebind"):
        scored = scorer({"video": cells, "audio": sounds, "more": range(6)})
    assert scored["status"] == [
        "ok",
        "skipped: video file: Invalid data found when processing input",
        "skipped: video file: No such file or directory",
        "skipped: no video",
        "skipped: video, of the type int, is neither a path nor bytes",
        "skipped: audio file: no audio stream",
    ]
    assert np.isnan(scored["similarity"]).tolist() == [False, *[True] * 5]
    assert np.isnan(scored["mmaudio"]).all()  # 2.5 s are too short
    assert np.isfinite(scored["video_embedding"]).all(1).tolist() == [True, False, False, False, False, True]
    assert np.isfinite(scored["audio_embedding"]).all(1).tolist() == [True] * 3 + [False] * 3
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_embeddings_are_those_of_a_run(scorer, lossless, rows):
    results = batch_inference_av_consistency(lossless / "audio", lossless / "video", **MODEL)
    scored = scorer(columns(rows))
    for modality in ("audio", "video"):
        assert np.array_equal(scored[f"{modality}_embedding"], results[f"{modality}_embeddings"].numpy())
    assert scorer({"video": [None], "audio": [None]})["video_embedding"].shape == (1, 1024)


def test_columns_have_other_names_and_sounds_are_the_videos_own(tmp_path):
    path = write_movie(tmp_path / "a.mp4", 300)
    (expected,) = batch_inference_av_consistency(None, [path], **MODEL)["pair_scores"]
    for scorer in (PairScorer(None, "mp4", **MODEL), PairScorer("wav", "mp4", **MODEL)):
        scored = scorer({"mp4": [path.read_bytes()], "wav": [None]})
        assert scored["similarity"].tolist() == [expected["similarity"]]


def test_what_is_wrong_for_all_is_raised(rows, tmp_path):
    with pytest.raises(TypeError, match=r"PairScorer\(\) got an unexpected keyword argument 'output_dir'"):
        PairScorer(output_dir="x")
    with pytest.raises(OptionError, match=r"device must be a device"):
        PairScorer(device="gpu")
    with pytest.raises(OptionError, match=r"batch has no column audio; it has video"):
        PairScorer(**MODEL)({"video": []})
    with pytest.raises(OptionError, match=r"batch must be a mapping of columns, .*, not a list"):
        PairScorer(**MODEL)(rows)
    with pytest.raises(EvaluationError, match=r"none\.pth"):
        PairScorer(checkpoint=tmp_path / "none.pth", device="cpu")(columns(rows[:1]))


# The recipes of the page


@pytest.fixture
def recipes(lossless, tmp_path, monkeypatch) -> list[str]:
    """The Python blocks of the page; the files that they name are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "RELEASED_PATH", Path(CHECKPOINT))
    write_audio(Path("audio1.wav"), tone(1))
    write_video(Path("video1.mp4"), [picture(i) for i in range(20)])
    frame = pd.read_csv(lossless / "pairs.csv", dtype=str)
    frame[["audio", "video"]][:6].to_csv("pairs.csv", index=False)
    Path(".checkpoints").mkdir()
    Path(".checkpoints/imagebind_huge.pth").symlink_to(CHECKPOINT)
    Path("shards").mkdir()
    with tarfile.open("shards/000.tar", "w") as tar:
        for row in frame.to_dict("records")[:4]:
            tar.add(row["video"], f"{row['id']}.mp4")
            tar.add(row["audio"], f"{row['id']}.wav")
    text = (TESTS.parent / "docs" / "pipelines.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_recipes_run(recipes, expected, capsys):
    for recipe in recipes:
        if "import ray" in recipe:
            continue
        Path("example.py").write_text(recipe, encoding="utf-8")
        runpy.run_path("example.py", run_name="__main__")
    printed = capsys.readouterr().out
    assert str(expected[:6]) in printed  # by Hugging Face's map
    assert str(np.array(expected[:6])) in printed  # by a DataLoader
    assert printed.count("   ok") == 6  # by pandas


@pytest.mark.slow
def test_the_recipes_of_ray_run(recipes, expected, tmp_path):
    own, tars = (recipe for recipe in recipes if "import ray" in recipe)
    on_cpu = "import ray\nray.init(num_cpus=4, include_dashboard=False)\n"
    code = (own + tars).replace("import ray\n", "").replace("    num_gpus=1,\n", "")
    code = code.replace(">= 0.3", ">= -1").replace('"num_workers": 4', '"num_workers": 1, "device": "cpu"')
    run_in_process(on_cpu + code, tmp_path)
    scored = pd.concat(map(pd.read_parquet, Path("scored").glob("*.parquet")))
    assert sorted(scored["similarity"]) == sorted(expected[:6])
    kept = []
    for path in Path("kept").glob("*.tar"):
        with tarfile.open(path) as tar:
            kept += tar.getnames()
    assert sorted(kept) == sorted(f"{i:02d}.{suffix}" for i in range(4) for suffix in ("mp4", "wav"))
