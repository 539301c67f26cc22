"""The contract for both networks, the readout in other generators, and the loss in a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spikezoo_sgad import EARTH_MOVER, AttentionScoring

import spikezoo
from spikezoo.errors import OptionError
from spikezoo.recipes import settings
from spikezoo.spec import Spec
from spikezoo.testing import check_discriminator, check_generator
from spikezoo.train import train

torch.set_num_threads(1)  # small tensors: threads only wait for one another


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 16)])
@pytest.mark.parametrize("T", [2, 8])
def test_contract(shape: tuple[int, int, int], T: int) -> None:
    torch.manual_seed(0)
    pair = spikezoo.create(f"gen:sgad,width=8,T={T}+disc:sgad,width=8,T={T}", shape=shape)
    check_generator(pair.generator, shape)
    check_discriminator(pair.discriminator, shape)


@pytest.mark.parametrize("generator", ["snn_front", "snn_middle", "snn_full"])
def test_the_readout_serves_other_generators(generator: str) -> None:
    torch.manual_seed(0)
    spec = f"gen:{generator},readout=attention,readout.grid=4,width=8+disc:ann"
    check_generator(spikezoo.create(spec, shape=(1, 16, 16)).generator, (1, 16, 16))


@pytest.mark.parametrize("shape", [(5, 2, 3, 4, 4), (5, 2, 3)])
def test_the_readout_is_a_weighted_mean_over_time(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    readout = AttentionScoring(shape[0])
    x = torch.rand(shape)
    out = readout(x)
    assert out.shape == x.shape[1:]
    assert (out >= x.amin(0) - 1e-6).all()
    assert (out <= x.amax(0) + 1e-6).all()
    torch.testing.assert_close(readout(torch.ones(shape)), torch.ones(shape[1:]))
    torch.testing.assert_close(readout(x.flip(0)), out)  # scores go by what, not by when
    assert not torch.allclose(out, x.mean(0))


def test_the_readout_can_single_out_a_time_step() -> None:
    readout = AttentionScoring(3, grid=1, hidden=1)
    for parameter, value in zip(readout.parameters(), (0.0, 0.0, 1.0, 100.0), strict=True):
        torch.nn.init.constant_(parameter, value)
    x = torch.stack([torch.full((1, 1, 4, 4), brightness) for brightness in (0.2, 0.9, 0.4)])
    torch.testing.assert_close(readout(x), x[1])


def test_the_potential_stays_float32_under_autocast() -> None:
    spec = "gen:sgad,width=8+disc:ann"
    generator = spikezoo.create(spec, shape=(1, 16, 16)).generator
    seen: list[torch.dtype] = []
    generator.readout.register_forward_pre_hook(lambda _, v: seen.append(v[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        generator(torch.randn(2, generator.latent_dim))
    assert seen == [torch.float32]


def test_the_score_of_the_critic_is_bounded() -> None:
    torch.manual_seed(0)
    critic = spikezoo.create("gen:ann+disc:sgad,width=8", shape=(1, 16, 16)).discriminator
    scores = critic(1000 * torch.randn(64, 1, 16, 16))
    assert scores.abs().max() <= 64**0.5 + 1  # 64 rates, and a bias


def test_loss() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.5, -0.5])
    assert EARTH_MOVER.discriminator(real, fake).item() == -2
    assert EARTH_MOVER.generator(fake).item() == 0


def test_a_run_trains_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEZOO_CACHE", str(tmp_path / "cache"))
    spec = Spec.parse("gen:sgad,width=4,T=2+disc:sgad,width=4,T=2")
    chosen = settings(batch_size=16, side=16, precision="fp32", loss="earth_mover")
    result = train(spec, chosen, kimg=0.064, out=tmp_path)
    model = spikezoo.load(result.run)
    assert model.config["plugins"] == {"spikezoo-sgad": "0.1.0"}
    assert model.sample([0, 1]).shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gen:sgad,T=1+disc:ann", "T of 2 or more"),
        ("gen:sgad,output_beta=1+disc:ann", r"output_beta is a decay in \[0, 1\), given 1"),
        ("gen:sgad,readout.grid=0+disc:ann", "grid and hidden are at least 1"),
        ("gen:ann+disc:sgad,width=0", "are at least 1, given 0"),
    ],
)
def test_values_out_of_range_are_refused(spec: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        spikezoo.create(spec)
