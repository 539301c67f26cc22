"""Our own fast paths.

LIF, IF and PLIF have an explicit backward pass through time. The forward pass stores nothing but
its input; the backward pass computes the membrane potentials again and then walks back through
time, so autograd keeps no graph per time step. With u = h - threshold, s' the surrogate derivative,
g the gradient of the spikes and G that of v:

    g_reset[t] = g[t] - threshold G[t]   (soft)      G_h[t] = G[t] + g_reset[t] s'(u[t])
    g_reset[t] = g[t] - h[t] G[t]        (hard)      G_h[t] = (1 - s[t]) G[t] + g_reset[t] s'(u[t])
    grad x[t] = G_h[t],  G[t-1] = beta G_h[t]        (detach_reset: g_reset[t] = g[t])

One pass over memory in C where the kernel was built (`spikezoo.backends.kernel`), else in torch.
Any other neuron runs its `step` compiled by torch, also without a graph per time step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikezoo import time_axis
from spikezoo.backends import kernel
from spikezoo.backends.reference import REFERENCE, Step, loop
from spikezoo.neurons import Neuron, State
from spikezoo.neurons.if_ import IF
from spikezoo.neurons.lif import LIF
from spikezoo.neurons.plif import PLIF

log = logging.getLogger(__name__)

# A subclass may have another step, so the type is compared exactly.
FUSED = (LIF, IF, PLIF)
# Compiling takes seconds, which fewer elements than these per call never bring back.
WORTH_COMPILING = 2**18


class Native:
    """The fused path for the LIF family, the compiled one for all else."""

    def supports(self, neuron: Neuron) -> bool:
        return neuron.only_backend is None

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        # Under torch.compile the plain loop is the better input: the compiler fuses it by itself.
        if torch.compiler.is_compiling():
            return REFERENCE.run(neuron, current, state)
        if type(neuron) in FUSED:
            (v,) = neuron.initial_state(current[0]) if state is None else state
            if (v.shape, v.device, v.dtype) == (current.shape[1:], current.device, _wide(current)):
                spikes, v = _Fused.apply(neuron, current, v, *neuron.parameters())
                return spikes, (v,)
        elif current.numel() >= WORTH_COMPILING and not neuron.is_stochastic:
            first = neuron.initial_state(current[0]) if state is None else state
            spikes, *last = _Compiled.apply(
                neuron, current, len(first), *first, *neuron.parameters()
            )
            return spikes, tuple(last)
        return REFERENCE.run(neuron, current, state)


NATIVE = Native()


def _beta(neuron: LIF | IF | PLIF) -> float:
    return 1.0 if isinstance(neuron, IF) else float(neuron.beta)


def _wide(current: Tensor) -> torch.dtype:
    return torch.promote_types(current.dtype, torch.float32)


# --- LIF, IF, PLIF --------------------------------------------------------------------------


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, neuron: LIF | IF | PLIF, current: Tensor, v: Tensor, *w: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(current, v, *w)
        ctx.neuron, ctx.beta = neuron, _beta(neuron)
        ctx.set_materialize_grads(False)
        if kernel.usable(neuron, current):
            return kernel.forward(neuron, ctx.beta, current, v)
        beta = ctx.beta
        spikes = time_axis.empty(current)
        for x, s in zip(current, spikes, strict=True):
            h = _integrate(v, x, beta)
            torch.ge(h, neuron.threshold, out=s)
            v = _reset(h, s, neuron)
        return spikes, v

    @staticmethod
    def backward(ctx: Any, g_spikes: Tensor | None, g_v: Tensor | None) -> tuple[Any, ...]:
        neuron, beta = ctx.neuron, ctx.beta
        current, v, *w = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second backward pass is wanted, as by R1
            return None, *_gradients_with_graph(neuron, ctx.saved_tensors, 1, (g_spikes, g_v))
        learns = any(ctx.needs_input_grad[3:])
        compute = kernel.backward if kernel.usable(neuron, current) else _backward
        g_current, g_v, g_beta = compute(neuron, beta, current, v, g_spikes, g_v, learns)
        g_w = [None if g_beta is None else g_beta * beta * (1 - beta) for _ in w]  # of a sigmoid
        return None, g_current, g_v, *g_w


def _integrate(v: Tensor, x: Tensor, beta: float) -> Tensor:
    # Two roundings as in `step`: add(x, v, alpha=beta) would fuse them and move ties.
    return (v * beta).add_(x)


def _reset(h: Tensor, spikes: Tensor, neuron: LIF | IF | PLIF) -> Tensor:
    if neuron.reset == "soft":
        return h.sub(spikes, alpha=neuron.threshold)  # exact: spikes are 0 or 1
    return h.masked_fill(spikes.bool(), 0.0)


def _backward(
    neuron: LIF | IF | PLIF,
    beta: float,
    current: Tensor,
    v: Tensor,
    g_spikes: Tensor | None,
    g_v: Tensor | None,
    wants_beta: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    potentials = []  # (v before, h) for each step
    for x in current:
        h = _integrate(v, x, beta)
        potentials.append((v, h))
        v = _reset(h, (h >= neuron.threshold).to(h.dtype), neuron)
    grad = time_axis.empty(current)
    g_beta = torch.zeros((), dtype=v.dtype, device=v.device) if wants_beta else None
    for t in reversed(range(len(potentials))):
        before, h = potentials.pop()
        u = h - neuron.threshold
        g_reset = None if g_spikes is None else g_spikes[t]
        if g_v is not None and not neuron.detach_reset:
            back = g_v * neuron.threshold if neuron.reset == "soft" else g_v * h
            g_reset = -back if g_reset is None else g_reset - back
        if g_v is not None and neuron.reset == "hard":
            g_v = g_v.masked_fill(u >= 0, 0.0)
        if g_reset is None:
            g_h = torch.zeros_like(h) if g_v is None else g_v
        else:
            g_h = neuron.derivative(u, neuron.alpha).mul_(g_reset)
            if g_v is not None:
                g_h.add_(g_v)
        grad[t] = g_h
        if g_beta is not None:
            g_beta += (g_h * before).sum()
        g_v = g_h * beta
    return grad, g_v, g_beta


# --- any other neuron -----------------------------------------------------------------------


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
            found = _gradients([spikes, *last], grads, leaves, create_graph=False)
        return None, found[0], None, *found[1:]


# By class: a table by neuron would keep every neuron alive through its own compiled method.
_STEPS: dict[type[Neuron], Callable[..., Any]] = {}


def _compiled_step(neuron: Neuron) -> Step:
    """The neuron's step, compiled once per class; the step itself where it cannot be compiled."""
    kind = type(neuron)
    if kind not in _STEPS:
        _STEPS[kind] = torch.compile(kind.step, dynamic=True)

    def step(current: Tensor, state: State) -> tuple[Tensor, State]:
        if _STEPS[kind] is not kind.step:
            try:
                spikes, after = _STEPS[kind](neuron, current, state)
                return spikes, after
            except Exception as error:  # noqa: BLE001  # no compiler here, or a step beyond it
                log.warning("%s runs uncompiled: %s", kind.__name__, error)
                _STEPS[kind] = kind.step
        return neuron.step(current, state)

    return step


# --- gradients by autograd ------------------------------------------------------------------


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
    return _gradients([spikes, *last], grads, [current, *others], create_graph=True)


class _Step(torch.nn.Module):
    """A neuron's step as a module's forward, so that its parameters can be replaced in a call."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        return self.neuron.step(current, state)


def _gradients(
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
