"""The embedding cache: what is computed again and what is not, and caches that are damaged."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FORKSERVER, Program, tone, write_audio
from fuzz import fuzz_cache

from batch_inference import batch_inference_av_consistency, main
from imagebind import data
from imagebind.evaluation.embed.batches import Batches
from imagebind.evaluation.embed.model import Model
from imagebind.evaluation.embed.progress import Timing
from imagebind.models import embedder
from imagebind.models.imagebind_model import load_model, save_model
from imagebind.reading import cache as cache_module
from imagebind.reading.cache import EmbeddingCache
from imagebind.reading.loader import LoadedFeature, LoadedFile
from imagebind.sources import Source

ROW = np.arange(1024, dtype=np.float32)


@pytest.fixture
def evaluate(pairs, small_checkpoint, monkeypatch):
    """Evaluate `pairs` into outputs/; give the results and how many files the model embedded."""
    monkeypatch.chdir(pairs)
    embedded = []
    real = embedder.Embedder.launch

    def counted(self, modality, inputs):
        embedded.extend(inputs)
        return real(self, modality, inputs)

    monkeypatch.setattr(embedder.Embedder, "launch", counted)

    def evaluate(**options):
        embedded.clear()
        options = {"checkpoint": small_checkpoint, "output_dir": "outputs", "num_workers": 2, **options}
        results = batch_inference_av_consistency("audio", "video", device="cpu", **options)
        return results, len(embedded)

    return evaluate


def same_rows(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in ("audio_embeddings", "video_embeddings"))


def test_a_second_run_embeds_nothing(evaluate):
    first, n_first = evaluate()
    second, n_second = evaluate()
    assert (n_first, n_second) == (8, 0)
    assert same_rows(first, second)
    assert first["metrics"] == second["metrics"]


def test_weights_are_not_read_where_all_is_cached(evaluate, monkeypatch):
    evaluate()
    monkeypatch.setattr(embedder.Embedder, "tower", None)  # nobody may use one
    assert evaluate()[1] == 0


def test_only_new_content_is_embedded(evaluate, pairs):
    evaluate()
    write_audio(pairs / "audio" / "b.wav", tone(1, 999))
    os.rename(pairs / "audio" / "a.wav", pairs / "audio" / "x.wav")  # known under another name
    os.rename(pairs / "video" / "a.mp4", pairs / "video" / "x.mp4")
    results, n = evaluate()
    assert n == 1
    fresh, _ = evaluate(no_cache=True, output_dir=None)
    np.testing.assert_allclose(results["audio_embeddings"], fresh["audio_embeddings"], atol=1e-5)


def test_identical_files_are_embedded_once(evaluate, pairs):
    for x in "bcd":
        shutil.copy(pairs / "audio" / "a.wav", pairs / "audio" / f"{x}.wav")
    results, n = evaluate(batch_size=2)
    assert n == 1 + 4
    assert (results["audio_embeddings"] == results["audio_embeddings"][0]).all()


def test_batches_that_are_not_full_are_kept(evaluate):
    """Of four files each, in batches of three, the fourth too."""
    assert evaluate(batch_size=3, num_workers=0)[1] == 8
    assert evaluate(batch_size=3, num_workers=0)[1] == 0


def test_copies_wait_for_the_model_without_their_inputs(small_checkpoint):
    """Thousands of equal files fill no batch, and must not fill the memory."""
    model, embedded, inputs = Model(small_checkpoint, "cpu", "fp32"), [], []
    model.begin(["audio"])
    batches = Batches(model, 2, Timing(), lambda *batch: embedded.append(batch))
    for i in range(3):
        sound = data.AudioInput(torch.zeros(3, 1, 128, 204))
        inputs.append(weakref.ref(sound))
        batches.add("audio", LoadedFile("audio", Source(f"{i}.wav"), {"audio": LoadedFeature(sound)}, "hash"))
        del sound
    assert [input() is None for input in inputs] == [False, True, True]
    batches.flush()
    ((files, rows),) = embedded
    assert rows.shape[0] == 1
    assert files["hash"][0].features.keys() == {"audio"}
    assert [file.source.path for file in files["hash"]] == ["0.wav", "1.wav", "2.wav"]


class SlowDevice:
    """A model on a device that goes on computing after a batch is launched, as a GPU does."""

    def open(self) -> SlowDevice:
        return self

    def check_unchanged(self) -> None:
        """It stays."""

    def launch(self, modality: str, inputs: list) -> SlowDevice:
        self.is_running, self.n = True, len(inputs)
        assert inputs
        return self

    def result(self) -> torch.Tensor:
        return torch.zeros(self.n, 2)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_copy_of_what_a_device_computes_waits_for_that(size):
    """Also where it is the last file, so that no other input waits."""
    embedded = []
    batches = Batches(SlowDevice(), size, Timing(), lambda *batch: embedded.append(batch))
    for i, content in enumerate(("a", "b", "a", "b")):
        loaded = LoadedFeature(data.AudioInput(torch.zeros(3, 1, 128, 204)))
        batches.add("audio", LoadedFile("audio", Source(f"{i}.wav"), {"audio": loaded}, content))
    batches.flush()
    sources = [file.source.path for files, _ in embedded for equal in files.values() for file in equal]
    assert sorted(sources) == ["0.wav", "1.wav", "2.wav", "3.wav"]


def test_another_model_or_precision_has_rows_of_its_own(evaluate, small_checkpoint, tmp_path):
    first, _ = evaluate()
    model = load_model(small_checkpoint)
    with torch.no_grad():
        model.towers["audio"].head.weight *= -1
    save_model(model, tmp_path / "other.pth")
    other, n = evaluate(checkpoint=tmp_path / "other.pth")
    assert n == 8
    assert not same_rows(first, other)
    assert evaluate(precision="bf16")[1] == 8
    assert evaluate()[1] == 0


def test_a_cache_is_shared_with_other_output_directories_on_request(evaluate, pairs):
    evaluate(output_dir="one", cache="shared.sqlite")
    assert "embeddings.sqlite" not in os.listdir(pairs / "one")
    assert evaluate(output_dir="two", cache="shared.sqlite")[1] == 0
    assert evaluate(output_dir=None, cache="shared.sqlite")[1] == 0


def test_no_cache_keeps_and_finds_nothing(evaluate, pairs):
    evaluate()
    assert evaluate(no_cache=True)[1] == 8
    evaluate(no_cache=True, output_dir="bare")
    assert "embeddings.sqlite" not in os.listdir(pairs / "bare")


def test_rows_that_are_not_finite_are_not_kept(tmp_path, pairs, small_checkpoint):
    model = load_model(small_checkpoint)
    with torch.no_grad():
        model.towers["audio"].pos_embed[:] = 3e38  # finite, and what is computed with it is not
    save_model(model, tmp_path / "nan.pth")
    argv = ["--audio_dir", f"{pairs}/audio", "--video_dir", f"{pairs}/video", "--device", "cpu"]
    assert main([*argv, "--checkpoint", f"{tmp_path}/nan.pth", "--output_dir", f"{pairs}/out"]) == 1
    with sqlite3.connect(pairs / "out" / "embeddings.sqlite") as connection:
        assert connection.execute("SELECT side, count(*) FROM rows GROUP BY side").fetchall() == [
            ("video", 4),
            ("video/flags", 4),
            ("video/thumbnail", 4),
        ]


# Caches that are not what they should be


@pytest.fixture
def cache(tmp_path):
    cache = EmbeddingCache(tmp_path / "cache.sqlite", "weights", "fp32")
    cache.put("audio", [("content", ROW)])
    return cache


def reopened(cache) -> EmbeddingCache:
    cache.close()
    return EmbeddingCache(cache.path, "weights", "fp32")


def test_rows_are_found_again(cache):
    again = reopened(cache)
    np.testing.assert_array_equal(again.get("content", "audio"), ROW)
    assert again.get("content", "video") is None
    assert again.get("other", "audio") is None
    assert EmbeddingCache(cache.path, "other", "fp32").get("content", "audio") is None
    assert EmbeddingCache(cache.path, "weights", "bf16").get("content", "audio") is None


def test_rows_of_another_recipe_are_not_found_and_stay(cache, monkeypatch):
    """A later version that computes other inputs shares the file with this one."""
    with monkeypatch.context() as later:
        later.setattr(cache_module, "RECIPE", cache_module.RECIPE + 1)
        again = reopened(cache)
        assert again.get("content", "audio") is None
        again.put("audio", [("content", ROW + 1)])
        np.testing.assert_array_equal(again.get("content", "audio"), ROW + 1)
    np.testing.assert_array_equal(reopened(again).get("content", "audio"), ROW)


def test_a_sequence_is_found_as_it_was_kept(cache):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    cache.put_sequence("content", "frames", {"n_rows": 5}, lambda: [rows, rows[:2] + 1])
    cache.put("frames/7", [("content", ROW[:0])])
    again = reopened(cache)
    assert again.get_facts("content", "frames") == {"n_rows": 5}
    np.testing.assert_array_equal(again.get_part("content", "frames", 0, 3), rows)
    np.testing.assert_array_equal(again.get_part("content", "frames", 1, 2), rows[:2] + 1)
    assert again.get_part("content", "frames", 0, 5) is None  # twelve numbers are not five rows
    assert again.get_part("content", "frames", 2, 3) is None
    assert again.get_part("content", "frames", 7, 1) is None  # it is empty


def test_of_a_sequence_that_breaks_off_nothing_is_kept(cache):
    def breaking_off():
        yield ROW[None]
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.put_sequence("content", "frames", {}, breaking_off)
    again = reopened(cache)
    assert again.get_facts("content", "frames") is None
    assert again.get_part("content", "frames", 0, 1) is None
    assert again.get("content", "audio") is not None


def test_a_cache_says_whose_it_is(cache):
    """By this mark later versions know the caches of this one."""
    cache.close()
    assert cache.path.read_bytes()[68:72] == b"IBAV"


def test_a_changed_row_is_not_trusted(cache):
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE rows SET row = ?", ((ROW + 1).tobytes(),))
    assert reopened(cache).get("content", "audio") is None


@pytest.mark.parametrize("kind", ["text", "weights", "sound", "another database", "directory", "pipe"])
def test_a_file_that_is_no_cache_is_never_touched(pairs, small_checkpoint, kind, monkeypatch, capsys):
    """One line, status 2, and the file as it was."""
    monkeypatch.chdir(pairs)
    path = pairs / "mine"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "another database":
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE rows (mine)")
            connection.execute("PRAGMA user_version = 1")
    else:
        sources = {"weights": small_checkpoint, "sound": pairs / "audio" / "a.wav"}
        path.write_bytes(sources[kind].read_bytes() if kind in sources else b"not a database" * 100)
    before = path.read_bytes() if path.is_file() else None
    argv = ["--audio_dir", "audio", "--video_dir", "video", "--device", "cpu", "--cache", "mine"]
    assert main([*argv, "--checkpoint", str(small_checkpoint)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: mine: is no cache of embeddings; name another file with --cache"
    )
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not (pairs / "mine.bad").exists()


def test_a_damaged_cache_is_set_aside(cache, caplog):
    cache.close()
    with open(cache.path, "r+b") as file:  # all but the header that says what it is
        file.seek(100)
        file.write(b"\xff" * 3000)
    again = EmbeddingCache(cache.path, "weights", "fp32")
    assert f"{cache.path}: damaged or of another version; set aside as cache.sqlite.bad" in caplog.text
    assert again.get("content", "audio") is None
    again.put("audio", [("content", ROW)])
    assert reopened(again).get("content", "audio") is not None


def test_a_cache_of_the_first_version_is_set_aside(cache, caplog):
    """It had no application id."""
    with contextlib.closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute("PRAGMA application_id = 0")
        connection.execute("PRAGMA user_version = 1")
    assert reopened(cache).get("content", "audio") is None
    assert "set aside as cache.sqlite.bad" in caplog.text


def test_odd_parts_cost_no_file_and_are_named(pairs, small_checkpoint, monkeypatch, caplog):
    """Damaged in every way, unfinished, a pipe, a loop; and more of them than may be open at a time."""
    monkeypatch.chdir(pairs)
    options = {"device": "cpu", "checkpoint": small_checkpoint, "num_workers": 1, "output_dir": "out"}
    whole = batch_inference_av_consistency("audio", "video", **options)
    content = bytearray(Path("out/embeddings.sqlite").read_bytes())
    Path("out/embeddings.sqlite").unlink()
    for i in range(1, 150):
        Path(f"out/embeddings.{i}-of-200.sqlite").write_bytes(content)
    for i in range(150, 160):  # in the text of its schema, which is then no UTF-8
        damaged = content.copy()
        at = damaged.index(b"CREATE TABLE")
        damaged[at + i - 150 : at + i - 146] = b"\xff" * 4
        Path(f"out/embeddings.{i}-of-200.sqlite").write_bytes(damaged)
    os.mkfifo("out/embeddings.160-of-200.sqlite")
    Path("out/embeddings.161-of-200.sqlite").symlink_to("embeddings.161-of-200.sqlite")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (160, before[1]))
    try:
        again = batch_inference_av_consistency("audio", "video", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert same_rows(again, whole)
    assert again["failures"] == []
    assert "embeddings.150-of-200.sqlite: cannot be read (" in caplog.text


def test_another_files_row_is_not_taken_for_its_own(cache):
    """As after a flipped bit in a key: the row's own checksum would be right."""
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE rows SET content = 'another'")
    assert reopened(cache).get("another", "audio") is None
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE rows SET content = 'content', side = 'video'")
    assert reopened(cache).get("content", "video") is None


def test_whatever_a_record_holds_is_a_miss_at_worst(cache):
    for row, checksum in ((b"", 0), ("text", 1), (b"abc", "x"), (1.5, None), (b"\0" * 4096, 2**62)):
        with contextlib.closing(sqlite3.connect(cache.path)) as connection, connection:
            connection.execute("PRAGMA ignore_check_constraints = 1")
            connection.execute("UPDATE rows SET row = ?, checksum = coalesce(?, 0)", (row, checksum))
        assert reopened(cache).get("content", "audio") is None


def test_flipped_bits_give_no_wrong_row(tmp_path):
    n_found, n_wrong, faults = fuzz_cache.fuzz(0, 300, tmp_path)
    assert (n_wrong, faults) == (0, [])
    assert n_found > 1000


def test_a_cache_of_another_version_is_set_aside(cache, caplog):
    with sqlite3.connect(cache.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert reopened(cache).get("content", "audio") is None
    assert "set aside as cache.sqlite.bad" in caplog.text


def test_damage_within_is_met_later_and_ends_nothing(cache, caplog):
    """Pages in the middle are overwritten: what they held is not found, and the run goes on."""
    cache.put("audio", [(f"content{i}", ROW + i) for i in range(200)])
    cache.close()
    size = cache.path.stat().st_size
    with open(cache.path, "r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(size - 4096 * 3))
    again = reopened(cache)
    found = [again.get(f"content{i}", "audio") for i in range(200)]
    for i, row in enumerate(found):
        assert row is None or np.array_equal(row, ROW + i)
    again.put("audio", [("new", ROW)])


def test_a_full_disk_ends_the_cache_and_not_the_run(pairs, tmp_path):
    """A file may grow to 100 kB alone: the cache hits that limit, the outputs do not."""
    for i in range(20):
        write_audio(pairs / "audio" / f"more{i}.wav", tone(0.2, 300 + i))
        shutil.copy(pairs / "video" / "a.mp4", pairs / "video" / f"more{i}.mp4")
    limits = {resource.RLIMIT_FSIZE: 100_000}
    status, out, err = Program(pairs, "--batch_size", "1", "--no_html", limits=limits).wait()
    assert status == 0, err
    (warning,) = (line for line in err if "embeddings.sqlite" in line)
    assert "cannot be written" in warning
    assert out[-1].startswith("evaluated 24 pairs")


def test_a_place_that_cannot_be_written_is_said_once(tmp_path, caplog):
    cache = EmbeddingCache(tmp_path / "none" / "cache.sqlite", "weights", "fp32")
    cache.put("audio", [("content", ROW)])
    assert cache.get("content", "audio") is None
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text


def write_rows(path, name: str) -> None:
    cache = EmbeddingCache(path, "weights", "fp32")
    for i in range(50):
        cache.put("audio", [(f"{name}{i}", ROW)])


def test_two_processes_write_one_cache(tmp_path):
    path = tmp_path / "cache.sqlite"
    processes = [FORKSERVER.Process(target=write_rows, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    cache = EmbeddingCache(path, "weights", "fp32")
    assert [process.exitcode for process in processes] == [0, 0]
    assert all(cache.get(f"{name}{i}", "audio") is not None for name in "ab" for i in range(50))


def test_two_threads_share_a_cache(tmp_path):
    """One writes embeddings while another writes facts and reads: nothing is lost, and nothing is said."""
    kept = cache_module.EmbeddingCache(tmp_path / "c.sqlite", "checkpoint", "fp32")
    with ThreadPoolExecutor(1) as thread:
        for i in range(200):
            written = thread.submit(kept.put, "audio", [(f"{i}", ROW + i)])
            kept.put_facts(f"{i}", "dropped", {"reason": f"{i}"})
            kept.get(f"{i - 1}", "audio")
            written.result()
    assert kept.is_writable
    for i in range(200):
        np.testing.assert_array_equal(kept.get(f"{i}", "audio"), ROW + i)
        assert kept.get_facts(f"{i}", "dropped") == {"reason": f"{i}"}
    kept.close()
