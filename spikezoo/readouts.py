"""From spikes to real values: [T, N, C, *] -> [N, C, *].

Each is a weighted mean over T with weights that add up to 1, so its range is that of its input
and anything affine behind it may as well stand in front of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikezoo import time_axis
from spikezoo.errors import OptionError


class Mean(nn.Module):
    """The firing rate: mean over T."""

    def __init__(self, T: int) -> None:
        super().__init__()

    def forward(self, spikes: Tensor) -> Tensor:
        return time_axis.total(spikes) / len(spikes)


class Membrane(nn.Module):
    """The last membrane potential of a leaky integrator that never fires.

        v[t] = beta v[t-1] + s[t],   out = v[T] / (1 + beta + ... + beta^(T-1))

    The divisor, its greatest value, makes the scale independent of T.
    """

    def __init__(self, T: int, *, beta: float = 0.5) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise OptionError(f"readout.beta is a decay in [0, 1], given {beta}")
        self.beta = beta

    def forward(self, spikes: Tensor) -> Tensor:
        weights = self.beta ** torch.arange(len(spikes) - 1, -1, -1, device=spikes.device)
        return time_axis.weighted_total(spikes, weights / weights.sum())


class Weighted(nn.Module):
    """One learned weight per time step, shared by samples: the mean at first.

    The weights are the softmax of its parameter [T], which T=1 does not have: one weight is 1.
    Usable at the T it was made for only.
    """

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T
        self.weight = nn.Parameter(torch.zeros(T)) if T > 1 else None

    def forward(self, spikes: Tensor) -> Tensor:
        if len(spikes) != self.T:
            raise OptionError(
                f"readout=weighted learned one weight for each of T={self.T} steps and cannot "
                f"read T={len(spikes)}; use readout=mean or membrane to change T"
            )
        if self.weight is None:
            return spikes[0]
        return time_axis.weighted_total(spikes, self.weight.softmax(0))
