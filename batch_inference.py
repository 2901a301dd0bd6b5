#!/usr/bin/env python3
"""Say how well sounds and videos belong together, with ImageBind.

    python batch_inference.py --audio_dir audios --video_dir videos
    python batch_inference.py --audio_dir audios --video_dir videos --retrieval_mode

Files are paired by name, embedded, and compared: the cosine similarity of every sound with every video,
statistics of the pairs, and how well each sound finds its video among all of them (Recall@K).

What it writes to --output_dir, for N sounds and M videos:

    audio_embeddings.npy    (N, 1024) float32, one row a file, as the model gives them
    video_embeddings.npy    (M, 1024)
    similarity_matrix.npy   (N, M) cosine similarities
    audio_names.txt         N lines, the name behind each row
    video_names.txt         M lines
    pairs.txt               audio path, tab, video path; in pairing mode line i is row i of both embeddings
    pair_scores.csv         a line for each pair: similarity, ranks, whether it can be told from a mismatch
    window_scores.csv       with --protocol javisscore: a line for each window of each pair
    text_embeddings.npy     (T, 1024), with --captions; text_names.txt has the names
    top_matches.csv         the ten most similar videos of each sound, and sounds of each video
    metrics.json            all figures, what was skipped and why, and how they were computed
    consistency_report.txt  the same to read
    report.html             the same to look at: charts, and the pairs in a table

On the 24 pairs of tests/demo, with the small model there, Recall@1 is 0.75; chance is 0.04.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

if os.name != "posix" and __name__ == "__main__":
    sys.exit("error: this program runs on Linux and macOS, and on Windows within WSL")
if os.name != "posix":
    raise ImportError("batch_inference needs Linux or macOS, or WSL on Windows")

from imagebind.packages import PackageError, describe_import_error, load, require

try:
    require("numpy", "torch", "av", "einops", "tqdm", "filelock")
except PackageError as e:
    if __name__ == "__main__":
        sys.exit(f"error: {e}; or activate the environment that has them, see README.md")
    raise

from imagebind.evaluation.errors import EvaluationError, NothingLeftError, OptionError
from imagebind.evaluation.inputs.files import SUFFIXES
from imagebind.evaluation.options import GROUPS, Options, options_of
from imagebind.evaluation.parser import build_parser
from imagebind.evaluation.rules import PROTOCOLS, Paths
from imagebind.evaluation.run import evaluate, evaluate_shard, help_embed
from imagebind.evaluation.systems.comparison_text import format_comparison
from imagebind.evaluation.systems.paper_table import format_table
from imagebind.evaluation.systems.seeds import folders_of
from imagebind.evaluation.systems.systems import COMPARISON_NAME, COMPARISON_PAGE, compare_systems
from imagebind.evaluation.terminal import (
    logging_to_stderr,
    prepare_streams,
    print_error,
    print_results,
    stopped_by_signals,
)
from imagebind.evaluation.torchrun import Job, JobError, LostProcessError
from imagebind.evaluation.write.outputs import REPORT_PAGE, check_inputs
from imagebind.evaluation.write.report import format_report, summary
from imagebind.evaluation.write.scalars import scalars
from imagebind.names import one_line
from imagebind.spelling import as_arguments

__all__ = [
    "EvaluationError",
    "Evaluator",  # noqa: F822 (by __getattr__)
    "NothingLeftError",
    "OptionError",
    "Options",
    "PairScorer",  # noqa: F822
    "batch_inference_av_consistency",
    "compare_systems",
    "format_report",
    "main",
    "scalars",
]


def __getattr__(name: str) -> Any:
    if name in (modules := {"Evaluator": "evaluator", "PairScorer": "pair_scorer"}):
        return getattr(load(f"imagebind.evaluation.{modules[name]}"), name)  # torch takes seconds to import
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def batch_inference_av_consistency(
    audio_paths: Paths | None = None,
    video_paths: Paths | None = None,
    device: str = Options.device,
    batch_size: int = Options.batch_size,
    output_dir: str | os.PathLike | None = Options.output_dir,
    retrieval_mode: bool = Options.retrieval_mode,
    *,
    job: Job | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Embed sounds and videos and measure how well they belong together.

    A file that cannot be used is skipped with a warning and leaves with its pair; every other file keeps its
    own row.

    Args:
        audio_paths: sound files, or video files for their sound, in order; or a directory. None judges each
            video's own sound against its picture.
        video_paths: video files, in order; or a directory; left out where a manifest names the pairs.
        device: that runs the model; the CPU is used where CUDA is asked for and not available.
        batch_size: files that go through the model together.
        output_dir: where to write the outputs; None writes none.
        retrieval_mode: keep files without a partner, as distractors for the ranks.
        job: the processes that share the work, of which this is the first; None is this process alone. The
            command line passes Job.from_torchrun().
        **more: the other fields of Options, which has their meaning and defaults. protocols is a sequence of
            names. captions may also be a mapping, name of a file -> text; manifest also a sequence of
            mappings, a row each.

    Returns:
        audio_embeddings: (N, E) torch float32 on the CPU, as the model gives them; not of unit length.
        video_embeddings, text_embeddings: (M, E); with captions (T, E), a row a pair or a caption.
        similarity_matrix: (N, M) cosine similarities, or None where it is left out.
        metrics: what metrics.json holds.
        audio_names, video_names, text_names: the names behind the rows.
        pairs: (audio path, video path) of all pairs; in pairing mode pair i is row i of both embeddings.
        pair_rows: (P, 2) numpy, row of the sound and row of the video of each pair.
        top_matches: "audio" -> the most similar videos of each sound: indices (N, 10), -1 where there are
            fewer, and similarities (N, 10); "video" -> the most similar sounds of each video.
        histograms: edges (B + 1,), and counts (B,) of "paired" and "mismatched" similarities.
        candidates: "audio_to_video" and "video_to_audio" -> what the partner of each pair competes with:
            n_better, n_equal and n, each (P,).
        pair_scores: a sequence of dictionaries, one for each pair, with the columns of pair_scores.csv.
        windows: with the protocol javisscore, for each pair its windows: start, end, score, is_silent.
        skipped_pairs, skipped_windows: the same of pairs without a similarity; "status" has the reason.
        failures: dictionaries of path, side (the modality) and reason.
        text_audio, text_video: with captions, dictionaries of pair_rows (K, 2), row of the text and row of
            the file; of the similarity and the ranks of these, each (K,); of histograms and of candidates.

    Raises:
        EvaluationError: nothing can be evaluated, the model cannot be loaded, an output cannot be written, or
            another run uses output_dir.
        OptionError: an option has a value that it does not take; it is a ValueError.
        ImportError: a package that this run needs is missing or does not load; the message is one line.
        KeyboardInterrupt: Ctrl-C; its message says what is kept.
    """
    options = Options(audio_paths, video_paths, device, batch_size, output_dir, retrieval_mode, **more)
    return evaluate(options, job=job)


# The command line


def parse_args(argv: Sequence[str] | None, job: Job | None = None) -> argparse.Namespace:
    """Parse the command line, and check that its options go together; `options` are those of a run."""
    parser = build_parser()
    args = parser.parse_args(argv)
    kinds = [f"{modality}_{kind}" for modality in SUFFIXES for kind in ("dir", "file", "paths", "embeddings")]
    given = [name for name in (*kinds, "manifest", "captions", "shard") if getattr(args, name) is not None]
    try:
        if args.compare:
            if given := given + ["copy_media"] * args.copy_media:
                parser.error(f"argument --compare: not allowed with argument --{given[0]}")
            if args.table and args.json:
                parser.error("argument --table: not allowed with argument --json")
            if sum(map(len, map(folders_of, args.compare))) + (args.reference is not None) < 2:
                parser.error("argument --compare: two directories or more are needed")
            Options(None, "", output_dir=args.output_dir)  # checks it
            return args
        if alone := [name for name in ("reference", "table") if getattr(args, name) is not None]:
            parser.error(f"argument --{alone[0]}: not allowed without argument --compare")
        if not any(name.startswith(("video", "manifest")) for name in given):
            parser.error("give --video_dir, --video_file, --video_paths, --video_embeddings or --manifest")
        args.options = Options(**run_options(args))
        check_inputs(args.options, [p.source for p in (args.audio_file, args.video_file) if p is not None])
    except OptionError as e:
        parser.error(describe(e, given))
    if args.shard and (args.no_cache or args.json):
        parser.error(
            f"argument --shard: not allowed with argument --{'no_cache' if args.no_cache else 'json'}"
        )
    if args.shard and job is not None:
        parser.error("argument --shard: not allowed under torchrun, which shares the files by itself")
    return args


def describe(error: OptionError, given: Sequence[str] = ()) -> str:
    """Name the argument that an error is of.

    Args:
        given: names of arguments, of which one can be of an option of another name: --video_dir.
    """
    if not error.name:
        return str(error)
    start = error.name.removesuffix("paths") if error.name in ("audio_paths", "video_paths") else None
    argument = next((name for name in given if start and name.startswith(start)), error.name)
    return f"argument --{'protocol' if argument == 'protocols' else argument}: {error.sentence}"


@as_arguments()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit status, see EXAMPLES.
    """
    job = Job.from_torchrun()
    is_first = job is None or job.is_first  # the first process of a job alone prints
    prepare_streams()
    with logging_to_stderr() if is_first else job.silent():
        args = parse_args(argv, job)
    try:
        if not is_first:  # signals end it at once: what it has embedded is in its cache
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            if not args.compare:
                help_embed(args.options, job)
            return 0
        with logging_to_stderr(), stopped_by_signals() as signals:
            try:
                if args.compare:
                    return run_comparison(args)
                return run_shard(args) if args.shard else run_evaluation(args, job)
            except KeyboardInterrupt as e:
                what = "nothing is written" if args.compare else str(e) or "nothing new is embedded yet"
                print(f"interrupted: {one_line(what)}", file=sys.stderr)
                return 128 + signals[0]
    except OptionError as e:
        print_error(describe(e))
        return 2
    except EvaluationError as e:
        if is_first:
            lost = isinstance(e, LostProcessError) and not args.no_cache
            print_error(f"{e}; the same command goes on from what is kept" if lost else str(e))
        elif isinstance(e, JobError):
            job.let_first_report()
        else:
            print_error(f"process {job.rank}: {e}")
        if isinstance(e, NothingLeftError) and not args.json:
            print(summary(e.counts))
        return 1
    except MemoryError as e:
        print_error(str(e) or "out of memory")
        return 1
    except ImportError as e:  # a library that does not fit says so in this way
        if (message := describe_import_error(e)) is None:
            raise
        if not is_first:
            job.let_first_report()
        print_error(message if is_first else f"process {job.rank}: {message}")
        return 1


def run_evaluation(args: argparse.Namespace, job: Job | None) -> int:
    """Evaluate, and print the report."""
    results = evaluate(args.options, job=job)
    metrics = results["metrics"]
    places = [f"results: {one_line(args.output_dir)}"]
    if not args.no_html:
        places.append(f"page: {one_line(os.path.join(args.output_dir, REPORT_PAGE))}")
    report = [format_report(metrics, args.report_lang), *places, summary(metrics["counts"])]
    status = print_results(*([as_json(metrics)] if args.json else report))
    is_incomplete = metrics["counts"]["failed"] or metrics["counts"].get("rows_skipped")
    return 3 if status == 0 and args.strict and is_incomplete else status


def named_protocols(args: argparse.Namespace) -> tuple[str, ...] | None:
    named = [name for name in args.protocols or () if name != "all"]
    further = [name for name in PROTOCOLS if name not in named] if "all" in (args.protocols or ()) else []
    return (*named, *further) or None


def run_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a run by their names in Options."""
    options = {f.name: getattr(args, f.name) for group in GROUPS for f in options_of(group)}
    options |= {"protocols": named_protocols(args), "progress": True}
    if args.manifest is not None and len(args.manifest) == 1:  # several are tars
        (options["manifest"],) = args.manifest
    for modality in SUFFIXES:
        sources = (getattr(args, f"{modality}_{kind}") for kind in ("dir", "file", "paths"))
        options[f"{modality}_paths"] = next((source for source in sources if source is not None), None)
    return options


def run_shard(args: argparse.Namespace) -> int:
    """Embed one shard, and print how many files that were."""
    n = evaluate_shard(args.options, args.shard)
    what = "files and captions" if args.captions else "files"
    line = f"{n['embedded']} {what} embedded, {n['found']} found in the cache, {n['skipped']} skipped"
    return print_results("shard {}/{}: ".format(*args.shard) + line)


def run_comparison(args: argparse.Namespace) -> int:
    """Compare finished runs, and print the comparison."""
    names = ("output_dir", "force", "seed", "report_lang", "no_html", "group_by", "reference", "category_by")
    rows = compare_systems(args.compare, **{name: getattr(args, name) for name in names})
    files = {"results": COMPARISON_NAME} | ({} if args.no_html else {"page": COMPARISON_PAGE})
    lines = [f"{what}: {one_line(os.path.join(args.output_dir, name))}" for what, name in files.items()]
    if args.json or args.table:
        return print_results(as_json(rows) if args.json else format_table(rows, args.table))
    return print_results(format_comparison(rows, args.report_lang), *lines)


def as_json(figures: Any) -> str:
    return json.dumps(figures, ensure_ascii=False, allow_nan=False)


if __name__ == "__main__":
    sys.exit(main())
