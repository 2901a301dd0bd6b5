"""Worker processes that may crash, hang or run out of memory: each time only the task at hand is lost.

A task has one result or several, which are handed over as they come.

    main process ── one thread and one socket for each worker ── worker
          └── starter ── server of each pool, which forks the workers and reports how they ended

A process with threads, a GPU context and an open database is not safe to fork: its threads may hold locks of
any kind, which nobody gives back in the fork. So the starter is a program of its own, without threads. It
imports once what workers need, and is kept for later pools. All of them end with the main process, also if
that is killed.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import pickle
import pkgutil
import queue
import resource
import select
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
STARTER_SOCKET = 3  # its number in the starter; stdin, stdout and stderr are nothing there
MAX_REQUEST = 1 << 12  # bytes of a request to it
PARENT_DIED = signal.SIGUSR1  # sent to the server when the starter is gone
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
            _send(ours, context)
        except (OSError, EOFError) as e:
            ours.close()
            raise no_process(e) from e
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


class Starter:
    """The starter of this process: a program that forks the server of each pool."""

    _lock = threading.Lock()
    _running: Starter | None = None

    def __init__(self):
        self.socket, theirs = socket_pair()
        null = above_standard(os.open(os.devnull, os.O_RDWR))
        path = [os.path.abspath(folder) for folder in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from {__name__} import _start_servers as start; "
        code += f"start({os.getpid()})"
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(STARTER_SOCKET)]
        actions.append((os.POSIX_SPAWN_DUP2, theirs.fileno(), STARTER_SOCKET))
        try:
            self.pid = os.posix_spawn(
                sys.executable, [sys.executable, "-c", code], os.environ, file_actions=actions, setsigmask=()
            )
        except OSError:
            self.socket.close()
            raise
        finally:
            os.close(null)
            theirs.close()

    @classmethod
    def start_server(cls, control: socket.socket, work: str, memory_bytes: int) -> None:
        """Have a server started, by a new starter where there is none.

        Raises:
            OSError: no process can be started.
        """
        request, folder = pickle.dumps((work, memory_bytes)), os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
        try:
            with cls._lock:
                if cls._running is not None:
                    try:
                        socket.send_fds(cls._running.socket, [request], [control.fileno(), folder])
                        return
                    except OSError:  # somebody has killed it
                        cls._running.end()
                cls._running = cls()
                socket.send_fds(cls._running.socket, [request], [control.fileno(), folder])
        finally:
            os.close(folder)

    def end(self) -> None:
        """End it with its servers."""
        type(self)._running = None
        self.socket.close()
        with suppress(ProcessLookupError, ChildProcessError):  # it may not be ours to wait for
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    @classmethod
    def end_running(cls) -> None:
        with cls._lock:
            if cls._running is not None:
                cls._running.end()

    @classmethod
    def forget(cls) -> None:
        """Leave the starter to the process that this one is a fork of."""
        cls._lock = threading.Lock()
        if cls._running is not None:
            cls._running.socket.close()
            cls._running = None


atexit.register(Starter.end_running)
os.register_at_fork(after_in_child=Starter.forget)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Make two connected sockets, which are not taken for stdin, stdout or stderr where these are closed."""
    pair = socket.socketpair()
    return tuple(socket.socket(fileno=above_standard(one.detach())) for one in pair)


def above_standard(descriptor: int) -> int:
    """Give a descriptor a number above those of stdin, stdout, stderr and the starter's socket."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STARTER_SOCKET + 1)
    os.close(descriptor)
    return moved


def no_process(error: Exception) -> WorkersError:
    return WorkersError(f"no process can be started to read files ({error})")


def describe_end(status: int) -> str:
    """Say how a process ended, by its wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"its process ended with status {code}"
    name = signal.Signals(-code).name
    return f"its process was killed ({name})" if name == "SIGKILL" else f"its process crashed ({name})"


def _start_servers(main_process: int) -> None:
    """Be the starter: fork servers on request, until the main process ends."""
    _close_inherited_files()
    os.setsid()  # signals of the terminal are for the main process, which decides
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for servers
    requests = socket.socket(fileno=STARTER_SOCKET)
    sources = [requests]
    with suppress(AttributeError, OSError):  # Linux. A fork of the main process may hold the socket open too
        sources.append(os.pidfd_open(main_process))
    while select.select(sources, [], [])[0] == [requests]:
        message, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST, 2)
        if not message:
            break
        work, memory_bytes = pickle.loads(message)
        with suppress(Exception):  # which the server's own import meets again
            pkgutil.resolve_name(work)
        if os.fork() == 0:
            try:
                requests.close()
                for pidfd in sources[1:]:
                    os.close(pidfd)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control, folder = descriptors
                os.fchdir(folder)  # where the main process is now
                os.close(folder)
                _serve(socket.socket(fileno=control), work, memory_bytes)
            finally:
                os._exit(1)
        for descriptor in descriptors:
            os.close(descriptor)
    os._exit(0)


def _serve(control: socket.socket, work: str, memory_bytes: int) -> None:
    """Fork workers on request and report how they ended; when the socket closes, kill those left."""
    pids = set()

    def leave(*_) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        os._exit(0)

    signal.signal(PARENT_DIED, leave)
    _end_with_parent(PARENT_DIED)
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


def _close_inherited_files() -> None:
    """Close what the main process leaves open to programs: a lock held there would outlive it."""
    most = os.sysconf("SC_OPEN_MAX")
    os.closerange(STARTER_SOCKET + 1, most if 0 < most < MAX_DESCRIPTORS else MAX_DESCRIPTORS)


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
