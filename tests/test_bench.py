"""`spikezoo bench` computes what it says it times; speed itself is asserted nowhere."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from spikezoo import bench, by_hand, zoo
from spikezoo.cli import main
from spikezoo.errors import OptionError
from spikezoo.losses import BCE
from spikezoo.spec import Spec


def test_the_contenders_compute_one_neuron() -> None:
    """The libraries' own nodes agree with ours where their definitions do."""
    x = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    spikes = zoo.neuron("lif", beta=bench.BETA)(x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(bench._spikingjelly(x), spikes)
    # snnTorch resets one step late, which is another neuron; before its first spike it is ours.
    own = bench._snntorch(x)
    before = spikes.cumsum(0) - spikes == 0
    assert torch.equal(own[before], spikes[before])


def test_neurons_by_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "SHAPE", (2, 4, 4, 4))
    monkeypatch.setattr(bench, "ROUNDS", 2)
    file = tmp_path / "rows.json"
    done = CliRunner().invoke(
        main, ["bench", "neurons", "--backend", "native", "--json", str(file)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert len(found["rows"]) == 4 * 2 * 4
    assert {row["contender"] for row in found["rows"]} >= {"relu", "native"}
    assert all(row["ms"] > 0 for row in found["rows"])
    assert [row["ratio"] for row in found["rows"] if row["contender"] == "relu"] == [1.0] * 8
    assert "lif on" in done.output


@pytest.mark.parametrize("what", ["train", "sample"])
def test_a_spec_by_the_command(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    spec = "gen:snn_middle,width=4,T=2+disc:snn,width=4,T=2@digits"
    done = CliRunner().invoke(main, ["bench", what, spec, "--backend", "reference"])
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == (3 if what == "train" else 2)
    assert all(float(row.split("|")[6]) > 0 for row in rows)


def test_what_cannot_be_timed_is_said() -> None:
    done = CliRunner().invoke(main, ["bench", "neurons", "gen:ann", "disc:ann"])
    assert done.exit_code == 2
    assert "takes no SPEC" in done.output
    done = CliRunner().invoke(main, ["bench", "neurons", "--backend", "nativ"])
    assert done.exit_code == 2
    assert "did you mean 'native'?" in done.output


BY_HAND = ["gen:snn_middle+disc:snn@mnist", "gen:snn_full+disc:snn,width=16,dropout=0.25@mnist"]


@pytest.mark.parametrize("library", by_hand.LAYERS)
@pytest.mark.parametrize("text", BY_HAND)
def test_networks_by_hand_compute_ours(text: str, library: str) -> None:
    """In float64, where no rounding moves a spike: images, logits, losses, and every gradient."""
    torch.manual_seed(0)
    pair = zoo.create(Spec.parse(text))
    ours = (pair.generator.double(), pair.discriminator.double())
    pair.discriminator.dropout.p = 0.0
    theirs = by_hand.build(library, pair)
    for network in theirs:
        network.double()
        for layer in network.modules():
            if hasattr(layer, "p"):  # dropout
                layer.p = 0.0
    z = torch.randn(4, 100, dtype=torch.float64)
    images = ours[0](z)
    logits = ours[1](images)
    BCE.generator(logits).backward()
    seen = by_hand._forget(theirs[0], z)
    judged = by_hand._forget(theirs[1], seen)
    # The membrane readout's weights are of float32.
    torch.testing.assert_close(seen, images, rtol=0, atol=1e-6)
    torch.testing.assert_close(judged, logits, rtol=0, atol=1e-6)
    torch.nn.functional.softplus(-judged).mean().backward()
    for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.BatchNorm2d):
        for network, own in zip(ours, theirs, strict=True):
            mine = [m for m in network.modules() if isinstance(m, kind)]
            same = [m for m in own.modules() if isinstance(m, kind)]
            assert len(mine) == len(same)
            for a, b in zip(mine, same, strict=True):
                assert b.weight.grad.abs().sum() > 0
                torch.testing.assert_close(b.weight.grad, a.weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("library", by_hand.LAYERS)
def test_an_iteration_by_hand_learns(library: str) -> None:
    pair = zoo.create(zoo.canonical(Spec.parse(BY_HAND[0])))
    generator, discriminator = by_hand.build(library, pair)
    before = [p.clone() for p in [*generator.parameters(), *discriminator.parameters()]]
    optimizers = (
        torch.optim.Adam(generator.parameters()),
        torch.optim.Adam(discriminator.parameters()),
    )
    real, z = torch.rand(4, 1, 32, 32) * 2 - 1, torch.randn(4, 100)
    loss_d, loss_g = by_hand.iteration(generator, discriminator, *optimizers, real, z)
    assert loss_d > 0
    assert loss_g > 0
    after = [*generator.parameters(), *discriminator.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert by_hand.draw(generator.eval(), 5, batch_size=2).shape == (5, 1, 32, 32)


def test_only_what_is_written_by_hand_is_built() -> None:
    pair = zoo.create(Spec.parse("gen:snn_back+disc:snn@mnist"))
    assert not by_hand.can_build(pair.spec)
    with pytest.raises(OptionError, match="no version of gen:snn_back"):
        by_hand.build("snnTorch", pair)


def test_growth_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    rows = bench.growth(Spec.parse("gen:snn_middle,width=4+disc:snn,width=4@digits"), (1, 2, 3))
    assert [row.contender for row in rows][:3] == ["T=1", "T=2", "T=3"]
    assert [row.contender for row in rows][3:] == [f"batch={n}" for n in (16, 32, 64, 128)]
    assert bench._line([1, 2, 3], [3, 5, 7]) == "= 1.0 + 2.00 * it (R^2 1.000)"
