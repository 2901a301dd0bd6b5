"""Worker processes that may crash, hang or run out of memory: each time only the task at hand is lost.

A task has one result or several, which are handed over as they come.

    main process ── one thread and one socket for each worker ── worker
          └── starter ── server of each pool, which forks the workers and reports how they ended

starter.py says why workers are not forks of the main process.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imagebind.reading.starter import REQUEST, Starter, receive, receive_bytes, send, socket_pair


class WorkersError(RuntimeError):
    """No worker process can be started."""


@dataclass(frozen=True)
class Lost:
    """The result of a task that its worker did not survive."""

    reason: str


@dataclass(frozen=True)
class Worker:
    """A worker process, and the socket to it."""

    pid: int
    socket: socket.socket


class Workers:
    """A pool of processes that do one task at a time each.

    Args:
        work: "module:function", imported by the starter; a worker calls function(context, task) and sends
            back the pickled results that it yields.
        n_workers: processes, of which no more are started than there are tasks.
        timeout_seconds: for one result; a worker that takes longer is killed.
        memory_bytes: that a worker may allocate, beyond what it has at its start.
    """

    def __init__(self, work: str, n_workers: int, timeout_seconds: float, memory_bytes: int):
        self.n_workers = n_workers
        self.timeout_seconds = timeout_seconds
        self._lock = threading.Lock()  # of the socket to the server, and of the tasks
        self._room = threading.Semaphore(0)  # for results not asked for yet
        self._threads = []
        self._closing = False
        try:
            self._control, theirs = socket_pair()
            with theirs:
                Starter.start_server(theirs, work, memory_bytes)
        except OSError as e:
            raise no_process(e) from e

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def map(
        self,
        context: Any,
        tasks: Sequence[Any],
        ahead: int,
        finish: Callable[[Any], Any] | None = None,
        fall_back: Callable[[Any], Any] = lambda task: None,
    ) -> Iterator[tuple[Any, Any]]:
        """Begin to do tasks, and yield (task, result) in the order of completion; may be called once.

        The last result of a task whose worker was lost is a Lost.

        Args:
            context: passed to `work` with every task.
            tasks: to be done.
            ahead: how many results may be computed before they are asked for.
            finish: applied to each result in a thread.
            fall_back: a task whose worker was lost -> a task to do instead, or None.

        Raises:
            WorkersError: no process can be started.
            PackageError: a worker lacks a package.
        """
        self.n_workers = max(1, min(self.n_workers, len(tasks)))
        done = queue.SimpleQueue()
        self._room.release(ahead)
        args = (context, iter(tasks), done, finish, fall_back)
        self._threads = [
            threading.Thread(target=self._drive_worker, args=args, daemon=True) for _ in range(self.n_workers)
        ]
        for thread in self._threads:
            thread.start()
        return self._results(done)

    def _drive_worker(
        self,
        context: Any,
        tasks: Iterator[Any],
        done: queue.SimpleQueue,
        finish: Callable[[Any], Any] | None,
        fall_back: Callable[[Any], Any],
    ) -> None:
        """Hand tasks to one worker, and start another when it is lost."""
        worker = task = None
        try:
            self._room.acquire()
            while True:
                if task is None:
                    with self._lock:
                        task = next(tasks, None)
                if task is None or self._closing:
                    break
                worker = worker or self._start(context)
                for result in self._do(worker, task):
                    if isinstance(result, Lost):
                        worker = None
                    elif finish is not None:
                        result = finish(result)
                    done.put((task, result))
                    self._room.acquire()  # for the next result, of this task or another
                    if self._closing:  # results may lie ready in the socket, for which there is no room
                        return
                task = fall_back(task) if worker is None else None
        except Exception as e:
            done.put(e)
        finally:
            if worker is not None:
                worker.socket.close()
            self._room.release()  # the next thread finds no task either
            done.put(None)

    def _results(self, done: queue.SimpleQueue) -> Iterator[tuple[Any, Any]]:
        n_active = self.n_workers
        while n_active:
            item = done.get()
            if item is None:
                n_active -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
                self._room.release()

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        self._closing = True
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)  # the server kills its workers: no thread waits
        self._room.release(self.n_workers)
        for thread in self._threads:
            thread.join()
        with self._control, suppress(OSError):
            while self._threads and self._control.recv(REQUEST.size):  # until the server has left
                pass

    def _start(self, context: Any) -> Worker:
        try:
            ours, theirs = socket_pair()
        except OSError as e:
            raise no_process(e) from e
        try:
            with self._lock:
                with theirs:  # closed at once: a fork of this process would hold it open
                    socket.send_fds(self._control, [REQUEST.pack(0)], [theirs.fileno()])
                pid = self._answer()
            send(ours, context)
        except (OSError, EOFError) as e:
            ours.close()
            raise no_process(e) from e
        return Worker(pid, ours)

    def _answer(self) -> int:
        (answer,) = REQUEST.unpack(receive_bytes(self._control, REQUEST.size))
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def _do(self, worker: Worker, task: Any) -> Iterator[Any]:
        reason = None
        try:
            send(worker.socket, task)
            while True:
                is_result, result = receive(worker.socket, time.monotonic() + self.timeout_seconds)
                if not is_result:
                    break
                yield result
        except TimeoutError:
            reason = f"took more than {self.timeout_seconds:g} s (--timeout)"
        except Exception:  # its socket is closed, or its message is garbage
            if self._closing:
                raise
        else:
            if result is not None:
                raise result
            return
        try:
            with worker.socket, self._lock:
                if self._closing:  # the server ends it
                    return
                # It was not waited for yet, so its pid is that of no other process.
                os.kill(worker.pid, signal.SIGKILL)
                self._control.sendall(REQUEST.pack(worker.pid))
                status = self._answer()
        except (OSError, EOFError) as e:  # the server is gone
            raise no_process(e) from e
        yield Lost(reason or describe_end(status))


def no_process(error: Exception) -> WorkersError:
    return WorkersError(f"no process can be started to read files ({error})")


def describe_end(status: int) -> str:
    """Say how a process ended, by its wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"its process ended with status {code}"
    name = signal.Signals(-code).name
    return f"its process was killed ({name})" if name == "SIGKILL" else f"its process crashed ({name})"
