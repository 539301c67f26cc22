"""Folders from strangers: a clear error in bounded time and memory, and nothing else happens."""

import contextlib
import json
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import spikezoo
from spikezoo import export, hub, model, zoo
from spikezoo.errors import CheckpointError, HubError, OptionError, SpikeZooError
from spikezoo.spec import Spec

SPEC = Spec.parse("gen:snn_middle,width=4,latent_dim=4,T=2+disc:snn,width=4,T=2@digits")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as small as can be, with what `load` reads."""
    generator = zoo.create(SPEC, shape=(1, 16, 16)).generator
    save_file(generator.state_dict(), tmp_path / model.WEIGHTS)
    write(tmp_path, config())
    return tmp_path


def config() -> dict[str, Any]:
    return {
        "format_version": model.FORMAT_VERSION,
        "name": str(SPEC),
        "spec": SPEC.to_json(),
        "shape": [1, 16, 16],
        "generator": {"name": "snn_middle", "options": zoo.resolve(SPEC.gen)},
        "discriminator": {"name": "snn", "options": zoo.resolve(SPEC.disc)},
        "plugins": {},
    }


def write(folder: Path, content: Any) -> None:
    (folder / model.CONFIG).write_text(json.dumps(content))


def test_what_it_begins_with_is_fine(folder: Path) -> None:
    assert spikezoo.load(folder).sample([0]).shape == (1, 1, 16, 16)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_value_in_place_of_any_other(data: st.DataObject, folder: Path) -> None:
    """Every place of config.json in turn: it loads, or it is an error of ours."""
    changed = config()
    place: Any = changed
    path = data.draw(
        st.sampled_from(
            [["spec"], ["shape"], ["generator"], ["plugins"], ["generator", "name"],
             ["generator", "options"], ["format_version"], ["spec", "gen"], ["name"]]
            + [["generator", "options", key] for key in changed["generator"]["options"]]
            + [["shape", i] for i in range(3)]
        )
    )  # fmt: skip
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(JSON)
    write(folder, changed)
    with contextlib.suppress(SpikeZooError):
        spikezoo.load(folder)


@given(content=st.binary(max_size=200))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_as_weights(content: bytes, folder: Path) -> None:
    (folder / model.WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        spikezoo.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("width", 4_000_000), ("latent_dim", 10**12), ("width", 10**30), ("T", 10**15), ("width", -4)],
)
def test_a_config_of_absurd_sizes_allocates_nothing(key: str, value: int, folder: Path) -> None:
    absurd = config()
    absurd["generator"]["options"] |= {key: value, "readout": "weighted"}
    write(folder, absurd)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        spikezoo.load(folder)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200_000, "KB"


@pytest.mark.parametrize("size", [2**30, 2**60])
def test_a_declared_tensor_that_is_not_there(size: int, folder: Path) -> None:
    header = {"conv3.bias": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    (folder / model.WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 64)
    with pytest.raises(CheckpointError, match="cannot be read"):
        spikezoo.load(folder)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_absurd_length(length: int, folder: Path) -> None:
    (folder / model.WEIGHTS).write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError):
        spikezoo.load(folder)


def test_a_tensor_that_is_there_and_enormous_is_not_read(folder: Path) -> None:
    """A sparse file of 1 GB whose header is right: refused by its shape."""
    size = 2**30
    header = {"conv3.bias": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with (folder / model.WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="does not fit the network"):
        spikezoo.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KB"


def test_configs_that_are_bombs(folder: Path) -> None:
    for content in ("[" * 100_000, '{"a":' * 100_000, "9" * 10_000, " " * (2**20 + 1)):
        (folder / model.CONFIG).write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            spikezoo.load(folder)


def test_a_pickle_is_never_read(folder: Path, tmp_path: Path) -> None:
    """It would leave a file behind if anything ran it."""
    (folder / model.WEIGHTS).unlink()
    code = f"cposix\nsystem\n(S'touch {tmp_path}/ran'\ntR."
    (folder / "pytorch_model.bin").write_bytes(code.encode())
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: pickles, which .* never read"):
        spikezoo.load(folder)
    shutil.copy(folder / "pytorch_model.bin", folder / model.WEIGHTS)
    with pytest.raises(CheckpointError):
        spikezoo.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "source",
    ["hf:../x", "hf:a/../../x", "hf:lab/..", "hf:lab/x/y", "hf:/etc/passwd", "hf:lab", "hf:",
     "hf:lab/x@../../main", "hf:lab/x@", "hf:lab/x@a b", "hf:lab/x@v1@v2"],
)  # fmt: skip
def test_names_that_would_leave_the_cache(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises((OptionError, HubError)):
        spikezoo.load(source, offline=True)
    assert not list(tmp_path.iterdir())


def test_a_name_that_could_be_two_things(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    here = Path("lab/model")
    here.mkdir(parents=True)
    with pytest.raises(OptionError, match=r"write './lab/model' for the folder or 'hf:lab/model'"):
        spikezoo.load("lab/model")  # a folder, but no model
    for name in (model.CONFIG, model.WEIGHTS):
        shutil.copy(folder / name, here)
    assert spikezoo.load("lab/model").spec == spikezoo.load("./lab/model").spec
    (tmp_path / "cache" / "models--lab--model").mkdir(parents=True)
    with pytest.raises(OptionError, match="may be a model of the Hub"):
        spikezoo.load("lab/model")
    assert spikezoo.load(Path("lab/model")).spec == SPEC
    with pytest.raises(OptionError, match=r"is for Hub repos, and './lab/model' is a folder"):
        spikezoo.load("./lab/model", revision="v1")
    with pytest.raises(OptionError, match="name two revisions"):
        spikezoo.load("hf:lab/model@v1", revision="v2")
    with pytest.raises(OptionError, match="a model of the Hub is written org/name"):
        spikezoo.load("middle")


def test_a_link_out_of_a_folder_is_no_pickle_and_no_weights(folder: Path) -> None:
    (folder / model.WEIGHTS).unlink()
    (folder / model.WEIGHTS).symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="cannot be read"):
        spikezoo.load(folder)


@pytest.mark.parametrize(
    "card", ["---\n[\n---\n", "---\n!!python/object/apply:os.system [ls]\n---\n", "", "\0"]
)
def test_a_card_with_broken_yaml_is_a_failed_check(card: str, folder: Path) -> None:
    full = config() | {"license": "mit", "weights": {}, "measured": {}, "sha256": {}}
    for name in export.FILES:
        (folder / name).touch()
    write(folder, full)
    (folder / export.CARD).write_text(card)
    with pytest.raises(CheckpointError):
        export._check_card(folder, full, spikezoo.load(folder).generator)
    assert any(check.wrong for check in export.verify(folder))


@pytest.mark.parametrize("measured", [3, [], {}, {"rates": 3}, None])
def test_numbers_of_any_shape_are_a_failed_check(measured: object, folder: Path) -> None:
    for name in export.HASHED[1:]:
        (folder / name).write_bytes(b"")
    (folder / export.CARD).write_text("---\nlicense: mit\n---\n")
    network = zoo.create(SPEC, shape=(1, 16, 16)).discriminator
    save_file(network.state_dict(), folder / model.DISCRIMINATOR)
    probe = {"images": torch.zeros(2, 1, 16, 16), "seeds": torch.tensor([0, 1])}
    save_file(probe, folder / export.PROBE)
    hashes = {name: export.sha256(folder / name) for name in export.HASHED}
    write(folder, config() | {"license": 3, "weights": 3, "measured": measured, "sha256": hashes})
    found = {check.name: check.wrong for check in export.verify(folder)}
    assert found["numbers"]
    assert found["card"]


def test_the_models_that_come_with_us_need_no_network() -> None:
    """Whoever blocks every connection still gets an image."""
    if not hub.published():
        pytest.skip("no models here")
    name = f"{hub.OFFICIAL}/{next(iter(hub.published()))}"
    code = (
        "import socket\n"
        "def no(*a, **k): raise RuntimeError('a connection')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
        f"import spikezoo; print(spikezoo.load({name!r}).sample([0]).float().std().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 10
