#!/usr/bin/env python3
"""Make up checkpoints by seed: each loads, or is refused in one line.

    python tests/fuzz/fuzz_checkpoints.py --cases 200

Prints what became of them; exit status 1 if one raised anything else, or passed with numbers that are no
weights.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from imagebind.evaluation.embed.model import check_towers, load_model
from imagebind.evaluation.errors import EvaluationError
from imagebind.models import checkpoints
from imagebind.models.imagebind_model import ImageBindModel
from imagebind.models.sizes import TowerConfig

ODD = [None, -8, 0, 7, 2.0, 2**40, True, "8", b"x", [], [1], {}, float("nan"), torch.ones(2), (1, 2, 3, 4, 5)]
CONFIG = {
    "audio": TowerConfig((1, 128, 204), (64, 102), (64, 102), 8, 1, 2, 20.0, embedding=8),
    "vision": TowerConfig(
        (3, 2, 224, 224), (2, 112, 112), (2, 112, 112), 8, 1, 2, 1.0, False, True, False, embedding=8
    ),
}


def odd_tensors(tensor: torch.Tensor) -> list[Any]:
    """Give what may stand in the place of a tensor."""
    return [
        *ODD,
        tensor.int(),
        tensor > 0,
        tensor.cfloat(),
        tensor.to_sparse(),
        tensor.flatten(),
        tensor[..., :0],
        torch.full_like(tensor, torch.nan),
        torch.full_like(tensor, -torch.inf),
        tensor.to("meta"),
        torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        tensor.expand(2, *tensor.shape),
    ]


def made_up(seed: int) -> Any:
    """Make a checkpoint with up to three things changed."""
    generator = random.Random(seed)
    torch.manual_seed(seed)
    model = ImageBindModel(CONFIG, "made up")
    state = dict(model.state_dict(released_names=False))
    content = {
        "format": "imagebind-towers",
        "towers": {modality: asdict(config) for modality, config in CONFIG.items()},
        "state_dict": state,
        "note": "made up",
    }
    for _ in range(generator.randint(0, 3)):
        what = generator.choice(["tensor", "size", "part", "name", "row"])
        if what == "tensor" and state:
            name = generator.choice(sorted(map(str, state)))
            if torch.is_tensor(state.get(name)) and state[name].ndim and state[name].dtype is torch.float32:
                state[name] = generator.choice(odd_tensors(state[name]))
        elif what == "size" and isinstance(content.get("towers"), dict) and content["towers"]:
            row = generator.choice(list(content["towers"].values()))
            if isinstance(row, dict) and row:
                row[generator.choice(sorted(row))] = generator.choice(ODD)
        elif what == "part":
            content[generator.choice(["format", "towers", "state_dict", "note"])] = generator.choice(ODD)
        elif what == "name" and state:
            name = generator.choice(sorted(map(str, state)))
            state[generator.choice([1, "x", name + "x", "towers.audio"])] = state.pop(name, torch.ones(1))
        elif what == "row" and isinstance(content.get("towers"), dict):
            content["towers"][generator.choice(["audio", "smell", 3])] = generator.choice(ODD)
    wrapped = {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 1}
    return generator.choice([content, content, content, state, wrapped])


def fuzz(first: int, n_cases: int, folder: Path) -> tuple[Counter, list[str]]:
    """Return how many were loaded and refused, and what broke the rule."""
    outcomes, faults = Counter(), []
    for seed in range(first, first + n_cases):
        path = folder / "x.pth"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(made_up(seed), path)
        try:
            model, weights = load_model(path)
            check_towers(model, weights, ["audio", "video"])
            outcomes["loaded"] += 1
            tensors = model.state_dict(released_names=False).values()
            if not all(tensor.isfinite().all() for tensor in tensors):
                faults.append(f"seed {seed}: numbers that are not finite")
        except EvaluationError as e:
            outcomes["refused"] += 1
            if "\n" in str(e) or not str(e).startswith(f"{path}: ") or len(str(e)) > 2000:
                faults.append(f"seed {seed}: {str(e)[:200]!r}")
        except BaseException as e:
            faults.append(f"seed {seed}: {type(e).__name__}: {str(e)[:200]}")
    return outcomes, faults


def main() -> int:
    parser = argparse.ArgumentParser(description="Make up checkpoints.")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--cases", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.digests_path = lambda: Path(folder, "digests.json")  # not the user's own
        outcomes, faults = fuzz(args.first, args.cases, Path(folder))
    told = f"{outcomes['loaded']} loaded, {outcomes['refused']} refused, {len(faults)} faults"
    print(f"{args.cases} checkpoints: {told}")
    print(*faults, sep="\n", end="")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
