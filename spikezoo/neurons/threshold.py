"""What neurons with a firing threshold share: when they fire, and what a reset does."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from spikezoo.catalog import registry
from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron
from spikezoo.surrogates import spike

Reset = Literal["soft", "hard"]


class ThresholdNeuron(Neuron):
    """A neuron that fires where h >= threshold and is reset there.

    Args:
        threshold: of h, above 0.
        reset: soft subtracts the threshold, hard goes to 0.
        detach_reset: keep the reset out of the gradient.
        surrogate: derivative of the firing function, by its registered name.
        alpha: slope of the surrogate, above 0.

    Raises:
        OptionError: a value outside its range.
    """

    def __init__(
        self, *, threshold: float, reset: Reset, detach_reset: bool, surrogate: str, alpha: float
    ) -> None:
        super().__init__()
        if not threshold > 0:
            raise OptionError(f"threshold is above 0, given {threshold}")
        if reset not in ("soft", "hard"):
            raise OptionError(f"reset is 'soft' or 'hard', given '{reset}'")
        if not alpha > 0:
            raise OptionError(f"alpha is above 0, given {alpha}")
        self.threshold = threshold
        self.reset = reset
        self.detach_reset = detach_reset
        self.surrogate = surrogate
        self.alpha = alpha
        self.derivative = registry("surrogates").get(surrogate)

    def fire(self, u: Tensor) -> Tensor:
        """H(u), u the distance of h above the threshold, differentiable by the surrogate."""
        return spike(u, self.derivative, self.alpha)

    def after_reset(self, h: Tensor, spikes: Tensor, barrier: Tensor | None = None) -> Tensor:
        """v: h where there is no spike; h - threshold (soft) or 0 (hard) where there is one.

        `barrier` [N, *] is what h had to reach where that is not the constant threshold.
        """
        reset = spikes.detach() if self.detach_reset else spikes
        if self.reset == "hard":
            return (1 - reset) * h
        return h - reset * (self.threshold if barrier is None else barrier)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, reset={self.reset}, surrogate={self.surrogate}"


def check_decay(name: str, value: float) -> float:
    """The value of a decay per time step.

    Raises:
        OptionError: it lies outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is a decay in [0, 1], given {value}")
    return value
