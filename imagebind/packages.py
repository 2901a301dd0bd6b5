"""Packages that only some runs need, and that may not fit together: one line where one does not load."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib import metadata
from types import ModuleType

PIP_NAMES = {"PIL": "pillow", "open_clip": "open_clip_torch"}  # of modules that have another name
# Packages that are built for one release of torch, and versions that fit: those of requirements.txt
FITTING = {"torch": "2.11.0", "torchvision": "0.26.0", "open_clip_torch": "3.3.0"}


class PackageError(ImportError):
    """A package that is missing or does not load; the message is one line that says what to do."""


def load(module: str, otherwise: str = "") -> ModuleType:
    """Import a module of another project.

    Args:
        otherwise: what to do without it, for the message.

    Raises:
        PackageError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as e:  # a package that does not fit fails in any way
        name = module.partition(".")[0]
        package = PIP_NAMES.get(name, name)
        if isinstance(e, ModuleNotFoundError) and e.name == name:
            raise PackageError(f"{package} is missing: pip install {package}{otherwise}") from e
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise PackageError(f"{describe_misfit(package)} ({reason}): {cure(package)}{otherwise}") from e


def describe_misfit(package: str) -> str:
    """Say which package does not load, and beside which torch where that is what it has to fit."""
    versions = versions_of([package, "torch"])
    line = " ".join([package, *([versions[package]] if package in versions else []), "does not load"])
    is_beside = package in FITTING and package != "torch" and "torch" in versions
    return f"{line} with torch {versions['torch']}" if is_beside else line


def cure(package: str) -> str:
    """Return the command that installs a package anew."""
    if package in FITTING:
        return "pip install " + " ".join(f"{name}=={version}" for name, version in FITTING.items())
    return f"pip install --upgrade {package}"


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are there."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
