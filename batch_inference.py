#!/usr/bin/env python3
"""Say how well sounds and videos belong together, with ImageBind.

    python batch_inference.py --audio_dir audios --video_dir videos
    python batch_inference.py --audio_dir audios --video_dir videos --retrieval_mode

Files are paired by name, embedded in batches, and compared: the cosine of every sound with every
video, statistics of the pairs, and how well each sound finds its video among all of them (Recall@K).

What it writes to --output_dir, for N sounds and M videos:

    audio_embeddings.npy    (N, 1024) float32, one row a file, as the model gives them
    video_embeddings.npy    (M, 1024)
    similarity_matrix.npy   (N, M) cosines
    audio_names.txt         N lines, the name behind each row
    video_names.txt         M lines
    pairs.txt               audio path, tab, video path; in pairing mode line i is row i of both sides
    pair_scores.csv         a line for each pair: similarity, ranks, how sure it is a pair
    text_embeddings.npy     (T, 1024), with --captions; text_names.txt says whose
    top_matches.csv         the ten most similar videos of each sound, and sounds of each video
    metrics.json            all figures, what was skipped and why, and how they were computed
    consistency_report.txt  the same to read
    report.html             the same to look at: charts, and the pairs in a table

On the 24 pairs of tests/demo, with the small model there, Recall@1 is 0.75; chance is 0.04.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import io
import itertools
import json
import logging
import math
import os
import re
import signal
import socket
import sys
import tempfile
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import numpy as np
from tqdm import tqdm

from imagebind import captions as caption_files
from imagebind import page
from imagebind.cache import EmbeddingCache, content_hash
from imagebind.names import field, one_line, shorten
from imagebind.ranks import BEAT_SECONDS, Ranks, RanksError, share_of
from imagebind.workers import Workers, WorkersError

if TYPE_CHECKING:  # torch takes seconds to import; it is imported where the work begins
    import torch

    from imagebind.loader import LoadedFile
    from imagebind.models.imagebind_model import ImageBindModel
    from imagebind.similarity import Scan, Top

AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".m4a", ".ogg")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".flv", ".webm")
RECALL_AT = (1, 5, 10)
QUARTILES = ("q1", "median", "q3")
SUSPECT_RATE = 0.05  # false discoveries that are allowed among the pairs that are told from chance
BOOTSTRAP_SAMPLES = 10_000
SUSPECTS_SHOWN = 10
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
CACHE_NAME = "embeddings.sqlite"
METRICS_NAME = "metrics.json"
MATRIX_NAME = "similarity_matrix.npy"
ARRAY_NAMES = {"audio_embeddings.npy", "video_embeddings.npy", "text_embeddings.npy", MATRIX_NAME}
TEXT_NAMES = "text_names.txt"
COMPARISON_NAME = "comparison.csv"
COMPARISON_PAGE = "comparison.html"
PAIR_COLUMNS = (  # of pair_scores.csv, after name and paths
    *("similarity", "video_rank", "audio_rank", "percentile"),
    *("audio_clips_alike", "video_clips_alike", "p_value", "suspect"),
)
TEXT_COLUMNS = (  # and where there are captions
    *("caption", "text_audio_similarity", "text_video_similarity", "text_audio_rank", "text_video_rank"),
)
LOCK_NAME = ".in_use"
PACKAGES = (
    *("torch", "torchvision", "torchaudio", "pytorchvideo", "timm", "einops", "av", "numpy"),
    "open_clip_torch",
)
ROWS_AT_A_TIME = 1024
HISTOGRAM_BINS = 512  # over -1 to 1

Results = dict[str, Any]  # what the API returns

log = logging.getLogger("batch_inference")


class EvaluationError(RuntimeError):
    """A run that cannot be done; the message is one line that says why and what to do."""

    is_said = False  # by another process of the job


class NothingLeftError(EvaluationError):
    """A run that skipped so many files that a side is empty.

    Args:
        counts: as in metrics.json.
    """

    def __init__(self, counts: dict[str, int]):
        super().__init__(f"nothing is left to evaluate: {counts['failed']} files were skipped")
        self.counts = counts


# ------------------------------------------------------------------------------------------------
# Inputs: paths, and which belong together
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MediaFiles:
    """The files of one side, in order."""

    side: str  # "audio" or "video"
    paths: tuple[str, ...]  # a listed file may stand here twice
    root: str | None = None  # the directory that they were found in; None: they were listed

    @cached_property
    def distinct(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.paths))

    @cached_property
    def base(self) -> str:
        """What keys are below: the directory given, or the one that all listed files share."""
        folders = {os.path.dirname(os.path.abspath(path)) for path in self.paths}
        return self.root or os.path.commonpath(folders)

    def key(self, path: str) -> str:
        """Give the path below the base, without extension."""
        return os.path.splitext(os.path.relpath(path, self.base))[0]

    @cached_property
    def names(self) -> dict[str, str]:
        """Path -> its stem; its key where files share the stem, with extension where they share that."""
        stems = Counter(map(stem, self.distinct))
        names = {path: stem(path) if stems[stem(path)] == 1 else self.key(path) for path in self.distinct}
        taken = Counter(names.values())
        return {
            path: name if taken[name] == 1 else os.path.relpath(path, self.base)
            for path, name in names.items()
        }


def stem(path: str) -> str:
    """Give a file's name without folders and extension."""
    return os.path.splitext(os.path.basename(path))[0]


def find_files(directory: str, suffixes: Sequence[str]) -> list[str]:
    """List the files below a directory that end in one of `suffixes`, sorted, without hidden ones.

    Links to directories are followed, each directory once, so that a link back up ends.
    """
    found, seen = [], set()

    def warn(error: OSError) -> None:
        log.warning("%s: %s; nothing in it is used", error.filename, error.strerror)

    for folder, subfolders, names in os.walk(directory, onerror=warn, followlinks=True):
        status = os.stat(folder)
        if (identity := (status.st_dev, status.st_ino)) in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [
            os.path.join(folder, name)
            for name in names
            if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
        ]
    return sorted(found)


def read_list_file(path: str) -> list[str]:
    """Read paths from a text file, one a line; blank lines and lines that start with # are ignored.

    The file is UTF-8, with or without a BOM. Bytes that are not stay as they are, so that a list
    made by `find` names every file.
    """
    text = Path(path).read_bytes().decode("utf-8-sig", errors="surrogateescape")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def gather_files(side: str, source: str | os.PathLike | Sequence[str | os.PathLike]) -> MediaFiles:
    """Collect the files of one side.

    Args:
        side: "audio" or "video".
        source: a directory, to be searched; one file; or files, in order.

    Raises:
        EvaluationError: there are none.
    """
    if not isinstance(source, str | os.PathLike):
        files = MediaFiles(side, tuple(map(os.fspath, source)))
    elif not os.path.isdir(source):
        files = MediaFiles(side, (os.fspath(source),))
    else:
        suffixes = AUDIO_SUFFIXES if side == "audio" else VIDEO_SUFFIXES
        found = find_files(os.fspath(source), suffixes)
        if side == "audio" and not found and (found := find_files(os.fspath(source), VIDEO_SUFFIXES)):
            log.warning("%s: no audio files; the sound of its %d video files is used", source, len(found))
        files = MediaFiles(side, tuple(found), os.fspath(source))
        if not found:
            raise EvaluationError(f"{source}: no {side} files ({' '.join(suffixes)}) in this directory")
    if not files.paths:
        raise EvaluationError(f"no {side} files given")
    return files


@dataclass(frozen=True)
class Pairing:
    """Which sound belongs to which video."""

    rule: str  # "stem", "position", "file" or "none"
    pairs: tuple[tuple[str, str], ...] = ()  # (audio path, video path)
    unmatched_audio: tuple[str, ...] = ()
    unmatched_video: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()  # those of the unmatched that several files could belong to

    @property
    def n_unmatched(self) -> int:
        return len(self.unmatched_audio) + len(self.unmatched_video)


def match_names(
    sounds: Sequence[str], videos: Sequence[str], sound_name: Callable, video_name: Callable
) -> tuple[list[tuple[str, str]], list[tuple[list[str], list[str]]]]:
    """Match two sides by the names of their files.

    Returns:
        the pairs of files that alone have their name, and the groups that share one with others.
    """
    groups = defaultdict(lambda: ([], []))  # name -> its sounds, its videos
    for i, (paths, name_of) in enumerate(((sounds, sound_name), (videos, video_name))):
        for path in paths:
            # One name can be spelt in two ways in Unicode, and file systems differ in which.
            groups[unicodedata.normalize("NFC", name_of(path))][i].append(path)
    both = [group for group in groups.values() if all(group)]
    pairs = [(group[0][0], group[1][0]) for group in both if len(group[0]) == len(group[1]) == 1]
    return pairs, [group for group in both if len(group[0]) + len(group[1]) > 2]


def pair_files(audio: MediaFiles, video: MediaFiles) -> Pairing:
    """Pair sounds with videos, in the order of the sounds.

    Files pair by stem; where several on a side share one, by the path below the directory. What is
    still ambiguous is not paired. If no stem is on both sides, two lists of equal length pair by
    position.
    """
    pairs, clashes = match_names(audio.distinct, video.distinct, stem, stem)
    if not pairs and not clashes:
        if audio.root is None and video.root is None and len(audio.paths) == len(video.paths):
            return Pairing("position", tuple(zip(audio.paths, video.paths, strict=True)))
        return Pairing("none", (), audio.distinct, video.distinct)
    for sounds, videos in clashes:
        pairs += match_names(sounds, videos, audio.key, video.key)[0]
    order = {path: i for i, path in enumerate(audio.distinct)}
    pairs.sort(key=lambda pair: order[pair[0]])
    paired_audio, paired_video = ({pair[i] for pair in pairs} for i in (0, 1))
    ambiguous = []
    for sounds, videos in clashes:
        sounds = [path for path in sounds if path not in paired_audio]
        videos = [path for path in videos if path not in paired_video]
        ambiguous += sounds + videos if sounds and videos else []
    return Pairing(
        "stem",
        tuple(pairs),
        tuple(path for path in audio.distinct if path not in paired_audio),
        tuple(path for path in video.distinct if path not in paired_video),
        tuple(ambiguous),
    )


def pair_with_own_sound(video: MediaFiles) -> Pairing:
    """Pair each video file with itself: its picture with its sound."""
    return Pairing("file", tuple((path, path) for path in video.distinct))


@dataclass(frozen=True)
class Captioned:
    """Which text belongs to which file."""

    texts: dict[str, str]  # name -> text, of all captions
    of_pair: dict[tuple[str, str], str]  # (audio path, video path) -> name
    of_file: dict[str, dict[str, str]]  # side -> path -> name
    n_skipped: int  # rows that could not be used

    @cached_property
    def matched(self) -> set[str]:
        return {name for names in self.of_file.values() for name in names.values()}


def match_captions(captions: Iterable[str], files: MediaFiles) -> dict[str, str]:
    """Match captions with files by name: path -> name of its caption.

    A caption goes by a file's name as it is in the outputs, with or without extension. One that goes by none
    may have folders before the name that the files do not need to be told apart; not if two do.
    """
    paths = {unicodedata.normalize("NFC", files.names[path]): path for path in files.distinct}
    found, others = {}, defaultdict(list)
    for name in captions:
        bare = without_suffix(name)
        if path := paths.get(name) or paths.get(bare):
            found.setdefault(path, name)
        elif path := paths.get(os.path.basename(bare)):
            others[path].append(name)
    return {path: names[0] for path, names in others.items() if len(names) == 1} | found


def without_suffix(name: str) -> str:
    """Give a name without the extension of a media file."""
    bare, suffix = os.path.splitext(name)
    return bare if suffix.lower() in AUDIO_SUFFIXES + VIDEO_SUFFIXES else name


def add_captions(
    source: str | os.PathLike | Mapping[str, str],
    audio: MediaFiles,
    video: MediaFiles,
    pairs: Sequence[tuple[str, str]],
    retrieval: bool,
) -> Captioned:
    """Read captions, and match them with pairs, or in retrieval mode with files.

    Raises:
        EvaluationError: there are none, or none belongs to anything.
    """
    try:
        captions = caption_files.read_captions(source)
    except caption_files.CaptionsError as e:
        raise EvaluationError(str(e)) from e
    of_file = {files.side: match_captions(captions.texts, files) for files in (audio, video)}
    of_pair = {}
    for pair in pairs:
        if name := of_file["video"].get(pair[1]) or of_file["audio"].get(pair[0]):
            of_pair[pair] = name
    if retrieval:  # what is said of a file is said of its partner
        for (sound, movie), name in of_pair.items():
            of_file["audio"].setdefault(sound, name)
            of_file["video"].setdefault(movie, name)
    else:
        of_file = {side: {pair[i]: name for pair, name in of_pair.items()} for i, side in enumerate(of_file)}
    captioned = Captioned(captions.texts, of_pair, of_file, captions.n_skipped)
    report_captions(captioned, pairs, retrieval)
    return captioned


def report_captions(captioned: Captioned, pairs: Sequence[tuple[str, str]], retrieval: bool) -> None:
    """Say on the log what has a caption, and name the first of those that have none.

    Raises:
        EvaluationError: nothing has one.
    """
    unmatched = [name for name in captioned.texts if name not in captioned.matched]
    if not captioned.matched:
        what = "file" if retrieval else "pair"
        raise EvaluationError(f"no caption has the name of a {what}; captions are for {shorten(unmatched)}")
    if unmatched:
        log.warning("%d captions belong to nothing: %s", len(unmatched), shorten(unmatched))
    if others := [stem(pair[1]) for pair in pairs if pair not in captioned.of_pair]:
        log.warning("%d pairs without a caption: %s", len(others), shorten(others))
    log.info("%d captions, %d of them used", len(captioned.texts), len(captioned.matched))


def report_pairing(audio: MediaFiles, video: MediaFiles, pairing: Pairing) -> None:
    """Say on the log how the files were paired, and name the first that were not."""
    if pairing.rule == "file":
        log.info("no audio is given: each video's own sound is judged against its picture")
    elif pairing.rule == "position":
        log.warning("no file name is on both sides; the two lists are paired by position")
    elif pairing.rule == "none":
        log.warning("no file name is on both sides; all files are compared, without knowing the pairs")
    else:
        if pairing.ambiguous:
            log.warning("not paired, as several files share the name: %s", shorten(pairing.ambiguous))
        for side, paths in (("audio", pairing.unmatched_audio), ("video", pairing.unmatched_video)):
            if others := sorted(set(paths) - set(pairing.ambiguous)):
                log.warning("%d %s files without a partner: %s", len(others), side, shorten(others))
    log.info(
        "%d audio files, %d video files, %d pairs",
        len(audio.distinct),
        len(video.distinct),
        len(pairing.pairs),
    )


# ------------------------------------------------------------------------------------------------
# Embedding: rows that are tied to files
# ------------------------------------------------------------------------------------------------

PAIR_SIDES = ("audio", "video")
MODALITIES = {"audio": "audio", "video": "vision", "text": "text"}  # side -> tower
SECONDS_PER_LINE = 30  # of progress, where there is no terminal


@dataclass(frozen=True)
class Failure:
    """A file that was skipped."""

    path: str  # of a caption the text
    side: str
    reason: str


def load_model(checkpoint: str | os.PathLike | None, sides: Iterable[str]) -> tuple[ImageBindModel, Path]:
    """Open the checkpoint; its weights are mapped, and read when they are first used.

    Raises:
        EvaluationError: the weights cannot be had, or are not what they should be.
    """
    from imagebind.models import checkpoints, imagebind_model

    try:
        path = Path(checkpoint or checkpoints.released_checkpoint())
        model = imagebind_model.load_model(path)
    except checkpoints.CheckpointError as e:
        raise EvaluationError(str(e)) from e
    for side in sides:
        if MODALITIES[side] not in model.towers:
            raise EvaluationError(f"{path}: has no {MODALITIES[side]} tower")
    return model, path


def choose_device(device: str, ranks: Ranks | None = None) -> torch.device:
    """Take the device, or the CPU where CUDA is asked for and there is none.

    Of several processes on a host each takes a GPU of its own.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        if ranks is None or ranks.is_first:
            log.warning("CUDA is not available; the CPU is used")
        device = "cpu"
    elif device.startswith("cuda") and ranks is not None:
        device = f"cuda:{ranks.local_rank}"
        if ranks.n_local > torch.cuda.device_count():
            n = torch.cuda.device_count()
            raise EvaluationError(f"{ranks.n_local} processes on a host with {n} GPUs; --nproc_per_node {n}")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as e:
        raise EvaluationError(f"{device}: {str(e).splitlines()[0]}") from e


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve "auto": the fastest that keeps every cosine within 5e-4 of fp32, and their mean within 1e-4.

    On the full-size model fp16 does (2e-5 and 1e-6) and bf16 does not (its mean is off by 2e-4).
    """
    if precision != "auto":
        return precision
    return "fp16" if device.type == "cuda" else "fp32"


def protocol(
    checkpoint: Path, sha256: str, note: str, device: torch.device, precision: str, sides: Iterable[str]
) -> dict[str, Any]:
    """Describe how rows are computed: what a reader needs to get the same figures again."""
    import torch

    from imagebind import data

    card = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "checkpoint": {"file": checkpoint.name, "sha256": sha256, "note": note},
        "precision": precision,
        "device": f"{device}{card}",
        "audio": {
            "clips": data.AUDIO_CLIPS,
            "clip_seconds": data.CLIP_SECONDS,
            "sample_rate": data.SAMPLE_RATE,
            "mel_bins": data.MEL_BINS,
            "mel_frames": data.MEL_FRAMES,
            "channel": "first",
        },
        "video": {
            "clips": data.VIDEO_CLIPS,
            "clip_seconds": data.CLIP_SECONDS,
            "frames_per_clip": data.FRAMES_PER_CLIP,
            "crops": data.CROPS,
            "size": data.SIZE,
        },
        **({"text": {"tokens": data.TEXT_TOKENS, "tokenizer": "CLIP"}} if "text" in sides else {}),
        "file_embedding": "mean over clips of unit rows times the scale of the tower",
        "similarity": "cosine",
        "rank": "1 + better + equal others / 2",
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


class Progress:
    """How far one side is, in all processes of the job: a bar on a terminal, a line now and then elsewhere.

    Args:
        side: of the files.
        total: files of all processes.
        ranks: the processes, of which the first one shows.
    """

    def __init__(self, side: str, total: int, ranks: Ranks | None):
        self.side, self.total, self.ranks = side, total, ranks
        self.own, self.elsewhere = Counter(), Counter()  # files that are done, skipped, cached
        self.began = self.said = self.asked = time.monotonic()
        self.bar = None

    @property
    def counts(self) -> Counter:
        """Of all processes, as far as they have told."""
        return self.own + self.elsewhere

    def update(self, skipped: bool, cached: bool) -> None:
        """Count one file."""
        self.own.update(done=1, skipped=skipped, cached=cached)
        if self.ranks is not None:
            self.ranks.counts[self.side] = dict(self.own)
        self.show()

    def show(self) -> None:
        """Bring what is shown up to date."""
        if self.ranks is not None and not self.ranks.is_first:
            return
        now = time.monotonic()
        if self.ranks is not None and now - self.asked > BEAT_SECONDS:
            self.asked = now
            self.hear(self.ranks.others())
        if self.bar is None:  # with the first file, so that the sides do not share a line
            self.bar = tqdm(desc=self.side, total=self.total, unit="file", disable=not sys.stderr.isatty())
        counts = self.counts
        done, skipped, cached = (counts[what] for what in ("done", "skipped", "cached"))
        self.bar.set_postfix(skipped=skipped, cached=cached, refresh=False)
        self.bar.update(done - self.bar.n)
        if self.bar.disable and now - self.said > SECONDS_PER_LINE:
            self.said = now
            rate = done / (now - self.began)
            log.info(
                "%s: %d of %d files, %.2f files/s, %.0f s left, %d skipped, %d cached",
                *(self.side, done, self.total, rate, (self.total - done) / rate, skipped, cached),
            )
        if done == self.total:
            self.close()

    def hear(self, told: Iterable[dict[str, dict[str, int]]]) -> None:
        """Take what the other processes have counted, each by side."""
        self.elsewhere = sum((Counter(counts.get(self.side)) for counts in told), Counter())

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


class Rows:
    """Embeddings of the files of one side, in the order in which they come.

    They lie in one piece, and on disk where there is an output directory: each for itself, they would lie
    between the model's activations and keep what those leave from being used again.

    Args:
        n_files: that may come.
        folder: where there is room; None keeps them in memory.
    """

    def __init__(self, n_files: int, folder: str | os.PathLike | None):
        self.n_files, self.folder = n_files, folder
        self.places: dict[str, int] = {}  # path -> row
        self.array: np.ndarray | None = None  # (n_files, E), made with the first row

    def keep(self, path: str, row: np.ndarray) -> np.ndarray:
        """Take the row (E,) of a file, and give where it lies."""
        if self.array is None:
            self.array = file_backed((self.n_files, len(row)), self.folder)
        place = self.array[len(self.places)]
        place[:] = row
        self.places[path] = len(self.places)
        return place

    def copy(self, paths: Sequence[str], array: np.ndarray) -> None:
        """Copy the rows of some files, in their order, to an array (N, E)."""
        places = np.fromiter(map(self.places.__getitem__, paths), np.int64, len(paths))
        for i in range(0, len(places), ROWS_AT_A_TIME):
            array[i : i + ROWS_AT_A_TIME] = self.array[places[i : i + ROWS_AT_A_TIME]]


def file_backed(shape: tuple[int, int], folder: str | os.PathLike | None) -> np.ndarray:
    """Make a float32 array, in a file of a folder that is gone with it; None: in memory.

    Raises:
        EvaluationError: there is no room.
    """
    if folder is None:
        return np.empty(shape, np.float32)
    try:
        ensure_directory(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, 4 * math.prod(shape))
            return np.memmap(file, np.float32, shape=shape)
    except OSError as e:
        raise EvaluationError(f"{folder}: cannot hold the embeddings ({e.strerror})") from e


def ensure_directory(output_dir: str | os.PathLike) -> None:
    """Make the output directory again if somebody removed it."""
    if not os.path.isdir(output_dir):
        log.warning("%s: gone during the run; made again", output_dir)
        os.makedirs(output_dir)


def reserve(file: BinaryIO, size: int) -> None:
    """Make a file of this size; to write to memory that is a file kills the process where a disk is full."""
    if size:
        os.posix_fallocate(file.fileno(), 0, size)


class FileEmbedder:
    """Files to rows: workers read, the model embeds, the cache keeps.

    Args:
        model: as loaded; it moves to the device when the first file needs it.
        device, precision: of the model.
        cache: of rows, or None.
        batch_size: files that go to the model together.
        workers: processes that read files; None reads in this one.
        folder: for rows on disk; None keeps them in memory.
        ranks: the processes of the job, each with files of its own.
    """

    def __init__(
        self,
        model: ImageBindModel,
        device: torch.device,
        precision: str,
        cache: EmbeddingCache | None,
        batch_size: int,
        workers: Workers | None,
        folder: str | os.PathLike | None,
        ranks: Ranks | None = None,
    ):
        self.model, self.device, self.precision, self.folder = model, device, precision, folder
        self.cache, self.batch_size, self.workers, self.ranks = cache, batch_size, workers, ranks
        self.embedder = None
        self.rows: dict[str, Rows] = {}  # by side
        self.failures: list[Failure] = []
        self.cut: set[str] = set()  # texts that are too long
        self.contents: dict[tuple[str, str], np.ndarray] = {}  # (side, hash) -> row, of this run
        self.progress: dict[str, Progress] = {}  # by side
        self.began = 0.0
        self.seconds = Counter()  # where the time went

    def embed(self, sides: dict[str, Sequence[str]], room: dict[str, int] | None = None) -> None:
        """Embed files of all sides; one that cannot be is left out and costs no other.

        Args:
            sides: paths, each once, by side; of captions the texts.
            room: for how many rows of each side, where those of other processes are to come.

        Raises:
            EvaluationError: a file does not fit into the device's memory, or no process can be started.
            KeyboardInterrupt: says what is kept.
        """
        from imagebind.loader import load_files

        files = [(side, path) for side, paths in sides.items() for path in paths]
        room = room or {side: len(paths) for side, paths in sides.items()}
        self.progress = {side: Progress(side, n, self.ranks) for side, n in room.items() if n}
        self.rows = {side: Rows(n, self.folder) for side, n in room.items()}
        waiting = {side: {} for side in sides}  # side -> content, or path where there is no cache -> files
        ahead, on_gpu = 2 * self.batch_size, self.device.type == "cuda"
        self.began = time.perf_counter()
        loaded = load_files(files, self.workers, self.cache, ahead, pin_memory=on_gpu)
        try:
            while (file := self._timed("waiting", lambda: next(loaded, None))) is not None:
                self._take(file, waiting[file.side])
                if len(waiting[file.side]) == self.batch_size:
                    self._embed_waiting(file.side, waiting[file.side])
            for side in sides:
                self._embed_waiting(side, waiting[side])
        except (MemoryError, WorkersError) as e:
            raise EvaluationError(str(e) or "out of memory") from e
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.embedded()) from None

    def show_progress(self) -> None:
        """Show how far all processes are, while this one has nothing to do."""
        for progress in self.progress.values():
            progress.show()

    def hear(self, told: Sequence[dict[str, dict[str, int]]]) -> None:
        """Take what the other processes have counted, each by side."""
        for progress in self.progress.values():
            progress.hear(told)

    def close_progress(self) -> None:
        """Leave the bars as they are."""
        for progress in self.progress.values():
            progress.close()

    def sort_failures(self, sides: dict[str, Sequence[str]]) -> None:
        """Bring failures into the order of the files."""
        files = ((side, path) for side, paths in sides.items() for path in paths)
        order = {file: i for i, file in enumerate(files)}
        self.failures.sort(key=lambda failure: order[failure.side, failure.path])

    def embedded(self) -> str:
        """Say how many of all files are embedded, and where they are kept."""
        sides = self.progress.values()
        if self.ranks is not None:
            with suppress(RanksError):
                self.hear(self.ranks.others())
        n_rows = sum(side.counts["done"] - side.counts["skipped"] for side in sides)
        kept = "" if self.cache is None else f" and kept in {self.cache.path}"
        return f"{n_rows} of {sum(side.total for side in sides)} files are embedded{kept}"

    @property
    def scales(self) -> dict[str, float]:
        """The length of a clip's row, of sounds and of videos."""
        return {side: float(self.model.towers[MODALITIES[side]].scale) for side in PAIR_SIDES}

    def report_time(self) -> None:
        """Say on the log where the time went; of several processes, this one's."""
        if self.workers is None:
            where = "before it, without workers"
        else:
            where = f"in {self.workers.n_workers} workers beside it"
        counts = {side: progress.counts for side, progress in self.progress.items()}
        n_texts = counts["text"]["done"] if "text" in counts else 0
        log.info(
            "%d files%s in %.1f s%s, %d from the cache: %smodel %.1f s, waiting %.1f s; "
            "reading took %.1f s %s",
            sum(count["done"] for count in counts.values()) - n_texts,
            f" and {n_texts} captions" if n_texts else "",
            time.perf_counter() - self.began,
            "" if self.ranks is None else f" by {self.ranks.n_ranks} processes",
            sum(count["cached"] for count in counts.values()),
            "" if self.ranks is None else "in the first one ",
            *(self.seconds[what] for what in ("model", "waiting", "reading")),
            where,
        )

    def _timed(self, what: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[what] += time.perf_counter() - began

    def _take(self, file: LoadedFile, waiting: dict[str, list[LoadedFile]]) -> None:
        """Give a file its failure or the row that is known, or let it wait for the model."""
        self.seconds["reading"] += file.seconds
        for warning in file.warnings:
            log.warning("%s", warning)
        if file.is_cut:
            self.cut.add(file.path)
        row = self.contents.get((file.side, file.content)) if file.row is None else file.row
        if file.reason is not None:
            self._skip(file, file.reason)
        elif row is not None:
            self._keep(file, row)
        else:
            files = waiting.setdefault(file.content or file.path, [])
            files.append(replace(file, input=None) if files else file)  # one input does for all

    def _embed_waiting(self, side: str, waiting: dict[str, list[LoadedFile]]) -> None:
        """Give the files that wait their rows, the same one to files of the same content."""
        if not waiting:
            return
        inputs = [files[0].input for files in waiting.values()]
        rows = self._timed("model", lambda: self._forward(MODALITIES[side], inputs))
        finite = {key: row for key, row in zip(waiting, rows, strict=True) if np.isfinite(row).all()}
        if self.cache is not None:
            self.cache.put(side, finite.items())
        for key, files in waiting.items():
            for file in files:
                if key in finite:
                    self._keep(file, finite[key])
                else:
                    self._skip(file, "its embedding is not finite")
        waiting.clear()

    def _forward(self, modality: str, inputs: list) -> np.ndarray:
        if self.embedder is None:
            from imagebind.models.embedder import Embedder

            self.embedder = Embedder(self.model, self.device, self.precision)
        return self.embedder(modality, inputs).numpy()

    def _keep(self, file: LoadedFile, row: np.ndarray) -> None:
        stored = self.rows[file.side].keep(file.path, row)
        if file.content is not None:
            self.contents[file.side, file.content] = stored
        self.progress[file.side].update(skipped=False, cached=file.row is not None)

    def _skip(self, file: LoadedFile, reason: str) -> None:
        what = "caption" if file.side == "text" else f"{file.side} file"
        log.warning("skipped %s %s: %s", what, file.path, reason)
        self.failures.append(Failure(file.path, file.side, reason))
        self.progress[file.side].update(skipped=True, cached=False)


def n_cores(ranks: Ranks | None) -> int:
    """Count the cores that this process may use; the processes of a job share those of their host."""
    has_affinity = hasattr(os, "sched_getaffinity")
    n = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return n if ranks is None else max(1, n // ranks.n_local)


def start_workers(
    num_workers: int | None, n_files: int, timeout: float, memory_gb: float, ranks: Ranks | None = None
) -> Workers | None:
    """Start the processes that read files; None is one for each core that this process may use."""
    if num_workers is None:
        num_workers = n_cores(ranks)
    if num_workers == 0:
        return None
    return Workers("imagebind.loader:read_file", min(num_workers, n_files), timeout, round(memory_gb * 1e9))


def open_embedder(
    checkpoint: str | os.PathLike | None,
    device: str,
    precision: str,
    cache: str | os.PathLike | None,
    batch_size: int,
    workers: Workers | None,
    folder: str | os.PathLike | None,
    sides: Sequence[str],
    ranks: Ranks | None = None,
) -> tuple[FileEmbedder, dict[str, Any]]:
    """Make ready to embed files of some sides.

    Returns:
        the embedder, and the protocol: how it computes rows.

    Raises:
        EvaluationError: the weights cannot be had, or there is no such device.
    """
    import torch

    if ranks is None:
        model, path = load_model(checkpoint, sides)
        sha256 = content_hash(path)
    else:
        torch.set_num_threads(n_cores(ranks))
        if ranks.local_rank:  # the first one of the host downloads and reads it
            sha256 = ranks.from_first_of_host("checkpoint")
        model, path = load_model(checkpoint, sides)
        if not ranks.local_rank:
            sha256 = ranks.from_first_of_host("checkpoint", content_hash(path))
    device = choose_device(device, ranks)
    precision = choose_precision(precision, device)
    if ranks is not None:
        check_same(ranks, "checkpoint", sha256[:16])
        check_same(ranks, "device", device.type)
    kept = None if cache is None else EmbeddingCache(cache, sha256, precision, ranks.rank if ranks else 0)
    embedder = FileEmbedder(model, device, precision, kept, batch_size, workers, folder, ranks)
    return embedder, protocol(path, sha256, model.note, device, precision, sides)


def check_same(ranks: Ranks, what: str, own: str) -> None:
    """Raise an EvaluationError where the processes of a job differ."""
    values = ranks.tell_all(what, own)
    for rank, value in enumerate(values):
        if value != values[0]:
            raise EvaluationError(f"processes 0 and {rank} differ in {what}: {values[0]}, {value}")


def share_files(ranks: Ranks, side: str, paths: Sequence[str]) -> list[Sequence[str]]:
    """Give each process its part of a list of files: as many as the others, and of the same sizes."""

    def size(path: str) -> int:
        with suppress(OSError):
            return os.stat(path).st_size
        return 0

    sizes = np.fromiter(map(len if side == "text" else size, paths), np.int64, len(paths))
    shares = (share_of(sizes, rank, ranks.n_ranks) for rank in range(ranks.n_ranks))
    return [[paths[i] for i in share] for share in shares]


def gather_rows(ranks: Ranks, embedder: FileEmbedder, messages: list[tuple[int, str]]) -> None:
    """Send rows, failures and warnings of all processes to the first."""

    def own() -> Iterator[Any]:
        yield "messages", messages
        yield "failures", embedder.failures
        yield "cut", embedder.cut
        for side, rows in embedder.rows.items():
            paths = list(rows.places)
            for i in range(0, len(paths), ROWS_AT_A_TIME):
                part = paths[i : i + ROWS_AT_A_TIME]
                yield side, (part, rows.array[i : i + len(part)])

    told = ranks.tell_all("embedded", ranks.counts, meanwhile=embedder.show_progress)
    embedder.hear(told[1:])  # the first one's are its own
    embedder.show_progress()
    said = set()
    for what, value in ranks.to_first(own()):
        if what == "messages":
            for level, message in value:
                if message not in said:
                    log.log(level, "%s", message)
                said.add(message)
        elif what == "failures":
            embedder.failures += value
        elif what == "cut":
            embedder.cut |= value
        else:
            for path, row in zip(*value, strict=True):
                embedder.rows[what].keep(path, row)


def arrange_rows(
    sounds: Sequence[str], videos: Sequence[str], pairs: Sequence[tuple[str, str]], retrieval: bool
) -> tuple[Sequence[str], Sequence[str], list[tuple[str, str]], np.ndarray]:
    """Choose the order of the rows, from files that have one alone.

    Returns:
        the files behind the rows of either side, the pairs among them, and these as row numbers (P, 2). In
        pairing mode pair i is row i of both sides; in retrieval mode all files stay, in their order.
    """
    sound_row = {path: i for i, path in enumerate(sounds)}
    video_row = {path: i for i, path in enumerate(videos)}
    pairs = [(sound, video) for sound, video in pairs if sound in sound_row and video in video_row]
    if not retrieval:
        both = np.arange(len(pairs))
        return [sound for sound, _ in pairs], [video for _, video in pairs], pairs, np.stack([both, both], 1)
    return sounds, videos, pairs, as_cells((sound_row[sound], video_row[video]) for sound, video in pairs)


def as_cells(places: Iterable[tuple[int, int]]) -> np.ndarray:
    """Give rows and columns as an array (C, 2)."""
    return np.array(list(places), np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class CaptionRows:
    """The captions among the rows of a run."""

    names: list[str]  # of each row
    texts: list[str]
    truth: dict[str, np.ndarray]  # side -> (K, 2) row of a caption, and row of the file that it belongs to


def arrange_captions(
    captioned: Captioned,
    embedded: Container[str],
    rows: dict[str, Sequence[str]],
    pairs: Sequence[tuple[str, str]],
    retrieval: bool,
) -> CaptionRows:
    """Choose the order of the rows of captions.

    Args:
        embedded: texts that have a row.
        rows: side -> the files behind its rows.
        pairs: as in arrange_rows; in pairing mode a caption has a row for each of its pairs, in their order,
            in retrieval mode one, in the order of the captions.
    """

    def is_there(name: str | None) -> bool:
        return name is not None and captioned.texts[name] in embedded

    if not retrieval:
        named = [(i, captioned.of_pair.get(pair)) for i, pair in enumerate(pairs)]
        named = [(i, name) for i, name in named if is_there(name)]
        names = [name for _, name in named]
        truth = as_cells((row, i) for row, (i, _) in enumerate(named))
        return CaptionRows(names, [captioned.texts[name] for name in names], dict.fromkeys(rows, truth))
    own = {side: [captioned.of_file[side].get(path) for path in paths] for side, paths in rows.items()}
    used = {name for names in own.values() for name in names if is_there(name)}
    names = [name for name in captioned.texts if name in used]
    row_of = {name: row for row, name in enumerate(names)}
    truth = {
        side: as_cells((row_of[name], i) for i, name in enumerate(own[side]) if name in used) for side in rows
    }
    return CaptionRows(names, [captioned.texts[name] for name in names], truth)


# ------------------------------------------------------------------------------------------------
# Metrics
# ------------------------------------------------------------------------------------------------


def retrieval_metrics(ranks: np.ndarray, n_candidates: int) -> dict[str, float]:
    """Give mean and median rank, mean reciprocal rank, and Recall@K with what it is by chance.

    Recall@K is the share of ranks that are K or better.
    """
    return {
        "mean_rank": float(ranks.mean()),
        "median_rank": float(np.median(ranks)),
        "mean_reciprocal_rank": float((1 / ranks).mean()),
        **{f"recall_at_{k}": float((ranks <= k).mean()) for k in RECALL_AT},
        **{f"recall_at_{k}_chance": min(k / n_candidates, 1.0) for k in RECALL_AT},
    }


@dataclass(frozen=True)
class Mismatches:
    """The cells of a similarity matrix that are no true pair, and where the pairs lie among them."""

    n: int
    mean: float  # NaN where there are none
    std: float
    n_above: np.ndarray  # (P,) mismatches more similar than the pair
    n_equal: np.ndarray  # (P,) and as similar
    n_below_beside: np.ndarray  # (P,) those of the pair's own row and column that are less similar
    n_beside: np.ndarray  # (P,) all of these
    histogram: np.ndarray  # (HISTOGRAM_BINS,)

    @property
    def auc(self) -> float:
        """Probability that a pair is more similar than a mismatch; ties count half (Mann-Whitney U)."""
        return 1 - float((self.n_above + self.n_equal / 2).mean()) / self.n

    @property
    def p_values(self) -> np.ndarray:
        """(P,) how likely a mismatch is as similar as the pair: (1 + at least as similar) / (1 + all)."""
        return (1 + self.n_above + self.n_equal) / (1 + self.n)


@dataclass(frozen=True)
class Cells:
    """Single cells of a similarity matrix."""

    places: np.ndarray  # (C, 2) rows and columns
    keys: np.ndarray  # (C,) of their cosines


def find_mismatches(found: Scan, pairs: Cells, true: Cells) -> Mismatches:
    """Hold the pairs against all cells that are not true.

    Args:
        found: what was counted over the matrix.
        pairs: a cell may stand there twice.
        true: the pairs, and other cells that are no mismatches, where a file has several rows; each once.
    """
    from imagebind import similarity

    n = math.prod(found.shape) - len(true.keys)
    cosines = similarity.from_keys(true.keys).astype(np.float64)
    mean = (found.sum - math.fsum(cosines)) / n if n else math.nan
    mean_square = (math.fsum(found.squares) - math.fsum(cosines**2)) / n if n else math.nan
    n_above, n_equal = found.count_from(pairs.keys)
    ordered = np.sort(true.keys)
    first, last = (np.searchsorted(ordered, pairs.keys, side) for side in ("left", "right"))
    n_below_beside, n_beside = np.zeros((2, len(pairs.keys)), np.int64)
    for side in (0, 1):
        n_true, n_true_below = count_true_beside(pairs, true, side)
        length = found.shape[1 - side]
        n_beside += length - n_true
        n_below_beside += length - found.n_above[side] - found.n_equal[side] - n_true_below
    return Mismatches(
        n,
        mean,
        math.sqrt(max(mean_square - mean**2, 0)) if n else math.nan,
        n_above - (len(ordered) - last),
        n_equal - (last - first),
        n_below_beside,
        n_beside,
        found.histogram(HISTOGRAM_BINS) - similarity.histogram_of(true.keys, HISTOGRAM_BINS),
    )


def count_true_beside(pairs: Cells, true: Cells, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Count the true cells in the row (side 0) or the column (1) of each pair, and those less similar."""

    def ordered(cells: Cells) -> np.ndarray:
        return (cells.places[:, side].astype(np.int64) << 32) + cells.keys + 2**31

    lines = pairs.places[:, side].astype(np.int64) << 32
    everything = np.sort(ordered(true))
    begin, end = np.searchsorted(everything, lines), np.searchsorted(everything, lines + 2**32)
    return end - begin, np.searchsorted(everything, ordered(pairs)) - begin


def not_told_from_chance(p_values: np.ndarray, rate: float = SUSPECT_RATE) -> np.ndarray:
    """Find the pairs that cannot be told from mismatches, by Benjamini and Hochberg's procedure (1995).

    Returns:
        (P,) bool.

    >>> not_told_from_chance(np.array([0.01, 0.5, 0.03]))
    array([False,  True, False])
    """
    order = np.argsort(p_values, kind="stable")
    passes = p_values[order] <= rate * np.arange(1, len(order) + 1) / len(order)
    n_told = np.flatnonzero(passes)[-1] + 1 if passes.any() else 0
    told = np.zeros(len(order), bool)
    told[order[:n_told]] = True
    return ~told


def bootstrap_interval(values: np.ndarray, seed: int) -> list[float] | None:
    """Give the 95 % percentile bootstrap interval of a mean (Efron 1979); None for a single value."""
    if len(values) < 2:
        return None
    generator, n = np.random.default_rng(seed), len(values)
    n_samples = max(BOOTSTRAP_SAMPLES * 10_000 // max(n, 10_000), 1000)
    means = [values[generator.integers(0, n, n)].mean() for _ in range(n_samples)]
    return np.percentile(means, [2.5, 97.5]).tolist()


def compute_metrics(
    found: Scan, pairs: Cells, true: Cells, seed: int = 0, sides: tuple[str, str] = ("audio", "video")
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Describe a similarity matrix; deviations are those of the population (divided by the number).

    Args:
        found: what was counted over the matrix (N, M), of sounds by videos where `sides` says nothing else.
        pairs: the true pairs; without any, what needs them is left out.
        true: as in find_mismatches.
        seed: of the bootstrap.
        sides: what the rows and the columns are.

    Returns:
        the figures of metrics.json; ranks are those of videos for a sound, under video_to_audio
        those of sounds for a video; the columns of pair_scores.csv; and the histograms of the page.
    """
    from imagebind import similarity

    n_cells = math.prod(found.shape)
    mean, mean_square = found.sum / n_cells, math.fsum(found.squares) / n_cells
    metrics = {
        "similarity_matrix_mean": mean,
        "similarity_matrix_std": math.sqrt(max(mean_square - mean**2, 0)),
    }
    mismatches = find_mismatches(found, pairs, true)
    histograms = {
        "edges": np.linspace(-1, 1, HISTOGRAM_BINS + 1),
        "paired": similarity.histogram_of(pairs.keys, HISTOGRAM_BINS),
        "mismatched": mismatches.histogram,
    }
    if not len(pairs.keys):
        return metrics, {}, histograms
    paired = similarity.from_keys(pairs.keys).astype(np.float64)
    # 1 + better + half of the equal others, so that scores that are all equal give the middle rank
    column_ranks, row_ranks = 1 + found.n_above + (found.n_equal - 1) / 2
    scores = {"similarity": paired, f"{sides[1]}_rank": column_ranks, f"{sides[0]}_rank": row_ranks}
    quartiles = np.percentile(paired, [25, 50, 75])
    metrics |= {
        "paired_similarity_mean": float(paired.mean()),
        "paired_similarity_std": float(paired.std()),
        "paired_similarity_min": float(paired.min()),
        "paired_similarity_max": float(paired.max()),
        **{f"paired_similarity_{name}": float(q) for name, q in zip(QUARTILES, quartiles, strict=True)},
        "paired_similarity_interval": bootstrap_interval(paired, seed),
        "bootstrap_seed": seed,
    }
    if mismatches.n:
        p_values = mismatches.p_values
        can_tell = 1 / (1 + mismatches.n) <= SUSPECT_RATE
        suspect = not_told_from_chance(p_values) if can_tell else None
        with np.errstate(invalid="ignore"):  # a pair alone in its row and column
            percentile = mismatches.n_below_beside / mismatches.n_beside
        scores |= {"percentile": percentile, "p_value": p_values}
        metrics |= {
            "mismatched_similarity_mean": mismatches.mean,
            "mismatched_similarity_std": mismatches.std,
            "margin": float(paired.mean()) - mismatches.mean,
            "auc": mismatches.auc,
            "suspects": None if suspect is None else int(suspect.sum()),
        }
        if suspect is not None:
            scores["suspect"] = suspect
    metrics |= {
        "paired_similarities": paired.tolist(),
        **retrieval_metrics(column_ranks, found.shape[1]),
        f"{sides[1]}_to_{sides[0]}": retrieval_metrics(row_ranks, found.shape[0]),
    }
    return metrics, scores, histograms


# ------------------------------------------------------------------------------------------------
# Outputs
# ------------------------------------------------------------------------------------------------

REPORT_RULE = "=" * 80
FAILURES_SHOWN = 20  # in the report; metrics.json has all

ENGLISH = {
    "音频-视频一致性评估报告": "Audio-video consistency report",
    "注意": "Note",
    "音频数量": "Audio files",
    "视频数量": "Video files",
    "配对数量": "Pairs",
    "相似度统计": "Similarity of all combinations",
    "平均相似度": "Mean",
    "标准差": "Standard deviation",
    "配对一致性": "Similarity of pairs",
    "平均配对相似度": "Mean",
    "最小值": "Minimum",
    "最大值": "Maximum",
    "检索性能": "Retrieval, audio to video",
    "检索性能 (视频到音频)": "Retrieval, video to audio",
    "平均排名": "Mean rank",
    "中位数排名": "Median rank",
    "无": "None",
    "两侧没有相同的文件名，不知道哪些文件成对": "no file name is on both sides, so the pairs are not known",
    "每一对都有文件被跳过": "every pair lost a file that was skipped",
    "与不成对的组合相比": "Against mismatched combinations",
    "平均配对相似度的 95% 置信区间": "95% interval of the mean of pairs",
    "只有一对": "there is but one pair",
    "不成对组合的平均相似度": "Mean of mismatched combinations",
    "差距": "Margin",
    "配对高于不成对组合的概率 (AUC)": "Probability that a pair is above a mismatch (AUC)",
    "随机水平": "By chance",
    "可疑配对": "Pairs that cannot be told from chance",
    "不成对的组合太少，无法判断": "too few mismatched combinations to tell",
    "其余见 pair_scores.csv": "the others are in pair_scores.csv",
    "文本-音频一致性": "Similarity of captions and audio",
    "文本-视频一致性": "Similarity of captions and video",
    "有文本的数量": "With a caption",
    "平均值": "Mean",
    "95% 置信区间": "95% interval of the mean",
    "检索 (文本到音频)": "Retrieval, caption to audio",
    "检索 (音频到文本)": "Retrieval, audio to caption",
    "检索 (文本到视频)": "Retrieval, caption to video",
    "检索 (视频到文本)": "Retrieval, video to caption",
    "没有文本属于它们": "no caption belongs to one of them",
    "排名": "mean rank {:.2f}, median rank {:.2f}",
    "文本": "Captions",
    "文本数量": "With a row",
    "没有对应文件": "Belonging to nothing",
    "无法使用的行": "Rows that could not be used",
    "过长而被截断": "Too long, cut off",
    "没有文本的配对": "Pairs without a caption",
    "文本输入": "Text input",
    "其他文件": "Other files",
    "无配对，已忽略": "Without a partner, ignored",
    "无配对，作为干扰项": "Without a partner, kept as distractors",
    "跳过": "Skipped",
    "其余见 metrics.json": "the others are in metrics.json",
    "计算方式": "How it was computed",
    "模式": "Mode",
    "pairing": "pairing",
    "retrieval": "retrieval",
    "配对依据": "Pairs by",
    "stem": "file name",
    "position": "position in the two lists",
    "file": "file, each with its own sound",
    "none": "nothing",
    "模型权重": "Checkpoint",
    "精度与设备": "Precision and device",
    "音频输入": "Audio input",
    "视频输入": "Video input",
    "软件版本": "Versions",
}
CHINESE = {
    **{text: text for text in ENGLISH},
    "排名": "平均排名 {:.2f}, 中位数排名 {:.2f}",
    "pairing": "配对模式",
    "retrieval": "检索模式",
    "stem": "文件名",
    "position": "两个列表中的位置",
    "file": "同一文件的声音与画面",
    "none": "无",
}
LANGUAGES = {"zh": CHINESE, "en": ENGLISH}


def format_report(metrics: dict[str, Any], lang: str = "zh") -> str:
    """Write metrics as a report to read, in Chinese ("zh") or English ("en")."""
    words = LANGUAGES[lang]
    counts, note = metrics["counts"], metrics["protocol"]["checkpoint"]["note"]
    lines = [REPORT_RULE, words["音频-视频一致性评估报告"], REPORT_RULE, ""]
    lines += [f"{words['注意']}: {note}", ""] if note else []
    for label, key in (("音频数量", "audio"), ("视频数量", "video"), ("配对数量", "pairs")):
        lines.append(f"{words[label]}: {counts[key]}")
    for title, rows in report_sections(metrics, lang).items():
        lines += ["", f"{title}:"]
        lines += [f"  {label}: {value}" for label, value in rows.items()]
    return "\n".join(lines) + "\n"


def report_sections(metrics: dict[str, Any], lang: str) -> dict[str, dict[str, Any]]:
    """Give the sections of the report: title -> label -> value; labels of files are indented."""
    words = LANGUAGES[lang]
    sections = {
        "相似度统计": {
            "平均相似度": f"{metrics['similarity_matrix_mean']:.4f}",
            "标准差": f"{metrics['similarity_matrix_std']:.4f}",
        },
        **pair_sections(metrics, words),
        **caption_sections(metrics, words),
        **other_files_section(metrics, words),
        **protocol_section(metrics, words),
    }
    return {
        words[title]: {words.get(label, label): value for label, value in rows.items()}
        for title, rows in sections.items()
    }


def pair_sections(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe the pairs and their ranks, or say why there are none."""
    if not metrics["counts"]["pairs"]:
        unknown = metrics["pairing_rule"] == "none"
        why = words["两侧没有相同的文件名，不知道哪些文件成对" if unknown else "每一对都有文件被跳过"]
        return {"配对一致性": {"无": why}, "检索性能": {"无": why}}

    def retrieval(ranks: dict[str, Any]) -> dict[str, str]:
        return {
            "平均排名": f"{ranks['mean_rank']:.2f}",
            "中位数排名": f"{ranks['median_rank']:.2f}",
            **{f"Recall@{k}": f"{ranks[f'recall_at_{k}']:.4f}" for k in RECALL_AT},
        }

    return {
        "配对一致性": {
            "平均配对相似度": mean_and_std(metrics, "paired"),
            "最小值": f"{metrics['paired_similarity_min']:.4f}",
            "最大值": f"{metrics['paired_similarity_max']:.4f}",
        },
        "检索性能": retrieval(metrics),
        "检索性能 (视频到音频)": retrieval(metrics["video_to_audio"]),
        "与不成对的组合相比": against_mismatches(metrics, words),
    }


def mean_and_std(figures: dict[str, Any], which: str) -> str:
    """Write the mean of the "paired" or the "mismatched" similarities with its deviation."""
    return f"{figures[f'{which}_similarity_mean']:.4f} ± {figures[f'{which}_similarity_std']:.4f}"


def against_mismatches(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, str]:
    """Say how sure the mean of the pairs is, and what it is worth against all other combinations."""
    rows = {}
    if interval := metrics["paired_similarity_interval"]:
        rows["平均配对相似度的 95% 置信区间"] = "[{:.4f}, {:.4f}]".format(*interval)
    if "margin" not in metrics:
        return rows or {"无": words["只有一对"]}
    rows |= {
        "不成对组合的平均相似度": mean_and_std(metrics, "mismatched"),
        "差距": f"{metrics['margin']:.4f}",
        "配对高于不成对组合的概率 (AUC)": f"{metrics['auc']:.4f}",
    }
    chance = ", ".join(f"Recall@{k} {metrics[f'recall_at_{k}_chance']:.4f}" for k in RECALL_AT)
    rows["随机水平"] = chance
    if metrics["suspects"] is None:
        rows["可疑配对"] = words["不成对的组合太少，无法判断"]
    else:
        rows["可疑配对"] = metrics["suspects"]
        rows |= {f"  {one_line(s['name'])}": f"{s['similarity']:.4f}" for s in metrics["lowest_suspects"]}
        if len(metrics["lowest_suspects"]) < metrics["suspects"]:
            rows["  ..."] = words["其余见 pair_scores.csv"]
    return rows


def caption_sections(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe how captions agree with sounds and with videos, and count those that are not used."""
    counts = metrics["counts"]
    if "text" not in counts:
        return {}

    def retrieval(ranks: dict[str, Any]) -> str:
        recalls = [f"Recall@{k} {ranks[f'recall_at_{k}']:.4f}" for k in RECALL_AT]
        return ", ".join([*recalls, words["排名"].format(ranks["mean_rank"], ranks["median_rank"])])

    sections = {}
    for side, name in (("audio", "音频"), ("video", "视频")):
        figures = metrics.get(f"text_{side}", {})
        if "paired_similarity_mean" not in figures:
            sections[f"文本-{name}一致性"] = {"无": words["没有文本属于它们"]}
            continue
        rows = {"有文本的数量": len(figures["paired_similarities"])}
        rows["平均值"] = mean_and_std(figures, "paired")
        if interval := figures["paired_similarity_interval"]:
            rows["95% 置信区间"] = "[{:.4f}, {:.4f}]".format(*interval)
        if "margin" in figures:
            rows["不成对组合的平均相似度"] = mean_and_std(figures, "mismatched")
            rows["配对高于不成对组合的概率 (AUC)"] = f"{figures['auc']:.4f}"
        rows[f"检索 (文本到{name})"] = retrieval(figures)
        rows[f"检索 ({name}到文本)"] = retrieval(figures[f"{side}_to_text"])
        sections[f"文本-{name}一致性"] = rows
    labels = {
        "文本数量": "text",
        "没有文本的配对": "pairs_without_text",
        "没有对应文件": "text_unmatched",
        "无法使用的行": "text_skipped",
        "过长而被截断": "text_cut",
    }
    used = {label: counts[key] for label, key in labels.items() if counts[key] or key == "text"}
    return {**sections, "文本": used}


def other_files_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Count the files that are not among the pairs, and name the first of those that were skipped."""
    rows = {}
    if unmatched := metrics["counts"]["unmatched"]:
        kept = metrics["mode"] == "retrieval"
        rows["无配对，作为干扰项" if kept else "无配对，已忽略"] = unmatched
    if failures := metrics["failures"]:
        rows["跳过"] = len(failures)
        rows |= {f"  {f['side']} {one_line(f['path'])}": f["reason"] for f in failures[:FAILURES_SHOWN]}
    if len(failures) > FAILURES_SHOWN:
        rows["  ..."] = words["其余见 metrics.json"]
    return {"其他文件": rows} if rows else {}


def protocol_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Say how the figures were computed."""

    def listed(facts: dict[str, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in facts.items())

    protocol = metrics["protocol"]
    checkpoint = protocol["checkpoint"]
    return {
        "计算方式": {
            "模式": words[metrics["mode"]],
            "配对依据": words[metrics["pairing_rule"]],
            "模型权重": f"{one_line(checkpoint['file'])} (sha256 {checkpoint['sha256'][:16]})",
            "精度与设备": f"{protocol['precision']}, {protocol['device']}",
            "音频输入": listed(protocol["audio"]),
            "视频输入": listed(protocol["video"]),
            **({"文本输入": listed(protocol["text"])} if "text" in protocol else {}),
            "软件版本": listed(protocol["versions"]),
        }
    }


FORMULA_STARTS = ("=", "+", "-", "@")

Writer = Callable[[Any, BinaryIO], None]


def npy_writer(key: str) -> Writer:
    """Make the writer of a tensor of the results, as .npy."""

    def write(results: Results, file: BinaryIO) -> None:
        array = np.ascontiguousarray(results[key].numpy())
        write_npy_header(file, array.shape)
        file.write(array.data)  # np.save would hide why a write fails

    return write


def write_npy_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    )


class OutputArrays:
    """Float32 arrays that are outputs from their first number on: files that wait for their names.

    Args:
        output_dir: None keeps them in memory.
    """

    def __init__(self, output_dir: str | os.PathLike | None):
        self.output_dir = output_dir
        self.names: set[str] = set()  # of those that are files

    def new(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Make an array.

        Raises:
            EvaluationError: there is no room.
        """
        if self.output_dir is None:
            return np.empty(shape, np.float32)
        try:
            ensure_directory(self.output_dir)
            with open(temporary_path(self.output_dir, name), "w+b") as file:
                write_npy_header(file, shape)
                offset = file.tell()
                file.flush()
                reserve(file, offset + 4 * math.prod(shape))
                self.names.add(name)
                return np.memmap(file, np.float32, "r+", offset, shape)
        except OSError as e:
            raise EvaluationError(f"{self.output_dir}: cannot write {name} ({e.strerror})") from e

    def copies(self) -> dict[str, torch.Tensor]:
        """Give the arrays, by name without suffix, as they are in the outputs, which they cannot change."""
        import torch

        paths = [Path(self.output_dir, name) for name in sorted(self.names)]
        return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths}


def text_writer(lines_of: Callable[[Results], Iterable[str]]) -> Writer:
    """Make the writer of a text, UTF-8; a byte of a file name that is not stands as \\udcNN."""

    def write(results: Results, file: BinaryIO) -> None:
        file.writelines(f"{line}\n".encode("utf-8", "backslashreplace") for line in lines_of(results))

    return write


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], file: BinaryIO) -> None:
    """Write a table that a spreadsheet opens: UTF-8 with a mark, and no cell a formula."""

    def cell(value: Any) -> Any:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return "" if math.isnan(value) else f"{value:.6g}"
        if not isinstance(value, str):
            return value
        text = field(value)
        return f"'{text}" if text.startswith(FORMULA_STARTS) else text

    text = io.TextIOWrapper(file, "utf-8-sig", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([cell(value) for value in row] for row in rows)
    text.detach()


def write_pair_scores(results: Results, file: BinaryIO) -> None:
    """Write a line for each pair."""
    scores = results["pair_scores"]
    columns = ("name", "audio", "video", *PAIR_COLUMNS, *scores.text_columns)
    write_csv(columns, ([pair.get(column) for column in columns] for pair in scores), file)


def write_top_matches(results: Results, file: BinaryIO) -> None:
    """Write the most similar videos of each sound, then the most similar sounds of each video."""
    columns = ("side", "name", "rank", "match", "similarity", "pair")
    names = {side: results[f"{side}_names"] for side in ("audio", "video")}

    def rows() -> Iterator[Sequence[Any]]:
        for i, (side, other) in enumerate((("audio", "video"), ("video", "audio"))):
            top, own = results["top_matches"][side], defaultdict(set)
            for pair in results["pair_rows"].tolist():
                own[pair[i]].add(pair[1 - i])
            for row, (places, scores) in enumerate(zip(top.places, top.similarities, strict=True)):
                for rank, (place, score) in enumerate(zip(places.tolist(), scores.tolist(), strict=True), 1):
                    if place >= 0:
                        is_pair = place in own[row] if own else None
                        yield side, names[side][row], rank, names[other][place], score, is_pair

    write_csv(columns, rows(), file)


def writers(report_lang: str, output_dir: str | os.PathLike, no_html: bool) -> dict[str, Writer | None]:
    """List the output files, each with what writes the results to it; None where it is left out."""

    def write_page(results: Results, file: BinaryIO) -> None:
        sections = report_sections(results["metrics"], report_lang)
        page.write_report_page(file, results, sections, report_lang, output_dir)

    return {
        "audio_embeddings.npy": npy_writer("audio_embeddings"),
        "video_embeddings.npy": npy_writer("video_embeddings"),
        "text_embeddings.npy": npy_writer("text_embeddings"),
        MATRIX_NAME: npy_writer("similarity_matrix"),
        "audio_names.txt": text_writer(lambda r: map(field, r["audio_names"])),
        "video_names.txt": text_writer(lambda r: map(field, r["video_names"])),
        TEXT_NAMES: text_writer(lambda r: map(field, r["text_names"])),
        "pairs.txt": text_writer(lambda r: ("\t".join(map(field, pair)) for pair in r["pairs"])),
        "pair_scores.csv": write_pair_scores,
        "top_matches.csv": write_top_matches,
        "consistency_report.txt": text_writer(
            lambda r: format_report(r["metrics"], report_lang).splitlines()
        ),
        page.REPORT_PAGE: None if no_html else write_page,
        METRICS_NAME: text_writer(lambda r: [to_json(r["metrics"])]),
    }


def to_json(metrics: dict[str, Any]) -> str:
    """Write strict JSON: NaN and infinity are errors."""
    return json.dumps(metrics, ensure_ascii=False, allow_nan=False, indent=2)


def write_files(
    files: dict[str, Writer | None],
    results: Any,
    output_dir: str | os.PathLike,
    waiting: Iterable[str] = (),
) -> None:
    """Write files: first each to a temporary one, then, when all are whole, rename them.

    metrics.json is the first to go and the last to come: where it is, all are of one run. A file that is
    left out goes too, if an earlier run wrote it.

    Args:
        waiting: names of those that are in their temporary files.

    Raises:
        EvaluationError: one cannot be written; those of an earlier run stay as they were.
    """
    name = "outputs"
    try:
        ensure_directory(output_dir)
        for name, write in files.items():
            if write is None:
                continue
            path = temporary_path(output_dir, name)
            is_there = name in waiting and path.exists()
            with open(path, "r+b" if is_there else "wb") as file:
                if not is_there:
                    write(results, file)
                file.flush()
                os.fsync(file.fileno())
        if METRICS_NAME in files:
            Path(output_dir, METRICS_NAME).unlink(missing_ok=True)
        for name, write in files.items():
            if write is None:
                Path(output_dir, name).unlink(missing_ok=True)
            else:
                os.replace(temporary_path(output_dir, name), Path(output_dir, name))
    except OSError as e:
        raise EvaluationError(f"{output_dir}: cannot write {name} ({e.strerror or e})") from e
    finally:
        remove_temporary_files(output_dir, files)


def write_outputs(outputs: dict[str, Writer | None], results: Results, arrays: OutputArrays) -> None:
    """Write the outputs of a run, without those that it does not have; its arrays are then those files."""
    absent = ARRAY_NAMES - arrays.names | (set() if "text_names" in results else {TEXT_NAMES})
    write_files({**outputs, **dict.fromkeys(absent)}, results, arrays.output_dir, arrays.names)
    results |= arrays.copies()


def temporary_path(output_dir: str | os.PathLike, name: str) -> Path:
    return Path(output_dir, f".{name}.tmp")


def remove_temporary_files(output_dir: str | os.PathLike, names: Iterable[str]) -> None:
    """Remove what a run that was killed may have left."""
    for name in names:
        with suppress(OSError):
            temporary_path(output_dir, name).unlink()


def make_directory(output_dir: str | os.PathLike) -> None:
    """Make the output directory.

    Raises:
        EvaluationError: it cannot be made.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as e:
        raise EvaluationError(f"{output_dir}: cannot write to this directory ({e.strerror})") from e


@contextmanager
def exclusive_use(output_dir: str | os.PathLike, names: Iterable[str]) -> Iterator[None]:
    """Make the output directory, and keep other runs out of it for as long as this one lives.

    Args:
        names: of the files to be written there.

    The lock is the operating system's and goes with the process, however that ends; the file it is on
    only says who holds it.

    Raises:
        EvaluationError: the directory cannot be written to, or another run uses it.
    """
    path = Path(output_dir, LOCK_NAME)
    make_directory(output_dir)
    try:
        file = open_locked(path)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}")
        file.flush()
    except BlockingIOError as e:
        raise EvaluationError(
            f"{output_dir}: in use by {e}; wait for it, or name another --output_dir"
        ) from e
    except OSError as e:
        raise EvaluationError(f"{output_dir}: cannot write to this directory ({e.strerror})") from e
    with file:
        remove_temporary_files(output_dir, names)
        try:
            yield
        finally:
            remove_temporary_files(output_dir, names)
            path.unlink(missing_ok=True)


def open_locked(path: Path) -> TextIO:
    """Open a file and lock it.

    Raises:
        BlockingIOError: another process has it locked; the message is what it wrote there.
    """
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (the lock is the open file)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as e:  # either, says POSIX
            file.seek(0)
            raise BlockingIOError(file.read() or "another run") from e
        except OSError as e:
            log.warning("%s: cannot be locked (%s); see that no other run writes there", path, e.strerror)
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its owner removed it in this moment: the lock is on a file that nobody sees


# ------------------------------------------------------------------------------------------------
# The API
# ------------------------------------------------------------------------------------------------

Source = str | os.PathLike | Sequence[str | os.PathLike]


def batch_inference_av_consistency(
    audio_paths: Source | None,
    video_paths: Source,
    device: str = "cuda:0",
    batch_size: int = 4,
    output_dir: str | os.PathLike | None = None,
    retrieval_mode: bool = False,
    *,
    captions: str | os.PathLike | Mapping[str, str] | None = None,
    checkpoint: str | os.PathLike | None = None,
    precision: str = "auto",
    num_workers: int | None = None,
    timeout: float = 300,
    worker_memory_gb: float = 4,
    cache: str | os.PathLike | None = None,
    no_cache: bool = False,
    max_matrix_gb: float = 8,
    seed: int = 0,
    report_lang: str = "zh",
    no_html: bool = False,
) -> dict[str, Any]:
    """Embed sounds and videos and measure how well they belong together.

    A file that cannot be used is skipped with a warning and leaves with its pair; every other file
    keeps its own row.

    Args:
        audio_paths: sound files, or video files for their sound, in order; or a directory. None judges
            each video's own sound against its picture.
        video_paths: video files, in order; or a directory.
        device: of torch; the CPU is used where CUDA is asked for and not available.
        batch_size: files that go to the model together.
        output_dir: where to write the outputs; None writes none.
        retrieval_mode: keep files without a partner, as distractors for the ranks.
        captions: texts to hold sounds and videos against, by the name of a file: a mapping, or a .csv, .tsv
            or .jsonl file.
        checkpoint: weights other than the released ones.
        precision: of the matrix products, one of PRECISIONS; "auto" is fp32 on the CPU, fp16 on CUDA.
        num_workers: processes that read files; None is one for each core, 0 reads in this process,
            where a decoder that crashes or hangs takes the run with it.
        timeout: seconds that reading one file may take.
        worker_memory_gb: memory that reading one file may take, in 10^9 bytes.
        cache: the file that keeps embeddings; None is embeddings.sqlite in output_dir, if there is one.
        no_cache: compute all, and keep nothing.
        max_matrix_gb: the similarity matrix is left out where it would be larger, in 10^9 bytes.
        seed: of the bootstrap.
        report_lang: of consistency_report.txt and report.html, "zh" or "en".
        no_html: leave report.html out.

    Returns:
        audio_embeddings: (N, E) torch float32 on the CPU, as the model gives them; not of unit length.
        video_embeddings: (M, E).
        similarity_matrix: (N, M) cosines, or None where it is left out.
        metrics: what metrics.json holds.
        audio_names, video_names: the names behind the rows.
        pairs: (audio path, video path) of all pairs; in pairing mode pair i is row i of both sides.
        pair_rows: (P, 2) numpy, row of the sound and row of the video of each pair.
        top_matches: "audio" -> the most similar videos of each sound, as places (N, 10), -1 where there are
            fewer, and similarities (N, 10); "video" -> the most similar sounds of each video.
        histograms: edges (B + 1,), and counts (B,) of "paired" and "mismatched" similarities.
        pair_scores: a sequence of a dict for each pair, of the columns of pair_scores.csv.
        failures: dicts of path, side and reason.
        With captions:
        text_embeddings: (T, E), a row for each pair that has a caption; in retrieval mode for each caption.
        text_names: the names behind the rows.
        text_audio, text_video: dicts of pair_rows (K, 2), row of the text and row of the file; of the
            similarity and the ranks of these, each (K,); and of histograms.
        Of the processes of a job that torchrun has started, the first returns this and the others None.

    Raises:
        EvaluationError: nothing can be evaluated, the model cannot be loaded, an output not be written,
            or another run uses output_dir.
        ValueError: an option that means nothing.
        KeyboardInterrupt: Ctrl-C; its message says what is kept.
    """
    check_options(batch_size, precision, num_workers, timeout, worker_memory_gb, max_matrix_gb, report_lang)
    ranks = Ranks.of_environment()
    is_first = ranks is None or ranks.is_first
    with failing_together(ranks), ExitStack() as stack:
        if ranks is not None:
            stack.enter_context(ranks)
        if output_dir is not None:
            outputs = writers(report_lang, output_dir, no_html)
            cache = cache or Path(output_dir, CACHE_NAME)
            if is_first:
                stack.enter_context(exclusive_use(output_dir, outputs))
            else:
                make_directory(output_dir)  # for the cache, and rows on disk
        plan = plan_run(audio_paths, video_paths, retrieval_mode, captions) if is_first else None
        n_files = sum(map(len, plan.sides.values())) if ranks is None else sys.maxsize
        workers = start_workers(num_workers, n_files, timeout, worker_memory_gb, ranks)
        if workers is not None:
            stack.enter_context(workers)
        messages = [] if is_first else stack.enter_context(kept_messages())
        own = plan.sides if ranks is None else share_plan(ranks, plan)
        embedder, how = open_embedder(
            *(checkpoint, device, precision, None if no_cache else cache),
            *(batch_size, workers, output_dir, list(own), ranks),
        )
        stack.callback(embedder.close_progress)
        room = {side: len(paths) for side, paths in plan.sides.items()} if is_first else None
        embedder.embed(own, room)
        results = None
        try:
            if ranks is not None:
                gather_rows(ranks, embedder, messages)
            embedder.report_time()
            if is_first:
                embedder.sort_failures(plan.sides)
                arrays = OutputArrays(output_dir)
                results = compare(plan, embedder, arrays, max_matrix_gb, seed, ranks)
                results["metrics"]["protocol"] = how
                if output_dir is not None:
                    write_outputs(outputs, results, arrays)
            else:
                help_to_compare(ranks, embedder.device, output_dir)
            if ranks is not None:
                ranks.tell_all("done")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(embedder.embedded()) from None
        return results


@dataclass(frozen=True)
class Plan:
    """What a run compares."""

    audio: MediaFiles
    video: MediaFiles
    pairing: Pairing
    retrieval: bool
    captioned: Captioned | None
    sides: dict[str, Sequence[str]]  # to be embedded, each once: side -> paths; of captions the texts


def plan_run(
    audio_paths: Source | None,
    video_paths: Source,
    retrieval_mode: bool,
    captions: str | os.PathLike | Mapping[str, str] | None,
) -> Plan:
    """List the files and pair them.

    Raises:
        EvaluationError: nothing can be evaluated.
    """
    video = gather_files("video", video_paths)
    if audio_paths is None:
        audio, pairing = replace(video, side="audio"), pair_with_own_sound(video)
    else:
        audio = gather_files("audio", audio_paths)
        pairing = pair_files(audio, video)
    report_pairing(audio, video, pairing)
    retrieval = retrieval_mode or pairing.rule == "none"
    if retrieval:
        sides = {"audio": audio.distinct, "video": video.distinct}
    elif not pairing.pairs:
        raise EvaluationError("no two files can be paired without doubt; --retrieval_mode compares all")
    else:
        sides = {s: tuple(dict.fromkeys(pair[i] for pair in pairing.pairs)) for i, s in enumerate(PAIR_SIDES)}
    captioned = None
    if captions is not None:
        captioned = add_captions(captions, audio, video, pairing.pairs, retrieval)
        used = (text for name, text in captioned.texts.items() if name in captioned.matched)
        sides["text"] = tuple(dict.fromkeys(used))
    return Plan(audio, video, pairing, retrieval, captioned, sides)


@contextmanager
def failing_together(ranks: Ranks | None) -> Iterator[None]:
    """Let no process of a job wait for one that has failed, and one alone say why."""
    try:
        yield
    except (EvaluationError, RanksError) as e:
        error = e if isinstance(e, EvaluationError) else EvaluationError(str(e))
        if ranks is not None:
            error.is_said = getattr(e, "is_said", False) or not ranks.fail(str(e))
        if error is e:
            raise
        raise error from e


def share_plan(ranks: Ranks, plan: Plan | None) -> dict[str, Sequence[str]]:
    """Give each process its files, by the plan of the first."""
    ranks.tell_all("planned")
    ranks.connect()
    if ranks.is_first:
        log.info("%d processes", ranks.n_ranks)
        shares = {side: share_files(ranks, side, paths) for side, paths in plan.sides.items()}
    else:
        shares = None
    return {side: parts[ranks.rank] for side, parts in ranks.from_first(shares).items()}


@contextmanager
def kept_messages() -> Iterator[list[tuple[int, str]]]:
    """Keep warnings for the process that says them."""
    messages = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append((record.levelno, record.getMessage()))

    keeper = Keeper(logging.WARNING)
    loggers = log, logging.getLogger("imagebind")
    for logger in loggers:
        logger.addHandler(keeper)
    try:
        yield messages
    finally:
        for logger in loggers:
            logger.removeHandler(keeper)


def check_options(
    batch_size: int,
    precision: str,
    num_workers: int | None,
    timeout: float,
    worker_memory_gb: float,
    max_matrix_gb: float,
    report_lang: str,
) -> None:
    """Raise a ValueError for an option that means nothing."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers must be 0 or more, not {num_workers}")
    for name, value in (("timeout", timeout), ("worker_memory_gb", worker_memory_gb)):
        if not value > 0:
            raise ValueError(f"{name} must be more than 0, not {value}")
    if not max_matrix_gb >= 0:
        raise ValueError(f"max_matrix_gb must be 0 or more, not {max_matrix_gb}")
    for name, value, known in (("precision", precision, PRECISIONS), ("report_lang", report_lang, LANGUAGES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def compare(
    plan: Plan,
    embedded: FileEmbedder,
    arrays: OutputArrays,
    max_matrix_gb: float,
    seed: int,
    ranks: Ranks | None = None,
) -> Results:
    """Compare the files that have a row: the results of the API, all but the protocol.

    Args:
        embedded: rows, failures and scales.
        arrays: makes those of the results.
        max_matrix_gb, seed: as in batch_inference_av_consistency.
        ranks: the processes of the job, of which this is the first.

    Raises:
        NothingLeftError: a side is empty.
        EvaluationError: there is no room for an array.
    """
    import torch

    with_row = {
        side: [path for path in paths if path in embedded.rows[side].places]
        for side, paths in plan.sides.items()
    }
    sounds, videos, pairs, truth = arrange_rows(
        with_row["audio"], with_row["video"], plan.pairing.pairs, plan.retrieval
    )
    counts = {
        "audio": len(sounds),
        "video": len(videos),
        "pairs": len(pairs),
        "unmatched": plan.pairing.n_unmatched,
        "failed": len(embedded.failures),
    }
    if not sounds or not videos:
        raise NothingLeftError(counts)
    rows = {"audio": sounds, "video": videos}
    captions = None
    if plan.captioned is not None:
        captions = arrange_captions(plan.captioned, set(with_row["text"]), rows, pairs, plan.retrieval)
        rows["text"] = captions.texts
        counts |= count_captions(plan.captioned, captions, pairs, embedded.cut)
    embeddings = {}
    for side, paths in rows.items():
        shape = len(paths), embedded.rows["audio"].array.shape[1]
        embeddings[side] = arrays.new(f"{side}_embeddings.npy", shape)
        embedded.rows[side].copy(paths, embeddings[side])
    matrix = new_matrix(arrays, (len(sounds), len(videos)), max_matrix_gb)
    comparing = Comparing(rows, embeddings, embedded.device, seed, ranks)
    metrics, scores, histograms, top = comparing.compare("audio", "video", pairs, truth, matrix)
    for side, places in zip(PAIR_SIDES, truth.T, strict=True):
        scores[f"{side}_clips_alike"] = lengths(embeddings[side], places) / embedded.scales[side]
    results = {f"{side}_embeddings": torch.from_numpy(array) for side, array in embeddings.items()}
    if captions is not None:
        of_text, agreements = compare_captions(comparing, captions)
        metrics |= of_text
        scores |= captions_of_pairs(captions, agreements, truth)
        results |= {"text_names": captions.names, **agreements}
    if ranks is not None:
        ranks.tell_all("compare", False)
    pair_scores = PairScores([plan.audio.names[sound] for sound, _ in pairs], pairs, scores)
    skipped = [asdict(failure) for failure in embedded.failures]
    metrics = {
        "mode": "retrieval" if plan.retrieval else "pairing",
        "pairing_rule": plan.pairing.rule,
        "counts": counts,
        **metrics,
        "lowest_suspects": pair_scores.lowest_suspects(),
        "failures": skipped,
    }
    return {
        **results,
        "similarity_matrix": None if matrix is None else torch.from_numpy(matrix),
        "metrics": metrics,
        "audio_names": [plan.audio.names[path] for path in sounds],
        "video_names": [plan.video.names[path] for path in videos],
        "pairs": pairs,
        "pair_rows": truth,
        "top_matches": dict(zip(PAIR_SIDES, top, strict=True)),
        "histograms": histograms,
        "pair_scores": pair_scores,
        "failures": skipped,
    }


def count_captions(
    captioned: Captioned, captions: CaptionRows, pairs: Sequence[tuple[str, str]], cut: set[str]
) -> dict[str, int]:
    """Count captions, and pairs without one; warn of those that are cut."""
    names = set(captions.names)
    if too_long := [name for name, text in captioned.texts.items() if name in names and text in cut]:
        log.warning("%d captions are too long, and cut off: %s", len(too_long), shorten(too_long))
    return {
        "text": len(captions.names),
        "text_unmatched": len(captioned.texts) - len(captioned.matched),
        "text_skipped": captioned.n_skipped,
        "text_cut": len(too_long),
        "pairs_without_text": sum(captioned.of_pair.get(pair) not in names for pair in pairs),
    }


def compare_captions(
    comparing: Comparing, captions: CaptionRows
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Compare captions with sounds and with videos, if one has a row.

    Returns:
        text_audio and text_video of metrics.json, and of the API's results.
    """
    metrics, agreements = {}, {}
    for side in PAIR_SIDES if captions.texts else ():
        places, files = captions.truth[side], comparing.paths[side]
        belonging = [(captions.texts[text], files[file]) for text, file in places.tolist()]
        figures, scores, histograms, _ = comparing.compare("text", side, belonging, places)
        metrics[f"text_{side}"] = figures
        agreements[f"text_{side}"] = {"pair_rows": places, **scores, "histograms": histograms}
    return metrics, agreements


def captions_of_pairs(
    captions: CaptionRows, agreements: dict[str, dict[str, Any]], truth: np.ndarray
) -> dict[str, Sequence[Any]]:
    """Give what captions add to the columns of pair_scores.csv.

    Args:
        agreements: as compare_captions gives them.
        truth: (P, 2) rows of the pairs.
    """
    columns = {"caption": [None] * len(truth)}
    for side, files in zip(PAIR_SIDES, truth.T.tolist(), strict=True):
        place = {file: i for i, file in enumerate(captions.truth[side][:, 1].tolist())}
        chosen = [(pair, place[file]) for pair, file in enumerate(files) if file in place]
        for what, key in (("similarity", "similarity"), ("rank", f"{side}_rank")):
            column = columns[f"text_{side}_{what}"] = np.full(len(truth), np.nan)
            for pair, i in chosen:
                column[pair] = agreements[f"text_{side}"][key][i]
        for pair, i in chosen:
            columns["caption"][pair] = captions.texts[captions.truth[side][i, 0]]
    return columns


def new_matrix(arrays: OutputArrays, shape: tuple[int, int], max_gb: float) -> np.ndarray | None:
    """Make room for the similarity matrix; None where it is too large."""
    gigabytes = 4e-9 * math.prod(shape)
    if gigabytes <= max_gb:
        return arrays.new(MATRIX_NAME, shape)
    log.info(
        "%s is left out: it would take %.1f GB; --max_matrix_gb %d writes it",
        *(MATRIX_NAME, gigabytes, math.ceil(gigabytes)),
    )
    return None


@dataclass(frozen=True)
class Comparing:
    """Comparisons of any two sides of a run."""

    paths: dict[str, Sequence[str]]  # side -> what is behind its rows
    embeddings: dict[str, np.ndarray]  # side -> (N, E)
    device: torch.device
    seed: int  # of the bootstrap
    ranks: Ranks | None

    def compare(
        self,
        side: str,
        other: str,
        pairs: Sequence[tuple[str, str]],
        truth: np.ndarray,
        matrix: np.ndarray | None = None,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray], Sequence[Top]]:
        """Compare all rows of one side with all of another.

        Args:
            pairs: what belongs together.
            truth: (P, 2) their rows.
            matrix: to be filled in.

        Returns:
            metrics, scores of the pairs and histograms, as compute_metrics; and the best matches of both.
        """
        true = true_places(self.paths[side], self.paths[other], pairs, truth)
        rows, columns = self.embeddings[side], self.embeddings[other]
        found, pair_cells, true = compare_rows(rows, columns, truth, true, matrix, self.device, self.ranks)
        return *compute_metrics(found, pair_cells, true, self.seed, (side, other)), found.top


def compare_rows(
    rows: np.ndarray,
    columns: np.ndarray,
    truth: np.ndarray,
    true: np.ndarray,
    matrix: np.ndarray | None,
    device: torch.device,
    ranks: Ranks | None = None,
) -> tuple[Scan, Cells, Cells]:
    """Compare all rows (N, E) of one side with all columns (M, E), rows of the other, tile by tile.

    Args:
        truth: (P, 2) the pairs.
        true: (C, 2) the cells that are no mismatches.
        matrix: (N, M) to be filled in, or None.
        ranks: processes that help; where there is a matrix to be written, those of this host alone.

    Returns:
        what was counted, the pairs and the true cells with their cosines.
    """
    from imagebind import similarity

    pairs, true = (Cells(places, similarity.pair_keys(rows, columns, places)) for places in (truth, true))
    shape = len(rows), len(columns)
    if ranks is None or not isinstance(matrix, np.memmap | None):
        n_helping = 1  # as a matrix in memory is this process's own
    else:  # two hosts do not write to one file: not every network's file system can take that
        n_helping = ranks.n_ranks if matrix is None else ranks.n_local
    n_done, said = 0, time.monotonic()

    def progress(n_cells: int) -> None:
        nonlocal n_done, said
        n_done += n_cells * n_helping
        if time.monotonic() - said > SECONDS_PER_LINE:
            said = time.monotonic()
            log.info("similarity: %.1f %% of %d x %d", min(100 * n_done / math.prod(shape), 100), *shape)

    sink = None if matrix is None else similarity.into(matrix)
    if n_helping == 1:  # the others wait for the next comparison
        source = similarity.Blocks(rows, columns)
        return similarity.scan(source, pairs.places, pairs.keys, sink, progress, device), pairs, true
    ranks.tell_all("compare", True)
    ranks.from_first((pairs.places, pairs.keys, n_helping, matrix is not None))
    source = similarity.SharedBlocks(ranks, n_helping, rows, columns)
    found = similarity.scan(source, pairs.places, pairs.keys, sink, progress, device)
    ranks.tell_all("compared")
    for other in ranks.to_first(iter(())):
        found.add(other)
    return found, pairs, true


def help_to_compare(ranks: Ranks, device: torch.device, output_dir: str | os.PathLike | None) -> None:
    """Do this process's part of all comparisons; a matrix is a file, in which it fills in its rows."""
    from imagebind import similarity

    while ranks.tell_all("compare")[0]:
        places, keys, n_helping, has_matrix = ranks.from_first()
        source, sink = similarity.SharedBlocks(ranks, n_helping), None
        if has_matrix and ranks.rank < n_helping:
            path = temporary_path(output_dir, MATRIX_NAME)
            sink = similarity.into(np.lib.format.open_memmap(path, "r+"))
        found = similarity.scan(source, places, keys, sink, None, device)
        ranks.tell_all("compared")
        list(ranks.to_first(iter([found])))


def lengths(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Give the lengths (P,) of some rows of (N, E)."""
    parts = [places[i : i + ROWS_AT_A_TIME] for i in range(0, len(places), ROWS_AT_A_TIME)]
    parts = [np.linalg.norm(rows[part].astype(np.float64), axis=1) for part in parts]
    return np.concatenate([np.empty(0), *parts])


class PairScores(Sequence):
    """What pair_scores.csv says of each pair, as a dict; kept in columns."""

    def __init__(
        self, names: Sequence[str], pairs: Sequence[tuple[str, str]], columns: dict[str, Sequence[Any]]
    ):
        self.names, self.pairs = names, pairs
        self.text_columns = TEXT_COLUMNS if "caption" in columns else ()
        known = PAIR_COLUMNS + self.text_columns
        self.columns = {column: np.asarray(columns[column]) for column in known if column in columns}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> dict[str, Any]:
        audio, video = self.pairs[i]
        figures = {column: values[i : i + 1].tolist()[0] for column, values in self.columns.items()}
        return {"name": self.names[i], "audio": audio, "video": video, **figures}

    def lowest(self, n: int) -> list[dict[str, Any]]:
        """Give the n least similar pairs, the lowest first."""
        return [self[i] for i in np.argsort(self.columns["similarity"], kind="stable")[:n].tolist()]

    def lowest_suspects(self) -> list[dict[str, Any]]:
        """Give names and similarities of the lowest suspects."""
        suspects = np.flatnonzero(self.columns.get("suspect", np.empty(0)))
        similarities = self.columns.get("similarity", np.empty(0))[suspects]
        chosen = sorted(
            (similarities[i], self.names[suspects[i]]) for i in np.argsort(similarities)[:SUSPECTS_SHOWN]
        )
        return [{"name": name, "similarity": float(score)} for score, name in chosen]


def true_places(
    sounds: Sequence[str],
    videos: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    truth: np.ndarray,
) -> np.ndarray:
    """Give the cells (C, 2) of the matrix that compare the two files of a pair, each once."""
    if len(set(sounds)) == len(sounds) and len(set(videos)) == len(videos):
        return np.unique(truth, axis=0)
    return as_cells(sorted(set(true_cells(sounds, videos, pairs))))


def true_cells(
    sounds: Sequence[str], videos: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> Iterator[tuple[int, int]]:
    """Give all cells (row, column) of the matrix that compare the two files of a pair."""
    places = defaultdict(list), defaultdict(list)
    for place, paths in zip(places, (sounds, videos), strict=True):
        for i, path in enumerate(paths):
            place[path].append(i)
    for sound, video in pairs:
        yield from ((i, j) for i in places[0][sound] for j in places[1][video])


# ------------------------------------------------------------------------------------------------
# Comparing systems: finished output directories, without model and media
# ------------------------------------------------------------------------------------------------

# What has to be the same for scores to be comparable; device and versions need not.
COMPARABLE = ("checkpoint", "precision", "audio", "video", "file_embedding", "similarity", "rank")
COMPARED = {  # column of comparison.csv -> where it is in metrics.json
    **{f"recall_at_{k}": (f"recall_at_{k}",) for k in RECALL_AT},
    **{f"video_to_audio_recall_at_{k}": ("video_to_audio", f"recall_at_{k}") for k in RECALL_AT},
    "auc": ("auc",),
    "suspects": ("suspects",),
    "skipped": ("counts", "failed"),
}
# What is compared: its key -> the column of pair_scores.csv that has it for each pair. The figures of the
# last two, of runs with captions, are under their key in metrics.json.
AGREEMENTS = {
    "audio_video": "similarity",
    "text_audio": "text_audio_similarity",
    "text_video": "text_video_similarity",
}


def compare_systems(
    runs: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike | None = None,
    force: bool = False,
    seed: int = 0,
    report_lang: str = "zh",
    no_html: bool = False,
) -> list[dict[str, Any]]:
    """Compare finished runs, such as those of several generators on the same prompts.

    Args:
        runs: output directories, two or more.
        output_dir: where to write comparison.csv and comparison.html; None writes none.
        force: compare runs that were computed in different ways.
        seed: of the bootstrap.
        report_lang: of comparison.html, "zh" or "en".
        no_html: leave comparison.html out.

    Returns:
        a row for each system; and one for every two, of the paired difference on the pairs that both
        have, matched by name; then, where there are captions, the same for text_audio and text_video.

    Raises:
        EvaluationError: a run is not finished or has no pairs, or they were computed in different ways.
    """
    names = [os.fspath(run) for run in runs]
    metrics, scores = zip(*map(read_run, names), strict=True)
    difference = find_difference(names, [m["protocol"] for m in metrics])
    if difference and not force:
        raise EvaluationError(f"{difference}; --force compares them all the same")
    if difference:
        log.warning("%s", difference)
    rows = []
    for agreement in AGREEMENTS:
        having = [i for i in range(len(names)) if scores[i][agreement]]
        for i in having:
            mean = describe_mean(list(scores[i][agreement].values()), seed)
            figures = compared_figures(metrics[i] if agreement == "audio_video" else metrics[i][agreement])
            rows.append({"agreement": agreement, "system": names[i], **mean, **figures})
        for i, j in itertools.combinations(having, 2):
            ours, theirs = scores[i][agreement], scores[j][agreement]
            difference_of = [score - theirs[key] for key, score in ours.items() if key in theirs]
            mean = describe_mean(difference_of, seed)
            rows.append({"agreement": agreement, "system": names[i], "minus": names[j], **mean})
    if output_dir is not None:
        similarities = [np.array(m["paired_similarities"]) for m in metrics]

        def write_page(rows: Sequence[dict[str, Any]], file: BinaryIO) -> None:
            page.write_comparison_page(file, rows, similarities, difference, report_lang, output_dir)

        outputs = {COMPARISON_NAME: write_comparison, COMPARISON_PAGE: None if no_html else write_page}
        with exclusive_use(output_dir, outputs):
            write_files(outputs, rows, output_dir)
    return rows


def read_run(run: str) -> tuple[dict[str, Any], dict[str, dict[tuple[str, int], float]]]:
    """Read a finished run.

    Returns:
        its metrics; and for each of AGREEMENTS the similarity of each pair that has one, by the pair's name,
        and by how often that came before.
    """
    try:
        metrics = json.loads(Path(run, METRICS_NAME).read_bytes())
        with open(Path(run, "pair_scores.csv"), encoding="utf-8-sig", newline="") as file:
            of_text = [agreement for agreement in ("text_audio", "text_video") if agreement in metrics]
            columns = ["name", *(AGREEMENTS[agreement] for agreement in of_text)]
            pairs = [[row[column] for column in columns] for row in csv.DictReader(file)]
        similarities = metrics.get("paired_similarities", [])
        if len(pairs) != len(similarities):
            raise ValueError("its files are of different runs")
        scores, seen = {agreement: {} for agreement in AGREEMENTS}, Counter()
        for (name, *texts), similarity in zip(pairs, similarities, strict=True):
            key = name, seen[name]
            seen[name] += 1
            scores["audio_video"][key] = similarity  # in all its digits
            for agreement, text in zip(of_text, texts, strict=True):
                if text:
                    scores[agreement][key] = float(text)
    except OSError as e:
        raise EvaluationError(f"{run}: no finished run ({Path(e.filename).name}: {e.strerror})") from e
    except (ValueError, KeyError, AttributeError) as e:
        raise EvaluationError(f"{run}: no finished run of this version ({e})") from e
    if not pairs:
        raise EvaluationError(f"{run}: has no pairs to compare")
    return metrics, scores


def find_difference(names: Sequence[str], protocols: Sequence[dict[str, Any]]) -> str | None:
    """Describe the first difference in how runs were computed; None where there is none."""
    for name, protocol in zip(names[1:], protocols[1:], strict=True):
        for key in COMPARABLE:
            if protocol.get(key) != protocols[0].get(key):
                ways = ", ".join(json.dumps(p.get(key), ensure_ascii=False) for p in (protocols[0], protocol))
                return f"{names[0]} and {name} differ in {key}: {ways}"
    return None


def describe_mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Give the number of values, their mean, and its 95 % bootstrap interval."""
    if not values:
        return {"pairs": 0}
    low, high = bootstrap_interval(np.array(values), seed) or (None, None)
    return {"pairs": len(values), "mean": math.fsum(values) / len(values), "low": low, "high": high}


def compared_figures(metrics: dict[str, Any]) -> dict[str, Any]:
    figures = {}
    for column, keys in COMPARED.items():
        value = metrics
        for key in keys:
            value = value.get(key, {})
        figures[column] = None if value == {} else value
    return figures


COMPARISON_COLUMNS = ("system", "minus", "pairs", "mean", "low", "high", *COMPARED, "agreement")


def write_comparison(rows: Sequence[dict[str, Any]], file: BinaryIO) -> None:
    """Write comparison.csv: systems, then differences, which have the second system under `minus`."""
    write_csv(COMPARISON_COLUMNS, ([row.get(column) for column in COMPARISON_COLUMNS] for row in rows), file)


def format_comparison(rows: Sequence[dict[str, Any]]) -> str:
    """Write the comparison as tables to read: systems and differences, of each agreement."""

    def number(value: Any) -> str:
        return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    def table(columns: dict[str, str], chosen: Sequence[dict[str, Any]]) -> list[str]:
        lines = [list(columns.values())]
        lines += [[one_line(number(row.get(column))) for column in columns] for row in chosen]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]

    mean = {"pairs": "pairs", "mean": "mean", "low": "95% low", "high": "95% high"}
    figures = {f"recall_at_{k}": f"R@{k}" for k in RECALL_AT}
    figures |= {"auc": "AUC", "suspects": "suspects", "skipped": "skipped"}
    lines = []
    titles = {"audio_video": "", "text_audio": "Captions and audio:", "text_video": "Captions and video:"}
    for agreement, title in titles.items():
        systems = [row for row in rows if row["agreement"] == agreement and "minus" not in row]
        differences = [row for row in rows if row["agreement"] == agreement and "minus" in row]
        if systems:
            lines += ["", title] if title else []
            lines += table({"system": "system", **mean, **figures}, systems)
        if differences:
            lines += ["", "Difference on the pairs that both have:"]
            lines += table({"system": "system", "minus": "minus", **mean}, differences)
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------------------------


def device_name(text: str) -> str:
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device such as cuda:0 or cpu")
    return text


def positive_int(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def whole_number(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def positive_number(text: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+", text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def non_negative_number(text: str) -> float:
    return 0.0 if re.fullmatch(r"0*\.?0+", text) else positive_number(text)


def existing_directory(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text}: no such directory")
    return text


def list_file(text: str) -> list[str]:
    try:
        return read_list_file(text)
    except OSError as e:
        raise argparse.ArgumentTypeError(f"{text}: {e.strerror}") from e


def captions_file(text: str) -> str:
    try:
        caption_files.suffix_of(text)
    except caption_files.CaptionsError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return text


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Say how well sounds and videos belong together, with ImageBind.",
        epilog="A first run, with the files and the small model that come along: "
        "python batch_inference.py --audio_dir tests/demo/audio --video_dir tests/demo/video "
        "--checkpoint tests/demo/imagebind_demo.pth",
    )
    inputs = parser.add_argument_group(
        "inputs", "One of each side; without audio each video's own sound is judged against its picture."
    )
    for side, suffixes in (("audio", AUDIO_SUFFIXES), ("video", VIDEO_SUFFIXES)):
        group = inputs.add_mutually_exclusive_group()
        group.add_argument(
            f"--{side}_dir",
            type=existing_directory,
            metavar="DIR",
            help=f"search this directory and those below it for {' '.join(suffixes)}",
        )
        group.add_argument(
            f"--{side}_file",
            type=list_file,
            metavar="FILE",
            help=f"read {side} paths from this text file, one a line",
        )
        group.add_argument(f"--{side}_paths", nargs="+", metavar="PATH", help=f"take these {side} files")
    inputs.add_argument(
        "--retrieval_mode",
        action="store_true",
        help="compare all files; those without a partner stay as distractors (default: pairs alone)",
    )
    inputs.add_argument(
        "--captions",
        type=captions_file,
        metavar="FILE",
        help="hold sounds and videos against these texts too: a .csv or .tsv file with the columns name and "
        "caption, or a .jsonl file",
    )
    inputs.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="compare finished output directories instead, without model and media",
    )
    inputs.add_argument(
        "--force", action="store_true", help="compare them though they were computed in different ways"
    )
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="weights to use (default: .checkpoints/imagebind_huge.pth, downloaded on first use, 4.8 GB)",
    )
    group.add_argument(
        "--device",
        type=device_name,
        default="cuda:0",
        help="of torch; the CPU where there is no CUDA (default: %(default)s)",
    )
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--batch_size",
        type=positive_int,
        default=4,
        metavar="N",
        help="files that go to the model together (default: %(default)s)",
    )
    group.add_argument(
        "--num_workers",
        type=whole_number,
        metavar="N",
        help="processes that read files; 0 reads in the main one (default: one for each core)",
    )
    group.add_argument(
        "--timeout",
        type=positive_number,
        default=300,
        metavar="SECONDS",
        help="skip a file whose reading takes longer (default: %(default)s)",
    )
    group.add_argument(
        "--worker_memory_gb",
        type=positive_number,
        default=4,
        metavar="GB",
        help="skip a file whose reading takes more memory (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the matrix products (default: %(default)s: fp32 on the CPU, fp16 on CUDA)",
    )
    group.add_argument(
        "--cache",
        metavar="PATH",
        help=f"file that keeps embeddings for later runs (default: {CACHE_NAME} in the output directory)",
    )
    group.add_argument("--no_cache", action="store_true", help="compute all embeddings, and keep none")
    group = parser.add_argument_group("outputs")
    group.add_argument(
        "--output_dir",
        default="./outputs",
        metavar="DIR",
        help="where to write results (default: %(default)s)",
    )
    group.add_argument(
        "--max_matrix_gb",
        type=non_negative_number,
        default=8,
        metavar="GB",
        help="leave similarity_matrix.npy out where it would be larger (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        metavar="N",
        help="of the bootstrap that gives the interval of the mean (default: %(default)s)",
    )
    group.add_argument(
        "--report_lang",
        choices=LANGUAGES,
        default="zh",
        help="language of the report and the page (default: %(default)s)",
    )
    group.add_argument(
        "--no_html", action="store_true", help=f"leave out {page.REPORT_PAGE} and {COMPARISON_PAGE}"
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="exit with status 3 when a file was skipped, outputs all written",
    )
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, and see that it says what to do."""
    parser = build_parser()
    args = parser.parse_args(argv)
    options = [f"{side}_{kind}" for side in ("audio", "video") for kind in ("dir", "file", "paths")]
    inputs = [option for option in options if getattr(args, option) is not None]
    inputs += ["captions"] if args.captions else []
    if args.compare and inputs:
        parser.error(f"argument --compare: not allowed with argument --{inputs[0]}")
    if args.compare and len(args.compare) < 2:
        parser.error("argument --compare: two directories or more are needed")
    if not args.compare and not any(option.startswith("video") for option in inputs):
        parser.error("one of the arguments --video_dir --video_file --video_paths is required")
    return args


class StderrHandler(logging.Handler):
    """Write log records to stderr as one line each, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(level + one_line(record.getMessage()), file=sys.stderr)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show the log of this program on stderr while it runs."""
    loggers, handler = (log, logging.getLogger("imagebind")), StderrHandler()
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@contextmanager
def stopped_by_signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on Ctrl-C and SIGTERM alike; give a list that then holds the signal."""
    received, before = [], {}

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        received.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit status: 0 done, 1 not to be done, 2 wrong usage, 3 done with files skipped and --strict,
        130 and 143 stopped by Ctrl-C and SIGTERM.
    """
    ranks = Ranks.of_environment()
    is_first = ranks is None or ranks.is_first  # the others say nothing
    with nullcontext() if is_first else redirect_stderr(io.StringIO()):
        args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character gets its number
    with logging_to_stderr() if is_first else nullcontext(), stopped_by_signals() as signals:
        try:
            if args.compare and not is_first:
                return 0
            if args.compare:
                rows = compare_systems(
                    args.compare, args.output_dir, args.force, args.seed, args.report_lang, args.no_html
                )
                where = Path(args.output_dir, COMPARISON_NAME)
                return say(format_comparison(rows), f"results: {one_line(str(where))}")
            results = batch_inference_av_consistency(
                given(args.audio_dir, args.audio_file, args.audio_paths),
                given(args.video_dir, args.video_file, args.video_paths),
                device=args.device,
                batch_size=args.batch_size,
                output_dir=args.output_dir,
                retrieval_mode=args.retrieval_mode,
                captions=args.captions,
                checkpoint=args.checkpoint,
                precision=args.precision,
                num_workers=args.num_workers,
                timeout=args.timeout,
                worker_memory_gb=args.worker_memory_gb,
                cache=args.cache,
                no_cache=args.no_cache,
                max_matrix_gb=args.max_matrix_gb,
                seed=args.seed,
                report_lang=args.report_lang,
                no_html=args.no_html,
            )
        except EvaluationError as e:
            if not e.is_said:
                print(f"error: {one_line(str(e))}", file=sys.stderr)
            if isinstance(e, NothingLeftError):
                print(summary(e.counts))
            return 1
        except KeyboardInterrupt as e:
            kept = "" if args.no_cache else "; the same command goes on from there"
            if is_first:
                print(f"interrupted: {one_line(str(e)) or 'nothing is embedded yet'}{kept}", file=sys.stderr)
            return 128 + signals[0]
    if not is_first:
        return 0
    metrics = results["metrics"]
    report = format_report(metrics, args.report_lang)
    status = say(report, f"results: {one_line(args.output_dir)}", summary(metrics["counts"]))
    return 3 if status == 0 and args.strict and metrics["counts"]["failed"] else status


def say(*lines: str) -> int:
    """Print results, when all outputs are written; give the exit status."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as e:  # a full disk, or a reader that is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: cannot write to standard output ({e.strerror})", file=sys.stderr)
        return 1
    return 0


def given(*sources: Source | None) -> Source | None:
    """Give the one of several options that was given."""
    return next((source for source in sources if source is not None), None)


def summary(counts: dict[str, int]) -> str:
    """Give the last line of a run."""
    line = "evaluated {pairs} pairs, skipped {failed} files, unmatched {unmatched} files"
    if "text" in counts:
        line += "; {text} captions, {text_unmatched} unmatched, {pairs_without_text} pairs without one"
    return line.format_map(counts)


if __name__ == "__main__":
    sys.exit(main())
