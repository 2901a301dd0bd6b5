"""What a page shows of the pairs' files: their addresses, thumbnails, and copies that play anywhere."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.progress import Progress
from imagebind.names import one_line
from imagebind.segments import file_of, fragment_of, span_of

if TYPE_CHECKING:
    from imagebind.evaluation.embedding import EmbeddedFiles
    from imagebind.reading.workers import Workers

MAX_PAIRS = 10_000  # in the table of pairs
FOLDER = "report_media"  # in the output directory
COPY = re.compile(r"\.?[0-9a-f]{32}\.(mp4|m4a)(\.tmp)?")  # name of a file there
File = tuple[str, str]  # modality, path

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
    copies: dict[File, str] = field(default_factory=dict)  # of these files, names in FOLDER
    faults: dict[File, str] = field(default_factory=dict)  # why a file has no copy
    players: list[list[object]] = field(default_factory=list)  # that the page has
    numbers: dict[File, int] = field(default_factory=dict)  # of each file that of its player

    def player(self, modality: str, path: str) -> int:
        """Let the page have a player of a file, and return its number."""
        if (modality, path) not in self.numbers:
            self.numbers[modality, path] = len(self.players)
            self.players.append(self._describe(modality, path))
        return self.numbers[modality, path]

    def _describe(self, modality: str, path: str) -> list[object]:
        """Describe what plays a file.

        Returns:
            name and address; where what is judged begins and ends in what is played, in seconds, None for its
            end; and why there is no copy, or None.
        """
        (start, end), name = span_of(path), one_line(os.path.basename(file_of(path)) + fragment_of(path))
        end = None if end == math.inf else end
        if copy := self.copies.get((modality, path)):
            return [name, f"{FOLDER}/{copy}", 0, None, None]
        fault = self.faults.get((modality, path))
        return [name, address(file_of(path), self.folder), start, end, fault]

    def thumbnail(self, modality: str, path: str) -> str | None:
        """Return a picture of a file as base64 text, JPEG."""
        if self.embedded is None:
            return None
        content_hash = self.embedded.stores[modality].hash_of(path)
        picture = self.embedded.thumbnails[modality].get(content_hash)
        return None if picture is None else base64.b64encode(picture).decode()

    def copy(self, files: Iterable[File], workers: Workers | None, has_bar: bool) -> None:
        """Write copies of files; one that cannot be copied is named with the reason on the page.

        Raises:
            EvaluationError: there is no room.
        """
        from imagebind.reading.previews import SUFFIXES, make_preview

        tasks, files_of = [], {}
        for modality, path in files:
            content_hash = self.embedded.stores[modality].hash_of(path)
            digest = hashlib.blake2b(f"{modality} {content_hash}".encode(), digest_size=16).hexdigest()
            name = f"{digest}{SUFFIXES[modality]}"
            if name not in files_of:
                tasks.append((modality, path, os.path.join(self.folder, FOLDER, name)))
            files_of.setdefault(name, []).append((modality, path))
        try:
            os.makedirs(os.path.join(self.folder, FOLDER), exist_ok=True)
        except OSError as e:
            raise EvaluationError(f"{self.folder}: cannot write {FOLDER} ({e.strerror})") from e
        if workers is None:
            found = ((task, fault) for task in tasks for fault in make_preview(None, task))
        else:
            found = workers.map(None, tasks, ahead=len(tasks))
        log.info("copying %d files to %s", len(tasks), os.path.join(self.folder, FOLDER))
        progress = Progress({"copies": len(tasks)}, has_bar)
        try:
            for (_, path, target), fault in found:
                name = os.path.basename(target)
                reason = getattr(fault, "reason", fault)  # of a process that was lost, or a text
                progress.update("copies", skipped=reason is not None, cached=False)
                if reason is None:
                    self.copies |= dict.fromkeys(files_of[name], name)
                else:
                    log.warning("no copy of %s: %s", path, reason)
                    self.faults |= dict.fromkeys(files_of[name], reason)
        finally:
            progress.close()

    def remove_others(self) -> None:
        """Remove the copies that this page does not show, which earlier runs wrote."""
        kept, folder = set(self.copies.values()), Path(self.folder, FOLDER)
        with suppress(OSError):
            for path in folder.iterdir():
                if COPY.fullmatch(path.name) and path.name not in kept:
                    path.unlink()
            if not kept:
                folder.rmdir()


def best_matches(results: dict[str, Any]) -> list[tuple[int, int, float]]:
    """List each sound with its most similar video, the most similar first: row, column, similarity."""
    top = results["top_matches"]["audio"]
    order = np.argsort(-top.similarities[:, 0], kind="stable")[:MAX_PAIRS].tolist()
    return [(row, int(top.indices[row, 0]), float(top.similarities[row, 0])) for row in order]


def shown_files(results: dict[str, Any]) -> list[File]:
    """List the files that the page's table plays."""
    if results["pairs"]:
        shown = [results["pairs"][i] for i in results["pair_scores"].suspects_first(MAX_PAIRS)]
    else:
        paths = results["audio_paths"], results["video_paths"]
        shown = [(paths[0][row], paths[1][column]) for row, column, _ in best_matches(results)]
    files = {}
    for audio, video in shown:
        files["video", video] = None
        if audio != video:  # its own sound is in its copy
            files["audio", audio] = None
    return list(files)


def address(path: str, folder: str | os.PathLike) -> str:
    """Return the address of a file for a page in a folder: relative, so that both can move together."""
    return quote(os.fsencode(os.path.relpath(path, folder)))
