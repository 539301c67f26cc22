"""How a spec is trained: the settings of a run, and the recipes that they start from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from spikezoo.catalog import registry
from spikezoo.errors import OptionError, unknown
from spikezoo.sample import usable
from spikezoo.spec import Spec

R1_EVERY = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a spec is trained. Two runs of equal spec, settings and data are the same run.

    `kimg` is not among them: a run can be lengthened. R1 is applied to every `R1_EVERY`th
    iteration with its weight multiplied by that (Karras et al. 2020, "lazy regularisation");
    without a weight (None) it has the one that `fitted` gives it.
    """

    recipe: str = "default"
    loss: str = "bce"
    lr_g: float = 2e-4
    lr_d: float = 2e-4
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    batch_size: int = 64
    r1: float | None = None
    ema_halflife_kimg: float = 10.0
    seed: int = 0
    side: int = 32
    precision: str = "fp32"
    backend: str | None = None


RECIPES: dict[str, dict[str, Any]] = {
    # What the paper used: the tutorials' DCGAN, which averages no weights. Its discriminator is
    # disc:ann,width=16,dropout=0.25: a spec says what is trained, a recipe how.
    "paper": {"lr_g": 2e-4, "lr_d": 2e-4, "r1": 0.0, "ema_halflife_kimg": 0.0},
    # Found on MNIST at 100 kimg, rate by rate (docs/results/recipe.md). Two time-scale rates; R1
    # keeps a discriminator without dropout from winning; averaging removes most noise.
    "default": {"lr_g": 1.6e-3, "lr_d": 8e-4, "ema_halflife_kimg": 10.0},
}
# What keeps a discriminator of grey images from winning keeps one of photographs from learning, and
# a spiking one wants more of it than one with exact gradients.
R1_GREY, R1_COLOUR, R1_SPIKING = 0.2, 0.01, 2.5


def settings(recipe: str = "default", *, device: str = "cpu", **given: Any) -> Settings:
    """The settings of a recipe, with what is given (and not None) in place of its own.

    Precision, where it is not given, is bf16 on a device that computes in it.

    Raises:
        UnknownNameError, OptionError: the recipe, the loss, the device, or a value that cannot be
            used.
    """
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    precision = "bf16" if has_bf16(usable(device)) else "fp32"
    chosen = Settings(recipe=recipe, precision=precision, **RECIPES[recipe])
    chosen = replace(chosen, **{key: value for key, value in given.items() if value is not None})
    registry("losses").entry(chosen.loss)
    if chosen.backend is not None:
        registry("backends").entry(chosen.backend)
    if chosen.precision not in ("fp32", "bf16"):
        raise OptionError(f"precision is fp32 or bf16, given '{chosen.precision}'")
    for field in fields(chosen):
        value = getattr(chosen, field.name)
        if isinstance(value, float) and not (0 <= value < math.inf):
            raise OptionError(f"{field.name} is 0 or more, given {value}")
    if chosen.side < 16 or chosen.side % 16:
        nearest = max(16, 16 * round(chosen.side / 16))
        raise OptionError(f"side is divisible by 16, given {chosen.side}; the nearest is {nearest}")
    if chosen.batch_size < 2:
        raise OptionError("batch_size is at least 2: batch norm needs more than one image")
    return chosen


def fitted(chosen: Settings, spec: Spec) -> Settings:
    """The settings with R1's weight, if none was given the one that suits the pair and dataset."""
    if chosen.r1 is not None:
        return chosen
    grey = registry("datasets").get(spec.dataset).channels == 1
    weight = R1_GREY if grey else R1_COLOUR
    return replace(chosen, r1=weight * R1_SPIKING if spec.disc.name == "snn" else weight)


def arguments(training: dict[str, Any], spec: Spec) -> list[str]:
    """The options of `spikezoo train` that say what a config's training differs in from its recipe.

    Precision is always said, since its default is the processor's; so is R1's weight of a dataset
    that is not known here.
    """
    start = Settings(**RECIPES.get(training["recipe"], {}))
    if spec.dataset in registry("datasets"):
        start = fitted(start, spec)
    plain = {**asdict(start), "recipe": "default", "precision": None}
    words: list[str] = []
    for key, value in training.items():
        if key in ("adam_beta1", "adam_beta2") or value == plain.get(key):
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words += [f"--{key.replace('_', '-')}", text]
    return words


def has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
