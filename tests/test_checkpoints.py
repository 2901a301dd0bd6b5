"""Checkpoint files: the kinds that load, the faults that are named, and the download."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil

import pytest
import torch
from conftest import DEMO, Program, end_long_sound, n_cached
from fuzz import fuzz_checkpoints
from test_model import TINY, released_state_dict

from batch_inference import main
from imagebind.models import checkpoints, imagebind_model
from imagebind.models.checkpoints import CheckpointError
from imagebind.models.imagebind_model import ImageBindModel, imagebind_huge, load_model, save_model


@pytest.fixture
def own(tmp_path):
    """A checkpoint of our own, and the model in it."""
    model = ImageBindModel(TINY, note="a note").eval()
    save_model(model, tmp_path / "own.pth")
    return tmp_path / "own.pth", model


def test_our_own_checkpoint_brings_sizes_and_note_along(own):
    path, model = own
    loaded = imagebind_huge(checkpoint=path)
    assert loaded.note == "a note"
    assert not loaded.training
    assert {m: t.config for m, t in loaded.towers.items()} == TINY
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_model_can_be_written_to_the_file_that_it_is_mapped_from(own):
    path, model = own
    save_model(load_model(path), path)
    for name, tensor in load_model(path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_half_precision_files_are_computed_in_full(own, tmp_path):
    _, model = own
    save_model(model.half(), tmp_path / "half.pth")
    assert {p.dtype for p in load_model(tmp_path / "half.pth").parameters()} == {torch.float32}


def test_files_of_before_torch_1_6_load(own, tmp_path):
    path, _ = own
    torch.save(
        torch.load(path, weights_only=True), tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    assert load_model(tmp_path / "old.pth").note == "a note"


@pytest.fixture
def released(tmp_path, monkeypatch):
    """Write a state dict of the released kind, in the tiny size."""
    monkeypatch.setattr(imagebind_model, "IMAGEBIND_HUGE", TINY)
    state_dict = released_state_dict("tiny")

    def write(**changes):
        torch.save({k: v for k, v in {**state_dict, **changes}.items() if v is not None}, tmp_path / "x.pth")
        return tmp_path / "x.pth"

    return write


NORM = "modality_trunks.audio.blocks.1.norm_2.bias"
NORMS = ("norm_1", "norm_2", "mlp.fc1", "mlp.fc2", "attn.out_proj")


def test_the_released_kind_loads(released):
    assert set(load_model(released()).towers) == set(TINY)


def test_a_tower_of_which_the_released_kind_has_nothing_is_not_built(released):
    others = [name for name in released_state_dict("tiny") if not re.search(r"\.(vision|audio)\.", name)]
    assert set(load_model(released(**dict.fromkeys(others))).towers) == {"vision", "audio"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NORM: None}, f"lacks {NORM}, of 222 tensors"),
        (
            {f"modality_trunks.audio.blocks.1.{name}.bias": None for name in NORMS},
            r"lacks \S+1.norm_1.bias, \S+1.attn.out_proj.bias, \S+1.norm_2.bias and 2 more, of 222 tensors",
        ),
        (
            {NORM: None, f"module.{NORM}2": torch.ones(2), "optimizer": torch.ones(2)},
            f"lacks {NORM}; has unknown module.{NORM}2, optimizer, of 222 tensors",
        ),
        ({"modality_trunks.smell.blocks.0.x": torch.ones(2)}, "has unknown modality_trunks.smell.blocks.0.x"),
        ({NORM: torch.ones(7)}, r"towers.audio.blocks.1.norm_2.bias has shape \(7,\), not \(24,\)"),
        ({NORM: "text"}, "not a checkpoint of ImageBind"),
        (
            {**dict.fromkeys(released_state_dict("tiny")), "x": torch.ones(2)},
            r"lacks \S+, \S+, \S+ and 219 more; has unknown x, of 222 tensors",
        ),
    ],
)
def test_what_is_wrong_with_the_tensors_is_named(released, changes, message):
    path = released(**changes)
    with pytest.raises(CheckpointError, match=f"^{path}: {message}"):
        load_model(path)


class Code:
    """Something that runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"x": Code(str(tmp_path / "ran"))}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values; refused"):
        load_model(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_what_is_wrong_with_the_file_is_named(own, tmp_path):
    path, _ = own
    whole = path.read_bytes()

    def fault(content: bytes) -> str:
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_model(tmp_path / "x.pth")
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{tmp_path / 'x.pth'}: ")

    for cut in (100, len(whole) // 2, len(whole) - 1):
        assert fault(whole[:cut]) == "truncated or damaged; download it again"
    assert fault(b"") == "not a checkpoint"
    assert fault(b"<html>not found</html>") == "not a checkpoint"
    for path, message in ((tmp_path / "none.pth", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CheckpointError, match=f"{path}: {message}.*checkpoint=PATH"):
            load_model(path)


@pytest.mark.parametrize(
    "content",
    [
        {"format": "imagebind-towers", "towers": {}},
        {"format": "imagebind-towers", "towers": {"audio": {"width": 3}}, "state_dict": {}, "note": ""},
        {"format": "imagebind-towers", "towers": [1], "state_dict": {}, "note": ""},
        {"x": 1},
        [torch.ones(2)],
    ],
)
def test_other_contents_are_refused_in_one_line(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"^\S+x\.pth: .+") as caught:
        load_model(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


# Weights that are not what they were


def test_a_damaged_tensor_is_found(pairs, small_checkpoint, tmp_path, monkeypatch, capsys):
    """A bit within a tensor, which its shape does not tell: the file's own checksum does. Each time."""
    monkeypatch.chdir(pairs)
    content = bytearray(small_checkpoint.read_bytes())
    path = tmp_path / "x.pth"
    for place in (0.1, 0.5, 0.9):
        damaged = content.copy()
        damaged[int(len(content) * place)] ^= 1
        path.write_bytes(damaged)
        argv = ["--audio_dir", "audio", "--video_dir", "video", "--device", "cpu", "--checkpoint", str(path)]
        for _ in range(2):
            assert main(argv) == 1
            err = capsys.readouterr().err.splitlines()
            assert err[-1] == f"error: {path}: truncated or damaged; download it again"
    assert not (pairs / "outputs" / "embeddings.sqlite").exists()


def test_the_digest_is_that_of_the_file_as_it_is_now(small_checkpoint, tmp_path):
    path = tmp_path / "x.pth"
    for content in (small_checkpoint.read_bytes(), small_checkpoint.read_bytes() + b" "):
        path.write_bytes(content)
        for _ in range(2):
            assert checkpoints.verify(path).sha256 == hashlib.sha256(content).hexdigest()


def test_a_digest_is_computed_once(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = checkpoints.verify(small_checkpoint)
    checkpoints.remember_digest(first)
    monkeypatch.setattr(checkpoints, "hash_and_check", None)  # nobody may call it again
    assert checkpoints.verify(small_checkpoint) == dataclasses.replace(first, is_known=True)
    (tmp_path / "imagebind-av-consistency" / "checkpoints.json").write_text("[]")
    with pytest.raises(TypeError):
        checkpoints.verify(small_checkpoint)


@pytest.mark.parametrize("how", ["overwritten", "replaced", "removed"])
def test_weights_that_change_during_a_run_end_it_before_a_row_is_kept(with_long, how):
    path = with_long / "weights.pth"
    shutil.copy(DEMO / "imagebind_demo.pth", path)
    program = Program(with_long, "--batch_size", "1", checkpoint=path)
    program.reader_of(with_long / "audio" / "long.wav")
    while n_cached(with_long) < 8:
        program.process.join(0.1)
        assert program.process.is_alive()
    if how == "overwritten":
        os.utime(path)
    elif how == "replaced":
        shutil.copy(path, with_long / "other.pth")
        os.replace(with_long / "other.pth", path)
    else:
        path.unlink()
    end_long_sound(with_long / "audio" / "long.wav")
    status, out, err = program.wait()
    assert (status, out) == (1, [])
    assert err[-1] == f"error: {path}: changed during the run; run again"
    assert n_cached(with_long) == 8


def test_made_up_contents_load_or_are_refused_in_one_line(tmp_path):
    outcomes, faults = fuzz_checkpoints.fuzz(0, 40, tmp_path)
    assert faults == []
    assert outcomes["loaded"] >= 3
    assert outcomes["refused"] >= 20


def test_a_checkpoint_is_a_regular_file(pairs, capsys, monkeypatch):
    monkeypatch.chdir(pairs)
    os.mkfifo("pipe")
    for path in ("pipe", "/dev/zero", "audio"):
        argv = ["--audio_dir", "audio", "--video_dir", "video", "--device", "cpu", "--checkpoint", path]
        assert main(argv) == 1
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"error: {path}: not a regular file; name a checkpoint with --checkpoint PATH"
        )
