"""The monitor against networks that are silent, saturated, vanishing or exploding."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import spikezoo
from spikezoo.catalog import names
from spikezoo.monitor import (
    complaints,
    draw_curves,
    firing_rates,
    gradient_norms,
    spiking_layers,
)

SMALL = "width=4,latent_dim=4,T=2"


def generator(options: str = "") -> nn.Module:
    torch.manual_seed(0)
    spec = f"gen:snn_middle,{SMALL}{options}+disc:ann,width=4"
    return spikezoo.create(spec, shape=(1, 16, 16)).generator


def discriminator(options: str = "") -> nn.Module:
    torch.manual_seed(0)
    spec = f"gen:ann,width=4+disc:snn,width=4,T=2{options}"
    return spikezoo.create(spec, shape=(1, 16, 16)).discriminator


def test_spiking_layers_are_found_by_name() -> None:
    assert list(spiking_layers(generator())) == ["spikes"]
    assert list(spiking_layers(discriminator())) == [f"spikes.{i}" for i in range(4)]
    ann = spikezoo.create("gen:ann,width=4+disc:ann,width=4", shape=(1, 16, 16))
    assert spiking_layers(ann.generator) == {}


@pytest.mark.parametrize("backend", names("backends"))
def test_firing_rates_equal_a_count_by_hand(backend: str) -> None:
    layer = spikezoo.neuron("lif", backend=backend, beta=0.5, threshold=1.0, reset="soft")
    network = nn.Sequential(layer)
    # v: 0.6, 0.9, 1.05 -> spike   |   1, 0 -> spike at t = 0 alone   |   never
    current = torch.tensor([[0.6, 1.0, 0.1], [0.6, 0.0, 0.1], [0.6, 0.0, 0.1]])[:, None]  # [T,N,3]
    with firing_rates(network) as rates:
        network(current)
        assert rates == {}, "rates are there when the block ends"
    assert rates == {"0": pytest.approx(2 / 9)}


def test_firing_rates_are_the_mean_over_the_calls_of_the_block_alone() -> None:
    network = nn.Sequential(spikezoo.neuron("lif", threshold=1.0))
    ones, zeros = torch.full((2, 1, 8), 5.0), torch.zeros(2, 1, 8)
    network(ones)
    with firing_rates(network) as rates:
        for current in (ones, zeros, zeros, zeros):
            network(current)
    network(ones)
    assert rates == {"0": pytest.approx(0.25)}
    assert not network[0]._forward_hooks, "no hook is left behind"


def test_hooks_are_removed_when_the_block_fails() -> None:
    network = generator()
    with pytest.raises(RuntimeError), firing_rates(network):
        network(torch.zeros(2, 3))
    assert not any(layer._forward_hooks for layer in network.modules())


def test_gradient_norms_by_hand() -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 2.0]]))
        network[0].bias.fill_(0.0)
        network[2].weight.fill_(3.0)
    assert gradient_norms(network) == {}, "nothing before a backward pass"
    network(torch.tensor([[4.0, 5.0]])).sum().backward()
    assert gradient_norms(network) == {
        "0": pytest.approx((12.0**2 + 15.0**2 + 3.0**2) ** 0.5),  # 3 x, and 3 for the bias
        "2": pytest.approx(14.0),
    }


def test_a_healthy_network_is_not_complained_about() -> None:
    for network, x in (
        (generator(), torch.randn(8, 4)),
        (discriminator(), torch.rand(8, 1, 16, 16) * 2 - 1),
    ):
        rates, gradients = measure(network, x)
        assert complaints(rates, gradients) == {}
        assert all(0.001 < rate < 0.999 for rate in rates.values())


@pytest.mark.parametrize(
    ("threshold", "shift", "fault", "advice"),
    [
        (1e6, 0.0, "silent", "lower its threshold"),
        (1e-6, 100.0, "saturated", "raise its threshold"),
    ],
)
def test_a_layer_that_is_silent_or_saturated_is_named(
    threshold: float, shift: float, fault: str, advice: str
) -> None:
    network = generator(f",threshold={threshold:.6f}")
    with torch.no_grad():
        norm = network.conv1.norm  # type: ignore[union-attr]
        norm.weight.fill_(1.0)  # the initial weight would follow the threshold
        norm.bias.fill_(shift)
    rates, _ = measure(network, torch.randn(8, 4))
    found = complaints({f"G.{name}": rate for name, rate in rates.items()}, {})
    assert list(found) == [f"G.spikes {fault}"]
    assert found[f"G.spikes {fault}"].startswith(f"G.spikes is {fault} (firing rate ")
    assert advice in found[f"G.spikes {fault}"]


def test_only_the_silent_layer_of_several_is_named() -> None:
    network = discriminator(",norm=none,dropout=0")
    with torch.no_grad():
        network.convs[2].weight.zero_()  # type: ignore[index,union-attr]
        network.convs[2].bias.zero_()  # type: ignore[index,union-attr]
    rates, gradients = measure(network, torch.rand(8, 1, 16, 16) * 2 - 1)
    assert "spikes.2 silent" in complaints(rates, gradients)
    assert not {"spikes.0 silent", "spikes.1 silent"} & complaints(rates, gradients).keys()


@pytest.mark.parametrize(
    ("scale", "fault", "advice"),
    [
        (1e-12, "vanishing", "smaller alpha"),
        (0.0, "vanishing", "--loss"),
        (1e9, "exploding", "lower learning rate"),
        (float("nan"), "exploding", "detach_reset=true"),
    ],
)
def test_a_gradient_that_vanishes_or_explodes_is_named(
    scale: float, fault: str, advice: str
) -> None:
    network = generator()
    network(torch.randn(8, 4)).square().mean().mul(scale).backward()
    found = complaints({}, gradient_norms(network))
    assert f"conv1.conv {fault}" in found
    assert found[f"conv1.conv {fault}"].startswith("conv1.conv has a")
    assert advice in found[f"conv1.conv {fault}"]


def test_a_gradient_vanishes_behind_a_surrogate_too_narrow_to_be_met() -> None:
    """The paper's complaint: far from the threshold a steep surrogate passes nothing back."""
    network = generator(",surrogate=triangle,alpha=1000000")
    _, gradients = measure(network, torch.randn(8, 4))
    assert {"conv1.conv vanishing", "project.linear vanishing"} <= complaints({}, gradients).keys()
    assert "conv3 vanishing" not in complaints({}, gradients)


def measure(network: nn.Module, x: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    with firing_rates(network) as rates:
        network(x).square().mean().backward()
    return rates, gradient_norms(network)


# --- curves ---------------------------------------------------------------------------------


def row(images: int, loss: float, rate: float = 0.2, gradient: float = 0.1) -> str:
    facts = {
        "images": images, "loss_g": loss, "loss_d": 1.0, "images_per_second": 1.0,
        "rates": {"G.spikes": rate}, "gradients": {"G.conv1": gradient},
    }  # fmt: skip
    return json.dumps(facts) + "\n"


@pytest.mark.parametrize(
    "lines",
    [
        row(64, 1.0) + row(128, 0.5) + row(192, 0.7),
        row(64, 1.0),
        row(64, 1.0, rate=0.0, gradient=0.0),  # nothing to show on a logarithmic axis
        row(64, 1.0, gradient=float("nan")),
        "",
        None,
    ],
    ids=["curves", "one", "zeros", "nan", "empty", "no file"],
)
def test_curves_are_drawn(lines: str | None, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    if lines is not None:
        metrics.write_text(lines)
    draw_curves(metrics, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 800
        assert len(picture.convert("L").getcolors() or ()) > 5, "not a blank page"
    left = {path.name for path in tmp_path.iterdir()} - {"metrics.jsonl"}
    assert left == {"curves.png"}, "no temporary file is left"


def test_a_layer_that_appears_later_is_drawn(tmp_path: Path) -> None:
    first = json.loads(row(64, 1.0)) | {"rates": {}, "gradients": {}}
    (tmp_path / "m.jsonl").write_text(json.dumps(first) + "\n" + row(128, 0.5))
    draw_curves(tmp_path / "m.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
