"""The path of the data is the layout: what imports what, wherever an import stands, also for types alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "imagebind"
STAGES = ("inputs", "embed", "compare", "write")
LIGHT = ("av", "plotly", "torch", "torchvision")  # takes long to import: not before the work begins


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
