"""The program that starts worker processes, and what it and they say to each other and to the main process.

It imports once what workers need, and is kept for later pools:

    main process -> starter -> server of each pool -> workers

A process with threads, a GPU context and an open database is not safe to fork: its threads may hold locks of
any kind, which nobody gives back in the fork. So the starter is a program of its own, without threads. All of
them end with the main process, also if that is killed.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import pickle
import pkgutil
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from imagebind.packages import PackageError

# To the server: 0 and a socket to start a worker, or the pid of a worker to wait for
REQUEST = struct.Struct("q")
SIZE = struct.Struct("Q")  # before each message
STARTER_SOCKET = 3  # its number in the starter; stdin, stdout and stderr are nothing there
MAX_REQUEST = 1 << 12  # bytes of a request to it
PARENT_DIED = signal.SIGUSR1  # sent to the server when the starter is gone
PR_SET_PDEATHSIG = 1  # of prctl(2)
CAN_LIMIT_MEMORY = sys.platform == "linux"
MAX_DESCRIPTORS = 1 << 20  # that are closed one by one where the system states no limit


class Starter:
    """The starter of this process: a program that forks the server of each pool."""

    _lock = threading.Lock()
    _running: Starter | None = None

    def __init__(self):
        self.socket, theirs = socket_pair()
        null = above_standard(os.open(os.devnull, os.O_RDWR))
        path = [os.path.abspath(folder) for folder in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from {__name__} import start_servers as start; "
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


def start_servers(main_process: int) -> None:
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
        context = receive(tasks)
        while True:
            for result in work(context, receive(tasks)):
                send(tasks, (True, result))
            send(tasks, (False, None))
    except EOFError:
        os._exit(0)
    except PackageError as e:  # the fault of no file
        send(tasks, (False, e))
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


def send(to: socket.socket, message: Any) -> None:
    """Send a message to a worker, or to the main process."""
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    to.settimeout(None)
    to.sendall(SIZE.pack(len(content)))
    to.sendall(content)


def receive(source: socket.socket, deadline: float | None = None) -> Any:
    """Wait for a message.

    Args:
        deadline: by time.monotonic(); None is no limit.

    Raises:
        TimeoutError: it has not come whole by then.
        EOFError: the other end is closed.
    """
    (size,) = SIZE.unpack(receive_bytes(source, SIZE.size, deadline))
    return pickle.loads(receive_bytes(source, size, deadline))


def receive_bytes(source: socket.socket, size: int, deadline: float | None = None) -> bytearray:
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
