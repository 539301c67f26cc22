"""Exported folders: what is in them, what `verify` notices, and the card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import spikezoo
from spikezoo import card, checkpoint, cost, export, files, model
from spikezoo.catalog import registry
from spikezoo.cli import main
from spikezoo.errors import CheckpointError, JobError, OptionError
from spikezoo.recipes import arguments, fitted, settings
from spikezoo.spec import Spec
from spikezoo.train import train

SPEC = "gen:snn_middle,width=8,latent_dim=8+disc:snn,width=4,T=2@digits"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIKEZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        chosen = settings(batch_size=32, side=16, precision="fp32")
        return train(
            Spec.parse(SPEC), chosen, kimg=4, out=tmp_path_factory.mktemp("runs")
        ).run  # fmt: skip


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.export(run, tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


def failed(folder: Path) -> dict[str, str]:
    return {check.name: check.found for check in export.verify(folder) if check.wrong}


# --- what is in a folder --------------------------------------------------------------------


def test_it_has_its_files_and_passes_its_own_checks(exported: Path) -> None:
    assert {file.name for file in exported.iterdir()} == set(export.FILES)
    checks = export.verify(exported)
    assert [check.name for check in checks] == [
        "files", "hashes", "load", "probe", "numbers", "card"
    ]  # fmt: skip
    assert not failed(exported)


def test_it_draws_what_the_run_draws(run: Path, exported: Path) -> None:
    of_run, of_export = spikezoo.load(run), spikezoo.load(exported)
    assert torch.equal(of_run.sample(range(40)), of_export.sample(range(40)))
    assert of_run.spec == of_export.spec
    found, _ = checkpoint.newest(run / "checkpoints")
    assert found is not None
    for name, tensor in load_file(exported / "discriminator.safetensors").items():
        assert torch.equal(tensor, found.tensors[f"discriminator.{name}"])


def test_half_precision_is_half_the_size_and_the_same_images_almost(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    half = export.export(run, tmp_path / "half", half=True)
    assert not failed(half)
    sizes = [(folder / model.WEIGHTS).stat().st_size for folder in (half, exported)]
    assert sizes[0] < 0.6 * sizes[1]
    images = [spikezoo.load(f).sample(range(64)).float() for f in (half, exported)]
    assert (images[0] - images[1]).abs().mean() < 1
    loaded = spikezoo.load(half).generator
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_folder_is_never_written_over(run: Path, exported: Path) -> None:
    with pytest.raises(OptionError, match="is already there; give another folder"):
        export.export(run, exported)


def test_what_is_exported_already_is_copied_not_exported(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run but an exported model"):
        export.export(exported, tmp_path / "again")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_card_says_how_long_it_was_trained_not_how_long_was_asked(
    run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    with_config(copy, lambda c: c["training"].update(kimg=300.0))
    folder = export.export(copy, tmp_path / "model")
    assert model.read_config(folder)["weights"]["images"] == 4000
    assert "--kimg 4\n" in (folder / export.CARD).read_text()


# --- a loaded model -------------------------------------------------------------------------


def test_spikes_are_those_that_were_counted(exported: Path) -> None:
    loaded = spikezoo.load(exported)
    spikes = loaded.spikes(range(64))
    assert {name: tuple(s.shape) for name, s in spikes.items()} == {"spikes": (4, 64, 16, 8, 8)}
    assert spikes["spikes"].dtype == torch.bool
    rate = loaded.info["measured"]["rates"]["spikes"]
    assert spikes["spikes"].float().mean().item() == pytest.approx(rate, abs=1e-4)
    one = loaded.spikes([5])["spikes"]
    assert torch.equal(one[:, 0], spikes["spikes"][:, 5])


def test_an_interpolation_begins_and_ends_at_its_seeds(exported: Path) -> None:
    loaded = spikezoo.load(exported)
    way = loaded.interpolate(3, 9, n=5)
    assert way.shape == (5, 1, 16, 16)
    ends = loaded.sample([3, 9])
    assert (way[[0, -1]].float() - ends.float()).abs().max() <= 1  # a latent may round
    assert torch.equal(loaded.interpolate(3, 3, n=2)[0], loaded.sample([3])[0])
    with pytest.raises(OptionError, match="2 images or more, given n=1"):
        loaded.interpolate(0, 1, n=1)


# --- what verify notices --------------------------------------------------------------------


@pytest.mark.parametrize("name", export.FILES)
def test_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert name in failed(folder)["files"]


@pytest.mark.parametrize("name", export.HASHED)
def test_a_flipped_byte(name: str, folder: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 1
    (folder / name).write_bytes(content)
    assert "is not the file that was exported" in failed(folder)["hashes"]


def with_config(folder: Path, change: object) -> None:
    config = model.read_config(folder)
    change(config)  # type: ignore[operator]
    files.write_json(folder / "config.json", config)


def resign(folder: Path) -> None:
    """Hashes as a forger would renew them."""
    with_config(
        folder, lambda c: c["sha256"].update({n: export.sha256(folder / n) for n in export.HASHED})
    )


def test_weights_that_do_not_fit(folder: Path) -> None:
    tensors = load_file(folder / model.WEIGHTS)
    del tensors["conv3.bias"]
    save_file(tensors, folder / model.WEIGHTS)
    resign(folder)
    assert "conv3.bias is missing" in failed(folder)["load"]


def test_other_weights_give_other_images_and_numbers(folder: Path) -> None:
    tensors = load_file(folder / model.WEIGHTS)
    tensors["conv1.norm.bias"] -= 1
    save_file(tensors, folder / model.WEIGHTS)
    resign(folder)
    found = failed(folder)
    assert "the images of seeds 0 and 1 are others here" in found["probe"]
    assert "config.json says" in found["numbers"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parameters", 1),
        ("energy_nj", 0.5),
        ("rates", {"spikes": 0.9}),
        ("macs", {}),
        ("acs", None),
        ("backends", {}),
        ("backends", {"native": 0.0, "snntorch": 0.5, "spikingjelly": 0, "spikingjelly_exact": 0}),
    ],
)
def test_a_number_that_is_not_true(key: str, value: object, folder: Path) -> None:
    with_config(folder, lambda c: c["measured"].update({key: value}))
    assert f"config.json says {key}" in failed(folder)["numbers"]


def test_a_card_that_says_something_else(folder: Path) -> None:
    path = folder / export.CARD
    text = path.read_text()
    rate = model.read_config(folder)["measured"]["rates"]["spikes"]
    assert f"{rate:.3f}" in text
    path.write_text(text.replace(f"| {rate:.3f} |", "| 0.001 |"))
    assert "does not say what config.json does" in failed(folder)["card"]
    path.write_text(text.replace("license: mit", "license: other"))
    assert "lacks or changes license" in failed(folder)["card"]
    path.write_text(text.replace("library_name:", "library_name: ["))
    assert "cannot be read" in failed(folder)["card"]
    path.write_text(text + "\nA remark of the author's.\n")
    assert not failed(folder)


# --- by the command -------------------------------------------------------------------------


def command(*words: str | Path, status: int = 0) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == status, done.output
    return done.output


def test_export_verify_show_sample_and_push_by_the_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "model written" in command("export", run, "model", "--license", "cc0-1.0")
    assert command("verify", "model", "--backend", "reference").count("ok ") == 6
    assert '"rates"' in command("show", "./model")
    assert command("sample", "model", "--n", "4").strip() == "model-seeds-0-3.png"
    assert (tmp_path / "model-seeds-0-3.png").is_file()
    pushed = command("push", "model", "lab/model", "--dry-run")
    assert all(name in pushed for name in export.FILES)
    assert "would be pushed to" in pushed
    (tmp_path / "model" / export.CARD).unlink()
    assert "FAILED  files" in command("verify", "model", status=1)
    assert "cannot be published" in command("push", "model", "lab/model", status=1)
    assert "written org/name" in command("push", "model", "model", status=2)
    assert "already there" in command("export", run, "model", status=2)


# --- the card -------------------------------------------------------------------------------


def test_the_card_is_what_the_hub_expects(exported: Path) -> None:
    found = ModelCard.load(exported / export.CARD)
    data = found.data.to_dict()
    assert data["library_name"] == "spikezoo"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert {"spikezoo", "snn_middle", "digits", "spiking-neural-network"} <= set(data["tags"])
    assert "model-index" not in data, "quality was not measured, so it is absent"
    assert "## Quality" not in found.text
    for part in ("samples.png", "spikezoo.load(", "⚡  spikes", "## Cost", "## Limitations"):
        assert part in found.text


def test_measured_quality_becomes_results_with_their_protocol(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    row = {
        "metric": "fd",
        "protocol": "fd[digits,299,test]",
        "value": 12.34,
        "floor": 0.5,
        "samples": 299,
    }
    found, _ = checkpoint.newest(copy / "checkpoints")
    assert found is not None
    quality = {"images": found.state["images"], "rows": [row]}
    (copy / "quality.json").write_text(json.dumps(quality))
    folder = export.export(copy, tmp_path / "model")
    assert not failed(folder)
    written = ModelCard.load(folder / export.CARD)
    (result,) = written.data.eval_results
    assert (result.metric_name, result.metric_value) == ("fd[digits,299,test]", 12.34)
    assert "| fd[digits,299,test] | 299 | 12.34 | 0.5 |" in written.text


def test_the_training_command_gives_the_settings_again() -> None:
    chosen = settings("paper", loss="hinge", lr_g=1e-4, r1=0.5, seed=3, precision="fp32")
    spec = Spec.parse("gen:snn_middle+disc:snn@digits")
    words = arguments({**vars(chosen), "kimg": 20.0}, spec)
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given == {
        "--recipe": "paper", "--loss": "hinge", "--lr-g": "0.0001", "--r1": "0.5", "--seed": "3",
        "--precision": "fp32", "--kimg": "20",
    }  # fmt: skip
    plain = fitted(settings(precision="fp32"), spec)
    assert arguments(vars(plain), spec) == ["--precision", "fp32"]
    # What suits a spiking discriminator has to be said for another one, or for a dataset whose
    # plugin is not here.
    for other in ("gen:snn_middle+disc:ann@digits", "gen:snn_middle+disc:snn@elsewhere"):
        words = arguments(vars(plain), Spec.parse(other))
        assert words == ["--r1", "0.5", "--precision", "fp32"]


# --- cost -----------------------------------------------------------------------------------


def test_operations_against_a_count_by_hand() -> None:
    torch.manual_seed(0)
    generator = spikezoo.create(
        "gen:snn_middle,width=4,latent_dim=8,T=3+disc:ann", shape=(1, 16, 16)
    )
    network = generator.generator.train()
    network(torch.randn(64, 8))  # statistics of batch norm, without which nothing fires
    network.eval()
    found = cost.cost(network)
    assert found.macs == {
        "project.linear": 8 * (8 * 4 * 4),
        "conv1.conv": 8 * 8 * 16 * 4 * 4,  # upsampling is part of it: 4 x 4 weights per input
        "conv3": 4 * 1 * 9 * 16 * 16,
    }
    spikes = model.Model(network, generator.spec, {}).spikes(cost.SEEDS)["spikes"]
    assert found.rates["spikes"] == pytest.approx(spikes.float().mean().item())
    # Each spike reaches 4 channels of 4 x 4 outputs, of which edges cut off a row or a column.
    side = torch.full((8,), 4.0)
    side[[0, -1]] = 3.0
    per_spike = side[:, None] * side * 4  # [8, 8]
    by_hand = (spikes.sum((0, 1, 2)) * per_spike).sum().item() / 64
    assert found.acs == {"conv2.conv": pytest.approx(by_hand)}
    energy = sum(found.macs.values()) * 4.6 + by_hand * 0.9
    assert found.energy_nj == pytest.approx(energy / 1000)


@pytest.mark.parametrize("name", [n for n in registry("generators").names() if "." not in n])
def test_every_layer_with_weights_is_counted_once(name: str) -> None:
    torch.manual_seed(0)
    network = spikezoo.create(f"gen:{name},width=8+disc:ann", shape=(1, 16, 16)).generator.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(32, network.latent_dim))
    found = cost.cost(network.eval())
    weighted = {
        layer
        for layer, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    }
    assert found.macs.keys() | found.acs.keys() == weighted
    assert not found.macs.keys() & found.acs.keys()
    assert all(found.macs.values())
    spiking = any(getattr(type(m), "is_spiking", False) for m in network.modules())
    assert bool(found.rates) == spiking
    if name == "ann":
        assert not found.acs


def test_push_refuses_an_incomplete_card(folder: Path) -> None:
    (folder / export.CARD).write_text("---\nlicense: mit\n---\nTo do.\n")
    with pytest.raises(JobError, match=r"cannot be published: card: the metadata .* lacks"):
        export.must_pass(folder)


def test_a_card_of_a_dataset_that_no_one_here_knows() -> None:
    assert card.dataset_repo("mnist") == "ylecun/mnist"
    assert card.dataset_repo("digits") is None
    assert card.dataset_repo("a_missing_plugins") is None
