"""A comparison as one report: Markdown, JSON, CSV, small PNG grids, and a self-contained page."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from spikezoo import files, recipes
from spikezoo.compare import DIVERGED, STAGES, Finished, Stopped, twin
from spikezoo.cost import BREAK_EVEN, PJ_PER_AC, PJ_PER_MAC, Cost
from spikezoo.describe import TWIN
from spikezoo.estimates import Estimate, estimate, ratio, verdict

QUALITY = ("fd", "kid", "precision", "recall", "density", "coverage", "score", "label_kl")


@dataclass(frozen=True)
class Variant:
    """A spec over its seeds, and how it compares with its twin.

    Attributes:
        name: the spec; where runs were trained in different ways, with the way.
        values: by protocol.
        distance: that of `values` which chose the checkpoints; `to_twin` is its ratio to the
            twin's, of geometric means.
        energy_nj: of one image, a mean over seeds; `energy_to_twin` as a part of the twin's.
        spiking_to_twin: the energy of the layers that spikes feed, as a part of what the twin
            spends in the layers that they replace. None if they replace none.
    """

    name: str
    runs: list[Finished]
    values: dict[str, Estimate]
    distance: Estimate
    to_twin: Estimate | None
    energy_nj: float
    energy_to_twin: float | None
    spiking_to_twin: float | None
    verdict: str


def write(finished: Sequence[Finished], stopped: Sequence[Stopped], out: Path, title: str) -> Path:
    """Writes report.md, report.html, report.json and report.csv to where the runs' grids lie in
    grids/; returns the first."""
    variants = summarise(finished)
    failures = [f"{s.spec}, seed {s.seed}: {s.failed}" for s in stopped]
    failures += [
        f"{run.spec}, seed {run.seed}, measured at {run.best[0]:g} kimg: {run.failed}"
        for run in finished
        if run.failed
    ]
    files.write_text(out / "report.csv", _csv(finished))
    stored = {"title": title, "variants": _json(variants), "failures": failures}
    files.write_json(out / "report.json", stored)
    files.write_text(out / "report.md", _markdown(variants, failures, title))
    files.write_text(out / "report.html", _page(variants, failures, title))
    return out / "report.md"


def summarise(finished: Sequence[Finished]) -> list[Variant]:
    """One variant per spec, training and distance, in the order in which they first occur."""
    by_training: dict[str, list[Finished]] = {}
    for run in finished:
        key = json.dumps([str(run.spec), run.training, run.chosen_by])
        by_training.setdefault(key, []).append(run)
    groups = [*by_training.values()]
    shared_way = _shared_way(finished)
    variants = []
    for runs in groups:
        own = [pair for pair in _way(runs[0]) if pair not in shared_way]
        name = " ".join([str(runs[0].spec), *own])
        shared = [p for p in runs[0].values if all(p in run.values for run in runs)]
        values = {p: estimate([run.values[p] for run in runs]) for p in shared}
        first = runs[0].chosen_by
        energy = fmean(run.cost.energy_nj for run in runs)
        others = [] if runs[0].spec.gen.name == TWIN else _twins(runs[0], groups)
        to_twin = energy_to_twin = spiking_to_twin = None
        said = "the twin" if runs[0].spec.gen.name == TWIN else "its twin was not trained"
        if others:
            to_twin = ratio([r.values[first] for r in runs], [r.values[first] for r in others])
            energy_to_twin = energy / fmean(r.cost.energy_nj for r in others)
            spiking_to_twin = _spiking_part([r.cost for r in runs], others[0].cost)
            said = verdict(to_twin, energy_to_twin)
        ratios = (to_twin, energy, energy_to_twin, spiking_to_twin)
        variants.append(Variant(name, runs, values, values[first], *ratios, said))
    return variants


def _way(run: Finished) -> list[str]:
    """How a run was trained, as options of `spikezoo train`, each with its value."""
    training = {**run.training["settings"], "kimg": run.training["kimg"]}
    words = recipes.arguments(training, run.spec)
    return [f"{key} {value}" for key, value in zip(words[::2], words[1::2], strict=True)]


def _shared_way(finished: Sequence[Finished]) -> list[str]:
    """The options that all runs were trained with; the others stand in a variant's name."""
    ways = [_way(run) for run in finished]
    return [pair for pair in ways[0] if all(pair in way for way in ways)] if ways else []


def _twins(run: Finished, groups: Sequence[list[Finished]]) -> list[Finished]:
    """The runs of its twin that were trained, and measured, as it was."""
    wanted = str(twin(run.spec)), _conditions(run)
    for runs in groups:
        if (str(runs[0].spec), _conditions(runs[0])) == wanted:
            return runs
    return []


def _conditions(run: Finished) -> tuple[list[str], dict[str, Any], str]:
    """What a run shares with its twin: the way, the discriminator, and what chose the stage."""
    return _way(run), run.training["options"]["disc"], run.chosen_by


def _spiking_part(costs: Sequence[Cost], twin: Cost) -> float | None:
    replaced = sum(n for name, n in twin.macs.items() if name not in costs[0].macs) * PJ_PER_MAC
    return 1000 * fmean(cost.spikes_nj for cost in costs) / replaced if replaced else None


# --- tables ---------------------------------------------------------------------------------


Table = list[list[str]]


def _groups(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Those that can stand in one table: of one dataset, and of one distance."""
    found: dict[tuple[str, str], list[Variant]] = {}
    for variant in variants:
        run = variant.runs[0]
        found.setdefault((run.spec.dataset, run.chosen_by), []).append(variant)
    return [*found.values()]


def _tables(variants: Sequence[Variant]) -> dict[str, Table]:
    """Heading -> head and rows, of each dataset."""
    tables: dict[str, Table] = {}
    groups = _groups(variants)
    for group in groups:
        run = group[0].runs[0]
        of = f", {run.spec.dataset} by {run.chosen_by}" if len(groups) > 1 else ""
        tables |= {
            f"Verdict{of}": _verdicts(group),
            f"Quality{of}": _quality(group),
            f"Cost{of}": _costs(group),
        }
    return tables


def _verdicts(variants: Sequence[Variant]) -> Table:
    first = variants[0].runs[0].chosen_by
    head = ["variant", "seeds", first, "to its twin", "energy", "best at, kimg", "verdict"]
    rows = [head]
    for v in variants:
        stages = ", ".join(map(_stage, v.runs))
        energy = f"{v.energy_nj / 1000:.1f} uJ"
        to_twin = str(v.to_twin or "")
        rows.append([v.name, str(len(v.runs)), str(v.distance), to_twin, energy, stages, v.verdict])
    floor = variants[0].runs[0].floors[first]
    return [*rows, ["real training images", "", f"{floor:.3g}", "", "", "", ""]]


def _stage(run: Finished) -> str:
    at = ", ".join(f"{kimg:g}" for kimg in run.diverged)
    return f"{run.best[0]:g}{f' (diverged at {at})' if at else ''}"


def _quality(variants: Sequence[Variant]) -> Table:
    floors: dict[str, float] = {}
    for variant in variants:
        floors |= {p: f for p, f in variant.runs[0].floors.items() if p in variant.values}
    protocols = [p for p in floors if p.partition("[")[0] in QUALITY]
    rows = [[v.name, *(str(v.values.get(p, "")) for p in protocols)] for v in variants]
    last = ["real training images", *(f"{floors[p]:.3g}" for p in protocols)]
    return [["variant", *protocols], *rows, last]


def _costs(variants: Sequence[Variant]) -> Table:
    head = [
        *["variant", "parameters", "MACs", "ACs", "firing rates", "energy, uJ", "of its twin's"],
        *["spiking part of its twin's", "images/s"],
    ]
    rows = [head]
    for v in variants:
        costs = [run.cost for run in v.runs]
        rows.append(
            [
                v.name,
                f"{v.runs[0].parameters:,}",
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
    found = []
    for name, steps in costs[0].T.items():
        rate = fmean(cost.rates[name] for cost in costs)
        flag = " (costs more than values)" if rate * steps > BREAK_EVEN else ""
        found.append(f"{name} {rate:.2f}{flag}")
    return found


def _explained(variants: Sequence[Variant]) -> list[str]:
    shared = " ".join(["spikezoo train SPEC", *_shared_way([v.runs[0] for v in variants])])
    return [
        f"Trained with `{shared}`, and with the options that stand behind a variant's name.",
        "Numbers are means over seeds, with the 95 % interval where there are several; ratios are "
        "of geometric means. Each run is measured at the best of its "
        f"{STAGES} stages by the distance in its first table; a stage that was {DIVERGED} times "
        "worse than one before it is marked as diverged.",
        f"Energy: an estimate of one image's, {PJ_PER_MAC} pJ per multiply-accumulate (MAC) and "
        f"{PJ_PER_AC} pJ per accumulate (AC), 45 nm, computation only. Spiking part: the layers "
        "that spikes feed, against the layers of the twin that they replace.",
    ]


def _markdown(variants: Sequence[Variant], failures: Sequence[str], title: str) -> str:
    lines = [f"# {title}", "", *(f"{line}\n" for line in _explained(variants))]
    for heading, (head, *rows) in _tables(variants).items():
        lines += [f"## {heading}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    if failures:
        lines += ["## Trainings that failed", "", *(f"- {failure}" for failure in failures), ""]
    for heading, chosen in _sections(variants):
        lines += [f"## {heading}", ""]
        for variant in chosen:
            lines += [f"`{variant.name}`: {variant.verdict}", ""]
            lines += [f"![{run.spec.slug}](grids/{run.grid.name})" for run in variant.runs] + [""]
    return "\n".join(lines)


def _sections(variants: Sequence[Variant]) -> list[tuple[str, list[Variant]]]:
    """The variants by dataset and discriminator, as the paper lays its figures out."""
    found: dict[str, list[Variant]] = {}
    for variant in variants:
        spec = variant.runs[0].spec
        found.setdefault(f"{spec.dataset}, against {spec.disc}", []).append(variant)
    return list(found.items())


def _page(variants: Sequence[Variant], failures: Sequence[str], title: str) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    parts = [
        "<!doctype html><meta charset=utf-8>",
        f"<title>{html.escape(title)}</title>",
        "<style>body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}"
        "figure{display:inline-block;margin:.5em}img{image-rendering:pixelated}</style>",
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in _explained(variants)),
    ]
    for heading, (head, *rows) in _tables(variants).items():
        table = row(head, "th") + "".join(row(r, "td") for r in rows)
        parts.append(f"<h2>{heading}</h2><table>{table}</table>")
    if failures:
        listed = "".join(f"<li>{html.escape(failure)}</li>" for failure in failures)
        parts.append(f"<h2>Trainings that failed</h2><ul>{listed}</ul>")
    parts.append("<h2>Distance over training</h2>")
    for group in _groups(variants):
        parts.append(f"<img src='{_inline(_curves(group))}' alt='curves'>")
    for heading, chosen in _sections(variants):
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        for variant in chosen:
            for run in variant.runs:
                picture = _inline(run.grid.read_bytes())
                caption = html.escape(f"{variant.name}, seed {run.seed}")
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
            label = variant.name if run is variant.runs[0] else None
            axes.plot(*zip(*run.history, strict=True), color=f"C{index % 10}", label=label)
    axes.set(xlabel="kimg", ylabel=variants[0].runs[0].chosen_by, yscale="log")
    axes.legend(fontsize="x-small")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80, format="png")
    return buffer.getvalue()


def _csv(finished: Sequence[Finished]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["spec", "seed", "protocol", "value", "floor", "best_kimg", "diverged_at_kimg"])
    for run in finished:
        for protocol, value in run.values.items():
            row = [str(run.spec), run.seed, protocol, f"{value:.6g}"]
            at = " ".join(f"{kimg:g}" for kimg in run.diverged)
            writer.writerow([*row, f"{run.floors[protocol]:.6g}", f"{run.best[0]:g}", at])
    return buffer.getvalue()


def _json(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    return [
        {
            "spec": v.name,
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
