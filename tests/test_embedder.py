"""Inputs to rows: shared clips, batches that do not fit, precisions, and worker processes."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from conftest import RATE, picture, tone, write_audio, write_video

from batch_inference import Options, batch_inference_av_consistency
from imagebind import data
from imagebind.data.features import AUDIO, VIDEO
from imagebind.data.sequences import ImageInput
from imagebind.evaluation.embed.model import choose_precision
from imagebind.evaluation.embed.readers import start_workers
from imagebind.models import embedder as embedder_module
from imagebind.models.embedder import Embedder
from imagebind.models.imagebind_model import load_model, save_model
from imagebind.reading.loader import Reading, load_files
from imagebind.sources import Source

CPU = torch.device("cpu")
FIRST = torch.tensor([0])


@pytest.fixture
def files(tmp_path):
    """Inputs of videos and sounds whose clips are shared in several ways."""
    rng = np.random.default_rng(0)
    shapes = [(100, (64, 96)), (100, (64, 64)), (20, (64, 96)), (20, (96, 64))]
    videos = [
        write_video(tmp_path / f"{i}.mp4", [picture(k, *shape) for k in range(n)])
        for i, (n, shape) in enumerate(shapes)
    ]
    sounds = [
        write_audio(tmp_path / f"{i}.wav", rng.standard_normal(int(s * RATE)).astype(np.float32) * 0.1 + 0.1)
        for i, s in enumerate((1, 3, 7))
    ]
    return sounds, videos


@torch.inference_mode()
def test_shared_clips_give_the_rows_of_all_clips(files, small_checkpoint):
    sounds, videos = files
    model = load_model(small_checkpoint)
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")
    for modality, read, load, paths in (
        ("audio", data.read_audio, data.load_audio, sounds),
        ("vision", data.read_video, data.load_video, videos),
    ):
        shared = embedder(modality, [read(path) for path in paths])
        every = torch.cat([model({modality: load(path)[None]})[modality] for path in paths])
        cosine = torch.nn.functional.cosine_similarity(shared.double(), every.double())
        assert (1 - cosine).max() < 1e-6
        np.testing.assert_allclose(shared, every, atol=1e-6 * every.norm(dim=1).max())


def test_a_clip_counts_as_often_as_it_occurs(tmp_path, small_checkpoint):
    """Of the five clips of 51 frames three are equal: the mean of the distinct ones is another embedding."""
    sound = write_audio(tmp_path / "x.wav", tone(1))
    video = write_video(tmp_path / "x.mp4", [picture(2 * k) for k in range(51)], fps=25)
    assert sorted(data.read_video(video).counts.values()) == [1] * 6 + [3] * 3
    found = batch_inference_av_consistency(
        [sound], [video], "cpu", output_dir=None, checkpoint=small_checkpoint, num_workers=0
    )
    with torch.inference_mode():
        expected = load_model(small_checkpoint)({"vision": data.load_video(video)[None]})["vision"]
    np.testing.assert_allclose(found["video_embeddings"], expected, atol=1e-6 * expected.norm())


def test_a_batch_that_does_not_fit_is_halved_and_said_once(files, small_checkpoint, caplog):
    _, videos = files
    inputs = [data.read_video(path) for path in videos]
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")
    expected = embedder("vision", inputs)
    embedder.max_inputs = None  # as on a GPU

    def little_memory(module, args):
        if len(args[0]) > 15:  # clips
            raise torch.OutOfMemoryError("no room")

    embedder.tower("vision").register_forward_pre_hook(little_memory)
    np.testing.assert_allclose(embedder("vision", inputs), expected, atol=1e-6)
    embedder("vision", inputs)
    assert [r.getMessage() for r in caplog.records] == [
        "cpu: out of memory with 4 vision inputs, going on with fewer"
    ]


def test_a_batch_is_halved_until_it_fits_and_later_ones_begin_so(small_checkpoint):
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")
    embedder.max_inputs = None  # as on a GPU
    tried = []

    def little_memory(module, args):
        tried.append(len(args[0]))
        if tried[-1] > 5:
            raise torch.OutOfMemoryError("no room")

    embedder.tower("audio").register_forward_pre_hook(little_memory)
    mels = torch.randn(18, 1, 1, 128, 204, generator=torch.Generator().manual_seed(0))
    sounds = [data.AudioInput(clip.expand(3, -1, -1, -1)) for clip in mels]  # of one distinct clip each
    rows = embedder("audio", sounds)
    assert tried == [18, 9, 4, 4, 4, 4, 2]
    np.testing.assert_allclose(rows, torch.cat([embedder("audio", [x]) for x in sounds]), atol=1e-6)
    tried.clear()
    np.testing.assert_allclose(embedder("audio", sounds[10:]), rows[10:], atol=1e-6)
    assert tried == [4, 4]


def test_fewer_videos_at_a_time_are_not_fewer_sounds(files, small_checkpoint):
    sounds, videos = files
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")
    embedder.max_inputs = None  # as on a GPU
    batches = []

    def one_file(module, args):
        if len(args[0]) > 15:  # clips
            raise torch.OutOfMemoryError("no room")

    embedder.tower("vision").register_forward_pre_hook(one_file)
    embedder.tower("audio").register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    embedder("vision", [data.read_video(path) for path in videos])
    embedder("vision", [ImageInput(torch.zeros(224, 224, 3, dtype=torch.uint8))] * 9)  # nor fewer pictures
    assert embedder.max_that_fit == {data.VideoInput: 1}
    embedder("audio", inputs := [data.read_audio(path) for path in sounds])
    assert batches == [sum(len(x.counts) for x in inputs)]


def test_memory_is_freed_when_the_failed_batch_no_longer_holds_it(files, small_checkpoint, monkeypatch):
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")
    embedder.max_inputs = None
    held, seen = [], []

    def little_memory(module, args):
        if len(args[0]) > 15:
            held.append(weakref.ref(args[0]))
            raise torch.OutOfMemoryError("no room")

    embedder.tower("vision").register_forward_pre_hook(little_memory)
    monkeypatch.setattr(embedder_module, "free_unused_memory", lambda _: seen.append(held[-1]()))
    embedder("vision", [data.read_video(path) for path in files[1]])
    assert seen
    assert all(clips is None for clips in seen)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    ],
    ids=["torch", "cublas", "cudnn", "cuda"],
)
def test_one_file_that_does_not_fit_ends_the_run(files, small_checkpoint, error):
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")

    def no_memory(module, args):
        raise error

    embedder.tower("vision").register_forward_pre_hook(no_memory)
    with pytest.raises(MemoryError, match="cpu: one file does not fit into memory"):
        embedder("vision", [data.read_video(path) for path in files[1]])


def test_what_overflows_in_16_bits_is_computed_in_32(pairs, small_checkpoint, caplog):
    """Such weights give the same rows in either precision, but for the inputs' rounding, and cost no file."""
    model = load_model(small_checkpoint)
    with torch.no_grad():
        model.towers["audio"].blocks[0].mlp.fc1.bias[:] = 1e5  # float16 ends at 65,504
    save_model(model, pairs / "large.pth")
    caplog.set_level("INFO")
    full, half = (
        batch_inference_av_consistency(
            str(pairs / "audio"),
            str(pairs / "video"),
            "cpu",
            output_dir=None,
            checkpoint=pairs / "large.pth",
            precision=precision,
            num_workers=0,
        )
        for precision in ("fp32", "fp16")
    )
    assert not half["failures"]
    rows = [[run[f"{m}_embeddings"].double() for m in ("audio", "video")] for run in (half, full)]
    differences = [(1 - torch.cosine_similarity(*of_both)).max() for of_both in zip(*rows, strict=True)]
    assert differences[0] < 1e-7 < differences[1]
    line = "an embedding is not finite in fp16; such ones are computed in fp32"
    assert [r.getMessage() for r in caplog.records].count(line) == 1


def test_a_file_that_overflows_leaves_the_others_of_its_batch_as_they_are(files, small_checkpoint):
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")
    embedder.max_inputs = None  # as on a GPU
    inputs = [data.read_video(path) for path in files[1]]
    expected = embedder("vision", inputs)
    tower = embedder.tower("vision")
    hook = tower.register_forward_hook(lambda module, args, rows: rows.index_fill(0, FIRST, np.nan))
    found = embedder("vision", inputs)
    hook.remove()
    assert found[0].isnan().all()
    assert torch.equal(found[1:], expected[1:])


def test_inputs_in_half_precision_give_the_rows_of_whole_ones(files, small_checkpoint):
    """The model rounds its inputs in any case; what is equal among clips is found before that."""
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp16")
    for modality, feature, paths in (("audio", AUDIO, files[0]), ("vision", VIDEO, files[1])):
        tasks = [(feature.modality, Source(str(path)), (feature,)) for path in paths]
        whole, half = (
            [file.features[feature.name].input for file in load_files(tasks, None, Reading(half=half))]
            for half in (False, True)
        )
        assert [x.counts for x in half] == [x.counts for x in whole]
        assert {type_of_input(x) for x in half} == {torch.float16}
        assert torch.equal(embedder(modality, half), embedder(modality, whole))


def type_of_input(input: data.AudioInput | data.VideoInput) -> torch.dtype:
    (tensor,) = (value for value in vars(input).values() if torch.is_tensor(value))
    return tensor.dtype


def test_other_errors_are_not_taken_for_a_lack_of_memory(files, small_checkpoint):
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")

    def broken(module, args):
        raise RuntimeError("something else")

    embedder.tower("vision").register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="something else"):
        embedder("vision", [data.read_video(path) for path in files[1]])


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 1e-6), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_other_precisions_are_near_and_hold_half_the_weights(files, small_checkpoint, precision, tolerance):
    inputs = [data.read_audio(path) for path in files[0]]
    full = Embedder(load_model(small_checkpoint), CPU, "fp32")
    other = Embedder(load_model(small_checkpoint), CPU, precision)
    rows, expected = other("audio", inputs), full("audio", inputs)
    assert rows.dtype == torch.float32
    assert (1 - torch.nn.functional.cosine_similarity(rows, expected)).max() < tolerance
    sizes = [sum(p.nbytes for p in e.tower("audio").blocks.parameters()) for e in (other, full)]
    share = 1 if precision == "tf32" else 0.5
    assert sizes[1] * share <= sizes[0] < sizes[1] * (share + 0.02)
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}


def test_auto_is_full_precision_on_the_cpu():
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", torch.device("cuda:0")) == "fp16"


def test_workers_give_what_the_main_process_gives(files, small_checkpoint):
    sounds, videos = files
    runs = [
        batch_inference_av_consistency(
            [*sounds, "missing.wav"],
            [*videos, "missing.mp4"],
            device="cpu",
            batch_size=2,
            retrieval_mode=True,
            checkpoint=small_checkpoint,
            num_workers=workers,
        )
        for workers in (0, 2)
    ]
    for key in ("audio_embeddings", "video_embeddings", "similarity_matrix"):
        assert torch.equal(runs[0][key], runs[1][key])
    for key in ("metrics", "audio_names", "video_names", "pairs", "failures"):
        assert runs[0][key] == runs[1][key]
    assert [f["path"] for f in runs[0]["failures"]] == ["missing.wav", "missing.mp4"]


def test_workers_report_warnings_and_time(tmp_path):
    path = write_audio(tmp_path / "click.wav", tone(0.01))
    with start_workers(Options(None, "", num_workers=1, timeout=60, worker_memory_gb=1)) as one:
        for workers in (None, one):
            (file,) = load_files([("audio", Source(str(path)), (AUDIO,))], workers, ahead=1)
            assert file.warnings == (f"{path}: 10.0 ms of sound, padded with silence to 25",)
            assert file.seconds > 0
            assert file.features["audio"].input.mels.shape == (3, 1, 128, 204)


def test_every_file_is_read_once(tmp_path):
    files = [("audio", Source(f"{i}.wav"), (AUDIO,)) for i in range(5)]
    files += [("video", Source(f"{i}.mp4"), (VIDEO,)) for i in range(4)]
    with start_workers(Options(None, "", num_workers=2, timeout=60, worker_memory_gb=1)) as workers:
        loaded = list(load_files(files, workers))
    assert sorted((file.modality, file.source) for file in loaded) == sorted(file[:2] for file in files)
    (reason,) = {feature.reason for file in loaded for feature in file.features.values()}
    assert reason == "No such file or directory"


def test_a_files_row_does_not_depend_on_the_others(files, small_checkpoint):
    """On the CPU: alone, among others and in another order, it is the same to the last bit."""
    embedder = Embedder(load_model(small_checkpoint), CPU, "fp32")
    for modality, inputs in (
        ("audio", [data.read_audio(path) for path in files[0]]),
        ("vision", [data.read_video(path) for path in files[1]]),
    ):
        together = embedder(modality, inputs)
        assert torch.equal(embedder(modality, inputs[::-1]), together.flip(0))
        assert all(
            torch.equal(embedder(modality, [x])[0], row) for x, row in zip(inputs, together, strict=True)
        )
