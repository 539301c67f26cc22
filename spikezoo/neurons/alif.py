"""Adaptive leaky integrate-and-fire: `lif` whose threshold rises with every spike, then falls back.

    h[t] = beta v[t-1] + x[t]
    A[t] = threshold + adaptation a[t-1]
    s[t] = H(h[t] - A[t]),  H(0) = 1
    v[t] = h[t] - s[t] A[t]          (soft reset)
    v[t] = (1 - s[t]) h[t]           (hard reset)
    a[t] = rho a[t-1] + (1 - rho) s[t]

Source: Bellec, Salaj, Subramoney, Legenstein, Maass, "Long short-term memory and learning-to-learn
in networks of spiking neurons" (2018), the LSNN, equations 1 to 3; its reset is the soft one. There
b is our a, beta_j our adaptation, and the current is scaled by 1 - alpha; here it is not, so that
beta means the same in every neuron.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikezoo.errors import OptionError
from spikezoo.neurons import State
from spikezoo.neurons.threshold import Reset, ThresholdNeuron, check_decay


class ALIF(ThresholdNeuron):
    """LIF with an adaptive threshold; its state is (v [N, *], a [N, *]), both 0 at rest.

    a is the recent firing rate, in [0, 1]. `detach_reset` cuts the gradient from a spike to the
    reset it causes, not the one to the threshold that it raises.

    Args:
        beta: decay of v per time step, in [0, 1].
        rho: decay of a per time step, in [0, 1].
        adaptation: what a steady rate of 1 adds to the threshold, at least 0; the others as
            `ThresholdNeuron`.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        rho: float = 0.9,
        adaptation: float = 1.8,
        threshold: float = 1.0,
        reset: Reset = "soft",
        detach_reset: bool = False,
        surrogate: str = "atan",
        alpha: float = 2.0,
    ) -> None:
        super().__init__(
            threshold=threshold,
            reset=reset,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
        if not adaptation >= 0:
            raise OptionError(f"adaptation is at least 0, given {adaptation}")
        self.beta = check_decay("beta", beta)
        self.rho = check_decay("rho", rho)
        self.adaptation = adaptation

    def initial_state(self, current: Tensor) -> State:
        (v,) = super().initial_state(current)
        return v, torch.zeros_like(v)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        v, a = state
        h = self.beta * v + current
        barrier = self.threshold + self.adaptation * a
        spikes = self.fire(h - barrier)
        v = self.after_reset(h, spikes, barrier)
        return spikes.to(current.dtype), (v, self.rho * a + (1 - self.rho) * spikes)
