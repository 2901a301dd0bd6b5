"""Signals, kills, and a terminal that takes no more."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import PROGRAM, Program, contents, n_cached, tone, write_audio


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


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_outputs(pairs):
    """Byte for byte, with files of the same content among them, and no row is computed again."""
    for i in range(8):
        seconds = 0.2 if i % 4 else 3
        write_audio(pairs / "audio" / f"n{i}.wav", tone(seconds, 300 + i // 2 * 20))
        shutil.copy(pairs / "video" / f"{'abcd'[i % 4]}.mp4", pairs / "video" / f"n{i}.mp4")
    (pairs / "audio" / "n3.wav").write_text("not a sound")
    assert Program(pairs).wait()[0] == 0
    expected, n_rows = contents(pairs), n_cached(pairs)
    moments, n_kept = random.Random(0), []
    for n_before in (0, 1, 4, 9, 14, n_rows):
        shutil.rmtree(pairs / "outputs")
        program = Program(pairs, "--num_workers", "2" if n_before in (1, 9) else "0")
        while n_cached(pairs) < n_before:
            program.process.join(0.005)
        program.process.join(moments.uniform(0, 0.15))
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


@pytest.mark.parametrize(
    ("redirection", "reason"), [("> /dev/full", "No space left on device"), ("| true", "Broken pipe")]
)
def test_standard_output_that_takes_no_more_is_one_line(pairs, redirection, reason):
    command = " ".join(map(str, PROGRAM)) + f" --num_workers 0 --no_html {redirection}"
    result = subprocess.run(["bash", "-c", command], cwd=pairs, capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == f"error: cannot write to standard output ({reason})"
    assert len(contents(pairs)) == 10


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">&-", 1, ["error: cannot write to standard output (it is closed)"]),
        ("2>&-", 0, []),
        ("2> /dev/full", 0, []),
        (">&- 2>&-", 1, []),
    ],
)
def test_a_terminal_that_is_gone_costs_no_output(pairs, redirection, status, said):
    command = " ".join(map(str, PROGRAM)) + f" --num_workers 1 --no_html {redirection}"
    result = subprocess.run(["bash", "-c", command], cwd=pairs, capture_output=True, text=True)
    assert result.returncode == status
    assert result.stderr.splitlines()[-1:] == said
    assert len(contents(pairs)) == 10
