"""Watches networks while they train: firing rates, gradient norms, and what is wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from spikezoo import files
from spikezoo.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A spiking layer below or above these rates passes nothing on; between them lies all that works.
SILENT, SATURATED = 0.001, 0.999
# Adam divides by the gradient's size, so what matters is where float32 loses it or it explodes.
VANISHED, EXPLODED = 1e-9, 1e4


def spiking_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network whose class says `is_spiking`, by name."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if getattr(type(layer), "is_spiking", False)
    }


@contextmanager
def firing_rates(network: nn.Module) -> Iterator[dict[str, float]]:
    """A dict that the block's forward passes fill: spiking layer -> mean of its spikes."""
    rates: dict[str, float] = {}
    seen: dict[str, list[float]] = {}
    layers = spiking_layers(network)

    def record(name: str, spikes: Tensor) -> None:
        seen.setdefault(name, []).append(spikes.detach().float().mean().item())

    handles = [
        layer.register_forward_hook(lambda _m, _i, spikes, name=name: record(name, spikes))
        for name, layer in layers.items()
    ]
    try:
        yield rates
    finally:
        for handle in handles:
            handle.remove()
        rates.update((name, sum(values) / len(values)) for name, values in seen.items())


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """The Euclidean norm of the gradient of each layer that has parameters of its own."""
    norms: dict[str, float] = {}
    for name, layer in network.named_modules():
        grads = [p.grad for p in layer.parameters(recurse=False) if p.grad is not None]
        if grads:
            norms[name] = math.sqrt(sum(g.float().square().sum().item() for g in grads))
    return norms


def complaints(rates: dict[str, float], gradients: dict[str, float]) -> dict[str, str]:
    """What is wrong with which layer: `layer fault` -> a sentence; empty while all is well."""
    found = {}
    for layer, rate in rates.items():
        if rate < SILENT:
            found[f"{layer} silent"] = (
                f"{layer} is silent (firing rate {rate:.4f}); lower its threshold or raise beta"
            )
        elif rate > SATURATED:
            found[f"{layer} saturated"] = (
                f"{layer} is saturated (firing rate {rate:.4f}); raise its threshold or lower beta"
            )
    for layer, norm in gradients.items():
        if norm < VANISHED:
            found[f"{layer} vanishing"] = (
                f"{layer} has a vanishing gradient (norm {norm:.1e}); try a smaller alpha, a "
                "lower --lr-d, or another --loss"
            )
        elif not norm < EXPLODED:
            found[f"{layer} exploding"] = (
                f"{layer} has an exploding gradient (norm {norm:.1e}); try a lower learning rate, "
                "a larger --r1, or detach_reset=true"
            )
    return found


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draws a run's metrics.jsonl: losses, firing rates and gradient norms over kimg."""
    from matplotlib.figure import Figure

    # A run that was stopped before its first iteration has no metrics.
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    rows = [json.loads(line) for line in lines]
    kimg = [row["images"] / 1000 for row in rows]
    figure = Figure(figsize=(14, 4), layout="constrained")
    losses, rates, gradients = figure.subplots(1, 3)
    for key, label in (("loss_g", "G"), ("loss_d", "D")):
        losses.plot(kimg, [row[key] for row in rows], label=label)
    for axes, key in ((rates, "rates"), (gradients, "gradients")):
        for index, layer in enumerate(rows[-1][key] if rows else ()):
            style = "-" if index < 10 else "--"  # matplotlib has ten colours
            values = [row[key].get(layer) for row in rows]
            if axes is gradients:
                values = [value or None for value in values]  # its axis has no place for 0
            # The figure has no room for the names of more.
            axes.plot(kimg, values, style, label=layer if index < 20 else None)
    losses.set(title="loss", xlabel="kimg")
    rates.set(title="firing rate", xlabel="kimg", ylim=(0, 1))
    gradients.set(title="gradient norm", xlabel="kimg", yscale="log")
    for axes in (losses, rates, gradients):
        if axes.lines:
            axes.legend(fontsize="x-small")
    save_figure(figure, picture)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all."""
    with files.writing(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


def tensorboard_writer(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that logs one line of metrics for TensorBoard.

    Raises:
        OptionError: TensorBoard is not installed; says how to install it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError(
            "--tensorboard needs the package tensorboard: pip install 'spikezoo-gan[tensorboard]'"
        ) from error
    writer = SummaryWriter(str(folder))

    def write(row: dict[str, Any]) -> None:
        for key, value in row.items():
            named = value if isinstance(value, dict) else {"": value}
            for name, number in named.items():
                writer.add_scalar(f"{key}/{name}".rstrip("/"), number, row["images"])
        writer.flush()

    return write
