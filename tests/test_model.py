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
from imagebind.data import load_and_transform_text
from imagebind.models import checkpoints, download, imagebind_model
from imagebind.models.imagebind_model import IMAGEBIND_HUGE, ImageBindModel, ModalityType

REFERENCE = TESTS / "reference"
SCALES = {"audio": 20, "text": 1 / 0.07, "depth": 5, "thermal": 10, "imu": 5}
TINY = {
    modality: dataclasses.replace(
        IMAGEBIND_HUGE[modality], width=width, n_blocks=n_blocks, n_heads=n_heads, embedding=32
    )
    for modality, width, n_blocks, n_heads in (
        (ModalityType.VISION, 40, 3, 4),
        (ModalityType.AUDIO, 24, 2, 3),
        (ModalityType.TEXT, 16, 2, 2),
        (ModalityType.DEPTH, 24, 2, 2),
        (ModalityType.THERMAL, 24, 2, 2),
        (ModalityType.IMU, 16, 2, 2),
    )
}


def recorded_input(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(f"input:{key}".encode()))
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def recorded_text(key: str) -> torch.Tensor:
    """Three texts of made-up tokens, (3, 77)."""
    rng = np.random.default_rng(zlib.crc32(f"input:{key}".encode()))
    tokens = torch.zeros(3, 77, dtype=torch.int64)
    for row in tokens:
        length = int(rng.integers(3, 60))
        row[0], row[1 + length] = 49406, 49407
        row[1 : 1 + length] = torch.from_numpy(rng.integers(1, 49000, length))
    return tokens


def released_state_dict(which: str, *unfilled: str) -> dict[str, torch.Tensor]:
    """All tensors of a released checkpoint under their names; of some modalities the shape alone."""
    state_dict = {}
    for name, shape in json.loads((REFERENCE / f"model_{which}_shapes.json").read_text()).items():
        modality = name.split(".")[1]
        if name.endswith("log_logit_scale"):
            state_dict[name] = torch.tensor(math.log(SCALES[modality]))
        elif modality in unfilled or name.endswith(".mask"):
            state_dict[name] = torch.zeros(()).expand(shape)
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


def recorded(modality: str, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    return recorded_text(key) if modality == ModalityType.TEXT else recorded_input(key, shape)


@pytest.mark.parametrize(
    ("key", "modality", "shape"),
    [
        ("vision_video", ModalityType.VISION, (2, 3, 3, 2, 224, 224)),
        ("vision_image", ModalityType.VISION, (2, 3, 224, 224)),
        ("audio", ModalityType.AUDIO, (2, 3, 1, 128, 204)),
        ("text", ModalityType.TEXT, (3, 77)),
        ("depth", ModalityType.DEPTH, (2, 1, 224, 224)),
        ("thermal", ModalityType.THERMAL, (2, 1, 224, 224)),
        ("imu", ModalityType.IMU, (2, 6, 2000)),
    ],
)
@torch.inference_mode()
def test_tiny_model_gives_the_recorded_rows(tiny, key, modality, shape):
    rows = tiny({modality: recorded(modality, key, shape)})[modality]
    assert_close(rows, np.load(REFERENCE / "model_tiny.npz")[key])


@pytest.mark.slow
@torch.inference_mode()
def test_huge_model_gives_the_recorded_rows(tmp_path, monkeypatch):
    """Through the door of the released package: imagebind_huge(pretrained=True)."""
    path = tmp_path / "imagebind_huge.pth"
    torch.save(released_state_dict("huge", "depth", "thermal", "imu"), path)
    monkeypatch.setattr(download, "RELEASED_PATH", path)
    model = imagebind_model.imagebind_huge(pretrained=True)
    assert not model.training
    rows = model(
        {
            ModalityType.VISION: recorded_input("huge_vision_video", (1, 2, 3, 2, 224, 224)),
            ModalityType.AUDIO: recorded_input("huge_audio", (2, 3, 1, 128, 204))[:1],
            ModalityType.TEXT: recorded_text("huge_text")[:1],
        }
    )
    assert set(model.towers) == set(IMAGEBIND_HUGE)
    del model
    path.unlink()  # 4.3 GB that pytest would keep
    expected = np.load(REFERENCE / "model_huge.npz")
    assert_close(rows[ModalityType.VISION], expected["vision_video"])
    assert_close(rows[ModalityType.AUDIO], expected["audio"][:1])
    assert_close(rows[ModalityType.TEXT], expected["text"][:1])


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
        ("vision", (1, 3, 224, 200), "vision input is"),
        ("vision", (1, 3, 8, 8), "vision input is"),
        ("audio", (0, 1, 128, 204), r"audio input is empty: \(0, 1, 128, 204\)"),
        ("vision", (2, 0, 3, 224, 224), r"vision input is empty: \(2, 0, 3, 224, 224\)"),
        ("text", (1, 76), r"text input is \(B, \[S,\] \(77,\)\), not \(1, 76\)"),
        ("smell", (1, 77), "no 'smell' tower in this model; it has vision, audio, text, depth, thermal, imu"),
    ],
)
def test_other_inputs_are_refused(tiny, modality, shape, message):
    with pytest.raises(ValueError, match=message):
        tiny({modality: torch.zeros(shape)})


@torch.inference_mode()
def test_a_text_is_what_stands_before_its_end_mark(tiny):
    text = recorded_text("any")
    row = tiny({"text": text})["text"]
    after = text.clone()
    for one in after:
        one[one.argmax() + 1 :] = 7
    torch.testing.assert_close(tiny({"text": after})["text"], row)
    before = text.clone()
    before[:, 1] = 7
    assert (tiny({"text": before})["text"] - row).abs().amax(1).min() > 1e-3


def test_the_package_exports_the_released_names():
    assert imagebind.imagebind_huge is imagebind_model.imagebind_huge
    assert imagebind.imagebind_model is imagebind_model
    assert imagebind.data.load_and_transform_text is load_and_transform_text
    names = ("vision", "text", "audio", "thermal", "depth", "imu")
    assert vars(ModalityType) == {name.upper(): name for name in names}
    sampler = imagebind.data.ConstantClipsPerVideoSampler(clip_duration=2, clips_per_video=3)
    assert len(imagebind.data.get_clip_timepoints(sampler, 10)) == 3
    assert imagebind.data.transforms.Resize(8) is not None
    with pytest.raises(AttributeError, match="has no attribute 'smell'"):
        imagebind.data.smell  # noqa: B018


def test_the_released_constructor_builds_the_released_towers():
    """With the sizes that the released imagebind_huge gives it; its defaults are others."""
    with torch.device("meta"):
        model = ImageBindModel(
            vision_embed_dim=1280, vision_num_blocks=32, vision_num_heads=16, text_embed_dim=1024,
            text_num_blocks=24, text_num_heads=16, out_embed_dim=1024, audio_num_blocks=12,
        )  # fmt: skip
        assert {m: tower.config for m, tower in model.towers.items()} == IMAGEBIND_HUGE
        small = ImageBindModel(out_embed_dim=32, kernel_size=(2, 16, 16), imu_kernel_size=4)
    assert small.towers["vision"].config.width == 1024
    assert small.towers["vision"].config.n_tokens == 1 + 14 * 14
    assert small.towers["imu"].config.n_tokens == 1 + 500
    with torch.device("meta"):
        assert ImageBindModel().towers["text"].config.width == 768
    with pytest.raises(TypeError, match=r"has no size 'smell_embed_dim'"):
        ImageBindModel(smell_embed_dim=3)
    for wrong in ((2,), (TINY, "", 3)):
        with pytest.raises(TypeError):
            ImageBindModel(*wrong)


def test_a_drop_path_that_is_asked_for_is_said_to_be_missing(caplog):
    with torch.device("meta"):
        ImageBindModel(audio_drop_path=0.1, depth_drop_path=0.0)
    assert caplog.messages == ["audio_drop_path has no effect: there is no drop path here"]


@torch.inference_mode()
def test_one_frame_stands_for_a_clip(tiny):
    clips = recorded_input("any", (2, 3, 3, 2, 224, 224))
    clips[:, :, :, 1] = clips[:, :, :, 0]
    torch.testing.assert_close(tiny({"vision": clips[:, :, :, :1]}), tiny({"vision": clips}))


@torch.inference_mode()
def test_clips_of_three_frames_are_no_pictures():
    torch.manual_seed(0)
    sizes = {"clip_shape": (3, 3, 224, 224), "kernel": (3, 14, 14), "stride": (3, 14, 14)}
    config = dataclasses.replace(TINY["vision"], **sizes)
    model, clips = ImageBindModel({"vision": config}).eval(), torch.randn(2, 3, 3, 224, 224)
    expected = model.towers["vision"](clips)
    torch.testing.assert_close(model({"vision": clips})["vision"], expected)
    torch.testing.assert_close(model({"vision": clips[:, None]})["vision"], expected)


@pytest.mark.parametrize(
    ("modality", "shape", "n"),
    [("vision", (2, 3, 112, 112), 8), ("vision", (1, 3, 2, 320, 320), 22), ("depth", (2, 1, 128, 128), 8)],
)
@torch.inference_mode()
def test_squares_of_other_sizes_have_positions_in_between(tiny, modality, shape, n):
    """As the released model has them: the learned grid, resampled with cubic convolution (Keys 1981)."""
    tower = tiny.towers[modality]
    side = tower.config.grid(tower.config.clip_shape[1:])[-1]
    grid = tower.pos_embed[0, 1:].reshape(side, side, -1).double().numpy()
    along = cubic_weights(side, n)
    expected = np.einsum("ij,kl,jld->ikd", along, along, grid).reshape(n * n, -1)
    found = tower.positions(shape[-1])[0]
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)
    assert torch.equal(found[:1], tower.pos_embed[0, :1])
    rows = tiny({modality: recorded_input("any", shape)})[modality]
    assert rows.shape == (shape[0], 32)


def cubic_weights(n: int, n_new: int) -> np.ndarray:
    """(n_new, n) of cubic convolution with a = -0.75, the border repeated, samples at the middle of cells."""
    weights = np.zeros((n_new, n))
    for i in range(n_new):
        place = (i + 0.5) * n / n_new - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            x = abs(place - j)
            inner = 1.25 * x**3 - 2.25 * x**2 + 1
            outer = -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
            weights[i, min(max(j, 0), n - 1)] += inner if x <= 1 else outer if x < 2 else 0
    return weights


class OneModality(torch.nn.Module):
    def __init__(self, model: ImageBindModel, modality: str):
        super().__init__()
        self.model, self.modality = model, modality

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model({self.modality: x})[self.modality]


# Older releases export by the names of state_dict(), which are the released ones.
CAN_EXPORT = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="torch before 2.9"
)
SHAPES = [
    *(("vision", (4, 2, 3, 2, 224, 224)), ("audio", (4, 1, 128, 204)), ("text", (4, 77))),
    *(("vision", (4, 3, 224, 224)), ("audio", (4, 3, 1, 128, 204)), ("depth", (4, 1, 224, 224))),
    ("imu", (4, 6, 2000)),
]


@pytest.mark.parametrize(
    ("how", "modality", "shape"),
    [
        *(("trace", *shape) for shape in SHAPES),
        *(pytest.param("export", *shape, marks=CAN_EXPORT) for shape in SHAPES[:3]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")  # that tracing is deprecated, and what it took for constants
@torch.no_grad()
def test_a_traced_or_exported_model_takes_other_batches(tiny, how, modality, shape):
    x = recorded_text("any")[[0, 1, 2, 1]] if modality == "text" else recorded_input("any", shape)
    model = OneModality(tiny, modality)
    if how == "trace":
        found = torch.jit.trace(model, x[:1], check_trace=False)
    else:
        batch = ({0: torch.export.Dim("batch", min=1, max=64)},)
        found = torch.export.export(model, (x[:2],), dynamic_shapes=batch).module()
    for n in (1, 3, 4):
        torch.testing.assert_close(found(x[:n]), model(x[:n]), atol=1e-5, rtol=0)


def test_a_new_model_can_be_trained():
    """Without weights the towers start from noise that gives different rows for different clips."""
    torch.manual_seed(0)
    model = ImageBindModel(TINY)
    rows = model({"audio": recorded_input("any", (2, 1, 128, 204))})["audio"]
    rows.square().sum(-1).mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if ".audio." in name)
    assert not torch.allclose(rows[0], rows[1], atol=1e-4)
