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

from typing import Literal

from torch import Tensor

from spikezoo.catalog import registry
from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron, State
from spikezoo.surrogates import spike


class LIF(Neuron):
    """Leaky integrate-and-fire; its state is the membrane potential (v [N, *],) after the reset.

    Args:
        beta: decay of v per time step, in [0, 1].
        threshold: of h, above 0.
        reset: soft subtracts the threshold, hard goes to 0.
        detach_reset: keep the reset out of the gradient.
        surrogate: derivative of H, by its registered name; `alpha` is its slope.

    Raises:
        OptionError: a value outside its range.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        threshold: float = 1.0,
        reset: Literal["soft", "hard"] = "soft",
        detach_reset: bool = False,
        surrogate: str = "atan",
        alpha: float = 2.0,
    ) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise OptionError(f"beta is a decay in [0, 1], given {beta}")
        if not threshold > 0:
            raise OptionError(f"threshold is above 0, given {threshold}")
        if reset not in ("soft", "hard"):
            raise OptionError(f"reset is 'soft' or 'hard', given '{reset}'")
        if not alpha > 0:
            raise OptionError(f"alpha is above 0, given {alpha}")
        self.beta = beta
        self.threshold = threshold
        self.reset = reset
        self.detach_reset = detach_reset
        self.surrogate = surrogate
        self.alpha = alpha
        self.derivative = registry("surrogates").get(surrogate)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        h = self.beta * v + current
        spikes = spike(h - self.threshold, self.derivative, self.alpha)
        reset = spikes.detach() if self.detach_reset else spikes
        v = h - reset * self.threshold if self.reset == "soft" else (1 - reset) * h
        return spikes.to(current.dtype), (v,)

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, threshold={self.threshold}, reset={self.reset}, "
            f"surrogate={self.surrogate}"
        )
