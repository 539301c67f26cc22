"""The time axis of [T, N, C, *] tensors: on, off and past it without a copy.

Networks run channels-last. A plain sum or expand over T would forget that order and pay for it
with a copy of every step, so these move the channels to the end first: views, no work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def expand(x: Tensor, T: int) -> Tensor:
    """[N, C, *] -> [T, N, C, *], the same at every time step, at stride 0.

    The result leads back to x (`one_step`), whose gradient is then summed over T where it arises,
    past the result: ask for the gradient of x, not for that of the result.
    """
    last = x.movedim(1, -1)
    expanded = last.expand(T, *last.shape).movedim(-1, 2)
    if expanded.requires_grad:
        expanded.one_step = x  # type: ignore[attr-defined]  # lost in any view, which is right
    return expanded


def one_step(x: Tensor) -> Tensor | None:
    """The [N, C, *] that `expand` made x of, if it did and a gradient may flow past it."""
    return getattr(x, "one_step", None)


def order(step: Tensor) -> torch.memory_format:
    """The order in memory of what is computed from a step [N, *]: its own, or contiguous."""
    last = step.dim() == 4 and step.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def empty(step: Tensor, T: int) -> Tensor:
    """An empty [T, N, *] of steps like one [N, *], each in its `order`, one behind another."""
    made = torch.empty((T, *step.shape), dtype=step.dtype, device=step.device)
    if order(step) == torch.contiguous_format:
        return made
    return made.view(T, len(step), *step.shape[2:], step.shape[1]).movedim(-1, 2)


def each_step(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a layer of [N, *] to each time step of [T, N, *] at once, as T*N samples."""
    # T and N are neighbours in memory, so this is a view and mixes no samples.
    y = layer(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


def total(x: Tensor) -> Tensor:
    """The sum over T: [T, N, C, *] -> [N, C, *]."""
    return x.movedim(2, -1).sum(0).movedim(-1, 1)


def weighted_total(x: Tensor, weights: Tensor) -> Tensor:
    """The sum over t of weights[t] x[t], for weights [T]: [T, N, C, *] -> [N, C, *]."""
    last = torch.tensordot(weights.to(x.dtype), x.movedim(2, -1), ([0], [0]))
    return last.movedim(-1, 1)
