"""Leaky integrate-and-fire with escape noise: it fires by chance, more surely the higher h.

    h[t] = beta v[t-1] + x[t]
    p[t] = sigmoid((h[t] - threshold) / delta)        the escape rate
    s[t] = 1 with probability p[t], else 0            in training mode
    s[t] = 1 where p[t] >= 1/2, else 0                in eval mode
    v[t] = h[t] - s[t] threshold

The gradient passes straight through the draw: that of s is that of p.

Source: Gerstner, Kistler, Naud, Paninski, "Neuronal Dynamics" (2014), section 9.1; the gradient:
Bengio, Léonard, Courville, "Estimating or propagating gradients through stochastic neurons" (2013).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron, State


class Stochastic(Neuron):
    """Fires by chance while training, at the threshold in eval mode; its state is (v [N, *],).

    In eval mode nothing is drawn, so image i of a generator depends on seed i alone, as with any
    other neuron: it is `lif` with another gradient. In training the draws come from torch's random
    state, which a checkpoint holds.

    Args:
        beta: decay of v per time step, in [0, 1].
        threshold: h at which it fires every second time.
        delta: width of the noise, above 0: near 0 it fires as `lif` does.
    """

    is_stochastic = True

    def __init__(self, *, beta: float = 0.5, threshold: float = 1.0, delta: float = 0.25) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise OptionError(f"beta is a decay in [0, 1], given {beta}")
        if not (threshold > 0 and delta > 0):
            raise OptionError(f"threshold and delta are above 0, given {threshold} and {delta}")
        self.beta, self.threshold, self.delta = beta, threshold, delta

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        h = self.beta * v + current
        p = torch.sigmoid((h - self.threshold) / self.delta)
        # In eval mode h is asked: near 1/2, p is rounded.
        fires = torch.rand_like(p) < p if self.training else h >= self.threshold
        spikes = fires.to(p.dtype) + (p - p.detach())  # adds 0 but for the gradient
        return spikes.to(current.dtype), (h - spikes * self.threshold,)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}, delta={self.delta}"
