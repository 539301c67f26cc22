"""What a spec builds, in words: options, layers, shapes, parameters, spikes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikezoo import zoo
from spikezoo.backends import kernel
from spikezoo.catalog import registry
from spikezoo.monitor import spiking_layers
from spikezoo.spec import Part, Spec

TWIN = "ann"
Shape = tuple[int, int, int]
Row = tuple[str, str, str, str, str]


def describe(spec: Spec, side: int = 32) -> str:
    """A text for `spikezoo show`: both networks of a spec at a side, beside their ANN twins."""
    spec = zoo.canonical(spec)
    channels = registry("datasets").get(spec.dataset).channels or 3  # colour unless all is grey
    shape = (channels, side, side)
    lines = [str(spec), f"images {list(shape)} in [-1, 1], slug {spec.slug}"]
    lines.append(f"lif, if and plif on the CPU: {kernel.in_use()}")
    for part in (spec.gen, spec.disc):
        options = zoo.resolve(part)
        network = zoo.build(part.kind, part.name, options, shape)
        lines += ["", str(part), "  options  " + _options(options), *_table(network, shape)]
        lines.append(_volume(part, network, shape))
    return "\n".join(lines)


def _input(network: nn.Module, shape: Shape) -> Tensor:
    latent_dim = getattr(network, "latent_dim", None)
    return torch.zeros(1, *shape) if latent_dim is None else torch.zeros(1, latent_dim)


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "none"


@torch.no_grad()
def layers(network: nn.Module, shape: Shape) -> list[Row]:
    """Name, type, output, parameters and "spikes" of each layer without children, in the order in
    which they compute on images of a shape [C, H, W]."""
    spiking = spiking_layers(network)
    rows: list[Row] = []

    def record(name: str, layer: nn.Module, output: Tensor) -> None:
        parameters = sum(p.numel() for p in layer.parameters())
        mark = "spikes" if name in spiking else ""
        rows.append(
            (name, type(layer).__name__, _shape(output, name in spiking), f"{parameters:,}", mark)
        )

    handles = [
        layer.register_forward_hook(lambda m, _i, out, name=name: record(name, m, out))
        for name, layer in network.named_modules()
        if name and _is_leaf(name, layer)
    ]
    network.eval()(_input(network, shape))
    for handle in handles:
        handle.remove()
    return rows


def _table(network: nn.Module, shape: Shape) -> list[str]:
    rows = [("layer", "type", "output", "parameters", ""), *layers(network, shape)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [
        ("  " + "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def _is_leaf(name: str, layer: nn.Module) -> bool:
    """Whether a layer has no layers inside; what spectral norm puts into one is none."""
    inside = [child for child, _ in layer.named_children() if child != "parametrizations"]
    return not inside and "parametrizations" not in name.split(".")


def _shape(output: Tensor, spiking: bool) -> str:
    """The output's shape with N for the batch; layers applied at each step say so."""
    sizes = list(map(str, output.shape))
    if spiking:
        return f"[T={sizes[0]}, N, {', '.join(sizes[2:])}]"
    batch = "N" if output.shape[0] == 1 else f"{sizes[0]}*N"  # the batch here is 1
    return f"[{', '.join([batch, *sizes[1:]])}]"


def _volume(part: Part, network: nn.Module, shape: Shape) -> str:
    """Parameters in all, and against the twin's."""
    count = parameters(network)
    text = f"  {count:,} parameters"
    if part.name == TWIN:
        return text
    twin = parameters(build_twin(part.kind, zoo.resolve(part), shape))
    return f"{text}, {100 * (count - twin) / twin:+.2f} % of the twin {part.kind}:{TWIN} ({twin:,})"


def build_twin(kind: str, options: dict[str, Any], shape: Shape) -> nn.Module:
    """The network without spikes, with those of a network's resolved options that both have."""
    own = zoo.resolve(Part(kind, TWIN))
    return zoo.build(kind, TWIN, {k: options.get(k, default) for k, default in own.items()}, shape)


def parameters(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in network.parameters())
