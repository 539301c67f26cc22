"""The folder format of a trained model, and the way back from it: `spikezoo.load`."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikezoo import checkpoint, zoo
from spikezoo.errors import (
    CheckpointError,
    PluginError,
    SpecError,
    SpikeZooError,
    UnknownNameError,
)
from spikezoo.sample import sample, usable
from spikezoo.spec import Spec

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Model:
    """A trained generator, in eval mode, with the name and the config it was trained under."""

    generator: nn.Module
    spec: Spec
    config: dict[str, Any]

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """Images uint8 [N, C, H, W] of the seeds; image i depends on seed i alone."""
        device = next(self.generator.parameters()).device
        return sample(self.generator, seeds, device)


def load(
    source: str | Path, *, backend: str | None = None, device: torch.device | str | None = None
) -> Model:
    """The trained model of a run folder, with its averaged (EMA) weights.

    Args:
        source: the folder that `spikezoo train` wrote.
        backend: who computes the spikes; `native` by default. The images do not depend on it.
        device: where; the CPU by default.

    Raises:
        CheckpointError: no run there, of a newer format, or weights that do not fit exactly.
        PluginError: a plugin that it was trained with is not installed; says which.
    """
    place = usable(device or "cpu")
    folder = Path(source)
    config = read_config(folder)
    try:
        spec = Spec.from_json(config["spec"])
        part = config["generator"]
        name, options = part["name"], dict(part["options"])
        channels, height, width = map(int, config["shape"])
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} is damaged: {type(error).__name__}: {error}"
        ) from error
    try:
        with torch.random.fork_rng(devices=()):  # initial weights are drawn, then replaced
            generator = zoo.build("gen", name, options, (channels, height, width), backend)
    except UnknownNameError as error:
        raise _explained(error, config) from error
    found, _ = checkpoint.newest(folder / "checkpoints")
    if found is None:
        raise CheckpointError(f"the run {folder} has no checkpoint yet; train it on with --resume")
    load_weights(generator, found.tensors, "ema.", str(found.path))
    return Model(generator.to(place).eval(), spec, config)


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


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a run folder.

    Raises:
        CheckpointError: there is none, it is damaged, or of a newer format.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"'{folder}' is no run: it has no config.json; `spikezoo train` writes run folders "
            "under runs/"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}, this SpikeZoo reads {FORMAT_VERSION}; "
            "a newer one may read it: pip install --upgrade spikezoo-gan"
        )
    return dict(config)


def load_weights(network: nn.Module, tensors: dict[str, Tensor], prefix: str, where: str) -> None:
    """Copies the tensors named `prefix...` into a network.

    Raises:
        CheckpointError: one is missing, left over, or of another shape; names them.
    """
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    wanted = network.state_dict()
    wrong = [f"{name} is missing" for name in wanted.keys() - own.keys()]
    wrong += [f"{name} is left over" for name in own.keys() - wanted.keys()]
    wrong += [
        f"{name} has shape {list(own[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted.keys() & own.keys()
        if own[name].shape != wanted[name].shape
    ]
    wrong += [f"{name} is not finite" for name, t in own.items() if not torch.isfinite(t).all()]
    if wrong:
        raise CheckpointError(f"{where} does not fit the network: {'; '.join(sorted(wrong))}")
    network.load_state_dict(own)
