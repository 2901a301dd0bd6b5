"""Several processes, as torchrun starts them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEMO, TESTS, picture, silence, tone, write_audio, write_video
from imagebind.ranks import share_of
from test_model import released_state_dict

PROGRAM = (TESTS.parent / "batch_inference.py", "--audio_dir", "audio", "--video_dir", "video")
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def command(n_ranks: int, *argv: str, launcher: tuple[str, ...] = ()) -> list[str]:
    """Give the command line of a run; 1 is one without torchrun."""
    start = (sys.executable,) if n_ranks == 1 else (*LAUNCH, "--nproc_per_node", str(n_ranks), *launcher)
    model = ("--checkpoint", DEMO / "imagebind_demo.pth", "--device", "cpu")
    return list(map(str, (*start, *PROGRAM, *model, *argv)))


def run(folder: Path, n_ranks: int, *argv: str, **options) -> tuple[int, list[str], list[str]]:
    result = subprocess.run(
        command(n_ranks, *argv, **options), cwd=folder, capture_output=True, text=True, timeout=300
    )
    return result.returncode, result.stdout.splitlines(), result.stderr.splitlines()


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sqlite"}


def cached(folder: Path) -> list[tuple[str, str]]:
    rows = []
    for path in folder.glob("*.sqlite"):
        with closing(sqlite3.connect(path)) as connection, suppress(sqlite3.OperationalError):
            rows += connection.execute("SELECT content, side FROM rows").fetchall()  # if it has begun
    return rows


def own_lines(lines: list[str]) -> list[str]:
    """Leave out what torchrun says."""
    return [line for line in lines if re.match("(error|warning|interrupted|skipped)", line)]


def test_the_outputs_are_the_same_for_one_two_and_three(pairs):
    """To the byte: with files that are skipped, without a partner, and the same; each embedded by one.

    With captions, one of them for no file, and one too long.
    """
    for i in range(9):
        write_audio(pairs / "audio" / f"n{i}.wav", tone(1, 300 + 20 * i))
        shutil.copy(pairs / "video" / "a.mp4", pairs / "video" / f"n{i}.mp4")
    (pairs / "audio" / "n3.wav").write_text("not a sound")
    (pairs / "video" / "n8.mp4").write_text("not a video")
    (pairs / "video" / "c.mp4").unlink()
    texts = {"a": "a note", "c": "no picture", "n2": "long " * 99, "n8": "a note", "z": "of nothing"}
    lines = [json.dumps({"name": name, "caption": text}) for name, text in texts.items()]
    (pairs / "captions.jsonl").write_text("\n".join(lines))
    for size in ("0", "8"):
        options = ("--retrieval_mode", "--max_matrix_gb", size, "--captions", "captions.jsonl")
        for n in (1, 2, 3):
            status, out, err = run(pairs, n, *options, "--output_dir", f"out{n}")
            assert status == 0, err
            assert out[-1] == (
                "evaluated 10 pairs, skipped 2 files, unmatched 1 files; "
                "4 captions, 1 unmatched, 8 pairs without one"
            )
            assert "warning: 1 captions are too long, and cut off: n2" in err
            assert out.count("=" * 80) == 2  # one report
            skipped = [line for line in own_lines(err) if line.startswith("warning: skipped")]
            assert [line.split()[4].rstrip(":") for line in skipped] == ["audio/n3.wav", "video/n8.mp4"]
            metrics = json.loads((pairs / f"out{n}" / "metrics.json").read_text())
            assert [failure["path"] for failure in metrics["failures"]] == ["audio/n3.wav", "video/n8.mp4"]
        assert outputs(pairs / "out2") == outputs(pairs / "out1")
        assert outputs(pairs / "out3") == outputs(pairs / "out1")
        assert ("similarity_matrix.npy" in outputs(pairs / "out1")) == (size == "8")
    assert sorted(path.name for path in (pairs / "out3").glob("*.sqlite")) == [
        "embeddings.1.sqlite",
        "embeddings.2.sqlite",
        "embeddings.sqlite",
    ]


def test_what_several_have_embedded_is_found_by_any_number(pairs):
    assert run(pairs, 3)[0] == 0
    kept = set(cached(pairs / "outputs"))
    for n in (1, 2):
        status, _, err = run(pairs, n)
        assert status == 0
        (line,) = (line for line in err if "from the cache" in line)
        assert line.startswith("8 files")  # of all processes
        assert ", 8 from the cache" in line
        assert set(cached(pairs / "outputs")) == kept


@pytest.mark.slow
def test_many_rows_are_compared_by_all(pairs):
    """3 x 700 copies of four pairs: three groups of tiles, with a matrix and without."""
    for i in range(525):
        for name in "abcd":
            for side, suffix in (("audio", "wav"), ("video", "mp4")):
                target = pairs / side / f"{name}{i}.{suffix}"
                os.link(pairs / side / f"{name}.{suffix}", target)
    for size in ("0", "8"):
        for n in (1, 3):
            options = ("--max_matrix_gb", size, "--output_dir", f"out{n}", "--cache", "kept.sqlite")
            status, _, err = run(pairs, n, *options)
            assert status == 0, err
        assert outputs(pairs / "out3") == outputs(pairs / "out1")
        assert ("similarity_matrix.npy" in outputs(pairs / "out3")) == (size == "8")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--checkpoint", "none.pth"], "error: none.pth: No such file or directory; name a checkpoint"),
        (["--output_dir", "file"], "error: file: cannot write to this directory"),
    ],
)
def test_what_cannot_start_ends_the_job_in_one_line(pairs, argv, message):
    (pairs / "file").touch()
    status, out, err = run(pairs, 3, *argv)
    assert status == 1
    assert out == []
    (line,) = (line for line in own_lines(err) if not line.startswith("interrupted"))
    assert line.startswith(message)


def test_wrong_usage_is_said_once(pairs):
    status, _, err = run(pairs, 2, "--batch_size", "0")
    assert status == 1  # torchrun's
    assert sum("argument --batch_size" in line for line in err) == 1


def ranks_of(pid: int) -> dict[int, int]:
    """Find the processes of a job: rank -> process."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            if folder.name.isdigit() and f"TEST_JOB={pid}".encode() in environment:
                (rank,) = (int(x[5:]) for x in environment if x.startswith(b"RANK="))
                found[rank] = min(found.get(rank, math.inf), int(folder.name))
        except (OSError, ValueError):
            pass
    return found


def add_slow_sound(pairs: Path, hours: float) -> None:
    """Add the pairs e and z, the sound of z the largest of six: the last one of the second process's three.

    When it is read, eight files have a row: all of the first process, and two sounds of the second.
    """
    write_audio(pairs / "audio" / "e.wav", tone(1, 1000))
    silence(pairs / "audio" / "z.wav", hours)
    for i, name in enumerate("ez", 4):
        write_video(pairs / "video" / f"{name}.mp4", [picture(20 * i + k % 5) for k in range(20)])


def test_a_killed_process_brings_all_back_and_nothing_is_embedded_twice(pairs):
    """It reads a sound that takes seconds; by then others are embedded and kept."""
    add_slow_sound(pairs, hours=2)
    job = subprocess.Popen(
        command(2, "--batch_size", "1", launcher=("--max_restarts", "1")),
        cwd=pairs,
        env=os.environ | {"TEST_JOB": str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(cached(pairs / "outputs")) < 8:
        assert job.poll() is None, job.stderr.read()
    os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    (line,) = (line for line in own_lines(err.splitlines()) if line.startswith("interrupted"))
    assert re.match(r"interrupted: \d+ of 12 files are embedded and kept in outputs/embeddings.sqlite", line)
    assert out.splitlines()[-1] == "evaluated 6 pairs, skipped 0 files, unmatched 0 files"
    rows = cached(pairs / "outputs")
    assert len(rows) == len(set(rows)) == 12


def test_one_process_of_a_host_downloads_the_checkpoint(pairs, server):
    """With a server on this machine in the place of the released file's, and small towers in its sizes."""
    torch.save(released_state_dict("tiny"), pairs / "tiny.pth")
    server["body"] = (pairs / "tiny.pth").read_bytes()
    (pairs / "program.py").write_text(f"""
import sys
sys.path[:0] = {[str(TESTS.parent), str(TESTS)]}
from imagebind.models import checkpoints, imagebind_model
from pathlib import Path
from test_model import TINY
from batch_inference import main
checkpoints.RELEASED_URL, checkpoints.RELEASED_PATH = {server["url"]!r}, Path("weights/imagebind_huge.pth")
imagebind_model.IMAGEBIND_HUGE = TINY
sys.exit(main())
""")
    argv = ("--audio_dir", "audio", "--video_dir", "video", "--device", "cpu")
    launch = map(str, (*LAUNCH, "--nproc_per_node", "3", "program.py", *argv))
    result = subprocess.run(list(launch), cwd=pairs, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert server["requests"] == 1
    assert result.stdout.splitlines()[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 0 files"


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
def test_shares_are_balanced_and_whole(n_ranks):
    sizes = np.random.default_rng(0).gamma(0.5, size=1000)
    shares = [share_of(sizes, rank, n_ranks) for rank in range(n_ranks)]
    assert sorted(i for share in shares for i in share) == list(range(1000))
    for costs in (sizes, np.sqrt(sizes), np.ones(1000)):  # whatever a byte costs, and a file
        sums = [costs[share].sum() for share in shares]
        assert max(sums) - min(sums) <= costs.max()


# Two hosts, as two network namespaces


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Give the names of two hosts with a wire between them: 10.77.0.1 and 10.77.0.2."""
    names = [f"host{i}-{os.getpid()}" for i in (1, 2)]
    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no network namespaces ({e})")
    try:
        ip(
            "link",
            "add",
            "wire",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "wire",
            "netns",
            names[1],
        )
        for i, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", "wire")
            for link in ("lo", "wire"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def start_on(host: str, number: int, folder: Path, *argv: str) -> subprocess.Popen:
    launcher = (
        *("--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", "job", "--rdzv_backend", "c10d"),
        *("--rdzv_endpoint", "10.77.0.1:29400", "--local_addr", f"10.77.0.{number}"),
        *("--rdzv_conf", f"is_host={int(number == 1)}"),
    )
    model = ("--checkpoint", DEMO / "imagebind_demo.pth", "--device", "cpu")
    launch = (sys.executable, "-m", "torch.distributed.run", *launcher, *PROGRAM, *model, *argv)
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *map(str, launch)],
        cwd=folder,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "wire", "TEST_JOB": str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_hosts_give_what_one_gives(pairs, hosts):
    jobs = [start_on(host, i, pairs, "--max_matrix_gb", "0") for i, host in enumerate(hosts, 1)]
    (out, err), (other_out, other_err) = (job.communicate(timeout=200) for job in jobs)
    assert [job.returncode for job in jobs] == [0, 0], err + other_err
    assert run(pairs, 1, "--max_matrix_gb", "0", "--output_dir", "alone")[0] == 0
    assert outputs(pairs / "outputs") == outputs(pairs / "alone")
    assert sorted([out.count("evaluated 4 pairs"), other_out.count("evaluated 4 pairs")]) == [0, 1]


@pytest.mark.slow
def test_a_host_that_is_cut_off_ends_the_job_and_the_next_one_goes_on(pairs, hosts):
    """The first host waits for the second, which reads for half a minute, and hears no more of it."""
    add_slow_sound(pairs, hours=10)
    jobs = [start_on(host, i, pairs, "--batch_size", "1") for i, host in enumerate(hosts, 1)]
    while len(cached(pairs / "outputs")) < 8:
        assert [job.poll() for job in jobs] == [None, None]
    ip("-n", hosts[1], "link", "set", "wire", "down")
    errors = [jobs[0].communicate(timeout=200)[1]]
    assert jobs[0].returncode == 1, errors
    while ranks_of(os.getpid()):  # torchrun itself may wait for its network for long
        with suppress(subprocess.TimeoutExpired):
            jobs[1].wait(0.1)
    jobs[1].kill()
    errors.append(jobs[1].communicate()[1])
    said = [own_lines(error.splitlines()) for error in errors]
    pattern = (
        r"error: (process \d has not been heard of for 30 s; the same command goes on from what is kept"
        r"|lost touch with the other processes \(.*|process \d has lost touch with the others; .*)"
    )
    for lines in said:
        (line,) = lines
        assert re.match(pattern, line)
    n_kept = len(cached(pairs / "outputs"))
    status, _, err = run(pairs, 1)
    assert status == 0
    (line,) = (line for line in err if "from the cache" in line)
    assert int(line.split(" from the cache")[0].split()[-1]) >= n_kept
