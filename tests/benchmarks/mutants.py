"""Measure what the tests notice: change the program in small ways, and see whether a test fails.

    nice python tests/benchmarks/mutants.py --sample 25  # half an hour on two cores

First come behaviours that could once be lost without a failing test, each undone by hand. Then, for each
module that computes or keeps scores, single operators, constants, conditions and returned values are changed.
A change is killed where one of the tests named for it fails, and survives where all of them pass; where they
take too long it counts as killed, which is true of a machine with nothing else to do. Some survivors mean the
same as the program does, so a score of 1 is no aim: each one is to be looked at.

Only a copy of the program is changed. The usual tools start Python anew for each change, and importing torch
takes as long as most of these tests; here a process that has it imported is forked instead.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.util
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("imagebind", "tests", "batch_inference.py", "pyproject.toml")
PRELOADED = ["pytest", "torch", "torchaudio", "torchvision", "pytorchvideo.data", "av", "scipy.stats"]
FORKSERVER = multiprocessing.get_context("forkserver")
ENDS = ("killed", "too long", "survived")
FAILED = {1, 2}  # what pytest returns where a test fails, or cannot even be imported

MANIFEST, JOB = "tests/test_manifest.py::test_", "tests/test_job.py::test_"
PAIRS_ALONE = (
    f"{MANIFEST}pairs_alone_have_the_figures_of_the_matrix",
    f"{MANIFEST}of_equal_similarities_pairs_alone_win_half",
    f"{MANIFEST}of_more_pairs_than_a_tile_has_rows_the_shares_are_those_of_the_matrix",
)
MODULES = {  # name -> file, and the tests that have to notice a change of it
    "metrics": (
        "imagebind/evaluation/compare/metrics.py",
        ("imagebind/evaluation/compare/metrics.py", "tests/test_metrics.py", *PAIRS_ALONE),
    ),
    "pairing": ("imagebind/evaluation/inputs/pairing.py", ("tests/test_pairing.py",)),
    "similarity": (
        "imagebind/evaluation/compare/similarity.py",
        ("tests/test_similarity.py", "tests/test_metrics.py", *PAIRS_ALONE),
    ),
    "scan": ("imagebind/evaluation/compare/scan.py", ("tests/test_similarity.py", "tests/test_metrics.py")),
    "comparison": (
        "imagebind/evaluation/compare/comparison.py",
        ("tests/test_metrics.py", *PAIRS_ALONE),
    ),
    "cache": (
        "imagebind/reading/cache.py",
        ("tests/test_cache.py", f"{JOB}what_several_have_embedded_is_found_by_any_number"),
    ),
}


@dataclass(frozen=True)
class Mutant:
    """A change of one file."""

    file: str  # relative to the root
    before: str
    after: str
    start: int  # in bytes, where `before` stands
    line: int
    tests: tuple[str, ...]
    shown: str  # what is changed

    def apply_to(self, source: bytes) -> bytes:
        before = self.before.encode()
        assert source[self.start :].startswith(before)
        return source[: self.start] + self.after.encode() + source[self.start + len(before) :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.shown}"


# Behaviours that are undone by hand


@dataclass(frozen=True)
class Behaviour:
    """Something that the program has to do, and how to undo it."""

    name: str
    file: str
    before: str  # occurs once in the file
    after: str
    test: str


BEHAVIOURS = (
    Behaviour(
        "a clip of an embedding counts as often as it occurs",
        "imagebind/models/embedder.py",
        "torch.tensor([*file.counts.values()]).float()",
        "torch.ones(len(file.counts))",
        "tests/test_embedder.py::test_a_clip_counts_as_often_as_it_occurs",
    ),
    Behaviour(
        "embeddings of another recipe are not found",
        "imagebind/reading/cache.py",
        "self.computed_by = (checkpoint, precision, RECIPE)",
        "self.computed_by = (checkpoint, precision, 0)",
        "tests/test_cache.py::test_rows_of_another_recipe_are_not_found_and_stay",
    ),
    Behaviour(
        "suspects are found by the step-up of Benjamini and Hochberg",
        "imagebind/evaluation/compare/suspects.py",
        "np.flatnonzero(passes)[-1] + 1 if passes.any() else 0",
        "passes.argmin() if not passes.all() else len(passes)",
        "tests/test_metrics.py::test_suspects_are_those_of_the_step_up",
    ),
    Behaviour(
        "a p-value's threshold grows with its rank",
        "imagebind/evaluation/compare/suspects.py",
        "passes = p_values[order] <= rate * np.arange(1, len(order) + 1) / len(order)",
        "passes = p_values[order] <= rate",
        "tests/test_metrics.py::test_suspects_are_those_of_the_step_up",
    ),
    Behaviour(
        "too few mismatches tell no suspects",
        "imagebind/evaluation/compare/suspects.py",
        "return 1 / (1 + n_mismatches) <= FALSE_DISCOVERY_RATE / n_pairs",
        "return True",
        "tests/test_metrics.py::test_a_single_pair_is_told_from_19_mismatches_and_not_from_17",
    ),
    Behaviour(
        "the fewest mismatches that can tell do tell",
        "imagebind/evaluation/compare/suspects.py",
        "return 1 / (1 + n_mismatches) <= FALSE_DISCOVERY_RATE / n_pairs",
        "return 1 / (1 + n_mismatches) < FALSE_DISCOVERY_RATE / n_pairs",
        "tests/test_metrics.py::test_a_single_pair_is_told_from_19_mismatches_and_not_from_17",
    ),
    Behaviour(
        "checkpoints of one name and other content are not compared",
        "imagebind/evaluation/systems/runs.py",
        'for key in ("sha256", "note")}',
        'for key in ("note",)}',
        "tests/test_systems.py::test_checkpoints_of_one_name_and_other_content_are_refused",
    ),
    Behaviour(
        "systems match by their sounds alone",
        "imagebind/evaluation/systems/matching.py",
        '= [("audio_key", "video_key"), ("video_key",), ("audio_key",)]',
        '= [("audio_key", "video_key"), ("video_key",)]',
        "tests/test_systems.py::test_systems_that_name_their_videos_in_their_own_ways_match_by_the_sounds",
    ),
    Behaviour(
        "metrics.json is gone before another output is replaced",
        "imagebind/evaluation/write/atomic.py",
        "            Path(output_dir, marker).unlink(missing_ok=True)\n",
        "            pass\n",
        "tests/test_outputs.py::test_no_figures_of_an_earlier_run_lie_beside_the_files_of_a_later_one",
    ),
    Behaviour(
        "more than 1,024 rows are counted among references",
        "imagebind/evaluation/compare/similarity.py",
        "line = np.searchsorted(used[block], own[cells])",
        "line = np.searchsorted(used, own[cells])",
        "tests/test_manifest.py::test_of_more_pairs_than_a_tile_has_rows_the_shares_are_those_of_the_matrix",
    ),
    Behaviour(
        "more than 1,024 single cells are looked up",
        "imagebind/evaluation/compare/similarity.py",
        "for block in blocks(len(cells), ROWS):",
        "for block in [slice(ROWS)]:",
        "tests/test_similarity.py::test_single_cells_are_those_of_the_matrix",
    ),
    Behaviour(
        "the second group of row blocks begins where the first ends",
        "imagebind/evaluation/compare/scan.py",
        "start = group.start + block.start",
        "start = block.start",
        "tests/test_similarity.py::test_tiles_and_threads_change_no_count",
    ),
    Behaviour(
        "a long table of pairs holds suspects and the least similar",
        "imagebind/evaluation/write/report_page.py",
        "shown, rows, details = scores.suspects_first(MAX_PAIRS), [], []",
        "shown, rows, details = list(range(len(scores)))[:MAX_PAIRS], [], []",
        "tests/test_page.py::test_more_than_a_tile_of_rows_and_a_table_of_pairs",
    ),
    Behaviour(
        "a large matrix is drawn as a sample",
        "imagebind/evaluation/write/page_media.py",
        "pairs, chosen = [pair_rows[i] for i in sorted(numbers)], []",
        "pairs, chosen = pair_rows, []",
        "tests/test_page.py::test_more_than_a_tile_of_rows_and_a_table_of_pairs",
    ),
    Behaviour(
        "a batch that is not full is kept",
        "imagebind/evaluation/embed/keeper.py",
        "        self.cache.keep(feature, finite.items(), pictures, flags)",
        "        if len(files) > 1:\n            self.cache.keep(feature, finite.items(), pictures, flags)",
        "tests/test_cache.py::test_batches_that_are_not_full_are_kept",
    ),
    Behaviour(
        "a file of which too much is damaged is refused",
        "imagebind/data/media.py",
        "if n_damaged > MAX_DAMAGED_SHARE * total or n_at_end == total:",
        "if n_at_end == total:",
        "tests/test_media.py::test_a_file_gives_a_row_or_a_reason",
    ),
    Behaviour(
        "clips that differ by rounding are one",
        "imagebind/data/audio.py",
        "SAME_CLIP = 2e-6",
        "SAME_CLIP = 0",
        "tests/test_audio.py::test_equal_clips_of_a_sound_are_kept_once",
    ),
    Behaviour(
        "clips that differ by more than rounding are several",
        "imagebind/data/audio.py",
        "SAME_CLIP = 2e-6",
        "SAME_CLIP = 2e-4",
        "tests/test_audio.py::test_clips_that_differ_by_more_than_rounding_are_several",
    ),
    Behaviour(
        "a batch that does not fit is halved",
        "imagebind/models/embedder.py",
        "self.max_that_fit[kind] = len(part) // 2",
        "self.max_that_fit[kind] = 1",
        "tests/test_embedder.py::test_a_batch_is_halved_until_it_fits_and_later_ones_begin_so",
    ),
    Behaviour(
        "later batches begin with the number that fitted",
        "imagebind/models/embedder.py",
        "        self.tower(modality)\n        embeddings, done",
        "        self.tower(modality)\n        self.max_that_fit = {}\n        embeddings, done",
        "tests/test_embedder.py::test_a_batch_is_halved_until_it_fits_and_later_ones_begin_so",
    ),
    Behaviour(
        "copies of a pair are one group",
        "imagebind/evaluation/inputs/groups.py",
        "if not without or len(pairs) == 1:",
        "if True:",
        "tests/test_content.py::test_copies_are_counted_named_and_a_group",
    ),
    Behaviour(
        "what shows the same is no mismatch",
        "imagebind/evaluation/compare/positives.py",
        "index.update(itertools.product(rows, columns))",
        "pass",
        "tests/test_content.py::test_what_shows_the_same_is_no_mismatch_by_plain_loops",
    ),
    Behaviour(
        "the best caption of a file counts",
        "imagebind/evaluation/compare/candidates.py",
        "order = np.lexsort((captions.n_better, files))",
        "order = np.lexsort((-captions.n_better, files))",
        "tests/test_content.py::test_files_with_several_captions_are_found_by_any_of_them",
    ),
    Behaviour(
        "the captions of a file are one group",
        "imagebind/evaluation/compare/texts.py",
        "[comparison.contents[modality][file] for file in files]",
        "list(range(len(files)))",
        "tests/test_content.py::test_files_with_several_captions_are_found_by_any_of_them",
    ),
    Behaviour(
        "the share of mismatches above a threshold is counted by tick",
        "imagebind/evaluation/compare/ticks.py",
        "math.ceil(float(np.float32(threshold)) * 2**TICK_BITS)",
        "TICKS_PER_BIN * round(threshold * 2**TICK_BITS / TICKS_PER_BIN)",
        "tests/test_content.py::test_the_share_of_mismatches_above_a_threshold_is_that_of_all",
    ),
    Behaviour(
        "positives are no mismatches above a threshold",
        "imagebind/evaluation/compare/comparison.py",
        "sum(counted.count_from(tick)) - sum(of_positives.count_from(tick))",
        "sum(counted.count_from(tick))",
        "tests/test_content.py::test_the_share_of_mismatches_above_a_threshold_is_that_of_all",
    ),
    Behaviour(
        "a big group is left out whole",
        "imagebind/evaluation/compare/intervals.py",
        "* weights / (1 - weights)",
        "* weights",
        "tests/test_intervals.py::test_unequal_groups_are_left_out_one_by_one",
    ),
    Behaviour(
        "mismatches of two pairs count for both in the interval of the AUC",
        "imagebind/evaluation/compare/auc.py",
        'np.add.at(beyond, units["lines"][axis][lines], of_lines)',
        "pass",
        "tests/test_intervals.py::test_the_interval_of_the_auc_is_that_of_resampled_pairs",
    ),
    Behaviour(
        "a category has the interval of its groups",
        "imagebind/evaluation/compare/categories.py",
        "None if groups is None else join_copies",
        "None if groups is not None else join_copies",
        "tests/test_content.py::test_a_category_has_the_interval_of_its_groups",
    ),
)


def undo(behaviour: Behaviour) -> Mutant:
    """Find the text of a behaviour in its file.

    Raises:
        ValueError: it is not there, or more than once: the row would say nothing.
    """
    source = Path(ROOT, behaviour.file).read_text()
    if source.count(behaviour.before) != 1 or behaviour.before == behaviour.after:
        raise ValueError(f"{behaviour.name}: not once in {behaviour.file}: {behaviour.before}")
    before = source[: source.index(behaviour.before)]
    place = len(before.encode()), before.count("\n") + 1
    texts = behaviour.file, behaviour.before, behaviour.after
    return Mutant(*texts, *place, (behaviour.test,), behaviour.name)


# Changes that are found in the syntax tree

SWAPPED = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq},
    **{ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And},
}
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any", "ceil": "floor"}
RENAMED |= {"minimum": "maximum", "maximum": "minimum"}
OTHER_SIDE = {"left": "right", "right": "left"}  # of np.searchsorted
UNTOUCHED = {"annotation", "returns", "decorator_list"}  # fields of the tree that compute nothing


def changed(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield the changes of one node, each as the node to replace and what replaces it."""

    def with_fields(**fields: object) -> ast.AST:
        other = copy.copy(node)
        vars(other).update(fields)
        return other

    def swapped(operator: ast.AST) -> list[ast.AST]:
        return [SWAPPED[type(operator)]()] if type(operator) in SWAPPED else []

    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            for other in swapped(operator):
                yield node, with_fields(ops=[*node.ops[:i], other, *node.ops[i + 1 :]])
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        for other in swapped(node.op):
            yield node, with_fields(op=other)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield node, node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield node, ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and node.value in OTHER_SIDE:
        yield node, ast.Constant(OTHER_SIDE[node.value])
    elif isinstance(node, ast.Name) and node.id in RENAMED:
        yield node, ast.Name(RENAMED[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in RENAMED:
        yield node, with_fields(attr=RENAMED[node.attr])
    elif isinstance(node, ast.Return) and node.value and not is_none(node.value):
        yield node.value, ast.Constant(None)
    tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else getattr(node, "ifs", [])
    for test in tests:
        if isinstance(test, ast.Name | ast.Attribute | ast.Call) and ast.unparse(test) != "TYPE_CHECKING":
            yield test, ast.UnaryOp(ast.Not(), test)


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def computing_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk over a tree, but for annotations, logging, and f-strings, whose places Python 3.11 gets wrong."""
    yield node
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            is_log = isinstance(child, ast.Call) and ast.unparse(child.func).startswith("log.")
            is_computing = isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr)
            if is_computing and field not in UNTOUCHED and not is_log:
                yield from computing_nodes(child)


def find_mutants(file: str, tests: tuple[str, ...]) -> list[Mutant]:
    """List the changes of a file, in its order."""
    source = Path(ROOT, file).read_bytes()
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    mutants = {}
    for node in computing_nodes(ast.parse(source)):
        for old, new in changed(node):
            start, end = (
                begins[line - 1] + column
                for line, column in ((old.lineno, old.col_offset), (old.end_lineno, old.end_col_offset))
            )
            text = ast.unparse(ast.fix_missing_locations(new))
            after = text if isinstance(new, ast.stmt) else f"({text})"  # an operator may bind less tightly
            head, tail = source[begins[old.lineno - 1] : start], source[end : begins[old.end_lineno]]
            lines = (
                " ".join((head + x + tail).decode().split()) for x in (source[start:end], after.encode())
            )
            mutant = Mutant(
                file, source[start:end].decode(), after, start, old.lineno, tests, " -> ".join(lines)
            )
            if compiles(mutant.apply_to(source)):
                mutants[start, mutant.before, after] = mutant
    return [mutants[key] for key in sorted(mutants)]


def compiles(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:  # no place for parentheses
        return False
    return True


# Running tests


def copy_program(folder: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        if Path(ROOT, name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)


def run_pytest(folder: Path, tests: Sequence[str]) -> None:
    """Run tests of the copy, in a process of its own, and end with pytest's status."""
    os.setsid()  # so that all that it starts can be ended
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    sys.dont_write_bytecode = True  # of one second and one size it would be taken for that of the next mutant
    sys.path.insert(0, str(folder))
    assert Path(importlib.util.find_spec("imagebind.names").origin).is_relative_to(folder)
    import pytest

    options = ("-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "tmp"))
    status = pytest.main([*options, *tests])
    sys.stdout.flush()
    os._exit(status)  # threads that a mutant left must not keep it


def run_tests(folder: Path, tests: Sequence[str], limit: float) -> int | None:
    """Run tests of the copy; give pytest's status, or None where they take too long."""
    process = FORKSERVER.Process(target=run_pytest, args=(folder, tests))
    process.start()
    process.join(limit)
    status = process.exitcode
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return status


def check_whole(folder: Path, mutants: Iterable[Mutant], limit: float) -> None:
    """End unless the tests pass without a change: what fails anyway kills nothing."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    if run_tests(folder, tests, 10 * limit) != 0:
        sys.exit(f"without a change tests fail:\n{(folder / 'log.txt').read_text()[-3000:]}")


def end_of(folder: Path, mutant: Mutant, limit: float) -> str:
    """Tell what the tests make of a change: it is "killed", or takes "too long", or has "survived"."""
    path = folder / mutant.file
    whole = path.read_bytes()
    path.write_bytes(mutant.apply_to(whole))
    try:
        status = run_tests(folder, mutant.tests, limit)
    finally:
        path.write_bytes(whole)
    if status is None:
        return "too long"
    if status > 0 and status not in FAILED:
        sys.exit(f"{mutant}: pytest ends with {status}:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return "killed" if status else "survived"


def measure(folder: Path, title: str, mutants: Sequence[Mutant], limit: float) -> list[Mutant]:
    """Print the row of some mutants, and give those that survive."""
    ends = []
    for mutant in mutants:
        ends.append(end_of(folder, mutant, limit))
        if sys.stderr.isatty():
            print(f"{title}: {len(ends)} of {len(mutants)}", end="\r", file=sys.stderr)
    counts = [len(mutants), *(ends.count(end) for end in ENDS)]
    score = 1 - ends.count("survived") / max(len(ends), 1)
    print(f"| {title} | {' | '.join(map(str, counts))} | {score:.2f} |", flush=True)
    return [mutant for mutant, end in zip(mutants, ends, strict=True) if end == "survived"]


def sampled(mutants: Sequence[Mutant], n: int | None, seed: int) -> list[Mutant]:
    """Choose n mutants at random, in their order."""
    if n is None or n >= len(mutants):
        return list(mutants)
    return [mutants[i] for i in sorted(random.Random(seed).sample(range(len(mutants)), n))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what the tests notice.")
    parser.add_argument("--only", choices=("behaviours", "modules"), help="one section alone")
    parser.add_argument("--module", choices=MODULES, nargs="+", default=list(MODULES))
    parser.add_argument("--sample", type=int, help="so many of each row, at random; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--limit", type=float, default=180, help="seconds for the tests of one mutant")
    args = parser.parse_args(argv)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    FORKSERVER.set_forkserver_preload(PRELOADED)
    rows = {}
    if args.only != "modules":
        rows["behaviours"] = [undo(behaviour) for behaviour in BEHAVIOURS]
    if args.only != "behaviours":
        rows |= {name: find_mutants(*MODULES[name]) for name in args.module}
    rows = {title: sampled(mutants, args.sample, args.seed) for title, mutants in rows.items()}
    survivors = []
    print(f"| module | mutants | {' | '.join(ENDS)} | score |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        copy_program(Path(folder))
        check_whole(Path(folder), itertools.chain(*rows.values()), args.limit)
        for title, mutants in rows.items():
            survivors += measure(Path(folder), title, mutants, args.limit)
    for mutant in survivors:
        print(f"survived: {mutant}")


if __name__ == "__main__":
    main()
