"""The benchmarks run, in a small size."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import FORKSERVER, TESTS

sys.path.append(str(TESTS / "benchmarks"))

import figures
import gpu
import mutants
import pairs
import precision
import protocols
import scale
import tars
import throughput


@pytest.fixture(autouse=True)
def imported(monkeypatch):
    """Let processes of benchmarks begin with all imports done, and videos be small."""
    monkeypatch.setattr(throughput, "CONTEXT", FORKSERVER)
    monkeypatch.setattr(throughput, "SIZES", ((72, 128), (96, 160), (120, 208)))


@pytest.mark.parametrize("name", figures.TABLES)
def test_every_table_of_figures_is_printed(name, monkeypatch, capsys):
    monkeypatch.setattr(figures, "SIZES", (4, 30))
    monkeypatch.setattr(figures, "AUC_SIZES", (100,))
    monkeypatch.setattr(figures, "LARGE", 100)
    monkeypatch.setattr(figures, "SETTINGS", {"medium, 24 pairs": figures.SETTINGS["medium, 24 pairs"]})
    figures.TABLES[name](5)
    title, columns, _, *rows = capsys.readouterr().out.strip().replace("\n\n", "\n").splitlines()
    assert title
    assert rows
    assert {row.count("|") for row in (columns, *rows)} == {columns.count("|")}


def test_costs_of_protocols_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(throughput, "FPS", 5)
    size = ["--videos", "1", "--runs", "1", "--seconds", "8", "--times", "2"]
    protocols.main([*size, "--num_workers", "0"])
    printed = capsys.readouterr().out
    assert "| all, against the sum of the seven | " in printed
    assert "| imagebind, mova, reward and t2av in one run | " in printed
    assert "peak memory, 8 s: " in printed


def test_tars_are_compared_with_files(capsys):
    tars.main(["--pairs", "2", "--seconds", "1", "--runs", "1", "--num_workers", "0"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 2 | ")


def test_costs_of_pairs_alone_are_printed(capsys):
    pairs.main(["--rows", "3", "--num_workers", "0"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| 3"]


def test_a_lost_behaviour_is_counted():
    """In processes that have nothing of the program imported."""
    script = [sys.executable, TESTS / "benchmarks" / "mutants.py"]
    options = ["--only", "behaviours", "--sample", "1", "--seed", "1"]
    result = subprocess.run([*script, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[2:] == ["| behaviours | 1 | 1 | 0 | 0 | 1.00 |"]


@pytest.mark.parametrize("behaviour", mutants.BEHAVIOURS, ids=lambda behaviour: behaviour.name)
def test_every_behaviour_can_be_undone(behaviour):
    """Its text is in its file, once, and its test is there."""
    mutant = mutants.undo(behaviour)
    ast.parse(mutant.apply_to((mutants.ROOT / mutant.file).read_bytes()))
    file, name = behaviour.test.split("::")
    assert f"def {name}(" in (mutants.ROOT / file).read_text()


def test_a_behaviour_whose_text_is_gone_is_an_error():
    gone = mutants.Behaviour("a name", "imagebind/names.py", "no such text", "another", "no test")
    with pytest.raises(ValueError, match=r"^a name: not once in imagebind/names\.py: no such text$"):
        mutants.undo(gone)


def test_mutants_change_one_thing_each(tmp_path):
    (tmp_path / "x.py").write_text(
        '"""Of 1 thing."""\n'
        "def é(a: list[1] = 1, b=not True):\n"
        '    log.info("%d", 1)\n'
        "    if a < 2 and b:\n"
        "        a += 3\n"
        '    return max(-a, (a + b) * 2), f"{1}"\n'
    )
    found = mutants.find_mutants(str(tmp_path / "x.py"), ())
    assert {mutant.shown.split(" -> ")[0] for mutant in found} == {
        "def é(a: list[1] = 1, b=not True):",
        "if a < 2 and b:",
        "a += 3",
        'return max(-a, (a + b) * 2), f"{1}"',
    }
    assert [mutant.shown.split(" -> ")[1] for mutant in found] == [
        "def é(a: list[1] = (2), b=not True):",
        "def é(a: list[1] = 1, b=(True)):",
        "def é(a: list[1] = 1, b=not (False)):",
        "if (a <= 2) and b:",
        "if (a < 2 or b):",
        "if a < (3) and b:",
        "a -= 3",
        "a += (4)",
        'return (min)(-a, (a + b) * 2), f"{1}"',
        "return (None)",
        'return max((a), (a + b) * 2), f"{1}"',
        'return max(-a, ((a + b) / 2)), f"{1}"',
        'return max(-a, ((a - b)) * 2), f"{1}"',
        'return max(-a, (a + b) * (3)), f"{1}"',
    ]


@pytest.mark.parametrize("name", throughput.ROWS)
def test_every_row_of_throughput_is_printed(name, capsys):
    throughput.main(["--small", "--only", name])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [tuple(row.split(" | ")[:3]) for row in rows] == [
        (f"| {what}", against, goal) for what, against, goal in throughput.ROWS[name][1]
    ]


@pytest.mark.parametrize("name", scale.ROWS)
def test_every_row_of_scale_is_printed(name, monkeypatch, capsys):
    monkeypatch.setattr(scale, "FOLDERS", 10)
    scale.main(["--rows", "30", "--files", "40", "--num_workers", "0", "--only", name])
    (row,) = capsys.readouterr().out.splitlines()
    assert len(row.split(", ")) > 2


def test_every_row_of_a_gpu_is_printed_without_one(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "REPEATS", 1)
    gpu.main(["--small"])
    rows = [row.split(" | ")[0] for row in capsys.readouterr().out.splitlines()[4:]]
    assert rows[0].startswith("| vision tower, ")
    assert rows[1].startswith("| read 10 s clips of 224p, 360p and 720p, 1 workers")
    assert rows[-1] == "| whole run of 3 pairs"


def test_every_precision_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(precision, "SOUNDS", precision.SOUNDS[:1])
    monkeypatch.setattr(precision, "VIDEOS", precision.VIDEOS[:1])
    precision.main(["--small"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(":")[0] for row in rows] == ["fp32", "tf32", "bf16", "fp16"]
