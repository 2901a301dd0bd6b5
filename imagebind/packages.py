"""Packages of others: where one is missing or does not load, one line says which, and what to do."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from collections.abc import Iterable, Sequence
from importlib import metadata
from types import ModuleType

PIP_NAMES = {"PIL": "pillow", "open_clip": "open_clip_torch"}  # of modules that have another name
FIT_A_TORCH = {"torchvision", "open_clip_torch", "timm"}  # packages whose releases are for some of torch


class PackageError(ImportError):
    """A package that is missing or does not load; the message is one line that says what to do."""


def require(*modules: str, otherwise: str = "") -> None:
    """Check that modules are installed, without importing them.

    Args:
        modules: of the top level.
        otherwise: what to do without them, for the message.

    Raises:
        PackageError: some are not; it names them all.
    """
    missing = [package_of(module) for module in modules if not is_there(module)]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        raise PackageError(f"{', '.join(missing)} {verb} missing: {pip_install(missing)}{otherwise}")


def load(module: str, otherwise: str = "") -> ModuleType:
    """Import a module.

    Args:
        otherwise: as in require.

    Raises:
        PackageError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except MemoryError:
        raise
    except (Exception, SystemExit) as e:  # a package that does not fit fails in any way
        if isinstance(e, ModuleNotFoundError) and e.name and "." not in e.name:
            package = package_of(e.name)  # this one, or one that it needs
            raise PackageError(f"{package} is missing: {pip_install([package])}{otherwise}") from e
        package, reason = failing_package(module, e), " ".join(str(e).split())[:200] or type(e).__name__
        cure = pip_install([package], "--upgrade " if package != "torch" else "--force-reinstall ")
        raise PackageError(f"{describe_misfit(package)} ({reason}): {cure}{otherwise}") from e


def failing_package(module: str, error: BaseException) -> str:
    """Return the package that has to fit a torch in which an import failed, or that of the module."""
    frames = traceback.walk_tb(error.__traceback__)
    packages = [package_of(frame.f_globals.get("__name__", "")) for frame, _ in frames]
    return next((package for package in reversed(packages) if package in FIT_A_TORCH), package_of(module))


def is_there(module: str) -> bool:
    """Whether the package of a module is installed."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except ValueError:  # it was put in the place of a module
        return False


def package_of(module: str) -> str:
    """Return the name by which pip installs a module."""
    name = module.partition(".")[0]
    return PIP_NAMES.get(name, name)


def describe_misfit(package: str) -> str:
    """Say which package does not load, and beside which torch where that is what it has to fit."""
    versions = versions_of([package, "torch"])
    line = " ".join([package, *([versions[package]] if package in versions else []), "does not load"])
    is_beside = package in FIT_A_TORCH and "torch" in versions
    return f"{line} with torch {versions['torch']}" if is_beside else line


def pip_install(packages: Sequence[str], options: str = "") -> str:
    """Return the command that installs packages; of torch with its version, or pip would replace it."""
    torch = versions_of(["torch"]).get("torch") if {*packages} & {*FIT_A_TORCH, "torch"} else None
    names = [name for name in packages if name != "torch" or torch is None]
    line = f"pip install {options}" + " ".join([*names, *([f"torch=={torch}"] if torch else [])])
    return f"{line}, from the index that torch came from" if torch and "+" in torch else line


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are there."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_import_error(error: ImportError) -> str | None:
    """Say in one line why a package does not load; None where that is no fault of packages or memory."""
    import resource  # of POSIX

    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    is_ours = isinstance(error, PackageError)
    is_missing = is_ours and isinstance(error.__cause__, ModuleNotFoundError | None)
    if allowed != resource.RLIM_INFINITY and not is_missing:
        return f"ulimit -v allows {allowed / 1e9:.1f} GB, which is too little ({error})"
    return str(error) if is_ours else None
