"""The demo's maker: its scenes, its pairs and its training."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import DEMO
from demo import make_demo

from imagebind import data
from imagebind.models.imagebind_model import load_model


@pytest.mark.parametrize("kind", make_demo.KINDS)
def test_a_scene_is_seen_and_heard_by_its_tone_and_rate(kind):
    """Two scenes that differ in one of them differ in picture and in sound."""
    rng = np.random.default_rng(0)
    scene = make_demo.Scene.draw(rng, kind=kind, tone=0.1, rate=2)
    for other in (make_demo.replace(scene, tone=0.9), make_demo.replace(scene, rate=5)):
        assert (make_demo.picture(scene, 0.3) != make_demo.picture(other, 0.3)).any()
        assert abs(make_demo.sound(scene, 2) - make_demo.sound(other, 2)).max() > 0.1


def test_the_pairs_are_those_that_the_script_makes(tmp_path):
    for number in range(0, 24, 8):
        make_demo.write_pair(tmp_path, number)
    named = [make_demo.pair_paths(DEMO, number) for number in range(len(make_demo.held_out_scenes()))]
    for i, (side, read) in enumerate((("audio", data.load_audio), ("video", data.load_video))):
        assert {pair[i] for pair in named} == set((DEMO / side).iterdir())
        for number in range(0, 24, 8):  # encoders differ in the last bits between machines
            made = make_demo.pair_paths(tmp_path, number)[i]
            assert (read(made) - read(named[number][i])).abs().mean() < 0.01


def test_the_script_trains_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_demo, "TRAIN_SCENES", 8)
    monkeypatch.setattr(make_demo, "BATCH", 4)
    monkeypatch.setattr(make_demo, "STEPS", 50)
    monkeypatch.setattr(make_demo, "TEXT_STEPS", 100)
    monkeypatch.setattr(make_demo, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_demo.py", "train"])
    make_demo.main()
    lines = capsys.readouterr().out.splitlines()
    for start in ("audio and vision: step 50", "text: step 100"):
        (line,) = (line for line in lines if line.startswith(start))
        assert float(line.split()[-1]) < 1.2  # chance: log 4 = 1.39
    made, shipped = load_model(tmp_path / "imagebind_demo.pth"), load_model(DEMO / "imagebind_demo.pth")
    assert made.note == shipped.note
    assert {m: t.config for m, t in made.towers.items()} == {m: t.config for m, t in shipped.towers.items()}


def test_the_captions_are_those_that_the_script_writes(tmp_path):
    make_demo.write_captions(tmp_path / "captions.csv")
    assert (tmp_path / "captions.csv").read_bytes() == (DEMO / "captions.csv").read_bytes()
