"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from spikezoo.spec import Spec

option = functools.partial(click.option, show_default=True)


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The settings of a recipe as options, of every command that trains."""
    for add in reversed(RECIPE_OPTIONS):
        command = add(command)
    return command


RECIPE_OPTIONS = (
    option(
        "--recipe",
        type=click.Choice(["default", "paper"]),
        default="default",
        help="Settings to start from; the options below replace single ones. The paper's own "
        "discriminators are disc:ann,width=16,dropout=0.25 and disc:snn,width=16,dropout=0.25.",
    ),
    option("--batch-size", type=click.IntRange(min=2), help="Images per iteration.  [recipe: 64]"),
    option("--loss", help="bce, hinge, lsgan, wgan_gp, or a plugin's.  [recipe: bce]"),
    option(
        "--lr-g",
        type=float,
        help="Adam's learning rate of the generator.  [recipe: 1.6e-3; paper: 2e-4]",
    ),
    option(
        "--lr-d",
        type=float,
        help="Adam's learning rate of the discriminator.  [recipe: 8e-4; paper: 2e-4]",
    ),
    option(
        "--r1",
        type=float,
        help="Weight of the R1 penalty on D's gradient.  [recipe: 0.2, or 0.01 for colour images; "
        "2.5 times that for disc:snn; paper: 0]",
    ),
    option(
        "--ema-halflife-kimg",
        type=float,
        help="Half-life of the averaged generator.  [recipe: 10; paper: 0]",
    ),
    option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        help="Of convolutions; membrane potentials are float32 always.  "
        "[default: bf16 where the processor has it]",
    ),
)


def spec_of(parts: tuple[str, ...]) -> Spec:
    from spikezoo.spec import Spec

    return Spec.parse(" ".join(parts))
