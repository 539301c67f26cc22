"""Adversarial losses: pure functions of logits [N], returning a scalar to be minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Loss:
    """What the two networks minimise.

    `discriminator(real, fake)` and `generator(fake)` take logits [N]; `gradient_penalty` weighs
    `gradient_penalty()` of the discriminator, 0 for none.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    gradient_penalty: float = 0.0


# softplus(-x) is -log(sigmoid(x)), the cross entropy with "real" as target.
BCE = Loss(
    discriminator=lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
    generator=lambda fake: F.softplus(-fake).mean(),
)
"""Non-saturating cross entropy (Goodfellow et al. 2014)."""

HINGE = Loss(
    discriminator=lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    generator=lambda fake: -fake.mean(),
)
"""Hinge (Lim and Ye 2017; Miyato et al. 2018)."""

LSGAN = Loss(
    discriminator=lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
    generator=lambda fake: (fake - 1).square().mean() / 2,
)
"""Least squares with targets 1 and 0 (Mao et al. 2017)."""

WGAN_GP = Loss(
    discriminator=lambda real, fake: fake.mean() - real.mean(),
    generator=lambda fake: -fake.mean(),
    gradient_penalty=10.0,
)
"""Wasserstein distance with gradient penalty (Gulrajani et al. 2017)."""


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """(|grad D| - 1)^2 on random points between real and fake images [N, C, H, W], mean over N."""
    mix = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    between = torch.lerp(fake, real, mix)
    return (_squared_gradient_norm(discriminator, between).add(1e-12).sqrt() - 1).square().mean()


def r1(discriminator: nn.Module, real: Tensor) -> Tensor:
    """|grad D|^2 / 2 on real images [N, C, H, W], mean over N (Mescheder et al. 2018)."""
    return _squared_gradient_norm(discriminator, real).mean() / 2


def _squared_gradient_norm(discriminator: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    logits = discriminator(x)
    (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return grad.float().square().flatten(1).sum(1)  # [N]
