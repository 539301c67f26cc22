"""Spiking neurons: one file each, with the equation as one pure `step`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikezoo.catalog import registry

State = tuple[Tensor, ...]


class Neuron(nn.Module):
    """A spiking layer: current [T, N, *] -> spikes [T, N, *], time first, stateless between calls.

    A neuron of one's own derives from this and defines `step` (and `initial_state` where its
    state is not one membrane potential that starts at 0). `threshold` is the size of current
    that makes it fire; networks scale their initial currents by it. A step that draws random
    numbers, which it may in training mode only, says `is_stochastic`; a neuron that is a library's
    own names its `only_backend`.
    """

    is_spiking = True
    is_stochastic = False
    only_backend: str | None = None
    backend: str = "native"
    threshold: float = 1.0

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step: current [N, *] and the state before it -> spikes [N, *], state after.

        Pure: reads its arguments and the neuron's own constants and parameters, changes nothing.
        """
        raise NotImplementedError

    def initial_state(self, current: Tensor) -> State:
        """The state before the first step, for a current [N, *] of one step; float32 or wider."""
        wide = torch.promote_types(current.dtype, torch.float32)
        return (torch.zeros_like(current, dtype=wide),)

    def run(self, current: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Current [T, N, *] from a given state (rest by default) -> spikes [T, N, *], last state.

        The explicit call for streaming: pass the state on to continue where the last call ended.
        """
        spikes, last = registry("backends").get(self.backend).run(self, current, state)
        return spikes, last

    def forward(self, current: Tensor) -> Tensor:
        """Current [T, N, *] -> spikes [T, N, *], from rest."""
        return self.run(current)[0]
