"""Spiking variants against their twins under one recipe: trained, measured, and put in words.

A comparison trains every pair with every seed in six stages, measures the chosen distance after
each, and keeps the best stage: GANs diverge, and where one does the report says so.

Its folder is the comparison. `journal/` holds all that was found of each pair and seed; what is
done there is not done again, and a report is of everything that is done, whichever command did it.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from scipy.stats import t as student
from tqdm import tqdm

from spikezoo import cost, evaluate, files, model, sample, zoo
from spikezoo.catalog import names
from spikezoo.cost import Cost
from spikezoo.describe import TWIN
from spikezoo.errors import OptionError, SpecError, TrainingError
from spikezoo.recipes import Settings
from spikezoo.spec import Spec
from spikezoo.train import train

GENERATORS = ("ann", "snn_front", "snn_middle", "snn_back", "snn_extractor")
PAPER = tuple(f"gen:{gen}+disc:{disc}" for disc in ("ann", "snn") for gen in GENERATORS)
"""The paper's own set: five generators against two discriminators."""

STAGES = 6
CONFIDENCE = 0.95
SHOWN = range(32)  # seeds in a grid
# A final distance this many times the best one is called divergence.
DIVERGED = 1.5


@dataclass(frozen=True)
class Finished:
    """A trained pair, measured at its best stage.

    Attributes:
        grid: a picture of its first images.
        history: (kimg, distance) after each stage.
        values: by protocol; `floors` are those of real training images.
        cost: of one image.
        images_per_second: how fast it drew where it was measured.
        failed: what stopped the training, if anything did.
    """

    spec: Spec
    seed: int
    grid: Path
    history: tuple[tuple[float, float], ...]
    values: dict[str, float]
    floors: dict[str, float]
    cost: Cost
    images_per_second: float
    failed: str = ""

    @property
    def best(self) -> tuple[float, float]:
        return min(self.history, key=lambda point: point[1])

    @property
    def diverged(self) -> bool:
        return bool(self.failed) or self.history[-1][1] > DIVERGED * self.best[1]


def expand(patterns: Sequence[str], dataset: str | None = None) -> list[Spec]:
    """The canonical specs of patterns, `gen:snn_*+disc:ann`, each with its twin before it.

    Raises:
        SpecError: a pattern that names nothing.
    """
    found: dict[str, Spec] = {}
    for pattern in patterns:
        text, _, own = pattern.partition("@")
        specs = [
            zoo.canonical(Spec.parse(f"{name}@{dataset or own or 'digits'}"))
            for name in _matching(text)
        ]
        if not specs:
            raise SpecError(f"no generator and discriminator match '{pattern}'")
        for spec in specs:
            for one in (twin(spec), spec):
                found.setdefault(str(one), one)
    return list(found.values())


def _matching(text: str) -> list[str]:
    """Texts of specs for one in which names of networks may hold wildcards."""
    if not any(sign in text for sign in "*?["):
        return [text]
    parts = [word.partition(",") for word in text.replace("+", " ").split()]
    texts = [""]
    for head, comma, options in parts:
        kind, colon, pattern = head.partition(":")
        if kind not in zoo.REGISTRY_OF or not colon:
            raise SpecError(f"a pattern is written gen:snn_*+disc:ann, given '{text}'")
        chosen = [n for n in names(zoo.REGISTRY_OF[kind]) if fnmatchcase(n, pattern)]
        texts = [f"{done} {kind}:{n}{comma}{options}" for done in texts for n in chosen]
    return [text.strip() for text in texts]


def twin(spec: Spec) -> Spec:
    """The pair whose generator does not spike, with the options that both know."""
    own = zoo.resolve(replace(spec.gen, name=TWIN, options=()))
    kept = tuple(option for option in spec.gen.options if option[0] in own)
    return zoo.canonical(replace(spec, gen=replace(spec.gen, name=TWIN, options=kept)))


def compare(
    specs: Sequence[Spec],
    chosen: Settings,
    *,
    seeds: int = 1,
    kimg: float = 300.0,
    out: Path = Path("comparison"),
    data_dir: Path | None = None,
    features: Sequence[str] = (),
    n: int = 10_000,
) -> list[Finished]:
    """Trains and measures every spec with seeds 0 to seeds - 1; goes on where it was stopped.

    Returns all that is done in the folder, what other calls did there included.

    Raises:
        OptionError: the folder is of other settings; says to choose another.
    """
    asked = {"kimg": kimg, "features": list(features), "n": n, "settings": asdict(chosen)}
    jobs = [(spec, seed) for seed in range(seeds) for spec in specs]
    for spec, seed in tqdm(jobs, "pairs", unit="pair", disable=None):
        _finish(spec, replace(chosen, seed=seed), asked, out, data_dir)
    return done(out)


def done(out: Path) -> list[Finished]:
    """What is finished in a comparison's folder."""
    found = []
    for path in (out / "journal").glob("*.json"):
        stored = json.loads(path.read_text())
        if stored["found"]:
            found.append(_finished(stored, out / "grids" / f"{path.stem}.png"))
    return sorted(found, key=_order)


def take(run: Path, out: Path, data_dir: Path | None, features: Sequence[str], n: int) -> Finished:
    """A finished run from elsewhere, measured as it is; its grid is written to `out`."""
    loaded = model.open_folder(run)
    training = loaded.config["training"]
    rows = _measure(loaded, data_dir, features, n)
    grid = _grid(loaded, out / "grids" / f"{loaded.spec.slug}-seed{training['seed']}.png")
    return _finished(
        {
            "spec": str(loaded.spec),
            "seed": training["seed"],
            "history": [(training["kimg"], rows[0].value)],
            "failed": "",
            "found": _found(loaded, rows),
        },
        grid,
    )


def _finish(
    spec: Spec, settings: Settings, asked: dict[str, Any], out: Path, data_dir: Path | None
) -> None:
    """Trains one pair to its end, in stages, and keeps in the journal what is found."""
    kimg, features, n = asked["kimg"], asked["features"], asked["n"]
    name = f"{spec.slug}-seed{settings.seed}"
    journal = out / "journal" / f"{name}.json"
    best = out / "best" / name
    options = {part.kind: zoo.resolve(part) for part in (spec.gen, spec.disc)}
    wanted = {"spec": str(spec), "seed": settings.seed, "options": options, "asked": asked}
    entry = _entry(journal, wanted)
    for stage in range(len(entry["history"]) + 1, STAGES + 1):
        if entry["failed"]:
            break
        try:
            result = train(
                spec, settings, kimg=kimg * stage / STAGES, data_dir=data_dir, out=out / "runs",
                resume=True, snapshot_kimg=kimg / STAGES,
            )  # fmt: skip
        except TrainingError as error:
            if not entry["history"]:
                raise
            entry["failed"] = str(error)
            _write(journal, entry)
            break
        if not result.finished:
            raise KeyboardInterrupt
        loaded = model.open_folder(result.run)
        (row,) = _measure(loaded, data_dir, features[:1], n, ("fd",))
        if row.value < min((value for _, value in entry["history"]), default=math.inf):
            _keep(result.run, best)
        entry["history"].append((kimg * stage / STAGES, row.value))
        _write(journal, entry)
    if not entry["found"]:
        loaded = model.open_folder(best)
        rows = _measure(loaded, data_dir, features, n)
        evaluate.keep(rows, best)
        _grid(loaded, out / "grids" / f"{name}.png")
        entry["found"] = _found(loaded, rows)
        _write(journal, entry)


def _measure(
    loaded: model.Model,
    data_dir: Path | None,
    features: Sequence[str],
    n: int,
    metrics: Sequence[str] = evaluate.METRICS,
) -> list[evaluate.Row]:
    dataset = loaded.spec.dataset
    return evaluate.evaluate(
        loaded.generator, dataset, features=features, metrics=metrics, seeds=range(n),
        data_dir=data_dir,
    )  # fmt: skip


def _found(loaded: model.Model, rows: Sequence[evaluate.Row]) -> dict[str, Any]:
    return {
        "values": {row.protocol: row.value for row in rows},
        "floors": {row.protocol: row.floor for row in rows},
        "cost": asdict(cost.cost(loaded.generator)),
        "images_per_second": cost.images_per_second(loaded.generator),
    }


def _finished(entry: dict[str, Any], grid: Path) -> Finished:
    found = entry["found"]
    return Finished(
        zoo.canonical(Spec.parse(entry["spec"])),
        entry["seed"],
        grid,
        tuple((kimg, value) for kimg, value in entry["history"]),
        found["values"],
        found["floors"],
        Cost(**found["cost"]),
        found["images_per_second"],
        entry["failed"],
    )


def _order(run: Finished) -> tuple[str, str, int, str, int]:
    """Where a report has a run: by dataset and discriminator, generators as the paper has them."""
    name, spec = run.spec.gen.name, run.spec
    place = GENERATORS.index(name) if name in GENERATORS else len(GENERATORS)
    return spec.dataset, str(spec.disc), place, str(spec), run.seed


def _grid(loaded: model.Model, path: Path) -> Path:
    sample.save_grid(loaded.sample(SHOWN), path, columns=8)
    return path


def _keep(run: Path, best: Path) -> None:
    """Copies what is needed of a run to load and export its newest checkpoint."""
    newest = max((run / "checkpoints").glob("[0-9]*"))
    temporary = best.with_name(f".writing-{best.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(newest, temporary / "checkpoints" / newest.name)
    for file in (model.CONFIG, "metrics.jsonl"):
        shutil.copy(run / file, temporary / file)
    shutil.rmtree(best, ignore_errors=True)
    temporary.rename(best)


def _entry(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The journal of a pair and seed, or a new one."""
    wanted = json.loads(json.dumps(wanted))
    if not path.exists():
        return {**wanted, "history": [], "failed": "", "found": None}
    stored: dict[str, Any] = json.loads(path.read_text())
    if any(stored[key] != value for key, value in wanted.items()):
        raise OptionError(
            f"{path} is of a comparison with other settings ({stored['options']}, "
            f"{stored['asked']}); give another --out"
        )
    return stored


def _write(path: Path, entry: dict[str, Any]) -> None:
    files.write_json(path, entry)


# --- statistics -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, which one seed does not have."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g})"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    half = _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def ratio(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """The ratio of two positive quantities, each over its seeds: Welch's interval of logarithms."""
    a, b = ([math.log(max(v, 1e-12)) for v in side] for side in (values, others))
    difference = statistics.fmean(a) - statistics.fmean(b)
    if len(a) < 2 or len(b) < 2:
        return Estimate(math.exp(difference))
    parts = [statistics.variance(side) / len(side) for side in (a, b)]
    total = sum(parts)
    if not total:
        return Estimate(math.exp(difference), math.exp(difference), math.exp(difference))
    freedom = total**2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True)
    )
    half = _quantile(freedom) * math.sqrt(total)
    return Estimate(*(math.exp(difference + d) for d in (0, -half, half)))


def _quantile(freedom: float) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))


def verdict(to_twin: Estimate, energy: float) -> str:
    """What a distance's ratio to the twin's, and the energy's, say in words."""
    if to_twin.low is None or to_twin.high is None:
        better = "better" if to_twin.mean < 1 else "worse"
        said = f"{better} than its twin on one seed, which proves nothing"
    elif to_twin.high < 1:
        said = "better than its twin"
    elif to_twin.low > 1:
        said = "worse than its twin"
    else:
        said = "no difference from its twin was shown"
    return f"{said}; {energy:.2f} times its energy"
