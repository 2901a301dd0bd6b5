"""The options of a run: what each means, its default, and which values it takes, in one place.

The command line's parser is built from these fields, and the Python function takes them as keywords.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from imagebind.evaluation.compare.protocols import LEADING
from imagebind.evaluation.compare.protocols import NAMES as PROTOCOLS
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.inputs.files import Source
from imagebind.evaluation.inputs.groups import compile_group_by
from imagebind.evaluation.inputs.manifest import SUFFIXES as MANIFEST_SUFFIXES
from imagebind.evaluation.inputs.manifest import is_table, suffix_of
from imagebind.evaluation.inputs.tables import TEXT_SUFFIXES
from imagebind.evaluation.write.words import LANGUAGES
from imagebind.names import can_be_path

GROUPS = ("inputs", "model", "speed", "outputs")  # of --help
MAX_SHOWN = 500  # characters of a wrong value
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
CACHE_NAME = "embeddings.sqlite"  # in the output directory
MARKER_PREFIX = ".job-"  # of a file there by which several processes see that they share a directory
TEMPORARY_CACHE_NAME = ".no_cache.sqlite"  # there too; of several processes with --no_cache


@dataclass(frozen=True)
class Rule:
    """Which values an option takes.

    Args:
        sentence: says it, after the option's name.
        read: text of the command line -> value; raises ValueError.
        holds: whether a value is allowed.
        metavar: stands for the value in --help.
    """

    sentence: str
    read: Callable[[str], Any]
    holds: Callable[[Any], bool]
    metavar: str

    def parse(self, text: str) -> Any:
        """Read a value of the command line.

        Raises:
            OptionError: it is not allowed.
        """
        try:
            value = self.read(text)
        except OptionError:
            raise
        except ValueError as e:
            raise OptionError(f"{self.sentence}, not {text!r}") from e
        self.check(value, shown=text)
        return value

    def check(self, value: Any, name: str = "", shown: Any = None) -> None:
        """Raise an OptionError for a value that is not allowed."""
        if not self.holds(value):
            shown = repr(value if shown is None else shown)
            shown = shown if len(shown) <= MAX_SHOWN and "\n" not in shown else f"a {type(value).__name__}"
            raise OptionError(f"{self.sentence}, not {shown}", name)


def whole(low: int, high: int, metavar: str = "N") -> Rule:
    """Whole numbers of a range."""

    def holds(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"must be a whole number from {low} to {high}", int, holds, metavar)


def number(low: float, high: float, metavar: str) -> Rule:
    """Numbers of a range."""

    def holds(value: Any) -> bool:
        return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"must be a number from {low} to {high}", float, holds, metavar)


def one_of(*choices: str) -> Rule:
    """A choice of words."""
    return Rule(f"must be one of {', '.join(choices)}", str, choices.__contains__, f"{{{','.join(choices)}}}")


def is_device(value: Any) -> bool:
    value = str(value) if type(value).__module__ == "torch" else value  # a torch.device
    return isinstance(value, str) and re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", value) is not None


def is_captions(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, str | os.PathLike) and os.fspath(value).lower().endswith(TEXT_SUFFIXES)


def read_captions_path(text: str) -> str:
    if is_captions(text) and not os.path.isfile(text):
        raise OptionError(f"{text}: no such file")
    return text


def is_manifest(value: Any) -> bool:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value).lower().endswith(MANIFEST_SUFFIXES)
    if is_table(value):
        return True
    return isinstance(value, Sequence) and all(isinstance(row, Mapping) for row in value)


def read_manifest_path(text: str) -> str:
    if is_manifest(text) and not os.path.isfile(text):
        raise OptionError(f"{text}: no such file")
    return text


def read_group_by(text: str) -> str:
    compile_group_by(text)
    return text


def is_group_by(value: Any) -> bool:
    return isinstance(value, str) and bool(compile_group_by(value))


def read_shard(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"(\d+)/(\d+)", text)):
        raise ValueError(text)
    return int(match[1]), int(match[2])


def is_protocols(value: Any) -> bool:
    return (
        not isinstance(value, str)
        and bool(value)
        and all(name in PROTOCOLS for name in value)
        and len(set(value)) == len(value)
        and value[0] in LEADING
    )


DEVICE = Rule("must be a device such as cuda:0 or cpu", str, is_device, "NAME")
CAPTIONS = Rule("must be a .csv, .tsv or .jsonl file", read_captions_path, is_captions, "FILE")
MANIFEST = Rule("must be a .csv, .tsv, .jsonl or .parquet file", read_manifest_path, is_manifest, "FILE")
PROTOCOL = Rule(
    f"must be {' or '.join(LEADING)}, then any of {', '.join(PROTOCOLS)}, each once",
    str,
    is_protocols,
    "NAME",
)
GROUP_BY = Rule("must be a regular expression", read_group_by, is_group_by, "REGEX")
SHARD = Rule(
    "must be I/N, such as 3/64: the third of 64 shares", read_shard, lambda s: 1 <= s[0] <= s[1], "I/N"
)


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

    audio_paths: Source | None  # None: the sound of each video file itself
    video_paths: Source | None  # None with a manifest alone
    device: str = option(
        "cuda:0",
        "model",
        "Device that runs the model, for example cuda:0 or cpu. Without CUDA the CPU is used. "
        "Default: %(default)s.",
        DEVICE,
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
    manifest: str | os.PathLike | Sequence[Mapping[str, Any]] | None = option(
        None,
        "inputs",
        "Take the pairs of this table instead: a .csv, .tsv, .jsonl or .parquet file with the columns video, "
        "audio (empty: the video's own sound) and, if you like, id, caption, audio_caption, group, start and "
        "end. Relative paths are relative to it.",
        MANIFEST,
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
        CAPTIONS,
    )
    checkpoint: str | os.PathLike | None = option(
        None,
        "model",
        "Weights: a file, or hf:OWNER/NAME for a repository of the Hugging Face Hub. Default: "
        "imagebind_huge.pth in .checkpoints, downloaded on first use (4.8 GB).",
    )
    protocols: tuple[str, ...] = option(
        ("imagebind",),
        "model",
        "Public scores to compute for each pair: imagebind, mmaudio, avhscore, javisscore, or all. The first "
        "one, imagebind or mmaudio, gives the embeddings, the matrix and the ranks too. Default: imagebind.",
        PROTOCOL,
    )
    protocol_seconds: float = option(
        8,
        "model",
        "How much of each video mmaudio looks at; a shorter one it drops. Default: %(default)s.",
        number(4, 3600, "SECONDS"),
    )
    precision: str = option(
        "auto",
        "model",
        "Precision of the model's matrix multiplications. auto is fp32 on the CPU and fp16 on CUDA. "
        "Default: %(default)s.",
        one_of(*PRECISIONS),
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
        r"names; what its first parentheses match names the group, as in '(.+)_\d+'.",
        GROUP_BY,
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
        one_of(*LANGUAGES),
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
            value, rule = getattr(self, f.name), f.metadata.get("rule")
            if rule is not None and not (value is None and f.default is None):
                rule.check(value, f.name)
            if f.name == "video_paths" and value is None and self.manifest is None:
                raise OptionError("must be given", f.name)
            is_other = f.name in ("audio_paths", "video_paths", "captions") and value is not None
            if is_other and self.manifest is not None:
                raise OptionError("is not for a run with a manifest, which names its files", f.name)
            if f.name in ("output_dir", "cache", "checkpoint", "manifest", "captions"):
                is_path = isinstance(value, str | os.PathLike)
                if is_path and os.fspath(value).startswith("~/"):
                    raise OptionError(f"{value}: ~ is taken as it stands here; write the path out", f.name)
                if is_path and not can_be_path(os.fspath(value)):
                    raise OptionError(f"must be a path that a file can have, not {value!r}", f.name)
            if f.name == "checkpoint" and value is not None and not os.fspath(value):
                raise OptionError("is empty", f.name)
            if f.name == "pairs_only" and value and self.retrieval_mode:
                raise OptionError("is not for retrieval_mode, which compares all files", f.name)
            if f.name == "copy_media" and value and self.no_html:
                raise OptionError("is for the page, which no_html leaves out", f.name)
            if f.default is False and value not in (True, False):
                raise OptionError(f"must be True or False, not {value!r}", f.name)

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


def options_of(group: str) -> list[Field]:
    """List the options of a group of --help."""
    return [f for f in fields(Options) if f.metadata.get("group") == group]
