"""The command `spikezoo`: a few lines each; the work is done by functions that Python has too."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from spikezoo import __version__, cli_measure, cli_publish
from spikezoo.cli_options import option, recipe_options, spec_of
from spikezoo.errors import OptionError, SpikeZooError

INTERRUPTED = 130  # what shells report for Ctrl-C


class _Main(click.Group):
    """Turns our errors into one message and an exit status; `--debug` shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SpikeZooError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"spikezoo: error: {error}", err=True)
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            usage = error.ctx.command_path if error.ctx else ctx.command_path
            click.echo(f"spikezoo: error: {error.format_message()} ({usage} --help)", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:  # a full disk, a folder that cannot be written
            if ctx.params.get("debug") or error.errno == errno.EPIPE:  # click's: `list | head`
                raise
            click.echo(f"spikezoo: error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            if ctx.params.get("debug"):
                raise
            click.echo("spikezoo: interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spikezoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """The model zoo of spiking image generators.

    \b
    spikezoo train gen:snn_middle disc:snn            train on the bundled digits
    spikezoo train gen:snn_back+disc:ann@cifar10      train on CIFAR-10
    spikezoo sample runs/digits-snn_middle-snn        draw images
    spikezoo list                                     what there is
    """
    logging.basicConfig(format="spikezoo: %(message)s", stream=sys.stderr)
    logging.getLogger("spikezoo").setLevel(logging.INFO)
    # Read when torch is imported. Threads that wait by spinning cost nothing on an idle machine,
    # and a factor of ten as soon as another program wants one of its cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@main.command()
@click.argument("parts", nargs=-1, required=True, metavar="PART...")
@option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path),
    help="Folder of datasets, laid out "
    "as the Hub's dataset repos; of images for @folder.  [default: SPIKEZOO_DATA, else the Hub]",
)
@option(
    "--kimg",
    type=click.FloatRange(min=0, min_open=True),
    help="Thousands of real images to show.  [default: 300, or 48 for a small dataset]",
)
@recipe_options
@option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    default=0,
    help="Of weights, latents and order.",
)
@option("--side", type=int, default=32, help="Height and width of the images, divisible by 16.")
@option("--backend", help="Who computes the spikes (spikezoo list backends).  [default: native]")
@option("--device", default="cpu", help="Where to train: cpu, cuda, cuda:1.")
@option("--out", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of runs.")
@option("--resume", is_flag=True, help="Go on with the newest run of this spec and settings.")
@option(
    "--snapshot-kimg",
    type=click.FloatRange(min=0, min_open=True),
    help="Thousands of images "
    "from one checkpoint and grid to the next.  [default: a tenth of --kimg]",
)
@option("--tensorboard", is_flag=True, help="Write TensorBoard logs too.")
@option("--dry-run", is_flag=True, help="Print the resolved config and stop.")
def train(
    parts: tuple[str, ...],
    data_dir: Path | None,
    kimg: float | None,
    recipe: str,
    device: str,
    out: Path,
    resume: bool,
    snapshot_kimg: float | None,
    tensorboard: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Train a generator and a discriminator: spikezoo train gen:snn_middle disc:snn@mnist."""
    spec = spec_of(parts)
    from spikezoo import memory, recipes
    from spikezoo import train as training

    memory.keep_freed()

    chosen = recipes.settings(recipe, device=device, **given)
    if dry_run:
        click.echo(
            json.dumps(training.dry_run(spec, chosen, kimg=kimg, data_dir=data_dir), indent=2)
        )
        return
    result = training.train(
        spec,
        chosen,
        kimg=kimg,
        data_dir=data_dir,
        out=out,
        resume=resume,
        snapshot_kimg=snapshot_kimg,
        tensorboard=tensorboard,
        device=device,
    )
    if result.finished:
        click.echo(f"{result.images / 1000:g} kimg done; 64 images: {result.grid}")
        return
    again = [word for word in sys.argv[1:] if word != "--resume"] + ["--resume"]
    click.echo(
        f"stopped at {result.images / 1000:g} kimg and saved; "
        f"go on with: spikezoo {shlex.join(again)}",
        err=True,
    )
    raise SystemExit(INTERRUPTED)


@main.command()
@click.argument("source")
@option("--seeds", help="Seeds of the images, like 0-63 or 1,5,10-12.  [default: 0-63]")
@option("-n", "--n", type=click.IntRange(min=1), help="In place of --seeds: the first N seeds.")
@option(
    "--out",
    type=click.Path(path_type=Path),
    help="PNG of the grid, or folder of the images.  [default: RUN/samples/seeds-...; "
    "for other models here]",
)
@option("--grid/--images", default=True, help="One picture of all, or a file for each seed.")
@option("--columns", type=click.IntRange(min=1), default=8, help="Of the grid.")
@option("--backend", help="Who computes the spikes.  [default: native]")
@option("--device", default="cpu", help="Where to compute.")
@option("--revision", help="Of a model on the Hub: a branch, tag or commit.")
@option("--offline", is_flag=True, help="Ask the Hub's cache only.")
def sample(
    source: str,
    seeds: str | None,
    n: int | None,
    out: Path | None,
    grid: bool,
    columns: int,
    backend: str | None,
    device: str,
    revision: str | None,
    offline: bool,
) -> None:
    """Draw images from a model: a run, an exported folder, or ORG/NAME of the Hub.

    Image i depends on seed i alone.
    """
    if seeds is not None and n is not None:
        raise OptionError("--seeds and --n are two ways to say the same; give one of them")
    from spikezoo import hub
    from spikezoo import sample as sampling

    text = f"0-{(n or 64) - 1}" if seeds is None else seeds
    chosen = sampling.parse_seeds(text)
    if out is None and len(text) > 100:
        raise OptionError("so many --seeds make no file name; give one with --out")
    folder = hub.find(source, revision=revision, offline=offline or None)
    name = f"seeds-{text}.png" if grid else f"seeds-{text}"
    if out is None:
        is_run = (folder / "checkpoints").is_dir()
        out = folder / "samples" / name if is_run else Path(f"{_plain(source)}-{name}")
    path = out
    if grid and path.suffix.lower() != ".png":
        raise OptionError(f"--out of a grid is a .png file, given '{path}'; or use --images")
    images = hub.load(folder, backend=backend, device=device).sample(chosen)
    if grid:
        sampling.save_grid(images, path, columns)
    else:
        sampling.save_images(images, chosen, path)
    click.echo(path)


@main.command("list")
@click.argument("kind", required=False)
@click.argument("pattern", default="*")
@option("--org", help="With `models`: those of this organisation on the Hub.")
def list_(kind: str | None, pattern: str, org: str | None) -> None:
    """List what there is: all kinds, or the names of a KIND that match a PATTERN.

    `models` are those that can be loaded with no network, with what was measured of them.
    """
    if kind == "models":
        _list_models(pattern, org)
        return
    if org is not None:
        raise OptionError("--org goes with `spikezoo list models`")
    from spikezoo.catalog import BACKENDS_OF, REGISTRIES, registry

    kinds = {kind: registry(kind)} if kind else REGISTRIES
    for name, found in kinds.items():
        entries = found.entries(pattern)
        if not entries:
            if kind:
                click.echo(f"none of the {name} matches '{pattern}'", err=True)
            continue
        click.echo(name)
        width = max(map(len, entries))
        for n, (entry, *_) in entries.items():
            backends = BACKENDS_OF.get(n, ()) if name == "neurons" else ()
            on = f"  [{', '.join(backends)}]" if backends else ""
            click.echo(f"  {n:{width}}  {entry.summary or entry.source}{on}")
        for conflict in found.conflicts():
            click.echo(f"spikezoo: warning: {conflict}", err=True)


def _list_models(pattern: str, org: str | None) -> None:
    from fnmatch import fnmatch

    from spikezoo import hub, model

    if org is None:
        found = {
            f"{hub.OFFICIAL}/{name}": hub.summary(model.read_config(folder))
            for name, folder in hub.published().items()
        }
    else:
        found = hub.models_of(org)
    chosen = {n: text for n, text in found.items() if fnmatch(n, f"*{pattern}*")}
    if not chosen:
        click.echo(f"none of the models matches '{pattern}'", err=True)
        return
    click.echo("models")
    width = max(map(len, chosen))
    for name, text in chosen.items():
        click.echo(f"  {name:{width}}  {text}")


@main.command()
def plugins() -> None:
    """List the installed plugins: what each adds, and what is wrong with it."""
    from spikezoo import plugins as installed

    click.echo(installed.report())


@main.group()
def plugin() -> None:
    """Write a plugin of your own."""


@plugin.command()
@click.argument("name")
@option(
    "--kind",
    type=click.Choice(["neuron"]),
    default="neuron",
    expose_value=False,  # the only one so far
    help="What it adds.",
)
def new(name: str) -> None:
    """Write the package spikezoo-NAME, with a neuron NAME and a test that passes."""
    from spikezoo import scaffold

    path = scaffold.new_plugin(name)
    click.echo(f"{path} written; next: pip install --editable {path}; pytest {path}")


@main.command()
@click.argument("parts", nargs=-1, required=True, metavar="SPEC|MODEL")
@option("--side", type=int, default=32, help="Height and width of a SPEC's images.")
@option("--revision", help="Of a model on the Hub: a branch, tag or commit.")
@option("--offline", is_flag=True, help="Ask the Hub's cache only.")
def show(parts: tuple[str, ...], side: int, revision: str | None, offline: bool) -> None:
    """Show a SPEC: its options, and its layers with shapes, parameters and spikes.

    Or a MODEL: a run, an exported folder, or ORG/NAME of the Hub, with what was measured of it.
    """
    from spikezoo import describe

    if len(parts) == 1 and not parts[0].startswith(("gen:", "disc:")):
        from spikezoo import hub

        loaded = hub.load(parts[0], revision=revision, offline=offline or None)
        click.echo(describe.describe(loaded.spec, loaded.config["shape"][1]))
        known = {key: loaded.info[key] for key in ("training", "measured") if key in loaded.info}
        click.echo("\n" + json.dumps(known, indent=2))
        return
    click.echo(describe.describe(spec_of(parts), side))


def _plain(source: str) -> str:
    """The last word of a source, as a file name."""
    return Path(source.partition("@")[0]).name or "model"


for command in (*cli_measure.COMMANDS, *cli_publish.COMMANDS):
    main.add_command(command)
