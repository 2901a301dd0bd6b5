"""Torch's settings of the whole process while this package computes: one owner sets them and puts them back.

What the caller has set for its own computations, such as another default type, autocast or TF32, does not
count here. Threads that compute here wait for each other: two that save, set and put back at once would leave
one's settings behind, and compute with the other's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

_LOCK = threading.RLock()
REDUCED = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")  # of sums


@contextmanager
def on_cpu() -> Iterator[None]:
    """Make tensors on the CPU where no device is named, whatever the caller has set for that."""
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield


@contextmanager
def settings_for_inputs() -> Iterator[None]:
    """Compute in one thread and in float32: inputs are the same bit for bit with workers and without."""
    with _LOCK:
        n_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        try:
            with torch.autocast("cpu", enabled=False), on_cpu():
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
        matmul, allowed = torch.backends.cuda.matmul, precision == "tf32"
        reduced = [getattr(matmul, name) for name in REDUCED]
        newer = [(operation, operation.fp32_precision) for operation in operations()]
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # the caller has set it by its newer names alone
            before = None
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        for operation, _ in newer:
            if operation.fp32_precision not in (("tf32",) if allowed else ("ieee", "none")):
                operation.fp32_precision = "tf32" if allowed else "ieee"
        for name in REDUCED:
            setattr(matmul, name, False)
        older = nullcontext() if newer else torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed)
        try:
            with older, torch.autocast(device.type, enabled=False):
                yield
        finally:
            if before is not None:
                torch.set_float32_matmul_precision(before)
            for operation, value in newer:  # torch does not tell whether it was set here or for all at once
                if operation.fp32_precision != value:
                    operation.fp32_precision = value
            for name, value in zip(REDUCED, reduced, strict=True):
                setattr(matmul, name, value)


def operations() -> list[Any]:
    """List what multiplies in float32 by a precision of its own; before torch 2.9 nothing does."""
    backends = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return []
    of_cuda = backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
    return [*of_cuda, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
