"""SpikingJelly computes: over all T in one call (`SPIKINGJELLY`), or step by step (`EXACT`).

Per step, `if_step(x, beta v)` is our equation to the last bit. The multi-step functions are those
that SpikingJelly has fused kernels for on a GPU. They write beta v as v - v / tau, which rounds
otherwise unless tau is a power of 2; a potential that comes to within rounding of the threshold
could then fire in one and not in the other. Such neurons, few on random currents, are computed
once more per step: the spikes are equal always, the state to a few roundings.
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
from spikezoo.neurons.spikingjelly import SpikingJellyNeuron, library
from spikezoo.neurons.threshold import ThresholdNeuron

# A subclass may have another step, so the type is compared exactly.
HAS = (LIF, IF, PLIF, CUBA)
FUSED = (LIF, IF, PLIF)

# Ours by the name of its equal there; any other is ours, which takes the place of theirs in their
# functions. fast_sigmoid is (2 / alpha) SoftSign(alpha), and a surrogate there has no factor.
SURROGATES = {
    "atan": "ATan",
    "sigmoid": "Sigmoid",
    "triangle": "PiecewiseQuadratic",
    "erf": "Erf",
}


class Exact:
    """SpikingJelly's functions of one step."""

    def supports(self, neuron: Neuron) -> bool:
        return type(neuron) in HAS

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        # Its functions choose a kernel by what they are given, which cannot be traced, and take
        # no empty tensor; `step` computes the same.
        if torch.compiler.is_compiling() or current.numel() == 0:
            return REFERENCE.run(neuron, current, state)
        return loop(_step(neuron), current, _first(neuron, current, state))


class Fused:
    """SpikingJelly's functions of many steps, where it has them; else as `Exact`."""

    def supports(self, neuron: Neuron) -> bool:
        return type(neuron) in HAS or isinstance(neuron, SpikingJellyNeuron)

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        if isinstance(neuron, SpikingJellyNeuron):
            return REFERENCE.run(neuron, current, state)
        if (
            not isinstance(neuron, FUSED)
            or torch.compiler.is_compiling()
            or current.numel() == 0
            or (multi_step := _multi_step(neuron)) is None
        ):
            return EXACT.run(neuron, current, state)
        (v,) = _first(neuron, current, state)
        # Views: on a GPU its second backward pass counts the way from a current by a state twice.
        spikes, last, after = multi_step(
            current.view_as(current),
            v.view_as(v),
            v_threshold=neuron.threshold,
            **_common(neuron),
            store_v_seq=True,
        )
        spikes = spikes.to(current.dtype)
        near = _near_threshold(neuron, current, torch.cat([v[None], after[:-1]]))  # [N, *]
        if near.any():
            again, (again_v,) = loop(_step(neuron), current[:, near], (v[near],))
            spikes = spikes.masked_scatter(near.expand_as(spikes), again)
            last = last.masked_scatter(near, again_v)
        return spikes, (last,)


EXACT = Exact()
SPIKINGJELLY = Fused()


def _first(neuron: Neuron, current: Tensor, state: State | None) -> State:
    state = neuron.initial_state(current[0]) if state is None else state
    return tuple(s.expand(current.shape[1:]) for s in state)


def _step(neuron: Any) -> Step:
    """The neuron's step by SpikingJelly's function of one step."""
    functional = library("functional")
    common = _common(neuron)
    if isinstance(neuron, CUBA):

        def cuba(current: Tensor, state: State) -> tuple[Tensor, State]:
            spikes, *after = functional.cuba_lif_step(
                current, *state, neuron.synaptic_beta, neuron.beta, neuron.threshold, **common
            )
            return spikes.to(current.dtype), tuple(after)

        return cuba
    beta = 1.0 if isinstance(neuron, IF) else neuron.beta

    def step(current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        spikes, v = functional.if_step(current, beta * v, neuron.threshold, **common)
        return spikes.to(current.dtype), (v,)

    return step


def _multi_step(neuron: LIF | IF | PLIF) -> Callable[..., Any] | None:
    """SpikingJelly's function of many steps with the decay filled in, or None for beta = 0."""
    functional = library("functional")
    if isinstance(neuron, IF) or (isinstance(neuron, LIF) and neuron.beta == 1):
        return functional.if_multi_step
    if isinstance(neuron, PLIF):  # there 1/tau = sigmoid(w)
        return lambda x, v, **rest: functional.plif_multi_step(x, v, -neuron.w, False, **rest)
    tau = 1 / (1 - neuron.beta)
    if not tau > 1:
        return None  # it takes no such tau
    return lambda x, v, **rest: functional.lif_multi_step(x, v, tau, False, **rest)


def _common(neuron: ThresholdNeuron) -> dict[str, Any]:
    """The options that all its functions share."""
    name = SURROGATES.get(neuron.surrogate)
    return {
        "v_reset": None if neuron.reset == "soft" else 0.0,
        "surrogate_function": getattr(library("surrogate"), name)(neuron.alpha)
        if name
        else neuron.fire,
        "detach_reset": neuron.detach_reset,
    }


@torch.no_grad()
def _near_threshold(neuron: LIF | IF | PLIF, current: Tensor, before: Tensor) -> Tensor:
    """Where rounding could decide on a spike: current and v before each step [T, N, *] -> [N, *].

    A step adds less than 16 roundings of its largest number to what the steps before it added.
    """
    h = (1.0 if isinstance(neuron, IF) else neuron.beta) * before + current
    largest = h.abs().amax(0) + neuron.threshold
    rounding = 8 * torch.finfo(h.dtype).eps * len(current) * largest
    return ((h - neuron.threshold).abs() <= rounding).any(0)
