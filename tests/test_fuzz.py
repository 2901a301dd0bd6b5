"""Cases by seed: damaged media, and those that once broke the rule; manifests. And odd media."""

from __future__ import annotations

import os
import shutil

import pytest
from conftest import TESTS
from fuzz import fuzz_manifest
from fuzz.fuzz_media import damaged, fault, fuzz, whole_files
from fuzz.media_sweep import sweep

from imagebind.data.features import AUDIO, VIDEO
from imagebind.reading.loader import Reading, read_file
from imagebind.sources import Source

CASES = sorted((TESTS / "fuzz" / "cases").iterdir())


def test_damaged_files_give_an_input_or_a_reason(tmp_path):
    outcomes, faults = fuzz(0, 150, tmp_path)
    assert not faults
    assert sum(outcomes.values()) == 150
    assert outcomes["input"] > 40
    assert sum(n for kind, n in outcomes.items() if not kind.startswith("input")) > 40


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_what_was_found_stays_mended(path):
    """Each is named by its side and by what was wrong with it."""
    modality = path.name.split("_")[0]
    (loaded,) = read_file(
        Reading(), (modality, Source(str(path)), ({"audio": AUDIO, "video": VIDEO}[modality],))
    )
    assert fault(loaded) is None


def test_a_case_is_made_again_by_its_seed():
    files = whole_files()
    assert damaged(files, 7) == damaged(files, 7) != damaged(files, 8)


def test_odd_files_are_read_as_is_right(tmp_path):
    """Held to what ffmpeg decodes too, where it is installed."""
    ffmpeg = shutil.which("ffmpeg")
    assert ffmpeg or "CI" not in os.environ
    faults = {name: wrong for name, _, wrong in sweep(tmp_path, ffmpeg) if wrong}
    assert not faults


def test_a_run_over_a_manifest_says_of_each_row_what_is_so(tmp_path):
    outcomes, faults = fuzz_manifest.fuzz(0, 20, tmp_path)
    assert not faults
    assert sum(n for outcome, n in outcomes.items() if outcome.endswith("evaluated")) > 10
