"""The processes of one job, on one host or several, as torchrun starts them.

They agree through torchrun's key-value store and send rows through torch.distributed (gloo). A process
that is gone without a word, with its host or its network, is missed after SILENCE_SECONDS: each keeps a
counter in the store going, and who waits for another watches that one's.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np

BEAT_SECONDS = 2
SILENCE_SECONDS = 30
GO_ON = "the same command goes on from what is kept"
LIMIT = timedelta(seconds=2 * SILENCE_SECONDS)  # of one exchange


class RanksError(RuntimeError):
    """The job cannot go on; the message is one line that says why.

    Args:
        is_said: by another process.
    """

    def __init__(self, message: str, is_said: bool = False):
        super().__init__(message)
        self.is_said = is_said


@dataclass
class Ranks:
    """This process among those of the job."""

    rank: int
    n_ranks: int
    local_rank: int  # on this host
    n_local: int
    host: int  # number of it
    store: Any = None
    n_told: Counter = field(default_factory=Counter)  # stage -> how often it was gone through
    counts: dict[str, Any] = field(default_factory=dict)  # told to the others with each beat; plain values
    heard: float = 0.0  # when the store last answered
    stopped: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of_environment(cls) -> Ranks | None:
        """Give what torchrun says of this process; None where it runs by itself."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        if not all(name in os.environ for name in names) or os.environ["WORLD_SIZE"] == "1":
            return None
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Ranks:
        """Meet the others.

        The store may still hold what processes said that a restart has replaced, so a process counts as
        here when its word changes, and what follows goes by a name that is of these processes alone.
        """
        import torch.distributed as dist

        try:
            store, _, _ = next(dist.rendezvous("env://", timeout=LIMIT))
            store.set_timeout(LIMIT)
            session = self._meet(store, uuid.uuid4().hex)
        except (RuntimeError, ValueError, OSError) as e:
            if isinstance(e, RanksError):
                raise
            raise RanksError(f"cannot meet the other processes ({first_line(e)})") from e
        self.store = dist.PrefixStore(session, store)
        self.heard = time.monotonic()
        for work in (self._beat, self._watch):
            threading.Thread(target=work, daemon=True).start()
        return self

    def _meet(self, store: Any, name: str) -> str:
        """Give the name of the meeting, which is that of the first process, when all are here."""
        seen: dict[int, bytes] = {}  # rank -> its last word
        names: dict[int, str] = {}  # of those that are here
        began = time.monotonic()
        n = 0
        while True:
            n += 1
            store.set(f"here/{self.rank}", f"{name} {n}")
            if self.is_first:
                for rank in range(self.n_ranks):
                    word = store.get(f"here/{rank}") if store.check([f"here/{rank}"]) else None
                    if word != seen.setdefault(rank, word):
                        names[rank] = word.decode().split()[0]
                        seen[rank] = word
                if len(names) == self.n_ranks:
                    store.set("all", " ".join([name, *names.values()]))
                    return name
            elif store.check(["all"]) and name in (words := store.get("all").decode().split()):
                return words[0]
            if time.monotonic() - began > 4 * SILENCE_SECONDS:
                raise RanksError("not all processes have come")
            time.sleep(0.1)

    def connect(self) -> None:
        """Make ready to send data; starts threads, after which this process should not be forked."""
        import torch.distributed as dist

        with touch():
            dist.init_process_group(
                "gloo", store=self.store, rank=self.rank, world_size=self.n_ranks, timeout=LIMIT
            )

    def __exit__(self, *exc_info: object) -> None:
        self.stopped.set()

    def _beat(self) -> None:
        n = 0
        while not self.stopped.wait(BEAT_SECONDS):
            n += 1
            try:
                self.store.set(f"beat/{self.rank}", pickle.dumps((n, self.counts)))
                self.store.get(f"beat/{self.rank}")  # waits for an answer, which set does not
            except (RuntimeError, ValueError):  # whoever waits for somebody will see it
                return
            self.heard = time.monotonic()

    def _watch(self) -> None:
        """End the process when the store is out of reach: who waits for its answer waits for ever."""
        while not self.stopped.wait(BEAT_SECONDS):
            if time.monotonic() - self.heard > 2 * SILENCE_SECONDS:
                message = f"error: process {self.rank} has lost touch with the others; {GO_ON}\n"
                os.write(2, message.encode())
                os._exit(1)

    def others(self) -> list[dict[str, Any]]:
        """Give the `counts` of the other processes, as they were a moment ago."""
        with touch():
            beats = [self._beat_of(rank) for rank in range(self.n_ranks) if rank != self.rank]
        return [pickle.loads(beat)[1] for beat in beats if beat is not None]

    def _beat_of(self, rank: int) -> bytes | None:
        key = f"beat/{rank}"
        return self.store.get(key) if self.store.check([key]) else None

    def tell_all(
        self, stage: str, value: Any = None, meanwhile: Callable[[], None] | None = None
    ) -> list[Any]:
        """Tell all others a value, and wait for theirs.

        Args:
            stage: all go through the same ones.
            value: small.
            meanwhile: what to do now and then.

        Returns:
            the values of all, in the order of ranks.

        Raises:
            RanksError: one of them cannot go on, or is gone.
        """
        with touch():
            self.n_told[stage] += 1
            key = f"{stage} {self.n_told[stage]}"
            self.store.set(f"{key}/{self.rank}", pickle.dumps(value))
            return [self._wait_for(f"{key}/{rank}", rank, meanwhile) for rank in range(self.n_ranks)]

    def fail(self, message: str) -> bool:
        """Tell all others that the job cannot go on; say whether this is the first to do so."""
        own = f"{self.rank} {message}"
        if self.store is None:
            return True
        try:
            return self.store.compare_set("failed", "", own).decode() == own
        except (RuntimeError, ValueError):
            return True  # as far as anybody knows

    def from_first_of_host(self, stage: str, value: Any = None) -> Any:
        """Give what the first process of this host says."""
        key = f"{stage}/host {self.host}"
        with touch():
            if self.local_rank == 0:
                self.store.set(key, pickle.dumps(value))
            return self._wait_for(key, self.rank - self.local_rank)

    def _wait_for(self, key: str, rank: int, meanwhile: Callable[[], None] | None = None) -> Any:
        seen, since = None, time.monotonic()
        while not self.store.check([key]):
            beat = self._beat_of(rank)
            if self.store.check(["failed"]):
                raise RanksError(self.store.get("failed").decode().partition(" ")[2], is_said=True)
            if beat != seen:
                seen, since = beat, time.monotonic()
            if time.monotonic() - since > SILENCE_SECONDS:
                raise RanksError(f"process {rank} has not been heard of for {SILENCE_SECONDS} s; {GO_ON}")
            if meanwhile is not None:
                meanwhile()
            time.sleep(0.05)
        return pickle.loads(self.store.get(key))

    # Data, through collectives: all come to them within seconds, after a stage

    def from_first(self, value: Any = None) -> Any:
        """Give all what the first process has."""
        import torch.distributed as dist

        values = [value]
        with touch():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def to_first(self, values: Iterator[Any]) -> Iterator[Any]:
        """Send values one by one to the first process, which gets those of all others."""
        import torch.distributed as dist

        if not self.is_first:
            for value in (*values, None):
                with touch():
                    dist.send_object_list([value], dst=0)
            return
        for rank in range(1, self.n_ranks):
            while True:
                received = [None]
                with touch():
                    dist.recv_object_list(received, src=rank)
                if received[0] is None:
                    break
                yield received[0]

    def send_array(self, array: np.ndarray, rank: int) -> None:
        """Send an array from the first process to another."""
        import torch
        import torch.distributed as dist

        with touch():
            dist.send(torch.from_numpy(np.array(array)), dst=rank)

    def receive_array(self, shape: tuple[int, ...]) -> np.ndarray:
        import torch
        import torch.distributed as dist

        array = torch.empty(shape)
        with touch():
            dist.recv(array, src=0)
        return array.numpy()

    def broadcast_array(self, array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
        """Give all a float32 array of the first process."""
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(np.array(array)) if self.is_first else torch.empty(shape)
        with touch():
            dist.broadcast(tensor, src=0)
        return tensor.numpy()


@contextmanager
def touch() -> Iterator[None]:
    """Raise what store and collectives say of a connection that is gone as a RanksError."""
    try:
        yield
    except RanksError:
        raise
    except (RuntimeError, ValueError) as e:
        raise RanksError(f"lost touch with the other processes ({first_line(e)})") from e


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def share_of(sizes: np.ndarray, rank: int, n_ranks: int) -> list[int]:
    """Give the places of a list that are a rank's: dealt out by size, so that each gets as many of each.

    >>> sizes = np.array([1, 8, 9, 1, 1, 1])
    >>> [share_of(sizes, rank, 2) for rank in (0, 1)]
    [[0, 1, 4], [2, 3, 5]]
    """
    return np.sort(np.argsort(sizes, kind="stable")[rank::n_ranks]).tolist()
