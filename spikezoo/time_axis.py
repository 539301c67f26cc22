"""The time axis of [T, N, C, *] tensors: on, off and past it without a copy.

Networks run channels-last. A plain sum or expand over T would forget that order and pay for it
with a copy of every step, so these move the channels to the end first: views, no work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def expand(x: Tensor, T: int) -> Tensor:
    """[N, C, *] -> [T, N, C, *], the same at every time step, at stride 0."""
    last = x.movedim(1, -1)
    return last.expand(T, *last.shape).movedim(-1, 2)


def order(step: Tensor) -> torch.memory_format:
    """The order in memory of what is computed from a step [N, *]: its own, or contiguous."""
    last = step.dim() == 4 and step.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def empty(like: Tensor) -> Tensor:
    """An empty [T, N, *] of one's shape, each step in its `order`, one behind another.

    `empty_like` would not do: what is the same at every step has stride 0 over T.
    """
    made = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if order(like[0]) == torch.contiguous_format:
        return made
    return made.view(*like.shape[:2], *like.shape[3:], like.shape[2]).movedim(-1, 2)


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
