"""Worker processes that may crash, hang or run out of memory: each time only the task at hand is lost.

A task has one result or several, which are handed over as they come.

    main process ── one thread and one socket for each worker ── worker
          └── server, which forks the workers and reports how they ended

A process with threads, a GPU context and an open database is not safe to fork. So a server is forked before
there are any, and does nothing but fork workers. Server and workers end with the main process, also if that
is killed.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import pkgutil
import queue
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagebind.packages import PackageError

REQUEST = struct.Struct(
    "q"
)  # to the server: 0 and a socket to start a worker, or the pid of a worker to wait for
SIZE = struct.Struct("Q")  # before each message
PARENT_DIED = signal.SIGUSR1  # sent to the server when the main process is gone
PR_SET_PDEATHSIG = 1  # of prctl(2)
CAN_LIMIT_MEMORY = sys.platform == "linux"
MAX_DESCRIPTORS = 1 << 20  # that are closed one by one where the system states no limit


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
        work: "module:function", imported by the server; a worker calls function(context, task) and sends back
            the pickled results that it yields.
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
        self._control, theirs = socket.socketpair()
        self._server = os.fork()
        if self._server == 0:
            try:
                self._control.close()
                _serve(theirs, work, memory_bytes)
            finally:
                os._exit(1)
        theirs.close()

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
        tasks, done = iter(tasks), queue.SimpleQueue()
        self._room.release(ahead)

        def serve_worker() -> None:
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
                    task = fall_back(task) if worker is None else None
            except Exception as e:
                done.put(e)
            finally:
                if worker is not None:
                    worker.socket.close()
                self._room.release()  # the next thread finds no task either
                done.put(None)

        self._threads = [threading.Thread(target=serve_worker, daemon=True) for _ in range(self.n_workers)]
        for thread in self._threads:
            thread.start()
        return self._results(done)

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
        if not self._threads:
            os.kill(self._server, signal.SIGKILL)  # no worker was started; the server may still be importing
        self._control.shutdown(socket.SHUT_RDWR)  # the server kills its workers: no thread waits
        with suppress(ChildProcessError):
            os.waitpid(self._server, 0)
        self._room.release(self.n_workers)
        for thread in self._threads:
            thread.join()
        self._control.close()

    def _start(self, context: Any) -> Worker:
        try:
            ours, theirs = socket.socketpair()
        except OSError as e:
            raise WorkersError(f"no process can be started to read files ({e})") from e
        try:
            with theirs, self._lock:
                socket.send_fds(self._control, [REQUEST.pack(0)], [theirs.fileno()])
                pid = self._answer()
            _send(ours, context)
        except (OSError, EOFError) as e:
            ours.close()
            raise WorkersError(f"no process can be started to read files ({e})") from e
        return Worker(pid, ours)

    def _answer(self) -> int:
        (answer,) = REQUEST.unpack(_receive_bytes(self._control, REQUEST.size))
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def _do(self, worker: Worker, task: Any) -> Iterator[Any]:
        reason = None
        try:
            _send(worker.socket, task)
            while True:
                is_result, result = _receive(worker.socket, time.monotonic() + self.timeout_seconds)
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
        with worker.socket, self._lock:
            os.kill(worker.pid, signal.SIGKILL)  # not yet waited for, so the pid cannot be another process
            self._control.sendall(REQUEST.pack(worker.pid))
            status = self._answer()
        yield Lost(reason or describe_end(status))


def describe_end(status: int) -> str:
    """Say how a process ended, by its wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"its process ended with status {code}"
    name = signal.Signals(-code).name
    return f"its process was killed ({name})" if name == "SIGKILL" else f"its process crashed ({name})"


def _serve(control: socket.socket, work: str, memory_bytes: int) -> None:
    """Fork workers on request and report how they ended; when the socket closes, kill those left."""
    pids = set()
    # What the main process left for its garbage collector must not be finalised here: a finaliser closes
    # descriptors by number, and here that number may be another file's by then.
    gc.freeze()
    _close_inherited_files(keep=control.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the main process decides

    def leave(*_) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        os._exit(0)

    signal.signal(PARENT_DIED, leave)
    _end_with_parent(PARENT_DIED)
    _silence()
    function = pkgutil.resolve_name(work)
    while True:
        message, sockets, _, _ = socket.recv_fds(control, REQUEST.size, 1)
        if not message:
            leave()
        (pid,) = REQUEST.unpack(message)
        if pid:
            pids.remove(pid)
            _, answer = os.waitpid(pid, 0)
        else:
            try:
                answer = os.fork()
            except OSError as e:
                answer = -e.errno
            if answer == 0:
                control.close()
                _work(socket.socket(fileno=sockets[0]), function, memory_bytes)
            if answer > 0:
                pids.add(answer)
            os.close(sockets[0])
        control.sendall(REQUEST.pack(answer))


def _work(tasks: socket.socket, work: Callable, memory_bytes: int) -> None:
    """Do tasks until there are no more."""
    signal.signal(PARENT_DIED, signal.SIG_DFL)
    _end_with_parent(signal.SIGKILL)
    _limit(memory_bytes)
    try:
        context = _receive(tasks)
        while True:
            for result in work(context, _receive(tasks)):
                _send(tasks, (True, result))
            _send(tasks, (False, None))
    except EOFError:
        os._exit(0)
    except PackageError as e:  # the fault of no file
        _send(tasks, (False, e))
        os._exit(1)
    except BaseException:
        os._exit(1)


def _end_with_parent(number: signal.Signals) -> None:
    """Ask for a signal when the parent dies; where there is none, its socket still ends."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _limit(memory_bytes: int) -> None:
    """Let allocations beyond a limit fail, and write no core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not CAN_LIMIT_MEMORY:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + memory_bytes
    most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with suppress(OSError):  # if memory runs out all the same, the kernel kills a worker first
        Path("/proc/self/oom_score_adj").write_text("500")


def _close_inherited_files(keep: int) -> None:
    """Close what the main process had open: a lock held there would outlive it."""
    os.closerange(3, keep)
    n_descriptors = os.sysconf("SC_OPEN_MAX")
    os.closerange(keep + 1, n_descriptors if 0 < n_descriptors < MAX_DESCRIPTORS else MAX_DESCRIPTORS)


def _silence() -> None:
    """Keep the messages of decoders off the terminal; a file's fault is reported as its reason."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)


def _send(to: socket.socket, message: Any) -> None:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    to.settimeout(None)
    to.sendall(SIZE.pack(len(content)))
    to.sendall(content)


def _receive(source: socket.socket, deadline: float | None = None) -> Any:
    (size,) = SIZE.unpack(_receive_bytes(source, SIZE.size, deadline))
    return pickle.loads(_receive_bytes(source, size, deadline))


def _receive_bytes(source: socket.socket, size: int, deadline: float | None = None) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        source.settimeout(left)
        n = source.recv_into(view)
        if not n:
            raise EOFError("the other end is closed")
        view = view[n:]
    return content
