"""What a run survives: workers that die, hang or eat memory, kills, full disks, another run beside it."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import unicodedata
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import PROGRAM, Program, open_files, picture, silence, tone, write_audio, write_video

CACHE = Path("outputs", "embeddings.sqlite")
LONG = 10  # hours of sound: what is being read while something happens


@pytest.fixture
def with_long(pairs):
    """`pairs`, and a fifth whose sound takes half a minute to read."""
    silence(pairs / "audio" / "long.wav", LONG)
    write_video(pairs / "video" / "long.mp4", [picture(k) for k in range(20)])
    return pairs


def failures(folder) -> dict[str, str]:
    metrics = json.loads((folder / "outputs" / "metrics.json").read_text())
    return {failure["path"]: failure["reason"] for failure in metrics["failures"]}


def contents(folder) -> dict[str, bytes]:
    """Read all outputs but the cache."""
    return {
        path.name: path.read_bytes() for path in (folder / "outputs").iterdir() if path.name != CACHE.name
    }


def n_cached(folder) -> int:
    try:
        with closing(sqlite3.connect(f"file:{folder / CACHE}?mode=ro", uri=True)) as connection:
            ((n,),) = connection.execute("SELECT count(*) FROM rows").fetchall()
            return n
    except sqlite3.OperationalError:  # not made yet
        return 0


# Workers


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_worker_that_dies_costs_its_file(with_long, number):
    program = Program(with_long, "--num_workers", "1")
    os.kill(program.reader_of(with_long / "audio" / "long.wav"), number)
    status, out, err = program.wait()
    how = "was killed (SIGKILL)" if number == signal.SIGKILL else f"crashed ({number.name})"
    assert status == 0
    assert f"warning: skipped audio file audio/long.wav: its process {how}" in err
    assert failures(with_long) == {"audio/long.wav": f"its process {how}"}
    assert out[-1] == "evaluated 4 pairs, skipped 1 files, unmatched 0 files"


def test_workers_that_die_one_after_the_other_cost_their_files(pairs):
    """More files kill their worker than there are workers: each time another takes its place."""
    for i in range(5):
        silence(pairs / "audio" / f"long{i}.wav", LONG)
        write_video(pairs / "video" / f"long{i}.mp4", [picture(k) for k in range(20)])
    program = Program(pairs, "--num_workers", "2")
    for i in range(5):
        os.kill(program.reader_of(pairs / "audio" / f"long{i}.wav"), signal.SIGSEGV)
    status, out, _ = program.wait()
    assert status == 0
    assert out[-1] == "evaluated 4 pairs, skipped 5 files, unmatched 0 files"


def test_a_file_that_takes_too_long_is_skipped(with_long):
    program = Program(with_long, "--num_workers", "2", "--timeout", "4")
    status, out, _ = program.wait()
    assert status == 0
    assert failures(with_long) == {"audio/long.wav": "took more than 4 s (--timeout)"}
    assert out[-1] == "evaluated 4 pairs, skipped 1 files, unmatched 0 files"


def test_a_worker_that_stands_still_is_not_waited_for(with_long):
    """Stopped, it answers nothing, and not even to signals: it is killed, and nothing is left."""
    program = Program(with_long, "--num_workers", "1", "--timeout", "6")
    worker = program.reader_of(with_long / "audio" / "long.wav")
    os.kill(worker, signal.SIGSTOP)
    status, _, _ = program.wait()
    assert status == 0
    assert failures(with_long) == {"audio/long.wav": "took more than 6 s (--timeout)"}
    assert not Path(f"/proc/{worker}").exists()


def test_a_file_that_needs_too_much_memory_is_skipped(pairs):
    """A picture of 100 million pixels in a file of 100 kB."""
    huge = np.zeros((10_000, 10_000, 3), np.uint8)
    write_video(pairs / "video" / "huge.mov", [huge], "png", pix_fmt="rgb24")
    write_audio(pairs / "audio" / "huge.wav", tone(1))
    status, out, _ = Program(pairs, "--worker_memory_gb", "0.5").wait()
    assert status == 0
    assert failures(pairs) == {"video/huge.mov": "needs more memory than it may have"}
    assert out[-1] == "evaluated 4 pairs, skipped 1 files, unmatched 0 files"


def test_strict_is_status_3_with_all_outputs_written(pairs):
    (pairs / "audio" / "b.wav").write_text("not a sound")
    status, out, _ = Program(pairs, "--strict").wait()
    assert status == 3
    assert len(contents(pairs)) == 11
    assert out[-1] == "evaluated 3 pairs, skipped 1 files, unmatched 0 files"
    write_audio(pairs / "audio" / "b.wav", tone(1))
    assert Program(pairs, "--strict").wait()[0] == 0


# Kills


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_outputs(pairs):
    """Byte for byte, with files of the same content among them, and no row is computed again."""
    for i in range(16):
        seconds = 0.2 if i % 4 else 3
        write_audio(pairs / "audio" / f"n{i}.wav", tone(seconds, 300 + i // 2 * 20))
        shutil.copy(pairs / "video" / f"{'abcd'[i % 4]}.mp4", pairs / "video" / f"n{i}.mp4")
    (pairs / "audio" / "n3.wav").write_text("not a sound")
    undisturbed = Program(pairs)
    start = os.times().elapsed
    assert undisturbed.wait()[0] == 0
    seconds = os.times().elapsed - start
    expected, n_rows = contents(pairs), n_cached(pairs)
    moments = random.Random(0)
    n_kept = []
    for _ in range(20):
        shutil.rmtree(pairs / "outputs")
        program = Program(pairs)
        program.process.join(moments.uniform(0, seconds))
        readers = program.readers()
        program.process.kill()
        program.process.join()
        n_kept.append(n_cached(pairs))
        status, _, err = Program(pairs).wait()
        assert status == 0
        assert contents(pairs) == expected
        assert n_cached(pairs) == n_rows
        (line,) = (line for line in err if "from the cache" in line)
        assert int(line.split(" from the cache")[0].split()[-1]) >= n_kept[-1]
        assert not any(Path(f"/proc/{pid}/exe").exists() for pid in readers)
    assert len(set(n_kept)) > 2, "all kills were at the same stage"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_and_says_what_is_kept(with_long, number, expected):
    program = Program(with_long, "--num_workers", "2", "--batch_size", "1")
    program.reader_of(with_long / "audio" / "long.wav")
    while n_cached(with_long) < 9:
        program.process.join(0.1)
        assert program.process.is_alive()
    readers = program.readers()
    os.kill(program.process.pid, number)
    status, out, err = program.wait()
    assert (status, out) == (expected, [])
    kept = r"interrupted: [89] of 10 files are embedded and kept in outputs/embeddings\.sqlite"
    assert re.fullmatch(f"{kept}; the same command goes on from there", err[-1])
    assert len(readers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in readers)
    (with_long / "audio" / "long.wav").unlink()
    write_audio(with_long / "audio" / "long.wav", tone(1))
    status, _, err = Program(with_long).wait()
    assert status == 0
    assert any("10 files" in line and "9 from the cache" in line for line in err)


def test_workers_end_with_a_run_that_is_killed(with_long):
    program = Program(with_long)
    reader = program.reader_of(with_long / "audio" / "long.wav")
    program.process.kill()
    program.process.join()
    while str(with_long / "audio" / "long.wav") in open_files(reader):
        program.process.join(0.02)
    assert Program(with_long, "--timeout", "1").wait()[0] == 0


# The machine


def with_mounts(mounts: str, cwd, *argv: str, after: str = "true") -> subprocess.CompletedProcess:
    """Run the program with file systems of its own, where that is allowed; and a command after it."""
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode:
        pytest.skip("no leave to mount")
    script = ["unshare", "--mount", "sh", "-c", f'{mounts} && "$@"; status=$?; {after}; exit $status', "sh"]
    return subprocess.run([*script, *PROGRAM, *argv], cwd=cwd, capture_output=True, text=True)


def test_a_disk_too_full_for_the_outputs_is_one_line_and_keeps_earlier_ones(pairs):
    assert Program(pairs).wait()[0] == 0
    kept = contents(pairs)
    shutil.move(pairs / "outputs", pairs / "earlier")
    mounts = (
        "mkdir outputs after && mount -t tmpfs -o size=6m none outputs && cp earlier/[!e]* outputs"
        " && head -c 1m /dev/zero > outputs/padding"
    )
    result = with_mounts(mounts, pairs, "--no_cache", after="cp outputs/[!e]* after; rm after/padding")
    assert result.returncode == 1
    message = r"error: \./outputs: cannot write report\.html \(No space left on device\)"
    assert re.fullmatch(message, result.stderr.splitlines()[-1])
    assert {path.name: path.read_bytes() for path in (pairs / "after").iterdir()} == kept


def test_a_disk_too_full_for_the_cache_ends_the_cache_alone(pairs):
    mounts = "mkdir small && mount -t tmpfs -o size=32k none small"
    result = with_mounts(mounts, pairs, "--cache", "small/cache.sqlite", "--batch_size", "1")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 0 files"
    (warning,) = (line for line in result.stderr.splitlines() if "small" in line)
    assert warning == (
        "warning: small/cache.sqlite: cannot be written (database or disk is full);"
        " this run keeps no more embeddings"
    )


def test_without_shared_memory_nothing_is_lost(pairs):
    result = with_mounts("mount -t tmpfs -o size=4k none /dev/shm", pairs, "--num_workers", "4")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 0 files"


def test_256_open_files_are_enough(pairs):
    for i in range(60):
        write_audio(pairs / "audio" / f"n{i}.wav", tone(0.1, 300 + i))
        shutil.copy(pairs / "video" / "a.mp4", pairs / "video" / f"n{i}.mp4")
    limits = {resource.RLIMIT_NOFILE: 256}
    status, out, _ = Program(pairs, "--num_workers", "32", "--batch_size", "16", limits=limits).wait()
    assert status == 0
    assert out[-1] == "evaluated 64 pairs, skipped 0 files, unmatched 0 files"


def test_no_room_for_processes_is_one_line(pairs):
    for i in range(30):
        shutil.copy(pairs / "audio" / "a.wav", pairs / "audio" / f"n{i}.wav")
        shutil.copy(pairs / "video" / "a.mp4", pairs / "video" / f"n{i}.mp4")
    status, out, err = Program(pairs, "--num_workers", "60", limits={resource.RLIMIT_NOFILE: 40}).wait()
    assert (status, out) == (1, [])
    processes, rows = "no process can be started to read files", r"\./outputs: cannot hold the embeddings"
    assert re.fullmatch(rf"error: ({processes}|{rows}) \((\[Errno 24\] )?Too many open files\)", err[-1])


def test_an_output_directory_that_vanishes_is_made_again(with_long):
    program = Program(with_long)
    reader = program.reader_of(with_long / "audio" / "long.wav")
    shutil.rmtree(with_long / "outputs")
    os.kill(reader, signal.SIGKILL)
    status, out, err = program.wait()
    assert status == 0
    assert "warning: ./outputs: gone during the run; made again" in err
    assert len([name for name in contents(with_long) if not name.startswith(".")]) == 11
    assert out[-1] == "evaluated 4 pairs, skipped 1 files, unmatched 0 files"


def test_an_output_directory_that_cannot_be_written_is_one_line(pairs):
    status, out, err = Program(pairs, "--output_dir", "/proc/outputs").wait()
    assert (status, out) == (1, [])
    assert err == ["error: /proc/outputs: cannot write to this directory (No such file or directory)"]


@pytest.mark.parametrize(
    ("redirection", "reason"), [("> /dev/full", "No space left on device"), ("| true", "Broken pipe")]
)
def test_standard_output_that_takes_no_more_is_one_line(pairs, redirection, reason):
    command = " ".join(map(str, PROGRAM)) + f" --num_workers 0 {redirection}"
    result = subprocess.run(["bash", "-c", command], cwd=pairs, capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == f"error: cannot write to standard output ({reason})"
    assert len(contents(pairs)) == 11


# Two runs at once


def test_a_second_run_keeps_out_of_an_output_directory_in_use(with_long):
    first = Program(with_long)
    first.reader_of(with_long / "audio" / "long.wav")
    status, out, err = Program(with_long).wait()
    assert (status, out) == (1, [])
    assert err[-1].startswith(f"error: ./outputs: in use by process {first.process.pid} on ")
    assert err[-1].endswith("; wait for it, or name another --output_dir")
    assert Program(with_long, "--output_dir", "other", "--timeout", "1").wait()[0] == 0
    first.process.kill()  # and leaves its lock behind
    first.process.join()
    assert (with_long / "outputs" / ".in_use").exists()
    (with_long / "outputs" / ".metrics.json.tmp").write_text("half a file")
    assert Program(with_long, "--timeout", "1").wait()[0] == 0
    assert not any(name.startswith(".") for name in contents(with_long))


# Names


def test_names_of_all_kinds(pairs):
    """They stay in their line and field, can be read back, and no terminal is told what to do."""
    names = [
        "two  spaces",
        "-leading",
        "--help",
        "quotes'\"`$(true)",
        "caf\u00e9",
        "cafe\u0301 apart",
        "\u05e9\u05dc\u05d5\u05dd",
        "turned\u202etxt",
        "new\nline",
        "tab\there",
        "back\\slash",
        "\x1b[31mred",
        "<img src=x onerror=alert(1)>",
        "=1+1",
        "x" * 251,
        os.fsdecode(b"\xff\xfe"),
        "\u540d\u5b57",
        "# not a comment",
    ]
    spelt = {"audio": "NFC", "video": "NFD"}
    for side, suffix in (("audio", ".wav"), ("video", ".mp4")):
        for name in names:
            path = pairs / side / f"{unicodedata.normalize(spelt[side], name)}{suffix}"
            shutil.copy(pairs / side / f"a{suffix}", path)
    status, out, err = Program(pairs).wait()
    assert status == 0
    assert out[-1] == f"evaluated {4 + len(names)} pairs, skipped 0 files, unmatched 0 files"

    def decode(field: str) -> str:  # as the README says
        return field.encode("latin-1", "backslashreplace").decode("unicode_escape")

    def read(name: str) -> list[list[str]]:
        lines = (pairs / "outputs" / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return [[decode(field) for field in line.split("\t")] for line in lines]

    assert all(os.path.exists(pairs / path) for pair in read("pairs.txt") for path in pair)
    stems = [os.path.splitext(os.path.basename(sound))[0] for sound, _ in read("pairs.txt")]
    assert set(stems) == {*"abcd", *(unicodedata.normalize("NFC", name) for name in names)}
    assert [name for (name,) in read("audio_names.txt")] == stems

    for name in names:  # as skipped files, in the report
        (pairs / "audio" / f"{unicodedata.normalize('NFC', name)}.wav").write_text("not a sound")
    status, out, err = Program(pairs).wait()
    assert status == 0
    report = (pairs / "outputs" / "consistency_report.txt").read_text(encoding="utf-8")
    assert report.count("    audio audio/") == len(names)
    for line in (*report.split("\n"), *out, *err):
        assert not re.search("[\x00-\x1f\u202e]", line)


# Large and hostile inputs


def test_a_list_of_a_million_lines_is_read_in_a_gigabyte(pairs):
    with open(pairs / "list.txt", "w") as file:
        file.writelines(f"folder{i % 1000}/file{i}.wav\n" for i in range(1_000_000))
        file.write("audio/a.wav\n")
    argv = ["--audio_file", "list.txt", "--video_dir", "video"]
    limits = {resource.RLIMIT_DATA: 2_000_000_000}
    status, out, err = Program(pairs, limits=limits, inputs=argv).wait()
    assert status == 0
    assert out[-1] == "evaluated 1 pairs, skipped 0 files, unmatched 1000003 files"
    assert "1000001 audio files, 4 video files, 1 pairs" in err
    assert sum(map(len, err)) < 2000


def test_a_tree_of_200_000_files_and_a_loop_is_walked_once(pairs):
    for i in range(200):
        folder = pairs / "video" / f"{i}"
        folder.mkdir()
        for k in range(1000):
            os.mknod(folder / f"{i}_{k}.mp4")
        (folder / "up").symlink_to(pairs / "video")
    limits = {resource.RLIMIT_DATA: 2_000_000_000}
    status, out, _ = Program(pairs, limits=limits).wait()
    assert status == 0
    assert out[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 200000 files"


# Long runs


@pytest.mark.slow
def test_10000_files_take_no_more_than_1000(pairs):
    """Memory, open files and shared memory stay flat; but for the rows, of 4 kB each."""
    square = write_video(pairs / "square.mp4", [picture(i, 64, 64) for i in range(5)]).read_bytes()
    for i in range(5000):
        write_audio(pairs / "audio" / f"n{i}.wav", tone(0.3) * (0.5 + i / 10_000))
        (pairs / "video" / f"n{i}.mp4").write_bytes(square + struct.pack(">I4sI", 12, b"free", i))

    def used() -> tuple[int, int, int]:
        """Give bytes of memory and open files of all processes, and files in shared memory."""
        pids = [program.process.pid, *program.readers()]
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        kilobytes = [int(kb) for text in status for kb in re.findall(r"RssAnon:\s+(\d+)", text)]
        return sum(kilobytes) * 1024, sum(len(open_files(pid)) for pid in pids), len(os.listdir("/dev/shm"))

    program = Program(pairs)
    seen = {}  # thousands of files -> what they used
    while program.process.is_alive():
        program.process.join(0.5)
        if (thousands := n_cached(pairs) // 1000) and program.readers():
            seen.setdefault(thousands, used())
    status, out, _ = program.wait()
    assert status == 0
    assert out[-1] == "evaluated 5004 pairs, skipped 0 files, unmatched 0 files"
    assert len(seen) >= 5
    memory, n_open, n_shared = zip(*seen.values(), strict=True)
    assert max(memory) - memory[0] < 9000 * 4096 + 60_000_000  # the second tower starts in between
    assert max(n_open) <= n_open[0] + 4
    assert max(n_shared) <= n_shared[0]
