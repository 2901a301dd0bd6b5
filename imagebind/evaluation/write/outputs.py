"""Results -> files: which outputs a run has, and what writes each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

from imagebind import packages
from imagebind.evaluation.compare.arrays import OutputArrays
from imagebind.evaluation.errors import OptionError
from imagebind.evaluation.options import Options, given_embeddings
from imagebind.evaluation.rules import MANIFEST_SUFFIXES, PARQUET, suffix_of
from imagebind.evaluation.write.atomic import METRICS_NAME, Results, Writer, write_files
from imagebind.evaluation.write.formats import npy_writer, text_writer, to_json
from imagebind.evaluation.write.page_media import PageMedia, check_copies
from imagebind.evaluation.write.report import format_report
from imagebind.evaluation.write.result_tables import (
    kept_writer,
    write_pair_scores,
    write_parquet,
    write_top_matches,
    write_window_scores,
)
from imagebind.names import field
from imagebind.spelling import option as spelled

REPORT_PAGE = "report.html"
NEEDED = {  # by an output that not every run has: of the results
    "similarity_matrix.npy": "similarity_matrix",
    "text_embeddings.npy": "text_embeddings",
    "text_names.txt": "text_names",
    "window_scores.csv": "windows",
    "top_matches.csv": "top_matches",
}
KEPT_NAMES = [f"kept{suffix}" for suffix in (".txt", *MANIFEST_SUFFIXES)]
PARQUET_NAME = "pair_scores.parquet"


def write_outputs(results: Results, arrays: OutputArrays, options: Options, media: PageMedia) -> None:
    """Write the outputs of a run; the arrays of the results are then mapped from those files.

    An output that this run does not have is removed, if an earlier run wrote it.

    Raises:
        EvaluationError: one cannot be written; the outputs of an earlier run stay as they were.
    """
    outputs = output_writers(options, media)
    absent = [name for name, key in NEEDED.items() if results.get(key) is None]
    # Arrays that lie in the temporary files of outputs already are not written once more.
    write_files({**outputs, **dict.fromkeys(absent)}, results, options.output_dir, arrays.names)
    results |= arrays.private_copies()


def write_page_again(results: Results, options: Options, media: PageMedia) -> None:
    """Write the page with the copies of media that are there now.

    Raises:
        EvaluationError: it cannot be written; the one without them stays.
    """
    write_files({REPORT_PAGE: output_writers(options, media)[REPORT_PAGE]}, results, options.output_dir)


def check_can_draw() -> None:
    """Raise a PackageError where the charts of a page cannot be drawn."""
    for module in ("plotly.graph_objects", "plotly.offline"):
        packages.load(module, f", or leave the page out with {spelled('no_html', True)}")


def check_inputs(options: Options, lists: Sequence[str] = ()) -> None:
    """Raise an OptionError for an input that the run would write over, or remove.

    Args:
        lists: files that paths were read from.
    """
    if options.copies_media:
        check_copies(options.output_dir)
    given = [os.path.join(path, f"{m}_embeddings.npy") for m, path in given_embeddings(options).items()]
    for source in (options.manifest, options.captions, *lists, *given):
        if isinstance(source, str | os.PathLike) and is_output(source, options):
            raise OptionError(f"{os.fspath(source)} is an input, and would be overwritten", "output_dir")


def is_output(path: str | os.PathLike, options: Options) -> bool:
    """Tell whether a run would write or remove this file."""
    if options.output_dir is None:
        return False
    folder, name = os.path.split(os.path.abspath(path))
    is_there = os.path.realpath(folder) == os.path.realpath(options.output_dir)
    return is_there and name in output_writers(options)


def output_writers(options: Options, media: PageMedia | None = None) -> dict[str, Writer | None]:
    """List the outputs of a run, each with what writes it; None for one that is left out.

    Args:
        media: of the page; None where no output is to be written.
    """

    def write_page(results: Results, file: BinaryIO) -> None:
        from imagebind.evaluation.write import report_page  # imports torch and plotly

        report_page.write_report_page(file, results, options.report_lang, media)

    def report_lines(results: Results) -> list[str]:
        return format_report(results["metrics"], options.report_lang).splitlines()

    is_parquet = options.manifest is not None and suffix_of(options.manifest) == PARQUET
    return {
        "audio_embeddings.npy": npy_writer("audio_embeddings"),
        "video_embeddings.npy": npy_writer("video_embeddings"),
        "text_embeddings.npy": npy_writer("text_embeddings"),
        "similarity_matrix.npy": npy_writer("similarity_matrix"),
        "audio_names.txt": text_writer(lambda results: map(field, results["audio_names"])),
        "video_names.txt": text_writer(lambda results: map(field, results["video_names"])),
        "text_names.txt": text_writer(lambda results: map(field, results["text_names"])),
        "pairs.txt": text_writer(lambda results: ("\t".join(map(field, pair)) for pair in results["pairs"])),
        "pair_scores.csv": write_pair_scores,
        PARQUET_NAME: write_parquet if is_parquet else None,
        **{name: kept_writer(options) if name == options.kept_name else None for name in KEPT_NAMES},
        "window_scores.csv": write_window_scores,
        "top_matches.csv": write_top_matches,
        "consistency_report.txt": text_writer(report_lines),
        REPORT_PAGE: None if options.no_html else write_page,
        METRICS_NAME: text_writer(lambda results: [to_json(results["metrics"])]),
    }
