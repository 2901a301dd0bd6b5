"""The path of the data is the layout: what imports what, wherever an import stands, also for types alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "imagebind"
STAGES = ("inputs", "embed", "compare", "write")
SLOW = ("av", "PIL", "plotly", "torch", "torchvision")  # to import: not before the work begins
PLACES = [ROOT / PACKAGE / "evaluation", ROOT]  # that paths of the documentation begin in


def modules() -> dict[str, Path]:
    """Name -> file."""
    paths = [ROOT / "batch_inference.py", *sorted((ROOT / PACKAGE).rglob("*.py"))]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports anywhere in it, by whole names: a module, or a name in one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    known = modules()
    found = {}
    for name, path in known.items():
        targets = (target if target in known else target.rpartition(".")[0] for target in imports(path))
        found[name] = {target for target in targets if target in known and target != name}
    return found


def test_no_two_modules_need_each_other():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as e:
        raise AssertionError(" -> ".join(e.args[1])) from None


def test_each_stage_knows_those_before_it_alone():
    def stage(module: str) -> int | None:
        _, _, rest = module.partition("imagebind.evaluation.")
        return STAGES.index(rest.split(".")[0]) if rest.split(".")[0] in STAGES else None

    against = [
        f"{module} -> {target}"
        for module, targets in graph().items()
        for target in sorted(targets)
        if None not in (stage(module), stage(target)) and stage(target) > stage(module)
    ]
    assert against == []


def test_what_is_below_evaluation_knows_nothing_of_it():
    layers = ("imagebind.data", "imagebind.models", "imagebind.reading")
    against = [
        f"{module} -> {target}"
        for module, targets in graph().items()
        for target in sorted(targets)
        if module.startswith(layers) and target.startswith("imagebind.evaluation")
    ]
    assert against == []


@pytest.mark.parametrize("argv", [["--help"], ["--video_dir", "nowhere"], ["--video_dir", "."]])
def test_usage_and_listing_import_nothing_slow(argv, tmp_path):
    """A directory without videos ends a run before anything is read."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from batch_inference import main
try:
    main({argv})
except SystemExit:
    pass
print(*sorted(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.splitlines()[-1].split())
    assert "imagebind.evaluation.options" in imported
    assert imported.isdisjoint(SLOW)


def documented(page: str) -> list[tuple[Path, str]]:
    """List what tables of a page name as `file.py` with `name` before or behind it, in any column."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"`([\w/]+\.py)`: `([\w.]+)`", text)
    found += [(path, name) for name, path in re.findall(r"`([\w.]+)`,? (?:in|of) `([\w/]+\.py)`", text)]
    paths = {path: next((at for place in PLACES if (at := place / path).exists()), None) for path, _ in found}
    assert None not in paths.values(), f"{page}: {[path for path in paths if paths[path] is None]}"
    return [(paths[path], name) for path, name in found]


@pytest.mark.parametrize(
    ("page", "least"), [("docs/number.md", 21), ("docs/zh/number.md", 21), ("docs/development.md", 12)]
)
def test_what_pages_say_of_the_code_is_there(page, least):
    found = documented(page)
    assert len(found) >= least
    for path, name in found:
        for part in name.split("."):
            assert re.search(rf"\b(def|class) {part}\b|^{part}\b", path.read_text(encoding="utf-8"), re.M), (
                name
            )


def test_the_picture_of_the_path_has_every_module_of_a_stage():
    (picture,) = re.findall(
        r"## How data flows.*?```\n(.*?)```", (ROOT / "docs/development.md").read_text(), re.S
    )
    stage, named = None, set()
    for line in picture.splitlines():
        stage = match[1] if (match := re.search(r"\|   (\w+)/ ", line)) else stage
        named |= {(stage, name) for name in re.findall(r"\b(\w+)\.py\b", line) if stage}
    there = {
        (path.parent.name, path.stem)
        for stage in (*STAGES, "systems")
        for path in (ROOT / PACKAGE / "evaluation" / stage).glob("[!_]*.py")
    }
    assert named == there
