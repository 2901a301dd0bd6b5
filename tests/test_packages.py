"""A run imports what it uses; a package that is missing or does not load is one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import DEMO, PROGRAM

from batch_inference import main
from imagebind.data.text import clip_tokenizer

MISSING = "raise ModuleNotFoundError('No module named ' + repr(__name__), name=__name__)"
SOME_RUNS = ("torchvision", "PIL", "open_clip", "ftfy", "regex", "pyarrow", "safetensors", "huggingface_hub")
REFERENCES = ("torchaudio", "pytorchvideo", "timm", "iopath")  # what only the tests compare with


def run_without(modules: dict[str, str], folder: Path, *argv: str) -> tuple[int, list[str]]:
    """Run the program where modules are replaced by code; give its status and what it says on stderr."""
    with tempfile.TemporaryDirectory() as replaced:
        for name, code in modules.items():
            Path(replaced, f"{name}.py").write_text(code)
        return run_with_path(replaced, folder, *argv)


def run_with_path(path: str, folder: Path, *argv: str) -> tuple[int, list[str]]:
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([*PROGRAM, *argv], cwd=folder, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.splitlines()


def test_a_run_needs_no_package_that_it_does_not_use(pairs):
    lacking = dict.fromkeys((*SOME_RUNS, *REFERENCES, "plotly"), MISSING)
    for number, (protocols, also) in enumerate([(["imagebind"], ()), (["all"], ("pillow",))]):
        lacking.pop("PIL" if also else None, None)
        (folder := pairs / str(number)).mkdir()
        argv = ("--no_html", "--output_dir", folder, "--protocol", *protocols)
        status, err = run_without(lacking, pairs, *argv)
        assert status == 0, err
        metrics = json.loads((folder / "metrics.json").read_text())
        used = ("torch", "numpy", "av", "einops", *also)
        assert metrics["protocol"]["versions"] == {name: metadata.version(name) for name in used}


def captions(folder: Path) -> list[str]:
    (folder / "captions.csv").write_text("name,caption\n" + "".join(f"{name},a note\n" for name in "abcd"))
    return ["--captions", "captions.csv"]


TORCH = metadata.version("torch")


@pytest.mark.parametrize(
    ("module", "code", "options", "message"),
    [
        (
            "plotly",
            MISSING,
            [],
            "plotly is missing: pip install plotly, or leave the page out with --no_html",
        ),
        ("ftfy", MISSING, captions, "ftfy is missing: pip install ftfy"),
        (
            "av",
            "raise ImportError('libavformat.so.61: cannot open shared object file')",
            [],
            f"av {metadata.version('av')} does not load (libavformat.so.61: cannot open shared object file): "
            "pip install --upgrade av",
        ),
        (
            "torchvision",
            "raise RuntimeError('operator torchvision::nms does not exist')",
            captions,  # open_clip imports it
            f"torchvision {metadata.version('torchvision')} does not load with torch {TORCH} "
            f"(operator torchvision::nms does not exist): pip install --upgrade torchvision torch=={TORCH}",
        ),
        (
            "torch",
            "raise OSError('libcudart.so.13: cannot open shared object file')",
            [],
            f"torch {TORCH} does not load (libcudart.so.13: cannot open shared object file): "
            f"pip install --force-reinstall torch=={TORCH}",
        ),
    ],
    ids=["plotly", "ftfy", "av", "torchvision", "torch"],
)
def test_a_package_that_is_needed_says_so_in_one_line(pairs, module, code, options, message):
    options = options(pairs) if callable(options) else options
    status, err = run_without({module: code}, pairs, *options)
    assert status == 1
    (error,) = (line for line in err if line.startswith("error: "))
    assert error.startswith(f"error: {message}")
    assert not (pairs / "outputs" / "metrics.json").exists()


def test_a_table_in_parquet_needs_pyarrow(pairs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.chdir(pairs)
    (pairs / "pairs.parquet").write_bytes(b"PAR1")
    checkpoint = str(DEMO / "imagebind_demo.pth")
    assert main(["--manifest", "pairs.parquet", "--checkpoint", checkpoint, "--device", "cpu"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == "error: pyarrow is missing: pip install pyarrow"


def test_all_that_captions_need_is_named_at_once(pairs, monkeypatch, capsys):
    for name in ("open_clip", "regex"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(pairs)
    checkpoint = ["--checkpoint", str(DEMO / "imagebind_demo.pth"), "--device", "cpu", "--num_workers", "0"]
    dirs = ["--audio_dir", "audio", "--video_dir", "video"]
    clip_tokenizer.cache_clear()
    assert main([*dirs, *captions(pairs), *checkpoint]) == 1
    err = capsys.readouterr().err.splitlines()
    versions = f"torch=={metadata.version('torch')}"
    assert (
        err[-1] == f"error: open_clip_torch, regex are missing: pip install open_clip_torch regex {versions}"
    )


def test_a_program_without_its_packages_says_which(tmp_path):
    """Python as it comes, such as that of a terminal in which no environment is active."""
    done = subprocess.run([sys.executable, "-E", "-S", PROGRAM[1], "--help"], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: numpy, torch, .* are missing: pip install .*; or activate .*\n", done.stderr)
