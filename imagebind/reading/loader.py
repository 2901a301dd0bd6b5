"""Files -> model inputs or cached embeddings, read by worker processes while the model computes."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np

from imagebind import data
from imagebind.data.features import AUDIO_WINDOWS, TEXT, VIDEO_FRAMES, Feature
from imagebind.data.inputs import DroppedError, ModelInput
from imagebind.data.media import check_is_file, hold_open, media_errors, named_format
from imagebind.data.sequences import (
    FrameFacts,
    FramesPart,
    WholeSound,
    WholeVideo,
    WindowFacts,
    WindowsPart,
    read_whole_sound,
    read_whole_video,
)
from imagebind.data.sounds import read_sounds
from imagebind.data.thumbnails import make_thumbnail
from imagebind.data.video import read_clips
from imagebind.packages import PackageError
from imagebind.reading.cache import EmbeddingCache, hash_file
from imagebind.reading.records import dropped_name, get_flags, get_sequence
from imagebind.reading.workers import Lost, Workers
from imagebind.sources import Source
from imagebind.torch_settings import settings_for_inputs

ATTEMPTS = 2  # to read a file that changes meanwhile
MAX_HASHES = 64  # that are remembered of files of which parts are read
log = logging.getLogger(__name__)
data_log = logging.getLogger(data.__name__)

# Modality, source, and what is wanted of it; of a text the text itself
Request = tuple[str, Source | str, tuple[Feature, ...]]


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        cache: where to look for embeddings first.
        half: whether inputs may be float16, for a model in that precision.
        has_thumbnails: whether a picture of each file is made too.
        hashes: of files of which parts are read, by their fingerprint; filled while they are.
    """

    cache: EmbeddingCache | None = None
    half: bool = False
    has_thumbnails: bool = False
    hashes: dict[tuple[int, ...], str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedPart:
    """Some rows of a sequence, or the inputs that they are computed from. Part 0 begins anew.

    An empty one says that its file is still being read.
    """

    modality: str
    source: Source | str
    feature: str  # its name
    number: int
    input: FramesPart | WindowsPart | None = None
    rows: np.ndarray | None = None  # (n, E), from the cache

    @property
    def is_empty(self) -> bool:
        return self.input is None and self.rows is None

    def pin_memory(self) -> LoadedPart:
        """As LoadedFile.pin_memory."""
        return replace(self, input=pinned(self.input)) if self.input is not None else self


@dataclass(frozen=True)
class LoadedFeature:
    """What became of something that is wanted of a file."""

    input: data.AudioInput | data.VideoInput | data.TextInput | None = None
    embedding: np.ndarray | None = None  # (E,), from the cache
    facts: FrameFacts | WindowFacts | None = None  # of a sequence, whose parts came before
    is_cached: bool = False
    flags: str | None = None  # what is wrong with the file, as this shows it; None: not known
    same_as: str | None = None  # another feature of the file, which has an equal input


@dataclass(frozen=True)
class Missing:
    """Why something that is wanted of a file cannot be had."""

    reason: str
    kind: str  # "skipped", "lost" with its process, or "dropped": by what the file holds, not by a fault
    is_cached: bool = False


@dataclass(frozen=True)
class LoadedFile:
    """What became of all that is wanted of a file."""

    modality: str
    source: Source | str
    features: dict[str, LoadedFeature | Missing]  # by name
    content_hash: str | None = None  # of a file its SHA-256, of a text that of its tokens; None: not read
    fault: str | None = None  # the traceback of an error that is the program's and not the file's
    thumbnail: bytes | None = None  # JPEG
    is_truncated: bool = False  # a text with more tokens than fit
    warnings: tuple[str, ...] = ()  # for the process that owns the terminal to log
    seconds: float = 0.0  # spent on it

    @property
    def is_cached(self) -> bool:
        """Whether all that can be had of it was found in the cache."""
        features = self.features.values()
        return all(f.is_cached for f in features if isinstance(f, LoadedFeature) or f.kind != "lost")

    def pin_memory(self) -> LoadedFile:
        """Return a copy with its inputs in page-locked memory, which is copied to a GPU asynchronously.

        Where there is no such memory left, they stay where they are.
        """
        return self.with_inputs(pinned)

    def with_inputs(self, change: Callable[[ModelInput], ModelInput]) -> LoadedFile:
        """Return a copy with other inputs."""
        features = {
            name: replace(f, input=change(f.input))
            for name, f in self.features.items()
            if isinstance(f, LoadedFeature) and f.input is not None
        }
        return replace(self, features=self.features | features)


def pinned(input: ModelInput) -> ModelInput:
    try:
        return input.pin_memory()
    except RuntimeError:
        return input


Loaded = LoadedPart | LoadedFile


def load_files(
    files: Sequence[Request],
    workers: Workers | None,
    reading: Reading = Reading(),
    ahead: int = 0,
    pin_memory: bool = False,
) -> Iterator[Loaded]:
    """Begin to read files, each once, and yield them as they are ready: parts of sequences, then the file.

    Args:
        files: to be read.
        workers: the processes that read; None reads in this process, one file after the other, when asked.
        ahead: how many files may be ready and waiting, beside those that are being read.
        pin_memory: whether inputs go to a GPU.

    Raises:
        WorkersError: no process can be started.
    """
    if workers is None:
        return (loaded for file in files for loaded in read_file(reading, file))
    finish = (lambda loaded: loaded.pin_memory()) if pin_memory else None
    ahead += min(workers.n_workers, len(files))
    return explain_lost(workers.map(reading, files, ahead, finish, without_sequences))


def explain_lost(read: Iterator[tuple[Request, Loaded | Lost]]) -> Iterator[Loaded]:
    """Say of files whose worker was lost why they, or their sequences, cannot be had."""
    lost: dict[Request[:2], dict[str, Missing]] = {}  # (modality, source) -> its sequences
    for file, loaded in read:
        modality, source, features = file
        if isinstance(loaded, Lost) and without_sequences(file) is not None:
            missing = Missing(loaded.reason, "lost")
            lost[modality, source] = {feature.name: missing for feature in features if feature.is_sequence}
            continue
        if isinstance(loaded, Lost):
            loaded = nothing_of(file, Missing(loaded.reason, "lost"))
        if isinstance(loaded, LoadedFile) and (modality, source) in lost:
            sequences = lost[modality, source]
            if loaded.content_hash is None:  # nor can the rest be had, which says more
                sequences = dict.fromkeys(sequences, next(iter(loaded.features.values())))
            loaded = replace(loaded, features=loaded.features | sequences)
        yield loaded


def nothing_of(file: Request, missing: Missing, **more: Any) -> LoadedFile:
    """Return a file of which nothing can be had."""
    modality, source, features = file
    return LoadedFile(modality, source, {feature.name: missing for feature in features}, **more)


def without_sequences(file: Request) -> Request | None:
    """Return what else is wanted of a file whose worker was lost; None if there is nothing else."""
    modality, source, features = file
    others = tuple(feature for feature in features if not feature.is_sequence)
    return (modality, source, others) if others and len(others) < len(features) else None


def read_file(reading: Reading, file: Request) -> Iterator[Loaded]:
    """Look up what is wanted of a file, or read the inputs that it is computed from."""
    results, warnings, seconds = _look_up_or_read(reading, file), [], 0.0
    while True:
        start = time.perf_counter()
        try:
            with collected_warnings(warnings), settings_for_inputs():
                loaded = next(results, None)
                if isinstance(loaded, LoadedFile) and reading.half:
                    loaded = loaded.with_inputs(lambda input: input.half())
        except PackageError:
            raise
        except Exception as e:
            reason = " ".join(f"an unexpected error, {type(e).__name__}: {e}".split())
            loaded = nothing_of(file, Missing(reason, "skipped"), fault=traceback.format_exc())
            results = iter(())
        seconds += time.perf_counter() - start
        if loaded is None:
            return
        if isinstance(loaded, LoadedFile):
            loaded = replace(loaded, warnings=tuple(warnings), seconds=seconds)
        yield loaded


def _look_up_or_read(reading: Reading, file: Request) -> Iterator[Loaded]:
    modality, source, features = file
    if modality == "text":
        yield _look_up_or_read_text(reading.cache, source)
        return
    for _ in range(ATTEMPTS):
        try:
            with media_errors(source):
                check_is_file(source)
                with hold_open(source) as (held, opened):
                    before = fingerprint(held)
                    content_hash = hash_content(source, opened, before, reading.hashes)
                    reader = FileReader(reading.cache, modality, held, content_hash)
                    yield from reader.read(features)
                    if fingerprint(held) == before:
                        thumbnail = reader.thumbnail() if reading.has_thumbnails else None
                        yield LoadedFile(modality, source, reader.loaded, content_hash, thumbnail=thumbnail)
                        return
        except data.MediaError as e:
            yield nothing_of(file, Missing(e.reason, "skipped"))
            return
    yield nothing_of(file, Missing("it changed while it was read", "skipped"))


class FileReader:
    """Looks up or reads what is wanted of one file; `loaded` has what came of it.

    Args:
        cache: where to look first, or None.
        modality, source, content_hash: of the file, which is held open.
    """

    def __init__(self, cache: EmbeddingCache | None, modality: str, source: Source, content_hash: str):
        self.cache, self.modality, self.source, self.content_hash = cache, modality, source, content_hash
        self.named = replace(source, descriptor=None)  # for another process, where it is not open
        self.loaded: dict[str, LoadedFeature | Missing] = {}

    def read(self, features: Sequence[Feature]) -> Iterator[LoadedPart]:
        """Fill `loaded`, and yield the parts of sequences."""
        for feature in features if self.cache is not None else ():
            yield from self._look_up(feature)
        missing = [feature for feature in features if feature.name not in self.loaded]
        if missing:
            yield from (self._read_video if self.modality == "video" else self._read_audio)(missing)
        self.loaded = {feature.name: self.loaded[feature.name] for feature in features}

    def thumbnail(self) -> bytes | None:
        """Make a picture of what was read, or look up the one that an earlier run made of it."""
        for loaded in self.loaded.values():
            if isinstance(loaded, LoadedFeature) and loaded.input is not None:
                try:
                    return make_thumbnail(loaded.input)
                except Exception as e:  # a picture is no reason to skip a file
                    log.debug("%s: no thumbnail (%s)", self.source, e)
                    return None
        return None if self.cache is None else self.cache.get_thumbnail(self.content_hash, self.modality)

    def _look_up(self, feature: Feature) -> Iterator[LoadedPart]:
        if not feature.is_sequence:
            embedding = self.cache.get(self.content_hash, feature.name)
            if embedding is not None:
                flags = get_flags(self.cache, self.content_hash, feature.name)
                self.loaded[feature.name] = LoadedFeature(embedding=embedding, is_cached=True, flags=flags)
            elif (facts := self.cache.get_facts(self.content_hash, dropped_name(feature.name))) is not None:
                self.loaded[feature.name] = Missing(str(facts.get("reason")), "dropped", is_cached=True)
            return
        parts = get_sequence(self.cache, self.content_hash, feature.name)
        facts = next(parts)
        for number, rows in enumerate(parts):
            if rows is None:
                return
            yield LoadedPart(self.modality, self.named, feature.name, number, rows=rows)
        if facts is not None:
            self.loaded[feature.name] = LoadedFeature(facts=facts, is_cached=True)

    def _read_audio(self, missing: Sequence[Feature]) -> Iterator[LoadedPart]:
        of_clips = [feature for feature in missing if feature.sound is not None]
        recipes, inputs = [feature.sound for feature in of_clips], None
        if AUDIO_WINDOWS in missing:
            try:
                inputs = yield from self._read_parts(AUDIO_WINDOWS, read_whole_sound(self.source, recipes))
            except data.MediaError as e:
                self._fail([AUDIO_WINDOWS], e)
        try:
            inputs = read_sounds(self.source, recipes) if inputs is None and recipes else inputs or []
        except data.MediaError as e:
            self._fail(of_clips, e)
            return
        self._keep(of_clips, inputs)

    def _read_video(self, missing: Sequence[Feature]) -> Iterator[LoadedPart]:
        of_clips = [feature for feature in missing if feature.clips is not None]
        recipes, inputs = [feature.clips for feature in of_clips], None
        if VIDEO_FRAMES in missing:
            try:
                inputs = yield from self._read_parts(VIDEO_FRAMES, read_whole_video(self.source, recipes))
            except data.MediaError as e:
                self._fail([VIDEO_FRAMES], e)
        try:
            inputs = read_clips(self.source, recipes) if inputs is None and recipes else inputs or []
        except data.MediaError as e:
            self._fail(of_clips, e)
            return
        self._keep(of_clips, inputs)

    def _keep(
        self,
        features: Sequence[Feature],
        inputs: Sequence[data.AudioInput | data.VideoInput | DroppedError | data.MediaError],
    ) -> None:
        """Keep what was read; where two inputs are equal, the second is embedded with the first."""
        first: dict[str, ModelInput] = {}
        for feature, read in zip(features, inputs, strict=True):
            if isinstance(read, DroppedError):
                self.loaded[feature.name] = Missing(str(read), "dropped")
            elif isinstance(read, data.MediaError):
                self._fail([feature], read)
            else:
                equal = next((name for name, input in first.items() if input.equals(read)), None)
                first.setdefault(feature.name if equal is None else equal, read)
                self.loaded[feature.name] = LoadedFeature(read, flags=read.flags, same_as=equal)

    def _read_parts(self, feature: Feature, reading: Iterator[Any]) -> Iterator[LoadedPart]:
        """Yield the parts of a sequence, keep its facts, and return what was read beside it."""
        number = 0
        for part in reading:
            if isinstance(part, WholeVideo | WholeSound):
                self.loaded[feature.name] = LoadedFeature(facts=part.facts)
                return part.clips
            yield LoadedPart(self.modality, self.named, feature.name, number, part)
            number += part is not None
        raise AssertionError("a reading ends with its facts")

    def _fail(self, features: Sequence[Feature], error: data.MediaError) -> None:
        self.loaded |= {feature.name: Missing(error.reason, "skipped") for feature in features}


def _look_up_or_read_text(cache: EmbeddingCache | None, text: str) -> LoadedFile:
    try:
        read = data.read_text(text)
    except data.MediaError as e:
        return LoadedFile("text", text, {TEXT.name: Missing(e.reason, "skipped")})
    content_hash = hashlib.sha256(read.tokens.numpy().tobytes()).hexdigest()
    embedding = None if cache is None else cache.get(content_hash, TEXT.name)
    loaded = LoadedFeature(read, embedding, is_cached=embedding is not None)
    return LoadedFile("text", text, {TEXT.name: loaded}, content_hash, is_truncated=read.is_truncated)


def hash_content(
    source: Source, file: BinaryIO, state: tuple[int, ...], hashes: dict[tuple[int, ...], str]
) -> str:
    """Hash a file; of a part of one, of which there may be many, its file once while that stays the same.

    Returns:
        the SHA-256 of the file, with what else decides what is read of it.
    """
    if not source.is_part or not state:
        return hash_file(file) + named_format(source) + source.fragment
    if state not in hashes:
        if len(hashes) >= MAX_HASHES:
            hashes.clear()
        hashes[state] = hash_file(file)
    return hashes[state] + named_format(source) + source.fragment


def fingerprint(held: Source) -> tuple[int, ...]:
    """Return what changes when something writes to a file that is held open; of bytes in memory nothing."""
    if held.descriptor is None:
        return ()
    status, content = os.fstat(held.descriptor), held.content
    where = () if content is None else (content.offset, content.size)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, *where


class collected_warnings(logging.Handler):  # noqa: N801 (used as a context manager)
    """Add the warnings of imagebind.data about a file to a list instead of logging them here."""

    def __init__(self, messages: list[str]):
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.messages:  # a file can be decoded twice
            self.messages.append(record.getMessage())

    def __enter__(self) -> None:
        data_log.addHandler(self)
        data_log.propagate = False

    def __exit__(self, *exc_info) -> None:
        data_log.propagate = True
        data_log.removeHandler(self)
