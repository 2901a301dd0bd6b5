"""How far a run is, how long the rest takes, and what begins before what."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import struct
import sys
import termios
import time

import pytest
import torch
from conftest import open_files, readers, silence

from batch_inference import batch_inference_av_consistency
from imagebind.evaluation.embed import model
from imagebind.evaluation.embed.progress import Progress
from imagebind.evaluation.errors import EvaluationError
from imagebind.models import checkpoints, imagebind_model
from imagebind.models.embedder import Launched


def run(pairs, checkpoint, **options):
    options = {"checkpoint": checkpoint, "output_dir": pairs / "outputs", "num_workers": 1, **options}
    return batch_inference_av_consistency(pairs / "audio", pairs / "video", "cpu", **options)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_rest_takes_as_long_as_the_latest_tenth(clock):
    progress = Progress({"audio": 500, "video": 500})
    for i in range(700):
        clock[0] += 0.01 if i < 500 else 2  # from the cache, and then not
        progress.update("audio" if i % 2 else "video", skipped=i == 3, cached=i < 500)
        if i in (100, 499):
            assert progress.describe() == f"1 skipped, {i + 1} cached"  # which tells nothing of the rest
        if i in (510, 600, 699):
            assert progress.seconds_left() == pytest.approx((999 - i) * 2)
    assert progress.describe() == "10 min left, 1 skipped, 500 cached"
    assert {m: counts["done"] for m, counts in progress.counts.items()} == {"audio": 350, "video": 350}


def test_files_of_a_batch_are_done_at_once(clock):
    progress = Progress({"video": 640})
    for i in range(320):
        clock[0] += 8 if i % 32 == 0 else 1e-4
        progress.update("video", skipped=False, cached=False)
        if i > 64:
            assert progress.seconds_left() == pytest.approx((639 - i) / 4, rel=0.02)


def test_what_there_is_none_of_is_not_shown(clock):
    progress = Progress({"audio": 3})
    for _ in range(2):
        clock[0] += 90
        progress.update("audio", skipped=False, cached=False)
    assert progress.describe() == "1 min 30 s left"


@pytest.mark.parametrize(
    ("n", "counted"),
    [(1000, "500/1000, 0 s left, 10 skipped, 500 cached"), (2_000_000, "20.0k skipped, 1.00M cached")],
)
def test_a_bar_fits_into_60_columns(monkeypatch, n, counted):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = Progress({"audio": n // 2, "video": n // 2}, has_bar=True)
        for counts in (progress.counts["audio"], progress.total_counts):
            counts.update(done=n - 500, skipped=n // 100, cached=n // 2)
        for i in range(500):
            monkeypatch.setattr(time, "monotonic", lambda i=i: 830.0 * i)
            progress.update("audio" if i % 2 else "video", skipped=False, cached=False)
        progress.close()
        terminal.flush()
        drawn = b""
        while select.select([ours], [], [], 0)[0]:
            drawn += os.read(ours, 1 << 16)
    os.close(ours)
    shown = [line for line in drawn.decode().replace("\n", "\r").split("\r") if line]
    assert max(map(len, shown)) <= 60
    assert shown[-1].rstrip().endswith(counted)


def test_files_are_read_before_the_checkpoint_is_hashed(pairs, small_checkpoint, tmp_path, monkeypatch):
    """All but the first; unless a cache is there, whose embeddings are found by that hash."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    silence(pairs / "audio" / "b.wav", 0.5)  # hours, which take a moment to read
    real, found = checkpoints.hash_and_check, []

    def look(path):
        for _ in range(3000):
            if any(str(pairs / "audio" / "b.wav") in open_files(pid) for pid in readers(os.getpid())):
                found.append(path)
                break
            time.sleep(0.01)
        return real(path)

    monkeypatch.setattr(checkpoints, "hash_and_check", look)
    run(pairs, small_checkpoint)
    assert found == [small_checkpoint]


def test_a_run_that_finds_all_embeddings_loads_no_model(pairs, small_checkpoint, monkeypatch):
    first = run(pairs, small_checkpoint)
    monkeypatch.setattr(imagebind_model, "load_model", None)  # nobody may call it
    second = run(pairs, small_checkpoint)
    assert second["metrics"] == first["metrics"]
    assert torch.equal(second["audio_embeddings"], first["audio_embeddings"])


def test_loading_that_takes_long_is_said(pairs, small_checkpoint, monkeypatch, caplog):
    real = imagebind_model.load_model

    def slow(path):
        for _ in range(3000):
            if "loading the model" in caplog.messages:
                break
            time.sleep(0.01)
        return real(path)

    caplog.set_level("INFO")
    monkeypatch.setattr(model, "SLOW_SECONDS", 0.01)
    monkeypatch.setattr(imagebind_model, "load_model", slow)
    run(pairs, small_checkpoint)
    assert caplog.messages.count("loading the model") == 1


def test_a_batch_is_stored_when_the_next_is_launched(pairs, small_checkpoint, monkeypatch):
    """As on a GPU, which computes it meanwhile; a copy of a file in it waits for it."""
    for name in ("b", "c"):
        (pairs / "audio" / f"{name}.wav").write_bytes((pairs / "audio" / "a.wav").read_bytes())
    expected = run(pairs, small_checkpoint, output_dir=None, num_workers=0)
    monkeypatch.setattr(Launched, "is_running", True)
    for batch_size in (1, 3):
        found = run(pairs, small_checkpoint, output_dir=None, num_workers=0, batch_size=batch_size)
        for key in ("audio_embeddings", "video_embeddings", "similarity_matrix"):
            assert torch.equal(found[key], expected[key])


def test_a_checkpoint_that_changes_is_noticed_also_where_it_is_not_loaded(
    pairs, small_checkpoint, monkeypatch
):
    copy = pairs / "copy.pth"
    shutil.copy(small_checkpoint, copy)
    run(pairs, copy)
    real = checkpoints.read_checkpoint

    def change(path):
        os.utime(path, (0, 0))
        return real(path)

    monkeypatch.setattr(checkpoints, "read_checkpoint", change)
    with pytest.raises(EvaluationError, match=r"copy\.pth: changed during the run; run again"):
        run(pairs, copy)
