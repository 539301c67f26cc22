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


def empty(like: Tensor, order: torch.memory_format = torch.preserve_format) -> Tensor:
    """An empty [T, N, *] of one's shape, each step in that memory order, one behind another.

    `empty_like` would not do: what is the same at every step has stride 0 over T.
    """
    step = torch.empty_like(like[0], memory_format=order)
    return torch.empty_strided(
        like.shape, (step.numel(), *step.stride()), dtype=like.dtype, device=like.device
    )


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
