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


def gradients(
    outputs: list[Tensor],
    grads: tuple[Tensor | None, ...],
    inputs: list[Tensor],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    """torch.autograd.grad, with None for outputs without a gradient and inputs that want none."""
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and output.requires_grad
    ]
    wanted = [x for x in inputs if x.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            wanted,
            [grad for _, grad in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if x.requires_grad else None for x in inputs]


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
