"""SGAD: a fully spiking GAN whose time steps are weighed by attention.

    generator      z - Linear - BN - LIF - (up - conv - BN - LIF) twice - conv - potential - attention - tanh
    discriminator  x - (conv stride 2 - norm - LIF) four times - mean over T - Linear
    loss           the earth mover's distance between real and generated images

Source: Feng, Zhao, Zeng, "Spiking generative adversarial network with attention scoring decoding"
(2023), arXiv:2305.10246. What is the paper's and what is our reading: see README.md.
"""  # noqa: E501  # the drawing

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikezoo import time_axis
from spikezoo.catalog import Component
from spikezoo.errors import OptionError
from spikezoo.losses import Loss
from spikezoo.neurons import Neuron
from spikezoo.time_axis import each_step, expand

Shape = tuple[int, int, int]
LIF = Component("neurons", "lif")

EARTH_MOVER = Loss(
    discriminator=lambda real, fake: fake.mean() - real.mean(),
    generator=lambda fake: -fake.mean(),
)
"""The earth mover's distance, for a critic that is bounded by itself, as `disc:sgad` is; for any
other the core has wgan_gp, which adds a gradient penalty."""


class AttentionScoring(nn.Module):
    """Weighs each time step of each sample by attention: [T, N, C, *] -> [N, C, *].

        score[t] = w . tanh(Q q + K k[t] + b),  out = sum over t of softmax(score)[t] x[t]

    The key k[t] is time step t and the query q the mean over T, both as one grey picture of
    `grid` x `grid` cells, so that no weight has T or the size of an image in its shape.

    Args:
        grid: cells along each side of that picture.
        hidden: size of the layer in which query and key meet.
    """

    def __init__(self, T: int, *, grid: int = 8, hidden: int = 64) -> None:
        super().__init__()
        if T < 2:
            raise OptionError("readout=attention needs T of 2 or more: one weight is always 1")
        if grid < 1 or hidden < 1:
            raise OptionError(f"grid and hidden are at least 1, given {grid} and {hidden}")
        self.grid = grid
        self.query = nn.Linear(grid**2, hidden)
        self.key = nn.Linear(grid**2, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)  # softmax would ignore a bias

    def forward(self, x: Tensor) -> Tensor:
        k = self._pictures(x)  # [T, N, grid^2]
        scores = self.score(torch.tanh(self.query(k.mean(0)) + self.key(k)))  # [T, N, 1]
        weights = scores.float().softmax(0).to(x.dtype)
        return time_axis.total(x * weights.view(*x.shape[:2], *[1] * (x.dim() - 2)))

    def _pictures(self, x: Tensor) -> Tensor:
        grey = x.mean(2)  # [T, N, *]
        plane = grey if grey.dim() == 4 else grey.reshape(*grey.shape[:2], 1, -1)
        return F.adaptive_avg_pool2d(plane, self.grid).flatten(2)


ATTENTION = Component("readouts", "attention")


class SGADGenerator(nn.Module):
    """Spikes up to the last layer, which integrates: z [N, latent_dim] -> [N, C, H, W] in [-1, 1].

    The last layer's membrane never fires and shows one image at each time step; the readout
    decides how much each counts.

    Args:
        output_beta: decay of that membrane per time step, in [0, 1).
    """

    def __init__(
        self,
        shape: Shape,
        *,
        T: int = 8,
        neuron: Component = LIF,
        readout: Component = ATTENTION,
        width: int = 64,
        latent_dim: int = 100,
        output_beta: float = 0.5,
    ) -> None:
        super().__init__()
        _check(shape, width, latent_dim, T)
        if not 0 <= output_beta < 1:
            raise OptionError(f"output_beta is a decay in [0, 1), given {output_beta}")
        self.latent_dim, self.T, self.output_beta = latent_dim, T, output_beta
        self.corner = (2 * width, shape[1] // 4, shape[2] // 4)
        self.linear = nn.Linear(latent_dim, 2 * width * self.corner[1] * self.corner[2], bias=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(c, d, 3, padding=1, bias=False)
            for c, d in pairwise((2 * width,) * 2 + (width,))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (2 * width, 2 * width, width))
        spikes: list[Neuron] = [neuron() for _ in self.norms]
        self.spikes = nn.ModuleList(spikes)
        self.output = nn.Conv2d(width, shape[0], 3, padding=1)
        self.readout = readout(T)
        _scale_currents(self.norms, spikes)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norms[0](self.linear(z).unflatten(1, self.corner))  # [N, 2w, H/4, W/4]
        s = self.spikes[0](expand(x, self.T))  # [T, N, 2w, H/4, W/4]
        for conv, norm, spikes in zip(self.convs, self.norms[1:], self.spikes[1:], strict=True):
            s = each_step(lambda x: F.interpolate(x, scale_factor=2.0), s)
            s = spikes(each_step(norm, each_step(conv, s)))  # up to [T, N, w, H, W]
        v = self._potential(each_step(self.output, s))  # [T, N, C, H, W]
        return torch.tanh(self.readout(v))  # [N, C, H, W]

    def _potential(self, current: Tensor) -> Tensor:
        """v[t] = beta v[t-1] + (1 - beta) x[t]: a mean of the past, whatever T is."""
        current = current.to(torch.promote_types(current.dtype, torch.float32))  # under autocast
        v, potentials = torch.zeros_like(current[0]), []
        for x in current:
            v = torch.lerp(x, v, self.output_beta)
            potentials.append(v)
        return torch.stack(potentials)


class SGADDiscriminator(nn.Module):
    """A spiking critic: images [N, C, H, W] in [-1, 1] -> scores [N], as logits are.

    Pixels are the current at every time step. Layer norm keeps samples apart, as a distance between
    distributions needs. Rates lie in [0, 1] and the last layer has spectral norm 1, so no score is
    beyond the square root of the number of rates: without a bound there would be no distance.
    """

    def __init__(
        self, shape: Shape, *, T: int = 8, neuron: Component = LIF, width: int = 16
    ) -> None:
        super().__init__()
        _check(shape, width, 1, T)
        self.T = T
        channels = [shape[0], width, 2 * width, 4 * width, 8 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(c, d, 3, stride=2, padding=1, bias=False) for c, d in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, c) for c in channels[1:])
        spikes: list[Neuron] = [neuron() for _ in self.norms]
        self.spikes = nn.ModuleList(spikes)
        rates = channels[-1] * (shape[1] // 16) * (shape[2] // 16)
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(rates, 1))
        _scale_currents(self.norms, spikes)

    def forward(self, x: Tensor) -> Tensor:
        s = self.spikes[0](expand(self.norms[0](self.convs[0](x)), self.T))  # [T, N, w, H/2, W/2]
        for conv, norm, spikes in zip(self.convs[1:], self.norms[1:], self.spikes[1:], strict=True):
            s = spikes(each_step(norm, each_step(conv, s)))  # down to [T, N, 8w, H/16, W/16]
        rates = time_axis.total(s) / len(s)
        return self.linear(rates.flatten(1)).squeeze(1)  # [N]


def _check(shape: Shape, width: int, latent_dim: int, T: int) -> None:
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 16 or any(s % 16 for s in shape[1:]):
        raise OptionError(f"images are [C, H, W] with H and W divisible by 16, given {shape}")
    if min(width, latent_dim, T) < 1:
        raise OptionError(
            f"width, latent_dim and T are at least 1, given {width}, {latent_dim} and {T}"
        )


def _scale_currents(norms: nn.ModuleList, spikes: list[Neuron]) -> None:
    """Makes one spread of a normalised current worth one threshold: a fifth fires per step."""
    for norm, neuron in zip(norms, spikes, strict=True):
        nn.init.constant_(norm.get_parameter("weight"), neuron.threshold)
