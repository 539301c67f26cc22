"""Inside a trained generator: its spikes over time, and how gradients pass through T."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spikezoo import sample, zoo
from spikezoo.errors import OptionError
from spikezoo.model import Model
from spikezoo.monitor import save_figure, spiking_layers

SEEDS = range(32)
SHOWN_UNITS = 200  # of a raster, evenly spread over the layer


@dataclass(frozen=True)
class Layer:
    """A spiking layer over some seeds.

    Attributes:
        rates: fraction of the units that fire, at each time step.
        silent: fraction of the units that fire at no time step of any seed.
        saturated: fraction of the units that fire at every time step of every seed.
        gradients: norm of the gradient of the images, in a random direction, with respect to the
            layer's current at each time step.
    """

    name: str
    rates: tuple[float, ...]
    silent: float
    saturated: float
    gradients: tuple[float, ...]

    @property
    def rate(self) -> float:
        return sum(self.rates) / len(self.rates)

    @property
    def verdict(self) -> str:
        """What the gradients do on their way from the last time step to the first, in words."""
        first, last = self.gradients[0], self.gradients[-1]
        if not first or not last:
            return "no gradient"
        ratio = first / last
        if ratio < 0.01:
            return f"vanishing through T (first/last {ratio:.1e})"
        if ratio > 100:
            return f"exploding through T (first/last {ratio:.1e})"
        return f"passes through T (first/last {ratio:.2f})"


def layers(model: Model, seeds: range = SEEDS) -> list[Layer]:
    """Each spiking layer of a model, in the order in which it computes."""
    spikes = model.spikes(seeds)
    gradients = _gradients(model.generator, seeds)
    found = []
    for name, fired in spikes.items():  # bool [T, N, ...]
        units = fired.flatten(2)  # [T, N, U]
        found.append(
            Layer(
                name,
                tuple(units.float().mean((1, 2)).tolist()),
                (~units.any(0).any(0)).float().mean().item(),
                units.all(0).all(0).float().mean().item(),
                tuple(gradients[name].flatten(1).norm(dim=1).tolist()),
            )
        )
    return found


def as_text(found: list[Layer]) -> str:
    """The layers as a Markdown table."""
    lines = [
        "| layer | rate | by time step | silent | saturated | gradient by time step | |",
        "|---|---|---|---|---|---|---|",
    ]
    for layer in found:
        rates = " ".join(f"{rate:.2f}" for rate in layer.rates)
        norms = " ".join(f"{norm:.1e}" for norm in layer.gradients)
        lines.append(
            f"| {layer.name} | {layer.rate:.3f} | {rates} | {layer.silent:.1%} | "
            f"{layer.saturated:.1%} | {norms} | {layer.verdict} |"
        )
    return "\n".join(lines) if found else "no layer of this generator spikes"


def _gradients(generator: nn.Module, seeds: range) -> dict[str, Tensor]:
    """Layer -> gradient of the images, in a random direction, by its current [T, N, ...]."""
    currents: dict[str, Tensor] = {}
    latent_dim: int = generator.latent_dim  # type: ignore[assignment]  # part of the contract
    device = next(generator.parameters()).device

    def written_out(name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A current that is the same at every step has one gradient for all; a copy has its own.
        x = inputs[0].clone(memory_format=torch.contiguous_format)
        currents[name] = x = x if x.requires_grad else x.requires_grad_()
        return (x, *inputs[1:])

    with ExitStack() as stack, torch.enable_grad():
        for name, layer in spiking_layers(generator).items():
            handle = layer.register_forward_pre_hook(
                lambda _m, inputs, name=name: written_out(name, inputs)
            )
            stack.callback(handle.remove)
        images: Tensor = generator(sample.latents(seeds, latent_dim).to(device))
        direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        along = (images * direction.to(device)).sum()
        inputs = [*currents.values()]
        # A layer whose spikes no image depends on has the gradient 0.
        if not along.requires_grad:
            return {name: torch.zeros_like(x) for name, x in currents.items()}
        grads = torch.autograd.grad(along, inputs, materialize_grads=True) if inputs else ()
    return dict(zip(currents, grads, strict=True))


def after(model: Model, seeds: range) -> Tensor:
    """The images read out after 1, 2, ..., T time steps, uint8 [T, N, C, H, W].

    `readout=weighted` has as many of its weights as there are steps, made to add up to 1.

    Raises:
        OptionError: the generator has no time steps.
    """
    generator = model.config["generator"]
    options = dict(generator["options"])
    if "T" not in options:
        raise OptionError(f"gen:{generator['name']} has no time steps")
    shape = tuple(model.config["shape"])
    weights = model.generator.state_dict()
    device = next(model.generator.parameters()).device
    images = []
    for T in range(1, options["T"] + 1):
        shorter = zoo.build("gen", generator["name"], {**options, "T": T}, shape)
        own = dict(weights)
        if options.get("readout") == "weighted":  # which takes the softmax of what it has
            own["readout.weight"] = weights["readout.weight"][:T]
        shorter.load_state_dict({key: own[key] for key in shorter.state_dict()})
        images.append(sample.sample(shorter.to(device).eval(), seeds, device))
    return torch.stack(images)


# --- pictures -------------------------------------------------------------------------------


def draw(model: Model, found: list[Layer], folder: Path) -> list[Path]:
    """Writes the pictures that a model has into a folder: interpolation.png; and of one that
    spikes rates.png, raster.png and, where it can be read out early, readout.png."""
    written = [folder / "interpolation.png"]
    sample.save_grid(model.interpolate(0, 1, 8), written[0])
    if found:
        written += [_rates(found, folder / "rates.png"), _raster(model, folder / "raster.png")]
        try:
            images = after(model, range(8))
        except OptionError:
            return written
        written.append(folder / "readout.png")
        sample.save_grid(images.flatten(0, 1), written[-1], columns=8)
    return written


def _rates(found: list[Layer], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    rates, gradients = figure.subplots(1, 2)
    for layer in found:
        steps = range(1, len(layer.rates) + 1)
        rates.plot(steps, layer.rates, marker="o", label=layer.name)
        gradients.plot(steps, [g or None for g in layer.gradients], marker="o", label=layer.name)
    ticks = range(1, max(len(layer.rates) for layer in found) + 1)
    rates.set(title="firing rate", xlabel="time step", ylim=(0, 1), xticks=ticks)
    gradients.set(title="gradient of the current", xlabel="time step", yscale="log", xticks=ticks)
    rates.legend(fontsize="x-small")
    save_figure(figure, path)
    return path


def _raster(model: Model, path: Path) -> Path:
    from matplotlib.figure import Figure

    spikes = model.spikes([0])
    figure = Figure(figsize=(4 * len(spikes), 4), layout="constrained")
    for axes, (name, fired) in zip(
        figure.subplots(1, len(spikes), squeeze=False)[0], spikes.items(), strict=True
    ):
        units = fired[:, 0].flatten(1)  # [T, U]
        shown = units[:, torch.linspace(0, units.shape[1] - 1, SHOWN_UNITS).long()]
        t, unit = shown.nonzero(as_tuple=True)
        axes.scatter(t + 1, unit, s=12, marker="_")
        axes.set(title=name, xlabel="time step", ylabel="unit", xticks=range(1, len(units) + 1))
    save_figure(figure, path)
    return path
