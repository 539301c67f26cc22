"""Any other neuron than the LIF family: its `step` compiled by torch, no graph per time step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from spikezoo.backends.reference import Step, gradients, loop
from spikezoo.neurons import Neuron, State

log = logging.getLogger(__name__)


def run(neuron: Neuron, current: Tensor, state: State) -> tuple[Tensor, State]:
    """Current [T, N, *] and the first state -> spikes [T, N, *], the last state."""
    spikes, *last = _Compiled.apply(neuron, current, len(state), *state, *neuron.parameters())
    return spikes, tuple(last)


class _Compiled(torch.autograd.Function):
    """Runs a compiled `step` over T and keeps only the inputs for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, neuron: Neuron, current: Tensor, states: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(current, *tensors)
        ctx.neuron, ctx.states = neuron, states
        ctx.set_materialize_grads(False)
        spikes, last = loop(_compiled_step(neuron), current, tensors[:states])
        return (spikes, *last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        neuron, inputs, states = ctx.neuron, ctx.saved_tensors, ctx.states
        if torch.is_grad_enabled():  # compiled graphs have no second derivative, `step` has
            found = _gradients_with_graph(neuron, inputs, states, grads)
        else:
            # Leaves of their own: the graph that led to the inputs is not ours to walk.
            leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs[: 1 + states]]
            leaves += inputs[1 + states :]
            with torch.enable_grad():
                spikes, last = loop(
                    _compiled_step(neuron), leaves[0], tuple(leaves[1 : 1 + states])
                )
            found = gradients([spikes, *last], grads, leaves, create_graph=False)
        return None, found[0], None, *found[1:]


def _compiled_step(neuron: Neuron) -> Step:
    """The neuron's step, compiled once per class: by neuron, every one would be kept alive."""
    kind = type(neuron)
    return partial(or_plain(kind.step, kind.__name__), neuron)


@cache
def or_plain(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function compiled; from the first failure on, as it is. The name is for the warning."""
    fast: Callable[..., Any] | None = torch.compile(function, dynamic=True)

    def call(*args: Any) -> Any:
        nonlocal fast
        if fast is not None:
            try:
                return fast(*args)
            except Exception as error:  # noqa: BLE001  # no compiler here, or code beyond it
                log.warning("%s runs uncompiled: %s", name, error)
                fast = None
        return function(*args)

    return call


def _gradients_with_graph(
    neuron: Neuron, inputs: tuple[Tensor, ...], states: int, grads: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """Gradients of [current, *state, *parameters] that can be differentiated once more."""
    # Aliases: a state may come from this very current or these parameters, as in streaming, and
    # what reaches them by way of the state is not ours to count.
    current, *others = (x.view_as(x) for x in inputs)
    names = [f"neuron.{name}" for name, _ in neuron.named_parameters()]
    parameters = dict(zip(names, others[states:], strict=True))
    module = _Step(neuron)

    def step(x: Tensor, state: State) -> tuple[Tensor, State]:
        spikes, after = torch.func.functional_call(module, parameters, (x, state))
        return spikes, after

    spikes, last = loop(step, current, tuple(others[:states]))
    return gradients([spikes, *last], grads, [current, *others], create_graph=True)


class _Step(torch.nn.Module):
    """A neuron's step as a module's forward, so that its parameters can be replaced in a call."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        return self.neuron.step(current, state)
