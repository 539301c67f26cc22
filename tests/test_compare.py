"""Comparisons: the statistics against known values, and a whole one on the bundled digits."""

import base64
import csv
import json
import math
import re
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner

import spikezoo
from spikezoo import compare, evaluate, report
from spikezoo.cli import main
from spikezoo.errors import OptionError, SpecError
from spikezoo.recipes import settings
from spikezoo.spec import Spec
from spikezoo.train import train

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
        compare.expand(["snn_*"])


# --- statistics -----------------------------------------------------------------------------


def test_interval_of_a_mean_is_students() -> None:
    found = compare.estimate([2.0, 4.0, 6.0])
    half = 4.302653 * 2 / math.sqrt(3)  # t(0.975, 2), from a printed table
    assert (found.mean, found.low, found.high) == pytest.approx((4, 4 - half, 4 + half), rel=1e-6)
    assert compare.estimate([3.0]) == compare.Estimate(3.0)


def test_interval_of_a_ratio_is_welchs_of_logarithms() -> None:
    a, b = [2.0, 2.2, 2.1], [1.0, 1.3, 0.9]
    found = compare.ratio(a, b)
    logs = [[math.log(v) for v in side] for side in (a, b)]
    assert found.mean == pytest.approx(
        math.exp(statistics.fmean(logs[0]) - statistics.fmean(logs[1]))
    )
    from scipy.stats import ttest_ind

    wanted = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(math.exp(wanted.low))
    assert found.high == pytest.approx(math.exp(wanted.high))
    assert compare.ratio([2.0], [1.0]) == compare.Estimate(pytest.approx(2.0))


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.5, 0.4, 0.7), "better than its twin;"),
        ((1.5, 1.2, 1.9), "worse than its twin;"),
        ((1.1, 0.8, 1.4), "no difference"),
        ((1.1, None, None), "one seed, which proves nothing"),
    ],
)
def test_verdicts(interval: tuple[float, float | None, float | None], words: str) -> None:
    assert words in compare.verdict(compare.Estimate(*interval), 0.4)
    assert "0.40 times its energy" in compare.verdict(compare.Estimate(*interval), 0.4)


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
    whole = evaluate.evaluate
    calls: list[int] = []

    def breaks(*args: object, **options: object) -> list[evaluate.Row]:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the power was cut")
        return whole(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "evaluate", breaks)
    assert CliRunner().invoke(main, call).exit_code == 1
    monkeypatch.setattr(evaluate, "evaluate", whole)
    # ... and gone on with.
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out / "report.md")
    assert len(list((out / "runs").iterdir())) == 4

    text = (out / "report.md").read_text()
    assert "to its twin" in text
    assert re.search(r"snn_middle.*(better|worse|no difference).*times its energy", text)
    assert "fd[spikezoo-digits,60,test]" in text
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

    # Once more there is nothing to train.
    monkeypatch.setattr(compare, "train", None)
    assert CliRunner().invoke(main, call).exit_code == 0
    with pytest.raises(OptionError, match="other settings"):
        compare.compare(
            compare.expand([f"{PAIR}@digits"]), settings(batch_size=8), kimg=0.128, out=out, n=60
        )


def test_the_best_stage_counts_and_divergence_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "STAGES", 3)
    distances = iter([5.0, 3.0, 9.0])
    whole = evaluate.evaluate

    def told(*args: object, **options: object) -> list[evaluate.Row]:
        rows = whole(*args, **options)  # type: ignore[arg-type]
        if len(rows) > 1:
            return rows
        return [evaluate.Row("fd", "fd[x]", next(distances), 0.0, 60)]

    monkeypatch.setattr(evaluate, "evaluate", told)
    small = settings(batch_size=16, precision="fp32")
    (spec,) = [s for s in compare.expand([f"{PAIR}@digits"]) if s.gen.name != "ann"]
    (found,) = compare.compare([spec], small, kimg=0.096, out=tmp_path, n=60)
    assert found.best == (pytest.approx(0.064), 3.0)
    assert found.diverged
    kept = spikezoo.load(found.folder)
    states = list((found.folder / "checkpoints").iterdir())
    assert [int(s.name) for s in states] == [64]
    assert kept.config["name"] == str(spec)
    assert (found.folder / "quality.json").exists()
    path = report.write([found], tmp_path / "report", "Title", "About.")
    assert "0.064 (diverged)" in path.read_text()
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
    done = CliRunner().invoke(main, ["compare", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "or --paper" in done.output
