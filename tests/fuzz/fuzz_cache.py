#!/usr/bin/env python3
"""Flip single bits in cache files by seed: what is found must be what was kept.

    python tests/fuzz/fuzz_cache.py --cases 2000

Prints how many look-ups found their row; exit status 1 if one gave another row or raised.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from imagebind.reading.cache import EmbeddingCache, NotACacheError

N_ROWS = 24


def row_of(i: int) -> np.ndarray:
    return np.random.default_rng(i).standard_normal(1024).astype(np.float32)


def key_of(i: int) -> tuple[str, str]:
    return f"{i:064x}", ("audio", "video")[i % 2]


def fuzz(first: int, n_cases: int, folder: Path) -> tuple[int, int, list[str]]:
    """Return how many look-ups found their row, how many another one, and what was raised."""
    whole = EmbeddingCache(folder / "whole.sqlite", "weights", "fp32")
    for i in range(N_ROWS):
        content_hash, modality = key_of(i)
        whole.put(modality, [(content_hash, row_of(i))])
    whole.close()
    content, path = (folder / "whole.sqlite").read_bytes(), folder / "flipped.sqlite"
    # Half of the bits are those of keys and headers, which are a small part of the file.
    near_keys = [match.start() for match in re.finditer(b"weightsf", content)]
    n_found, n_wrong, faults = 0, 0, []
    for seed in range(first, first + n_cases):
        for leftover in folder.glob("flipped*"):
            leftover.unlink()
        generator, flipped = random.Random(seed), bytearray(content)
        at = generator.randrange(len(flipped))
        if seed % 2 and near_keys:
            at = max(generator.choice(near_keys) + generator.randrange(-90, 30), 0)
        flipped[at] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            cache = EmbeddingCache(path, "weights", "fp32")
            for i in range(N_ROWS):
                found = cache.get(*key_of(i))
                n_found += found is not None and np.array_equal(found, row_of(i))
                n_wrong += found is not None and not np.array_equal(found, row_of(i))
            cache.close()
        except NotACacheError:  # the bit was in what says that it is one
            continue
        except Exception as e:
            faults.append(f"seed {seed}: {type(e).__name__}: {e}")
    return n_found, n_wrong, faults


def main() -> int:
    parser = argparse.ArgumentParser(description="Flip single bits in cache files.")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--cases", type=int, default=2000)
    args = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        n_found, n_wrong, faults = fuzz(args.first, args.cases, Path(folder))
    print(
        f"{args.cases} flipped bits: {n_found} rows found, {n_wrong} wrong, {len(faults)} faults",
        *faults,
        sep="\n",
    )
    return 1 if n_wrong or faults else 0


if __name__ == "__main__":
    sys.exit(main())
