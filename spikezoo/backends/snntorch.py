"""snnTorch computes: it integrates and fires, step by step; the reset is ours.

Its own reset comes one step late, so the layers are built without one (`reset_mechanism="none"`)
and return h. They fire where h > threshold, so their surrogates are told of h = threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikezoo.backends.reference import REFERENCE, Step, loop
from spikezoo.neurons import Neuron, State
from spikezoo.neurons.cuba import CUBA
from spikezoo.neurons.if_ import IF
from spikezoo.neurons.lif import LIF
from spikezoo.neurons.plif import PLIF
from spikezoo.neurons.snntorch import SnnTorchNeuron, build, library
from spikezoo.neurons.threshold import ThresholdNeuron

# A subclass may have another step, so the type is compared exactly.
HAS = (LIF, IF, PLIF, CUBA)


class SnnTorch:
    """A layer of snnTorch's for each call, its state passed in and out."""

    def supports(self, neuron: Neuron) -> bool:
        return type(neuron) in HAS or isinstance(neuron, SnnTorchNeuron)

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        # A compiler cannot trace the building of a layer; `step` gives it the same to compute.
        if isinstance(neuron, SnnTorchNeuron) or torch.compiler.is_compiling():
            return REFERENCE.run(neuron, current, state)
        first = neuron.initial_state(current[0]) if state is None else state
        first = tuple(s.expand(current.shape[1:]) for s in first)
        return loop(_step(neuron, first[-1].dtype), current, first)


SNNTORCH = SnnTorch()


def _step(neuron: Any, dtype: torch.dtype) -> Step:
    """The neuron's step on a layer of snnTorch's, which takes and returns (*state) as the neuron's.

    Its constants become tensors: of the state's dtype, or a float64 state would meet float32 ones.
    """
    beta = 1.0 if isinstance(neuron, IF) else neuron.beta
    decays = {"beta": torch.as_tensor(beta, dtype=dtype)}
    name = "Leaky"
    if isinstance(neuron, CUBA):
        name = "Synaptic"
        decays["alpha"] = torch.as_tensor(neuron.synaptic_beta, dtype=dtype)
    layer = build(
        name,
        **decays,
        threshold=torch.as_tensor(neuron.threshold, dtype=dtype),
        reset="none",
        spike_grad=_fire(neuron),
    )

    def step(current: Tensor, state: State) -> tuple[Tensor, State]:
        spikes, *after, h = layer(current, *state)
        return spikes.to(current.dtype), (*after, neuron.after_reset(h, spikes))

    return step


def _fire(neuron: ThresholdNeuron) -> Callable[[Tensor], Tensor]:
    """u = h - threshold -> spikes, on >= and with the neuron's surrogate."""
    theirs = library("snntorch.surrogate")
    match neuron.surrogate:
        case "atan":
            above = theirs.atan(neuron.alpha)
        case "fast_sigmoid":
            above = theirs.fast_sigmoid(neuron.alpha)
        case "straight_through":
            above = theirs.straight_through_estimator()
        case _:
            # Its sigmoid gives NaN where exp(-alpha u) overflows, at alpha = 25 below u = -3.43;
            # its triangular is the threshold below and minus that above; the others it lacks.
            return neuron.fire
    return lambda u: above(u) + (u == 0).to(u.dtype)
