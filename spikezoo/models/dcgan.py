"""The DCGAN of the field's tutorials and its spiking relatives, one generator per place of spikes.

    ann            z - Linear - BN ------ up - conv - BN - LeakyReLU - up - conv - BN - LeakyReLU - conv - tanh
    snn_front      z - Linear - BN - LIF  up - conv - BN - LeakyReLU - up - conv - BN - LeakyReLU - conv - tanh
    snn_middle     z - Linear - BN ------ up - conv - BN - LIF ------- up - conv - BN - LeakyReLU - conv - tanh
    snn_back       z - Linear - BN ------ up - conv - BN - LeakyReLU - up - conv - BN - LeakyReLU - conv - LIF
    snn_extractor  z - Linear - BN ------ up - conv - BN - LeakyReLU - extractor - up - conv - BN - LeakyReLU - conv - tanh
    snn_full       z - Linear - BN - LIF  up - conv - BN - LIF ------- up - conv - BN - LIF ------- conv - tanh

Source: Feng, Wang, Zhao, "Could Spike Neural Networks Beat ANNs on Image Synthesis?"; DCGAN:
Radford et al. 2015. What is ours, and why:

- Spikes are read out over T, sample by sample; T is no part of any weight's shape.
- A spiking layer acts on every pixel alone, so it commutes with nearest-neighbour upsampling. It
  stands *before* the upsampling that the paper puts it behind: the same function, spikes
  included, at a quarter of the work. Upsampling and the convolution behind it are one layer.
- What does not depend on time is computed once: current into the first spiking layer is expanded
  over T without a copy. Readouts are affine, so what is linear behind one is applied to its result.
- Batch norm before each spiking layer, its scale set to the threshold, gives currents of mean 0
  and one threshold's spread: about a fifth of the neurons fire per step, in every variant. Where
  no batch norm stands there, the convolution's initial weights do the same.
"""  # noqa: E501  # the drawing

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikezoo.backends.native import read_out
from spikezoo.catalog import Component
from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron
from spikezoo.time_axis import each_step, expand

LIF = Component("neurons", "lif")
MEAN = Component("readouts", "mean")
MEMBRANE = Component("readouts", "membrane")
SLOW_LIF = Component("neurons", "lif", {"beta": 0.9})
WEIGHTED = Component("readouts", "weighted")
Shape = tuple[int, int, int]


# --- generators -----------------------------------------------------------------------------


class ANNGenerator(nn.Module):
    """The twin without spikes: latent z [N, latent_dim] -> images [N, C, H, W] in [-1, 1]."""

    def __init__(self, shape: Shape, *, width: int = 64, latent_dim: int = 100) -> None:
        super().__init__()
        _check(shape, width, latent_dim)
        self.shape, self.latent_dim = shape, latent_dim
        self.project = _project(shape, width, latent_dim)
        self.conv1 = _conv_norm(2 * width, 2 * width, UpConv2d)
        self.conv2 = _conv_norm(2 * width, width, UpConv2d)
        self.conv3 = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z)  # [N, 2w, H/4, W/4]
        x = _leaky(self.conv1(x))  # [N, 2w, H/2, W/2]
        x = _leaky(self.conv2(x))  # [N, w, H, W]
        return torch.tanh(self.conv3(x))  # [N, C, H, W]


class SNNFront(nn.Module):
    """Spikes at the first upsampling: z [N, latent_dim] -> images [N, C, H, W] in [-1, 1]."""

    def __init__(
        self,
        shape: Shape,
        *,
        T: int = 4,
        neuron: Component = LIF,
        readout: Component = MEAN,
        width: int = 64,
        latent_dim: int = 100,
    ) -> None:
        super().__init__()
        _check(shape, width, latent_dim, T)
        self.shape, self.latent_dim, self.T = shape, latent_dim, T
        self.project = _project(shape, width, latent_dim)
        self.spikes: Neuron = neuron()
        self.readout = readout(T)
        self.conv1 = _conv_norm(2 * width, 2 * width, UpConv2d)
        self.conv2 = _conv_norm(2 * width, width, UpConv2d)
        self.conv3 = nn.Conv2d(width, shape[0], 3, padding=1)
        _scale_current(self.project.norm, self.spikes)

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z)  # [N, 2w, H/4, W/4]
        x = read_out(self.spikes, self.readout, expand(x, self.T))  # over [T, N, 2w, H/4, W/4]
        x = _leaky(self.conv1(x))  # [N, 2w, H/2, W/2]
        x = _leaky(self.conv2(x))  # [N, w, H, W]
        return torch.tanh(self.conv3(x))  # [N, C, H, W]


class SNNMiddle(nn.Module):
    """Spikes at the second upsampling: z [N, latent_dim] -> images [N, C, H, W] in [-1, 1]."""

    def __init__(
        self,
        shape: Shape,
        *,
        T: int = 4,
        neuron: Component = LIF,
        readout: Component = MEAN,
        width: int = 64,
        latent_dim: int = 100,
    ) -> None:
        super().__init__()
        _check(shape, width, latent_dim, T)
        self.shape, self.latent_dim, self.T = shape, latent_dim, T
        self.project = _project(shape, width, latent_dim)
        self.conv1 = _conv_norm(2 * width, 2 * width, UpConv2d)
        self.spikes: Neuron = neuron()
        self.readout = readout(T)
        self.conv2 = _conv_norm(2 * width, width, UpConv2d)
        self.conv3 = nn.Conv2d(width, shape[0], 3, padding=1)
        _scale_current(self.conv1.norm, self.spikes)

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z)  # [N, 2w, H/4, W/4]
        x = self.conv1(x)  # [N, 2w, H/2, W/2]
        x = read_out(self.spikes, self.readout, expand(x, self.T))  # over [T, N, 2w, H/2, W/2]
        x = _leaky(self.conv2(x))  # [N, w, H, W]
        return torch.tanh(self.conv3(x))  # [N, C, H, W]


class SNNBack(nn.Module):
    """Spikes are the pixels: z [N, latent_dim] -> images [N, C, H, W] in [-1, 1].

    A pixel's current is the same at every step, so it has few patterns of spikes: 7 at T=4 and
    beta=0.5, which `readout=mean` reads as 5 levels, `weighted` as 7 of learned height, and
    `membrane` in an order that is not the current's. The more a neuron forgets, the narrower the
    range of currents between black and white: hence the slow decay (docs/results/back.md).
    """

    def __init__(
        self,
        shape: Shape,
        *,
        T: int = 4,
        neuron: Component = SLOW_LIF,
        readout: Component = WEIGHTED,
        width: int = 64,
        latent_dim: int = 100,
    ) -> None:
        super().__init__()
        _check(shape, width, latent_dim, T)
        self.shape, self.latent_dim, self.T = shape, latent_dim, T
        self.project = _project(shape, width, latent_dim)
        self.conv1 = _conv_norm(2 * width, 2 * width, UpConv2d)
        self.conv2 = _conv_norm(2 * width, width, UpConv2d)
        self.conv3 = nn.Conv2d(width, shape[0], 3, padding=1)
        self.spikes: Neuron = neuron()
        self.readout = readout(T)
        # LeakyReLU(0.2) of a unit normal has a mean, which weights that add up to 0 keep out of the
        # current: it would silence, or saturate, every pixel at once. Its variance is 0.42.
        _unit_current(self.conv3, self.spikes, mean_square=0.42)
        with torch.no_grad():
            self.conv3.weight -= self.conv3.weight.mean((1, 2, 3), keepdim=True)
            nn.init.zeros_(self.conv3.get_parameter("bias"))

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z)  # [N, 2w, H/4, W/4]
        x = _leaky(self.conv1(x))  # [N, 2w, H/2, W/2]
        x = _leaky(self.conv2(x))  # [N, w, H, W]
        x = self.conv3(x)  # [N, C, H, W]
        rate = read_out(self.spikes, self.readout, expand(x, self.T))  # over [T, N, C, H, W]
        x = 2 * rate - 1
        # A readout's weights add up to 1 but for rounding. Clamped past the gradient, which torch
        # would stop at exactly -1 and 1, where a spiking image has most of its pixels.
        return x + (x.clamp(-1, 1) - x).detach()


class SNNExtractor(nn.Module):
    """Encoder, spiking extractor, decoder: z [N, latent_dim] -> images [N, C, H, W] in [-1, 1].

    The extractor is (1x1 conv, BN, LIF) twice. Its channels, 5w/4 and 3w/2, are chosen so that it
    and the narrower convolution behind it weigh as much as the twin's one convolution.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        T: int = 4,
        neuron: Component = LIF,
        readout: Component = MEAN,
        width: int = 64,
        latent_dim: int = 100,
    ) -> None:
        super().__init__()
        _check(shape, width, latent_dim, T)
        self.shape, self.latent_dim, self.T = shape, latent_dim, T
        first, second = 5 * width // 4, 3 * width // 2
        self.project = _project(shape, width, latent_dim)
        self.conv1 = _conv_norm(2 * width, 2 * width, UpConv2d)
        self.extract1 = _conv_norm(2 * width, first, Conv1x1)
        self.spikes1: Neuron = neuron()
        self.extract2 = _conv_norm(first, second, Conv1x1)
        self.spikes2: Neuron = neuron()
        self.readout = readout(T)
        self.conv2 = _conv_norm(second, width, UpConv2d)
        self.conv3 = nn.Conv2d(width, shape[0], 3, padding=1)
        _scale_current(self.extract1.norm, self.spikes1)
        _scale_current(self.extract2.norm, self.spikes2)

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z)  # [N, 2w, H/4, W/4]
        x = self.extract1(_leaky(self.conv1(x)))  # [N, 5w/4, H/2, W/2]
        s = self.spikes1(expand(x, self.T))  # [T, N, 5w/4, H/2, W/2]
        s = each_step(self.extract2, s)  # [T, N, 3w/2, H/2, W/2]
        x = read_out(self.spikes2, self.readout, s)  # [N, 3w/2, H/2, W/2]
        x = _leaky(self.conv2(x))  # [N, w, H, W]
        return torch.tanh(self.conv3(x))  # [N, C, H, W]


class SNNFull(nn.Module):
    """Every hidden layer spikes: z [N, latent_dim] -> images [N, C, H, W] in [-1, 1].

    The image is the membrane potential of a last layer that never fires. It is linear, so its
    convolution is applied once, to the readout of the spikes before it.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        T: int = 4,
        neuron: Component = LIF,
        readout: Component = MEMBRANE,
        width: int = 64,
        latent_dim: int = 100,
    ) -> None:
        super().__init__()
        _check(shape, width, latent_dim, T)
        self.shape, self.latent_dim, self.T = shape, latent_dim, T
        self.project = _project(shape, width, latent_dim)
        self.spikes0: Neuron = neuron()
        self.conv1 = _conv_norm(2 * width, 2 * width, UpConv2d)
        self.spikes1: Neuron = neuron()
        self.conv2 = _conv_norm(2 * width, width, UpConv2d)
        self.spikes2: Neuron = neuron()
        self.readout = readout(T)
        self.conv3 = nn.Conv2d(width, shape[0], 3, padding=1)
        _scale_current(self.project.norm, self.spikes0)
        _scale_current(self.conv1.norm, self.spikes1)
        _scale_current(self.conv2.norm, self.spikes2)

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z)  # [N, 2w, H/4, W/4]
        s = self.spikes0(expand(x, self.T))  # [T, N, 2w, H/4, W/4]
        s = self.spikes1(each_step(self.conv1, s))  # [T, N, 2w, H/2, W/2]
        s = each_step(self.conv2, s)  # [T, N, w, H, W]
        x = read_out(self.spikes2, self.readout, s)  # [N, w, H, W]
        return torch.tanh(self.conv3(x))  # [N, C, H, W]


# --- discriminators -------------------------------------------------------------------------

Norm = Literal["batch", "layer", "none"]


class ANNDiscriminator(nn.Module):
    """Four strided convolutions: images [N, C, H, W] in [-1, 1] -> logits [N].

    The tutorials', and the paper's, is `width=16,dropout=0.25`. Ours is wider and drops nothing:
    against it the same generators draw far better images (docs/results/recipe.md).

    Args:
        norm: behind all but the first convolution. `batch` mixes samples, which a gradient
            penalty must not; use `layer` with wgan_gp.
        spectral_norm: bounds each layer's Lipschitz constant (Miyato et al. 2018).
    """

    def __init__(
        self,
        shape: Shape,
        *,
        width: int = 32,
        dropout: float = 0.0,
        norm: Norm = "batch",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        _check(shape, width)
        channels = [shape[0], width, 2 * width, 4 * width, 8 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(c, d, 3, stride=2, padding=1) for c, d in pairwise(channels)
        )
        self.norms = nn.ModuleList(_norm(c, norm) for c in channels[2:])
        self.dropout = nn.Dropout2d(dropout)
        self.linear = nn.Linear(_flat_features(shape, channels[-1]), 1)
        if spectral_norm:
            _spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(_leaky(self.convs[0](x)))  # [N, w, H/2, W/2]
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = norm(self.dropout(_leaky(conv(x))))  # down to [N, 8w, H/16, W/16]
        return self.linear(x.flatten(1)).squeeze(1)  # [N]


class SNNDiscriminator(nn.Module):
    """Four strided convolutions with spikes behind each: images [N, C, H, W] -> logits [N].

    The pixels are the current into the first layer, the same at every time step; the logit is
    linear in the readout of the last layer's spikes. Normalisation stands before the spikes and
    takes its statistics over T x N; dropout silences a channel of a sample for all T steps.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        T: int = 4,
        neuron: Component = LIF,
        readout: Component = MEAN,
        width: int = 32,
        dropout: float = 0.0,
        norm: Norm = "batch",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        _check(shape, width, T=T)
        self.T = T
        channels = [shape[0], width, 2 * width, 4 * width, 8 * width]
        # Only the first convolution has no normalisation behind it, whose shift is a bias.
        self.convs = nn.ModuleList(
            nn.Conv2d(c, d, 3, stride=2, padding=1, bias=c == shape[0] or norm == "none")
            for c, d in pairwise(channels)
        )
        self.norms = nn.ModuleList(_norm(c, norm) for c in channels[2:])
        spikes: list[Neuron] = [neuron() for _ in self.convs]
        self.spikes = nn.ModuleList(spikes)
        self.dropout = nn.Dropout2d(dropout)
        self.readout = readout(T)
        self.linear = nn.Linear(_flat_features(shape, channels[-1]), 1)
        # Images have a mean square near 1, spikes their rate, about a fifth.
        for conv, layer, square in zip(self.convs, spikes, (1.0, 0.2, 0.2, 0.2), strict=True):
            _unit_current(conv, layer, square)
        for normalise, layer in zip(self.norms, spikes[1:], strict=True):
            _scale_current(normalise, layer)
        if spectral_norm and norm == "none":
            raise OptionError(
                "spectral_norm=true makes currents too small to fire; give it norm=batch or layer"
            )
        if spectral_norm:
            _spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        x = expand(self.convs[0](x), self.T)  # [T, N, w, H/2, W/2]
        for conv, norm, spikes in zip(self.convs[1:], self.norms, self.spikes[:-1], strict=True):
            s = self._drop(spikes(x))
            x = each_step(norm, each_step(conv, s))  # down to [T, N, 8w, H/16, W/16]
        # One mask for all time steps, so the readout may as well be dropped from.
        last = cast(Neuron, self.spikes[-1])
        rates = self.dropout(read_out(last, self.readout, x))  # [N, 8w, H/16, W/16]
        return self.linear(rates.flatten(1)).squeeze(1)  # [N]

    def _drop(self, s: Tensor) -> Tensor:
        """Dropout of whole channels with one mask for all time steps."""
        if not self.training or self.dropout.p == 0:
            return s
        # A whole row of the image, not one pixel of it: long runs in memory to multiply along.
        return s * self.dropout(torch.ones_like(s[0, :, :, :1]))


# --- pieces ---------------------------------------------------------------------------------


def _check(shape: Shape, width: int, latent_dim: int = 1, T: int = 1) -> None:
    channels, height, other = shape
    if height != other or height % 16 or height < 16 or channels < 1:
        raise OptionError(
            f"images are [C, H, H] with H divisible by 16, given {list(shape)}; "
            f"the nearest side is {max(16, 16 * round(height / 16))}"
        )
    if width < 4 or width % 4:
        raise OptionError(f"width is a multiple of 4, given {width}")
    if latent_dim < 1 or T < 1:
        raise OptionError(f"latent_dim and T are at least 1, given {latent_dim} and {T}")


class _project(nn.Module):
    """z [N, latent_dim] -> [N, 2w, H/4, W/4]: Linear, then batch norm over channels."""

    def __init__(self, shape: Shape, width: int, latent_dim: int) -> None:
        super().__init__()
        self.size = (2 * width, shape[1] // 4, shape[2] // 4)
        self.linear = nn.Linear(latent_dim, math.prod(self.size))
        self.norm = nn.BatchNorm2d(2 * width)

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).unflatten(1, self.size)
        return self.norm(x.contiguous(memory_format=torch.channels_last))


class _conv_norm(nn.Module):
    """Convolution without bias, then batch norm, whose shift is that bias."""

    def __init__(self, channels: int, out: int, kind: type[Conv1x1] | type[UpConv2d]) -> None:
        super().__init__()
        self.conv = kind(channels, out)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution without bias."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1, bias=False)


class UpConv2d(nn.Conv2d):
    """Nearest upsampling by 2, then a 3x3 convolution without bias: [N, C, H, W] -> [N, D, 2H, 2W].

    Computed as one transposed convolution by 4x4 weights, sums of those that meet the same pixel
    behind upsampling: the same function for 4/9 of the multiplications.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        k = self.weight.flip(2, 3).transpose(0, 1)  # [C, D, 3, 3]
        k = F.pad(k, (0, 0, 0, 1)) + F.pad(k, (0, 0, 1, 0))  # [C, D, 4, 3]
        k = F.pad(k, (0, 1)) + F.pad(k, (1, 0))  # [C, D, 4, 4]
        return F.conv_transpose2d(x, k, stride=2, padding=1)


def _norm(channels: int, kind: Norm) -> nn.Module:
    if kind not in ("batch", "layer", "none"):
        raise OptionError(f"norm is batch, layer or none, given '{kind}'")
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else nn.Identity()


def _flat_features(shape: Shape, channels: int) -> int:
    return channels * (shape[1] // 16) * (shape[2] // 16)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _scale_current(norm: nn.Module, neuron: Neuron) -> None:
    """Makes one spread of a normalised current worth one threshold."""
    if isinstance(norm, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.constant_(norm.weight, neuron.threshold)


def _unit_current(conv: nn.Module, neuron: Neuron, mean_square: float) -> None:
    """Initial weights that turn inputs of that mean square into currents of one threshold's
    spread."""
    weight = conv.get_parameter("weight")
    fan_in = weight[0].numel()
    nn.init.normal_(weight, std=neuron.threshold / math.sqrt(fan_in * mean_square))


def _spectral_norm(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
