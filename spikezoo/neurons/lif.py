"""Leaky integrate-and-fire.

    h[t] = beta v[t-1] + x[t]
    s[t] = H(h[t] - threshold),  H(0) = 1
    v[t] = h[t] - s[t] threshold     (soft reset)
    v[t] = (1 - s[t]) h[t]           (hard reset)

Source: Gerstner, Kistler, Naud, Paninski, "Neuronal Dynamics" (2014), section 1.3, in the discrete
form of Eshraghian et al., "Training spiking neural networks using lessons from deep learning"
(2023). The membrane time constant is tau = 1 / (1 - beta).
"""

from __future__ import annotations

from torch import Tensor

from spikezoo.neurons import State
from spikezoo.neurons.threshold import Reset, ThresholdNeuron, check_decay


class LIF(ThresholdNeuron):
    """Leaky integrate-and-fire; its state is the membrane potential (v [N, *],) after the reset.

    Args:
        beta: decay of v per time step, in [0, 1]; the others as `ThresholdNeuron`.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
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
        self.beta = check_decay("beta", beta)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        h = self.beta * v + current
        spikes = self.fire(h - self.threshold)
        return spikes.to(current.dtype), (self.after_reset(h, spikes),)
