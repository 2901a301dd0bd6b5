"""Fine-tuned weights: files as training code saves them, and models that the caller has changed."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import TESTS
from test_model import TINY, recorded_text, released_state_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from batch_inference import Evaluator, batch_inference_av_consistency, main
from imagebind.evaluation.embed.model import Model
from imagebind.models import download, imagebind_model, released
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
    return model.state_dict(released_names=False)


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


def test_names_under_an_unknown_prefix_are_shown_beside_those_that_are_looked_for(tensors, tmp_path):
    """In the released names, where the file has none of ours."""
    names = [name for name in tensors if name != released.CAUSAL_MASK]
    message = fault(under("net.", tensors), tmp_path / "x.pth")
    lacked, unknown = re.fullmatch(
        rf"lacks (.*) and \d+ more; has unknown (.*) and \d+ more, of {len(names)} tensors", message
    ).groups()
    assert len(set(lacked.split(", "))) == 3
    assert set(lacked.split(", ")) <= set(names)
    assert len(unknown.split(", ")) == 3
    assert all(name.removeprefix("net.") in tensors for name in unknown.split(", "))
    one_less = {name: tensor for name, tensor in tensors.items() if name != NORM}
    assert fault(under("module.", one_less), tmp_path / "x.pth") == f"lacks {NORM}, of {len(names)} tensors"


@pytest.mark.parametrize("name", ["a\nb", "lora_\nb", "x" * 5000])
def test_any_name_fits_into_a_line(name, tensors, tmp_path):
    message = fault({**tensors, name: torch.ones(1)}, tmp_path / "x.pth")
    assert " ".join(name.split())[:200] in message
    assert len(message) < 500
    assert len(fault({**tensors, name: torch.ones(1).int()}, tmp_path / "x.pth")) < 500


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
    monkeypatch.setattr(download, "RELEASED_URL", server.url)
    monkeypatch.setattr(download, "RELEASED_PATH", tmp_path / "project" / "imagebind_huge.pth")
    (tmp_path / ".checkpoints").mkdir()
    (tmp_path / ".checkpoints" / "imagebind_huge.pth").write_bytes(bare.read_bytes())
    monkeypatch.chdir(tmp_path)
    model = imagebind_model.imagebind_huge(pretrained=True)
    assert torch.equal(model.towers["audio"].blocks[1].norm_2.bias, torch.load(bare)[NORM])
    assert server.ranges == []
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "imagebind_huge.pth").write_text("the project's own comes first")
    with pytest.raises(CheckpointError, match=r"project/imagebind_huge\.pth: not a checkpoint"):
        imagebind_model.imagebind_huge(pretrained=True)


# The released names of a model's tensors


def test_the_released_state_dict_has_every_name_and_shape():
    with torch.device("meta"):
        model = ImageBindModel(IMAGEBIND_HUGE)
    state_dict = model.state_dict()
    assert {name: list(tensor.shape) for name, tensor in state_dict.items()} == HUGE_SHAPES
    for name in HUGE_SHAPES:
        assert name == released.CAUSAL_MASK or released.released_name(released.our_name(name)) == name


class Wrapper(torch.nn.Module):
    """A model of somebody's, which has this one inside."""

    def __init__(self):
        super().__init__()
        self.imagebind, self.head = ImageBindModel(TINY), torch.nn.Linear(32, 2)


def test_a_model_inside_another_takes_the_released_names(tensors, bare, tmp_path):
    wrapper, expected = Wrapper(), embed(load_model(bare))
    whole = under("imagebind.", tensors) | under("head.", wrapper.head.state_dict())
    assert not torch.equal(embed(wrapper.imagebind), expected)
    assert wrapper.load_state_dict(whole, strict=True) == ([], [])
    assert torch.equal(embed(wrapper.imagebind), expected)
    assert set(wrapper.state_dict()) == set(whole)
    torch.save(wrapper.state_dict(), tmp_path / "wrapper.pth")
    again = Wrapper()
    again.load_state_dict(torch.load(tmp_path / "wrapper.pth"))
    assert torch.equal(embed(again.imagebind), expected)
    ours_inside = under("imagebind.", ours(tensors)) | under("head.", wrapper.head.state_dict())
    assert again.load_state_dict(ours_inside) == ([], [])


def test_replicas_of_data_parallel_compute_as_the_model_and_have_its_views(model):
    """Made as torch.nn.parallel.replicate makes them: tensors that are no parameters."""
    for given in (model, model.bfloat16()):
        modules = list(given.modules())
        replicas = dict(
            zip(modules, (module._replicate_for_data_parallel() for module in modules), strict=True)
        )
        for module, replica in replicas.items():
            for name, child in module._modules.items():
                setattr(replica, name, child and replicas[child])
            replica._parameters |= {name: None for name, held in module._parameters.items() if held is None}
            replica._former_parameters = {}
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    replica._former_parameters[name] = tensor * 1.0
                    setattr(replica, name, replica._former_parameters[name])
        replica = replicas[given]
        assert torch.equal(embed(replica), embed(given))
        inputs = replica.modality_preprocessors["audio"](audio=audio_clips())
        rows = replica.modality_trunks["audio"](**inputs["trunk"])
        rows = replica.modality_postprocessors["audio"](replica.modality_heads["audio"](rows))
        assert torch.equal(rows, embed(given))


def test_tools_that_load_by_name_reach_the_towers(tensors, bare):
    """torch's distributed checkpoints, and what puts tensors into modules one by one."""
    expected = embed(load_model(bare))
    model = ImageBindModel(TINY)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, dict(tensors), options=options)
    assert torch.equal(embed(model), expected)
    model = ImageBindModel(TINY)
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)  # made anew each time, where it is a view
        if tensor.shape == module.state_dict()[last].shape:  # all but the stem of IMU
            if last in module._parameters:
                module._parameters[last] = torch.nn.Parameter(tensor)
            else:
                module._buffers[last] = tensor
    assert torch.equal(embed(model), expected)


def test_tensors_that_are_known_by_name_are_taken(tensors, bare):
    """The usual way of loading a part of a checkpoint."""
    model = ImageBindModel(TINY)
    state = model.state_dict()
    state.update({name: tensor for name, tensor in tensors.items() if name in state})
    assert model.load_state_dict(state) == ([], [])
    assert torch.equal(embed(model), embed(load_model(bare)))


@pytest.mark.parametrize("assign", [False, True])
def test_a_released_state_dict_goes_in_and_comes_out(tensors, assign):
    model = ImageBindModel(TINY)
    assert model.load_state_dict(tensors, assign=assign) == ([], [])
    found = model.state_dict()
    mask = torch.full((77, 77), -torch.inf).triu(1)
    assert set(found) == set(tensors)
    for name, tensor in {**tensors, released.CAUSAL_MASK: mask}.items():
        assert torch.equal(found[name], tensor)
    head = model.towers["audio"].head.weight
    assert (head.data_ptr() == tensors["modality_heads.audio.2.weight"].data_ptr()) == assign


def test_released_names_that_do_not_fit_are_named(tensors):
    model = ImageBindModel(TINY)
    changed = {name: tensor for name, tensor in tensors.items() if name != NORM} | {"x": torch.ones(1)}
    for said in (f'Missing key(s) in state_dict: "{NORM}"', 'Unexpected key(s) in state_dict: "x"'):
        with pytest.raises(RuntimeError, match=re.escape(said)):
            model.load_state_dict(changed)
    keys = model.load_state_dict(changed, strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == ([NORM], ["x"])
    inside = torch.nn.ModuleDict({"a": model, "b": torch.nn.Linear(1, 1, bias=False)})
    with pytest.raises(RuntimeError, match=re.escape(f"size mismatch for a.{NORM}: ")):
        inside.load_state_dict(under("a.", {**tensors, NORM: torch.ones(7)}))
    assert f"a.{NORM}" in inside.load_state_dict({}, strict=False).missing_keys
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({**tensors, NORM: torch.ones(7)}, strict=False)
    with pytest.raises(RuntimeError, match="under its released name and under ours"):
        model.load_state_dict({**tensors, released.our_name(NORM): tensors[NORM]})
    keys = model.load_state_dict({"towers.x": torch.ones(1)}, strict=False)
    assert keys.unexpected_keys == ["towers.x"]
    ours_alone = model.load_state_dict({released.our_name(NORM): tensors[NORM]}, strict=False)
    assert all(name.startswith("towers.") for name in ours_alone.missing_keys)
    del model.towers["imu"]
    twice = {**tensors, **ours(tensors)}
    assert "modality_heads.imu.3.weight" in model.load_state_dict(tensors, strict=False).unexpected_keys
    with pytest.raises(RuntimeError, match="under its released name and under ours"):
        model.load_state_dict(twice, strict=False)


def test_names_inside_another_module_are_those_that_were_given(tensors):
    changed = {name: tensor for name, tensor in tensors.items() if name != NORM} | {"x": torch.ones(1)}
    inside = torch.nn.ModuleDict({"a": ImageBindModel(TINY), "b": torch.nn.Linear(1, 1, bias=False)})
    keys = inside.load_state_dict(under("a.", changed), strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == ([f"a.{NORM}", "b.weight"], ["a.x"])


# Views of the parts


def audio_clips() -> torch.Tensor:
    return torch.randn(1, 1, 128, 204, generator=torch.Generator().manual_seed(0))


def embed(model: ImageBindModel) -> torch.Tensor:
    with torch.inference_mode():
        return model({"audio": audio_clips()})["audio"]


@pytest.fixture
def model(bare) -> ImageBindModel:
    return load_model(bare)


class Lora(torch.nn.Module):
    """An attention with a low-rank change of what it gives, called as the released one is."""

    def __init__(self, attn: torch.nn.Module, scale: float = 1.0):
        super().__init__()
        width = attn.out_proj.out_features
        self.attn, self.scale = attn, scale
        self.down, self.up = torch.nn.Linear(width, 2, bias=False), torch.nn.Linear(2, width, bias=False)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None) -> torch.Tensor:
        return self.attn(x, attn_mask=attn_mask) + self.scale * self.up(self.down(x))


def test_views_hold_every_tensor_under_its_released_name(model, tensors):
    seen = {}
    for part in released.PARTS:
        seen |= {f"{part}.{name}": tensor for name, tensor in getattr(model, part).state_dict().items()}
    assert set(seen) == set(tensors)
    assert torch.equal(seen.pop(released.CAUSAL_MASK), torch.full((77, 77), -torch.inf).triu(1))
    for name, tensor in seen.items():
        own = model.state_dict(released_names=False)[released.our_name(name)]
        assert tensor.data_ptr() == own.data_ptr()
    for modality, view in model.modality_trunks.items():
        assert view.blocks is model.towers[modality].blocks
    assert list(model.modality_heads) == list(model.modality_heads.keys()) == list(TINY)
    assert model.modality_heads["audio"][2] is model.towers["audio"].head
    assert model.modality_heads.text.proj[1] is model.towers["text"].head


def test_models_pickled_by_earlier_versions_are_loaded(model):
    """All their classes were in one module."""
    content = pickle.dumps(model, protocol=2)  # which has names of modules as lines
    for module in (b"sizes", b"tower"):
        name = b"cimagebind.models." + module + b"\n"
        assert name in content
        content = content.replace(name, b"cimagebind.models.imagebind_model\n")
    assert torch.equal(embed(pickle.loads(content)), embed(model))


def test_views_are_no_part_of_the_model(model):
    names, n_parameters = list(model.state_dict()), len(list(model.parameters()))
    before = embed(model)
    assert model.modality_trunks.vision is not None
    view = pickle.loads(pickle.dumps(model.modality_preprocessors["vision"]))
    assert torch.equal(view.cls_token, model.towers["vision"].cls_token)
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(copied.state_dict()) == names
        assert len(list(copied.parameters())) == n_parameters
        assert torch.equal(embed(copied), before)


INPUTS = {
    "vision": lambda: torch.randn(2, 3, 2, 224, 224, generator=torch.Generator().manual_seed(0)),
    "audio": lambda: torch.randn(2, 1, 128, 204, generator=torch.Generator().manual_seed(0)),
    "text": lambda: recorded_text("any")[:2],
    "depth": lambda: torch.randn(2, 1, 224, 224, generator=torch.Generator().manual_seed(0)),
    "imu": lambda: torch.randn(2, 6, 2000, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("modality", INPUTS)
@torch.inference_mode()
def test_the_parts_make_up_the_model(model, modality):
    """Called as the released model calls them."""
    clips = INPUTS[modality]()
    inputs = model.modality_preprocessors[modality](**{modality: clips})
    rows = model.modality_trunks[modality](**inputs["trunk"])
    rows = model.modality_postprocessors[modality](model.modality_heads[modality](rows, **inputs["head"]))
    assert torch.equal(rows, model({modality: clips})[modality])


@pytest.mark.parametrize(
    "how", ["attention", "block", "head", "position", "wrapped trunk", "wrapper", "frozen"]
)
def test_what_is_patched_in_a_view_is_what_the_model_computes(model, how):
    torch.manual_seed(0)
    before, trunk = embed(model), model.modality_trunks.audio
    if how == "attention":
        for block in model.modality_trunks["audio"].blocks:
            block.attn = Lora(block.attn)
    elif how == "block":
        trunk.blocks[1] = torch.nn.Identity()
    elif how == "head":
        model.modality_heads.audio[2] = torch.nn.Linear(24, 32, bias=False)
    elif how == "position":
        zeros = torch.nn.Parameter(torch.zeros(1, 229, 24))
        model.modality_preprocessors.audio.pos_embedding_helper.pos_embed = zeros
    elif how == "wrapped trunk":
        for block in trunk.blocks:
            block.prev_attn = block.attn
            block.attn = Lora(block.prev_attn)
        wrapped = torch.nn.ModuleDict({"audio": torch.nn.Sequential(trunk)})
        model.modality_trunks.update(wrapped)
        assert model.modality_trunks.audio is wrapped.audio
    elif how == "stem":
        tower = model.towers["audio"]
        tower.stem = torch.nn.Sequential(tower.stem, torch.nn.Tanh())
    elif how == "loaded":
        heads = {name: tensor + 1 for name, tensor in model.modality_heads.state_dict().items()}
        model.modality_heads.load_state_dict(heads)
    elif how == "wrapper":
        model.modality_trunks.audio = torch.nn.Sequential(trunk, torch.nn.Tanh())
    else:
        model.modality_trunks.requires_grad_(False)
        assert not any(p.requires_grad for p in model.towers["audio"].blocks.parameters())
        assert model.towers["audio"].head.weight.requires_grad
    assert torch.equal(embed(model), before) == (how == "frozen")
    with torch.inference_mode():
        copied = model.towers["audio"].copy_to(torch.device("cpu"), torch.float32)
        assert torch.equal(copied(audio_clips()), embed(model))
        for weight, own in zip(copied.parameters(), model.towers["audio"].parameters(), strict=True):
            assert weight.data_ptr() == own.data_ptr()
        in_16_bits = model.towers["audio"].copy_to(torch.device("cpu"), torch.bfloat16)
        torch.testing.assert_close(in_16_bits(audio_clips()), embed(model), atol=0.2, rtol=0.05)


def test_a_patch_that_would_be_lost_is_refused(model):
    trunks = model.modality_trunks
    with pytest.raises(AttributeError, match="a view has only what the tower has"):
        trunks.audio.forward = None
    with pytest.raises(NotImplementedError, match="hook a module in it"):
        trunks.audio.register_forward_hook(print)
    with pytest.raises(ValueError, match="has weights that the tower has not"):
        trunks.audio = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"modality_trunks\['smell'\] cannot be replaced"):
        trunks.update({"smell": torch.nn.Identity()})
    with pytest.raises(ValueError, match=r"modality_heads\['audio'\] cannot be replaced"):
        model.modality_heads["audio"] = torch.nn.Identity()
    with pytest.raises(AttributeError, match="modality_trunks is a view of the towers"):
        model.modality_trunks = torch.nn.ModuleDict()


@torch.inference_mode()
def test_attention_takes_a_mask_as_the_released_one_does(model):
    audio, causal = model.towers["audio"].blocks[0], model.state_dict()[released.CAUSAL_MASK]
    x = torch.randn(2, 77, 24)  # beside it a learned key and value, which no mask hides
    torch.testing.assert_close(audio.attn(x, torch.zeros(77, 77)), audio.attn(x))
    assert not torch.allclose(audio.attn(x, causal), audio.attn(x))
    assert torch.equal(audio.attn(x, causal.isinf()), audio.attn(x, causal))
    of_heads = torch.stack([torch.zeros(77, 77), causal, causal, *[torch.zeros(77, 77)] * 3])
    plain = torch.nn.MultiheadAttention(24, 3, add_bias_kv=True, batch_first=True)
    plain.load_state_dict(audio.attn.state_dict())
    for mask in (causal, causal.isinf(), of_heads, of_heads.isinf()):
        expected = plain(x, x, x, attn_mask=mask, need_weights=False)[0]
        torch.testing.assert_close(audio.attn(x, mask), expected, atol=1e-5, rtol=0)


class Plain(torch.nn.Module):
    """An attention that knows of causality what its mask says."""

    def __init__(self, attn: torch.nn.Module):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(attn.embed_dim, attn.num_heads, batch_first=True)
        self.attn.load_state_dict(attn.state_dict())

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.attn(x, x, x, attn_mask=attn_mask, need_weights=False)[0]


@torch.inference_mode()
def test_the_causal_mask_of_texts_comes_with_the_call(model):
    """A bare trunk has none; a patched attention gets it."""
    clips, trunk = recorded_text("any"), model.modality_trunks["text"]
    inputs = model.modality_preprocessors["text"](text=clips)["trunk"]
    mask = torch.full((77, 77), -torch.inf).triu(1)
    assert torch.equal(inputs["attn_mask"], mask)
    with_mask, bare = trunk(**inputs), trunk(tokens=inputs["tokens"])
    assert (with_mask - bare).abs().max() > 1e-3
    changed = inputs["tokens"].clone()
    changed[:, -1] += 1
    assert torch.equal(trunk(changed, attn_mask=mask)[:, 0], with_mask[:, 0])
    assert not torch.equal(trunk(changed)[:, 0], bare[:, 0])
    expected = model({"text": clips})["text"]
    for block in trunk.blocks:
        block.attn = Plain(block.attn)
    torch.testing.assert_close(model({"text": clips})["text"], expected, atol=1e-5, rtol=0)


# Patched models and the cache


def with_lora(model: ImageBindModel) -> None:
    torch.manual_seed(0)
    for block in model.modality_trunks.audio.blocks:
        block.attn = Lora(block.attn)


def test_a_patched_model_finds_no_embeddings_of_another_patch(model, pairs, monkeypatch, caplog):
    caplog.set_level("INFO", "imagebind")
    monkeypatch.chdir(pairs)
    with_lora(model)
    evaluator = Evaluator(model=model)
    found = []
    for scale in (1.0, 3.0, 1.0):
        for block in model.modality_trunks.audio.blocks:
            block.attn.scale = scale
        found.append(evaluator.evaluate("audio", "video", output_dir="outputs", num_workers=0))
        found[-1]["audio_embeddings"] = found[-1]["audio_embeddings"].clone()
    first, second, third = found
    assert not torch.allclose(first["audio_embeddings"], second["audio_embeddings"])
    assert torch.equal(first["audio_embeddings"], third["audio_embeddings"])
    hashes = {results["metrics"]["protocol"]["checkpoint"]["sha256"] for results in found}
    assert len(hashes) == 3
    message = "embeddings of a patched model are not found again (patched: audio)"
    assert [record.getMessage() for record in caplog.records].count(message) == 3


def patch_hook(tower):
    tower.blocks[0].register_forward_hook(lambda module, inputs, output: output * 2)


def patch_forward(tower):
    tower.norm.forward = lambda x: x


def patch_attribute(tower):
    tower.blocks[0].attn.n_heads = 1


def patch_parametrization(tower):
    torch.nn.utils.parametrizations.weight_norm(tower.head)


def patch_dropped_block(tower):
    tower.blocks[0] = torch.nn.Identity()


PATCHES = [patch_hook, patch_forward, patch_attribute, patch_parametrization, patch_dropped_block]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_every_kind_of_patch_is_seen_and_used(model, patch):
    patched = copy.deepcopy(model)
    patch(patched.towers["audio"])
    held = Model(None, "cpu", "fp32", patched)
    embedder, weights = held.load(["audio", "video"])
    assert held.load(["audio", "video"])[1].sha256 != weights.sha256
    assert held.load(["video"])[1].sha256 == held.load(["video"])[1].sha256
    assert not torch.equal(embed(patched), embed(model))
    with torch.inference_mode():
        assert torch.equal(embedder.tower("audio")(audio_clips()), embed(patched))


def test_a_model_without_patches_keeps_its_hash(model):
    first = Model(None, "cpu", "fp32", model).load(["audio"])[1]
    model.train().requires_grad_(False)
    assert Model(None, "cpu", "fp32", copy.deepcopy(model)).load(["audio"])[1] == first


@pytest.fixture
def tiny(tensors) -> ImageBindModel:
    model = ImageBindModel(TINY).eval()
    model.load_state_dict(tensors)
    return model


def test_views_are_used_as_the_released_sequences(tiny):
    head = tiny.modality_heads["vision"]
    assert head[-1].out_features == tiny.towers["vision"].head.out_features
    assert [type(module).__name__ for module in head] == ["LayerNorm", "Linear"]
    attention = tiny.modality_trunks.vision.blocks[0].attn
    assert attention.num_heads * attention.head_dim == attention.embed_dim


def test_a_tower_is_freed_as_in_the_released_model(tiny):
    for views in (tiny.modality_preprocessors, tiny.modality_trunks, tiny.modality_heads):
        del views["vision"]
    assert tiny.modality_trunks.pop("text") is not None
    assert list(tiny.towers) == list(tiny.modality_trunks) == ["audio", "depth", "thermal", "imu"]
    assert not any(".text." in name for name in tiny.state_dict())
    with pytest.raises(KeyError, match="smell"):
        del tiny.modality_trunks["smell"]
    with pytest.raises(ValueError, match="no 'vision' tower"):
        tiny({"vision": torch.zeros(1, 3, 224, 224)})


def test_a_trunk_takes_the_released_arguments(tiny):
    trunk, width = tiny.modality_trunks["vision"], tiny.towers["vision"].config.width
    tokens = torch.randn(2, 5, width)
    expected = trunk(tokens)
    assert torch.equal(trunk(tokens=tokens, attn_mask=None, use_checkpoint=False), expected)
    assert torch.allclose(trunk(tokens, attn_mask=torch.zeros(5, 5)), expected, atol=1e-5)
    assert not torch.allclose(trunk(tokens, attn_mask=torch.full((5, 5), -9.0).triu(1)), expected)


def test_a_model_in_half_precision_runs(tiny):
    clips = torch.randn(1, *tiny.towers["audio"].config.clip_shape)
    whole = tiny({"audio": clips})["audio"]
    half = tiny.bfloat16()({"audio": clips.bfloat16()})["audio"]
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(whole, half.float()).item() > 0.99
