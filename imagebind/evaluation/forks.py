"""Processes that were forked after torch had computed: its threads are not there, and it waits for them."""

from __future__ import annotations

import os

import torch

from imagebind.evaluation.errors import EvaluationError

_first_process: int | None = None  # that computed here in several threads; a fork takes this along


def check_can_compute() -> None:
    """Call before a computation.

    OpenMP keeps the threads of the first computation for the later ones. A fork copies the memory without the
    threads, and the child waits for them. With one thread it waits for none.

    Raises:
        EvaluationError: this process was forked from one that had computed, and would wait for ever.
    """
    global _first_process
    if torch.get_num_threads() == 1:
        return
    if _first_process is None:
        _first_process = os.getpid()
    elif _first_process != os.getpid():
        raise EvaluationError(
            f"this process was forked from process {_first_process}, which had computed, and would wait for "
            "ever for its threads; start it by spawn or forkserver, or call torch.set_num_threads(1) in it"
        )
