"""Commands that publish: an exported folder, its checks, the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spikezoo.cli_options import option


@click.command()
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


@click.command()
@click.argument("source")
@option("--backend", help="Who computes the probe's spikes.  [default: native]")
@option("--revision", help="Of a model on the Hub: a branch, tag or commit.")
def verify(source: str, backend: str | None, revision: str | None) -> None:
    """Check a published model: hashes, strict loading, the probe's images, the numbers of its card.

    SOURCE is an exported folder or ORG/NAME of the Hub. Exit status 1 if a check fails. What cannot
    be measured again is its author's word: the hours of training, and quality, which `spikezoo
    evaluate` measures where the dataset is.
    """
    from spikezoo import export as exporting
    from spikezoo import hub

    checks = exporting.verify(hub.find(source, revision=revision, whole=True), backend)
    for check in checks:
        click.echo(f"{'FAILED' if check.wrong else 'ok':6}  {check.name:7}  {check.found}")
    if any(check.wrong for check in checks):
        raise SystemExit(1)


@click.command()
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


COMMANDS = (export, verify, push)
