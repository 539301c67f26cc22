"""Comparisons: the statistics against known values, and a whole one on the bundled digits."""

import base64
import csv
import dataclasses
import json
import math
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

import spikezoo
from spikezoo import compare, estimates, evaluate, report
from spikezoo.cli import main
from spikezoo.cost import Cost
from spikezoo.errors import OptionError, SpecError, TrainingError
from spikezoo.recipes import Settings, settings
from spikezoo.spec import Spec
from spikezoo.train import Result, train

PAIR = "gen:snn_middle,width=4,latent_dim=4,T=2+disc:ann,width=4"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


# --- which pairs ----------------------------------------------------------------------------


def test_each_spec_has_its_twin_before_it() -> None:
    texts = [str(s) for s in compare.expand([f"{PAIR}@digits"])]
    assert texts == [
        "gen:ann,latent_dim=4,width=4+disc:ann,width=4@digits",
        str(spikezoo.zoo.canonical(Spec.parse(f"{PAIR}@digits"))),
    ]


def test_patterns_name_all_that_match() -> None:
    specs = [str(s) for s in compare.expand(["gen:snn_[fm]*+disc:ann@digits"], "mnist")]
    assert specs[0] == "gen:ann+disc:ann@mnist"
    assert set(specs[1:]) == {
        f"gen:{g}+disc:ann@mnist" for g in spikezoo.names("generators", "snn_[fm]*")
    }
    paper = [str(s) for s in compare.expand(compare.PAPER, "mnist")]
    assert len(paper) == 10
    assert sum("gen:snn" in s for s in paper) == 8
    with pytest.raises(SpecError, match="no generator and discriminator match"):
        compare.expand(["gen:none_*+disc:ann"])
    with pytest.raises(SpecError, match="a pattern is written"):
        compare.expand(["snn_* disc:ann"])


def test_a_twin_has_the_options_that_it_knows_defaults_included() -> None:
    spec = Spec.parse("gen:snn_back,width=32,T=8,latent_dim=100+disc:snn,T=2@digits")
    assert str(compare.twin(spec)) == "gen:ann,width=32+disc:snn,T=2@digits"


# --- statistics -----------------------------------------------------------------------------


def test_interval_of_a_mean_is_students() -> None:
    found = estimates.estimate([2.0, 4.0, 6.0])
    half = 4.302653 * 2 / math.sqrt(3)  # t(0.975, 2), from a printed table
    assert (found.mean, found.low, found.high) == pytest.approx((4, 4 - half, 4 + half), rel=1e-6)
    assert estimates.estimate([3.0]) == estimates.Estimate(3.0)


def test_interval_of_a_ratio_is_welchs_of_logarithms() -> None:
    a, b = [2.0, 2.2, 2.1], [1.0, 1.3, 0.9]
    found = estimates.ratio(a, b)
    logs = [[math.log(v) for v in side] for side in (a, b)]
    assert found.mean == pytest.approx(
        math.exp(statistics.fmean(logs[0]) - statistics.fmean(logs[1]))
    )
    from scipy.stats import ttest_ind

    wanted = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(math.exp(wanted.low))
    assert found.high == pytest.approx(math.exp(wanted.high))
    assert estimates.ratio([2.0], [1.0]) == estimates.Estimate(pytest.approx(2.0))


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.5, 0.4, 0.7), "better than its twin;"),
        ((1.5, 1.2, 1.9), "worse than its twin;"),
        ((1.1, 0.8, 1.4), "no difference"),
        ((1.1, None, None), "too few seeds to prove it"),
    ],
)
def test_verdicts(interval: tuple[float, float | None, float | None], words: str) -> None:
    assert words in estimates.verdict(estimates.Estimate(*interval), 0.4)
    assert "0.40 times its energy" in estimates.verdict(estimates.Estimate(*interval), 0.4)


TRAINED = {"options": {"gen": {}, "disc": {}}, "settings": vars(settings()), "kimg": 1.0}


def _found(
    name: str, cost: Cost, distance: float, seed: int = 0, **trained: object
) -> compare.Finished:
    spec = spikezoo.zoo.canonical(Spec.parse(f"gen:{name}+disc:ann@digits"))
    at = ((1.0, distance),)
    values = {"fd[x]": distance}
    return compare.Finished(
        spec, seed, {**TRAINED, **trained}, Path("grid.png"), "fd[x]", at, values, values,
        1, cost, 1.0,
    )  # fmt: skip


def test_the_spiking_part_is_held_against_what_the_twin_computes_in_its_place() -> None:
    # The twin spends 4.6 pJ on each of 1000 + 3000 MACs; 4000 ACs at 0.9 pJ stand for the 3000.
    ann = _found("ann", Cost({"a": 1e6, "b": 3e6}, {}, {}, {}), 2.0)
    middle = _found("snn_middle", Cost({"a": 1e6, "c": 7e6}, {"b": 4e6}, {"s": 0.5}, {"s": 4}), 1.0)
    _, found = report.summarise([ann, middle])
    assert found.spiking_to_twin == pytest.approx(4 * 0.9 / (3 * 4.6))
    assert found.energy_to_twin == pytest.approx((8 * 4.6 + 4 * 0.9) / (4 * 4.6))
    assert found.to_twin == estimates.Estimate(pytest.approx(0.5))
    # Pixels that are spikes feed no layer.
    _, found = report.summarise([ann, _found("snn_back", ann.cost, 1.0)])
    assert found.spiking_to_twin is None


def test_layers_whose_spikes_cost_more_than_values_are_flagged(tmp_path: Path) -> None:
    """By the mean over seeds: 0.9 / 4.6 of 8 steps is a rate of 0.64."""
    Image.new("L", (8, 8)).save(tmp_path / "grid.png")
    found = []
    for seed, rate in enumerate((0.6, 0.7)):
        spent = Cost({}, {"b": 1.0}, {"rare": 0.6, "often": rate}, {"rare": 8, "often": 8})
        run = _found("snn_middle", spent, 1.0, seed)
        found.append(dataclasses.replace(run, grid=tmp_path / "grid.png"))
    text = report.write(found, [], tmp_path, "Title").read_text()
    assert "rare 0.60, often 0.65 (costs more than values)" in text


def test_only_runs_that_were_trained_alike_are_held_against_each_other(tmp_path: Path) -> None:
    cost = Cost({"a": 1.0}, {}, {}, {})
    ann, middle = _found("ann", cost, 2.0), _found("snn_middle", cost, 1.0)
    longer = _found("snn_middle", cost, 0.5, kimg=2.0)
    found = report.summarise([ann, middle, longer])
    assert [v.verdict.partition(";")[0] for v in found] == [
        "the twin",
        "better than its twin, on too few seeds to prove it",
        "its twin was not trained",
    ]
    name = "gen:snn_middle+disc:ann@digits --kimg"
    assert [v.name for v in found][1:] == [f"{name} 1", f"{name} 2"]
    (alone,) = report.summarise([middle])
    assert alone.name == "gen:snn_middle+disc:ann@digits"
    # A default that has changed since makes another variant, not another seed.
    other = _found("snn_middle", cost, 1.0, options={"gen": {"T": 8}, "disc": {}})
    assert len(report.summarise([middle, other])) == 2
    assert len(report.summarise([middle, _found("snn_middle", cost, 1.0, seed=1)])) == 1


def test_datasets_have_their_own_tables(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "grid.png")
    cost = Cost({"a": 1.0}, {}, {}, {})
    ann = dataclasses.replace(_found("ann", cost, 2.0), grid=tmp_path / "grid.png")
    other = dataclasses.replace(
        ann, spec=Spec.parse("gen:ann+disc:ann@mnist"), chosen_by="fd[y]",
        values={"fd[y]": 1.0, "kid[y]": 2.0}, floors={"fd[y]": 0.1, "kid[y]": 0.2},
    )  # fmt: skip
    text = report.write([ann, other], [], tmp_path, "Title").read_text()
    assert text.index("## Verdict, digits") < text.index("## Verdict, mnist")
    assert "| variant | fd[x] |" in text
    assert "| variant | fd[y] | kid[y] |" in text
    # So have two distances on one dataset, neither of which hides the other.
    other = dataclasses.replace(other, spec=ann.spec)
    text = report.write([ann, other], [], tmp_path, "Title").read_text()
    assert "| variant | fd[x] |" in text
    assert "| variant | fd[y] | kid[y] |" in text


# --- a whole comparison ---------------------------------------------------------------------


def test_a_comparison_is_resumable_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "STAGES", 2)
    out = tmp_path / "out"
    call = [
        *["compare", f"{PAIR}@digits", "--seeds", "2", "--kimg", "0.128", "--n", "60"],
        *["--batch-size", "16", "--precision", "fp32", "--out", str(out)],
    ]
    # Stopped by an error in the middle of it, as by a power cut ...
    whole = evaluate.Yardstick.measure
    calls: list[int] = []

    def breaks(*args: object) -> list[evaluate.Row]:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the power was cut")
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate.Yardstick, "measure", breaks)
    assert CliRunner().invoke(main, call).exit_code == 1
    monkeypatch.setattr(evaluate.Yardstick, "measure", whole)
    # ... and gone on with.
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out / "report.md")
    assert len(list((out / "runs").iterdir())) == 4

    text = (out / "report.md").read_text()
    assert "to its twin" in text
    assert re.search(r"snn_middle.*(better|worse|no difference).*times its energy", text)
    assert "fd[spikezoo-digits,60,test]" in text
    assert re.search(r"\| gen:snn_middle.*\| spikes 0\.\d\d \|", text)  # its row of costs
    assert "| real training images |" in text
    for name in re.findall(r"\]\((grids/.*?)\)", text):
        assert (out / name).stat().st_size > 1000
    with (out / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert len(rows) == 4 * len(evaluate.METRICS)
    stored = json.loads((out / "report.json").read_text())
    ann, middle = stored["variants"]
    values = [run["values"]["fd[spikezoo-digits,60,test]"] for run in middle["runs"]]
    assert middle["values"]["fd[spikezoo-digits,60,test]"]["mean"] == pytest.approx(
        statistics.fmean(values)
    )
    assert ann["verdict"] == "the twin"
    assert [point[0] for point in middle["runs"][0]["history"]] == pytest.approx([0.064, 0.128])
    page = (out / "report.html").read_text()
    assert "src='grids" not in page
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)'", page)
    assert len(pictures) == 5
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)

    # Once more there is nothing to train or to measure, without any of the runs.
    trained = compare.train
    monkeypatch.setattr(compare, "train", None)
    monkeypatch.setattr(evaluate.Yardstick, "measure", None)
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for folder in ("runs", "best"):
        shutil.rmtree(out / folder)
    assert CliRunner().invoke(main, call).exit_code == 0
    assert (out / "report.md").read_text() == text
    # A call for less of it reports all of it, since the folder is the comparison.
    less = [*call, "--seeds", "1"]
    assert CliRunner().invoke(main, less).exit_code == 0
    assert (out / "report.md").read_text() == text
    specs = compare.expand([f"{PAIR}@digits"])
    smaller = settings(batch_size=8, precision="fp32")
    with pytest.raises(OptionError, match="has batch_size 16, not 8; give another --out"):
        compare.compare(specs, smaller, kimg=0.128, out=out, n=60)
    # So is a default that has changed since.
    journal = next((out / "journal").glob("*snn_middle*seed0.json"))
    changed = json.loads(journal.read_text())
    changed["training"]["options"]["gen"]["neuron.beta"] = 0.25
    journal.write_text(json.dumps(changed))
    refused = CliRunner().invoke(main, call)
    assert refused.exit_code == 2
    assert "has gen neuron.beta 0.25, not 0.5; give another --out" in refused.output
    # Further features are measured of what was kept; the distance that chose stays the first.
    monkeypatch.setattr(compare, "train", trained)
    monkeypatch.setattr(evaluate.Yardstick, "measure", whole)
    more = [*call[:-1], str(copy), "--features", "spikezoo-digits", "--features", "spikezoo_mnist"]
    done = CliRunner().invoke(main, more)
    assert done.exit_code == 0, done.output
    values = json.loads((copy / "report.json").read_text())["variants"][0]["values"]
    assert {"fd[spikezoo-digits,60,test]", "fd[spikezoo-mnist,60,test]"} <= values.keys()


def test_what_cannot_be_measured_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "train", None)
    call = ["compare", f"{PAIR}@digits", "--out", str(tmp_path / "out"), "--features"]
    done = CliRunner().invoke(main, [*call, "spikezoo_digits", "--features", "fad_fsvae"])
    assert done.exit_code == 2
    assert "needs path=DIR" in done.output
    assert not (tmp_path / "out").exists()


def test_a_training_that_fails_is_noted_and_the_next_one_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "STAGES", 2)
    whole = compare.train
    calls: list[str] = []

    def fails(spec: Spec, chosen: Settings, **options: Any) -> Result:
        calls.append(spec.gen.name)
        # The twin at once with seed 0, and in its second stage with seed 1.
        if spec.gen.name == "ann" and (chosen.seed == 0 or options["kimg"] > 0.1):
            raise TrainingError("the loss of the generator is nan")
        return whole(spec, chosen, **options)

    monkeypatch.setattr(compare, "train", fails)
    call = ["compare", f"{PAIR}@digits", "--seeds", "2", "--kimg", "0.128", "--n", "60"]
    call += ["--batch-size", "16", "--precision", "fp32", "--out", str(tmp_path)]
    assert CliRunner().invoke(main, call).exit_code == 0
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"- gen:ann.*, seed 0: the loss of the generator is nan", text)
    assert re.search(r"- gen:ann.*, seed 1, measured at 0.064 kimg: the loss of the gen", text)
    assert calls.count("snn_middle") == 4
    # Neither is tried again.
    before = len(calls)
    assert CliRunner().invoke(main, call).exit_code == 0
    assert len(calls) == before


def test_the_best_stage_counts_and_divergence_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "STAGES", 3)
    distances = iter([5.0, 3.0, 9.0])
    whole = evaluate.Yardstick.measure

    def told(*args: object) -> list[evaluate.Row]:
        rows = whole(*args)  # type: ignore[arg-type]
        if len(rows) > 1:
            return rows
        return [evaluate.Row("fd", "fd[x]", next(distances), 0.0, 60)]

    monkeypatch.setattr(evaluate.Yardstick, "measure", told)
    small = settings(batch_size=16, precision="fp32")
    (spec,) = [s for s in compare.expand([f"{PAIR}@digits"]) if s.gen.name != "ann"]
    (found,) = compare.compare([spec], small, kimg=0.096, out=tmp_path, n=60)
    assert found.best == (pytest.approx(0.064), 3.0)
    assert found.diverged == [pytest.approx(0.096)]
    # One that recovers is noted too; a stage a little worse is not.
    up_and_down = ((1.0, 3.0), (2.0, 39.0), (3.0, 2.0), (4.0, 2.9))
    assert dataclasses.replace(found, history=up_and_down).diverged == [2.0]
    (best,) = (tmp_path / "best").iterdir()
    kept = spikezoo.load(best)
    states = list((best / "checkpoints").iterdir())
    assert [int(s.name) for s in states] == [64]
    assert kept.config["name"] == str(spec)
    assert (best / "quality.json").exists()
    path = report.write([found], [], tmp_path, "Title")
    assert "0.064 (diverged at 0.096)" in path.read_text()
    assert "its twin was not trained" in path.read_text()


def test_finished_runs_are_taken_as_they_are(tmp_path: Path) -> None:
    small = settings(batch_size=16, precision="fp32", seed=3)
    run = train(Spec.parse(f"{PAIR}@digits"), small, kimg=0.032, out=tmp_path / "runs").run
    call = ["compare", str(run), "--n", "60", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    assert (
        json.loads((tmp_path / "out/report.json").read_text())["variants"][0]["runs"][0]["seed"]
        == 3
    )
    for words, told in (
        ([], "or --paper"),
        (["runs/mnist-snn_mid"], "there is no run 'runs/mnist-snn_mid'"),
        (["gen:snn_middle", "disc:ann@mnist"], "'gen:snn_middle' is no pair; with +"),
    ):
        done = CliRunner().invoke(main, ["compare", *words, "--out", str(tmp_path)])
        assert done.exit_code == 2
        assert told in done.output
