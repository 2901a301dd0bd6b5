"""What only a GPU can show: half precision, batches, a lack of memory, the scan, processes on one card."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO, DIRS, TESTS

from batch_inference import Evaluator, batch_inference_av_consistency
from imagebind import data
from imagebind.evaluation.compare import scan as scans
from imagebind.evaluation.compare.similarity import look_up
from imagebind.models.embedder import Embedder
from imagebind.models.imagebind_model import load_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
GPU = torch.device("cuda:0")
CHECKPOINT = DEMO / "imagebind_demo.pth"
MODALITIES = {"audio": data.read_audio, "vision": data.read_video}


@pytest.fixture
def memory():
    """Let torch have no more than some bytes of the card's memory beyond what it holds."""

    def limit(n_bytes: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(GPU).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + n_bytes) / total, GPU)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0, GPU)


def demo_inputs(n: int = 6) -> dict[str, list]:
    files = {"audio": DEMO / "audio", "vision": DEMO / "video"}
    return {m: [MODALITIES[m](path) for path in sorted(files[m].iterdir())[:n]] for m in MODALITIES}


def embed(precision: str, device: torch.device = GPU, **inputs: list) -> dict[str, torch.Tensor]:
    embedder = Embedder(load_model(CHECKPOINT), device, precision)
    return {modality: embedder(modality, given) for modality, given in (inputs or demo_inputs()).items()}


def cosines(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    audio, video = (torch.nn.functional.normalize(rows[m].double()) for m in ("audio", "vision"))
    return audio @ video.T


def test_an_evaluator_in_fp16_loses_no_file_in_a_process_that_trains():
    """Threads of OpenMP and of autograd are there by then."""
    model = load_model(CHECKPOINT).to(GPU).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    paths = [[str(path) for path in sorted((DEMO / m).iterdir())[:6]] for m in ("audio", "video")]
    evaluator = Evaluator(checkpoint=CHECKPOINT, device=GPU, precision="fp16")
    for _ in range(3):
        loss = model({"audio": torch.randn(4, 1, 128, 204, device=GPU)})["audio"].square().mean()
        loss.backward()
        optimizer.step()
        torch.randn(500, 500) @ torch.randn(500, 500)
        assert evaluator.evaluate(*paths)["failures"] == []


def test_fp32_gives_the_cosines_of_the_cpu():
    assert (cosines(embed("fp32")) - cosines(embed("fp32", torch.device("cpu")))).abs().max() < 1e-5


def test_fp16_changes_no_cosine_by_more_than_the_limit():
    difference = cosines(embed("fp16")) - cosines(embed("fp32"))
    assert 0 < difference.abs().max() < 5e-4
    assert difference.mean().abs() < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_batch_gives_the_rows_of_single_files(precision):
    inputs = demo_inputs()
    together = embed(precision, **inputs)
    for modality, given in inputs.items():
        alone = torch.cat([embed(precision, **{modality: [one]})[modality] for one in given])
        cosine = torch.nn.functional.cosine_similarity(alone.double(), together[modality].double())
        assert (1 - cosine).max() < (1e-9 if precision == "fp32" else 1e-4)


def test_a_tower_without_room_is_one_error(memory):
    memory(1 << 20)
    with pytest.raises(MemoryError, match="cuda:0: no room for the vision tower; free some, or name another"):
        embed("fp32", vision=demo_inputs(1)["vision"])


def test_a_batch_without_room_is_halved(memory, caplog):
    inputs, embedder = demo_inputs()["vision"] * 4, Embedder(load_model(CHECKPOINT), GPU, "fp32")
    expected = embedder("vision", inputs)
    torch.cuda.reset_peak_memory_stats()
    embedder("vision", inputs[:6])
    memory(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated() + (8 << 20))
    found = embedder("vision", inputs)
    assert (1 - torch.nn.functional.cosine_similarity(found.double(), expected.double())).max() < 1e-9
    assert any("out of memory with 24 vision inputs, going on with fewer" in line for line in caplog.messages)


def scan(device: torch.device, n: int = 5000) -> scans.Scan:
    rng = np.random.default_rng(0)
    rows, columns = (rng.standard_normal((n, 1024)).astype(np.float32) for _ in range(2))
    pairs = look_up(rows, columns, np.arange(n).repeat(2).reshape(-1, 2))
    return scans.scan(rows, columns, pairs, device=device)


def same(a: scans.Scan, b: scans.Scan) -> bool:
    names = ("row_sum", "column_sum", "n_above", "n_equal", "bins", "levels", "level_keys")
    tops = (np.array_equal(x.best, y.best) for x, y in zip(a.top, b.top, strict=True))
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names) and all(tops)


def test_the_scan_gives_the_counts_of_the_cpu():
    assert same(scan(GPU), scan(torch.device("cpu")))


def test_a_scan_without_room_goes_on_in_smaller_parts_or_on_the_cpu(memory, caplog):
    expected = scan(torch.device("cpu"))
    memory(400 << 20)  # enough for small tiles
    assert same(scan(GPU), expected)
    memory(1 << 20)
    assert same(scan(GPU), expected)
    said = [line for line in caplog.messages if "out of memory" in line]
    assert said[0].endswith("similarities are computed in smaller parts")
    assert said[-1].endswith("similarities are computed on the CPU")


def test_a_second_run_finds_what_the_first_embedded(tmp_path):
    runs = [
        batch_inference_av_consistency(
            DEMO / "audio", DEMO / "video", "cuda:0", output_dir=tmp_path, checkpoint=CHECKPOINT
        )
        for _ in range(2)
    ]
    for key in ("audio_embeddings", "video_embeddings", "similarity_matrix"):
        assert torch.equal(runs[0][key], runs[1][key])
    assert runs[0]["metrics"]["protocol"]["precision"] == "fp16"


def command(folder, *launcher: str) -> list[str]:
    program = [str(TESTS.parent / "batch_inference.py"), "--output_dir", str(folder)]
    inputs = [f"{DEMO}/{x}" if not x.startswith("-") else x for x in DIRS]
    return [sys.executable, *launcher, *program, *inputs, "--checkpoint", str(CHECKPOINT)]


def test_two_runs_share_a_card(tmp_path):
    runs = [subprocess.Popen(command(tmp_path / str(i)), stdout=subprocess.PIPE) for i in range(2)]
    assert [run.communicate()[0] != b"" for run in runs] == [True, True]
    assert [run.returncode for run in runs] == [0, 0]
    first, second = (np.load(tmp_path / str(i) / "similarity_matrix.npy") for i in range(2))
    np.testing.assert_allclose(first, second, atol=5e-4)


def test_more_processes_than_cards_are_refused(tmp_path):
    n = torch.cuda.device_count()
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n + 1}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command(tmp_path, *launcher), capture_output=True, text=True, env=environment)
    assert run.returncode != 0
    assert f"{n + 1} processes on a host with {n} GPUs; use --nproc_per_node {n}" in run.stderr
