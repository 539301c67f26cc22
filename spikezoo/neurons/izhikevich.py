"""Izhikevich's neuron: a quadratic upstroke and a slow recovery; fires in many patterns.

    I    = gain x[t] / threshold
    h[t] = v[t-1] + dt (0.04 v[t-1]^2 + 5 v[t-1] + 140 - r[t-1] + I) / w
    w    = 1 + dt max(0, -(0.08 v[t-1] + 5))
    q[t] = r[t-1] + dt a (b h[t] - r[t-1])
    s[t] = H((h[t] - 30) / 100)
    v[t] = (1 - s[t]) h[t] + s[t] c,  r[t] = q[t] + s[t] d

v and r (the paper's u) are in mV, dt in ms. w is Euler's method made linearly implicit where the
equation contracts, below -62.5 mV, and plain above: the explicit step overshoots under a strong
negative current, and neurons fire because they are inhibited. The surrogate sees the distance to
the peak of 30 mV in units of the 100 mV from rest to peak, so alpha means what it does in `lif`.

Source: Izhikevich, "Simple model of spiking neurons" (2003). The four numbers make the pattern:
(a, b, c, d) = (0.02, 0.2, -65, 8) regular spiking, (0.02, 0.2, -50, 2) chattering,
(0.1, 0.2, -65, 2) fast spiking, (0.02, 0.25, -65, 2) low-threshold spiking.
"""

from __future__ import annotations

import math

from torch import Tensor

from spikezoo.errors import OptionError
from spikezoo.neurons import State
from spikezoo.neurons.threshold import ThresholdNeuron

PEAK = 30.0  # mV
SPAN = 100.0  # mV, from the usual rest at -70 to the peak
# Beyond this b the model has no resting potential: it fires without any current.
LARGEST_B = 5 - math.sqrt(4 * 0.04 * 140)


class Izhikevich(ThresholdNeuron):
    """Izhikevich's two equations; its state is (v [N, *], r [N, *]) in mV, starting at rest.

    The model's own threshold depends on its past, so here `threshold` is a size of current: one
    `threshold` of current x is `gain` of the paper's I. From rest a constant I of 20 fires after
    4 ms; with the default gain of 100, about a fifth of the neurons fire per step, as of `lif`,
    where normal currents have that spread and T is 4.

    Args:
        a: rate of the recovery r, per ms.
        b: sensitivity of r to v, at most 0.267, where the model loses its rest.
        c: v after a spike.
        d: what a spike adds to r.
        dt: length of a time step in ms, in (0, 1].
        gain: I of a current of one threshold, above 0.
        detach_reset: True by default, unlike elsewhere: the upstroke multiplies whatever gradient
            comes through a reset of 100 mV and more, and networks then do not learn. The others as
            `ThresholdNeuron`.
    """

    def __init__(
        self,
        *,
        a: float = 0.02,
        b: float = 0.2,
        c: float = -65.0,
        d: float = 8.0,
        dt: float = 1.0,
        gain: float = 100.0,
        threshold: float = 1.0,
        detach_reset: bool = True,
        surrogate: str = "atan",
        alpha: float = 2.0,
    ) -> None:
        super().__init__(
            threshold=threshold,
            reset="hard",
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
        if not b <= LARGEST_B:
            raise OptionError(f"b is at most {LARGEST_B:.4f}, or there is no rest, given {b}")
        if not 0 < dt <= 1:
            raise OptionError(f"dt is a time step of at most 1 ms, given {dt}")
        if not gain > 0:
            raise OptionError(f"gain is above 0, given {gain}")
        self.a, self.b, self.c, self.d = a, b, c, d
        self.dt, self.gain = dt, gain

    def initial_state(self, current: Tensor) -> State:
        """Rest: where 0.04 v^2 + 5 v + 140 = b v, at the lower of the two."""
        slope = 5 - self.b
        rest = (-slope - math.sqrt(slope**2 - 4 * 0.04 * 140)) / (2 * 0.04)
        (zero,) = super().initial_state(current)
        return zero + rest, zero + self.b * rest

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        v, r = state
        drive = current.to(v.dtype) * (self.gain / self.threshold)  # bfloat16 would round it
        rise = 0.04 * v * v + 5 * v + 140 - r + drive
        h = v + self.dt * rise / (1 + self.dt * (-0.08 * v - 5).clamp(min=0))
        q = r + self.dt * self.a * (self.b * h - r)
        spikes = self.fire((h - PEAK) / SPAN)
        reset = spikes.detach() if self.detach_reset else spikes
        return spikes.to(current.dtype), (h + reset * (self.c - h), q + reset * self.d)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, gain={self.gain}, dt={self.dt}"
