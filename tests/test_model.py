"""The towers: parity with the recorded outputs, and what the model takes and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib

import numpy as np
import pytest
import torch
from conftest import TESTS
from reference.weights import fill

import imagebind
from imagebind.models import checkpoints, imagebind_model
from imagebind.models.imagebind_model import IMAGEBIND_HUGE, ImageBindModel, ModalityType

REFERENCE = TESTS / "reference"
SCALES = {"audio": 20, "text": 1 / 0.07, "depth": 5, "thermal": 10, "imu": 5}
TINY = {
    ModalityType.VISION: dataclasses.replace(
        IMAGEBIND_HUGE["vision"], width=40, n_blocks=3, n_heads=4, embedding=32
    ),
    ModalityType.AUDIO: dataclasses.replace(
        IMAGEBIND_HUGE["audio"], width=24, n_blocks=2, n_heads=3, embedding=32
    ),
}


def recorded_input(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(f"input:{key}".encode()))
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def released_state_dict(which: str) -> dict[str, torch.Tensor]:
    """All tensors of a released checkpoint under their names: ours filled, of others the shape alone."""
    state_dict = {}
    for name, shape in json.loads((REFERENCE / f"model_{which}_shapes.json").read_text()).items():
        if checkpoints.OTHER_TOWERS.match(name):
            state_dict[name] = torch.zeros(()).expand(shape)
        elif name.endswith("log_logit_scale"):
            state_dict[name] = torch.tensor(math.log(SCALES[name.split(".")[1]]))
        else:
            state_dict[name] = fill({name: torch.empty(shape)})[name]
    return state_dict


def assert_close(output: torch.Tensor, expected: np.ndarray) -> None:
    """To 1e-5 of the largest value."""
    assert output.shape == expected.shape
    assert np.abs(output.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> ImageBindModel:
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    torch.save(released_state_dict("tiny"), path)
    model = ImageBindModel(TINY).eval()
    model.load_state_dict(checkpoints.read_checkpoint(path).state_dict, strict=True)
    return model


@pytest.mark.parametrize(
    ("recorded", "modality", "shape"),
    [
        ("vision_video", ModalityType.VISION, (2, 3, 3, 2, 224, 224)),
        ("vision_image", ModalityType.VISION, (2, 3, 224, 224)),
        ("audio", ModalityType.AUDIO, (2, 3, 1, 128, 204)),
    ],
)
@torch.inference_mode()
def test_tiny_model_gives_the_recorded_rows(tiny, recorded, modality, shape):
    rows = tiny({modality: recorded_input(recorded, shape)})[modality]
    assert_close(rows, np.load(REFERENCE / "model_tiny.npz")[recorded])


@pytest.mark.slow
@torch.inference_mode()
def test_huge_model_gives_the_recorded_rows(tmp_path, monkeypatch):
    """Through the door of the released package: imagebind_huge(pretrained=True)."""
    path = tmp_path / "imagebind_huge.pth"
    torch.save(released_state_dict("huge"), path)
    monkeypatch.setattr(checkpoints, "RELEASED_PATH", path)
    model = imagebind_model.imagebind_huge(pretrained=True)
    assert not model.training
    rows = model(
        {
            ModalityType.VISION: recorded_input("huge_vision_video", (1, 2, 3, 2, 224, 224)),
            ModalityType.AUDIO: recorded_input("huge_audio", (2, 3, 1, 128, 204)),
        }
    )
    del model
    path.unlink()  # 2.9 GB that pytest would keep
    expected = np.load(REFERENCE / "model_huge.npz")
    assert_close(rows[ModalityType.VISION], expected["vision_video"])
    assert_close(rows[ModalityType.AUDIO], expected["audio"])


def test_released_tensors_are_all_accounted_for():
    """Every name and shape of the released file is one of ours or of a tower known by name."""
    released = json.loads((REFERENCE / "model_huge_shapes.json").read_text())
    on_meta = {name: torch.empty(shape, device="meta") for name, shape in released.items()}
    ours = checkpoints._rename_released(on_meta)
    with torch.device("meta"):
        expected = ImageBindModel(IMAGEBIND_HUGE).state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in expected.items()}
    assert len(on_meta) - len(ours) == sum(1 for name in released if checkpoints.OTHER_TOWERS.match(name))


@torch.inference_mode()
def test_a_file_is_the_mean_of_its_clips(tiny):
    clips = recorded_input("any", (2, 3, 1, 128, 204))
    alone = torch.stack([tiny({"audio": clips[:, i]})["audio"] for i in range(3)])
    np.testing.assert_allclose(alone.norm(dim=-1), 20, rtol=1e-5)
    np.testing.assert_allclose(tiny({"audio": clips})["audio"], alone.mean(0), atol=1e-5)


@torch.inference_mode()
def test_an_image_is_its_frame_twice(tiny):
    images = recorded_input("any", (2, 4, 3, 224, 224))
    rows = tiny({"vision": images})["vision"]
    twice = tiny({"vision": torch.stack([images, images], dim=3)})["vision"]
    np.testing.assert_allclose(rows, twice, atol=1e-6)
    assert rows.shape == (2, 32)


@pytest.mark.parametrize(
    ("modality", "shape", "message"),
    [
        ("audio", (2, 1, 128, 200), r"audio input is \(B, \[S,\] \(1, 128, 204\)\), not \(2, 1, 128, 200\)"),
        ("audio", (1, 128, 204), "audio input is"),
        ("vision", (1, 1, 1, 3, 2, 224, 224), "vision input is"),
        ("text", (1, 77), "no 'text' tower in this model; it has vision, audio"),
    ],
)
def test_other_inputs_are_refused(tiny, modality, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny({modality: torch.zeros(shape)})


def test_the_package_exports_the_released_names():
    assert imagebind.imagebind_huge is imagebind_model.imagebind_huge
    names = {"vision", "text", "audio", "thermal", "depth", "imu"}
    assert {getattr(ModalityType, name.upper()) for name in names} == names


def test_a_new_model_can_be_trained():
    """Without weights the towers start from noise that gives different rows for different clips."""
    torch.manual_seed(0)
    model = ImageBindModel(TINY)
    rows = model({"audio": recorded_input("any", (2, 1, 128, 204))})["audio"]
    rows.square().sum(-1).mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".audio." in name)
    assert not torch.allclose(rows[0], rows[1], atol=1e-4)
