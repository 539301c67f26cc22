"""The C kernel of `_lif.c`, called by address: in and out tensors on the CPU, nothing copied."""

from __future__ import annotations

import ctypes
import importlib.machinery
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spikezoo import time_axis

if TYPE_CHECKING:
    from spikezoo.neurons.if_ import IF
    from spikezoo.neurons.lif import LIF
    from spikezoo.neurons.plif import PLIF

# In the order of `enum surrogate`.
SURROGATES = ("atan", "sigmoid", "fast_sigmoid", "triangle", "straight_through", "erf")


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


def usable(neuron: LIF | IF | PLIF, current: Tensor) -> bool:
    """Whether the kernel can compute a current: built, on the CPU, float32 or bf16."""
    return (
        LIBRARY is not None
        and current.device.type == "cpu"
        and current.dtype in (torch.float32, torch.bfloat16)
        and neuron.surrogate in SURROGATES
        and current.numel() > 0
    )


def forward(
    neuron: LIF | IF | PLIF, beta: float, current: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Current [T, N, *] and state [N, *] -> spikes [T, N, *], last state [N, *]."""
    layout = _Layout(current[0])
    x, v = layout.steps(current), layout.step(v)
    spikes, last = time_axis.empty(current, layout.format), torch.empty_like(v)
    call = _call(neuron, beta, current)
    LIBRARY.lif_forward(
        call, x.data_ptr(), x.stride(0), v.data_ptr(),
        spikes.data_ptr(), spikes.stride(0), last.data_ptr(),
    )  # fmt: skip
    return spikes, last


def backward(
    neuron: LIF | IF | PLIF,
    beta: float,
    current: Tensor,
    v: Tensor,
    g_spikes: Tensor | None,
    g_v: Tensor | None,
    wants_beta: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of the spikes [T, N, *] and last state -> of the current, first state, and beta."""
    layout = _Layout(current[0])
    x, v = layout.steps(current), layout.step(v)
    g_spikes = None if g_spikes is None else layout.steps(g_spikes.to(current.dtype))
    g_v = None if g_v is None else layout.step(g_v)
    g_current, g_first = time_axis.empty(current, layout.format), torch.empty_like(v)
    # One sum per block: added up in the same order, however many threads there are.
    g_beta = v.new_empty(-(-v.numel() // LIBRARY.lif_block())) if wants_beta else None
    failed = LIBRARY.lif_backward(
        _call(neuron, beta, current), x.data_ptr(), x.stride(0), v.data_ptr(),
        None if g_spikes is None else g_spikes.data_ptr(),
        0 if g_spikes is None else g_spikes.stride(0),
        None if g_v is None else g_v.data_ptr(),
        g_current.data_ptr(), g_current.stride(0), g_first.data_ptr(),
        None if g_beta is None else g_beta.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for the potentials of T={len(current)} steps")
    return g_current, g_first, None if g_beta is None else g_beta.sum()


def _call(neuron: LIF | IF | PLIF, beta: float, current: Tensor) -> _Call:
    elements = current[0].numel()
    return _Call(
        T=len(current),
        elements=elements,
        beta=beta,
        threshold=neuron.threshold,
        alpha=neuron.alpha,
        hard=neuron.reset == "hard",
        detach_reset=neuron.detach_reset,
        surrogate=SURROGATES.index(neuron.surrogate),
        bf16=current.dtype == torch.bfloat16,
        # A thread is worth waking for about this many elements, as in torch.
        threads=max(1, min(torch.get_num_threads(), len(current) * elements // 32768)),
    )


class _Layout:
    """The order of one step's elements in memory, which all tensors of a call must share."""

    def __init__(self, step: Tensor) -> None:
        last = step.dim() == 4 and step.is_contiguous(memory_format=torch.channels_last)
        self.format = torch.channels_last if last else torch.contiguous_format

    def step(self, x: Tensor) -> Tensor:
        """[N, *] float32 in this order; a copy only if it is in another."""
        return x.float().contiguous(memory_format=self.format)

    def steps(self, x: Tensor) -> Tensor:
        """[T, N, *] with each step in this order; the same step again and again stays stride 0."""
        if x[0].is_contiguous(memory_format=self.format):
            return x
        if x.stride(0) == 0:
            return x[0].contiguous(memory_format=self.format).expand_as(x)
        return time_axis.empty(x, self.format).copy_(x)
