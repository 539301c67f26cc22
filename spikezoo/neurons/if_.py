"""Integrate-and-fire: `lif` without the leak.

    h[t] = v[t-1] + x[t],  then fires and is reset as `lif`

Source: Gerstner, Kistler, Naud, Paninski, "Neuronal Dynamics" (2014), section 1.3.
"""

from __future__ import annotations

from torch import Tensor

from spikezoo.neurons import State
from spikezoo.neurons.threshold import Reset, ThresholdNeuron


class IF(ThresholdNeuron):
    """Integrate-and-fire; its state is the membrane potential (v [N, *],) after the reset."""

    def __init__(
        self,
        *,
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

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        h = v + current
        spikes = self.fire(h - self.threshold)
        return spikes.to(current.dtype), (self.after_reset(h, spikes),)
