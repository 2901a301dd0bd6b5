"""Captions: texts that belong to files.

    .csv, .tsv  a table whose first line names its columns: `name` and `caption`, in any order among others
    .jsonl      an object with the keys `name` and `caption` on each line

A column or key `group` names what belongs together beyond the pair, such as the prompt of several clips;
`content_group` instead of it also says that all of a group show the same; `category` names a kind.

Files are UTF-8. A row that cannot be used is skipped and named by its line; a file that is no such table is
refused.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unicodedata import normalize

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.files import SUFFIXES, MediaFiles, stem
from imagebind.evaluation.inputs.groups import CONTENT_GROUP
from imagebind.evaluation.inputs.tables import Row, read_table, warn_of_skipped
from imagebind.names import shorten
from imagebind.sources import Source

NAME, CAPTION = COLUMNS = ("name", "caption")
GROUP, CATEGORY = "group", "category"
MAX_CAPTION = 10_000  # characters
CAPTION_COLUMNS = (  # of pair_scores.csv; the second where sounds have captions of their own
    *("caption", "audio_caption", "text_audio_similarity", "text_video_similarity"),
    *("text_audio_rank", "text_video_rank"),
)

log = logging.getLogger(__name__)


# Reading


@dataclass(frozen=True)
class Captions:
    """Texts by name, as they were read."""

    texts: dict[str, str]  # name -> text, in the order of the source
    groups: dict[str, str]  # name -> its group, where it has one
    groups_are_content: bool = False  # all of one show the same
    categories: dict[str, str] = field(default_factory=dict)  # name -> its category, where it has one
    n_skipped: int = 0  # rows that could not be used


def read_captions(source: str | os.PathLike | Mapping[str, str]) -> Captions:
    """Read captions from a file, whose suffix says its format, or from a mapping: name -> text.

    Raises:
        EvaluationError: the file cannot be read, is no such table, or has no caption.
    """
    if isinstance(source, Mapping):
        rows = (Row(repr(name), {NAME: name, CAPTION: text}) for name, text in source.items())
        return collect("captions", rows)
    known = (*COLUMNS, GROUP, CONTENT_GROUP, CATEGORY)
    return collect(os.fspath(source), read_table(source, [(NAME,), (CAPTION,)], known))


def collect(source: str, rows: Iterable[Row]) -> Captions:
    """Collect the captions of the rows that can be used, and warn of the others.

    Raises:
        EvaluationError: no row can be used, or groups are named twice.
    """
    texts, skipped = {}, []
    labels: dict[str, dict[str, str]] = {GROUP: {}, CONTENT_GROUP: {}, CATEGORY: {}}
    for row in rows:
        name, caption = (row.values.get(column) for column in COLUMNS)
        fault = row.fault or find_fault(name, caption)
        name = None if fault else name.strip()
        if name in texts:
            fault = "a name that has a caption already"
        if fault:
            skipped.append((fault, row.line))
        else:
            texts[name] = caption
            for column, of_names in labels.items():
                if row.values.get(column) not in (None, ""):
                    of_names[name] = str(row.values[column])
    warn_of_skipped(source, skipped)
    if not texts:
        raise EvaluationError(f"{source}: has no captions")
    if labels[GROUP] and labels[CONTENT_GROUP]:
        raise EvaluationError(f"{source}: has {GROUP} and {CONTENT_GROUP}; leave one out")
    groups, is_content = labels[CONTENT_GROUP] or labels[GROUP], bool(labels[CONTENT_GROUP])
    return Captions(texts, groups, is_content, labels[CATEGORY], len(skipped))


def find_fault(name: Any, caption: Any) -> str | None:
    """Say what is wrong with a name or its caption; None where nothing is."""
    if not isinstance(name, str) or not isinstance(caption, str):
        return "a name or a caption that is no text"
    if not name.strip():
        return "no name"
    if len(caption) > MAX_CAPTION:
        return f"a caption of over {MAX_CAPTION} characters"
    return None if caption.strip() else "an empty caption"


# Matching


@dataclass(frozen=True)
class MatchedCaptions:
    """Which caption belongs to which pair and which file."""

    texts: dict[str, str]  # name -> text, of all captions
    of_pairs: dict[str, Sequence[str | None]]  # modality -> of each pair the caption of that side
    of_files: dict[str, Sequence[tuple[Source, str]]]  # modality -> (file, name of a caption of it)
    n_skipped: int  # rows that could not be used
    labels: dict[str, str] = field(default_factory=dict)  # name -> how it is shown, where that is other
    read: Captions = field(default_factory=lambda: Captions({}, {}))  # from the file of captions

    @cached_property
    def used(self) -> set[str]:
        """The names of captions that belong to a file."""
        return {name for links in self.of_files.values() for _, name in links}

    @property
    def used_texts(self) -> tuple[str, ...]:
        """Their texts, each once."""
        return tuple(dict.fromkeys(text for name, text in self.texts.items() if name in self.used))


def match_captions(
    source: str | os.PathLike | Mapping[str, str],
    audio: MediaFiles,
    video: MediaFiles,
    pairs: Sequence[tuple[Source, Source]],
    retrieval: bool,
) -> MatchedCaptions:
    """Read captions, and match them with the pairs or, in retrieval mode, with all files.

    Raises:
        EvaluationError: there are none, or none belongs to anything.
    """
    captions = read_captions(source)
    of_audio, of_video = (match_names(captions.texts, files) for files in (audio, video))
    of_pairs = [of_video.get(video_file) or of_audio.get(audio_file) for audio_file, video_file in pairs]
    if not retrieval:
        of_audio, of_video = {}, {}
    for (audio_file, video_file), name in zip(pairs, of_pairs, strict=True):
        if name is not None:  # a caption of one file of a pair belongs to the other one too
            of_audio.setdefault(audio_file, name)
            of_video.setdefault(video_file, name)
    of_files = {"audio": list(of_audio.items()), "video": list(of_video.items())}
    by_modality, skipped = dict.fromkeys(of_files, of_pairs), captions.n_skipped
    matched = MatchedCaptions(captions.texts, by_modality, of_files, skipped, read=captions)
    report_captions(matched, pairs, retrieval, source)
    return matched


def match_names(captions: Iterable[str], files: MediaFiles) -> dict[Source, str]:
    """Match captions with files by name: file -> name of its caption.

    A caption has a file's name as it is in the outputs, with or without extension. It may have folders before
    that name which are not needed to tell the files apart, unless two captions then fit one file. Names are
    compared in Unicode's NFC: files of one name in it share a caption, unless one is spelt as the file is.
    """
    sources = defaultdict(list)
    for source in files.distinct:
        sources[normalize("NFC", files.names[source])].append(source)
    found = defaultdict(list)  # file -> how badly a caption fits, and its name
    for name in captions:
        bare = without_media_suffix(name)
        for shown in (name, bare, os.path.basename(bare)):
            if of_name := sources.get(normalize("NFC", shown), []):
                break
        has_folders = shown not in (name, bare)
        for source in of_name:
            is_other_suffix = (
                not has_folders and bare != name and not name.endswith(os.path.splitext(source.path)[1])
            )
            found[source].append(((has_folders, is_other_suffix, shown != files.names[source]), name))
    matched = {}
    for source, captions_of in found.items():
        best = min(captions_of)[0]
        names = [name for fit, name in captions_of if fit == best]
        if len(names) == 1 or not best[0]:
            matched[source] = names[0]
    return matched


def without_media_suffix(name: str) -> str:
    """Return a name without the extension of a media file."""
    bare, suffix = os.path.splitext(name)
    return bare if suffix.lower() in SUFFIXES["audio"] + SUFFIXES["video"] else name


def report_captions(
    captions: MatchedCaptions,
    pairs: Sequence[tuple[Source, Source]],
    retrieval: bool,
    source: str | os.PathLike | Mapping[str, str],
) -> None:
    """Log how many captions are used, and name the first of those that belong to nothing.

    Raises:
        EvaluationError: no caption belongs to anything.
    """
    unused = [name for name in captions.texts if name not in captions.used]
    if not captions.used:
        what = "file" if retrieval else "pair"
        where = "captions" if isinstance(source, Mapping) else source
        names = shorten([stem(video) for _, video in pairs])
        raise EvaluationError(
            f"{where}: no caption has the name of a {what}; captions are for {shorten(unused)}"
            + (f", and pairs are {names}" if names else "")
        )
    if unused:
        log.warning("%d captions belong to nothing: %s", len(unused), shorten(unused))
    named = zip(pairs, captions.of_pairs["video"], strict=True)
    if without := [stem(video_file) for (_, video_file), name in named if name is None]:
        log.warning("%d pairs without a caption: %s", len(without), shorten(without))
    log.info("%d captions, %d of them used", len(captions.texts), len(captions.used))
