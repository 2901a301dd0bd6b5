"""The benchmarks run, in a small size."""

from __future__ import annotations

import sys

import pytest
from conftest import TESTS

sys.path.append(str(TESTS / "benchmarks"))

import figures
import pairs
import protocols
import throughput


@pytest.mark.parametrize("name", figures.TABLES)
def test_every_table_of_figures_is_printed(name, monkeypatch, capsys):
    monkeypatch.setattr(figures, "SIZES", (4, 30))
    monkeypatch.setattr(figures, "AUC_SIZES", (100,))
    monkeypatch.setattr(figures, "SETTINGS", {"medium, 24 pairs": figures.SETTINGS["medium, 24 pairs"]})
    figures.TABLES[name](5)
    title, columns, _, *rows = capsys.readouterr().out.strip().replace("\n\n", "\n").splitlines()
    assert title
    assert rows
    assert {row.count("|") for row in (columns, *rows)} == {columns.count("|")}


def test_costs_of_protocols_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(throughput, "FPS", 10)
    protocols.main(["--videos", "1", "--runs", "1", "--seconds", "8", "--times", "2"])
    printed = capsys.readouterr().out
    assert "| all, against the sum of the four | " in printed
    assert "peak memory, 8 s: " in printed


def test_costs_of_pairs_alone_are_printed(capsys):
    pairs.main(["--rows", "3"])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| 3"]
