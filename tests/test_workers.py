"""Worker processes that die, hang or run out of memory, and what they cost."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import struct
import time
from functools import partial
from pathlib import Path

import numpy as np
from conftest import (
    DEMO,
    DIRS,
    FORKSERVER,
    LONG,
    Program,
    children,
    failures,
    n_cached,
    need_mounts,
    open_files,
    own_mounts,
    picture,
    silence,
    tone,
    write_audio,
    write_video,
)
from locks import LOCK

from batch_inference import main
from imagebind.data import audio
from imagebind.reading import loader
from imagebind.reading.workers import Workers


def test_workers_that_die_one_after_the_other_cost_their_files(pairs):
    """More files kill their worker than there are workers: each time another takes its place."""
    numbers = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV]
    for i in range(len(numbers)):
        silence(pairs / "audio" / f"long{i}.wav", LONG)
        write_video(pairs / "video" / f"long{i}.mp4", [picture(k) for k in range(20)])
    program, expected = Program(pairs, "--num_workers", "2"), {}
    for i, number in enumerate(numbers):
        os.kill(program.reader_of(pairs / "audio" / f"long{i}.wav"), number)
        how = "was killed (SIGKILL)" if number == signal.SIGKILL else f"crashed ({number.name})"
        expected[f"audio/long{i}.wav"] = f"its process {how}"
    status, out, err = program.wait()
    assert status == 0
    assert failures(pairs) == expected
    for path, reason in expected.items():
        assert f"warning: skipped audio file {path}: {reason}" in err
    assert out[-1] == "evaluated 4 pairs, skipped 5 files, unmatched 0 files"


def test_a_worker_that_stands_still_is_not_waited_for(with_long):
    """Stopped, it answers nothing, and not even to signals: it is killed, and nothing is left.

    As one that takes too long.
    """
    program = Program(with_long, "--num_workers", "1", "--timeout", "4")
    worker = program.reader_of(with_long / "audio" / "long.wav")
    os.kill(worker, signal.SIGSTOP)
    status, out, _ = program.wait()
    assert status == 0
    assert failures(with_long) == {"audio/long.wav": "took more than 4 s (--timeout)"}
    assert not Path(f"/proc/{worker}").exists()
    assert out[-1] == "evaluated 4 pairs, skipped 1 files, unmatched 0 files"


def test_a_file_that_needs_too_much_memory_is_skipped(pairs):
    """A picture of 49 million pixels in a file of 60 kB."""
    huge = np.zeros((7000, 7000, 3), np.uint8)
    write_video(pairs / "video" / "huge.mov", [huge], "png", pix_fmt="gray")
    write_audio(pairs / "audio" / "huge.wav", tone(1))
    status, out, _ = Program(pairs, "--num_workers", "1", "--worker_memory_gb", "0.25").wait()
    assert status == 0
    assert failures(pairs) == {"video/huge.mov": "needs more memory than it may have"}
    assert out[-1] == "evaluated 4 pairs, skipped 1 files, unmatched 0 files"


def test_workers_end_with_a_run_that_is_killed(with_long):
    program = Program(with_long, "--num_workers", "1")
    reader = program.reader_of(with_long / "audio" / "long.wav")
    (starter,) = children(program.process.pid)
    program.process.kill()
    program.process.join()
    while str(with_long / "audio" / "long.wav") in open_files(reader):
        program.process.join(0.02)
    while Path(f"/proc/{starter}/exe").exists():
        time.sleep(0.01)
    (with_long / "audio" / "long.wav").unlink()
    assert Program(with_long).wait()[0] == 0


def test_without_shared_memory_nothing_is_lost(pairs):
    need_mounts()
    small = partial(own_mounts, "mount -t tmpfs -o size=4k none /dev/shm")
    status, out, _ = Program(pairs, "--num_workers", "4", inside=small).wait()
    assert status == 0
    assert out[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 0 files"


def test_256_open_files_are_enough(pairs):
    """And of the memory that workers may have, they take no more than they inherit."""
    for i in range(30):
        write_audio(pairs / "audio" / f"n{i}.wav", tone(0.1, 300 + i))
        shutil.copy(pairs / "video" / "a.mp4", pairs / "video" / f"n{i}.mp4")
    limits = {resource.RLIMIT_NOFILE: 256, resource.RLIMIT_AS: 2 * 10**10}
    argv = ("--num_workers", "32", "--batch_size", "16", "--worker_memory_gb", "100000")
    status, out, _ = Program(pairs, *argv, limits=limits).wait()
    assert status == 0
    assert out[-1] == "evaluated 34 pairs, skipped 0 files, unmatched 0 files"


def test_no_room_for_processes_is_one_line(pairs):
    for i in range(30):
        shutil.copy(pairs / "audio" / "a.wav", pairs / "audio" / f"n{i}.wav")
        shutil.copy(pairs / "video" / "a.mp4", pairs / "video" / f"n{i}.mp4")
    status, out, err = Program(pairs, "--num_workers", "60", limits={resource.RLIMIT_NOFILE: 40}).wait()
    assert (status, out) == (1, [])
    processes, rows = "no process can be started to read files", r"\./outputs: cannot hold the embeddings"
    assert re.fullmatch(rf"error: ({processes}|{rows}) \((\[Errno 24\] )?Too many open files\)", err[-1])


def test_400_files_take_no_more_than_40(pairs):
    """Memory, open files and shared memory stay flat; embeddings are in a file."""
    square = write_video(pairs / "square.mp4", [picture(i, 64, 64) for i in range(5)]).read_bytes()
    for i in range(200):
        write_audio(pairs / "audio" / f"n{i}.wav", tone(0.3) * (0.5 + i / 10_000))
        (pairs / "video" / f"n{i}.mp4").write_bytes(square + struct.pack(">I4sI", 12, b"free", i))

    def used() -> tuple[int, int, int]:
        """Give bytes of memory and open files of all processes, and files in shared memory."""
        pids = [program.process.pid, *program.readers()]
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        kilobytes = [int(kb) for text in status for kb in re.findall(r"RssAnon:\s+(\d+)", text)]
        return sum(kilobytes) * 1024, sum(len(open_files(pid)) for pid in pids), len(os.listdir("/dev/shm"))

    program = Program(pairs, "--num_workers", "2")
    seen = {}  # files -> what they used
    while program.process.is_alive():
        program.process.join(0.1)
        if (n_files := n_cached(pairs) // 40 * 40) and program.readers():
            seen.setdefault(n_files, used())
    status, out, _ = program.wait()
    assert status == 0
    assert out[-1] == "evaluated 204 pairs, skipped 0 files, unmatched 0 files"
    assert len(seen) >= 5
    memory, n_open, n_shared = zip(*seen.values(), strict=True)
    assert max(memory) - memory[0] < 60_000_000  # the second tower starts in between
    assert max(n_open) <= n_open[0] + 8
    assert max(n_shared) <= n_shared[0] + 20  # other tests may run beside this one


# The starter


def starter_of(server: int) -> int:
    return int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{server}/status").read_text())[1])


def start_and_take() -> int:
    """Use a pool, and give the starter of its worker."""
    with Workers("locks:take_lock", 1, 60, 10**9) as workers:
        ((_, (could, server)),) = workers.map(None, ["task"], 1)
        assert could
        return starter_of(server)


def test_a_lock_that_a_thread_of_the_caller_holds_is_free_in_a_worker():
    with LOCK:
        start_and_take()


def test_the_starter_is_kept_until_it_is_killed():
    first, second = start_and_take(), start_and_take()
    assert first == second
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert start_and_take() != first


def in_a_fork(results, starter: int) -> None:
    """Use a pool in a fork of a process that has a starter already, and in that process."""
    child = os.fork()
    if child == 0:
        own = start_and_take()
        results.put(own != starter)
        results.close()
        results.join_thread()
        os._exit(0)
    os.waitpid(child, 0)
    results.put(start_and_take() == starter)


def use_in_a_fork(results) -> None:
    in_a_fork(results, start_and_take())


def test_a_fork_of_the_caller_has_a_starter_of_its_own():
    results = FORKSERVER.Queue()
    process = FORKSERVER.Process(target=use_in_a_fork, args=(results,))
    process.start()
    assert [results.get(timeout=60) for _ in range(2)] == [True, True]
    process.join()


def use_without_standard_files(path: str) -> None:
    os.closerange(0, 3)
    start_and_take()
    Path(path).touch()


def test_a_caller_without_standard_files_has_workers(tmp_path):
    process = FORKSERVER.Process(target=use_without_standard_files, args=(str(tmp_path / "done"),))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "done").exists()


def test_an_error_of_the_program_shows_its_traceback_once_and_costs_its_files(pairs, monkeypatch, capsys):
    """Here a name that is gone while two of the sounds are read."""
    monkeypatch.chdir(pairs)
    read_sounds = loader.read_sounds

    def read(source, recipes):
        with monkeypatch.context() as patched:
            if source.path[-5] in "ab":
                patched.delattr(audio, "hann_window")
            return read_sounds(source, recipes)

    monkeypatch.setattr(loader, "read_sounds", read)
    checkpoint = ["--checkpoint", str(DEMO / "imagebind_demo.pth"), "--device", "cpu"]
    assert main([*DIRS, *checkpoint, "--num_workers", "0", "--no_cache"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "evaluated 2 pairs, skipped 2 files, unmatched 0 files"
    assert err.count("Traceback (most recent call last)") == 1
    assert "error: this is an error of the program, at audio/a.wav; please report it:" in err
    assert "NameError: name 'hann_window' is not defined" in err
    assert failures(pairs)["audio/b.wav"].startswith("an unexpected error, NameError: ")
