"""The definition of every neuron: its own `step`, looped over T, differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from spikezoo.neurons import Neuron, State


class Reference:
    """Loops `step` over T."""

    def supports(self, neuron: Neuron) -> bool:
        return True

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        if state is None:
            state = neuron.initial_state(current[0])
        spikes = []
        for x in current:  # x [N, *]
            s, state = neuron.step(x, state)
            spikes.append(s)
        return torch.stack(spikes), state  # [T, N, *]


REFERENCE = Reference()
