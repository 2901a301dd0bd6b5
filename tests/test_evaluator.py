"""An evaluator that is kept: one model for many runs, tensors instead of files, inside a training job."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from conftest import RATE, TESTS, picture, tone, write_audio, write_video
from test_job import LAUNCH

from batch_inference import EvaluationError, Evaluator, OptionError, batch_inference_av_consistency
from imagebind.data import MediaError
from imagebind.evaluation import model as model_module
from imagebind.models.imagebind_model import load_model


@pytest.fixture
def evaluator(small_checkpoint):
    return Evaluator(checkpoint=small_checkpoint, device="cpu")


def test_the_model_is_loaded_once(evaluator, pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    expected = batch_inference_av_consistency("audio", "video", "cpu", checkpoint=small_checkpoint)
    loaded, load = [], model_module.load_model
    monkeypatch.setattr(model_module, "load_model", lambda path: loaded.append(path) or load(path))
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


def test_other_tensors_are_refused_by_name(evaluator, lossless):
    _, _, frames, fps, samples, rate = lossless
    for arguments, message in (
        ((frames.float(), fps, samples, rate), r"video\[0\] must be \(frames, height, width, 3\) uint8"),
        ((frames, fps, samples[0], rate), r"audio\[0\] must be \(channels, samples\) float32"),
        (([frames], fps, [samples] * 2, rate), "audio has 2 sounds for 1 videos"),
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


TRAINING = """
import sys, torch, torch.distributed as dist
from batch_inference import Evaluator
from imagebind.models.imagebind_model import load_model

def main():
    folder, checkpoint = sys.argv[1:]
    dist.init_process_group("gloo")
    model = load_model(checkpoint)
    toy = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(toy.parameters(), 0.1)
    evaluator, means = Evaluator(model=model, device="cpu"), []
    for step in range(2):
        toy(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        results = evaluator.evaluate(f"{folder}/audio", f"{folder}/video")  # on each rank
        means.append(results["metrics"]["paired_similarity_mean"])
        if dist.get_rank() == 0:  # and on the first alone
            evaluator.evaluate(f"{folder}/audio", f"{folder}/video", output_dir=f"{folder}/outputs")
        dist.barrier()
    with open(f"{folder}/rank{dist.get_rank()}", "w") as file:
        file.write(repr(means))
    dist.destroy_process_group()

if __name__ == "__main__":
    main()
"""


def test_a_training_job_evaluates_on_each_rank_and_on_one(pairs, small_checkpoint, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    done = subprocess.run(
        [*LAUNCH, "--nproc_per_node=2", str(script), str(pairs), str(small_checkpoint)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    means = [json.loads((pairs / f"rank{rank}").read_text()) for rank in (0, 1)]
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
    assert ("audio: 100%" in err) == progress
    assert bool(err) == progress
