#!/usr/bin/env python3
"""Try the project in other environments than that of requirements.txt, and print a table of what came of it.

    python tests/environments.py                        all of them: a quarter of an hour, 10 GB of disk
    python tests/environments.py --tests lowest newest  these two, with the tests that hold recorded numbers

The Python that runs this is the one to compare with: its demo is run first. Each environment is made by uv
(`pip install uv`), from nothing, in a temporary directory. It fails where the demo does, where a test does,
or where an embedding of the demo is further from those of this Python than TOLERANCE. That of `cpu` needs a
torch for the CPU, which is not on PyPI: a directory or page that has it is named by PIP_FIND_LINKS.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ".[captions,scores,parquet,hub,reference]"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TOLERANCE = 1e-6  # of an embedding's entries, which are below 20
SHOWN = ("torch", "torchvision", "torchaudio", "numpy", "av", "plotly", "filelock", "timm")
TESTS = ["model", "audio", "video", "data", "protocols", "more_protocols"]
DEMO = [
    *("--audio_dir", ROOT / "tests/demo/audio", "--video_dir", ROOT / "tests/demo/video"),
    *("--checkpoint", ROOT / "tests/demo/imagebind_demo.pth", "--device", "cpu", "--no_cache"),
]


class FailedError(Exception):
    """An environment that cannot be made, or in which something fails; the message says what."""


def run(*command: str | os.PathLike, **options) -> str:
    """Run a command and return what it prints.

    Raises:
        FailedError: it fails; its output is on stderr.
    """
    done = subprocess.run(
        [*map(os.fspath, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        last = (done.stdout.strip().splitlines() or ["nothing was printed"])[-1]
        raise FailedError(f"{Path(command[0]).name} fails with status {done.returncode}: {last[:200]}")
    return done.stdout


def find_pythons() -> dict[str, str]:
    """Find an interpreter of each release in PYTHONS, on PATH or in pyenv, and name what is missing."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found = {}
    for release in PYTHONS:
        on_path = [shutil.which(f"python{release}")]
        for python in [*filter(None, on_path), *sorted(pyenv.glob(f"{release}.*/bin/python"))]:
            tells = "import sys; print('%d.%d' % sys.version_info[:2])"
            told = subprocess.run([python, "-c", tells], capture_output=True, text=True)
            if told.stdout.strip() == release:
                found[release] = os.fspath(python)
                break
        else:
            print(f"Python {release} is not on this machine", file=sys.stderr)
    return found


@dataclass
class Environment:
    """A virtual environment below a directory, and a copy of the project beside it."""

    directory: Path
    interpreter: str

    @property
    def python(self) -> Path:
        return self.directory / "venv/bin/python"

    def make(self) -> None:
        run("uv", "venv", "--quiet", "--seed", "--python", self.interpreter, self.directory / "venv")

    def install(self, *packages: str | os.PathLike) -> None:
        """Install packages as uv chooses them, without its configuration and in the project's directory."""
        links = os.environ.get("PIP_FIND_LINKS")  # where a torch for the CPU may be
        command = [
            "uv",
            "pip",
            "install",
            "--quiet",
            "--no-config",
            "--compile-bytecode",
            "--python",
            self.python,
        ]
        run(*command, *(["--find-links", links] if links else []), *packages, cwd=self.directory / "project")


def lowest(environment: Environment) -> None:
    environment.install("--resolution", "lowest-direct", EXTRAS)


def newest(environment: Environment) -> None:
    environment.install("--upgrade", EXTRAS)


def newest_torchaudio(environment: Environment) -> None:
    environment.install("torch==2.11.0", "torchaudio", EXTRAS)


def torch_for_the_cpu(environment: Environment) -> None:
    environment.install("torch==2.13.0+cpu", "torchvision", "torchaudio", EXTRAS)


def in_place(environment: Environment) -> None:
    """Install the package where other versions are at work, which are to stay."""
    given = ["torch==2.5.1", "torchvision==0.20.1", "numpy==1.26.4"]
    environment.install(*given)
    run(environment.python, "-m", "pip", "install", "--quiet", ".", cwd=environment.directory / "project")
    frozen = run("uv", "pip", "freeze", "--quiet", "--python", environment.python).splitlines()
    if not set(given) <= set(frozen):
        raise FailedError(f"pip install . changes one of {', '.join(given)}")


OLDEST, NEWEST, THIS = "oldest", "newest", "this"  # of the Pythons at hand
# name -> what it is, on which Python, and what makes it
ENVIRONMENTS: dict[str, tuple[str, str, Callable[[Environment], None]]] = {
    "lowest": ("the lowest versions of `pyproject.toml`", OLDEST, lowest),
    "newest": ("the newest of everything", NEWEST, newest),
    "torchaudio": ("torch 2.11.0 beside the newest torchaudio", THIS, newest_torchaudio),
    "cpu": ("torch 2.13.0+cpu beside torchvision and torchaudio for CUDA", THIS, torch_for_the_cpu),
    "in_place": ("torch 2.5.1, torchvision 0.20.1, numpy 1.26.4, then `pip install .`", THIS, in_place),
}


def run_demo(python: str | os.PathLike, project: Path, outputs: Path) -> dict[str, np.ndarray]:
    """Run the demo and return its embeddings."""
    said = run(python, project / "batch_inference.py", *DEMO, "--output_dir", outputs, cwd=outputs.parent)
    if "evaluated 24 pairs, skipped 0 files" not in said:
        raise FailedError("the demo does not evaluate 24 pairs")
    return {side: np.load(outputs / f"{side}_embeddings.npy") for side in ("audio", "video")}


def describe_versions(python: str | os.PathLike) -> str:
    """List the versions of SHOWN, and of Python."""
    script = "import sys, importlib.metadata as m\nprint('Python %d.%d' % sys.version_info[:2])\n"
    script += "there = {d.name: d.version for d in m.distributions()}\n"
    script += f"print(*(n + ' ' + there[n] for n in {SHOWN} if n in there), sep='\\n')"
    return ", ".join(run(python, "-c", script).splitlines())


def try_environment(
    make: Callable[[Environment], None],
    environment: Environment,
    expected: dict[str, np.ndarray],
    tests: bool,
) -> tuple[str, str]:
    """Make an environment, run the demo there and, if asked for, tests.

    Returns:
        the versions there, and how far its embeddings are from the expected ones.
    """
    project, outputs = environment.directory / "project", environment.directory / "outputs"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(".*", "outputs", "__pycache__", "build"))
    environment.make()
    make(environment)
    found = run_demo(environment.python, project, outputs)
    difference = max(float(np.abs(found[side] - expected[side]).max()) for side in expected)
    if difference > TOLERANCE:
        raise FailedError(f"embeddings differ by {difference:.1g}")
    if tests:
        environment.install("--group", "test")
        files = [f"tests/test_{name}.py" for name in TESTS]
        said = run(
            environment.python, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", *files, cwd=project
        )
        print(said.strip().splitlines()[-1], file=sys.stderr)
    return describe_versions(environment.python), f"within {difference:.1g}" if difference else "bit-equal"


def main(argv: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; default: all"
    )
    parser.add_argument("--tests", action="store_true", help="run the tests that hold recorded numbers, too")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(ENVIRONMENTS):
        parser.error(f"there is no environment {', '.join(sorted(unknown))}")
    pythons = [*find_pythons().values()]
    of_age = {
        OLDEST: [*pythons, sys.executable][0],
        NEWEST: [sys.executable, *pythons][-1],
        THIS: sys.executable,
    }
    if len(pythons) < 2 and os.environ.get("CI"):
        parser.error(f"a second Python is needed, of {', '.join(PYTHONS)}")
    if shutil.which("uv") is None:
        parser.error("uv is not on PATH: pip install uv")
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as work:
        expected = run_demo(sys.executable, ROOT, Path(work, "outputs"))
        rows.append(("`requirements.txt`", describe_versions(sys.executable), "works", "bit-equal"))
        for name in args.names or ENVIRONMENTS:
            what, which, make = ENVIRONMENTS[name]
            os.environ["UV_CACHE_DIR"] = os.path.join(work, name, "cache")  # gone with the environment
            environment = Environment(Path(work, name), of_age[which])
            try:
                versions, difference = try_environment(make, environment, expected, args.tests)
                rows.append((what, versions, "works", difference))
            except FailedError as e:
                failed = True
                rows.append((what, "", f"fails: {e}", ""))
            shutil.rmtree(environment.directory, ignore_errors=True)
            print(f"{name}: {rows[-1][2]}", file=sys.stderr)
    print("| environment | versions | demo | embeddings |", "| --- | --- | --- | --- |", sep="\n")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
