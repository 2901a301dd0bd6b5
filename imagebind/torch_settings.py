"""Torch's settings of the whole process while this package computes: one owner sets them and puts them back.

What the caller has set for its own computations, such as another default type, autocast or TF32, does not
count here. Threads that compute here wait for each other: two that save, set and put back at once would leave
one's settings behind, and compute with the other's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

_LOCK = threading.RLock()
REDUCED = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")  # of sums


@contextmanager
def settings_for_inputs() -> Iterator[None]:
    """Compute in one thread and in float32: inputs are the same bit for bit with workers and without."""
    with _LOCK:
        n_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
        try:
            with torch.autocast("cpu", enabled=False), on_cpu:
                yield
        finally:
            torch.set_num_threads(n_threads)
            torch.set_default_dtype(dtype)


@contextmanager
def settings_for_model(device: torch.device, precision: str) -> Iterator[None]:
    """Let CUDA round the inputs of float32 multiplications to TF32, or not, as `precision` says.

    Sums of 16-bit products are kept in float32 in any case.
    """
    with _LOCK:
        matmul, before = torch.backends.cuda.matmul, torch.get_float32_matmul_precision()
        reduced = [getattr(matmul, name) for name in REDUCED]
        allowed = precision == "tf32"
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        for name in REDUCED:
            setattr(matmul, name, False)
        try:
            tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed)
            with tf32, torch.autocast(device.type, enabled=False):
                yield
        finally:
            torch.set_float32_matmul_precision(before)
            for name, value in zip(REDUCED, reduced, strict=True):
                setattr(matmul, name, value)
