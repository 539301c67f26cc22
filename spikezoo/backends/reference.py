"""The definition of every neuron: its own `step`, looped over T, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spikezoo.neurons import Neuron, State

Step = Callable[[Tensor, State], tuple[Tensor, State]]


def loop(step: Step, current: Tensor, state: State) -> tuple[Tensor, State]:
    """Runs a step over T: current [T, N, *] and the first state -> spikes [T, N, *], the last."""
    spikes = []
    for x in current:  # x [N, *]
        s, state = step(x, state)
        spikes.append(s)
    return torch.stack(spikes), state


class Reference:
    """Loops `step` over T."""

    def supports(self, neuron: Neuron) -> bool:
        return neuron.only_backend is None

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        return loop(
            neuron.step, current, neuron.initial_state(current[0]) if state is None else state
        )


REFERENCE = Reference()
