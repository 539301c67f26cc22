"""Current-based leaky integrate-and-fire: `lif` behind a synapse that stretches each current.

    i[t] = synaptic_beta i[t-1] + x[t]
    h[t] = beta v[t-1] + i[t],  then fires and is reset as `lif`

Source: Gerstner, Kistler, Naud, Paninski, "Neuronal Dynamics" (2014), section 3.1, exponential
synapses; the discrete form is that of Eshraghian et al., "Training spiking neural networks using
lessons from deep learning" (2023). A reset leaves i alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikezoo.neurons import State
from spikezoo.neurons.threshold import Reset, ThresholdNeuron, check_decay


class CUBA(ThresholdNeuron):
    """LIF with a synaptic current; its state is (i [N, *], v [N, *]), both 0 at rest.

    Args:
        beta: decay of v per time step, in [0, 1].
        synaptic_beta: decay of i per time step, in [0, 1]; 0 is `lif`. The others as
            `ThresholdNeuron`.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        synaptic_beta: float = 0.5,
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
        self.synaptic_beta = check_decay("synaptic_beta", synaptic_beta)

    def initial_state(self, current: Tensor) -> State:
        (v,) = super().initial_state(current)
        return torch.zeros_like(v), v

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        i, v = state
        i = self.synaptic_beta * i + current
        h = self.beta * v + i
        spikes = self.fire(h - self.threshold)
        return spikes.to(current.dtype), (i, self.after_reset(h, spikes))
