"""Parametric leaky integrate-and-fire: `lif` with a learned decay.

    beta = sigmoid(w),  h[t] = beta v[t-1] + x[t],  then fires and is reset as `lif`

Source: Fang et al., "Incorporating learnable membrane time constant to enhance learning of spiking
neural networks" (2021). There 1/tau = sigmoid(a) and the input is decayed too; here tau =
1 / (1 - beta) and the input is not, so that beta means the same in every neuron and backend.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spikezoo.errors import OptionError
from spikezoo.neurons import State
from spikezoo.neurons.threshold import Reset, ThresholdNeuron


class PLIF(ThresholdNeuron):
    """LIF with one learned beta per layer; its state is (v [N, *],) after the reset.

    Args:
        beta: decay of v per time step at the start, in (0, 1); the others as `ThresholdNeuron`.
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
        if not 0 < beta < 1:
            raise OptionError(f"beta of plif starts between 0 and 1, given {beta}")
        self.w = nn.Parameter(torch.tensor(math.log(beta / (1 - beta))))

    @property
    def beta(self) -> Tensor:
        """The present decay, a scalar in (0, 1)."""
        return torch.sigmoid(self.w)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        h = self.beta * v + current
        spikes = self.fire(h - self.threshold)
        return spikes.to(current.dtype), (self.after_reset(h, spikes),)
