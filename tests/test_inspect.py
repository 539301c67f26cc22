"""What `spikezoo inspect` sees of a generator, against what can be known of it beforehand."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import spikezoo
from spikezoo import cost, inspect, model, zoo
from spikezoo.backends import set_backend
from spikezoo.cli import main
from spikezoo.errors import OptionError
from spikezoo.recipes import settings
from spikezoo.sample import latents
from spikezoo.spec import Spec
from spikezoo.train import train


def made(text: str) -> model.Model:
    torch.manual_seed(0)
    spec = zoo.canonical(Spec.parse(text))
    pair = zoo.create(spec, shape=(1, 16, 16))
    generator = pair.generator.train()
    for _ in range(20):  # statistics of batch norm, without which little fires
        generator(torch.randn(32, generator.latent_dim))
    options = zoo.resolve(spec.gen)
    config = {"generator": {"name": spec.gen.name, "options": options}, "shape": [1, 16, 16]}
    return model.Model(generator.eval(), spec, config)


def test_rates_are_those_of_the_spikes() -> None:
    net = made("gen:snn_extractor,width=8,T=3+disc:ann")
    spikes = net.spikes(inspect.SEEDS)
    found = inspect.layers(net)
    assert [layer.name for layer in found] == list(spikes)
    for layer in found:
        fired = spikes[layer.name].float()
        assert layer.rates == pytest.approx(fired.mean((1, 2, 3, 4)).tolist())
        assert layer.rate == pytest.approx(fired.mean().item(), rel=1e-5)
        never = (fired.sum((0, 1)) == 0).float().mean().item()
        assert layer.silent == pytest.approx(never)
        assert layer.saturated == 0


def test_layers_that_do_not_work_are_seen() -> None:
    net = made("gen:snn_front,width=8+disc:ann")
    with torch.no_grad():
        net.generator.project.norm.bias.fill_(-50)
    (layer,) = inspect.layers(net)
    assert (layer.silent, layer.rate) == (1.0, 0.0)
    with torch.no_grad():
        net.generator.project.norm.bias.fill_(50)
    (layer,) = inspect.layers(net)
    assert (layer.saturated, layer.rate) == (1.0, 1.0)


def test_spikes_that_no_image_depends_on_have_no_gradient() -> None:
    """The fault of the paper's own code: a "back" generator whose pixels are not its spikes."""
    net = made("gen:snn_back,width=8+disc:ann")
    currents = []
    net.generator.conv3.register_forward_hook(lambda _m, _i, x: currents.append(x))
    net.generator.readout.register_forward_hook(lambda _m, _i, _rate: currents[-1].sigmoid())
    (layer,) = inspect.layers(net)
    assert set(layer.gradients) == {0.0}
    assert layer.verdict == "no gradient"
    # The same where nothing in front of the images has a gradient at all.
    net.generator.readout.register_forward_hook(lambda _m, _i, rate: rate.detach())
    (layer,) = inspect.layers(net)
    assert layer.verdict == "no gradient"


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_by_time_step_add_up_to_that_of_the_current(backend: str) -> None:
    """The middle's current is one for all T; its gradient is the sum over time steps."""
    net = made("gen:snn_middle,width=8,T=4,beta=0.9+disc:ann")
    set_backend(net.generator, backend)
    (found,) = inspect._gradients(net.generator, range(4)).values()
    assert found.shape[:2] == (4, 4)
    assert not net.generator.spikes._forward_pre_hooks
    one_for_all: list[torch.Tensor] = []
    handle = net.generator.conv1.register_forward_hook(lambda _m, _i, x: one_for_all.append(x))
    images = net.generator(latents(range(4), net.generator.latent_dim))
    handle.remove()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    (wanted,) = torch.autograd.grad((images * direction).sum(), one_for_all)
    torch.testing.assert_close(found.sum(0), wanted, rtol=1e-4, atol=1e-5)
    (layer,) = inspect.layers(net, range(4))
    assert layer.gradients == pytest.approx([found[t].norm().item() for t in range(4)])


@pytest.mark.parametrize(
    ("gradients", "word"),
    [
        ((1.0, 1.0), "passes"),
        ((1e-3, 1.0), "vanishing"),
        ((1.0, 1e-3), "exploding"),
        ((0.0, 1.0), "no gradient"),
    ],
)
def test_verdicts(gradients: tuple[float, ...], word: str) -> None:
    layer = inspect.Layer("spikes", (0.1, 0.1), 0.0, 0.0, gradients)
    assert layer.verdict.startswith(word)
    assert word in inspect.as_text([layer])


def test_images_read_out_early_end_in_the_image() -> None:
    net = made("gen:snn_middle,width=8,T=4+disc:ann")
    images = inspect.after(net, range(3))
    assert images.shape == (4, 3, 1, 16, 16)
    assert torch.equal(images[-1], net.sample(range(3)))
    assert not torch.equal(images[0], images[-1])
    with pytest.raises(OptionError, match="no time steps"):
        inspect.after(made("gen:ann,width=8+disc:ann"), range(3))


def test_a_weighted_readout_is_read_early_by_its_first_weights() -> None:
    net = made("gen:snn_back,width=8,T=3,readout=weighted,threshold=0.1+disc:ann")
    with torch.no_grad():
        net.generator.readout.weight.copy_(torch.tensor([0.5, 0.2, 0.3]).log())
    (spikes,) = net.spikes(range(3)).values()
    first, second, third = spikes.float()
    wanted = [first, (0.5 * first + 0.2 * second) / 0.7, 0.5 * first + 0.2 * second + 0.3 * third]
    levels = torch.stack(wanted).mul(255).round()
    assert (inspect.after(net, range(3)) - levels).abs().max() <= 1
    assert len(levels.unique()) > 2


def test_a_run_by_the_command(tmp_path: Path) -> None:
    spec = Spec.parse("gen:snn_full,width=4,T=2+disc:ann,width=4@digits")
    run = train(spec, settings(batch_size=16, precision="fp32"), kimg=0.032, out=tmp_path).run
    done = CliRunner().invoke(main, ["inspect", str(run)])
    assert done.exit_code == 0, done.output
    layers, costs = done.output.split("## Cost of one image")
    assert sum(line.startswith("| spikes") for line in layers.splitlines()) == 3
    assert sum(line.startswith("| spikes") for line in costs.splitlines()) == 3
    spent = cost.cost(spikezoo.load(run).generator)
    assert f"an estimated {spent.energy_nj:,.0f} nJ; its ANN twin: " in costs
    assert float(re.search(r"draws ([\d,]+) images/s", costs)[1].replace(",", "")) > 0
    for name in ("interpolation", "rates", "raster", "readout"):
        Image.open(run / "inspect" / f"{name}.png").verify()
    plain = train(
        Spec.parse("gen:ann,width=4+disc:ann,width=4@digits"),
        settings(batch_size=16, precision="fp32"),
        kimg=0.032,
        out=tmp_path,
    ).run
    done = CliRunner().invoke(main, ["inspect", str(plain), "--out", str(tmp_path / "seen")])
    assert done.exit_code == 0, done.output
    assert "no layer of this generator spikes" in done.output
    assert [p.name for p in (tmp_path / "seen").iterdir()] == ["interpolation.png"]
