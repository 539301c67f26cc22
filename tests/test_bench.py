"""`spikezoo bench` computes what it says it times; speed itself is asserted nowhere."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from spikezoo import bench, zoo
from spikezoo.cli import main


def test_the_contenders_compute_one_neuron() -> None:
    """The libraries' own nodes agree with ours where their definitions do."""
    x = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
    spikes = zoo.neuron("lif", beta=bench.BETA)(x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(bench._spikingjelly(x), spikes)
    # snnTorch resets one step late, which is another neuron; before its first spike it is ours.
    own = bench._snntorch(x)
    before = spikes.cumsum(0) - spikes == 0
    assert torch.equal(own[before], spikes[before])


def test_neurons_by_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "SHAPE", (2, 4, 4, 4))
    monkeypatch.setattr(bench, "ROUNDS", 2)
    file = tmp_path / "rows.json"
    done = CliRunner().invoke(
        main, ["bench", "neurons", "--backend", "native", "--json", str(file)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert len(found["rows"]) == 4 * 2 * 4
    assert {row["contender"] for row in found["rows"]} >= {"relu", "native"}
    assert all(row["ms"] > 0 for row in found["rows"])
    assert [row["ratio"] for row in found["rows"] if row["contender"] == "relu"] == [1.0] * 8
    assert "lif on" in done.output


@pytest.mark.parametrize("what", ["train", "sample"])
def test_a_spec_by_the_command(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    spec = "gen:snn_middle,width=4,T=2+disc:snn,width=4,T=2@digits"
    done = CliRunner().invoke(main, ["bench", what, spec, "--backend", "reference"])
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == (3 if what == "train" else 2)
    assert all(float(row.split("|")[6]) > 0 for row in rows)


def test_what_cannot_be_timed_is_said() -> None:
    done = CliRunner().invoke(main, ["bench", "neurons", "gen:ann", "disc:ann"])
    assert done.exit_code == 2
    assert "takes no SPEC" in done.output
    done = CliRunner().invoke(main, ["bench", "neurons", "--backend", "nativ"])
    assert done.exit_code == 2
    assert "did you mean 'native'?" in done.output
