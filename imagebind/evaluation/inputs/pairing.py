"""Files -> pairs: which sound belongs to which video."""

from __future__ import annotations

import itertools
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagebind.evaluation.inputs.files import MediaFiles
from imagebind.names import shorten

NAMES_TRIED = 300  # of each modality, in search of two that nearly match

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairing:
    """Which sound belongs to which video."""

    rule: str  # "stem", "position", "file", "manifest" or "none"
    pairs: tuple[tuple[str, str], ...] = ()  # (audio path, video path)
    unmatched_audio: tuple[str, ...] = ()
    unmatched_video: tuple[str, ...] = ()
    ambiguous: tuple[
        str, ...
    ] = ()  # unmatched files that several files of the other modality could belong to

    @property
    def n_unmatched(self) -> int:
        return len(self.unmatched_audio) + len(self.unmatched_video)


def pair_files(audio: MediaFiles, video: MediaFiles) -> Pairing:
    """Pair sounds with videos, in the order of the sounds.

    Files pair by stem; where several files share one, by the path below their directory. What is still
    ambiguous is not paired. Where no stem occurs on both sides, two lists of equal length pair by position.
    """
    pairs, clashes = match_by_name(audio.distinct, video.distinct, audio.stems.get, video.stems.get)
    if not pairs and not clashes:
        if audio.root is None and video.root is None and len(audio.paths) == len(video.paths):
            return Pairing("position", tuple(zip(audio.paths, video.paths, strict=True)))
        return Pairing("none", (), audio.distinct, video.distinct)
    for audio_paths, video_paths in clashes:
        pairs += match_by_name(audio_paths, video_paths, audio.key, video.key)[0]
    order = {path: i for i, path in enumerate(audio.distinct)}
    pairs.sort(key=lambda pair: order[pair[0]])
    paired_audio, paired_video = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    ambiguous = []
    for audio_paths, video_paths in clashes:
        left = [path for path in audio_paths if path not in paired_audio]
        right = [path for path in video_paths if path not in paired_video]
        ambiguous += left + right if left and right else []
    return Pairing(
        "stem",
        tuple(pairs),
        tuple(path for path in audio.distinct if path not in paired_audio),
        tuple(path for path in video.distinct if path not in paired_video),
        tuple(ambiguous),
    )


def match_by_name(
    audio_paths: Sequence[str],
    video_paths: Sequence[str],
    audio_name: Callable[[str], str],
    video_name: Callable[[str], str],
) -> tuple[list[tuple[str, str]], list[tuple[list[str], list[str]]]]:
    """Match sounds and videos by name.

    Returns:
        the pairs of files that are alone with their name, and the groups that share one with others.
    """
    groups = defaultdict(lambda: ([], []))  # name -> audio paths, video paths
    for i, (paths, name_of) in enumerate(((audio_paths, audio_name), (video_paths, video_name))):
        for path in paths:
            # One name can be spelt in two ways in Unicode, and file systems differ in which they keep.
            groups[unicodedata.normalize("NFC", name_of(path))][i].append(path)
    both = [group for group in groups.values() if all(group)]
    pairs = [(left[0], right[0]) for left, right in both if len(left) == len(right) == 1]
    return pairs, [(left, right) for left, right in both if len(left) + len(right) > 2]


def pair_with_own_sound(video: MediaFiles) -> Pairing:
    """Pair each video file with itself: its picture with its sound."""
    return Pairing("file", tuple((path, path) for path in video.distinct))


def report_pairing(audio: MediaFiles, video: MediaFiles, pairing: Pairing) -> None:
    """Log how the files were paired, and name the first of those that were not."""
    if pairing.rule == "file":
        log.info("no audio is given: each video's own sound is judged against its picture")
    elif pairing.rule == "position":
        log.warning("no file name is on both sides; the two lists are paired by position")
    elif pairing.rule == "none":
        log.warning("no file name is on both sides; all files are compared, without knowing the pairs")
    if pairing.rule == "manifest":
        log.info(
            "%d pairs of %d audio and %d video files",
            *(len(pairing.pairs), len(audio.distinct), len(video.distinct)),
        )
        return
    if pairing.rule == "stem":
        if pairing.ambiguous:
            log.warning("not paired, as several files share the name: %s", shorten(pairing.ambiguous))
        for modality, paths in (("audio", pairing.unmatched_audio), ("video", pairing.unmatched_video)):
            if others := sorted(set(paths) - set(pairing.ambiguous)):
                log.warning("%d %s files without a partner: %s", len(others), modality, shorten(others))
    n_audio, n_video = len(audio.distinct), len(video.distinct)
    log.info("%d audio files, %d video files, %d pairs", n_audio, n_video, len(pairing.pairs))


def explain_no_pairs(audio: MediaFiles, video: MediaFiles) -> str:
    """Say in one line why no file has a partner, with some names, and two that nearly match."""
    for modality, files in (("audio", audio), ("video", video)):
        if not any(map(os.path.exists, files.distinct)):
            return f"none of the {modality} files exists: {shorten(files.distinct)}"
    left, right = (list(files.stems.values()) for files in (audio, video))
    names = " and ".join(", ".join([*side[:3], *["..."] * (len(side) > 3)]) for side in (left, right))
    return (
        f"no file name is on both sides ({names}){near_match(left, right)}; rename the files, give two lists "
        "of equal length, which pair by position, or compare all with --retrieval_mode"
    )


def near_match(left: Sequence[str], right: Sequence[str]) -> str:
    """Name two that would match but for case, or for something before or after; "" where there are none."""
    folded = {name.casefold(): name for name in right}
    for name in left:
        if other := folded.get(name.casefold()):
            return f"; {name} and {other} differ in upper and lower case alone"
    for name, other in itertools.product(left[:NAMES_TRIED], right[:NAMES_TRIED]):
        short, long = sorted((name, other), key=len)
        if long.startswith(short) and not long[len(short)].isalnum():
            return f"; {name} and {other} differ by the suffix {long[len(short) :]}"
        if long.endswith(short) and not long[-len(short) - 1].isalnum():
            return f"; {name} and {other} differ by the prefix {long[: -len(short)]}"
    return ""
