"""Where weights come from: a file, the address of the released ones, or a repository of the Hugging Face Hub.

A download that breaks is taken up where it broke, by the same run or by the next one: what is there of it
stays beside its place as `.part`, and in `.part.version` what tells whether the server still has that file.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from imagebind import packages
from imagebind.models.checkpoints import CheckpointError, hash_and_check
from imagebind.spelling import option as spelled

RELEASED_URL = "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth"
ROOT = Path(__file__).resolve().parents[2]
# Below the project; of an installed package, which has none, below the working directory.
RELEASED_PATH = (
    (ROOT if (ROOT / "pyproject.toml").exists() else Path()) / ".checkpoints" / "imagebind_huge.pth"
)
HUB = "hf:"  # what a checkpoint of the Hub begins with
HUB_NAMES = ("model.safetensors", "imagebind_huge.pth", "pytorch_model.bin")  # of weights in a repository
TIMEOUT_SECONDS = 60  # for a connection that sends nothing
CHUNK_BYTES = 1 << 20
WAITS = (0, 1, 2, 4, 8, 16)  # seconds before each connection after one that brought nothing
BUSY = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)
MAX_CONNECTIONS = 1000  # for one file
NO_CHECKPOINT = "the answer is not a checkpoint"

log = logging.getLogger(__name__)


class BrokenConnectionError(OSError):
    """A connection that ended before the file did, or of which nothing can be used; another may do better."""


def find_checkpoint(checkpoint: str | os.PathLike | None = None) -> Path:
    """Return the path of a checkpoint, which is downloaded if it is not there.

    Args:
        checkpoint: a file, or "hf:" and the name of a repository of the Hub; None is the released one.

    Raises:
        CheckpointError: it cannot be downloaded.
    """
    if not checkpoint:
        return released_checkpoint()
    name = os.fspath(checkpoint)
    return hub_checkpoint(name) if name.startswith(HUB) else Path(checkpoint)


def released_checkpoint() -> Path:
    """Return the path of the released weights, which are downloaded if they are not there.

    They are looked for in the project, in the working directory, as the released package does, and where
    torch.hub keeps what it downloads.

    Raises:
        CheckpointError: they cannot be downloaded.
    """
    name = RELEASED_PATH.name
    kept_by_torch = Path(torch.hub.get_dir(), "checkpoints", name)
    for path in (RELEASED_PATH, Path(".checkpoints", name).absolute(), kept_by_torch):
        if path.exists():
            return path
    download(RELEASED_URL, RELEASED_PATH)
    return RELEASED_PATH


# From the Hub


def hub_checkpoint(name: str, **options: Any) -> Path:
    """Return the weights of a repository of the Hub, from its cache where they are there.

    Args:
        name: OWNER/NAME, where the file is one of HUB_NAMES, or OWNER/NAME/FILE.
        options: of huggingface_hub.hf_hub_download, such as a revision.

    Raises:
        CheckpointError: they cannot be had.
    """
    name = name.removeprefix(HUB)
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not owner or not repository:
        raise CheckpointError(f"{HUB}{name}: name a repository as {HUB}OWNER/NAME, or a file in it")
    try:
        hub, errors = packages.load("huggingface_hub"), packages.load("huggingface_hub.utils")
    except packages.PackageError as e:
        raise CheckpointError(f"{HUB}{name}: {e}") from e
    wanted, own_log, refusal = [file] if file else HUB_NAMES, logging.getLogger("huggingface_hub"), None
    level = own_log.level
    own_log.setLevel(logging.ERROR)  # it tells of every try
    try:
        for candidate in wanted:
            try:
                return Path(hub.hf_hub_download(f"{owner}/{repository}", candidate, **options))
            except errors.LocalEntryNotFoundError as e:  # the Hub cannot be reached: no need to try again
                refusal = refusal or e.__cause__
                options["local_files_only"] = True
            except errors.EntryNotFoundError:
                continue
    except Exception as e:  # of whatever the Hub's client is made of
        raise CheckpointError(f"{HUB}{name}: {describe_refusal(e, errors)}") from e
    finally:
        own_log.setLevel(level)
    endpoint = options.get("endpoint") or hub.constants.ENDPOINT
    if hub.constants.HF_HUB_OFFLINE:
        reason = "not in the Hub's cache, and HF_HUB_OFFLINE is set"
    elif options.get("local_files_only"):
        why = f" ({' '.join(str(refusal).split())[:150]})" if refusal else ""
        reason = f"not in the Hub's cache, and {endpoint} does not answer{why}; HF_ENDPOINT names a mirror"
    else:
        reason = f"has no {' or '.join(wanted)}" + ("" if file else f"; name its file: {HUB}{name}/FILE")
    raise CheckpointError(f"{HUB}{name}: {reason}")


def describe_refusal(error: Exception, errors: ModuleType) -> str:
    """Say why the Hub does not give a file, and what to do."""
    if isinstance(error, errors.GatedRepoError):
        return "its owner has to give access; then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private and HF_TOKEN is not set"
    return " ".join(str(error).split())[:300] or type(error).__name__


# From an address


def download(url: str, path: Path) -> None:
    """Download a checkpoint. Of several processes one does, and the others wait for it.

    Raises:
        CheckpointError: there is no connection, it breaks again and again, or the answer is not a checkpoint.
        KeyboardInterrupt: its message says what is kept.
    """
    lock, part = FileLock(path.with_name(f"{path.name}.lock")), Part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with held(lock):
            try:
                if not path.exists():
                    download_locked(url, part)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except KeyboardInterrupt:
        kept = f"{part.size / 1e6:.0f} MB" if part.version is not None else "nothing"
        raise KeyboardInterrupt(f"{kept} of the weights' download is kept") from None
    except (OSError, ValueError, http.client.HTTPException) as e:
        if isinstance(e, urllib.error.HTTPError):
            e.close()  # the error is also the open answer
        reason = " ".join(str(e).split())[:300]
        again = f"run again to go on from {part.size / 1e6:.0f} MB, " if part.version is not None else ""
        cure = f"{again}put the file at {path}, or name one: {spelled('checkpoint', 'PATH or hf:OWNER/NAME')}"
        raise CheckpointError(f"cannot download {url} ({reason}); {cure}") from e


@contextmanager
def held(lock: FileLock) -> Iterator[None]:
    """Hold a lock, and say so where another process has to be waited for."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that downloads the weights")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Part:
    """What is there of a file that is being downloaded.

    Args:
        path: of the whole file.
    """

    def __init__(self, path: Path):
        self.whole = path
        self.path = path.with_name(f"{path.name}.part")
        self.version_path = path.with_name(f"{path.name}.part.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> str | None:
        """What the server called this version of the file; None where it cannot be asked for the rest."""
        try:
            return self.version_path.read_text("latin-1").strip() or None if self.size else None
        except OSError:
            return None

    def begins_as_checkpoint(self) -> bool:
        with open(self.path, "rb") as file:
            return file.read(2) == b"PK"

    def begin(self, version: str | None) -> None:
        """Begin anew, with another version."""
        self.remove()
        if version is not None:
            self.version_path.write_text(version, "latin-1")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.version_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the file its name, if it is a checkpoint with the sums that are in it.

        Raises:
            OSError: it is something else, or damaged, and is removed.
        """
        if not zipfile.is_zipfile(self.path):
            self.remove()
            raise OSError(NO_CHECKPOINT)
        try:
            hash_and_check(self.path)
        except CheckpointError:
            self.remove()
            raise OSError("what came is damaged, and is removed") from None
        os.replace(self.path, self.whole)
        self.remove()


def download_locked(url: str, part: Part) -> None:
    """Download a checkpoint, as the only process that does; a broken connection is made again.

    Raises:
        OSError, HTTPException: as download.
    """
    there = f"; {part.size / 1e6:.0f} MB are there" if part.size else ""
    log.info("downloading %s to %s%s", url, part.whole, there)
    waits = iter(())  # the first connection is not made again if it brings nothing
    most, has_begun_anew = part.size, False
    for _ in range(MAX_CONNECTIONS):
        before = part.size
        try:
            continue_download(url, part)
            break
        except BrokenConnectionError:
            begins_anew = part.size < before and not has_begun_anew  # once, for a server that knows no better
            if part.size > most or begins_anew:
                waits, most, has_begun_anew = iter(WAITS), part.size, has_begun_anew or begins_anew
            wait = next(waits, None)
            if wait is None:
                if part.version is None:  # the rest alone cannot be had
                    part.remove()
                raise
            time.sleep(wait)
    else:
        raise BrokenConnectionError(f"the connection broke {MAX_CONNECTIONS} times")
    part.finish()


def continue_download(url: str, part: Part) -> None:
    """Download what is not there yet of a file, over one connection.

    Raises:
        BrokenConnectionError: the connection cannot be made, or ends before the file does.
        OSError: the server has no such file, or sends something else; or the disk is full.
    """
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if part.version is not None:  # another version comes whole
        request.add_header("Range", f"bytes={part.size}-")
        request.add_header("If-Range", part.version)
    with connected(request, part) as answer:
        if answer is None:
            return
        size, n_known = prepare(answer, part)
        bar = tqdm(
            desc=part.whole.name, initial=part.size, total=size, unit="B", unit_scale=True, disable=None
        )
        with bar, open(part.path, "ab") as file:
            for chunk in chunks(answer, n_known):
                if size is not None and file.tell() + len(chunk) > size:
                    raise OSError("the server sends more than the file has")
                file.write(chunk)
                file.flush()  # a kill loses nothing that came before
                bar.update(len(chunk))
    if size is None and part.begins_as_checkpoint() and not zipfile.is_zipfile(part.path):
        raise BrokenConnectionError(f"the connection broke at {part.size} bytes")
    if size is not None and part.size != size:
        raise BrokenConnectionError(f"the connection broke at {part.size} of {size} bytes")


def prepare(answer: http.client.HTTPResponse, part: Part) -> tuple[int | None, int]:
    """Compare an answer with what is there, which it may go on from, repeat or replace.

    Returns:
        how many bytes the whole file has, None where that is not stated; and how many of those that come
        first are there.

    Raises:
        BrokenConnectionError: it is another part than that which was asked for; all has to come anew.
        OSError: it is something else than the file.
    """
    version, status = version_of(answer), answer.status
    length = answer.headers.get("Content-Length")
    if answer.headers.get_content_type() == "text/html":  # the page of a proxy
        raise OSError(NO_CHECKPOINT)
    if status == http.client.PARTIAL_CONTENT:
        sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").lower())
        # A date, which is the version where there is no ETag, need not be said again with a part.
        is_same = version == part.version or (version is None and not part.version.startswith('"'))
        if not is_same or sent is None or int(sent[1]) != part.size:
            part.remove()
            raise BrokenConnectionError("the server sends another part than it was asked for")
        return None if sent[2] == "*" else int(sent[2]), 0
    size = None if length is None else int(length)
    if part.version is not None and version == part.version:  # a server that sends no parts
        return size, part.size
    is_less = size is not None and size < part.size
    if status != http.client.OK or (part.version is not None and (version is None or is_less)):
        raise OSError(NO_CHECKPOINT)
    part.begin(version)
    return size, 0


@contextmanager
def connected(request: urllib.request.Request, part: Part) -> Iterator[http.client.HTTPResponse | None]:
    """Open a connection; None where nothing is left to be sent.

    Raises:
        BrokenConnectionError: it cannot be made.
        OSError: the server has no such file.
    """
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as e:
        if e.code >= http.client.INTERNAL_SERVER_ERROR or e.code in BUSY:
            e.close()
            raise BrokenConnectionError(e) from e
        if e.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        whole = re.fullmatch(r"bytes \*/(\d+)", e.headers.get("Content-Range", "").lower())
        e.close()
        if whole is None or int(whole[1]) != part.size:
            part.remove()
            raise BrokenConnectionError("the server has another file than before") from e
        yield None
        return
    except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
        raise BrokenConnectionError(getattr(e, "reason", e)) from e
    with answer:
        yield answer


def chunks(answer: http.client.HTTPResponse, n_known: int) -> Iterator[bytes]:
    """Yield what a connection brings, until its end, but for what is there already.

    Raises:
        BrokenConnectionError: it breaks.
    """
    while True:
        try:
            chunk = answer.read1(CHUNK_BYTES)
        except (http.client.HTTPException, OSError) as e:
            raise BrokenConnectionError(f"the connection broke: {e}") from e
        if not chunk:
            return
        known, n_known = chunk[:n_known], max(n_known - len(chunk), 0)
        if len(chunk) > len(known):
            yield chunk[len(known) :]


def version_of(answer: http.client.HTTPResponse) -> str | None:
    """Return by what a server can tell that a file is the same: a strong ETag, or a date."""
    etag = answer.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
