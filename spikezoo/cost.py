"""What an image costs: operations, firing rates and an energy estimate, layer by layer.

Counted are the multiply-accumulates (MACs) of convolutions and linear layers. A layer that spikes
feed needs no multiplication: it adds one weight per spike and connection (an accumulate, AC). A
layer behind one of our readouts is such a layer too, since they are affine and the layer linear:
applied to each step's spikes and read out afterwards, it gives the same values.

Not counted: neurons, normalisation (which folds into the weights), activations, upsampling and
memory. Energies per operation: 45 nm, 32-bit floating point (Horowitz, ISSCC 2014).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from spikingjelly.activation_based.op_counter import ACCounter, DispatchCounterMode, MACCounter
from torch import Tensor, nn

from spikezoo import readouts
from spikezoo.model import spikes_of
from spikezoo.monitor import firing_rates
from spikezoo.sample import latents, sample

PJ_PER_MAC, PJ_PER_AC = 4.6, 0.9
# From this many spikes per neuron and image on, spikes cost more than the values they stand for.
BREAK_EVEN = PJ_PER_MAC / PJ_PER_AC
SEEDS = range(64)

_WEIGHTED = {torch.ops.aten.convolution.default, torch.ops.aten.addmm.default}
_READOUTS = (readouts.Mean, readouts.Membrane, readouts.Weighted)


@dataclass(frozen=True)
class Cost:
    """Per image, by layer: MACs, ACs, and of spiking layers the firing rate (mean over T, N and
    units) and T."""

    macs: dict[str, float]
    acs: dict[str, float]
    rates: dict[str, float]
    T: dict[str, int]

    @property
    def energy_nj(self) -> float:
        """Energy of the counted operations of one image, in nanojoule."""
        return sum(self.macs.values()) * PJ_PER_MAC / 1000 + self.spikes_nj

    @property
    def spikes_nj(self) -> float:
        """The part of it in layers that are fed by spikes."""
        return sum(self.acs.values()) * PJ_PER_AC / 1000


def images_per_second(generator: nn.Module, n: int = 256) -> float:
    """How fast a generator draws here: the median of three times n images."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        sample(generator, range(n), next(generator.parameters()).device)
        seconds.append(time.perf_counter() - began)
    return n / statistics.median(seconds)


@torch.no_grad()
def cost(generator: nn.Module) -> Cost:
    """Counts the operations of a generator in eval mode: means over 64 seeds.

    Values count as spikes where all of a layer's input happen to be 0 or 1.
    """
    device = next(generator.parameters()).device
    latent_dim: int = generator.latent_dim  # type: ignore[assignment]  # part of the contract
    z = latents(SEEDS, latent_dim).to(device)
    with firing_rates(generator) as rates:
        macs, acs = _count(generator, z)
        # Once more with each step's spikes handed on in place of what a readout makes of them. What
        # consumes them at once is counted here; what follows has seen T times too many images.
        with _steps_for_readouts(generator):
            acs |= _count(generator, z)[1]
    steps = {name: len(spikes) for name, spikes in spikes_of(generator, [0]).items()}
    macs = {name: n for name, n in macs.items() if name not in acs}
    return Cost(macs, acs, dict(rates), steps)


@contextmanager
def _steps_for_readouts(generator: nn.Module) -> Iterator[None]:
    handles = [
        layer.register_forward_hook(lambda _m, spikes, _out: spikes[0].flatten(0, 1))
        for layer in generator.modules()
        if isinstance(layer, _READOUTS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _count(generator: nn.Module, z: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """MACs per image of the layers fed by values, ACs per image of those fed by spikes."""
    mac_counter, ac_counter = MACCounter(), ACCounter()
    with DispatchCounterMode([mac_counter, ac_counter]):
        generator(z)
    macs: dict[str, float] = {}
    acs: dict[str, float] = {}
    scopes = {f"{type(generator).__name__}.{name}": name for name, _ in generator.named_modules()}
    inner = {name.rpartition(".")[0] for name in scopes.values()}
    for scope, operations in mac_counter.get_counts().items():
        name = scopes.get(scope)
        if not name or name in inner or not operations.keys() & _WEIGHTED:
            continue  # the network, a group of layers, or a layer without weights
        counts = ac_counter.get_counts().get(scope, {})
        n_macs, n_acs = (
            sum(c.get(op, 0) for op in _WEIGHTED) / len(z) for c in (operations, counts)
        )
        if n_macs:
            macs[name] = n_macs
        else:
            acs[name] = n_acs
    return macs, acs
