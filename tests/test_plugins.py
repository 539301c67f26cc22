"""Plugins: what is said of them, and those in plugins/, each in an environment of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir())
ADDS = {
    "spikezoo-norse": ["backends:norse", "neurons:norse.lif_adex", "neurons:norse.lif_box"],
    "spikezoo-sgad": [
        "discriminators:sgad",
        "generators:sgad",
        "losses:earth_mover",
        "readouts:attention",
    ],
    "spikezoo-stochastic": ["neurons:stochastic"],
}
TINY = "gen:snn_middle,{},width=4,latent_dim=4,T=2+disc:snn,width=4,T=2"


class Environment:
    """A fresh environment that sees this one's packages, and whatever is installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True)
        self.python = folder / "bin" / "python"
        (self.packages,) = folder.glob("lib/*/site-packages")
        # `addsitedir` also reads the .pth files there, such as that of an editable installation.
        lines = [f"site.addsitedir({path!r})" for path in site.getsitepackages()]
        (self.packages / "parent.pth").write_text(f"import site; {'; '.join(lines)}\n")

    def pip_install(self, package: Path) -> None:
        """A real installation, of a copy: pip's build would leave files in the original."""
        copy = self.folder / "src" / package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir"]
        subprocess.run([*pip, *options, str(copy)], check=True)

    def install(self, name: str, entry_points: str, module: str, version: str = "1.0") -> None:
        """Writes a distribution as pip would leave it: a module, and its dist-info."""
        package = name.replace("-", "_")
        info = self.packages / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
        (self.packages / f"{package}.py").write_text(module, encoding="utf-8")

    def uninstall(self, name: str) -> None:
        package = name.replace("-", "_")
        shutil.rmtree(next(self.packages.glob(f"{package}-*.dist-info")))
        (self.packages / f"{package}.py").unlink()

    def run(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """What this environment's Python makes of the arguments."""
        done = subprocess.run(
            [str(self.python), *map(str, arguments)],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "SPIKEZOO_CACHE": str(self.folder / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def spikezoo(self, *arguments: object) -> str:
        return self.run("-m", "spikezoo", *arguments).stdout

    def out(self, code: str) -> object:
        """What `code` leaves in `out`."""
        return json.loads(self.run("-c", f"{code}\nimport json; print(json.dumps(out))").stdout)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


# --- the packages in plugins/ ---------------------------------------------------------------


def test_every_package_in_plugins_is_tested() -> None:
    assert sorted(ADDS) == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_installs_alone_and_passes_its_own_tests(
    package: str, environment: Environment
) -> None:
    environment.pip_install(ROOT / "plugins" / package)
    (tests,) = (environment.folder / "src" / package).glob("test_*.py")
    # What `importorskip` skips is no test at all, which pytest reports as status 5.
    skipped = package == "spikezoo-norse" and importlib.util.find_spec("norse") is None
    quietly = ("-q", "-W", "error", "-rs", "-p", "no:cacheprovider")
    done = environment.run("-m", "pytest", *quietly, tests, status=5 if skipped else 0)
    assert ("norse cannot be imported" if skipped else " passed") in done.stdout

    distribution, *components = environment.spikezoo("plugins").splitlines()
    assert distribution == f"{package} 0.1.0"
    assert [line.split()[0] for line in components] == ADDS[package]
    for line in components:
        assert line.endswith(" loads") or (skipped and "No module named 'norse'" in line), line

    listed = [line.split() for line in environment.spikezoo("list").splitlines()]
    for component in ADDS[package]:
        assert [component.partition(":")[2], package, "0.1.0"] in listed


# --- a neuron that defines only `step` ------------------------------------------------------

COUNTER = '''
from spikezoo.neurons import Neuron
from spikezoo.surrogates import atan, spike

class Counter(Neuron):
    """Integrates and fires: a step and nothing else."""
    def step(self, current, state):
        (v,) = state
        h = v + current
        spikes = spike(h - 1, atan, 2.0)
        return spikes.to(current.dtype), (h - spikes,)
'''
ENTRY = "[spikezoo.neurons]\ncounter = zoo_counter:Counter\n"


def test_a_neuron_of_one_step_computes_trains_exports_and_loads_and_is_missed_when_gone(
    environment: Environment,
) -> None:
    environment.install("zoo-counter", ENTRY, COUNTER, version="1.2")
    spec = TINY.format("neuron=counter")
    out = environment.out(
        "import torch, spikezoo\n"
        "from pathlib import Path\n"
        "from spikezoo.testing import check_neuron\n"
        "from spikezoo.catalog import registry\n"
        "from spikezoo.recipes import settings\n"
        "from spikezoo.train import train\n"
        "check_neuron(registry('neurons').get('counter'))\n"
        "x = torch.randn(4, 8, 100)\n"
        "a, b = (spikezoo.neuron('counter', backend=b)(x) for b in ('reference', 'native'))\n"
        "chosen = settings(batch_size=16, side=16, precision='fp32')\n"
        f"done = train(spikezoo.Spec.parse({spec!r}), chosen, kimg=0.032, out=Path('runs'))\n"
        "from spikezoo import export\n"
        "model = spikezoo.load(done.run)\n"
        "folder = export.export(done.run, Path('exported'))\n"
        "wrong = [check.found for check in export.verify(folder) if check.wrong]\n"
        "images = [m.sample([0, 1]) for m in (model, spikezoo.load(folder))]\n"
        "assert not wrong, wrong\n"
        "assert torch.equal(*images)\n"
        "assert 'pip install spikezoo-gan zoo-counter==1.2' in (folder / 'README.md').read_text()\n"
        "out = [torch.equal(a, b), str(done.run), list(images[0].shape),\n"
        "    model.config['plugins']]"
    )
    assert isinstance(out, list)
    same, run, shape, plugins = out
    assert same
    assert shape == [2, 1, 16, 16]
    assert plugins == {"zoo-counter": "1.2"}

    environment.uninstall("zoo-counter")
    for source in (run, "exported"):
        message = environment.run("-m", "spikezoo", "show", f"./{source}", status=1).stderr
        assert message.rstrip().endswith("pip install zoo-counter==1.2")
    message = environment.run("-m", "spikezoo", "sample", run, status=1).stderr
    assert "trained with zoo-counter, which is not installed here" in message
    assert "no neuron 'counter'" in message
    assert message.rstrip().endswith("pip install zoo-counter==1.2")


@pytest.mark.parametrize(
    "plugins", [{"a; rm -rf ~": "1"}, {"zoo": "1 --evil"}, {"zoo": None}, [], 3]
)
def test_a_strangers_config_puts_nothing_but_names_into_a_command(
    plugins: object, tmp_path: Path
) -> None:
    import spikezoo
    from spikezoo import model
    from spikezoo.errors import UnknownNameError
    from spikezoo.zoo import resolve

    spec = spikezoo.Spec.parse("gen:snn_middle+disc:ann")
    config = {
        "format_version": model.FORMAT_VERSION,
        "spec": spec.to_json(),
        "shape": [1, 16, 16],
        "generator": {"name": "snn_middle", "options": resolve(spec.gen) | {"neuron": "gone"}},
        "plugins": plugins,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownNameError, match=r"^no neuron 'gone'"):
        spikezoo.load(tmp_path)


# --- what `spikezoo plugins` says -----------------------------------------------------------


def test_there_may_be_no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    from spikezoo import plugins

    monkeypatch.setattr(plugins, "installed", list)
    assert plugins.report().startswith("no plugins")


def test_broken_and_conflicting_plugins_are_reported_and_hurt_nobody(
    environment: Environment,
) -> None:
    environment.install("zoo-counter", ENTRY, COUNTER)
    environment.install(
        "zoo-bad",
        "[spikezoo.neurons]\nbad = zoo_bad:Bad\nlif = zoo_bad:Lif\n"
        "[spikezoo.backends]\nbad = zoo_bad:BAD\n[spikezoo.datasets]\nbad = zoo_bad:BAD\n"
        "[spikezoo.surrogates]\nbad = zoo_bad:bad\n",
        "raise OSError('no licence\\nserver')",
    )
    environment.install("zoo-rival", "[spikezoo.neurons]\nx = zoo_rival:A\n", "A = object()")
    environment.install(
        "zoo-typo",
        "[spikezoo.neurons]\nx = zoo_typo:A\n[spikezoo.nuerons]\ny = zoo_typo:A\n"
        "[spikezoo.backends]\nodd = zoo_typo:Odd\n",
        "A = object()\nclass Odd:\n    def supports(neuron):\n        raise KeyError(neuron)\n",
    )
    blocks = environment.spikezoo("plugins").split("\nzoo-")
    assert [block.splitlines()[0].removeprefix("zoo-") for block in blocks] == [
        "bad 1.0",
        "counter 1.0",
        "rival 1.0",
        "typo 1.0",
    ]
    bad, counter, rival, typo = blocks
    assert bad.count("OSError: no licence server") == 4
    assert "neuron 'lif' is claimed by spikezoo-gan (spikezoo.neurons.lif:LIF) and zoo-bad" in bad
    assert counter.splitlines()[1].split() == ["neurons:counter", "loads"]
    for block in (rival, typo):
        assert "'x' is claimed by" in block
    assert "no kind 'nuerons'; did you mean 'neurons'?" in typo

    assert "Usage" in environment.spikezoo("--help")
    for kind in ("neurons", "backends"):
        assert "bad" in environment.spikezoo("list", kind)
    out = environment.out(
        "import spikezoo\n"
        "from spikezoo import parity\n"
        "from spikezoo.backends import backends_of\n"
        "parity.GRID = {}\n"
        "rows = parity.parity(backends=['snntorch'])\n"
        "out = [backends_of(spikezoo.neuron('lif')),\n"
        "    str(spikezoo.create('gen:ann+disc:ann').spec),\n"
        "    [row.neuron for row in rows if not row.library_default], parity.differs(rows)]"
    )
    assert isinstance(out, list)
    assert {"reference", "native"} <= set(out[0])
    assert not {"bad", "odd"} & set(out[0])
    assert out[1:] == ["gen:ann+disc:ann@digits", ["cuba", "if", "lif", "plif"], False]


# --- which distributions a spec needs -------------------------------------------------------

PARTS = """
import torch
from spikezoo.losses import BCE
from spikezoo.neurons.lif import LIF
from spikezoo.readouts import Mean
from spikezoo.surrogates import atan
from spikezoo.backends.reference import REFERENCE
from spikezoo.models.dcgan import ANNGenerator
"""


NEEDED = {
    "'gen:snn_middle+disc:snn'": [],
    "'gen:mine+disc:ann'": ["zoo-gen"],
    "'gen:snn_middle,neuron=mine+disc:snn,readout=mine'": ["zoo-neu", "zoo-rea"],
    "'gen:ann+disc:snn,neuron.surrogate=mine'": ["zoo-sur"],
    "'gen:ann+disc:ann', losses='mine', backends='mine'": ["zoo-bac", "zoo-los"],
    "'gen:ann+disc:ann', losses='bce', backends=None": [],
}


def test_a_spec_needs_the_distributions_of_all_that_it_names(environment: Environment) -> None:
    for kind, attr in {
        "generators": "ANNGenerator",
        "neurons": "LIF",
        "readouts": "Mean",
        "surrogates": "atan",
        "losses": "BCE",
        "backends": "REFERENCE",
    }.items():
        name = f"zoo-{kind[:3]}"
        point = f"[spikezoo.{kind}]\nmine = {name.replace('-', '_')}:{attr}\n"
        environment.install(name, point, PARTS)
    out = environment.out(
        "from spikezoo import Spec, zoo\n"
        "def needed(spec, **others): return zoo.distributions(Spec.parse(spec), **others)\n"
        f"out = [{', '.join(f'needed({text})' for text in NEEDED)}]"
    )
    assert out == [dict.fromkeys(names, "1.0") for names in NEEDED.values()]
