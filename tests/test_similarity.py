"""What is counted over a similarity matrix, against the matrix itself."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TESTS
from test_metrics import embeddings_of, scores_of

from imagebind.evaluation.compare import scan as scans
from imagebind.evaluation.compare import similarity
from imagebind.evaluation.compare.scan import scan
from imagebind.evaluation.compare.similarity import cosine_similarity, look_up, unit_rows
from imagebind.evaluation.compare.ticks import from_ticks
from imagebind.evaluation.compare.top import TOP


def plain_cosine(a, b) -> float:
    dot = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(float(x) ** 2 for x in a) * math.fsum(float(y) ** 2 for y in b))


def fields_of(found) -> dict:
    fields = {name: getattr(found, name) for name in ("n_above", "n_equal", "n_at_least", "bins")}
    fields |= {name: getattr(found, name) for name in ("levels", "level_ticks")}
    return fields | {f"top_{side}": top.best for side, top in enumerate(found.top)} | {"sum": found.sum}


@pytest.mark.parametrize("tile", [(4, 3), (1, 50), (7, 11)])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_tiles_and_threads_change_no_count(tile, n_threads, monkeypatch):
    """With equal rows among them, and pairs anywhere: not by a bit."""
    rng = np.random.default_rng(0)
    audio, video = (rng.standard_normal((n, 64)).astype(np.float32)[rng.integers(0, n, n)] for n in (37, 50))
    truth = np.stack([rng.integers(0, n, 40) for n in (37, 50)], axis=1)
    pairs = look_up(audio, video, truth)
    sample = look_up(audio, video, np.stack([rng.integers(0, n, 60) for n in (20, 50)], axis=1))
    expected = scan(audio, video, pairs, sample)
    matrix = np.empty((37, 50), np.float32)
    monkeypatch.setattr(scans, "TILE", tile)
    monkeypatch.setattr(scans, "ROW_BLOCKS_PER_GROUP", 2)
    monkeypatch.setattr(scans, "HELD_CELLS", 5)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = scan(audio, video, pairs, sample, matrix)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for name, values in fields_of(expected).items():
        np.testing.assert_array_equal(fields_of(found)[name], values, err_msg=name)
    assert math.fsum(found.squares) == pytest.approx(math.fsum(expected.squares), rel=1e-12)
    np.testing.assert_array_equal(matrix, cosine_similarity(audio, video))


@pytest.mark.parametrize("grid", [(0, 0), (3000, 10**6)])
def test_single_cells_are_those_of_the_matrix(grid, monkeypatch):
    """Whether they are looked up one by one, or in the product of their lines."""
    rng = np.random.default_rng(0)
    audio, video = (rng.standard_normal((n, 64)).astype(np.float32) for n in (37, 50))
    index = np.stack([rng.integers(0, n, 2000) for n in (37, 50)], axis=1)
    monkeypatch.setattr(similarity, "GRID", grid)
    found, cosines = look_up(audio, video, index), cosine_similarity(audio, video)
    np.testing.assert_array_equal(from_ticks(found.ticks), cosines[tuple(index.T)])
    np.testing.assert_allclose(found.cosines, cosines[tuple(index.T)], rtol=0, atol=2**-24)


@pytest.mark.parametrize("kind", ["random", "coarse", "equal"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 3), (40, 60)])
def test_the_best_matches_are_the_first_of_a_sorted_line(kind, n, m, monkeypatch):
    monkeypatch.setattr(scans, "TILE", (16, 12))
    audio, video = embeddings_of(scores_of(kind, n, m))
    cosines = cosine_similarity(audio, video)
    found = scan(audio, video, look_up(audio, video, np.empty((0, 2), int)))
    for top, lines in zip(found.top, (cosines, cosines.T), strict=True):
        for line, places, scores in zip(lines, top.indices, top.similarities, strict=True):
            expected = np.argsort(-line, kind="stable")[:TOP]
            assert places[places >= 0].tolist() == expected.tolist()
            assert scores[places >= 0].tolist() == line[expected].tolist()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (1100, 2)])
def test_cosines_are_those_of_normalised_rows(n, m):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((n, 64)).astype(np.float32) * rng.uniform(0.1, 20, (n, 1)).astype(np.float32)
    b = rng.standard_normal((m, 64)).astype(np.float32)
    cosines = cosine_similarity(a, b)
    assert cosines.shape == (n, m)
    assert cosines.dtype == np.float32
    for i, j in {(0, 0), (n - 1, m - 1), (n // 2, m // 2)}:
        assert cosines[i, j] == pytest.approx(plain_cosine(a[i], b[j]), abs=1e-7)


def test_sums_of_products_are_exact():
    """To the last bit, so that no order of additions can change one."""
    a, b = np.random.default_rng(0).standard_normal((2, 20, 1024)).astype(np.float32)
    b = a + b / 8  # the nearer a sum is to 1, the more bits it takes
    rows = list(zip(unit_rows(a).tolist(), unit_rows(b).tolist(), strict=True))
    exact = [math.fsum(x * y for x, y in zip(*pair, strict=True)) for pair in rows]
    assert [sum(x * y for x, y in zip(*pair, strict=True)) for pair in rows] == exact
    assert look_up(a, b, np.stack([np.arange(20)] * 2, axis=1)).cosines.tolist() == exact


def test_a_row_of_zeros_is_like_nothing():
    assert cosine_similarity(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)).tolist() == [[0]]


def test_the_cpu_goes_on_where_a_device_runs_out_of_memory(monkeypatch, caplog):
    """In the middle of the scan; torch's "meta" device stands for a GPU."""
    rng = np.random.default_rng(0)
    audio, video = (rng.standard_normal((n, 64)).astype(np.float32) for n in (37, 50))
    pairs = look_up(audio, video, np.stack([np.arange(37)] * 2, axis=1))
    expected, counted = scan(audio, video, pairs), []
    multiply = torch.mm

    def little_memory(a, b, out):
        if a.device.type == "meta":
            raise torch.OutOfMemoryError("no room")
        return multiply(a, b, out=out)

    monkeypatch.setattr(torch, "mm", little_memory)
    matrix = np.empty((37, 50), np.float32)
    found = scan(audio, video, pairs, None, matrix, counted.append, "meta")
    for name, values in fields_of(expected).items():
        np.testing.assert_array_equal(fields_of(found)[name], values, err_msg=name)
    np.testing.assert_array_equal(matrix, cosine_similarity(audio, video))
    assert counted[-1] == 37 * 50
    assert [r.getMessage() for r in caplog.records] == [
        "meta: out of memory; similarities are computed in smaller parts",
        "meta: out of memory; similarities are computed on the CPU",
    ]


def test_a_cpu_without_memory_ends_the_scan():
    code = """
import resource
import numpy as np
from pathlib import Path
from imagebind.evaluation.compare.scan import scan
from imagebind.evaluation.compare.similarity import look_up

rows = np.random.default_rng(0).standard_normal((5_000, 8), dtype=np.float32)
pairs = look_up(rows, rows, np.stack([np.arange(len(rows))] * 2, axis=1))
scan(rows[:2], rows[:2], look_up(rows, rows, np.zeros((1, 2), int)))  # threads have their stacks
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 20_000_000, -1))
try:
    scan(rows, rows, pairs)
except MemoryError:  # numpy's, or from torch
    print("out of memory")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout == "out of memory\n"


def test_memory_is_bounded_by_the_tile_and_not_by_the_matrix():
    """20,000 x 20,000 cosines are 1.6 GB; in a process of its own, whose peak is its alone."""
    code = """
import numpy as np
from pathlib import Path
from imagebind.evaluation.compare.scan import scan
from imagebind.evaluation.compare.similarity import look_up

def memory(what):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if what in line)
    return int(line.split()[1]) / 1e6

rows = np.random.default_rng(0).standard_normal((20_000, 8), dtype=np.float32)
truth = np.stack([np.arange(len(rows))] * 2, axis=1)
before = memory("VmRSS")
found = scan(rows, rows, look_up(rows, rows, truth))
assert found.n_above.sum() == 0  # each is the most like itself
print(memory("VmHWM") - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 0.6


def test_the_device_that_is_faster_in_float64_scans(monkeypatch, caplog):
    """Torch's "meta" device stands for a GPU."""
    caplog.set_level("INFO")
    gpu, cpu = torch.device("meta"), torch.device("cpu")
    for seconds, expected in ((0.1, gpu), (0.9, cpu)):
        monkeypatch.setattr(scans, "trial_seconds", {gpu: seconds, cpu: 0.5}.get)
        assert scans.faster_device([gpu, cpu]) == expected
    assert caplog.messages == ["meta: slower in float64 than the CPU, which computes the similarities"]
