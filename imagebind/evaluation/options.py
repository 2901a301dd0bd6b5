"""The options of a run: what each means, its default, and which values it takes, in one place.

The command line's parser is built from these fields, and the Python function takes them as keywords.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from imagebind.evaluation import rules
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.rules import Paths, Rule, number, suffix_of, whole
from imagebind.names import can_be_path

GROUPS = ("inputs", "model", "speed", "outputs")  # of --help
GIVEN = {"audio": "audio_embeddings", "video": "video_embeddings"}  # modality -> in place of its files
PATHS = ("output_dir", "cache", "checkpoint", "manifest", "captions", *GIVEN.values())
DEFAULT_PROTOCOLS = ("imagebind",)
EMBEDDINGS_HELP = {
    modality: f"Take the embeddings of the {what} from here, in place of files: the output directory of a "
    f"finished run, or a dictionary of names and vectors as av-benchmark's imagebind_{modality}.pth."
    for modality, what in (("audio", "sounds"), ("video", "videos"))
}
CACHE_NAME = "embeddings.sqlite"  # in the output directory
MARKER_PREFIX = ".job-"  # of a file there by which several processes see that they share a directory
TEMPORARY_CACHE_NAME = ".no_cache.sqlite"  # there too; of several processes with --no_cache


def option(default: Any, group: str, help: str, rule: Rule | None = None, metavar: str = "PATH") -> Any:
    """Declare an option.

    Args:
        default: its value where it is not given.
        group: of --help.
        help: whole sentences; what stands there for the default is "%(default)s".
        rule: which values it takes; None takes any.
        metavar: as in Rule, where there is no rule.
    """
    metadata = {"group": group, "help": help, "rule": rule, "metavar": rule.metavar if rule else metavar}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Raises:
        OptionError: one of them has a value that it does not take.
    """

    audio_paths: Paths | None  # None: the sound of each video file itself
    video_paths: Paths | None  # None with a manifest, or with embeddings of videos
    device: str = option(
        "cuda:0",
        "model",
        "Device that runs the model, for example cuda:0 or cpu. Without CUDA the CPU is used. "
        "Default: %(default)s.",
        rules.DEVICE,
    )
    batch_size: int = option(
        4,
        "speed",
        "Files that go through the model together. On the CPU files always go one by one. "
        "Default: %(default)s.",
        whole(1, 4096),
    )
    output_dir: str | os.PathLike | None = option(
        None, "outputs", "Directory for the results. Default: %(default)s.", metavar="DIR"
    )
    retrieval_mode: bool = option(
        False,
        "inputs",
        "Compare all sounds with all videos: files without a partner stay, as distractors for the ranks. "
        "Without this option files without a partner are ignored.",
    )
    manifest: rules.Rows | None = option(
        None,
        "inputs",
        "Take the pairs of this table instead: a .csv, .tsv, .jsonl or .parquet file with the columns video, "
        "audio (empty: the video's own sound) and, if you like, id, caption, audio_caption, group or "
        "content_group, category, start and end. Relative paths are relative to it. Or the samples of tars, "
        "as WebDataset writes them.",
        rules.MANIFEST,
    )
    pairs_only: bool = option(
        False,
        "inputs",
        "Score the pairs alone, without matrix, ranks and retrieval: the cost grows with the number of "
        "pairs, not with its square. Margin, AUC and suspects come from sampled mismatches.",
    )
    captions: str | os.PathLike | Mapping[str, str] | None = option(
        None,
        "inputs",
        "Compare sounds and videos with the texts of this file too: a .csv or .tsv file with the columns "
        "name and caption, or a .jsonl file with these keys.",
        rules.CAPTIONS,
    )
    audio_embeddings: str | os.PathLike | None = option(
        None, "inputs", EMBEDDINGS_HELP["audio"], rules.EMBEDDINGS
    )
    video_embeddings: str | os.PathLike | None = option(
        None, "inputs", EMBEDDINGS_HELP["video"], rules.EMBEDDINGS
    )
    checkpoint: str | os.PathLike | None = option(
        None,
        "model",
        "Weights: a file, or hf:OWNER/NAME for a repository of the Hugging Face Hub. Default: "
        "imagebind_huge.pth in .checkpoints, downloaded on first use (4.8 GB).",
    )
    protocols: tuple[str, ...] | None = option(
        None,
        "model",
        "Public scores to compute for each pair: imagebind, mmaudio, avhscore, javisscore, mova, reward, "
        "t2av, or all. The first one, which is neither avhscore nor javisscore, gives the embeddings, the "
        "matrix and the ranks too. Default: imagebind, or that of embeddings that are given.",
        rules.PROTOCOL,
    )
    protocol_seconds: float | None = option(
        None,
        "model",
        "How much of each video mmaudio and mova look at; mmaudio drops a shorter one, mova pads it. "
        "Default: 8 for mmaudio, 7.9 for mova.",
        number(2, 3600, "SECONDS"),
    )
    precision: str = option(
        "auto",
        "model",
        "Precision of the model's matrix multiplications. auto is fp32 on the CPU and fp16 on CUDA. "
        "Default: %(default)s.",
        rules.PRECISION,
    )
    num_workers: int | None = option(
        None,
        "speed",
        "Processes that read files. 0 reads in the main process, which a broken file can then crash or hang. "
        "Default: one for each core.",
        whole(0, 1024),
    )
    timeout: float = option(
        300,
        "speed",
        "A file that takes longer to read is skipped. Default: %(default)s.",
        number(0.001, 1_000_000, "SECONDS"),
    )
    worker_memory_gb: float = option(
        4,
        "speed",
        "A file that takes more memory to read is skipped (1 GB is 10^9 bytes). Default: %(default)s.",
        number(0.001, 100_000, "GB"),
    )
    cache: str | os.PathLike | None = option(
        None,
        "speed",
        f"File that keeps embeddings for later runs. Default: {CACHE_NAME} in the output directory.",
        metavar="FILE",
    )
    no_cache: bool = option(False, "speed", "Compute every embedding, and keep none.")
    max_matrix_gb: float = option(
        8,
        "outputs",
        "similarity_matrix.npy is not written where it would be larger (1 GB is 10^9 bytes). "
        "Default: %(default)s.",
        number(0, 1_000_000, "GB"),
    )
    keep_above: float | None = option(
        None,
        "outputs",
        "Write the pairs whose similarity is at least X to kept.csv, or to kept with the suffix of the "
        "manifest and in its form; without a manifest to kept.txt, as pairs.txt is.",
        number(-1, 1, "X"),
    )
    group_by: str | None = option(
        None,
        "outputs",
        "Intervals are computed over groups of pairs, such as the clips of one prompt. Regular expression on "
        r"names; what its first parentheses match names the group, as in '(.+)_\d+'. With "
        r"'(?P<content_group>.+)_\d+' pairs of a group show the same, and are no mismatches of each other.",
        rules.GROUP_BY,
    )
    category_by: str | None = option(
        None,
        "outputs",
        "Mean similarities are told apart by category. Regular expression on names; what its first "
        r"parentheses match names the category, as in '(.+?)_'.",
        rules.GROUP_BY,
    )
    seed: int = option(
        0,
        "outputs",
        "Seed of the bootstrap that gives the intervals, and of the sample of mismatches. "
        "Default: %(default)s.",
        whole(0, 2**32 - 1),
    )
    report_lang: str = option(
        "zh",
        "outputs",
        "Language of the report, the comparison and the pages. Default: %(default)s.",
        rules.LANGUAGE,
    )
    copy_media: bool = option(
        False,
        "outputs",
        "Write small copies of the pairs' files to report_media, which play in any browser, so that the "
        "page can be moved or sent with its sounds and videos.",
    )
    no_html: bool = option(False, "outputs", "Do not write report.html and comparison.html.")
    progress: bool = False  # bars, which the command line draws; elsewhere a line now and then is logged

    def __post_init__(self):
        for f in fields(self):
            check_value(f, getattr(self, f.name))
        check_together(self)

    @property
    def mode(self) -> str:
        """What is compared: each pair's rows, or all files, or the pairs alone."""
        return "retrieval" if self.retrieval_mode else "pairs_only" if self.pairs_only else "pairing"

    @property
    def has_page(self) -> bool:
        """Whether report.html is written."""
        return self.output_dir is not None and not self.no_html

    @property
    def copies_media(self) -> bool:
        """Whether copies of media are written for it."""
        return self.has_page and self.copy_media

    @property
    def kept_name(self) -> str | None:
        """Name of the output with the pairs that are kept; None where none are asked for."""
        if self.keep_above is None or self.output_dir is None:
            return None
        return "kept.txt" if self.manifest is None else f"kept{suffix_of(self.manifest)}"

    @property
    def cache_path(self) -> str | os.PathLike | None:
        """Where embeddings are kept; None where they are not."""
        if self.no_cache:
            return None
        if not self.cache and self.output_dir is not None:
            return os.path.join(self.output_dir, CACHE_NAME)
        return self.cache or None


def given_embeddings(options: Options) -> dict[str, str | os.PathLike]:
    """Return where embeddings are, for each modality that has them in place of files."""
    return {m: path for m, name in GIVEN.items() if (path := getattr(options, name)) is not None}


def options_of(group: str) -> list[Field]:
    """List the options of a group of --help."""
    return [f for f in fields(Options) if f.metadata.get("group") == group]


def check_value(option: Field, value: Any) -> None:
    """Raise an OptionError for a value that an option does not take."""
    rule = option.metadata.get("rule")
    if rule is not None and not (value is None and option.default is None):
        rule.check(value, option.name)
    if option.name in PATHS and isinstance(value, str | os.PathLike):
        if os.fspath(value).startswith("~/"):
            raise OptionError(f"{value}: ~ is taken as it stands here; write the path out", option.name)
        if not can_be_path(os.fspath(value)):
            raise OptionError(f"must be a path that a file can have, not {value!r}", option.name)
    if option.name == "checkpoint" and value is not None and not os.fspath(value):
        raise OptionError("is empty", option.name)
    if option.default is False and value not in (True, False):
        raise OptionError(f"must be True or False, not {value!r}", option.name)


def check_together(options: Options) -> None:
    """Raise an OptionError for options that do not go together."""
    has_manifest = options.manifest is not None
    if options.video_paths is options.video_embeddings is None and not has_manifest:
        raise OptionError("must be given", "video_paths")
    for name in ("audio_paths", "video_paths", "captions", *GIVEN.values()):
        if has_manifest and getattr(options, name) is not None:
            raise OptionError("is not for a run with a manifest, which names its files", name)
    for modality, name in GIVEN.items():
        if getattr(options, name) is not None and getattr(options, f"{modality}_paths") is not None:
            raise OptionError(f"stands for the {modality} files: leave one of the two out", name)
    if options.video_embeddings is not None and options.audio_paths is options.audio_embeddings is None:
        raise OptionError("has no sound: name sound files, or audio_embeddings", "video_embeddings")
    if options.pairs_only and options.retrieval_mode:
        raise OptionError("is not for retrieval_mode, which compares all files", "pairs_only")
    if options.copy_media and options.no_html:
        raise OptionError("is for the page, which no_html leaves out", "copy_media")
    if options.cache and options.no_cache:
        raise OptionError("is not for a run with no_cache", "cache")
    protocols = options.protocols or (None if given_embeddings(options) else DEFAULT_PROTOCOLS)
    if options.protocol_seconds is not None and protocols is not None:
        if not (timed := [name for name in protocols if name in rules.TIMED]):
            raise OptionError("is for the protocols mmaudio and mova", "protocol_seconds")
        for name in timed:
            if options.protocol_seconds < (least := rules.LEAST_SECONDS[name]):
                raise OptionError(f"must be at least {least} for {name}", "protocol_seconds")
