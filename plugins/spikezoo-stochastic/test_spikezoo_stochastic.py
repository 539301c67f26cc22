"""The contract of SpikeZoo, and what is this neuron's own: how often it fires, and its gradient."""

from __future__ import annotations

import pytest
import torch
from spikezoo_stochastic import Stochastic

import spikezoo
from spikezoo.errors import OptionError
from spikezoo.testing import check_discriminator, check_generator, check_neuron


def test_contract() -> None:
    check_neuron(Stochastic)


def test_networks_with_it_keep_the_contract() -> None:
    torch.manual_seed(0)
    spec = "gen:snn_middle,neuron=stochastic,width=8+disc:snn,neuron=stochastic,delta=0.5,width=8"
    pair = spikezoo.create(spec, shape=(1, 16, 16))
    check_generator(pair.generator, (1, 16, 16))
    check_discriminator(pair.discriminator, (1, 16, 16))


def test_it_fires_as_often_as_its_escape_rate_says() -> None:
    torch.manual_seed(0)
    h = torch.tensor([0.5, 0.9, 1.0, 1.3])
    rates = Stochastic(delta=0.2)(h.repeat(1, 20_000, 1)).mean((0, 1))
    torch.testing.assert_close(rates, torch.sigmoid((h - 1) / 0.2), rtol=0, atol=0.02)


def test_in_eval_mode_it_is_lif() -> None:
    current = torch.randn(8, 3, 50, generator=torch.Generator().manual_seed(0))
    spikes = Stochastic(beta=0.75).eval()(current)
    assert torch.equal(spikes, spikezoo.neuron("lif", beta=0.75)(current))


def test_the_gradient_is_that_of_the_escape_rate() -> None:
    x = torch.linspace(-1, 3, 9, requires_grad=True)
    for neuron in (Stochastic(), Stochastic().eval()):
        (found,) = torch.autograd.grad(neuron(x.view(1, 1, -1)).sum(), x)
        (wanted,) = torch.autograd.grad(torch.sigmoid((x - 1) / 0.25).sum(), x)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("options", [{"beta": 1.5}, {"threshold": 0.0}, {"delta": -1.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="given"):
        Stochastic(**options)
