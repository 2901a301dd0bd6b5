"""Fine-tuned weights: files as training code saves them, and models that the caller has changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import TESTS
from test_model import TINY, released_state_dict

from batch_inference import batch_inference_av_consistency, main
from imagebind.models import checkpoints, imagebind_model, released
from imagebind.models.checkpoints import CheckpointError
from imagebind.models.imagebind_model import IMAGEBIND_HUGE, ImageBindModel, load_model

HUGE_SHAPES = json.loads((TESTS / "reference" / "model_huge_shapes.json").read_text())
NORM = "modality_trunks.audio.blocks.1.norm_2.bias"


@pytest.fixture(autouse=True)
def tiny_release(monkeypatch):
    """The released size is a tiny one."""
    monkeypatch.setattr(imagebind_model, "IMAGEBIND_HUGE", TINY)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """A released state dict, with no tensor in a shared one's place."""
    return {name: tensor.contiguous() for name, tensor in released_state_dict("tiny").items()}


@pytest.fixture(scope="module")
def bare(tensors, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "bare.pth"
    torch.save(tensors, path)
    return path


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def fault(content, path: Path) -> str:
    """Give why contents are refused, in one line."""
    with pytest.raises(CheckpointError) as caught:
        load_model(save(content, path))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def compiled_inside(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the tensors as a model does whose audio trunk is compiled."""
    return {
        name.replace("modality_trunks.audio.", "modality_trunks.audio._orig_mod."): tensor
        for name, tensor in tensors.items()
    }


def ours(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model = ImageBindModel(TINY)
    model.load_state_dict(tensors)
    return dict(model.state_dict())


TRAINING = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "lr": 0.1},
    "loss": torch.ones(()),
}
WRAPPINGS = {
    "state_dict": lambda tensors: {"state_dict": under("model.", tensors), **TRAINING},
    "model": lambda tensors: {"model": under("module.", tensors), **TRAINING},
    "model_state_dict": lambda tensors: {"model_state_dict": compiled_inside(tensors), **TRAINING},
    "module": lambda tensors: {"module": under("module._orig_mod.model.", tensors)},
    "nested": lambda tensors: {"state_dict": {"model": under("_orig_mod.", tensors), **TRAINING}},
    "our names": lambda tensors: {"model": under("module.", ours(tensors))},
    "safetensors": lambda tensors: under("module.", tensors),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_weights_give_the_bytes_of_the_bare_ones(wrapping, tensors, bare, pairs, monkeypatch):
    monkeypatch.chdir(pairs)
    content = WRAPPINGS[wrapping](tensors)
    if wrapping == "safetensors":
        safetensors.torch.save_file(content, "wrapped")
    else:
        torch.save(content, "wrapped")
    found, expected = (
        batch_inference_av_consistency("audio", "video", "cpu", checkpoint=path, num_workers=0)
        for path in ("wrapped", bare)
    )
    for key in ("audio_embeddings", "video_embeddings"):
        assert found[key].numpy().tobytes() == expected[key].numpy().tobytes()


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_wrapped_weights_stay_on_the_disk(kind, tensors, tmp_path):
    path = tmp_path / "wrapped"
    if kind == "torch":
        save({"model": under("module.", tensors)}, path)
    else:
        safetensors.torch.save_file(tensors, path)
    content = path.read_bytes()
    model = load_model(path)
    assert str(path) in mapped_files()
    with torch.no_grad():
        model.towers["audio"].head.weight.zero_()
    assert path.read_bytes() == content


def test_two_states_in_one_file_are_refused_by_name(tensors, tmp_path):
    content = {"model": tensors, "module": tensors, "state_dict": {}}
    assert fault(content, tmp_path / "x.pth") == (
        "has weights under 'model' and 'module'; save those that are meant alone"
    )


def test_names_that_become_one_are_refused(tensors, tmp_path):
    for second in (f"module.{NORM}", released.our_name(NORM)):
        assert fault({**tensors, second: tensors[NORM]}, tmp_path / "x.pth") == (
            f"has {NORM} and {second}, which are one tensor; save it once"
        )


@pytest.mark.parametrize(
    "names",
    [
        [
            "base_model.model.modality_trunks.audio.blocks.0.attn.out_proj.lora_A.default.weight",
            "lora_B.weight",
        ],
        ["modality_trunks.audio.blocks.0.mlp.fc1.base_layer.weight"],
        ["w_a_000", "w_b_000", "w_a_001"],
        ["modality_trunks.audio.blocks.0.attn.w_a.weight"],
        ["lora_embedding_A"],
    ],
)
@pytest.mark.parametrize("with_weights", [True, False])
def test_lora_that_is_not_merged_is_refused(names, with_weights, tensors, tmp_path):
    content = {**(tensors if with_weights else {}), **dict.fromkeys(names, torch.ones(2, 2))}
    assert fault(content, tmp_path / "x.pth") == (
        f"holds LoRA that is not merged, {len(names)} tensors such as {names[0]}; "
        "merge it into the weights (peft has merge_and_unload) and save those"
    )


def test_what_does_not_fit_is_named_as_in_the_file(tensors, tmp_path):
    """In our names where the file has those."""
    content = {name: tensor for name, tensor in ours(tensors).items() if name != released.our_name(NORM)}
    assert fault({"model": under("module.", content)}, tmp_path / "x.pth") == (
        "lacks towers.audio.blocks.1.norm_2.bias, of 222 tensors"
    )


def test_damaged_safetensors_are_refused_in_one_line(tensors, tmp_path, pairs, capsys, monkeypatch):
    monkeypatch.chdir(pairs)
    whole = safetensors.torch.save(tensors)
    path = tmp_path / "x.safetensors"
    infinite = safetensors.torch.save({**tensors, NORM: torch.full_like(tensors[NORM], torch.inf)})
    whole_numbers = safetensors.torch.save({**tensors, NORM: torch.ones(24, dtype=torch.int64)})
    our_norm = released.our_name(NORM)
    for content, message in (
        (whole[:-1], "truncated or damaged; download it again"),
        (whole[:200], "truncated or damaged; download it again"),
        (whole[:8] + b"{{" + whole[10:], "truncated or damaged; download it again"),
        (whole[:8], "not a checkpoint"),
        (b"{" * 100, "not a checkpoint"),
        (infinite, f"{our_norm} holds numbers that are not finite"),
        (whole_numbers, f"{our_norm} is no tensor of real numbers, or too large"),
    ):
        path.write_bytes(content)
        argv = ["--audio_dir", "audio", "--video_dir", "video", "--device", "cpu", "--checkpoint", str(path)]
        assert main(argv) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {path}: {message}"


def test_the_released_weights_are_found_in_the_working_directory(bare, tmp_path, monkeypatch, server):
    monkeypatch.setattr(checkpoints, "RELEASED_URL", server["url"])
    monkeypatch.setattr(checkpoints, "RELEASED_PATH", tmp_path / "project" / "imagebind_huge.pth")
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / ".checkpoints" / "imagebind_huge.pth").write_bytes(bare.read_bytes())
    monkeypatch.chdir(tmp_path)
    model = imagebind_model.imagebind_huge(pretrained=True)
    assert torch.equal(model.towers["audio"].blocks[1].norm_2.bias, torch.load(bare)[NORM])
    assert server["requests"] == 0
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "imagebind_huge.pth").write_text("the project's own comes first")
    with pytest.raises(CheckpointError, match=r"project/imagebind_huge\.pth: not a checkpoint"):
        imagebind_model.imagebind_huge(pretrained=True)


# The released names of a model's tensors


def test_the_released_state_dict_has_every_name_and_shape():
    with torch.device("meta"):
        model = ImageBindModel(IMAGEBIND_HUGE)
    state_dict = model.state_dict(released_names=True)
    assert {name: list(tensor.shape) for name, tensor in state_dict.items()} == HUGE_SHAPES
    for name in HUGE_SHAPES:
        assert name == released.CAUSAL_MASK or released.released_name(released.our_name(name)) == name


@pytest.mark.parametrize("assign", [False, True])
def test_a_released_state_dict_goes_in_and_comes_out(tensors, assign):
    model = ImageBindModel(TINY)
    assert model.load_state_dict(tensors, assign=assign) == ([], [])
    found = model.state_dict(released_names=True)
    mask = torch.full((77, 77), -torch.inf).triu(1)
    assert set(found) == set(tensors)
    for name, tensor in {**tensors, released.CAUSAL_MASK: mask}.items():
        assert torch.equal(found[name], tensor)
    head = model.towers["audio"].head.weight
    assert (head.data_ptr() == tensors["modality_heads.audio.2.weight"].data_ptr()) == assign


def test_released_names_that_do_not_fit_are_named(tensors):
    model = ImageBindModel(TINY)
    changed = {name: tensor for name, tensor in tensors.items() if name != NORM} | {"x": torch.ones(1)}
    with pytest.raises(RuntimeError, match=f"lacks {re.escape(NORM)}; has unknown x$"):
        model.load_state_dict(changed)
    keys = model.load_state_dict(changed, strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == ([NORM], ["x"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({**tensors, NORM: torch.ones(7)}, strict=False)
    with pytest.raises(RuntimeError, match="under its released name and under ours"):
        model.load_state_dict({**tensors, released.our_name(NORM): tensors[NORM]})
    keys = model.load_state_dict({"towers.x": torch.ones(1)}, strict=False)
    assert keys.unexpected_keys == ["towers.x"]
