"""What a run compares: its files, its pairs and its captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imagebind.evaluation.captions import MatchedCaptions, match_captions
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.files import MediaFiles, gather_files
from imagebind.evaluation.groups import find_groups, match_groups
from imagebind.evaluation.options import Options
from imagebind.evaluation.pairing import (
    Pairing,
    explain_no_pairs,
    pair_files,
    pair_with_own_sound,
    report_pairing,
)


@dataclass(frozen=True)
class Plan:
    """What a run compares."""

    audio: MediaFiles
    video: MediaFiles
    pairing: Pairing
    retrieval: bool  # all files are compared; otherwise pairs alone
    captions: MatchedCaptions | None
    inputs: dict[str, Sequence[str]]  # what is to be embedded, each once: modality -> paths, or texts
    groups: Sequence[str | None] | None  # of each pair; None: each pair is its own
    file_groups: dict[str, dict[str, str | None]] | None  # modality -> file -> its group, likewise


def plan_run(options: Options) -> Plan:
    """List the files, pair them, and find their captions.

    Raises:
        EvaluationError: nothing can be evaluated.
    """
    video = gather_files("video", options.video_paths)
    if options.audio_paths is None:
        audio, pairing = video, pair_with_own_sound(video)
    else:
        audio = gather_files("audio", options.audio_paths)
        pairing = pair_files(audio, video)
    if pairing.rule == "none" and not options.retrieval_mode:
        raise EvaluationError(explain_no_pairs(audio, video))
    report_pairing(audio, video, pairing)
    retrieval = options.retrieval_mode
    if retrieval:
        inputs = {"audio": audio.distinct, "video": video.distinct}
    elif not pairing.pairs:
        raise EvaluationError("no two files can be paired without doubt; --retrieval_mode compares all")
    else:
        audio_paths, video_paths = zip(*pairing.pairs, strict=True)
        inputs = {"audio": tuple(dict.fromkeys(audio_paths)), "video": tuple(dict.fromkeys(video_paths))}
    captions = None
    if options.captions is not None:
        captions = match_captions(options.captions, audio, video, pairing.pairs, retrieval)
        inputs["text"] = captions.used_texts
    names = [audio.names[audio_path] for audio_path, _ in pairing.pairs]
    of_captions = captions and [captions.groups.get(name) for name in captions.of_pairs["video"]]
    groups = find_groups(names, options.group_by, of_captions)
    of_files = None
    if captions is not None and groups is not None:
        files = {"audio": audio, "video": video}
        of_files = {m: groups_of_files(files[m].names, options.group_by, captions, m) for m in files}
    return Plan(audio, video, pairing, retrieval, captions, inputs, groups, of_files)


def groups_of_files(
    names: dict[str, str], group_by: str | None, captions: MatchedCaptions, modality: str
) -> dict[str, str | None]:
    """Name the group of each file, also of those without a partner.

    Args:
        names: path -> name.
    """
    if group_by is not None:
        return dict(zip(names, match_groups(list(names.values()), group_by), strict=True))
    caption_of = dict(reversed(captions.of_files[modality]))  # the first of each
    return {path: captions.groups.get(caption_of.get(path)) for path in names}
