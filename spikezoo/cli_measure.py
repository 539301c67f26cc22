"""Commands that measure: models, variants against one another, backends, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spikezoo.cli_options import option, recipe_options, spec_of
from spikezoo.errors import OptionError


@click.command()
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


@click.command()
@click.argument("source", metavar="MODEL")
@option("--dataset", help="Whose test images to compare with.  [default: the model's own]")
@option("--features", multiple=True, help="What to compare, as NAME,key=value; may be repeated.")
@option("--metrics", multiple=True, help="Only this one; may be repeated.")
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
    images have in place of generated ones. A run keeps its numbers for `export`, unless they are of
    other --seeds or of another --dataset.
    """
    from dataclasses import asdict

    from spikezoo import evaluate as measured
    from spikezoo import hub, memory, model, sample
    from spikezoo.files import write_json

    memory.keep_freed()
    folder = hub.find(source)
    images = model.images_shown(folder)
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
    if images and not seeds and dataset in (None, loaded.spec.dataset):
        click.echo(f"\nkept in {measured.keep(rows, folder, images)}")
    if json_file:
        write_json(json_file, [asdict(row) for row in rows])


@click.command()
@click.argument("source", metavar="MODEL")
@option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the pictures.  [default: RUN/inspect; for other models here]",
)
@option("--backend", help="Who computes the spikes.  [default: native]")
def inspect(source: str, out: Path | None, backend: str | None) -> None:
    """Look inside a MODEL: rates and gradients through time and what an image costs, as tables and
    as pictures.

    Pictures: a spike raster of seed 0, rates and gradient norms by time step, the images read out
    after each time step, and an interpolation between two latents.
    """
    from spikezoo import card, export, hub
    from spikezoo import inspect as inside
    from spikezoo.cost import images_per_second

    folder = hub.find(source)
    loaded = hub.load(source, backend=backend)
    found = inside.layers(loaded)
    click.echo(inside.as_text(found))
    click.echo("\n" + card.cost(export.costs(loaded.generator, loaded.config)))
    click.echo(f"\nIt draws {images_per_second(loaded.generator):,.0f} images/s here.\n")
    is_run = (folder / "checkpoints").is_dir()
    for path in inside.draw(loaded, found, out or (folder if is_run else Path()) / "inspect"):
        click.echo(path)


@click.command()
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
    is. Ctrl-C and the same command again go on where it was. The report is of all that is done in
    the folder, so that a comparison can be made in several calls.
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
    finished += [
        comparing.take(run, out, data_dir=data_dir, features=features, n=n) for run in runs
    ]
    click.echo(report.write(finished, comparing.stopped(out), out, title))


@click.command()
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
    from spikezoo.files import write_text

    rows = measured.parity(neurons, backends, progress=True)
    click.echo(measured.as_text(rows))
    if json_file:
        write_text(json_file, measured.as_json(rows))
    if markdown:
        write_text(markdown, measured.as_markdown(rows))
    if measured.differs(rows):
        raise SystemExit(1)


@click.command()
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
    spec = spec_of(parts or ("gen:snn_middle+disc:snn@mnist",))
    if what == "neurons" and parts:
        raise OptionError("`bench neurons` takes no SPEC")
    from spikezoo import bench as measured
    from spikezoo import memory
    from spikezoo.files import write_text

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


COMMANDS = (classifier, evaluate, inspect, compare, parity, bench)
