"""What a page shows of the pairs' files: their addresses, thumbnails, and copies that play anywhere."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from imagebind.evaluation.compare.arrays import create
from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES, EmbeddedFiles
from imagebind.evaluation.embed.progress import Progress
from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.evaluation.inputs.files import COPIES_LIST
from imagebind.names import can_be_path, one_line
from imagebind.sources import Source

if TYPE_CHECKING:
    from imagebind.reading.workers import Workers

MAX_PAIRS = 10_000  # in the table of pairs
MAX_FILES = 200  # on each axis of the heat map
MAX_THUMBNAIL_BYTES = 10_000_000  # of all thumbnails of a page
FOLDER = "report_media"  # in the output directory
COPY = re.compile(r"[0-9a-f]{32}\.(mp4|m4a)")  # name of a file there
MediaFile = tuple[str, Source]  # modality, and what of a file was judged

log = logging.getLogger(__name__)


@dataclass
class PageMedia:
    """The media of a page.

    Args:
        folder: that the page is written to.
        embedded: the files; None where nothing is known of them but their paths.
    """

    folder: str | os.PathLike
    embedded: EmbeddedFiles | None = None
    copies: dict[MediaFile, str] = field(default_factory=dict)  # of these files, names in FOLDER
    faults: dict[MediaFile, str] = field(default_factory=dict)  # why a file has no copy
    players: list[list[object]] = field(default_factory=list)  # that the page has
    numbers: dict[MediaFile, int] = field(default_factory=dict)  # of each file that of its player
    thumbnail_bytes: int = 0  # of those that the page has

    def player(self, modality: str, source: Source) -> int:
        """Let the page have a player of a file, and return its number."""
        if (modality, source) not in self.numbers:
            self.numbers[modality, source] = len(self.players)
            self.players.append(self._describe(modality, source))
        return self.numbers[modality, source]

    def pair_players(self, audio: Source, video: Source) -> dict[str, int]:
        """Let the page play the two files of a pair; without "audio" where that is the video's own sound."""
        players = {"video": self.player("video", video)}
        return players if audio == video else {"audio": self.player("audio", audio)} | players

    def _describe(self, modality: str, source: Source) -> list[object]:
        """Describe what plays a file.

        Returns:
            name and address; where what is judged begins and ends in what is played, in seconds, None for its
            end; and why there is no copy, or None. The address is "" where there is no file.
        """
        name, end = one_line(base_name(source)), None if source.end == math.inf else source.end
        if self.has_no_file(modality):
            return [name, "", 0, None, None]
        copy = self.copies.get((modality, source)) or self.copies.get(("video", source))
        if copy is not None:
            return [name, f"{FOLDER}/{copy}", 0, None, None]
        fault = self.faults.get((modality, source))
        if fault is None and source.content is not None:
            fault = "it is in no file of its own; --copy_media makes copies"
        return [name, address(source.path, self.folder), source.start, end, fault]

    def has_no_file(self, modality: str) -> bool:
        """Whether embeddings were given in place of the files of a modality."""
        return self.embedded is not None and modality in self.embedded.given

    def thumbnails(self, audio: Source, video: Source) -> list[str | None] | None:
        """Return JPEG pictures of both files of a pair, as base64 text, while the page has room for them."""
        if self.embedded is None or self.thumbnail_bytes >= MAX_THUMBNAIL_BYTES:
            return None
        pictures = [self._thumbnail("video", video), self._thumbnail("audio", audio)]
        self.thumbnail_bytes += sum(len(picture) for picture in pictures if picture)
        return pictures if any(pictures) else None

    def _thumbnail(self, modality: str, source: Source) -> str | None:
        content_hash = self.embedded.leading[modality].hash_of(source)
        picture = self.embedded.thumbnails[modality].get(content_hash)
        return None if picture is None else base64.b64encode(picture).decode()

    def copy(self, files: Iterable[MediaFile], workers: Workers | None, has_bar: bool) -> None:
        """Write copies of files; one that cannot be copied is named with the reason on the page.

        Raises:
            EvaluationError: there is no directory for them.
        """
        from imagebind.reading.previews import SUFFIXES, make_preview

        folder, files_of = Path(self.folder, FOLDER), defaultdict(list)
        for modality, source in files:
            if self.has_no_file(modality):
                continue
            content_hash = self.embedded.leading[modality].hash_of(source)
            digest = hashlib.blake2b(f"{modality} {content_hash}".encode(), digest_size=16).hexdigest()
            files_of[f"{digest}{SUFFIXES[modality]}", content_hash].append((modality, source))
        tasks = []
        for (name, content_hash), equal in files_of.items():
            modality, source = next((f for f in equal if os.path.exists(f[1].path)), equal[0])
            tasks.append((modality, source, content_hash, os.fspath(folder / name)))
        try:
            folder.mkdir(exist_ok=True)
            self._write_list(self._listed() | {name for name, _ in files_of})  # first: what is listed is ours
        except OSError as e:
            raise EvaluationError(f"{self.folder}: cannot write {FOLDER} ({e.strerror})") from e
        if workers is None:
            copied = ((task, fault) for task in tasks for fault in make_preview(None, task))
        else:
            copied = workers.map(None, tasks, ahead=len(tasks))
        log.info("copying %d files to %s", len(tasks), folder)
        progress = Progress({"copies": len(tasks)}, has_bar)
        try:
            for (_, source, content_hash, target), fault in copied:
                name = os.path.basename(target)
                reason = getattr(fault, "reason", fault)  # of a process that was lost, or a text
                progress.update("copies", skipped=reason is not None, cached=False)
                if reason is None:
                    self.copies |= dict.fromkeys(files_of[name, content_hash], name)
                else:
                    log.warning("no copy of %s: %s", source, reason)
                    self.faults |= dict.fromkeys(files_of[name, content_hash], reason)
        finally:
            progress.close()
        self.players, self.numbers, self.thumbnail_bytes = [], {}, 0  # the page is written again, with copies

    def remove_other_copies(self) -> None:
        """Remove the copies that earlier runs wrote and this page does not show."""
        folder = Path(self.folder, FOLDER)
        if folder.is_symlink() or not (listed := self._listed()):
            return
        kept = set(self.copies.values())
        if self.embedded is not None:  # what is an input of this run stays
            paths = (s.path for m in MEDIA_MODALITIES for s in self.embedded.leading[m].row_of)
            kept |= {os.path.basename(path) for path in paths if os.path.basename(path) in listed}
        with suppress(OSError):
            for name in listed - kept:
                (folder / name).unlink(missing_ok=True)
                (folder / f".{name}.tmp").unlink(missing_ok=True)  # of a run that was killed
            self._write_list(kept & listed)
            if not kept & listed:
                (folder / COPIES_LIST).unlink()
                folder.rmdir()  # if nothing of the user's is in it

    def _listed(self) -> set[str]:
        """Name the copies that runs have written."""
        path = Path(self.folder, FOLDER, COPIES_LIST)
        if path.is_symlink() or not path.is_file():  # a pipe would block
            return set()
        try:
            names = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return set()
        return {name for name in names if COPY.fullmatch(name)}

    def _write_list(self, names: Iterable[str]) -> None:
        path = Path(self.folder, FOLDER, COPIES_LIST)
        temporary = path.with_name(f"{path.name}.tmp")
        with create(temporary) as file:
            file.write("".join(f"{name}\n" for name in sorted(names)).encode())
        os.replace(temporary, path)


def check_copies(folder: str | os.PathLike) -> None:
    """Raise an OptionError where copies cannot be written below an output directory."""
    path = os.path.join(folder, FOLDER)
    if os.path.islink(path) or (os.path.lexists(path) and not os.path.isdir(path)):
        raise OptionError(f"{path} is no directory, and copies are to be written there", "copy_media")


def sample_matrix(results: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Choose the rows and columns of the similarity matrix that the page draws."""
    shape = tuple(len(results[f"{modality}_sources"]) for modality in ("audio", "video"))
    n_suspects = results["metrics"].get("suspects") or 0
    suspects = results["pair_scores"].suspects_first(MAX_FILES)[:n_suspects] if n_suspects else []
    return sample_cells(shape, results["pair_rows"], suspects)


def sample_cells(
    shape: tuple[int, int], pair_rows: Sequence[tuple[int, int]], suspects: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """Choose rows and columns of a similarity matrix: pairs first, so that they form a diagonal.

    Args:
        shape: (N, M).
        pair_rows: P pairs (row, column).
        suspects: numbers of pairs that are chosen before others.
    """
    numbers = list(suspects)[:MAX_FILES]
    others = np.setdiff1d(np.arange(len(pair_rows)), numbers)
    numbers += others[spread(len(others), MAX_FILES - len(numbers))].tolist()
    pairs, chosen = [pair_rows[i] for i in sorted(numbers)], []
    for axis, n in enumerate(shape):
        paired = list(dict.fromkeys(pair[axis] for pair in pairs))
        others = np.setdiff1d(np.arange(n), paired).tolist()
        chosen.append(paired + [others[i] for i in spread(len(others), MAX_FILES - len(paired))])
    return tuple(chosen)


def spread(n: int, k: int) -> list[int]:
    """Choose k of n indices, evenly spaced.

    >>> spread(9, 3)
    [0, 4, 8]
    """
    return np.linspace(0, n - 1, min(n, k)).round().astype(int).tolist()


def best_matches(results: dict[str, Any]) -> list[tuple[int, int, float]]:
    """List each sound with its most similar video, the most similar first: row, column, similarity."""
    top = results["top_matches"]["audio"]
    order = np.argsort(-top.similarities[:, 0], kind="stable")[:MAX_PAIRS].tolist()
    return [(row, int(top.indices[row, 0]), float(top.similarities[row, 0])) for row in order]


def shown_files(results: dict[str, Any]) -> list[MediaFile]:
    """List the files that the page plays."""
    sources, files = {m: results[f"{m}_sources"] for m in ("audio", "video")}, {}
    videos = set(sources["video"])

    def add(modality: str, row: int) -> None:
        source = sources[modality][row]
        if modality == "video" or source not in videos:  # a video's own sound is in its copy
            files[modality, source] = None

    if results["pairs"]:
        shown = results["pair_scores"].suspects_first(MAX_PAIRS)
        for sound, video in results["pair_rows"][shown].tolist():
            add("video", video)
            add("audio", sound)
        for modality, (indices, _) in (results["best_others"] or {}).items():
            for row in indices[shown].tolist():
                if row >= 0:
                    add(modality, row)
    if results["top_matches"] is not None:
        for row, column, _ in [] if results["pairs"] else best_matches(results):
            add("audio", row)
            add("video", column)
        for modality, chosen in zip(("audio", "video"), sample_matrix(results), strict=True):
            for row in chosen:
                add(modality, row)
    return list(files)


def base_name(source: Source) -> str:
    """Return the name of a file without folders; of a part of one with its times."""
    return os.path.basename(source.path) + source.fragment


def address(path: str, folder: str | os.PathLike) -> str:
    """Return the address of a file for a page in a folder: relative, so that both can move together."""
    if not can_be_path(path):  # leads nowhere
        return quote(path.encode("utf-8", "backslashreplace"))
    if os.pardir in path.split(os.sep):  # after a link it leads elsewhere than its text says
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        folder = os.path.realpath(folder)
    return quote(os.fsencode(os.path.relpath(path, folder)))
