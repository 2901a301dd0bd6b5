"""Files -> pairs: which sound belongs to which video."""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagebind.evaluation.inputs.files import MediaFiles
from imagebind.names import shorten
from imagebind.sources import Source
from imagebind.spelling import option as spelled

SEPARATORS, NUMBER = "_-. ", re.compile(r"\d+$")  # before a suffix; at its end
LEAST_SUFFIXED = 0.9  # of all names, for them to be those of the others with a suffix
NAMES_TRIED = 300  # of each modality, in search of two that nearly match

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairing:
    """Which sound belongs to which video."""

    rule: str  # "stem", "suffix", "position", "file", "manifest" or "none"
    pairs: tuple[tuple[Source, Source], ...] = ()  # of a sound and a video
    unmatched_audio: tuple[Source, ...] = ()
    unmatched_video: tuple[Source, ...] = ()
    ambiguous: tuple[Source, ...] = ()  # unmatched, as several of the other modality have their name
    suffixed: str = ""  # by rule "suffix": the modality whose names have one

    @property
    def sides(self) -> tuple[int, int]:
        """In each pair the place of the file that names it, and that of the other."""
        return (1, 0) if self.suffixed == "video" else (0, 1)


def pair_files(audio: MediaFiles, video: MediaFiles) -> Pairing:
    """Pair sounds with videos, in the order of the sounds.

    Files pair by stem; where several files share one, by the path below their directory. What is still
    ambiguous is not paired. Where no stem occurs on both sides, names of one side may be those of the other
    with a suffix, such as a seed; and two lists of equal length pair by position.
    """
    pairs, clashes = match_by_name(audio.distinct, video.distinct, audio.stems.get, video.stems.get)
    if not pairs and not clashes:
        for suffixed in ("audio", "video"):
            if pairs := pair_by_suffix(audio, video, suffixed):
                paired = [set(side) for side in zip(*pairs, strict=True)]
                alone = (
                    tuple(source for source in files.distinct if source not in of_side)
                    for files, of_side in zip((audio, video), paired, strict=True)
                )
                return Pairing("suffix", tuple(pairs), *alone, suffixed=suffixed)
        if audio.root is None and video.root is None and len(audio.listed) == len(video.listed):
            return Pairing("position", tuple(zip(audio.listed, video.listed, strict=True)))
        return Pairing("none", (), audio.distinct, video.distinct)
    for sounds, videos in clashes:
        pairs += match_by_name(sounds, videos, audio.key, video.key)[0]
    order = {source: i for i, source in enumerate(audio.distinct)}
    pairs.sort(key=lambda pair: order[pair[0]])
    paired_audio, paired_video = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    ambiguous = []
    for sounds, videos in clashes:
        left = [source for source in sounds if source not in paired_audio]
        right = [source for source in videos if source not in paired_video]
        ambiguous += left + right if left and right else []
    return Pairing(
        "stem",
        tuple(pairs),
        tuple(source for source in audio.distinct if source not in paired_audio),
        tuple(source for source in video.distinct if source not in paired_video),
        tuple(ambiguous),
    )


def pair_by_suffix(audio: MediaFiles, video: MediaFiles, suffixed: str) -> list[tuple[Source, Source]]:
    """Pair files whose names are those of the other modality with a suffix; none where that is in doubt."""
    ours, theirs = (audio, video) if suffixed == "audio" else (video, audio)
    are_unique = all(len(set(files.stems.values())) == len(files.distinct) for files in (ours, theirs))
    names, others = (
        {
            unicodedata.normalize("NFC", files.stems[source] if are_unique else files.key(source)): source
            for source in files.distinct
        }
        for files in (ours, theirs)
    )
    bases = match_suffixes(list(names), set(others))
    pairs = ((names[name], others[base]) for name, base in bases.items())
    return [pair if suffixed == "audio" else pair[::-1] for pair in pairs]


def match_suffixes(names: Sequence[str], others: set[str]) -> dict[str, str]:
    """Match names with those that they begin with, where what follows says nothing of its own.

    That is a number, with the same word before it in all, or the same text in all: a_0, a_1, b_0 and a, b;
    or a_gen, b_gen and a, b. A name or two may have no partner.

    >>> match_suffixes(["a_0", "a_1", "b_0"], {"a", "b"})
    {'a_0': 'a', 'a_1': 'a', 'b_0': 'b'}
    >>> match_suffixes(["a_dog", "a_cat"], {"a"})
    {}
    """
    bases = {}
    for name in names:
        ends = (i for i in range(len(name) - 1, 0, -1) if name[i] in SEPARATORS)
        if (base := next((name[:i] for i in ends if name[:i] in others), None)) is not None:
            bases[name] = base
    suffixes = {name[len(base) :] for name, base in bases.items()}
    kinds = {NUMBER.sub("", suffix) if NUMBER.search(suffix) else None for suffix in suffixes}
    is_one_kind = len(suffixes) == 1 or (len(kinds) == 1 and None not in kinds)
    return bases if is_one_kind and len(bases) >= LEAST_SUFFIXED * len(names) else {}


def match_by_name(
    sounds: Sequence[Source],
    videos: Sequence[Source],
    audio_name: Callable[[Source], str],
    video_name: Callable[[Source], str],
) -> tuple[list[tuple[Source, Source]], list[tuple[list[Source], list[Source]]]]:
    """Match sounds and videos by name.

    Returns:
        the pairs of files that are alone with their name, and the groups that share one with others.
    """
    groups = defaultdict(lambda: ([], []))  # name -> sounds, videos
    for i, (sources, name_of) in enumerate(((sounds, audio_name), (videos, video_name))):
        for source in sources:
            # One name can be spelt in two ways in Unicode, and file systems differ in which they keep.
            groups[unicodedata.normalize("NFC", name_of(source))][i].append(source)
    both = [group for group in groups.values() if all(group)]
    pairs = [(left[0], right[0]) for left, right in both if len(left) == len(right) == 1]
    return pairs, [(left, right) for left, right in both if len(left) + len(right) > 2]


def pair_with_own_sound(video: MediaFiles) -> Pairing:
    """Pair each video file with itself: its picture with its sound."""
    return Pairing("file", tuple((source, source) for source in video.distinct))


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
    if pairing.rule == "suffix":
        report_suffixes(audio, video, pairing)
    if pairing.rule in ("stem", "suffix"):
        if pairing.ambiguous:
            log.warning("not paired, as several files share the name: %s", shorten(pairing.ambiguous))
        for modality, sources in (("audio", pairing.unmatched_audio), ("video", pairing.unmatched_video)):
            if others := sorted(set(sources) - set(pairing.ambiguous)):
                log.warning("%d %s files without a partner: %s", len(others), modality, shorten(others))
    n_audio, n_video = len(audio.distinct), len(video.distinct)
    log.info("%d audio files, %d video files, %d pairs", n_audio, n_video, len(pairing.pairs))


def report_suffixes(audio: MediaFiles, video: MediaFiles, pairing: Pairing) -> None:
    """Say which names are those of the other modality with a suffix, and how many there are of each."""
    ours, theirs = (audio, video) if pairing.suffixed == "audio" else (video, audio)
    side, other = pairing.sides
    uses = Counter(pair[other] for pair in pairing.pairs)
    stems = [(ours.stems[pair[side]], theirs.stems[pair[other]]) for pair in pairing.pairs]
    suffixes = sorted({name[len(base) :] for name, base in stems if name.startswith(base)})
    fewest, most = min(uses.values()), max(uses.values())
    log.info(
        "%d %s files are named as %d %s files with a suffix (%s), %s each, and are paired so%s",
        *(len(pairing.pairs), pairing.suffixed, len(uses)),
        "video" if pairing.suffixed == "audio" else "audio",
        shorten(suffixes),
        most if fewest == most else f"{fewest} to {most}",
        "; those of one are a group" if most > 1 else "",
    )


def explain_no_pairs(audio: MediaFiles, video: MediaFiles) -> str:
    """Say in one line why no file has a partner, with some names, and two that nearly match."""
    for modality, files in (("audio", audio), ("video", video)):
        if not files.any_exists:
            return f"none of the {modality} files exists: {shorten(files.distinct)}"
    left, right = (list(files.stems.values()) for files in (audio, video))
    names = " and ".join(", ".join([*side[:3], *["..."] * (len(side) > 3)]) for side in (left, right))
    return (
        f"no file name is on both sides ({names}){near_match(left, right)}; name the pairs in a table "
        f"({spelled('manifest')}), give two lists of equal length, which pair by position, or compare all "
        f"with {spelled('retrieval_mode', True)}"
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
