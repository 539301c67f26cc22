"""Spiking variants against their twins under one recipe: trained, measured, and put in words.

A comparison trains every pair with every seed in ten stages, measures the chosen distance after
each, and keeps the best stage: GANs diverge, and where one does the report says so. Everything is
resumable; what is done is not done again.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from scipy.stats import t as student
from tqdm import tqdm

from spikezoo import checkpoint, cost, evaluate, model, zoo
from spikezoo.catalog import names
from spikezoo.describe import TWIN
from spikezoo.errors import OptionError, SpecError, TrainingError
from spikezoo.recipes import Settings
from spikezoo.spec import Spec
from spikezoo.train import train

PAPER = tuple(
    f"gen:{gen}+disc:{disc}"
    for disc in ("ann", "snn")
    for gen in ("ann", "snn_front", "snn_middle", "snn_back", "snn_extractor")
)
"""The paper's own set: five generators against two discriminators."""

STAGES = 10
CONFIDENCE = 0.95
# A final distance this many times the best one is called divergence.
DIVERGED = 1.5


@dataclass(frozen=True)
class Finished:
    """A trained pair, measured at its best stage.

    `history` is (kimg, distance) after each stage; `failed` what stopped the training, if
    anything did.
    """

    spec: Spec
    seed: int
    folder: Path
    history: tuple[tuple[float, float], ...]
    values: dict[str, float]  # by protocol
    floors: dict[str, float]
    energy_nj: float
    rates: dict[str, float]
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
    """Trains and measures every spec with seeds 0 to seeds - 1; goes on where it was stopped."""
    jobs = [(spec, seed) for seed in range(seeds) for spec in specs]
    finished = []
    for spec, seed in tqdm(jobs, "pairs", unit="pair", disable=None):
        settings = replace(chosen, seed=seed)
        finished.append(_finish(spec, settings, kimg, out, data_dir, features, n))
    return finished


def take(run: Path, data_dir: Path | None, features: Sequence[str], n: int) -> Finished:
    """A finished run from elsewhere, measured as it is."""
    loaded = model.open_folder(run)
    kimg = loaded.config["training"]["kimg"]
    rows = _measure(loaded, data_dir, features, n)
    history = ((kimg, rows[0].value),)
    seed = int(loaded.config["training"]["seed"])
    return _described(loaded, run, seed, history, rows, "")


def _finish(
    spec: Spec,
    settings: Settings,
    kimg: float,
    out: Path,
    data_dir: Path | None,
    features: Sequence[str],
    n: int,
) -> Finished:
    name = f"{spec.slug}-seed{settings.seed}"
    best = out / "best" / name
    journal = out / "journal" / f"{name}.json"
    asked = {"kimg": kimg, "features": list(features), "n": n, "settings": vars(settings)}
    done = _journal(journal, asked)
    history: list[tuple[float, float]] = [(a, b) for a, b in done["history"]]
    failed: str = done["failed"]
    for stage in range(len(history) + 1, STAGES + 1):
        if failed:
            break
        try:
            result = train(
                spec, settings, kimg=kimg * stage / STAGES, data_dir=data_dir, out=out / "runs",
                resume=True, snapshot_kimg=kimg / STAGES,
            )  # fmt: skip
        except TrainingError as error:
            failed = str(error)
            if not history:
                raise
            break
        if not result.finished:
            raise KeyboardInterrupt
        loaded = model.open_folder(result.run)
        (row,) = _measure(loaded, data_dir, features[:1], n, ("fd",))
        if not history or row.value < min(value for _, value in history):
            _keep(result.run, best)
        history.append((kimg * stage / STAGES, row.value))
        _write(journal, asked, history, failed)
    _write(journal, asked, history, failed)
    loaded = model.open_folder(best)
    rows = _measure(loaded, data_dir, features, n)
    evaluate.keep(rows, best)
    return _described(loaded, best, settings.seed, tuple(history), rows, failed)


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


def _described(
    loaded: model.Model,
    folder: Path,
    seed: int,
    history: tuple[tuple[float, float], ...],
    rows: Sequence[evaluate.Row],
    failed: str,
) -> Finished:
    spent = cost.cost(loaded.generator)
    return Finished(
        loaded.spec,
        seed,
        folder,
        history,
        {row.protocol: row.value for row in rows},
        {row.protocol: row.floor for row in rows},
        spent.energy_nj,
        spent.rates,
        failed,
    )


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


def _journal(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What was done of a pair; from the start if something else was asked for then.

    Raises:
        OptionError: it was done under other settings; says which folder to choose anew.
    """
    if not path.exists():
        return {"history": [], "failed": ""}
    stored: dict[str, Any] = json.loads(path.read_text())
    if stored["asked"] != json.loads(json.dumps(asked)):
        raise OptionError(
            f"{path} is of a comparison with other settings ({stored['asked']}); give another --out"
        )
    return stored


def _write(
    path: Path, asked: dict[str, Any], history: list[tuple[float, float]], failed: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(path, {"asked": asked, "history": history, "failed": failed})


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
