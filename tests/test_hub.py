"""`spikezoo.load` of a run folder: the same images, or an error that says what is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import spikezoo
from spikezoo import checkpoint, files
from spikezoo.errors import CheckpointError, OptionError, UnknownNameError
from spikezoo.model import load_weights, read_config
from spikezoo.recipes import settings
from spikezoo.spec import Spec
from spikezoo.train import train

SPEC = "gen:snn_middle,width=4,latent_dim=4,T=2+disc:snn,width=4,T=2@digits"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few iterations."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIKEZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        chosen = settings(batch_size=16, side=16, precision="fp32")
        return train(Spec.parse(SPEC), chosen, kimg=0.8, snapshot_kimg=0.4, out=folder).run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def newest(run: Path) -> checkpoint.Checkpoint:
    found, _ = checkpoint.newest(run / "checkpoints")
    assert found is not None
    return found


# --- what is loaded -------------------------------------------------------------------------


def test_a_run_is_loaded_with_its_averaged_weights(trained: Path) -> None:
    model = spikezoo.load(trained)
    assert model.spec == spikezoo.create(SPEC).spec
    assert model.config == json.loads((trained / "config.json").read_text())
    assert not model.generator.training
    stored = newest(trained).tensors
    for name, tensor in model.generator.state_dict().items():
        assert torch.equal(tensor, stored[f"ema.{name}"]), name


def test_its_images_are_those_of_the_runs_own_last_grid(trained: Path) -> None:
    path = sorted((trained / "samples").glob("*.png"))[-1]
    with Image.open(path) as image:
        grid = torch.from_numpy(np.array(image))  # [H, W], grey
    cells = grid[:-2, :-2].unflatten(0, (8, 18)).unflatten(2, (8, 18))  # [8, 18, 8, 18]
    drawn = cells[:, 2:, :, 2:].permute(0, 2, 1, 3).reshape(64, 1, 16, 16)
    assert len(drawn.unique(dim=0)) > 32
    assert torch.equal(spikezoo.load(trained).sample(range(64)), drawn)


@pytest.mark.parametrize("source", ["path", "text"])
def test_a_source_is_a_path_or_its_text(source: str, trained: Path) -> None:
    model = spikezoo.load(trained if source == "path" else str(trained))
    images = model.sample([0, 5])
    assert images.shape == (2, 1, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(images[1], model.sample([5])[0])


def test_the_backend_does_not_change_the_images(trained: Path) -> None:
    images = [
        spikezoo.load(trained, backend=backend).sample(range(40))
        for backend in (None, "native", "reference")
    ]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[1], images[2])


def test_an_unknown_backend_or_device_is_refused(trained: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'native'"):
        spikezoo.load(trained, backend="natve")
    with pytest.raises(OptionError, match="device 'nowhere' cannot be used"):
        spikezoo.load(trained, device="nowhere")


def test_the_device_is_that_of_the_weights(trained: Path) -> None:
    for device in ("cpu", torch.device("cpu"), None):
        model = spikezoo.load(trained, device=device)
        assert {p.device.type for p in model.generator.parameters()} == {"cpu"}
        assert model.sample([1]).device.type == "cpu"


def test_the_config_and_not_the_defaults_make_the_network(run: Path) -> None:
    """A default that changes later changes no trained model: every option is in config.json."""
    config = read_config(run)
    options = config["generator"]["options"]
    assert options["neuron.threshold"] == 1.0
    assert options["latent_dim"] == 4
    config["generator"]["options"] = {**options, "neuron.threshold": 1e6}
    files.write_json(run / "config.json", config)
    assert len(spikezoo.load(run).sample(range(8)).unique(dim=0)) == 1, "no spikes, no images"
    del config["generator"]["options"]["latent_dim"]
    files.write_json(run / "config.json", config)
    with pytest.raises(CheckpointError, match=r"damaged.*latent_dim of SNNMiddle is missing"):
        spikezoo.load(run)


def test_loading_leaves_torchs_random_state_alone(trained: Path) -> None:
    """A notebook that loads a model goes on with the same random numbers."""
    before = torch.get_rng_state()
    spikezoo.load(trained).sample([0])
    assert torch.equal(torch.get_rng_state(), before)


# --- what is refused ------------------------------------------------------------------------


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            CheckpointError, match=r"is no run and no model: it has no config\.json"
        ) as caught:
            spikezoo.load(folder)
        assert str(folder) in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        spikezoo.load(tmp_path / "file")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"nonsense", b'{"format_version": 1', b"\xff\xfe\x00", b"[1, 2"]
)
def test_a_damaged_config(content: bytes, run: Path) -> None:
    (run / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read") as caught:
        spikezoo.load(run)
    assert str(run / "config.json") in str(caught.value)


@pytest.mark.parametrize("version", [2, 0, "1", [1]])
def test_a_config_of_another_format_version(version: object, run: Path) -> None:
    (run / "config.json").write_text(json.dumps({"format_version": version}))
    with pytest.raises(CheckpointError, match="this SpikeZoo reads 1; a newer one may"):
        spikezoo.load(run)


@pytest.mark.parametrize(
    ("content", "whose"),
    [
        ("[]", ""), ("3", ""), ("null", ""), ("{}", ""),
        ('{"architectures": ["Bert"]}', "; it seems to be from transformers"),
        ('{"_diffusers_version": "1"}', "; it seems to be from diffusers"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_ours(content: str, whose: str, run: Path) -> None:
    (run / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"is no config of SpikeZoo{whose}$"):
        spikezoo.load(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spec", None), ("spec", {"gen": 3}), ("spec", "gen:ann"), ("generator", None),
        ("generator", {"name": "ann"}), ("generator", {"name": "ann", "options": 3}),
        ("generator", []), ("shape", None), ("shape", 3), ("shape", [1, 16]),
        ("shape", ["a", "b", "c"]), ("shape", [1, 16, 16, 4]),
    ],
)  # fmt: skip
def test_a_config_that_lacks_something(key: str, value: object, run: Path) -> None:
    config = read_config(run)
    for changed in ({**config, key: value}, {k: v for k, v in config.items() if k != key}):
        files.write_json(run / "config.json", changed)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged") as caught:
            spikezoo.load(run)
        assert str(run) in str(caught.value)


def test_a_run_without_a_checkpoint_yet(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"nor a checkpoint.*Train it on with --resume"):
        spikezoo.load(run)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(run: Path) -> None:
    found = newest(run)
    earlier = sorted((run / "checkpoints").iterdir())[0]
    assert earlier != found.path
    (found.path / "state.json").write_text("{")
    stored = checkpoint.load(earlier).tensors
    loaded = spikezoo.load(run).generator.state_dict()
    assert all(torch.equal(tensor, stored[f"ema.{name}"]) for name, tensor in loaded.items())
    (earlier / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is left"):
        spikezoo.load(run)


def with_tensors(run: Path, **changes: Tensor | None) -> None:
    """Saves the run's newest checkpoint anew with some tensors changed, or removed by None."""
    found = newest(run)
    tensors = {**found.tensors, **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    checkpoint.save(run / "checkpoints", found.state["images"], kept, found.state)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("ema.conv3.bias", None, "conv3.bias is missing"),
        ("ema.conv4.bias", torch.zeros(1), "conv4.bias is left over"),
        ("ema.conv3.bias", torch.zeros(2), "conv3.bias has shape [2], not [1]"),
        ("ema.conv3.bias", torch.tensor([float("nan")]), "conv3.bias is not finite"),
        ("ema.conv3.bias", torch.tensor([-float("inf")]), "conv3.bias is not finite"),
    ],
)
def test_weights_that_do_not_fit_exactly_are_named(
    name: str, tensor: Tensor | None, message: str, run: Path
) -> None:
    with_tensors(run, **{name: tensor})
    with pytest.raises(CheckpointError) as caught:
        spikezoo.load(run)
    text = str(caught.value)
    assert message in text
    assert str(newest(run).path) in text
    assert "does not fit the network" in text
    assert text.count(";") == 0, "only what is wrong is named"


def test_all_that_is_wrong_is_said_at_once(run: Path) -> None:
    with_tensors(
        run,
        **{"ema.conv3.bias": None, "ema.conv3.weight": torch.zeros(3), "ema.more": torch.ones(1)},
    )
    with pytest.raises(
        CheckpointError,
        match=r"conv3\.bias is missing; conv3\.weight has shape \[3\], not .*; more is left over",
    ):
        spikezoo.load(run)


def test_weights_of_another_network_do_not_fit(run: Path) -> None:
    config = read_config(run)
    config["generator"]["options"]["width"] = 8
    files.write_json(run / "config.json", config)
    with pytest.raises(CheckpointError, match=r"conv2\.conv\.weight has shape \[4, 8, 3, 3\], not"):
        spikezoo.load(run)


def test_nothing_is_loaded_by_halves() -> None:
    network = torch.nn.Linear(2, 1)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(network, {"x.weight": torch.zeros(1, 2)}, "x.", "there")
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
