"""The command `spikezoo`: a few lines each; the work is done by functions that Python has too."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spikezoo import __version__
from spikezoo.errors import OptionError, SpikeZooError

if TYPE_CHECKING:
    from spikezoo.spec import Spec

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
        help="Settings to start from; the options below replace single ones.",
    ),
    option("--batch-size", type=click.IntRange(min=2), help="Images per iteration.  [recipe: 64]"),
    option("--loss", help="bce, hinge, lsgan, wgan_gp, or a plugin's.  [recipe: bce]"),
    option(
        "--lr-g",
        type=float,
        help="Adam's learning rate of the generator.  [recipe: 1e-3; paper: 2e-4]",
    ),
    option(
        "--lr-d",
        type=float,
        help="Adam's learning rate of the discriminator.  [recipe: 5e-4; paper: 2e-4]",
    ),
    option("--r1", type=float, help="Weight of the R1 penalty on D's gradient.  [recipe: 0]"),
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
    spec = _spec(parts)
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


@main.command()
@click.argument("neurons", nargs=-1, metavar="[NEURON]...")
@option("--backend", "backends", multiple=True, help="Compare only this one; may be repeated.")
@option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here too.")
@option("--markdown", type=click.Path(path_type=Path), help="Write the page of the docs here too.")
def parity(
    neurons: tuple[str, ...],
    backends: tuple[str, ...],
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Compare the backends on each NEURON; exit status 1 if one differs from `reference`."""
    from spikezoo import parity as measured
    from spikezoo.checkpoint import write_text

    rows = measured.parity(neurons, backends, progress=True)
    click.echo(measured.as_text(rows))
    if json_file:
        write_text(json_file, measured.as_json(rows))
    if markdown:
        write_text(markdown, measured.as_markdown(rows))
    if measured.differs(rows):
        raise SystemExit(1)


@main.command()
@click.argument("what", type=click.Choice(["neurons", "train", "sample", "growth"]))
@click.argument("parts", nargs=-1, metavar="[SPEC]")
@option("--backend", "backends", multiple=True, help="Time only this one; may be repeated.")
@option("-n", "--n", type=click.IntRange(1), default=256, help="Images that `sample` draws.")
@option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here too.")
def bench(
    what: str, parts: tuple[str, ...], backends: tuple[str, ...], n: int, json_file: Path | None
) -> None:
    """Measure the speed on this machine, best an idle one: medians of 7 rounds, all in turn.

    `neurons` against relu and the libraries' own nodes; `train` and `sample` of a SPEC (by default
    gen:snn_middle disc:snn@mnist) against its twin without spikes, and against networks written
    by hand with the libraries; `growth` of a SPEC's iteration with T and with the batch.
    """
    spec = _spec(parts or ("gen:snn_middle+disc:snn@mnist",))
    if what == "neurons" and parts:
        raise OptionError("`bench neurons` takes no SPEC")
    from spikezoo import bench as measured
    from spikezoo import memory
    from spikezoo.checkpoint import write_text

    memory.keep_freed()
    chosen = measured.check_backends(backends)
    if what == "neurons":
        rows = measured.neurons(chosen)
    elif what == "train":
        rows = measured.train(spec, chosen)
    elif what == "sample":
        rows = measured.draw(spec, chosen, n)
    else:
        rows = measured.growth(spec)
    click.echo(measured.as_text(rows))
    if json_file:
        write_text(json_file, measured.as_json(rows))


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
    click.echo(describe.describe(_spec(parts), side))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@option("--half", is_flag=True, help="Store weights as float16: half the size.")
@option("--license", "licence", default="mit", help="Of the model, by the Hub's identifier.")
def export(run: Path, folder: Path, half: bool, licence: str) -> None:
    """Write the newest checkpoint of a RUN as the folder DIR, ready to be published."""
    from spikezoo import export as exporting

    exporting.export(run, folder, half=half, licence=licence)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    click.echo(f"{folder} written, {size:.1f} MB; next: spikezoo push {folder} ORG/NAME")


@main.command()
@click.argument("source")
@option("--backend", help="Who computes the probe's spikes.  [default: native]")
@option("--revision", help="Of a model on the Hub: a branch, tag or commit.")
def verify(source: str, backend: str | None, revision: str | None) -> None:
    """Check a published model: hashes, strict loading, the probe's images, every number.

    SOURCE is an exported folder or ORG/NAME of the Hub. Exit status 1 if a check fails.
    """
    from spikezoo import export as exporting
    from spikezoo import hub

    checks = exporting.verify(hub.find(source, revision=revision, whole=True), backend)
    for check in checks:
        click.echo(f"{'FAILED' if check.wrong else 'ok':6}  {check.name:7}  {check.found}")
    if any(check.wrong for check in checks):
        raise SystemExit(1)


@main.command()
@click.argument("dataset")
@click.argument("file", type=click.Path(path_type=Path))
@option("--data", "data_dir", type=click.Path(path_type=Path), help="Where datasets lie.")
@option("--epochs", type=click.IntRange(1), help="Passes over the images.  [default: its own]")
@option("--seed", type=int, default=0, help="Of the weights and the order of images.")
def classifier(
    dataset: str, file: Path, data_dir: Path | None, epochs: int | None, seed: int
) -> None:
    """Train the classifier that DATASET's images are measured with, and write its weights to FILE.

    Those of digits, mnist and cifar10 come with the package.
    """
    from spikezoo import classify, memory

    memory.keep_freed()
    accuracy = classify.train(dataset, file, data_dir=data_dir, epochs=epochs, seed=seed)
    click.echo(f"{file} written: {accuracy:.2%} of {dataset}'s test images named rightly")


@main.command()
@click.argument("source", metavar="MODEL")
@option("--dataset", help="Whose test images to compare with.  [default: the model's own]")
@option("--features", multiple=True, help="What to compare, as NAME,key=value; may be repeated.")
@option("--metric", "metrics", multiple=True, help="Only this one; may be repeated.")
@option("-n", "--n", type=click.IntRange(10), default=10_000, help="Images on either side.")
@option("--seeds", help="Of the generated images, in place of 0 to n - 1.")
@option("--data", "data_dir", type=click.Path(path_type=Path), help="Where datasets lie.")
@option("--backend", help="Who computes the spikes.  [default: native]")
@option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here too.")
def evaluate(
    source: str,
    dataset: str | None,
    features: tuple[str, ...],
    metrics: tuple[str, ...],
    n: int,
    seeds: str | None,
    data_dir: Path | None,
    backend: str | None,
    json_file: Path | None,
) -> None:
    """Measure the distance of a MODEL's images from real ones, each number with its protocol.

    MODEL is a run, an exported folder, or ORG/NAME of the Hub. The floor is what real training
    images have in place of generated ones. A run keeps its numbers for `export`.
    """
    from dataclasses import asdict

    from spikezoo import evaluate as measured
    from spikezoo import hub, memory, sample
    from spikezoo.checkpoint import write_json

    memory.keep_freed()
    folder = hub.find(source)
    loaded = hub.load(source, backend=backend)
    chosen = {"metrics": metrics} if metrics else {}
    rows = measured.evaluate(
        loaded.generator,
        dataset or loaded.spec.dataset,
        features=features,
        seeds=sample.parse_seeds(seeds) if seeds else range(n),
        data_dir=data_dir,
        **chosen,
    )
    click.echo(measured.as_text(rows))
    if (folder / "checkpoints").is_dir() and dataset in (None, loaded.spec.dataset):
        click.echo(f"\nkept in {measured.keep(rows, folder)}")
    if json_file:
        write_json(json_file, [asdict(row) for row in rows])


@main.command()
@click.argument("source", metavar="MODEL")
@option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the pictures.  [default: RUN/inspect; for other models here]",
)
@option("--backend", help="Who computes the spikes.  [default: native]")
def inspect(source: str, out: Path | None, backend: str | None) -> None:
    """Look inside a MODEL: rates and gradients through time, as a table and as pictures.

    Pictures: a spike raster of seed 0, rates and gradient norms by time step, the images read out
    after each time step, and an interpolation between two latents.
    """
    from spikezoo import hub
    from spikezoo import inspect as inside

    folder = hub.find(source)
    loaded = hub.load(source, backend=backend)
    found = inside.layers(loaded)
    click.echo(inside.as_text(found))
    is_run = (folder / "checkpoints").is_dir()
    for path in inside.draw(loaded, found, out or (folder if is_run else Path()) / "inspect"):
        click.echo(path)


@main.command()
@click.argument("patterns", nargs=-1, metavar="[SPEC|PATTERN|RUN]...")
@option("--paper", is_flag=True, help="The paper's set: five generators, two discriminators.")
@option("--dataset", help="Of all.  [default: that of each SPEC; mnist with --paper]")
@option(
    "--seeds", type=click.IntRange(1), default=1, help="Trainings of each, with seeds 0 to K-1."
)
@option("--kimg", type=click.FloatRange(0.1), default=300.0, help="Thousands of images for each.")
@option("--out", type=click.Path(path_type=Path), default=Path("comparison"), help="Folder of all.")
@option("--data", "data_dir", type=click.Path(path_type=Path), help="Where datasets lie.")
@option("--features", multiple=True, help="What to compare; the first chooses checkpoints.")
@option("-n", "--n", type=click.IntRange(10), default=10_000, help="Images on either side.")
@option("--title", default="Comparison", help="Of the report.")
@recipe_options
def compare(
    patterns: tuple[str, ...],
    paper: bool,
    dataset: str | None,
    seeds: int,
    kimg: float,
    out: Path,
    data_dir: Path | None,
    features: tuple[str, ...],
    n: int,
    title: str,
    recipe: str,
    **given: Any,
) -> None:
    """Train variants and their twins alike, measure them, and write one report.

    A PATTERN is a SPEC with wildcards, like "gen:snn_*+disc:ann@mnist"; a RUN is measured as it
    is. Ctrl-C and the same command again go on where it was.
    """
    from spikezoo import compare as comparing
    from spikezoo import memory, recipes, report

    if paper:
        patterns = (*comparing.PAPER, *patterns)
        dataset = dataset or "mnist"
    if not patterns:
        raise OptionError("give specs, patterns or runs to compare, or --paper")
    memory.keep_freed()
    chosen = recipes.settings(recipe, **given)
    runs = [Path(p) for p in patterns if (Path(p) / "config.json").is_file()]
    named = [p for p in patterns if Path(p) not in runs]
    finished = comparing.compare(
        comparing.expand(named, dataset), chosen, seeds=seeds, kimg=kimg, out=out,
        data_dir=data_dir, features=features, n=n,
    )  # fmt: skip
    finished += [comparing.take(run, data_dir, features, n) for run in runs]
    trained = " ".join(recipes.arguments({**vars(chosen), "kimg": kimg}))
    click.echo(report.write(finished, out, title, f"Trained with `spikezoo train {trained}`."))


@main.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN|DIR")
@click.argument("repo", metavar="ORG/NAME")
@option("--private", is_flag=True, help="Of a repo that is made by this push.")
@option("--revision", help="Branch to commit to, made if it is missing.  [default: main]")
@option("--create-pr", is_flag=True, help="Open a pull request in place of a commit.")
@option("--tag", help="Tag the commit.")
@option("--message", help="Of the commit.  [default: the model's name]")
@option("--dry-run", is_flag=True, help="Check all, send nothing.")
def push(source: Path, repo: str, dry_run: bool, **given: Any) -> None:
    """Publish a RUN or an exported folder DIR as ORG/NAME on the Hugging Face Hub.

    One commit with all files, or none. Log in first: `hf auth login`.
    """
    from spikezoo import hub

    done = hub.push(source, repo, dry_run=dry_run, **given)
    for name, size in done.files.items():
        click.echo(f"  {size:>12,}  {name}")
    click.echo(f"{'would be pushed to' if dry_run else 'pushed to'} {done.url}: {done.message}")


def _plain(source: str) -> str:
    """The last word of a source, as a file name."""
    return Path(source.partition("@")[0]).name or "model"


def _spec(parts: tuple[str, ...]) -> Spec:
    from spikezoo.spec import Spec

    return Spec.parse(" ".join(parts))
