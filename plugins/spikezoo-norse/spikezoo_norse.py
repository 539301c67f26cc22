"""Norse as a backend, and two of its own neurons.

The backend lets norse's `lif_box_feed_forward_step` integrate and fire; three things are ours:

- norse decays v towards its leak potential and scales its input by what it takes away from v. With
  the leak potential at beta v, v at 0 and dt / tau at 1 its equation is h = beta v + x, bit by bit.
- norse fires where h > v_th, ours where h >= threshold: v_th is the next smaller number.
- The surrogate and the reset: norse has no arc tangent, and its superspike ignores its slope.

Source: Pehle and Pedersen, "Norse: a library to do deep learning with spiking neural networks"
(2021), https://github.com/norse/norse, and the docstrings of norse 1.1.0.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from spikezoo.backends.reference import REFERENCE, Step, loop
from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron, State
from spikezoo.neurons.if_ import IF
from spikezoo.neurons.lif import LIF
from spikezoo.neurons.plif import PLIF

with warnings.catch_warnings():  # norse's own, of torch.jit
    warnings.simplefilter("ignore")
    import norse.torch as norse


# --- the backend ----------------------------------------------------------------------------


class Norse:
    """Computes LIF, IF and PLIF with the spikes, states and gradients of `reference`."""

    def supports(self, neuron: Neuron) -> bool:
        # A subclass may have another step, so the type is compared exactly.
        return type(neuron) in (LIF, IF, PLIF) or isinstance(neuron, NorseNeuron)

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        if isinstance(neuron, NorseNeuron):
            return REFERENCE.run(neuron, current, state)
        assert isinstance(neuron, LIF | IF | PLIF)
        first = neuron.initial_state(current[0]) if state is None else state
        return loop(_step(neuron, first[0]), current, first)


NORSE = Norse()


def _step(neuron: LIF | IF | PLIF, like: Tensor) -> Step:
    """The neuron's step by norse, for states of the dtype and device of `like`."""
    beta = 1.0 if isinstance(neuron, IF) else neuron.beta
    below = torch.nextafter(like.new_full((), neuron.threshold), like.new_full((), -math.inf))
    rest = norse.LIFBoxFeedForwardState(v=like.new_zeros(()))

    def step(current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        parameters = norse.LIFBoxParameters(
            tau_mem_inv=like.new_ones(()),
            v_leak=beta * v,
            v_th=below,
            method="heaviside",
            reset_method=lambda z, h, v_reset, v_th: h,
        )
        fired, after = norse.lif_box_feed_forward_step(current, rest, parameters, dt=1.0)
        ours = neuron.fire(after.v - neuron.threshold)
        spikes = fired + (ours - ours.detach())  # adds 0 but for the gradient
        return spikes.to(current.dtype), (neuron.after_reset(after.v, spikes),)

    return step


# --- norse's own neurons --------------------------------------------------------------------


class NorseNeuron(Neuron):
    """A neuron that only norse has: it fires where v > v_th, with norse's superspike surrogate.

    A current acts on v by dt tau_mem_inv, a tenth at norse's defaults; `threshold`, by which
    networks scale their currents, is the one that fires within one step from rest.

    Args:
        tau_mem_inv: inverse time constant of v, in 1/s.
        v_th: potential at which it fires.
        dt: time step, in s.
    """

    only_backend = "norse"

    def __init__(self, *, tau_mem_inv: float, v_th: float, dt: float) -> None:
        super().__init__()
        if not (v_th > 0 and 0 < dt * tau_mem_inv <= 1):
            raise OptionError(
                f"v_th is above 0 and dt tau_mem_inv, the share of v that is lost in a step, in "
                f"(0, 1], given {v_th} and {dt * tau_mem_inv:g}"
            )
        self.tau_mem_inv, self.v_th, self.dt = tau_mem_inv, v_th, dt
        self.threshold = v_th / (dt * tau_mem_inv)

    def extra_repr(self) -> str:
        return f"tau_mem_inv={self.tau_mem_inv}, v_th={self.v_th}, dt={self.dt}"


class LIFBox(NorseNeuron):
    """Norse's lif without a synaptic current, `lif_box_feed_forward_step`; state (v [N, *],).

    h = v + dt tau_mem_inv (x - v); fires where h > v_th and goes to 0 there.
    """

    def __init__(self, *, tau_mem_inv: float = 100.0, v_th: float = 1.0, dt: float = 0.001) -> None:
        super().__init__(tau_mem_inv=tau_mem_inv, v_th=v_th, dt=dt)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        like = state[0]
        parameters = norse.LIFBoxParameters(
            tau_mem_inv=like.new_full((), self.tau_mem_inv), v_th=like.new_full((), self.v_th)
        )
        before = norse.LIFBoxFeedForwardState(*state)
        spikes, after = norse.lif_box_feed_forward_step(current, before, parameters, dt=self.dt)
        return spikes.to(current.dtype), tuple(after)


class LIFAdEx(NorseNeuron):
    """Norse's adaptive exponential lif, `lif_adex_feed_forward_step`; state (v, i, a), each [N, *].

    v rises by itself near v_th; the current i flows into it over several steps, and the adaptation
    a, which follows v and grows with each spike, out of it. The equation is in norse's docstring.

    Args:
        adaptation_current: how strongly a follows v.
        adaptation_spike: what each spike adds to a.
    """

    def __init__(
        self,
        *,
        tau_mem_inv: float = 100.0,
        v_th: float = 1.0,
        adaptation_current: float = 4.0,
        adaptation_spike: float = 0.02,
        dt: float = 0.001,
    ) -> None:
        super().__init__(tau_mem_inv=tau_mem_inv, v_th=v_th, dt=dt)
        self.adaptation_current, self.adaptation_spike = adaptation_current, adaptation_spike

    def initial_state(self, current: Tensor) -> State:
        (v,) = super().initial_state(current)
        return v, torch.zeros_like(v), torch.zeros_like(v)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        like = state[0]
        parameters = norse.LIFAdExParameters(
            adaptation_current=like.new_full((), self.adaptation_current),
            adaptation_spike=like.new_full((), self.adaptation_spike),
            tau_mem_inv=like.new_full((), self.tau_mem_inv),
            v_th=like.new_full((), self.v_th),
        )
        before = norse.LIFAdExFeedForwardState(*state)
        spikes, after = norse.lif_adex_feed_forward_step(current, before, parameters, dt=self.dt)
        return spikes.to(current.dtype), tuple(after)
