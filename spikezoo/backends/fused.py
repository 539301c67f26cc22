"""LIF, IF and PLIF over all T as one operator of torch, to torch.compile and DDP like any other.

The forward pass stores nothing but its input; the backward pass computes the membrane potentials
again and then walks back through time, so autograd keeps no graph per time step. With
u = h - threshold, s' the surrogate derivative, g the gradient of the spikes and G that of v:

    g_reset[t] = g[t] - threshold G[t]   (soft)      G_h[t] = G[t] + g_reset[t] s'(u[t])
    g_reset[t] = g[t] - h[t] G[t]        (hard)      G_h[t] = (1 - s[t]) G[t] + g_reset[t] s'(u[t])
    grad x[t] = G_h[t],  G[t-1] = beta G_h[t]        (detach_reset: g_reset[t] = g[t])

One pass over memory in C where the kernel was built (`spikezoo.backends.kernel`), else in torch: in
float64, with a surrogate that the kernel does not know, and on a GPU, for which torch's compiler
makes one kernel of the loop. (That may fuse beta v + x into one rounding: a current within a
rounding of the threshold may fire there and not here.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor

from spikezoo import time_axis
from spikezoo.backends import compiled, kernel
from spikezoo.backends.kernel import Equation
from spikezoo.backends.reference import gradients, loop
from spikezoo.neurons import Neuron, State
from spikezoo.neurons.if_ import IF
from spikezoo.neurons.lif import LIF
from spikezoo.neurons.plif import PLIF
from spikezoo.neurons.threshold import ThresholdNeuron

COMPILED_ON = ("cuda",)


def has(neuron: Neuron) -> TypeGuard[LIF | IF | PLIF]:
    """Whether the operator computes a neuron; a subclass may have another step."""
    return type(neuron) in (LIF, IF, PLIF)


def run(neuron: LIF | IF | PLIF, current: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
    """Current [T, N, *] and first v [N, *], or None for rest -> spikes [T, N, *], last v [N, *]."""
    arguments = _arguments(neuron, current, v)
    spikes, last = lif(*arguments) if _is_traced(current) else _Lif.apply(*arguments)
    return spikes, last


def rate(neuron: LIF | IF | PLIF, current: Tensor) -> Tensor:
    """Current [T, N, *], one that the kernel computes -> mean of the spikes over T [N, *]."""
    arguments = _arguments(neuron, current, None)
    return lif_rate(*arguments) if _is_traced(current) else _LifRate.apply(*arguments)


def can_rate(neuron: Neuron, current: Tensor) -> TypeGuard[LIF | IF | PLIF]:
    """Whether `rate` computes a neuron on a current."""
    return has(neuron) and kernel.usable(_equation(neuron), current)


def _arguments(neuron: LIF | IF | PLIF, current: Tensor, v: Tensor | None) -> tuple[Any, ...]:
    beta = 1.0 if isinstance(neuron, IF) else neuron.beta
    if not isinstance(beta, Tensor):  # as exact as the number that `step` takes
        beta = torch.scalar_tensor(beta, dtype=torch.float64)
    T, step = len(current), time_axis.one_step(current)
    if step is not None:  # read once, and its gradient written once
        current = step[None]
    return current, v, beta, T, *_equation(neuron)


def fits(current: Tensor, v: Tensor) -> bool:
    """Whether a state is of the shape, device and type that the operator takes."""
    wanted = (current.shape[1:], current.device, _wide(current))
    return (v.shape, v.device, v.dtype) == wanted


def _equation(neuron: ThresholdNeuron) -> Equation:
    return Equation(
        neuron.threshold, neuron.reset, neuron.detach_reset, neuron.surrogate, neuron.alpha
    )


def _wide(current: Tensor) -> torch.dtype:
    return torch.promote_types(current.dtype, torch.float32)


def _is_traced(current: Tensor) -> bool:
    """Whether somebody looks at the operators that are called: a compiler, a mode, a transform."""
    return (
        torch.compiler.is_compiling()
        or type(current) is not Tensor
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def _choose(
    equation: Equation, current: Tensor, by_kernel: Callable[..., Any], in_torch: Callable[..., Any]
) -> Callable[..., Any]:
    """Who computes: the kernel where it can, else torch, compiled on some devices."""
    if kernel.usable(equation, current):
        return by_kernel
    if current.device.type in COMPILED_ON:
        return compiled.or_plain(in_torch, "the operator of lif, if and plif")
    return in_torch


# --- the operators --------------------------------------------------------------------------

# A current of one step [1, N, *] is the same at each of the T. The last arguments are an Equation.


@torch.library.custom_op("spikezoo::lif", mutates_args=())
def lif(
    current: Tensor,
    v: Tensor | None,
    beta: Tensor,
    T: int,
    threshold: float,
    reset: str,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Current [T or 1, N, *], first v [N, *] or None, beta [] -> spikes [T, N, *], last v."""
    equation = Equation(threshold, reset, detach_reset, surrogate, alpha)
    compute = _choose(equation, current, kernel.forward, _forward)
    return compute(equation, current, v, beta, T)


@lif.register_fake
def _(
    current: Tensor, v: Tensor | None, beta: Tensor, T: int, *equation: Any
) -> tuple[Tensor, Tensor]:
    return time_axis.empty(current[0], T), _empty_state(current)


@torch.library.custom_op("spikezoo::lif_rate", mutates_args=())
def lif_rate(
    current: Tensor,
    v: Tensor | None,
    beta: Tensor,
    T: int,
    threshold: float,
    reset: str,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> Tensor:
    """As `lif` -> the mean of the spikes over T [N, *], for what the kernel computes only."""
    equation = Equation(threshold, reset, detach_reset, surrogate, alpha)
    return kernel.rate(equation, current, v, beta, T)


@lif_rate.register_fake
def _(current: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(current[0], memory_format=time_axis.order(current[0]))


@torch.library.custom_op("spikezoo::lif_backward", mutates_args=())
def lif_backward(
    g_spikes: Tensor | None,
    g_v: Tensor | None,
    current: Tensor,
    v: Tensor | None,
    beta: Tensor,
    T: int,
    learns: bool,
    threshold: float,
    reset: str,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the spikes [T, N, *] and the last v [N, *], None where there is none -> those of
    the current, summed over T if it is one step, of the first v, empty if that is None, and of
    beta, 0 unless it learns."""
    equation = Equation(threshold, reset, detach_reset, surrogate, alpha)
    compute = _choose(equation, current, kernel.backward, _backward)
    return compute(equation, g_spikes, g_v, current, v, beta, T, learns)


@lif_backward.register_fake
def _(
    g_spikes: Tensor | None,
    g_v: Tensor | None,
    current: Tensor,
    v: Tensor | None,
    beta: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    first = current.new_empty(0) if v is None else _empty_state(current)
    return time_axis.empty(current[0], len(current)), first, torch.empty_like(beta)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    current, v, beta, ctx.T, *equation = inputs
    ctx.save_for_backward(current, v, beta)
    ctx.equation = Equation(*equation)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, g_spikes: Tensor | None, g_v: Tensor | None, op: bool = True
) -> tuple[Any, ...]:
    current, v, beta = ctx.saved_tensors
    found: tuple[Tensor | None, ...]
    if torch.is_grad_enabled():  # a second backward pass is wanted, as by R1
        found = _gradients_with_graph(ctx.equation, g_spikes, g_v, current, v, beta, ctx.T)
    else:
        rest = (g_spikes, g_v, current, v, beta, ctx.T, ctx.needs_input_grad[2])
        if op:
            found = lif_backward(*rest, *ctx.equation)
        else:
            found = _choose(ctx.equation, current, kernel.backward, _backward)(ctx.equation, *rest)
    wanted = zip(found, ctx.needs_input_grad[: len(found)], strict=True)
    return *(g if needed else None for g, needed in wanted), None, *(None for _ in ctx.equation)


def _differentiate_rate(ctx: Any, g_rate: Tensor, op: bool = True) -> tuple[Any, ...]:
    return _differentiate(ctx, (g_rate / ctx.T).expand(ctx.T, *g_rate.shape), None, op)


lif.register_autograd(_differentiate, setup_context=_keep)
lif_rate.register_autograd(_differentiate_rate, setup_context=_keep)


# The same past the dispatcher, whose way to and from Python takes longer than a small layer.


class _Lif(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, v: Tensor | None, beta: Tensor, T: int, *equation: Any
    ) -> tuple[Tensor, Tensor]:
        _keep(ctx, (current, v, beta, T, *equation), None)
        compute = _choose(ctx.equation, current, kernel.forward, _forward)
        return compute(ctx.equation, current, v, beta, T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return _differentiate(ctx, grads[0], grads[1], op=False)


class _LifRate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, current: Tensor, v: Tensor | None, beta: Tensor, T: int, *equation: Any
    ) -> Tensor:
        _keep(ctx, (current, v, beta, T, *equation), None)
        return kernel.rate(ctx.equation, current, v, beta, T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return _differentiate_rate(ctx, grads[0], op=False)


# --- in torch -------------------------------------------------------------------------------


def _forward(
    equation: Equation, current: Tensor, v: Tensor | None, beta: Tensor, T: int
) -> tuple[Tensor, Tensor]:
    spikes, last = time_axis.empty(current[0], T), _empty_state(current)
    v = _rest(current) if v is None else v
    for x, s in zip(_over_time(current, T), spikes, strict=True):
        h = _integrate(v, x, beta)
        torch.ge(h, equation.threshold, out=s)
        v = _reset(h, s, equation)
    return spikes, last.copy_(v)


def _backward(
    equation: Equation,
    g_spikes: Tensor | None,
    g_v: Tensor | None,
    current: Tensor,
    v: Tensor | None,
    beta: Tensor,
    T: int,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    neuron = ThresholdNeuron(**equation._asdict())
    first = current.new_empty(0) if v is None else _empty_state(current)
    v = _rest(current) if v is None else v
    potentials = []  # (v before, h) for each step
    for x in _over_time(current, T):
        h = _integrate(v, x, beta)
        potentials.append((v, h))
        v = _reset(h, (h >= neuron.threshold).to(h.dtype), equation)
    grad, g_beta = time_axis.empty(current[0], len(current)), torch.zeros_like(beta)
    total = _rest(current) if len(current) < T else None
    for t in reversed(range(T)):
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
        if total is None:
            grad[t] = g_h
        else:
            total += g_h
        if learns:
            g_beta += (g_h * before).sum()
        g_v = g_h * beta
    if total is not None:
        grad[0] = total
    return grad, first if g_v is None or not first.numel() else first.copy_(g_v), g_beta


def _over_time(current: Tensor, T: int) -> Tensor:
    """[T or 1, N, *] -> [T, N, *]."""
    return current.expand(T, *current.shape[1:])


def _integrate(v: Tensor, x: Tensor, beta: Tensor) -> Tensor:
    # Two roundings as in `step`: add(x, v, alpha=beta) would fuse them and move ties.
    return (v * beta).add_(x)


def _reset(h: Tensor, spikes: Tensor, equation: Equation) -> Tensor:
    if equation.reset == "soft":
        return h.sub(spikes, alpha=equation.threshold)  # exact: spikes are 0 or 1
    return h.masked_fill(spikes.bool(), 0.0)


def _empty_state(current: Tensor) -> Tensor:
    """[N, *] in the order of the current's steps."""
    step = current[0]
    return torch.empty_like(step, dtype=_wide(step), memory_format=time_axis.order(step))


def _rest(current: Tensor) -> Tensor:
    return torch.zeros_like(_empty_state(current))


def _gradients_with_graph(
    equation: Equation,
    g_spikes: Tensor | None,
    g_v: Tensor | None,
    current: Tensor,
    v: Tensor | None,
    beta: Tensor,
    T: int,
) -> tuple[Tensor | None, ...]:
    """What `lif_backward` gives, differentiable once more: autograd walks back through a loop."""
    neuron = ThresholdNeuron(**equation._asdict())
    # Aliases: a state may come from this very current or beta, as in streaming, and what reaches
    # them by way of the state is not ours to count.
    x, beta = current.view_as(current), beta.view_as(beta)
    first = _rest(current) if v is None else v.view_as(v)

    def step(x: Tensor, state: State) -> tuple[Tensor, State]:
        h = beta * state[0] + x
        spikes = neuron.fire(h - neuron.threshold)
        return spikes.to(x.dtype), (neuron.after_reset(h, spikes),)

    spikes, (last,) = loop(step, _over_time(x, T), (first,))
    inputs = [x, first, beta]
    return tuple(gradients([spikes, last], (g_spikes, g_v), inputs, create_graph=True))
