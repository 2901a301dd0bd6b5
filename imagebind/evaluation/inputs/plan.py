"""What a run compares: its files, its pairs and its captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.captions import MatchedCaptions, match_captions
from imagebind.evaluation.inputs.files import MediaFiles, gather_files
from imagebind.evaluation.inputs.given import GivenEmbeddings, read_given
from imagebind.evaluation.inputs.groups import (
    CONTENT_GROUP,
    are_contents,
    find_categories,
    find_groups,
    in_one_spelling,
    match_groups,
)
from imagebind.evaluation.inputs.manifest import Manifest, read_manifest
from imagebind.evaluation.inputs.pairing import (
    Pairing,
    explain_no_pairs,
    pair_files,
    pair_with_own_sound,
    report_pairing,
)
from imagebind.evaluation.options import Options, given_embeddings
from imagebind.sources import Source
from imagebind.spelling import option as spelled


@dataclass(frozen=True)
class Plan:
    """What a run compares."""

    audio: MediaFiles
    video: MediaFiles
    pairing: Pairing
    names: Sequence[str]  # of the pairs
    retrieval: bool  # all files are compared; otherwise pairs alone
    captions: MatchedCaptions | None
    groups: Sequence[str | None] | None  # of each pair; None: each pair is its own
    file_groups: dict[str, dict[Source, str | None]] | None  # modality -> file -> its group, likewise
    groups_are_content: bool = False  # all of one group show the same, and are no mismatches of each other
    categories: Sequence[str | None] | None = None  # of each pair; None: there are none
    manifest: Manifest | None = None  # that the pairs are of
    given: dict[str, GivenEmbeddings] = field(default_factory=dict)  # modality -> in place of its files

    @cached_property
    def inputs(self) -> dict[str, Sequence[Source | str]]:
        """What is compared, each once: modality -> files, or texts."""
        if self.retrieval:
            inputs = {"audio": self.audio.distinct, "video": self.video.distinct}
        else:
            sides = zip(*self.pairing.pairs, strict=True)
            inputs = {
                m: tuple(dict.fromkeys(files)) for m, files in zip(("audio", "video"), sides, strict=True)
            }
        return inputs if self.captions is None else inputs | {"text": self.captions.used_texts}

    @property
    def to_embed(self) -> dict[str, Sequence[Source | str]]:
        """What of it is to be embedded."""
        return {m: sources for m, sources in self.inputs.items() if m not in self.given}


def plan_run(options: Options) -> Plan:
    """List the files, pair them, and find their captions.

    Raises:
        EvaluationError: nothing can be evaluated.
    """
    if options.manifest is not None:
        return plan_manifest(read_manifest(options.manifest), options)
    given = {m: read_given(m, path) for m, path in given_embeddings(options).items()}
    video = given["video"].files if "video" in given else gather_files("video", options.video_paths)
    if options.audio_paths is None and "audio" not in given:
        audio, pairing = video, pair_with_own_sound(video)
    else:
        audio = given["audio"].files if "audio" in given else gather_files("audio", options.audio_paths)
        pairing = pair_files(audio, video)
    if pairing.rule == "none" and not options.retrieval_mode:
        raise EvaluationError(explain_no_pairs(audio, video))
    report_pairing(audio, video, pairing)
    if not pairing.pairs and not options.retrieval_mode:
        raise EvaluationError(
            f"no two files can be paired without doubt; {spelled('retrieval_mode', True)} compares all"
        )
    captions = None
    if options.captions is not None:
        captions = match_captions(options.captions, audio, video, pairing.pairs, options.retrieval_mode)
    side, other = pairing.sides
    names = [(audio, video)[side].names[pair[side]] for pair in pairing.pairs]
    of_pairs = [] if captions is None else captions.of_pairs["video"]
    source = options.captions if isinstance(options.captions, str | os.PathLike) else "captions"
    is_column = captions is not None and captions.read.groups_are_content
    is_content = are_contents(str(source), is_column, options.group_by)
    column = [captions.read.groups.get(name) for name in of_pairs]
    are_several = len({pair[other] for pair in pairing.pairs}) < len(pairing.pairs)
    by_suffix = pairing.rule == "suffix" and are_several and not any(column) and options.group_by is None
    if by_suffix:  # those of one are not independent
        column = [(audio, video)[other].names[pair[other]] for pair in pairing.pairs]
    groups = find_groups(names, options.group_by, column)
    file_groups = None
    if groups is not None and (captions is not None or is_content):
        files = {"audio": audio, "video": video}
        if by_suffix:
            file_groups = groups_of_partners(files, pairing, groups)
        else:
            file_groups = {m: groups_of_files(files[m].names, options.group_by, captions, m) for m in files}
    categories = find_categories(
        names, options.category_by, [captions.read.categories.get(name) for name in of_pairs]
    )
    labels = groups, file_groups, is_content, categories
    return Plan(audio, video, pairing, names, options.retrieval_mode, captions, *labels, given=given)


def plan_manifest(manifest: Manifest, options: Options) -> Plan:
    """Plan the pairs of a manifest.

    Raises:
        OptionError: group_by is no regular expression with a group.
    """
    pairing = Pairing("manifest", tuple(manifest.pairs))
    audio, video = (MediaFiles(files) for files in zip(*pairing.pairs, strict=True))
    names = [name or audio.names[sound] for name, (sound, _) in zip(manifest.ids, pairing.pairs, strict=True)]
    report_pairing(audio, video, pairing)
    captions = manifest.captions(names)
    groups = find_groups(names, options.group_by, manifest.texts("group"))
    is_content = are_contents(manifest.source, CONTENT_GROUP in manifest.columns, options.group_by)
    manifest.replaced = {m for m in ("group", "category") if getattr(options, f"{m}_by") is not None}
    categories = find_categories(names, options.category_by, manifest.texts("category"))
    file_groups = None
    if groups is not None:
        file_groups = groups_of_partners({"audio": audio, "video": video}, pairing, groups)
    labels = groups, file_groups, is_content, categories
    return Plan(audio, video, pairing, names, options.retrieval_mode, captions, *labels, manifest)


def groups_of_partners(
    files: dict[str, MediaFiles], pairing: Pairing, groups: Sequence[str | None]
) -> dict[str, dict[Source, str | None]]:
    """Name the group of each file by those of its pairs: of several the first, of none None."""
    return {
        modality: dict.fromkeys(files[modality].distinct)
        | dict(reversed([(pair[axis], g) for pair, g in zip(pairing.pairs, groups, strict=True)]))
        for axis, modality in enumerate(("audio", "video"))
    }


def groups_of_files(
    names: dict[Source, str], group_by: str | None, captions: MatchedCaptions | None, modality: str
) -> dict[Source, str | None]:
    """Name the group of each file, also of those without a partner.

    Args:
        names: of the files.
    """
    if group_by is not None:
        groups = match_groups(list(names.values()), group_by)
    else:
        caption_of = dict(reversed(captions.of_files[modality]))  # the first of each
        groups = [captions.read.groups.get(caption_of.get(file)) for file in names]
    return dict(zip(names, in_one_spelling(groups), strict=True))
