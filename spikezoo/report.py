"""A comparison as one report: Markdown, JSON, CSV, small PNG grids, and a self-contained page."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from spikezoo import files
from spikezoo.compare import (
    DIVERGED,
    STAGES,
    Estimate,
    Finished,
    estimate,
    ratio,
    twin,
    verdict,
)
from spikezoo.cost import PJ_PER_AC, PJ_PER_MAC, Cost

QUALITY = ("fd", "kid", "precision", "recall", "density", "coverage", "score", "label_kl")


@dataclass(frozen=True)
class Variant:
    """A spec over its seeds, and how it compares with its twin.

    Attributes:
        values: by protocol; the first is the distance that chose the checkpoints.
        to_twin: that distance as a part of the twin's.
        energy_nj: of one image, a mean over seeds; `energy_to_twin` as a part of the twin's.
        spiking_to_twin: the energy of the layers that spikes feed, as a part of what the twin
            spends on all but the layers that values feed here. None if spikes feed none.
    """

    spec: str
    runs: list[Finished]
    values: dict[str, Estimate]
    to_twin: Estimate | None
    energy_nj: float
    energy_to_twin: float | None
    spiking_to_twin: float | None
    verdict: str


def write(finished: Sequence[Finished], out: Path, title: str, about: str) -> Path:
    """Writes report.md, report.html, report.json and report.csv to where the runs' grids lie in
    grids/; returns the first."""
    variants = summarise(finished)
    files.write_text(out / "report.csv", _csv(finished))
    files.write_json(out / "report.json", {"title": title, "variants": _json(variants)})
    files.write_text(out / "report.md", _markdown(variants, title, about))
    files.write_text(out / "report.html", _page(variants, title, about))
    return out / "report.md"


def summarise(finished: Sequence[Finished]) -> list[Variant]:
    """One variant per spec, in the order in which specs first occur."""
    by_spec: dict[str, list[Finished]] = {}
    for run in finished:
        by_spec.setdefault(str(run.spec), []).append(run)
    variants = []
    for name, runs in by_spec.items():
        values = {p: estimate([run.values[p] for run in runs]) for p in runs[0].values}
        energy = fmean(run.cost.energy_nj for run in runs)
        others = by_spec.get(str(twin(runs[0].spec)), [])
        to_twin = energy_to_twin = spiking_to_twin = None
        said = "the twin" if others is runs else "its twin was not trained"
        if others and others is not runs:
            first = next(iter(values))
            to_twin = ratio([r.values[first] for r in runs], [r.values[first] for r in others])
            whole = fmean(r.cost.energy_nj for r in others)
            energy_to_twin = energy / whole
            said = verdict(to_twin, energy_to_twin)
            if runs[0].cost.acs:
                kept = fmean(run.cost.values_nj for run in runs)
                spiking_to_twin = fmean(run.cost.spikes_nj for run in runs) / (whole - kept)
        variants.append(
            Variant(name, runs, values, to_twin, energy, energy_to_twin, spiking_to_twin, said)
        )
    return variants


# --- tables ---------------------------------------------------------------------------------


Table = list[list[str]]


def _tables(variants: Sequence[Variant]) -> dict[str, Table]:
    """Heading -> head and rows."""
    return {"Verdict": _verdicts(variants), "Quality": _quality(variants), "Cost": _costs(variants)}


def _verdicts(variants: Sequence[Variant]) -> Table:
    first = next(iter(variants[0].values))
    head = ["variant", "seeds", first, "to its twin", "energy", "best at, kimg", "verdict"]
    rows = [head]
    for v in variants:
        stages = ", ".join(f"{r.best[0]:g}{' (diverged)' if r.diverged else ''}" for r in v.runs)
        energy = f"{v.energy_nj / 1000:.1f} uJ"
        to_twin = str(v.to_twin or "")
        cells = [v.spec, str(len(v.runs)), str(v.values[first]), to_twin, energy, stages, v.verdict]
        rows.append(cells)
    floor = variants[0].runs[0].floors[first]
    return [*rows, ["real training images", "", f"{floor:.3g}", "", "", "", ""]]


def _quality(variants: Sequence[Variant]) -> Table:
    protocols = [p for p in variants[0].values if p.partition("[")[0] in QUALITY]
    rows = [[v.spec, *(str(v.values[p]) for p in protocols)] for v in variants]
    floors = variants[0].runs[0].floors
    last = ["real training images", *(f"{floors[p]:.3g}" for p in protocols)]
    return [["variant", *protocols], *rows, last]


def _costs(variants: Sequence[Variant]) -> Table:
    head = [
        *["variant", "MACs", "ACs", "firing rates", "energy, uJ", "of its twin's"],
        *["spiking part of its twin's", "images/s"],
    ]
    rows = [head]
    for v in variants:
        costs = [run.cost for run in v.runs]
        rows.append(
            [
                v.spec,
                f"{fmean(sum(c.macs.values()) for c in costs):,.0f}",
                f"{fmean(sum(c.acs.values()) for c in costs):,.0f}",
                ", ".join(_rates(costs)),
                f"{v.energy_nj / 1000:.1f}",
                f"{v.energy_to_twin:.2f}" if v.energy_to_twin else "",
                f"{v.spiking_to_twin:.2f}" if v.spiking_to_twin else "",
                f"{fmean(run.images_per_second for run in v.runs):,.0f}",
            ]
        )
    return rows


def _rates(costs: Sequence[Cost]) -> list[str]:
    """Mean firing rates of the spiking layers, those flagged that cost more than values would."""
    return [
        f"{name} {fmean(c.rates[name] for c in costs):.2f}"
        + (" (costs more than values)" if name in costs[0].costly else "")
        for name in costs[0].rates
    ]


def _explained(variants: Sequence[Variant], about: str) -> list[str]:
    first = next(iter(variants[0].values))
    return [
        about,
        "Numbers are means over seeds, with the 95 % interval where there are several. Each run is "
        f"measured at the best of its {STAGES} stages by {first}; where the last stage is "
        f"{DIVERGED} times worse it is marked as diverged.",
        f"Energy: an estimate of one image's, {PJ_PER_MAC} pJ per multiply-accumulate (MAC) and "
        f"{PJ_PER_AC} pJ per accumulate (AC), 45 nm, computation only. Spiking part: the layers "
        "that spikes feed, against what the twin computes in their place.",
    ]


def _markdown(variants: Sequence[Variant], title: str, about: str) -> str:
    lines = [f"# {title}", "", *(f"{line}\n" for line in _explained(variants, about))]
    for heading, (head, *rows) in _tables(variants).items():
        lines += [f"## {heading}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    for heading, chosen in _sections(variants):
        lines += [f"## {heading}", ""]
        for variant in chosen:
            lines += [f"`{variant.spec}`: {variant.verdict}", ""]
            lines += [f"![{run.spec.slug}](grids/{run.grid.name})" for run in variant.runs] + [""]
    return "\n".join(lines)


def _sections(variants: Sequence[Variant]) -> list[tuple[str, list[Variant]]]:
    """The variants by discriminator, as the paper lays its figures out."""
    found: dict[str, list[Variant]] = {}
    for variant in variants:
        found.setdefault(f"Against {variant.runs[0].spec.disc}", []).append(variant)
    return list(found.items())


def _page(variants: Sequence[Variant], title: str, about: str) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    parts = [
        "<!doctype html><meta charset=utf-8>",
        f"<title>{html.escape(title)}</title>",
        "<style>body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}"
        "figure{display:inline-block;margin:.5em}img{image-rendering:pixelated}</style>",
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in _explained(variants, about)),
    ]
    for heading, (head, *rows) in _tables(variants).items():
        table = row(head, "th") + "".join(row(r, "td") for r in rows)
        parts.append(f"<h2>{heading}</h2><table>{table}</table>")
    parts.append(
        f"<h2>Distance over training</h2><img src='{_inline(_curves(variants))}' alt='curves'>"
    )
    for heading, chosen in _sections(variants):
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        for variant in chosen:
            for run in variant.runs:
                picture = _inline(run.grid.read_bytes())
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
            "spiking_to_twin": v.spiking_to_twin,
            "verdict": v.verdict,
            "runs": [
                {
                    "seed": run.seed,
                    "history": run.history,
                    "diverged": run.diverged,
                    "failed": run.failed,
                    "cost": vars(run.cost),
                    "images_per_second": run.images_per_second,
                    "values": run.values,
                    "floors": run.floors,
                }
                for run in v.runs
            ],
        }
        for v in variants
    ]
