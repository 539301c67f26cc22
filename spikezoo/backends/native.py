"""Our own fast paths: `fused` for the LIF family, `compiled` for any other neuron's step.

Neither keeps a graph per time step: both store their input and compute the rest again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikezoo.backends import compiled, fused
from spikezoo.backends.reference import REFERENCE
from spikezoo.neurons import Neuron, State
from spikezoo.readouts import Mean

# Compiling takes seconds, which fewer elements than these per call never bring back.
WORTH_COMPILING = 2**18


class Native:
    """The fused path for the LIF family, the compiled one for all else."""

    def supports(self, neuron: Neuron) -> bool:
        return neuron.only_backend is None

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        compiling = torch.compiler.is_compiling()
        # On a GPU the compiler fuses the plain loop by itself, and the op is a closed box to it.
        if fused.has(neuron) and not (compiling and current.is_cuda):
            v = None if state is None else state[0]
            if v is None or fused.fits(current, v):
                spikes, v = fused.run(neuron, current, v)
                return spikes, (v,)
        elif current.numel() >= WORTH_COMPILING and not (compiling or neuron.is_stochastic):
            first = neuron.initial_state(current[0]) if state is None else state
            return compiled.run(neuron, current, first)
        return REFERENCE.run(neuron, current, state)


NATIVE = Native()


def read_out(neuron: Neuron, readout: nn.Module, current: Tensor) -> Tensor:
    """readout(neuron(current)): [T, N, C, *] -> [N, C, *].

    Where the readout is a mean and the kernel computes the neuron, the spikes are counted as they
    arise and take no memory: the same values to the last bit. Whoever hooks either layer sees them.
    """
    if (
        type(readout) is Mean
        and neuron.backend == "native"
        and fused.can_rate(neuron, current)
        and not (_is_hooked(neuron) or _is_hooked(readout))
    ):
        return fused.rate(neuron, current)
    rates: Tensor = readout(neuron(current))
    return rates


def _is_hooked(layer: nn.Module) -> bool:
    """Whether a call of the layer is more than its forward, by the conditions of nn.Module."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )
