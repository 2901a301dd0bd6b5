"""An evaluator that is kept: one model for many runs, tensors instead of files, inside a training job."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import FORKSERVER, RATE, picture, tone, write_audio, write_video
from test_job import address

from batch_inference import EvaluationError, Evaluator, OptionError, batch_inference_av_consistency
from imagebind import data
from imagebind.data import MediaError
from imagebind.evaluation.embed import model as model_module
from imagebind.models.imagebind_model import ImageBindModel, load_model


@pytest.fixture
def evaluator(small_checkpoint):
    return Evaluator(checkpoint=small_checkpoint, device="cpu")


def test_the_model_is_loaded_once_when_the_evaluator_is_made(pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    expected = batch_inference_av_consistency("audio", "video", "cpu", checkpoint=small_checkpoint)
    loaded, load = [], model_module.load_model
    monkeypatch.setattr(model_module, "load_model", lambda path: loaded.append(path) or load(path))
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu")
    assert loaded == [small_checkpoint]
    for kwargs in ({}, {"retrieval_mode": True}, {"output_dir": "outputs", "num_workers": 0}):
        results = evaluator.evaluate("audio", "video", **kwargs)
        assert torch.equal(results["audio_embeddings"], expected["audio_embeddings"])
    assert loaded == [small_checkpoint]


def test_a_given_model_is_taken_as_it_is_at_each_call(pairs, small_checkpoint, evaluator, monkeypatch):
    monkeypatch.chdir(pairs)
    model = load_model(small_checkpoint)
    given = Evaluator(model=model, device=torch.device("cpu"))
    first = given.evaluate("audio", "video", output_dir="outputs")
    expected = evaluator.evaluate("audio", "video")
    assert torch.equal(first["audio_embeddings"], expected["audio_embeddings"])
    assert first["metrics"]["protocol"]["checkpoint"]["file"] == "given model"
    with torch.no_grad():
        model.towers["audio"].head.weight *= -1
    second = given.evaluate("audio", "video", output_dir="outputs")  # whose cache is that of other weights
    torch.testing.assert_close(second["audio_embeddings"], -first["audio_embeddings"])
    model.train()
    given.evaluate("audio", "video")
    assert model.training


@pytest.fixture
def lossless(tmp_path):
    """A video and a sound, without loss; frames, rate, samples and sample rate that they hold."""
    images = [picture(i, 70, 90) for i in range(37)]
    video = write_video(tmp_path / "x.mkv", images, codec="ffv1", fps=12, pix_fmt="bgr0")
    samples = np.concatenate([tone(1.5), tone(1.2, 700)])
    sound = write_audio(tmp_path / "x.wav", samples, rate=RATE)
    with av.open(str(video)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return video, sound, torch.from_numpy(frames), 12.0, torch.from_numpy(samples)[None].float(), RATE


def test_tensors_score_as_the_files_that_hold_them(evaluator, lossless):
    video, sound, *tensors = lossless
    results = evaluator.evaluate([sound], [video])
    score = evaluator.score(*tensors)
    assert torch.equal(score.video_embedding, results["video_embeddings"][0])
    assert torch.equal(score.audio_embedding, results["audio_embeddings"][0])
    assert score.similarity == results["similarity_matrix"].item()
    frames, fps, samples, rate = tensors
    before = samples.clone()
    batch = evaluator.score([frames, frames[:20]], fps, [samples, samples[:, :9000]], rate)
    assert torch.equal(samples, before)
    assert batch.similarity.shape == (2,)
    assert torch.equal(batch.audio_embedding[0], score.audio_embedding)
    assert batch.similarity[0] == score.similarity != batch.similarity[1]


def test_tensors_of_other_layouts_score_alike(evaluator, lossless):
    """Also in a module that has set other things for itself."""
    _, _, frames, fps, samples, rate = lossless
    expected = evaluator.score(frames, fps, samples, rate)
    as_floats = frames.float() / 255
    for video in (frames.permute(0, 3, 1, 2), as_floats, as_floats.permute(0, 3, 1, 2).contiguous()):
        found = evaluator.score(video, fps, samples, rate)
        assert found.similarity == expected.similarity
        assert torch.equal(found.video_embedding, expected.video_embedding)
    both = evaluator.score(torch.stack([frames] * 2), fps, torch.stack([samples] * 2), rate)
    assert both.similarity.tolist() == [expected.similarity] * 2
    assert evaluator.score(frames, fps, samples.double(), rate).similarity == expected.similarity


def test_texts_are_scored_and_each_modality_alone_is_embedded(evaluator, lossless):
    video, sound, *tensors = lossless
    manifest = [{"video": str(video), "audio": str(sound), "caption": "a note"}]
    (pair,) = evaluator.evaluate(manifest=manifest)["pair_scores"]
    score = evaluator.score(*tensors, text="a note")
    assert score.text_audio == pair["text_audio_similarity"]
    assert score.text_video == pair["text_video_similarity"]
    assert score.reward_all is None
    frames, fps, samples, rate = tensors
    rows = evaluator.embed(frames, fps, samples, rate, "a note")
    assert torch.equal(rows["video"][0], score.video_embedding)
    assert torch.equal(rows["audio"][0], score.audio_embedding)
    assert torch.equal(evaluator.embed(text=["a note", "b"])["text"][0], rows["text"][0])
    assert set(evaluator.embed(audio=[samples], sample_rate=rate)) == {"audio"}
    with pytest.raises(OptionError, match="text has 2 of them for 1 videos"):
        evaluator.score(*tensors, text=["a", "b"])


@pytest.mark.parametrize("protocol", ["imagebind", "reward"])
def test_gradients_flow_through_inputs_and_model(evaluator, lossless, protocol):
    """Against differences of the score along the gradient; and pixels that are trained score better."""
    _, _, frames, fps, samples, rate = lossless
    generator = torch.Generator().manual_seed(0)
    video = (frames.float() / 255).clamp(0.1, 0.9)
    audio = samples * 0.3 + 0.1 * torch.randn(samples.shape, generator=generator)  # no band is empty
    options = {"protocol": protocol, "gradients": True}

    def similarity(video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return evaluator.score(video, fps, audio, rate, **options).similarity

    pixels, sound = video.clone().requires_grad_(), audio.clone().requires_grad_()
    score = similarity(pixels, sound)
    plain = evaluator.score(video, fps, audio, rate, protocol=protocol)
    assert score.item() == pytest.approx(plain.similarity, abs=1e-6)
    of_video, of_audio = torch.autograd.grad(score, (pixels, sound))
    for gradient, step in ((of_video, 2e-3), (of_audio, 2e-4)):  # logarithms bend sooner
        direction = gradient / gradient.abs().max()
        moved = [step * direction if gradient is of else 0 for of in (of_video, of_audio)]
        ends = [similarity(video + sign * moved[0], audio + sign * moved[1]) for sign in (1, -1)]
        found = ((ends[0] - ends[1]) / (2 * step)).item()
        assert found == pytest.approx((gradient * direction).sum().item(), rel=0.05)
    trained = video.clone().requires_grad_()
    for _ in range(5):
        (gradient,) = torch.autograd.grad(similarity(trained, audio), trained)
        trained = (trained + 0.02 * gradient.sign()).clamp(0, 1).detach().requires_grad_()
    after = evaluator.score(trained.detach(), fps, audio, rate, protocol=protocol).similarity
    assert after > plain.similarity + 0.001


def test_tensors_have_the_reward_of_files(evaluator, lossless):
    video, _, frames, fps, samples, rate = lossless
    stereo = torch.cat([samples, samples.flip(1)])
    sound = write_audio(video.with_suffix(".stereo.wav"), stereo.numpy(), rate=rate)
    manifest = [{"video": str(video), "audio": str(sound), "caption": "a note"}]
    (pair,) = evaluator.evaluate(manifest=manifest, protocols=["reward"])["pair_scores"]
    score = evaluator.score(frames, fps, stereo, rate, "a note", protocol="reward")
    assert score.similarity == pair["similarity"]
    found = (score.text_audio, score.text_video, score.reward_all)
    for value, name in zip(found, ("text_audio", "text_video", "all"), strict=True):
        assert value == pytest.approx(pair[f"reward_{name}"], abs=1e-7)
    with pytest.raises(OptionError, match="protocol must be imagebind or reward for tensors, not 'mmaudio'"):
        evaluator.score(frames, fps, samples, rate, protocol="mmaudio")


def test_other_tensors_are_refused_by_name(evaluator, lossless):
    _, _, frames, fps, samples, rate = lossless
    for arguments, message in (
        (
            (frames.float(), fps, samples, rate),
            r"video\[0\] has floats from .* to 255; they must be from 0 to 1",
        ),
        (
            (frames.int(), fps, samples, rate),
            r"video\[0\] is int32 of the shape \(37, 70, 90, 3\); it must be",
        ),
        (
            (frames[..., 0], fps, samples, rate),
            r"is uint8 of the shape \(37, 70, 90\); it must be \(frames, height",
        ),
        ((frames[:, :3], fps, samples, rate), "of which both 1 and 3 could be the axis of colours"),
        (
            (frames, fps, samples[0], rate),
            r"audio\[0\] is float32 of the shape \(.*,\); it must be \(channels, samples",
        ),
        ((["a.mp4"], fps, samples, rate), "video must be a tensor; `evaluate` takes paths"),
        (([frames], fps, [samples] * 2, rate), "audio has 2 of them for 1 videos"),
    ):
        with pytest.raises(OptionError, match=message):
            evaluator.score(*arguments)
    for arguments, message in (
        ((frames[:0], fps, samples, rate), r"video\[0\]: no video frames"),
        ((frames, fps, samples * float("nan"), rate), r"audio\[0\]: NaN or infinite samples"),
    ):
        with pytest.raises(MediaError, match=message):
            evaluator.score(*arguments)


def test_wrong_inputs_say_what_is_wrong(evaluator, tmp_path):
    with pytest.raises(OptionError, match="video_paths must be given"):
        evaluator.evaluate(None, None)
    with pytest.raises(EvaluationError, match="no audio files given"):
        evaluator.evaluate([], [tmp_path / "x.mp4"])
    with pytest.raises(EvaluationError, match="nowhere: no such file or directory"):
        evaluator.evaluate(str(tmp_path / "nowhere"), [tmp_path / "x.mp4"])
    with pytest.raises(OptionError, match="device is that of the evaluator"):
        evaluator.evaluate("a", "b", device="cpu")
    with pytest.raises(OptionError, match="checkpoint is for an evaluator without"):
        Evaluator(checkpoint="x", model=torch.nn.Linear(1, 1))
    with pytest.raises(OptionError, match="device must be a device"):
        Evaluator(device="gpu")


def train(folder: str, checkpoint: str, environment: dict[str, str]) -> None:
    """Be a process of a training job that evaluates as it goes."""
    os.environ.update(environment)
    os.chdir(folder)
    dist.init_process_group("gloo")
    model = load_model(checkpoint)
    toy = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(toy.parameters(), 0.1)
    evaluator, means = Evaluator(model=model, device="cpu"), []
    for _ in range(2):
        toy(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        results = evaluator.evaluate("audio", "video", num_workers=0)  # on each rank
        means.append(results["metrics"]["paired_similarity_mean"])
        if dist.get_rank() == 0:  # and on the first alone
            evaluator.evaluate("audio", "video", output_dir="outputs")
        dist.barrier()
    Path(f"rank{dist.get_rank()}").write_text(repr(means))
    dist.destroy_process_group()


def test_a_training_job_evaluates_on_each_rank_and_on_one(pairs, small_checkpoint):
    environment = address() | {"WORLD_SIZE": "2"}
    ranks = [
        FORKSERVER.Process(
            target=train,
            args=(str(pairs), str(small_checkpoint), environment | {"RANK": str(i), "LOCAL_RANK": str(i)}),
        )
        for i in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    means = [json.loads((pairs / f"rank{i}").read_text()) for i in (0, 1)]
    assert len(means[0]) == 2
    assert means[0] == means[1]
    assert (pairs / "outputs" / "metrics.json").exists()


def test_pair_scores_are_a_sequence(evaluator, pairs, monkeypatch):
    monkeypatch.chdir(pairs)
    scores = evaluator.evaluate("audio", "video")["pair_scores"]
    assert [row["name"] for row in scores] == list("abcd")
    assert scores[-1] == scores[3]
    assert scores[1:3] == [scores[1], scores[2]]
    assert {tuple(row) for row in scores} == {("name", "audio", "video", "status", *scores.written_columns)}
    assert scores[0]["suspect"] is None  # too few pairs to tell
    with pytest.raises(IndexError):
        scores[4]


@pytest.mark.parametrize("progress", [False, True])
def test_bars_are_drawn_on_request(evaluator, pairs, progress, monkeypatch, capsys):
    monkeypatch.chdir(pairs)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    evaluator.evaluate("audio", "video", progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("100%|" in err) == progress
    assert bool(err) == progress


def test_a_rate_is_a_number_whatever_its_type(evaluator):
    """Products of another type round differently, and would choose other frames of these."""
    samples = torch.from_numpy(tone(4))[None]
    for rate, n_frames in ((23, 63), (25, 60)):
        frames = torch.stack([torch.from_numpy(picture(i, 70, 90)) for i in range(n_frames)])
        rates = [float(rate), rate, Fraction(rate), np.float64(rate), torch.tensor(float(rate))]
        scores = [evaluator.score(frames, fps, samples, np.int64(RATE)) for fps in rates]
        assert all(torch.equal(score.video_embedding, scores[0].video_embedding) for score in scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, "fps must be numbers above 0, not 0"),
        ({"fps": float("nan")}, "fps must be numbers above 0, not nan"),
        ({"fps": None}, "fps must be numbers above 0, not None"),
        ({"fps": [25, 25]}, "fps has 2 rates for 1"),
        ({"sample_rate": 16000.5}, "sample_rate must be whole numbers above 0, not 16000.5"),
        ({"sample_rate": "16000"}, "sample_rate must be whole numbers above 0, not '16000'"),
        ({"video": None}, "video must be a torch tensor, or a list of them, not a NoneType"),
        (
            {"video": np.zeros((4, 8, 8, 3), np.uint8)},
            "not a ndarray; torch.from_numpy makes one of an array",
        ),
        (
            {"audio": torch.zeros(16000, 2)},
            r"audio\[0\] has 16000 channels; it must be \(channels, samples\)",
        ),
    ],
)
def test_wrong_tensors_and_rates_are_named(evaluator, change, message):
    given = {
        "video": torch.zeros(4, 64, 64, 3, dtype=torch.uint8),
        "audio": torch.from_numpy(tone(1))[None],
        "fps": 25,
        "sample_rate": RATE,
    }
    with pytest.raises(OptionError, match=message):
        evaluator.score(**given | change)


def test_samples_of_another_scale_are_warned_of(evaluator, caplog):
    frames, samples = torch.zeros(4, 64, 64, 3, dtype=torch.uint8), torch.from_numpy(tone(1))[None]
    evaluator.score(frames, 25, samples * 32768, RATE)
    assert "audio[0]: samples up to 1.64e+04; they are expected from -1 to 1" in caplog.messages


def autocast(dtype):
    return torch.autocast("cpu", dtype=dtype)


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("setting", [autocast, default_dtype])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_training_script_has_set_changes_no_number(evaluator, pairs, lossless, setting, dtype):
    folders = pairs / "audio", pairs / "video"
    expected, score = evaluator.evaluate(*folders), evaluator.score(*lossless[2:])
    fresh = Evaluator(checkpoint=evaluator.options["checkpoint"], device="cpu")
    with setting(dtype):
        found, scored = fresh.evaluate(*folders), fresh.score(*lossless[2:])
    for modality in ("audio", "video"):
        assert torch.equal(found[f"{modality}_embeddings"], expected[f"{modality}_embeddings"])
    assert scored.similarity == score.similarity


def test_a_model_that_is_more_than_its_towers_is_refused(small_checkpoint, pairs):
    class Adapted(ImageBindModel):
        def forward(self, inputs):
            return super().forward(inputs)

    model = load_model(small_checkpoint)
    given = Evaluator(model=model)
    model.register_forward_hook(lambda *args: None)
    with pytest.raises(OptionError, match=r"^model has hooks or a forward of its own"):
        given.evaluate(pairs / "audio", pairs / "video")
    adapted = load_model(small_checkpoint)
    adapted.__class__ = Adapted
    for wrong in (adapted, torch.nn.DataParallel(load_model(small_checkpoint)), small_checkpoint):
        with pytest.raises(OptionError, match=r"^model (has hooks|must be an ImageBindModel)"):
            Evaluator(model=wrong)


def test_a_model_in_half_precision_is_computed_in_full(small_checkpoint, pairs, evaluator):
    folders = pairs / "audio", pairs / "video"
    half = Evaluator(model=load_model(small_checkpoint).half(), precision="fp32").evaluate(*folders)
    whole = evaluator.evaluate(*folders)
    assert half["similarity_matrix"].numpy() == pytest.approx(whole["similarity_matrix"].numpy(), abs=0.01)


def test_evaluations_in_threads_wait_for_each_other(evaluator, pairs):
    folders = pairs / "audio", pairs / "video"
    expected = evaluator.evaluate(*folders)["audio_embeddings"]
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(evaluator.evaluate, *folders) for _ in range(6)]
        assert all(torch.equal(future.result()["audio_embeddings"], expected) for future in found)


def test_half_precision_reads_every_file_each_time(small_checkpoint, pairs):
    """Also where this process has threads of OpenMP, which do not outlive a fork."""
    torch.randn(600, 600) @ torch.randn(600, 600)
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu", precision="fp16")
    for _ in range(3):
        results = evaluator.evaluate(pairs / "audio", pairs / "video", timeout=30)
        assert results["failures"] == []
        assert len(results["pairs"]) == 4


def test_where_a_caller_makes_tensors_does_not_count(pairs, small_checkpoint, lossless):
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu")
    paths = str(pairs / "audio" / "a.wav"), str(pairs / "video" / "a.mp4")
    expected = evaluator.evaluate(*paths), evaluator.score(*lossless[2:])
    torch.set_default_device("meta")
    try:
        found = Evaluator(checkpoint=small_checkpoint, device="cpu").evaluate(*paths, num_workers=0)
        score = evaluator.score(*lossless[2:])
        sound = data.load_and_transform_audio_data(paths[:1], "cpu")
        clips = data.load_and_transform_video_data(paths[1:], "cpu")
        tokens = data.load_and_transform_text(["a dog"], "cpu")
    finally:
        torch.set_default_device(None)
    assert torch.equal(found["similarity_matrix"], expected[0]["similarity_matrix"])
    assert score.similarity == expected[1].similarity
    assert {x.device.type for x in (sound, clips, tokens)} == {"cpu"}


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch before 2.9")
def test_precisions_by_their_newer_names_stay_the_callers(evaluator, lossless):
    expected, backends = evaluator.score(*lossless[2:]).similarity, torch.backends
    owners = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
    before = [owner.fp32_precision for owner in owners]
    try:
        for owner, chosen in zip(owners, ("tf32", "ieee", "bf16", "bf16"), strict=True):
            owner.fp32_precision = chosen
        assert evaluator.score(*lossless[2:]).similarity == expected
        assert [owner.fp32_precision for owner in owners] == ["tf32", "ieee", "bf16", "bf16"]
    finally:
        for owner, value in zip(owners, before, strict=True):
            owner.fp32_precision = value


def test_threads_that_score_leave_no_settings_behind(evaluator, lossless):
    _, _, *tensors = lossless
    expected = evaluator.score(*tensors).similarity
    matmul = torch.backends.cuda.matmul

    def settings() -> list:
        return [
            torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision(),
            matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction,
            torch.backends.cudnn.allow_tf32,
        ]  # fmt: skip

    torch.set_float32_matmul_precision("medium")
    try:
        before = settings()
        with ThreadPoolExecutor(4) as pool:
            found = [
                future.result() for future in [pool.submit(evaluator.score, *tensors) for _ in range(20)]
            ]
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert {score.similarity for score in found} == {expected}
