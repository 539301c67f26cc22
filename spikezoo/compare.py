"""Spiking variants against their twins under one recipe: trained, measured, and put in words.

A comparison trains every pair with every seed in six stages, measures the chosen distance after
each, and keeps the best stage: GANs diverge, and where one does the report says so.

Its folder is the comparison. `journal/` holds all that was found of each pair and seed; what is
done there is not done again, and a report is of everything that is done, whichever command did it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm import tqdm

from spikezoo import cost, evaluate, files, model, recipes, sample, zoo
from spikezoo.catalog import names
from spikezoo.cost import Cost
from spikezoo.describe import TWIN, parameters
from spikezoo.errors import OptionError, SpecError, TrainingError
from spikezoo.evaluate import Yardstick
from spikezoo.recipes import Settings
from spikezoo.spec import Part, Spec
from spikezoo.train import train

log = logging.getLogger(__name__)

GENERATORS = ("ann", "snn_front", "snn_middle", "snn_back", "snn_extractor")
PAPER = tuple(f"gen:{gen}+disc:{disc}" for disc in ("ann", "snn") for gen in GENERATORS)
"""The paper's own set: five generators against two discriminators."""

STAGES = 6
SHOWN = range(32)  # seeds in a grid
# A distance this many times that of an earlier stage is called divergence.
DIVERGED = 1.5


@dataclass(frozen=True)
class Finished:
    """A trained pair, measured at its best stage.

    Attributes:
        training: all that it was trained under but the seed: `options` of both networks,
            `settings`, `kimg`.
        grid: a picture of its first images.
        chosen_by: the protocol of the distance by which the stage was chosen.
        history: (kimg, distance) after each stage.
        values: by protocol; `floors` are those of real training images.
        parameters: of the generator; `cost` is that of one image.
        images_per_second: how fast it drew where it was measured.
        failed: what stopped the training, if anything did.
    """

    spec: Spec
    seed: int
    training: dict[str, Any]
    grid: Path
    chosen_by: str
    history: tuple[tuple[float, float], ...]
    values: dict[str, float]
    floors: dict[str, float]
    parameters: int
    cost: Cost
    images_per_second: float
    failed: str = ""

    @property
    def best(self) -> tuple[float, float]:
        return min(self.history, key=lambda point: point[1])

    @property
    def diverged(self) -> list[float]:
        """The kimg of the stages that were far worse than one before them."""
        least, found = math.inf, []
        for kimg, value in self.history:
            if value > DIVERGED * least:
                found.append(kimg)
            least = min(least, value)
        return found


@dataclass(frozen=True)
class Stopped:
    """A pair whose training gave nothing to measure, and why."""

    spec: Spec
    seed: int
    failed: str


def expand(patterns: Sequence[str], dataset: str | None = None) -> list[Spec]:
    """The canonical specs of patterns, `gen:snn_*+disc:ann`, each with its twin before it.

    Raises:
        SpecError: a pattern that names nothing.
    """
    found: dict[str, Spec] = {}
    for pattern in patterns:
        if ":" not in pattern and "/" in pattern:
            raise SpecError(f"there is no run '{pattern}'; `spikezoo train` writes them to runs/")
        if len(pattern.replace("+", " ").split()) != 2:
            raise SpecError(
                f"'{pattern}' is no pair; with + between its parts it is one: gen:snn_*+disc:ann"
            )
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
    own = zoo.resolve(Part("gen", TWIN))
    kept = {key: value for key, value in zoo.resolve(spec.gen).items() if key in own}
    return replace(zoo.canonical(spec), gen=zoo.part_of("gen", TWIN, kept))


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

    Returns all that is done in the folder, what other calls did there included. A pair whose
    training fails is noted and the next one begun.

    Raises:
        OptionError: features that cannot be used, or the folder is of other settings.
        DataError: a dataset is not here.
    """
    by = {
        dataset: evaluate.yardstick(
            dataset, features=features, n=n, side=chosen.side, data_dir=data_dir
        )
        for dataset in {spec.dataset for spec in specs}
    }
    jobs = [(spec, seed) for seed in range(seeds) for spec in specs]
    for spec, seed in tqdm(jobs, "pairs", unit="pair", disable=None):
        settings = recipes.fitted(replace(chosen, seed=seed), spec)
        _finish(spec, settings, kimg, by[spec.dataset], out, data_dir)
    return done(out)


def done(out: Path) -> list[Finished]:
    """What is finished in a comparison's folder."""
    found = [
        _finished(entry, out / "grids" / f"{name}.png")
        for name, entry in _entries(out)
        if entry["found"]
    ]
    return sorted(found, key=_order)


def stopped(out: Path) -> list[Stopped]:
    """The pairs of a comparison's folder whose training gave nothing to measure."""
    return [
        Stopped(Spec.parse(entry["spec"]), entry["seed"], entry["failed"])
        for _, entry in _entries(out)
        if entry["failed"] and not entry["history"]
    ]


def take(
    run: Path, out: Path, *, data_dir: Path | None = None, features: Sequence[str] = (), n: int
) -> Finished:
    """A finished run from elsewhere, measured as it is; its grid is written to `out`."""
    loaded = model.open_folder(run)
    config = loaded.config
    by = evaluate.yardstick(
        loaded.spec.dataset, features=features, n=n, side=config["training"]["side"],
        data_dir=data_dir,
    )  # fmt: skip
    rows = by.measure(loaded.generator, range(n))
    settings = {k: v for k, v in config["training"].items() if k not in ("kimg", "seed")}
    options = {"gen": config["generator"]["options"], "disc": config["discriminator"]["options"]}
    kimg = config["training"]["kimg"]
    spec = Spec(
        zoo.part_of("gen", config["generator"]["name"], options["gen"]),
        zoo.part_of("disc", config["discriminator"]["name"], options["disc"]),
        loaded.spec.dataset,
    )
    entry = {
        "spec": str(spec),
        "seed": config["training"]["seed"],
        "training": {"options": options, "settings": settings, "kimg": kimg},
        "chosen_by": rows[0].protocol,
        "history": [(kimg, rows[0].value)],
        "failed": "",
        "found": _found(loaded, rows),
    }
    digest = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]
    return _finished(entry, _grid(loaded, out / "grids" / f"{spec.slug}-taken-{digest}.png"))


def _finish(
    spec: Spec,
    settings: Settings,
    kimg: float,
    by: Yardstick,
    out: Path,
    data_dir: Path | None,
) -> None:
    """Trains one pair to its end, in stages, and keeps in the journal what is found."""
    name = f"{spec.slug}-seed{settings.seed}"
    journal, best = out / "journal" / f"{name}.json", out / "best" / name
    entry = _entry(
        journal,
        {
            "spec": str(spec),
            "seed": settings.seed,
            "training": {
                "options": {part.kind: zoo.resolve(part) for part in (spec.gen, spec.disc)},
                "settings": {k: v for k, v in asdict(settings).items() if k != "seed"},
                "kimg": kimg,
            },
            "chosen_by": f"fd[{by.protocols[0]}]",
        },
    )
    reached = STAGES if entry["failed"] else len(entry["history"])
    for stage in range(reached + 1, STAGES + 1):
        try:
            result = train(
                spec, settings, kimg=kimg * stage / STAGES, data_dir=data_dir, out=out / "runs",
                resume=True, snapshot_kimg=kimg / STAGES,
            )  # fmt: skip
        except TrainingError as error:
            log.warning("%s, seed %d: %s", spec, settings.seed, error)
            entry["failed"] = str(error)
            files.write_json(journal, entry)
            break
        if not result.finished:
            raise KeyboardInterrupt
        generator = model.open_folder(result.run).generator
        (row,) = by.only(by.protocols[:1]).measure(generator, range(len(by.test)), ("fd",))
        if row.value < min((value for _, value in entry["history"]), default=math.inf):
            _keep(result.run, best)
        entry["history"].append((kimg * stage / STAGES, row.value))
        files.write_json(journal, entry)
    before = entry["found"] or {"values": {}, "floors": {}}
    missing = [p for p in by.protocols if f"fd[{p}]" not in before["values"]]
    if entry["history"] and missing:
        loaded = model.open_folder(best)
        rows = by.only(missing).measure(loaded.generator, range(len(by.test)))
        evaluate.keep(rows, best, model.images_shown(best))
        _grid(loaded, out / "grids" / f"{name}.png")
        found = _found(loaded, rows)
        entry["found"] = found | {key: before[key] | found[key] for key in ("values", "floors")}
        files.write_json(journal, entry)


def _found(loaded: model.Model, rows: Sequence[evaluate.Row]) -> dict[str, Any]:
    return {
        "values": {row.protocol: row.value for row in rows},
        "floors": {row.protocol: row.floor for row in rows},
        "parameters": parameters(loaded.generator),
        "cost": asdict(cost.cost(loaded.generator)),
        "images_per_second": cost.images_per_second(loaded.generator),
    }


def _finished(entry: dict[str, Any], grid: Path) -> Finished:
    found = entry["found"]
    return Finished(
        Spec.parse(entry["spec"]),
        entry["seed"],
        entry["training"],
        grid,
        entry["chosen_by"],
        tuple((kimg, value) for kimg, value in entry["history"]),
        found["values"],
        found["floors"],
        found["parameters"],
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
    newest = max((run / "checkpoints").glob("[0-9]*"))  # a stage ends with one
    temporary = best.with_name(f".writing-{best.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(newest, temporary / "checkpoints" / newest.name)
    for file in (model.CONFIG, "metrics.jsonl"):
        shutil.copy(run / file, temporary / file)
    shutil.rmtree(best, ignore_errors=True)
    temporary.rename(best)


# --- the journal ----------------------------------------------------------------------------


def _entries(out: Path) -> list[tuple[str, dict[str, Any]]]:
    paths = sorted((out / "journal").glob("*.json"))
    return [(path.stem, json.loads(path.read_text())) for path in paths]


def _entry(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The journal of a pair and seed, or a new one.

    Raises:
        OptionError: it is of another training; says what differs.
    """
    wanted = json.loads(json.dumps(wanted))
    if not path.exists():
        return {**wanted, "history": [], "failed": "", "found": None}
    stored: dict[str, Any] = json.loads(path.read_text())
    now, then = _flat(wanted), _flat({key: stored[key] for key in wanted})
    differ = [key for key in now | then if now.get(key) != then.get(key)]
    if differ:
        told = "; ".join(f"{key} {then.get(key)}, not {now.get(key)}" for key in differ)
        raise OptionError(f"{path} has {told}; give another --out")
    return stored


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    """A nested dict's leaves by their own keys, which are all different here."""
    flat: dict[str, Any] = {}
    for key, inside in value.items():
        if isinstance(inside, dict):
            deeper = key in ("gen", "disc")
            flat |= {f"{key} {k}" if deeper else k: v for k, v in _flat(inside).items()}
        else:
            flat[key] = inside
    return flat
