"""Time to first spike: integrates, fires once at most, and is silent ever after.

    h[t] = beta v[t-1] + x[t]
    s[t] = (1 - f[t-1]) H(h[t] - threshold),  H(0) = 1
    v[t] = h[t]
    f[t] = f[t-1] + s[t]             (has fired: 0 or 1)

The message is when it fires, and the stronger the current the sooner. `readout=mean` sees only
whether it fired; `readout=weighted` and `readout=membrane` see when.

Source: Kotariya, Ganguly, "Spiking-GAN: a spiking generative adversarial network using
time-to-first-spike coding" (2021), whose neurons have no leak, as here by default; the learning
rule behind it is that of Kheradpisheh, Masquelier, "Temporal backpropagation for spiking neural
networks with one spike per neuron" (2020). Here surrogate gradients stand in for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikezoo.neurons import State
from spikezoo.neurons.threshold import ThresholdNeuron, check_decay


class TTFS(ThresholdNeuron):
    """Fires at most once per run; its state is (v [N, *], f [N, *]), both 0 at rest.

    It needs no reset, since a potential beyond the first spike has no effect. The state carries
    "has fired": pass it on only while the same sample goes on.

    Args:
        beta: decay of v per time step, in [0, 1].
        detach_reset: keep the silence after the spike out of the gradient; the others as
            `ThresholdNeuron`.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        threshold: float = 1.0,
        detach_reset: bool = False,
        surrogate: str = "atan",
        alpha: float = 2.0,
    ) -> None:
        super().__init__(
            threshold=threshold,
            reset="soft",
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
        self.beta = check_decay("beta", beta)

    def initial_state(self, current: Tensor) -> State:
        (v,) = super().initial_state(current)
        return v, torch.zeros_like(v)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        v, fired = state
        h = self.beta * v + current
        spikes = (1 - fired) * self.fire(h - self.threshold)
        fired = fired + (spikes.detach() if self.detach_reset else spikes)
        return spikes.to(current.dtype), (h, fired)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, surrogate={self.surrogate}"
