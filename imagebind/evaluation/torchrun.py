"""The processes that torchrun started: how each knows its place among them, and meets the others."""

from __future__ import annotations

import io
import os
import pickle
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from imagebind.evaluation.errors import EvaluationError

LIMIT = timedelta(days=30)  # for the fastest process to wait for the slowest
CONNECT_LIMIT = timedelta(minutes=2)
MEET_LIMIT = timedelta(minutes=10)  # for all processes to have started
POLL_SECONDS = 0.1
REPORT_SECONDS = 5  # for the first process to say why the job ends


class JobError(EvaluationError):
    """The job cannot go on; the first process says why."""


class LostProcessError(JobError):
    """Another process of the job is gone."""

    def __init__(self):
        super().__init__("another process of the job is gone")


@dataclass(frozen=True)
class Job:
    """This process among those that torchrun started."""

    rank: int
    n_ranks: int
    local_rank: int  # on this host
    n_local: int

    @classmethod
    def from_torchrun(cls) -> Job | None:
        """Read torchrun's environment; None where this process runs by itself."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        values = [os.environ.get(name, "") for name in names]
        if not all(value.isdigit() for value in values) or values[1] == "1":
            return None
        return cls(*map(int, values[:4]))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def part(self) -> str:
        """Name of the part of the cache that this process writes to; the first writes to the main file."""
        return "" if self.is_first else str(self.rank)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Write nothing, and leave wrong usage to the first process to report, if that finds it too."""
        said = io.StringIO()
        try:
            with redirect_stderr(said), redirect_stdout(io.StringIO()):
                yield
        except SystemExit as e:
            if e.code:
                self.let_first_report()
                print(f"process {self.rank}: {said.getvalue().splitlines()[-1]}", file=sys.stderr)
            raise

    def let_first_report(self) -> None:
        """Give the first process time to say why the job ends; torchrun ends all when one process exits."""
        time.sleep(REPORT_SECONDS)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Meet the other processes.

        Raises:
            JobError: one of them is gone.
        """
        import torch.distributed as dist

        try:
            store, rank, n_ranks = next(dist.rendezvous("env://", timeout=CONNECT_LIMIT))
            store = dist.PrefixStore(self._meet(store), store)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=n_ranks, timeout=LIMIT)
        except (RuntimeError, ValueError) as e:
            reason = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
            raise JobError(f"cannot meet the other processes of the job ({reason})") from e
        try:
            yield
        finally:
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def _meet(self, store: Any) -> str:
        """Agree with the processes that are alive on a name for their keys in torchrun's store.

        After a restart the store still holds the addresses of processes that were killed. torchrun's count of
        restarts cannot be that name: each host counts for itself, and only what failed on it.
        """
        name = uuid.uuid4().hex
        if not self.is_first:
            store.set(f"name of {self.rank}", name)
            store.wait([f"answer to {name}"], MEET_LIMIT)
            session = store.get(f"answer to {name}").decode()
            store.add(f"processes of {session}", 1)
            return session
        deadline = time.monotonic() + MEET_LIMIT.total_seconds()
        while store.add(f"processes of {name}", 0) < self.n_ranks - 1:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all have come after {MEET_LIMIT}")
            for rank in range(1, self.n_ranks):
                if store.check([f"name of {rank}"]):
                    store.set(f"answer to {store.get(f'name of {rank}').decode()}", name)
            time.sleep(POLL_SECONDS)
        return name

    def scatter(self, values: list[Any] | None) -> Any:
        """Wait for all processes, and return the value that the first one has for this process.

        Args:
            values: for each process, in the first one; None in the others.
        """
        with self._together():
            if not self.is_first:
                return receive(0)
            for rank in range(1, self.n_ranks):
                send(values[rank], rank)
            return values[0]

    def gather(self, value: Any) -> list[Any] | None:
        """Wait for all processes, and return the values of all by rank to the first; None to the others."""
        with self._together():
            if self.is_first:
                return [value, *map(receive, range(1, self.n_ranks))]
            return send(value, 0)

    def all_gather(self, value: Any) -> list[Any]:
        """Wait for all processes, and return the values of all in the order of ranks."""
        values = self.gather(value)
        return self.scatter(self.is_first and [values] * self.n_ranks)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Begin when all processes do. Signals are handled while this process waits.

        Raises:
            LostProcessError: one of them is gone.
        """
        import torch.distributed as dist

        try:
            barrier = dist.barrier(async_op=True)
            while not barrier.is_completed():
                time.sleep(POLL_SECONDS)
            barrier.wait()
            yield
        except RuntimeError as e:  # of torch.distributed: a lost connection
            raise LostProcessError from e


# torch.distributed's own functions for objects give all values to all processes. And its threads hold their
# tensors for a moment longer: a group that ends then waits, in torch 2.5, for threads that wait for Python.


def send(value: Any, rank: int) -> None:
    """Send a value to the process of this rank, which receives it now."""
    import torch
    import torch.distributed as dist

    content = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    dist.send(torch.tensor([len(content)]), rank)
    dist.send(content, rank)


def receive(rank: int) -> Any:
    """Receive what the process of this rank sends now."""
    import torch
    import torch.distributed as dist

    dist.recv(size := torch.empty(1, dtype=torch.int64), rank)
    dist.recv(content := torch.empty(size.item(), dtype=torch.uint8), rank)
    return pickle.loads(content.numpy())
