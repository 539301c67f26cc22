"""The published models: every file, every number, every backend, and the wheel that brings them."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import spikezoo
from spikezoo import export, hub, sample
from spikezoo.backends import backends_of
from spikezoo.cli import main
from spikezoo.neurons import Neuron

ROOT = Path(__file__).parents[1]
MODELS = hub.published()
BACKENDS = ["reference", "native", "snntorch", "spikingjelly", "spikingjelly_exact"]


def test_the_promised_ones_are_there_and_small() -> None:
    assert {
        "mnist-ann",
        "mnist-front",
        "mnist-middle",
        "mnist-extractor",
        "cifar10-ann",
        "cifar10-front",
        "cifar10-middle",
        "cifar10-extractor",
    } <= MODELS.keys()
    files = [file for folder in MODELS.values() for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 45_000_000
    for name, folder in MODELS.items():
        assert {file.name for file in folder.iterdir()} == set(export.FILES), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_check_passes_on_every_backend(name: str, backend: str) -> None:
    checks = export.verify(MODELS[name], backend)
    assert len(checks) == 6
    assert not [check for check in checks if check.wrong]


@pytest.mark.parametrize("name", MODELS)
def test_a_trained_network_draws_the_same_on_all_backends(name: str) -> None:
    """Float images, before they are rounded to pixels, within 1e-5."""
    z = sample.latents(range(16), 100)
    images = {}
    for backend in BACKENDS:
        generator = spikezoo.load(f"{hub.OFFICIAL}/{name}", backend=backend).generator
        for layer in generator.modules():
            if isinstance(layer, Neuron):
                assert set(BACKENDS) <= set(backends_of(layer))
                assert layer.backend == backend
        with torch.no_grad():
            images[backend] = generator(z)
    for backend in BACKENDS:
        torch.testing.assert_close(images[backend], images["reference"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_its_name_says_what_it_is(name: str) -> None:
    spec = spikezoo.load(f"{hub.OFFICIAL}/{name}").spec
    assert name == f"{spec.dataset}-{spec.gen.name.removeprefix('snn_')}"


def test_they_are_listed_with_their_numbers() -> None:
    done = CliRunner().invoke(main, ["list", "models"])
    assert done.exit_code == 0
    for name, folder in MODELS.items():
        energy = json.loads((folder / "config.json").read_text())["measured"]["energy_nj"] / 1000
        (line,) = [row for row in done.output.splitlines() if f"{hub.OFFICIAL}/{name} " in row]
        assert f"{energy:,.0f} uJ an image" in line


def test_a_wheel_has_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    leave = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "tests", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"spikezoo/model_cards/{n}/{file}" for n in MODELS for file in export.FILES}
    assert wanted <= names
    assert {"spikezoo/py.typed", "spikezoo/models/dcgan.py", "spikezoo/cli.py"} <= names
    shipped = ("digits", "mnist", "cifar10")
    assert {f"spikezoo/classifiers/{name}.safetensors" for name in shipped} <= names
