"""A trained model in a folder, and the strict way back from it into memory.

Two kinds of folder hold a model: a run (`spikezoo train`), whose newest checkpoint has it, and an
exported one (`spikezoo export`), see `spikezoo.export`. Files may come from strangers: sizes are
looked at before anything is allocated, names and shapes before anything is read.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spikezoo import checkpoint, zoo
from spikezoo import sample as sampling
from spikezoo.errors import (
    CheckpointError,
    OptionError,
    PluginError,
    SpecError,
    SpikeZooError,
    UnknownNameError,
)
from spikezoo.monitor import spiking_layers
from spikezoo.spec import Spec

FORMAT_VERSION = 1
QUALITY = "quality.json"  # of a run: what was measured of its newest checkpoint then
CONFIG, WEIGHTS, DISCRIMINATOR = "config.json", "model.safetensors", "discriminator.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")  # never read: opening one can run any code
LARGEST_CONFIG = 2**20  # bytes; ours have about 5,000


@dataclass(frozen=True)
class Model:
    """A trained generator, in eval mode, with the name and the config it was trained under."""

    generator: nn.Module
    spec: Spec
    config: dict[str, Any]

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """Images uint8 [N, C, H, W] of the seeds; image i depends on seed i alone."""
        return sampling.sample(self.generator, seeds, self._device)

    def spikes(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The spikes behind the images of the seeds: layer -> bool [T, N, ...]."""
        return spikes_of(self.generator, seeds)

    def interpolate(self, first: int, last: int, n: int = 8) -> Tensor:
        """Images uint8 [n, C, H, W] on the way from one seed to another, both included.

        Along the great circle between the two latents: a straight line passes through latents
        shorter than any that the generator was trained on (White 2016, "slerp").
        """
        if n < 2:
            raise OptionError(f"an interpolation has 2 images or more, given n={n}")
        latent_dim: int = self.generator.latent_dim  # type: ignore[assignment]
        a, b = sampling.latents([first, last], latent_dim)
        angle = torch.acos(torch.dot(a / a.norm(), b / b.norm()).clamp(-1, 1))
        t = torch.linspace(0, 1, n).unsqueeze(1)
        if angle.sin() < 1e-6:  # the same direction, where the formula divides by zero
            z = torch.lerp(a, b, t)
        else:
            z = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()
        return sampling.images_of(self.generator, z, self._device)

    @property
    def info(self) -> dict[str, Any]:
        """What is known of it: name, dataset, shape, training, and what `export` measured."""
        keys = ("name", "dataset", "shape", "generator", "training", "versions", "measured")
        return {key: self.config[key] for key in keys if key in self.config}

    @property
    def _device(self) -> torch.device:
        return next(self.generator.parameters()).device


def spikes_of(generator: nn.Module, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The spikes behind a generator's images of the seeds: layer -> bool [T, N, ...]."""
    layers = spiking_layers(generator)
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    with ExitStack() as stack:
        for name, layer in layers.items():
            keep = seen[name].append
            handle = layer.register_forward_hook(lambda _m, _i, s, keep=keep: keep(s > 0))
            stack.callback(handle.remove)
        sampling.sample(generator, seeds, next(generator.parameters()).device)
    return {name: torch.cat(parts, 1)[:, : len(seeds)] for name, parts in seen.items() if parts}


def open_folder(
    folder: Path, *, backend: str | None = None, device: torch.device | str | None = None
) -> Model:
    """The model of a run or of an exported folder, with its averaged (EMA) weights.

    Raises:
        CheckpointError: no model there, of a newer format, or weights that do not fit exactly.
        PluginError: a plugin that it was trained with is not installed; says which.
    """
    place = sampling.usable(device or "cpu")
    config = read_config(folder)
    spec = read_spec(config, folder)
    if (folder / WEIGHTS).is_file():
        generator = read_network("gen", config, folder / WEIGHTS, backend)
    else:
        _pickles_are_no_model(folder)
        generator = build("gen", config, folder / CONFIG, backend)
        found, _ = checkpoint.newest(folder / "checkpoints")
        if found is None:
            raise CheckpointError(
                f"'{folder}' has neither {WEIGHTS} nor a checkpoint: a run that was just begun? "
                "Train it on with --resume"
            )
        load_weights(generator, found.tensors, "ema.", str(found.path))
    return Model(generator.to(place).eval(), spec, config)


def images_shown(run: Path) -> int:
    """How many real images the newest checkpoint of a run has seen; 0 if there is none."""
    found, _ = checkpoint.newest(run / "checkpoints")
    return int(found.state["images"]) if found else 0


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a run or an exported folder.

    Raises:
        CheckpointError: there is none, it is damaged, or of a newer format.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes, more than any config of ours"
            )
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"'{folder}' is no run and no model: it has no config.json; `spikezoo train` writes "
            "run folders under runs/"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version is None:
        raise CheckpointError(f"{path} is no config of SpikeZoo{_looks_like(config)}")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}, this SpikeZoo reads {FORMAT_VERSION}; "
            "a newer one may read it: pip install --upgrade spikezoo-gan"
        )
    return dict(config)


def _looks_like(config: Any) -> str:
    """Whose config.json it seems to be, as far as its keys tell."""
    if isinstance(config, dict):
        for key, whose in {
            "_diffusers_version": "diffusers",
            "architectures": "transformers",
            "pretrained_cfg": "timm",
        }.items():
            if key in config:
                return f"; it seems to be from {whose}"
    return ""


def _pickles_are_no_model(folder: Path) -> None:
    pickles = [path.name for path in folder.iterdir() if path.suffix in PICKLES]
    if pickles:
        raise CheckpointError(
            f"'{folder}' has no {WEIGHTS} but {', '.join(sorted(pickles)[:3])}: pickles, which can "
            "run any code and are never read. Ask its author for safetensors"
        )


def read_spec(config: dict[str, Any], folder: Path) -> Spec:
    """The spec of a config.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return Spec.from_json(config["spec"])
    except (KeyError, TypeError, ValueError, AttributeError, SpecError) as error:
        raise _damaged(folder / CONFIG, error) from error


def build(kind: str, config: dict[str, Any], where: Path, backend: str | None = None) -> nn.Module:
    """The generator ("gen") or discriminator ("disc") of a config, not yet with its weights.

    Raises:
        CheckpointError: the config is damaged, or holds options that cannot be used.
        PluginError: a plugin is missing; says which.
    """
    try:
        part = config[{"gen": "generator", "disc": "discriminator"}[kind]]
        name, options = part["name"], dict(part["options"])
        channels, height, width = config["shape"]
        numbers = [channels, height, width, *options.values()]
        if not isinstance(name, str) or not all(isinstance(key, str) for key in options):
            raise TypeError("names are text")
        if not all(isinstance(n, int | float | str | bool) for n in numbers):
            raise TypeError("options are numbers and words")
        shape = (int(channels), int(height), int(width))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(where, error) from error
    try:
        with torch.random.fork_rng(devices=()):  # initial weights are drawn, then replaced
            return zoo.build(kind, name, options, shape, backend)
    except UnknownNameError as error:
        raise _explained(error, config) from error
    except (OptionError, OverflowError, MemoryError) as error:
        raise _damaged(where, error) from error


def _damaged(where: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{where} is damaged: {type(error).__name__}: {error}")


def _explained(error: UnknownNameError, config: dict[str, Any]) -> SpikeZooError:
    """The error of an unknown name, or where a plugin is missing, one that says what to install."""
    plugins = config.get("plugins")
    missing = [
        f"{name}=={version}"
        for name, version in (plugins.items() if isinstance(plugins, dict) else ())
        # What comes from a stranger's file goes into a command that users copy.
        if re.fullmatch(r"[A-Za-z0-9][\w.+!-]*==[0-9][\w.+!-]*", f"{name}=={version}", re.ASCII)
        and not any(importlib.metadata.distributions(name=name))
    ]
    if not missing:
        return error
    names = ", ".join(pin.partition("==")[0] for pin in missing)
    return PluginError(
        f"this model was trained with {names}, which is not installed here ({error}). If you trust "
        f"the package: pip install {' '.join(missing)}"
    )


def read_network(
    kind: str, config: dict[str, Any], path: Path, backend: str | None = None
) -> nn.Module:
    """A network of a config with the weights of a safetensors file, in float32.

    The network is first laid out without memory ("meta"), and the file's header compared with it:
    neither a config of absurd widths nor a header of absurd shapes gets anything allocated.

    Raises:
        CheckpointError, PluginError: as `build`, or the file is missing or does not fit exactly.
    """
    where = path.parent / CONFIG
    with torch.device("meta"):
        outline = build(kind, config, where)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _must_fit(outline, shapes, str(path))
            tensors = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    network = build(kind, config, where, backend)
    load_weights(network, tensors, "", str(path))
    return network


def load_weights(network: nn.Module, tensors: dict[str, Tensor], prefix: str, where: str) -> None:
    """Copies the tensors named `prefix...` into a network, in the network's precision.

    Raises:
        CheckpointError: one is missing, left over, of another shape or kind, or not finite; names
            them.
    """
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    _must_fit(network, {name: tensor.shape for name, tensor in own.items()}, where)
    wrong = [f"{name} is not finite" for name, t in own.items() if not torch.isfinite(t).all()]
    wrong += [
        f"{name} is {own[name].dtype}, not {wanted.dtype}"
        for name, wanted in network.state_dict().items()
        if own[name].is_floating_point() != wanted.is_floating_point()
    ]
    if wrong:
        raise _misfit(where, wrong)
    network.load_state_dict(own)


def _must_fit(network: nn.Module, shapes: dict[str, torch.Size], where: str) -> None:
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    wrong = [f"{name} is missing" for name in wanted.keys() - shapes.keys()]
    wrong += [f"{name} is left over" for name in shapes.keys() - wanted.keys()]
    wrong += [
        f"{name} has shape {list(shapes[name])}, not {list(wanted[name])}"
        for name in wanted.keys() & shapes.keys()
        if shapes[name] != wanted[name]
    ]
    if wrong:
        raise _misfit(where, wrong)


def _misfit(where: str, wrong: list[str]) -> CheckpointError:
    shown, more = sorted(wrong)[:8], len(wrong) - 8
    text = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    return CheckpointError(f"{where} does not fit the network: {text}")
