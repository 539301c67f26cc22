"""Networks of this zoo as one writes them by hand with SpikingJelly or snnTorch, for `bench`.

Plain float32 in torch's default layout, layer by layer over all T, as SpikingJelly's tutorials
teach (`step_mode="m"`, `reset_net` after each pass). snnTorch's `Leaky` knows one time step, so its
layers loop over T, as its tutorials do; its own reset is of another equation (late, or twice where
v stays above the threshold) and is done by hand. Spikes stand where the paper draws them, behind
the upsampling: the same function as before it, at four times the elements.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import snntorch
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from spikezoo import zoo
from spikezoo.errors import OptionError
from spikezoo.spec import Spec

BETA, ALPHA = 0.5, 2.0  # of the zoo's lif
LATENT_DIM = 100
Layer = Callable[..., nn.Module]
Shape = tuple[int, int, int]


def can_build(spec: Spec) -> bool:
    """Whether a canonical spec has a version by hand: snn_middle or snn_full against snn, of any
    width and dropout of the discriminator, else with default options."""
    options = {key for key, _ in spec.disc.options}
    known = spec.disc.name == "snn" and options <= {"width", "dropout"}
    return known and str(spec.gen) in ("gen:snn_middle", "gen:snn_full")


def build(library: str, pair: zoo.Pair, T: int = 4) -> tuple[nn.Module, nn.Module]:
    """Generator z [N, latent_dim] -> images, discriminator images -> logits [N], by "SpikingJelly"
    or "snnTorch", with the weights of a pair of the same names."""
    if not can_build(pair.spec):
        raise OptionError(f"there is no version of {pair.spec} by hand")
    own = LAYERS[library]
    shape: Shape = pair.generator.shape  # type: ignore[assignment]  # part of the contract
    middle = pair.spec.gen.name == "snn_middle"
    generator = (_middle if middle else _full)(own, shape, T)
    options = zoo.resolve(pair.spec.disc)
    discriminator = _discriminator(own, shape, T, options["width"], options["dropout"])
    _copy(pair.generator, generator)
    _copy(pair.discriminator, discriminator)
    return generator, discriminator


def iteration(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer_g: torch.optim.Optimizer,
    optimizer_d: torch.optim.Optimizer,
    real: Tensor,
    z: Tensor,
) -> tuple[float, float]:
    """One update of each network as in torch's DCGAN tutorial; returns the losses of D and G."""
    ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
    fake = generator(z)

    optimizer_d.zero_grad()
    loss_real = F.binary_cross_entropy_with_logits(_forget(discriminator, real), ones)
    loss_fake = F.binary_cross_entropy_with_logits(_forget(discriminator, fake.detach()), zeros)
    loss_d = loss_real + loss_fake
    loss_d.backward()  # type: ignore[no-untyped-call]  # torch's
    optimizer_d.step()

    optimizer_g.zero_grad()
    loss_g = F.binary_cross_entropy_with_logits(_forget(discriminator, fake), ones)
    loss_g.backward()  # type: ignore[no-untyped-call]  # torch's
    optimizer_g.step()
    functional.reset_net(generator)
    return loss_d.item(), loss_g.item()


@torch.no_grad()
def draw(generator: nn.Module, n: int, batch_size: int = 32) -> Tensor:
    """n images uint8 [n, C, H, W] of a generator in eval mode."""
    images = []
    for start in range(0, n, batch_size):
        z = torch.randn(min(batch_size, n - start), LATENT_DIM)
        images.append((127.5 * (_forget(generator, z) + 1)).round().to(torch.uint8))
    return torch.cat(images)


def _forget(network: nn.Module, x: Tensor) -> Tensor:
    """The network's output; what its SpikingJelly neurons remember is forgotten."""
    out = network(x)
    functional.reset_net(network)
    return out


# --- networks -------------------------------------------------------------------------------


def _middle(own: dict[str, Layer], shape: Shape, T: int) -> nn.Sequential:
    return nn.Sequential(
        *_project(shape),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(128, 128, 3, padding=1, bias=False)),
        *(nn.BatchNorm2d(128), nn.Upsample(scale_factor=2)),
        *(_Repeat(T), own["lif"](), _MeanOverTime()),
        *(nn.Conv2d(128, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(64, shape[0], 3, padding=1), nn.Tanh()),
    )


def _full(own: dict[str, Layer], shape: Shape, T: int) -> nn.Sequential:
    return nn.Sequential(
        *_project(shape),
        *(_Repeat(T), own["up"](scale_factor=2), own["lif"]()),
        *(own["conv"](128, 128, 3, padding=1, bias=False), own["norm"](128)),
        *(own["up"](scale_factor=2), own["lif"]()),
        *(own["conv"](128, 64, 3, padding=1, bias=False), own["norm"](64), own["lif"]()),
        *(own["conv"](64, shape[0], 3, padding=1), _LastPotential(), nn.Tanh()),
    )


def _project(shape: Shape) -> list[nn.Module]:
    side = shape[1] // 4
    project = nn.Linear(LATENT_DIM, 128 * side * side)
    return [project, nn.Unflatten(1, (128, side, side)), nn.BatchNorm2d(128)]


def _discriminator(
    own: dict[str, Layer], shape: Shape, T: int, width: int, dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = [_Repeat(T)]
    for c, d in pairwise([shape[0], width, 2 * width, 4 * width, 8 * width]):
        first = c == shape[0]
        layers.append(own["conv"](c, d, 3, stride=2, padding=1, bias=first))
        if not first:
            layers.append(own["norm"](d))
        layers += [own["lif"](), own["dropout"](dropout)]
    features = 8 * width * (shape[1] // 16) ** 2
    return nn.Sequential(
        *layers, _MeanOverTime(), nn.Flatten(), nn.Linear(features, 1), nn.Flatten(0)
    )


class _Repeat(nn.Module):
    """[N, *] -> [T, N, *]."""

    def __init__(self, T: int) -> None:
        super().__init__()
        self.T = T

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0).repeat(self.T, *(1 for _ in x.shape))


class _MeanOverTime(nn.Module):
    """[T, N, *] -> [N, *]."""

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes.mean(0)


class _LastPotential(nn.Module):
    """[T, N, *] -> [N, *]: of a leaky integrator that never fires, by its greatest value."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        for current in x:
            v = BETA * v + current
        return v / sum(BETA**t for t in range(len(x)))


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    """Copies weights; layers of one type stand in the same order in both networks."""
    for kind in (nn.Linear, nn.Conv2d, nn.BatchNorm2d):
        sources, targets = (
            [m for m in network.modules() if isinstance(m, kind)] for network in (ours, theirs)
        )
        for source, target in zip(sources, targets, strict=True):
            target.load_state_dict(source.state_dict())


# --- layers of [T, N, *] --------------------------------------------------------------------


def _jelly(kind: Layer) -> Layer:
    return lambda *args, **options: kind(*args, **options, step_mode="m")


def _jelly_lif() -> nn.Module:
    return neuron.LIFNode(
        tau=1 / (1 - BETA),
        decay_input=False,
        v_reset=None,
        surrogate_function=surrogate.ATan(ALPHA),
        step_mode="m",
    )


class _Leaky(nn.Module):
    """snnTorch's neuron in its loop over T."""

    def __init__(self) -> None:
        super().__init__()
        fires = snntorch.surrogate.atan(ALPHA)
        self.leaky = snntorch.Leaky(BETA, spike_grad=fires, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        mem = self.leaky.init_leaky()
        recorded = []
        for current in x:
            spikes, mem = self.leaky(current, mem)
            mem = mem - spikes
            recorded.append(spikes.to(x.dtype))  # of float32 where x is of float64, too
        return torch.stack(recorded)


class _Folded(nn.Module):
    """A layer of [N, *] applied to [T, N, *] as to T*N samples."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class _Dropout(nn.Module):
    """Dropout of whole channels with one mask for all T, as SpikingJelly's."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones_like(x[0, :, :, :1, :1])
        return x * F.dropout(mask, self.p, self.training)


def _folded(kind: Layer) -> Layer:
    return lambda *args, **options: _Folded(kind(*args, **options))


LAYERS: dict[str, dict[str, Any]] = {
    "SpikingJelly": {
        "conv": _jelly(layer.Conv2d),
        "norm": _jelly(layer.BatchNorm2d),
        "up": _jelly(layer.Upsample),
        "dropout": _jelly(layer.Dropout2d),
        "lif": _jelly_lif,
    },
    "snnTorch": {
        "conv": _folded(nn.Conv2d),
        "norm": _folded(nn.BatchNorm2d),
        "up": _folded(nn.Upsample),
        "dropout": _Dropout,
        "lif": _Leaky,
    },
}
"""How each library writes a convolution, batch norm, upsampling, dropout and LIF of [T, N, *]."""
