"""The firing function H and the surrogate derivatives that stand in for its own.

`spike(u)` is 1 where u >= 0. Its backward pass multiplies by a surrogate derivative, a pure
function of u = h - threshold and the slope alpha, finite for every u, and so is its own derivative
in `spike` (Neftci et al. 2019, "Surrogate gradient learning in spiking neural networks"). Formulas
and pictures: docs/surrogates.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Surrogate = Callable[[Tensor, float], Tensor]
# Beyond, alpha u overflows, and the derivative of what is constant there would be 0 * inf.
LARGEST = 1e30


def atan(u: Tensor, alpha: float) -> Tensor:
    """alpha/2 / (1 + (pi/2 alpha u)^2), the derivative of an arc tangent (Fang et al. 2021)."""
    return (alpha / 2) / (1 + (math.pi / 2 * alpha * u).square())


def sigmoid(u: Tensor, alpha: float) -> Tensor:
    """alpha s(alpha u) (1 - s(alpha u)) with s the logistic function."""
    s = torch.sigmoid(alpha * u)
    return alpha * s * (1 - s)


def fast_sigmoid(u: Tensor, alpha: float) -> Tensor:
    """1 / (1 + alpha |u|)^2 (Zenke and Ganguli 2018, SuperSpike)."""
    return 1 / (1 + alpha * u.abs()).square()


def triangle(u: Tensor, alpha: float) -> Tensor:
    """alpha max(0, 1 - alpha |u|) (Esser et al. 2016)."""
    return alpha * (1 - alpha * u.abs()).clamp(min=0)


def straight_through(u: Tensor, alpha: float) -> Tensor:
    """1 everywhere (Bengio et al. 2013); alpha is not used."""
    return torch.ones_like(u)


def erf(u: Tensor, alpha: float) -> Tensor:
    """alpha/sqrt(pi) exp(-(alpha u)^2), the derivative of an error function."""
    return (alpha / math.sqrt(math.pi)) * torch.exp(-(alpha * u).square())


def spike(u: Tensor, surrogate: Surrogate, alpha: float) -> Tensor:
    """H(u) of any shape, in u's dtype, with H(0) = 1; differentiable twice by the surrogate."""
    spikes: Tensor = _Spike.apply(u, surrogate, alpha)
    return spikes


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate, alpha: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate(u.clamp(-LARGEST, LARGEST), ctx.alpha), None, None
