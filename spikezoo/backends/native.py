"""Our own fast path: LIF with an explicit backward pass through time.

The forward pass stores nothing but its input; the backward pass computes the membrane potentials
again and then walks back through time, so autograd keeps no graph per time step. With u = h -
threshold, s' the surrogate derivative, g the gradient of the spikes and G that of v:

    g_reset[t] = g[t] - threshold G[t]   (soft)      G_h[t] = G[t] + g_reset[t] s'(u[t])
    g_reset[t] = g[t] - h[t] G[t]        (hard)      G_h[t] = (1 - s[t]) G[t] + g_reset[t] s'(u[t])
    grad x[t] = G_h[t],  G[t-1] = beta G_h[t]        (detach_reset: g_reset[t] = g[t])

One pass over memory in C where the kernel was built (`spikezoo.backends.kernel`), else in torch.
Neurons without a path of their own here run as `reference` defines them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikezoo.backends import kernel
from spikezoo.backends.reference import REFERENCE
from spikezoo.neurons import Neuron, State
from spikezoo.neurons.lif import LIF


class Native:
    """Explicit backpropagation through time where we wrote it, `reference` everywhere else."""

    def supports(self, neuron: Neuron) -> bool:
        return True

    def run(
        self, neuron: Neuron, current: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        # A subclass may have another step. Under torch.compile the plain loop is the better
        # input: the compiler fuses it by itself.
        if type(neuron) is not LIF or torch.compiler.is_compiling():
            return REFERENCE.run(neuron, current, state)
        (v,) = neuron.initial_state(current[0]) if state is None else state
        if v.shape != current.shape[1:] or v.device != current.device or v.dtype != _wide(current):
            return REFERENCE.run(neuron, current, state)  # broadcasts, promotes, or complains
        spikes, v = _LIF.apply(current, v, neuron)
        return spikes, (v,)


NATIVE = Native()


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, current: Tensor, v: Tensor, neuron: LIF) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(current, v)
        ctx.neuron = neuron
        ctx.set_materialize_grads(False)
        if kernel.usable(neuron, current):
            return kernel.forward(neuron, current, v)
        spikes = _empty_over_time(current)
        for x, s in zip(current, spikes, strict=True):
            h = _integrate(v, x, neuron)
            torch.ge(h, neuron.threshold, out=s)
            v = _reset(h, s, neuron)
        return spikes, v

    @staticmethod
    def backward(
        ctx: Any, g_spikes: Tensor | None, g_v: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        current, v = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second backward pass is wanted, as by R1
            return (*_differentiable_backward(ctx.neuron, current, v, g_spikes, g_v), None)
        compute = kernel.backward if kernel.usable(ctx.neuron, current) else _backward
        return (*compute(ctx.neuron, current, v, g_spikes, g_v), None)


def _wide(current: Tensor) -> torch.dtype:
    return torch.promote_types(current.dtype, torch.float32)


def _empty_over_time(current: Tensor) -> Tensor:
    """An empty [T, N, *] whose steps lie in memory as those of `current`, one behind another.

    `empty_like` would not do: a current that is the same at every step has stride 0 over T.
    """
    step = torch.empty_like(current[0])
    return torch.empty_strided(
        current.shape, (step.numel(), *step.stride()), dtype=current.dtype, device=current.device
    )


def _integrate(v: Tensor, x: Tensor, neuron: LIF) -> Tensor:
    # Two roundings as in `step`: add(x, v, alpha=beta) would fuse them and move ties.
    return (v * neuron.beta).add_(x)


def _reset(h: Tensor, spikes: Tensor, neuron: LIF) -> Tensor:
    if neuron.reset == "soft":
        return h.sub(spikes, alpha=neuron.threshold)  # exact: spikes are 0 or 1
    return h.masked_fill(spikes.bool(), 0.0)


def _backward(
    neuron: LIF, current: Tensor, v: Tensor, g_spikes: Tensor | None, g_v: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    potentials = []  # h before the reset, for each step
    for x in current:
        h = _integrate(v, x, neuron)
        v = _reset(h, (h >= neuron.threshold).to(h.dtype), neuron)
        potentials.append(h)
    grad = _empty_over_time(current)
    for t in reversed(range(len(potentials))):
        h = potentials.pop()
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
        g_v = g_h * neuron.beta
    return grad, g_v


def _differentiable_backward(
    neuron: LIF, current: Tensor, v: Tensor, g_spikes: Tensor | None, g_v: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The same gradients with a graph of their own, by autograd through `reference`."""
    # Aliases: v may itself come from this very current, as in streaming, and the gradient that
    # reaches the current by way of v is not ours to count.
    current, v = current.view_as(current), v.view_as(v)
    spikes, (last,) = REFERENCE.run(neuron, current, (v,))
    pairs = [(out, g) for out, g in ((spikes, g_spikes), (last, g_v)) if g is not None]
    wanted = [tensor for tensor in (current, v) if tensor.requires_grad]
    grads = torch.autograd.grad(
        [out for out, _ in pairs], wanted, [g for _, g in pairs], create_graph=True
    )
    found = iter(grads)
    return (
        next(found) if current.requires_grad else None,
        next(found) if v.requires_grad else None,
    )
