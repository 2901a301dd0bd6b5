"""Several processes of one job: torchrun's, and the shares of an array of runs."""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    LONG,
    PROGRAM,
    Program,
    need_mounts,
    own_mounts,
    picture,
    silence,
    skip,
    tone,
    write_audio,
    write_video,
)
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from batch_inference import batch_inference_av_consistency
from imagebind.evaluation.embed.job import own_gpu, share_of
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.torchrun import Job

GO_ON = "the same command goes on from what is kept"


class Processes:
    """A job of n processes on this host, without torchrun around them."""

    def __init__(
        self, folder: Path, n: int, *argv: str, limits: dict[int, dict[int, int]] | None = None, **options
    ):
        environment = address() | {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "GROUP_RANK": "0"}
        self.programs = [
            Program(
                folder,
                *argv,
                limits=(limits or {}).get(rank),
                environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                **options,
            )
            for rank in range(n)
        ]

    def wait(self) -> tuple[list[int], list[list[str]], list[list[str]]]:
        """Give exit status and the lines of stdout and stderr of each."""
        status, out, err = zip(*(program.wait() for program in self.programs), strict=True)
        return list(status), list(out), list(err)


def address() -> dict[str, str]:
    """Give an address at which processes can meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}


def torchrun(folder: Path, n: int, *argv: str, launcher: tuple[str, ...] = ("--standalone",)) -> Program:
    """Start a job of n processes by torchrun."""
    run = partial(launch, (f"--nproc_per_node={n}", *launcher))
    return Program(folder, *argv, environment={"TEST_JOB": str(os.getpid())}, run=run)


def launch(launcher: tuple[str, ...], argv: Sequence[str]) -> int:
    """Be torchrun."""
    from torch.distributed import run

    try:
        run.main([*launcher, str(PROGRAM[1]), *argv])
    except ChildFailedError:
        return 1
    return 0


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sqlite"}


def cached(folder: Path) -> list[tuple[str, str]]:
    """List the embeddings of all parts of the cache."""
    rows = []
    for path in folder.glob("*.sqlite"):
        with closing(sqlite3.connect(path)) as connection, suppress(sqlite3.OperationalError):
            of_files = (
                "SELECT content, side FROM rows WHERE side NOT LIKE '%/thumbnail' AND side NOT LIKE '%/flags'"
            )
            rows += connection.execute(of_files).fetchall()  # if it has begun
    return rows


def own_lines(lines: Iterable[str]) -> list[str]:
    """Leave out what torchrun says."""
    return [line for line in lines if re.match("(error|warning|interrupted|skipped)", line)]


def n_from_cache(lines: list[str]) -> int:
    (line,) = (line for line in lines if "from the cache" in line)
    return int(line.split(" from the cache")[0].split()[-1])


@pytest.fixture
def mixed(pairs):
    """`pairs` and more: files that are skipped, without a partner, and the same; captions, one too long."""
    for i in range(9):
        write_audio(pairs / "audio" / f"n{i}.wav", tone(1, 300 + 20 * i))
        shutil.copy(pairs / "video" / "a.mp4", pairs / "video" / f"n{i}.mp4")
    (pairs / "audio" / "n3.wav").write_text("not a sound")
    (pairs / "video" / "n8.mp4").write_text("not a video")
    (pairs / "video" / "c.mp4").unlink()
    texts = {"a": "a note", "c": "no picture", "n2": "long " * 99, "n8": "a note", "z": "of nothing"}
    lines = [json.dumps({"name": name, "caption": text}) for name, text in texts.items()]
    (pairs / "captions.jsonl").write_text("\n".join(lines))
    return pairs


def test_the_outputs_are_the_same_for_one_and_three(mixed):
    """Byte for byte; and the first process alone says what all have to say, once."""
    options = ("--retrieval_mode", "--captions", "captions.jsonl")
    assert Program(mixed, *options, "--output_dir", "out1").wait()[0] == 0
    status, out, err = Processes(mixed, 3, *options, "--output_dir", "out3").wait()
    assert status == [0, 0, 0], err
    assert out[1:] == err[1:] == [[], []]
    assert out[0][-1] == (
        "evaluated 10 pairs, skipped 2 files, unmatched 1 files; 4 captions, 1 unmatched, 8 pairs without one"
    )
    assert "warning: 1 captions are too long, and truncated: n2" in err[0]
    (line,) = (line for line in err[0] if "from the cache" in line)
    assert re.match(r"\d+ files and 3 captions in [\d.]+ s by 3 processes, \d+ from the cache: ", line)
    skipped = [line for line in err[0] if line.startswith("warning: skipped")]
    assert sorted(line.split()[4].rstrip(":") for line in skipped) == ["audio/n3.wav", "video/n8.mp4"]
    assert outputs(mixed / "out3") == outputs(mixed / "out1")
    metrics = json.loads((mixed / "out3" / "metrics.json").read_text())
    assert [failure["path"] for failure in metrics["failures"]] == ["audio/n3.wav", "video/n8.mp4"]
    parts = sorted(path.name for path in (mixed / "out3").glob("*.sqlite"))
    assert parts == ["embeddings.1.sqlite", "embeddings.2.sqlite", "embeddings.sqlite"]


def test_what_several_have_embedded_is_found_by_any_number(pairs):
    assert Processes(pairs, 3).wait()[0] == [0, 0, 0]
    kept = sorted(cached(pairs / "outputs"))
    assert len(kept) == len(set(kept)) == 8
    assert n_from_cache(Program(pairs).wait()[2]) == 8
    assert n_from_cache(Processes(pairs, 2).wait()[2][0]) == 8
    assert sorted(cached(pairs / "outputs")) == kept


def test_without_a_cache_nothing_is_kept(pairs):
    """Not even what a job left that was killed, which must not be found either."""
    assert Program(pairs, "--no_cache", "--output_dir", "alone").wait()[0] == 0
    (pairs / "outputs").mkdir()
    for name in (".no_cache.sqlite", ".no_cache.1.sqlite"):
        (pairs / "outputs" / name).write_text("left")
    status, _, err = Processes(pairs, 2, "--no_cache").wait()
    assert status == [0, 0]
    assert n_from_cache(err[0]) == 0
    assert not any("set aside" in line for line in err[0])
    assert outputs(pairs / "outputs") == outputs(pairs / "alone")
    names = [path.name for path in (pairs / "outputs").iterdir()]
    assert {name for name in names if name.startswith(".") or "sqlite" in name} == {".written.json"}


def test_what_a_process_could_not_keep_is_embedded_again(pairs):
    """The second process's part of the cache leads where nothing can be written."""
    assert Program(pairs, "--output_dir", "alone").wait()[0] == 0
    (pairs / "outputs").mkdir()
    (pairs / "outputs" / "embeddings.1.sqlite").symlink_to(pairs / "nowhere" / "x.sqlite")
    status, _, err = Processes(pairs, 2).wait()
    assert status == [0, 0], err
    (pairs / "outputs" / "embeddings.1.sqlite").unlink()
    assert outputs(pairs / "outputs") == outputs(pairs / "alone")
    again = "warning: 4 files are not in the caches of the other processes; embedding them again"
    assert again in err[0]


def job_with_all_but_one_embedded(pairs, *argv):
    """A job of two processes: the first is done with its share, the second reads a sound of ten hours."""
    add_slow_sound(pairs)
    job = Processes(pairs, 2, "--batch_size", "1", *argv)
    job.programs[1].reader_of(pairs / "audio" / "z.wav")
    while len(cached(pairs / "outputs")) < 10:
        job.programs[0].process.join(0.1)
        assert job.programs[0].process.is_alive()
    return job


def test_a_process_that_dies_ends_the_job_and_what_is_embedded_is_kept(pairs):
    job = job_with_all_but_one_embedded(pairs)
    job.programs[1].process.kill()
    status, out, err = job.programs[0].wait()
    assert (status, out) == (1, [])
    assert err[-1] == f"error: another process of the job is gone; {GO_ON}"
    (pairs / "audio" / "z.wav").unlink()
    write_audio(pairs / "audio" / "z.wav", tone(1))
    status, out, err = Program(pairs).wait()
    assert (status, n_from_cache(err)) == (0, 10)


def test_ctrl_c_stops_a_job_that_waits(pairs):
    """The first process is done with its share, and waits for the second, whose reader reads."""
    job = job_with_all_but_one_embedded(pairs, "--num_workers", "1")
    for program in job.programs:
        os.kill(program.process.pid, signal.SIGINT)
    status, out, err = job.programs[0].wait()
    assert (status, out) == (130, [])
    kept = "interrupted: 6 of 6 files of the first process are embedded and kept in outputs/embeddings.sqlite"
    assert err[-1] == f"{kept}; the same command goes on from there"
    job.programs[1].process.join(60)
    assert not job.programs[1].process.is_alive()


def test_what_cannot_start_ends_the_job_in_one_line(pairs):
    (pairs / "file").touch()
    job = torchrun(pairs, 2, "--output_dir", "file")
    status, out, err = job.wait()
    assert (status, out) == (1, [])
    lines, message = own_lines(err), "error: file: cannot write to this directory"
    assert sum(line.startswith(message) for line in lines) == 1
    assert all(line.startswith((message, "interrupted")) for line in lines), lines


def test_a_checkpoint_that_is_not_there_is_said_once(pairs):
    job = Processes(pairs, 2, checkpoint=Path("none.pth"))
    status, out, err = job.programs[0].wait()
    assert (status, out) == (1, [])
    (line,) = own_lines(err)
    assert line.startswith("error: none.pth: No such file or directory; name a checkpoint")
    job.programs[1].process.kill()  # it waits for torchrun to end it
    job.programs[1].process.join()
    assert (pairs / job.programs[1].logs[1]).read_text() == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch_size", "0"], "error: argument --batch_size: must be"),
        (["--shard", "1/2"], "error: argument --shard: not allowed under torchrun"),
    ],
)
def test_wrong_usage_is_said_in_one_line(pairs, argv, message):
    """By the first process; another one leaves it to that."""
    job = address() | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    status, out, err = Program(pairs, *argv, environment=job | {"RANK": "0", "LOCAL_RANK": "0"}).wait()
    assert (status, out) == (2, [])
    (line,) = err
    assert line.startswith(message)


def test_a_process_that_does_not_see_the_directory_is_named(pairs):
    """As on a host with a disk of its own at that path."""
    need_mounts()
    (pairs / "outputs").mkdir()
    environment = address() | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "GROUP_RANK": "0",
    }
    first = Program(pairs, environment=environment | {"RANK": "0"})
    other = Program(
        pairs,
        environment=environment | {"RANK": "1"},
        inside=partial(own_mounts, "mount -t tmpfs none outputs"),
    )
    status, out, err = first.wait()
    assert (status, out) == (1, [])
    assert re.fullmatch(
        r"error: outputs: process 1 on \S+ does not see what the first process writes there; "
        r"name a directory that all hosts share with --output_dir or --cache",
        err[-1],
    )
    assert other.wait() == (1, [], [])


def processes_of(pid: int) -> dict[int, int]:
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


def add_slow_sound(pairs: Path) -> None:
    """Add the pairs e and z, the sound of z the largest of six: the last one of the second process's three.

    While it is read, eight files have an embedding: all of the first process, and two sounds of the second.
    """
    write_audio(pairs / "audio" / "e.wav", tone(1, 1000))
    silence(pairs / "audio" / "z.wav", LONG)
    for i, name in enumerate("ez", 4):
        write_video(pairs / "video" / f"{name}.mp4", [picture(20 * i + k % 5) for k in range(20)])


@pytest.mark.parametrize("n_hosts", [1, 2])
def test_torchrun_starts_all_again_and_nothing_is_embedded_twice(pairs, n_hosts):
    """When a process is killed; it reads a sound of ten hours, and by then others are kept.

    Of several hosts the one whose process it was counts a restart, and the other does not.
    """
    add_slow_sound(pairs)
    argv = ("--batch_size", "1", "--no_html")
    where = ":".join(address().values())
    launcher = ("--max_restarts", "1", "--nnodes", f"{n_hosts}", "--rdzv_backend", "c10d")
    launcher += ("--rdzv_endpoint", where, "--rdzv_id", "job")
    jobs = [torchrun(pairs, 2 // n_hosts, *argv, launcher=launcher) for _ in range(n_hosts)]
    while len(cached(pairs / "outputs")) < 8:
        jobs[0].process.join(0.1)
        for job in jobs:
            assert job.process.is_alive(), job.wait()
    (pairs / "audio" / "z.wav").unlink()
    write_audio(pairs / "audio" / "z.wav", tone(1))
    os.kill(processes_of(os.getpid())[1], signal.SIGKILL)
    status, out, err = zip(*(job.wait() for job in jobs), strict=True)
    assert status == (0,) * n_hosts, err
    (line,) = own_lines(chain(*err))
    assert line.startswith(("interrupted: ", "error: another process of the job is gone"))
    assert list(chain(*out))[-1] == "evaluated 6 pairs, skipped 0 files, unmatched 0 files"
    rows = cached(pairs / "outputs")
    assert len(rows) == len(set(rows)) == 12


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_are_balanced_and_whole(n):
    sizes = np.random.default_rng(0).gamma(0.5, size=1000)
    order = np.argsort(sizes, kind="stable")
    shares = [share_of(order, i, n) for i in range(n)]
    assert sorted(k for share in shares for k in share) == list(range(1000))
    for costs in (sizes, np.sqrt(sizes), np.ones(1000)):  # whatever a byte costs, and a file
        sums = [costs[share].sum() for share in shares]
        assert max(sums) - min(sums) <= costs.max()


def test_an_error_of_another_process_alone_is_said(pairs):
    """A directory that one host does not have; the first process waits, and is ended by torchrun."""
    environment = address() | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    other = Program(
        pairs,
        inputs=("--audio_dir", "nowhere", "--video_dir", "video"),
        environment=environment | {"RANK": "1", "LOCAL_RANK": "1"},
    )
    status, out, err = other.wait()
    assert (status, out) == (2, [])
    (line,) = err
    assert line.startswith("process 1: ")
    assert line.endswith("argument --audio_dir: nowhere: no such directory")


def test_processes_that_cannot_meet_say_so(pairs):
    environment = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "RANK": "0",
        "LOCAL_RANK": "0",
    }
    status, out, err = Program(pairs, environment=environment).wait()
    assert (status, out) == (1, [])
    assert err[-1].startswith("error: cannot meet the other processes of the job (")
    assert "MASTER_ADDR" in err[-1]


# Shares of an array


def test_shards_fill_the_cache_and_the_plain_command_finds_all(mixed):
    """Two at once, one after them, one again; the outputs are those of a run without shards."""
    assert Program(mixed, "--output_dir", "alone").wait()[0] == 0
    shards = [Program(mixed, "--shard", f"{i}/3") for i in (3, 1)]
    lines = [shard.wait() for shard in shards] + [Program(mixed, "--shard", "2/3").wait()]
    pattern = r"shard (\d)/3: (\d+) files embedded, (\d+) found in the cache, (\d+) skipped"
    counts = [list(map(int, re.fullmatch(pattern, out[0]).groups())) for _, out, _ in lines]
    assert [status for status, _, _ in lines] == [0, 0, 0]
    assert [count[0] for count in counts] == [3, 1, 2]
    assert sum(count[3] for count in counts) == 2
    assert sum(sum(count[1:]) for count in counts) == 24
    assert sorted(path.name for path in (mixed / "outputs").iterdir()) == [
        f"embeddings.{i}-of-3.sqlite" for i in (1, 2, 3)
    ]
    (again,) = Program(mixed, "--shard", "2/3").wait()[1]
    assert again.startswith("shard 2/3: 0 files embedded, ")
    status, _, err = Program(mixed).wait()
    assert (status, n_from_cache(err)) == (0, 22)
    assert outputs(mixed / "outputs") == outputs(mixed / "alone")


# Inside a job of somebody else


def test_the_function_never_looks_at_torchruns_environment(pairs, small_checkpoint, monkeypatch):
    """So that one process of a training run, or each by itself, can evaluate; more than once."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        results = batch_inference_av_consistency(
            pairs / "audio", pairs / "video", device="cpu", checkpoint=small_checkpoint, num_workers=1
        )
        assert results["metrics"]["counts"]["pairs"] == 4


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
        skip(f"no network namespaces ({e})")
    try:
        ends = ("netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        ip("link", "add", "wire", *ends)
        for i, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", "wire")
            for link in ("lo", "wire"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


@contextmanager
def on_host(name: str) -> Iterator[None]:
    """Move this process to a host."""
    with open(f"/run/netns/{name}") as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
    yield


def start_on(host: str, number: int, folder: Path, *argv: str) -> Program:
    """Start the only process of a host, as torchrun would."""
    job = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29400", "WORLD_SIZE": "2", "RANK": str(number - 1)}
    job |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(number - 1)}
    job |= {"GLOO_SOCKET_IFNAME": "wire"}
    return Program(folder, *argv, environment=job, inside=partial(on_host, host))


def test_two_hosts_give_what_one_gives(pairs, hosts):
    jobs = [start_on(host, i, pairs, "--no_html") for i, host in enumerate(hosts, 1)]
    status, out, err = zip(*(job.wait() for job in jobs), strict=True)
    assert status == (0, 0), err
    assert Program(pairs, "--output_dir", "alone", "--no_html").wait()[0] == 0
    assert outputs(pairs / "outputs") == outputs(pairs / "alone")
    assert sorted(sum("evaluated 4 pairs" in line for line in lines) for lines in out) == [0, 1]


# GPUs


@pytest.mark.parametrize(
    ("n_gpus", "device", "expected"),
    [
        (4, "cuda:0", "cuda:1"),  # that of its number
        (1, "cuda:0", "cuda:0"),  # the launcher lets each process see one
        (4, "cuda:3", "cuda:3"),  # asked for
        (0, "cuda:0", "cuda:0"),
    ],
)
def test_a_process_takes_the_gpu_of_its_number(monkeypatch, n_gpus, device, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert own_gpu(Job(1, 2, 1, 2), device) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EvaluationError, match="3 processes on a host with 2 GPUs; use --nproc_per_node 2"):
        own_gpu(Job(0, 3, 0, 3), "cuda:0")
