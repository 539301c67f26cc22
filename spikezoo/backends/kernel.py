"""The C kernel of `_lif.c`, called by address: in and out tensors on the CPU, nothing copied."""

from __future__ import annotations

import ctypes
import importlib.machinery
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikezoo import time_axis

# In the order of `enum surrogate`.
SURROGATES = ("atan", "sigmoid", "fast_sigmoid", "triangle", "straight_through", "erf")


class Equation(NamedTuple):
    """What tells neurons of the LIF family apart beside beta: options of a `ThresholdNeuron`."""

    threshold: float
    reset: str
    detach_reset: bool
    surrogate: str
    alpha: float


class _Call(ctypes.Structure):
    _fields_ = (
        ("T", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        ("beta", ctypes.c_float),
        ("threshold", ctypes.c_float),
        ("alpha", ctypes.c_float),
        ("hard", ctypes.c_int32),
        ("detach_reset", ctypes.c_int32),
        ("surrogate", ctypes.c_int32),
        ("bf16", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def _load() -> ctypes.CDLL | None:
    """The library built at installation, or None where there was no compiler."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_lif{suffix}")
        if path.exists():
            library = ctypes.CDLL(str(path))
            pointer, stride = ctypes.c_void_p, ctypes.c_int64
            library.lif_forward.argtypes = [
                ctypes.POINTER(_Call), pointer, stride, pointer, pointer, stride, pointer,
            ]  # fmt: skip
            library.lif_forward.restype = None
            library.lif_backward.argtypes = [
                ctypes.POINTER(_Call), pointer, stride, pointer, pointer, stride, pointer,
                pointer, stride, pointer, pointer,
            ]  # fmt: skip
            library.lif_backward.restype = ctypes.c_int
            return library
    return None


LIBRARY: Any = _load()  # `usable` is asked before it is called


def usable(equation: Equation, current: Tensor) -> bool:
    """Whether the kernel can compute a current: built, on the CPU, float32 or bf16."""
    return (
        LIBRARY is not None
        and current.is_cpu
        and current.dtype in (torch.float32, torch.bfloat16)
        and equation.surrogate in SURROGATES
        and current.numel() > 0
    )


def in_use() -> str:
    """What computes the LIF family on the CPU, in words."""
    if LIBRARY is None:
        return "torch, since no C kernel was built"
    threads = torch.get_num_threads()
    return f"C kernel, {threads} thread{'s' * (threads > 1)}"


def forward(
    equation: Equation, current: Tensor, v: Tensor | None, beta: Tensor, T: int
) -> tuple[Tensor, Tensor]:
    """Current [T or 1, N, *], v [N, *], None for rest -> spikes [T, N, *], last v [N, *]."""
    x, v = _steps(current, current), _step(v, current)
    spikes, last = time_axis.empty(current[0], T), _empty_state(current)
    LIBRARY.lif_forward(
        _call(equation, current, beta, T), x.data_ptr(), _stride(x), _address(v),
        spikes.data_ptr(), spikes.stride(0), last.data_ptr(),
    )  # fmt: skip
    return spikes, last


def rate(equation: Equation, current: Tensor, v: Tensor | None, beta: Tensor, T: int) -> Tensor:
    """As `forward` -> the mean of the spikes over T [N, *], which themselves stay in the cache."""
    x, v, step = _steps(current, current), _step(v, current), current[0]
    mean = torch.empty_like(step, memory_format=time_axis.order(step))
    call = _call(equation, current, beta, T)
    LIBRARY.lif_forward(call, x.data_ptr(), _stride(x), _address(v), mean.data_ptr(), 0, None)
    return mean


def backward(
    equation: Equation,
    g_spikes: Tensor | None,
    g_v: Tensor | None,
    current: Tensor,
    v: Tensor | None,
    beta: Tensor,
    T: int,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the spikes [T, N, *] and the last v -> of the current, the first v, and beta.

    That of a current of one step is the sum over T.
    """
    x, v = _steps(current, current), _step(v, current)
    g_spikes = None if g_spikes is None else _steps(g_spikes.to(current.dtype), current)
    g_v = _step(g_v, current)
    g_current = time_axis.empty(current[0], len(current))
    g_first = current.new_empty(0) if v is None else torch.empty_like(v)
    # One sum per block: added up in the same order, however many threads there are.
    blocks = -(-current[0].numel() // LIBRARY.lif_block())
    g_beta = torch.empty(blocks) if learns else None
    failed = LIBRARY.lif_backward(
        _call(equation, current, beta, T), x.data_ptr(), _stride(x), _address(v),
        _address(g_spikes), 0 if g_spikes is None else g_spikes.stride(0), _address(g_v),
        g_current.data_ptr(), _stride(g_current), None if v is None else g_first.data_ptr(),
        _address(g_beta),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for the potentials of T={T} steps")
    total = torch.zeros_like(beta) if g_beta is None else g_beta.sum().to(beta.dtype)
    return g_current, g_first, total


def _call(equation: Equation, current: Tensor, beta: Tensor, T: int) -> _Call:
    elements = current[0].numel()
    return _Call(
        T=T,
        elements=elements,
        beta=beta.item(),
        threshold=equation.threshold,
        alpha=equation.alpha,
        hard=equation.reset == "hard",
        detach_reset=equation.detach_reset,
        surrogate=SURROGATES.index(equation.surrogate),
        bf16=current.dtype == torch.bfloat16,
        # A thread is worth waking for about this many elements, as in torch.
        threads=max(1, min(torch.get_num_threads(), T * elements // 32768)),
    )


def _stride(x: Tensor) -> int:
    """From one step to the next; 0 if it is the only one."""
    return 0 if len(x) == 1 else x.stride(0)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


# The order of one step's elements in memory, which all tensors of a call must share, is that of
# the current's first step.


def _empty_state(current: Tensor) -> Tensor:
    step = current[0]
    return torch.empty_like(step, dtype=torch.float32, memory_format=time_axis.order(step))


def _step(x: Tensor | None, current: Tensor) -> Tensor | None:
    """[N, *] float32 in the current's order; a copy only if it is in another."""
    return None if x is None else x.float().contiguous(memory_format=time_axis.order(current[0]))


def _steps(x: Tensor, current: Tensor) -> Tensor:
    """[T, N, *] with steps in the current's order; the same again and again stays stride 0."""
    order = time_axis.order(current[0])
    if x[0].is_contiguous(memory_format=order):
        return x
    if x.stride(0) == 0:
        return x[0].contiguous(memory_format=order).expand_as(x)
    return time_axis.empty(current[0], len(x)).copy_(x)
