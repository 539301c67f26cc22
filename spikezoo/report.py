"""A comparison as one report: Markdown, JSON, CSV, small PNG grids, and a self-contained page."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from spikezoo import checkpoint, model, sample
from spikezoo.compare import Estimate, Finished, estimate, ratio, twin, verdict
from spikezoo.cost import BREAK_EVEN, PJ_PER_AC, PJ_PER_MAC

COLUMNS = ("fd", "kid", "precision", "recall", "density", "coverage", "score", "label_kl")


@dataclass(frozen=True)
class Variant:
    """A spec over its seeds: each protocol's estimate, and how it compares with its twin."""

    spec: str
    runs: list[Finished]
    values: dict[str, Estimate]
    to_twin: Estimate | None
    energy_nj: float
    energy_to_twin: float | None
    verdict: str


def write(finished: Sequence[Finished], out: Path, title: str, about: str) -> Path:
    """Writes report.md, report.html, report.json, report.csv and grids/*.png; returns the first."""
    out.mkdir(parents=True, exist_ok=True)
    variants = summarise(finished)
    grids = {run.folder: _grid(run, out / "grids") for run in finished}
    checkpoint.write_text(out / "report.csv", _csv(finished))
    checkpoint.write_json(out / "report.json", {"title": title, "variants": _json(variants)})
    text = _markdown(variants, grids, title, about)
    checkpoint.write_text(out / "report.md", text)
    checkpoint.write_text(out / "report.html", _page(variants, grids, out, title, about))
    return out / "report.md"


def summarise(finished: Sequence[Finished]) -> list[Variant]:
    """One variant per spec, in the order in which specs first occur."""
    by_spec: dict[str, list[Finished]] = {}
    for run in finished:
        by_spec.setdefault(str(run.spec), []).append(run)
    variants = []
    for name, runs in by_spec.items():
        values = {p: estimate([run.values[p] for run in runs]) for p in runs[0].values}
        energy = sum(run.energy_nj for run in runs) / len(runs)
        others = by_spec.get(str(twin(runs[0].spec)), [])
        to_twin = energy_ratio = None
        said = "the twin" if others is runs else "its twin was not trained"
        if others and others is not runs:
            first = next(iter(runs[0].values))  # the distance that chose the checkpoints
            to_twin = ratio([r.values[first] for r in runs], [r.values[first] for r in others])
            energy_ratio = energy / (sum(r.energy_nj for r in others) / len(others))
            said = verdict(to_twin, energy_ratio)
        variants.append(Variant(name, runs, values, to_twin, energy, energy_ratio, said))
    return variants


def _grid(run: Finished, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.spec.slug}-seed{run.seed}.png"
    images = model.open_folder(run.folder).sample(range(32))
    sample.save_grid(images, path, columns=8)
    return path


# --- tables ---------------------------------------------------------------------------------


def _rows(variants: Sequence[Variant]) -> list[list[str]]:
    """Head and rows of the table of all variants, with the floor as last row."""
    protocols = [
        p for p in variants[0].values if p.partition("[")[0] in COLUMNS or p.startswith("fd[")
    ]
    head = ["variant", *protocols, "to its twin", "energy, uJ", "rates", "best at, kimg", "verdict"]
    rows = [head]
    for variant in variants:
        stages = ", ".join(
            f"{run.best[0]:g}{' (diverged)' if run.diverged else ''}" for run in variant.runs
        )
        rows.append(
            [
                variant.spec,
                *(str(variant.values[p]) for p in protocols),
                str(variant.to_twin or ""),
                f"{variant.energy_nj / 1000:.1f}",
                ", ".join(_rates(variant.runs[0])),
                stages,
                variant.verdict,
            ]
        )
    floors = variants[0].runs[0].floors
    rows.append(["real training images", *(f"{floors[p]:.3g}" for p in protocols), *[""] * 5])
    return rows


def _rates(run: Finished) -> list[str]:
    steps = {name: len(s) for name, s in model.open_folder(run.folder).spikes([0]).items()}
    return [
        f"{name} {rate:.2f}"
        + (" (costs more than values)" if rate * steps[name] > BREAK_EVEN else "")
        for name, rate in run.rates.items()
    ]


def _explained(about: str, variants: Sequence[Variant]) -> list[str]:
    seeds = len(variants[0].runs)
    interval = "mean (95 % interval)" if seeds > 1 else "one seed, so no interval"
    return [
        about,
        f"Seeds: {seeds}; {interval}. Each run is measured at the best of its stages by the first "
        "distance; where the last stage is 1.5 times worse it is marked as diverged.",
        f"Energy: an estimate of one image's, {PJ_PER_MAC} pJ per multiply-accumulate and "
        f"{PJ_PER_AC} pJ per accumulate (45 nm), computation only.",
    ]


def _markdown(variants: Sequence[Variant], grids: dict[Path, Path], title: str, about: str) -> str:
    head, *rows = _rows(variants)
    lines = [f"# {title}", "", *(f"{line}\n" for line in _explained(about, variants))]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    for heading, chosen in _sections(variants):
        lines += ["", f"## {heading}"]
        for variant in chosen:
            lines += ["", f"`{variant.spec}`: {variant.verdict}", ""]
            lines += [f"![{run.spec.slug}](grids/{grids[run.folder].name})" for run in variant.runs]
    return "\n".join(lines) + "\n"


def _sections(variants: Sequence[Variant]) -> list[tuple[str, list[Variant]]]:
    """The variants by discriminator, as the paper lays its figures out."""
    found: dict[str, list[Variant]] = {}
    for variant in variants:
        found.setdefault(f"Against {variant.runs[0].spec.disc}", []).append(variant)
    return list(found.items())


def _page(
    variants: Sequence[Variant], grids: dict[Path, Path], out: Path, title: str, about: str
) -> str:
    head, *rows = _rows(variants)

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    parts = [
        "<!doctype html><meta charset=utf-8>",
        f"<title>{html.escape(title)}</title>",
        "<style>body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}"
        "figure{display:inline-block;margin:.5em}img{image-rendering:pixelated}</style>",
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in _explained(about, variants)),
        "<table>" + row(head, "th") + "".join(row(r, "td") for r in rows) + "</table>",
        f"<h2>Distance over training</h2><img src='{_inline(_curves(variants))}' alt='curves'>",
    ]
    for heading, chosen in _sections(variants):
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        for variant in chosen:
            for run in variant.runs:
                picture = _inline(grids[run.folder].read_bytes())
                caption = html.escape(f"{variant.spec}, seed {run.seed}")
                parts.append(
                    f"<figure><img src='{picture}' alt='{caption}'>"
                    f"<figcaption>{caption}</figcaption></figure>"
                )
    return "\n".join(parts) + "\n"


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _curves(variants: Sequence[Variant]) -> bytes:
    with matplotlib.rc_context({"axes.grid": True}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
    for index, variant in enumerate(variants):
        for run in variant.runs:
            label = variant.spec if run is variant.runs[0] else None
            axes.plot(*zip(*run.history, strict=True), color=f"C{index % 10}", label=label)
    first = next(iter(variants[0].values))
    axes.set(xlabel="kimg", ylabel=first, yscale="log")
    axes.legend(fontsize="x-small")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80, format="png")
    return buffer.getvalue()


def _csv(finished: Sequence[Finished]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["spec", "seed", "protocol", "value", "floor", "best_kimg", "diverged"])
    for run in finished:
        for protocol, value in run.values.items():
            row = [str(run.spec), run.seed, protocol, f"{value:.6g}"]
            writer.writerow([*row, f"{run.floors[protocol]:.6g}", f"{run.best[0]:g}", run.diverged])
    return buffer.getvalue()


def _json(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    return [
        {
            "spec": v.spec,
            "values": {p: vars(e) for p, e in v.values.items()},
            "to_twin": vars(v.to_twin) if v.to_twin else None,
            "energy_nj": v.energy_nj,
            "energy_to_twin": v.energy_to_twin,
            "verdict": v.verdict,
            "runs": [
                {
                    "seed": run.seed,
                    "history": run.history,
                    "diverged": run.diverged,
                    "failed": run.failed,
                    "rates": run.rates,
                    "values": run.values,
                    "floors": run.floors,
                }
                for run in v.runs
            ],
        }
        for v in variants
    ]
