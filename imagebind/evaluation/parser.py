"""The command line's options, and what it says of wrong ones: built from the fields of Options."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from imagebind import __version__
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.inputs.files import SUFFIXES, ListFile
from imagebind.evaluation.options import GROUPS, options_of
from imagebind.evaluation.rules import PROTOCOLS, SHARD, read_directory
from imagebind.evaluation.systems.paper_table import FORMATS
from imagebind.evaluation.terminal import print_error

EXAMPLES = """\
examples:
  a first run, with the files and the small model that come along:
    {program} --audio_dir tests/demo/audio --video_dir tests/demo/video --checkpoint tests/demo/imagebind_demo.pth
  pairs of sounds and videos of the same name:
    {program} --audio_dir audios --video_dir videos --output_dir outputs
  retrieval among all sounds and videos:
    {program} --audio_dir audios --video_dir videos --retrieval_mode
  the paths of two list files, one path a line:
    {program} --audio_file audio_list.txt --video_file video_list.txt
  each video's own sound:
    {program} --video_dir videos
  captions too:
    {program} --audio_dir audios --video_dir videos --captions captions.csv
  the public scores of MMAudio's and JavisBench's tables too:
    {program} --audio_dir audios --video_dir videos --protocol all
  the pairs of a table:
    {program} --manifest pairs.csv
  two finished runs against each other:
    {program} --compare outputs_a outputs_b --output_dir comparison
  eight GPUs:
    torchrun --standalone --nproc_per_node=8 {launched} --audio_dir audios --video_dir videos

documents, in English and Chinese:
  README.md, README.zh-CN.md, and docs/: options.md, inputs.md, outputs.md, protocols.md, faults.md and others

exit status:
  0    done; files that were skipped are listed in the report
  1    nothing could be evaluated, the model could not be loaded, or the results could not be written
  2    wrong usage
  3    done, but a file or a row of the manifest was skipped, and --strict was given
  130  stopped by Ctrl-C; 143 by SIGTERM
"""  # noqa: E501 (a command stays in its line, to be copied)


USAGE = """\
usage: {program} --audio_dir DIR --video_dir DIR [--output_dir DIR] [--retrieval_mode]
       {program} --video_dir DIR              each video's own sound
       {program} --manifest FILE              a table of pairs, or tars
       {program} --compare DIR DIR            finished runs against each other
--help has all options, with examples; --version the version"""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        print_error(message)
        sys.exit(2)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parse arguments, also those written with dashes inside; say which a wrong one may have been."""
        given = list(map(self._spell, sys.argv[1:] if args is None else args))
        if not given:
            print(USAGE.format(program=program_name()), file=sys.stderr)
            sys.exit(2)
        parsed, others = self.parse_known_args(given, namespace)
        if others:
            self.error(self._describe_unknown(others))
        return parsed

    def _spell(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        spelt = f"--{name[2:].replace('-', '_')}"
        return (
            f"{spelt}{equals}{value}"
            if name[:2] == "--" and spelt in self._option_string_actions
            else argument
        )

    def _describe_unknown(self, arguments: Sequence[str]) -> str:
        name = next((a.partition("=")[0] for a in arguments if a.startswith("-")), None)
        if name is None:
            return f"unrecognized arguments: {' '.join(arguments)}"
        like = difflib.get_close_matches(name, self._option_string_actions, 1)
        return f"unrecognized argument {name}; {f'is it {like[0]}?' if like else '--help lists all'}"


def program_name() -> str:
    """Say by what this program was started."""
    return "av-consistency" if Path(sys.argv[0]).name == "av-consistency" else "python batch_inference.py"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser: the inputs, every field of Options, and what only the command line has."""
    program = program_name()
    launched = "--no-python av-consistency" if program == "av-consistency" else "batch_inference.py"
    parser = Parser(
        description="Say how well sounds and videos belong together, with ImageBind.",
        epilog=EXAMPLES.format(program=program, launched=launched),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {
        "inputs": parser.add_argument_group(
            "inputs", "Give one option for the videos, and one for the sounds or none; or a manifest."
        )
    }
    for modality, suffixes in SUFFIXES.items():
        one_of = groups["inputs"].add_mutually_exclusive_group()
        help = f"Search this directory, and those below it, for {' '.join(suffixes)} files."
        one_of.add_argument(f"--{modality}_dir", type=argument_type(read_directory), metavar="DIR", help=help)
        help = (
            f"Read {modality} paths from this text file, one a line. Any format that FFmpeg decodes will do."
        )
        one_of.add_argument(f"--{modality}_file", type=argument_type(ListFile), metavar="FILE", help=help)
        one_of.add_argument(
            f"--{modality}_paths", nargs="+", metavar="PATH", help=f"Take these {modality} files."
        )
    for group in GROUPS:
        groups[group] = groups.get(group) or parser.add_argument_group(group)
        for option in options_of(group):
            add_option(groups[group], option.name, option.default, option.metadata)
    parser.set_defaults(output_dir="./outputs")
    add_comparison(parser)
    groups["speed"].add_argument(
        "--shard",
        type=argument_type(SHARD.parse),
        metavar=SHARD.metavar,
        help="Embed one of N shares of the files, keep the embeddings in the cache, and write nothing else. "
        "The same command without --shard then finds them.",
    )
    groups["outputs"].add_argument(
        "--strict",
        action="store_true",
        help="Exit with status 3 if a file, or a row of the manifest, was skipped; the outputs are written "
        "all the same.",
    )
    groups["outputs"].add_argument(
        "--json",
        action="store_true",
        help="Print the figures, as in metrics.json, as one JSON object instead of the report; of --compare "
        "the rows of comparison.csv.",
    )
    parser.add_argument("--version", action="version", version=f"imagebind-av-consistency {__version__}")
    return parser


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Add the options of comparing finished runs."""
    comparison = parser.add_argument_group("comparison")
    comparison.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="Compare these output directories of finished runs instead; needs neither model nor media. "
        "Those of several seeds of one system are joined by a +.",
    )
    comparison.add_argument(
        "--reference",
        metavar="DIR",
        help="With --compare: a further run, such as that of the real sounds, that others are placed by.",
    )
    comparison.add_argument(
        "--table",
        choices=FORMATS,
        help="With --compare: print the table for a paper instead.",
    )
    comparison.add_argument(
        "--force",
        action="store_true",
        help="With --compare: compare runs even if they were computed in different ways.",
    )


def add_option(group: Any, name: str, default: Any, metadata: dict[str, Any]) -> None:
    """Add a field of Options to a group of the parser."""
    if default is False:
        group.add_argument(f"--{name}", action="store_true", help=metadata["help"])
        return
    read = argument_type(metadata["rule"].parse) if metadata["rule"] else str
    shown = {"default": default, "metavar": metadata["metavar"], "help": metadata["help"]}
    if name == "protocols":
        group.add_argument("--protocol", dest=name, nargs="+", choices=[*PROTOCOLS, "all"], **shown)
    else:
        nargs = "+" if name == "manifest" else None
        group.add_argument(f"--{name}", type=read, nargs=nargs, **shown)


def argument_type(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse show an OptionError or an OSError as it is."""

    def argument(text: str) -> Any:
        try:
            return read(text)
        except OptionError as e:
            raise argparse.ArgumentTypeError(str(e)) from e
        except OSError as e:
            raise argparse.ArgumentTypeError(f"{text}: {e.strerror}") from e

    return argument
