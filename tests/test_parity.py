"""All backends compute the same: neurons, networks, and what a training does to them."""

from __future__ import annotations

import gc
import itertools
import json
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.testing import assert_close

import spikezoo
from spikezoo import parity, zoo
from spikezoo.backends import set_backend
from spikezoo.backends.reference import REFERENCE
from spikezoo.catalog import BACKENDS_OF, names, registry
from spikezoo.cli import main
from spikezoo.errors import OptionError, UnknownNameError
from spikezoo.neurons import Neuron, State
from spikezoo.spec import Part

with warnings.catch_warnings():  # theirs, on import
    warnings.simplefilter("ignore")
    import snntorch
    from spikingjelly.activation_based import neuron as sj_neuron

torch.set_num_threads(1)  # small tensors: threads only wait for one another

BUILTIN = [n for n in names("neurons") if "spikezoo-gan" in registry("neurons").source(n)]
OWN = [n for n in BUILTIN if "." in n]
BACKENDS = ["native", "reference", "snntorch", "spikingjelly", "spikingjelly_exact"]


def random_current(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(name: str, backend: str | None = None, seed: int = 0, **options: str) -> nn.Module:
    torch.manual_seed(seed)
    resolved = zoo.resolve(Part("gen", name, tuple(options.items())))
    return zoo.build("gen", name, {**resolved, "width": 8}, (1, 16, 16), backend)


# --- the table ------------------------------------------------------------------------------


@pytest.fixture
def _small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"beta": (0.5, 0.9), "threshold": (0.7,)}
    monkeypatch.setattr(parity, "GRID", {**parity.GRID, **small})


@pytest.mark.usefixtures("_small_grid")
def test_every_backend_agrees_with_reference() -> None:
    rows = parity.parity()
    assert not parity.differs(rows), parity.as_text(rows)
    found = {(row.neuron, row.backend): row for row in rows if not row.library_default}
    wanted = {(n, b) for n in BUILTIN for b in BACKENDS_OF[n] if n not in OWN and b != "reference"}
    assert wanted <= found.keys()
    assert all(row.spikes == 0 and row.cases > 30 for row in found.values())
    assert found["lif", "spikingjelly_exact"].verdict == parity.BIT_EQUAL
    assert found["lif", "snntorch"].state == 0
    assert 0 < found["lif", "spikingjelly"].state < 1e-5
    # The page in the docs is of the whole grid, but of the same rows.
    page = Path(__file__).parents[1] / "docs" / "parity.md"
    documented = re.findall(r"^\| (\w+) \| (\w+) \| (?:bit|equal)", page.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(wanted)


def test_library_defaults_differ_for_known_reasons() -> None:
    rows = parity.parity(["snntorch.leaky", "spikingjelly.lif"])
    assert all(row.library_default for row in rows)
    assert not parity.differs(rows)
    assert {row.neuron: (row.verdict, row.why.partition(":")[0]) for row in rows} == {
        "snntorch.leaky beta=0.5": ("differs", "delayed reset"),
        "snntorch.leaky beta=0.5 reset=hard reset_delay=False": ("differs", "tie rule"),
        "spikingjelly.lif": ("differs", "decayed input"),
        "spikingjelly.lif decay_input=False": ("bit-equal", ""),
    }
    text = parity.as_text(rows)
    assert f"snntorch {snntorch.__version__}" in text
    assert "differs (library default)" in text


class FiresLate:
    """Fires on > instead of >=."""

    def supports(self, neuron: Neuron) -> bool:
        return "beta" in dir(neuron)

    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        return REFERENCE.run(neuron, current - 1e-7, state)


class Fails(FiresLate):
    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        raise ZeroDivisionError("by design")


@pytest.fixture
def _broken_backends() -> Iterator[None]:
    registry("backends").register("late")(FiresLate())
    registry("backends").register("fails")(Fails())
    yield
    registry("backends").unregister("late")
    registry("backends").unregister("fails")


@pytest.mark.usefixtures("_small_grid", "_broken_backends")
def test_command_says_where_and_why_a_backend_differs(tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    chosen = ["--backend", "late", "--backend", "fails", "--backend", "spikingjelly_exact"]
    written = ["--json", str(rows), "--markdown", str(page)]
    result = CliRunner().invoke(main, ["parity", "lif", *chosen, *written])
    assert result.exit_code == 1
    assert re.search(r"lif +late +differs .* step 0; tie rule: h = threshold; beta=", result.output)
    assert re.search(r"lif +fails +differs .* ZeroDivisionError: by design", result.output)
    assert re.search(r"lif +spikingjelly_exact +bit-equal", result.output)
    table = json.loads(rows.read_text())
    assert table["versions"]["snntorch"] == snntorch.__version__
    assert [row["verdict"] for row in table["rows"]] == ["differs", "differs", "bit-equal"]
    assert "| lif | spikingjelly_exact | bit-equal |" in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.md", "rows.json"]


@pytest.mark.usefixtures("_small_grid")
def test_command_ends_well_where_all_agree() -> None:
    result = CliRunner().invoke(main, ["parity", "if", "--backend", "snntorch"])
    assert result.exit_code == 0
    assert re.search(r"if +snntorch +(bit-equal|equal spikes within tolerance)", result.output)


def test_parity_of_nothing_says_so() -> None:
    with pytest.raises(UnknownNameError, match="no neuron 'lief'; did you mean 'lif'"):
        parity.parity(["lief"])
    with pytest.raises(UnknownNameError, match="no backend 'snntorc'; did you mean 'snntorch'"):
        parity.parity(["lif"], ["snntorc"])
    with pytest.raises(OptionError, match=r"none of the backends snntorch has .* neurons ttfs"):
        parity.parity(["ttfs"], ["snntorch"])


# --- who has what ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILTIN)
def test_table_of_backends_is_what_they_say(name: str) -> None:
    neuron = registry("neurons").get(name)()
    found = [b for b in BACKENDS if registry("backends").get(b).supports(neuron)]
    assert sorted(BACKENDS_OF[name]) == found
    if name in OWN:
        assert found == [neuron.only_backend] == [spikezoo.neuron(name).backend]


def test_list_shows_the_backends() -> None:
    listed = CliRunner().invoke(main, ["list", "neurons"]).output
    assert re.search(
        r"lif .*\[native, reference, snntorch, spikingjelly, spikingjelly_exact\]", listed
    )
    assert re.search(r"spikingjelly\.klif .*\[spikingjelly\]", listed)


def test_each_library_has_five_neurons_of_its_own() -> None:
    assert len(names("neurons", "snntorch.*")) >= 5
    assert len(names("neurons", "spikingjelly.*")) >= 5


def test_backend_without_the_neuron_says_which_have_it() -> None:
    with pytest.raises(OptionError, match=r"'snntorch' has no neuron 'TTFS'.*: native, reference"):
        spikezoo.neuron("ttfs", backend="snntorch")
    with pytest.raises(OptionError, match=r"'reference' has no neuron 'KLIFNode'.*: spikingjelly$"):
        spikezoo.neuron("spikingjelly.klif", backend="reference")


@pytest.mark.parametrize(
    ("name", "module", "backend"),
    [
        ("lif", "snntorch", "snntorch"),
        ("snntorch.leaky", "snntorch", "snntorch"),
        ("lif", "spikingjelly.activation_based.functional", "spikingjelly"),
    ],
)
def test_missing_library_names_the_command(
    name: str, module: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = spikezoo.neuron(name, backend=backend)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=f"pip install {backend}"):
        layer(random_current(2, 3))


# --- the LIF family on the libraries --------------------------------------------------------


@pytest.mark.parametrize("neuron", ["lif", "plif"])
@pytest.mark.parametrize("beta", [0.1, 0.3, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_fused_spikes_are_equal_also_where_rounding_decides(
    neuron: str, beta: float, reset: str
) -> None:
    """Currents in multiples of a tenth make h meet the threshold in exact arithmetic, often."""
    x = (10 * random_current(40, 2000, seed=int(1000 * beta))).round() / 10
    options = {"beta": beta, "reset": reset, "threshold": 0.7}
    spikes, (v,) = spikezoo.neuron(neuron, backend="spikingjelly", **options).run(x)
    wanted, (wanted_v,) = spikezoo.neuron(neuron, backend="reference", **options).run(x)
    assert torch.equal(spikes, wanted)
    assert_close(v, wanted_v, rtol=0, atol=3e-6 * wanted_v.abs().max().item())


def test_fused_spikes_that_no_rounding_decides_are_the_librarys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is computed a second time where no potential comes near the threshold."""
    monkeypatch.setattr("spikezoo.backends.spikingjelly._step", lambda _: pytest.fail("again"))
    x = torch.tensor([[0.4], [0.4], [0.4], [2.0]])
    assert spikezoo.neuron("lif", backend="spikingjelly", beta=0.9)(x).sum() == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("surrogate", names("surrogates"))
def test_gradients_are_finite_for_every_current(backend: str, surrogate: str) -> None:
    neuron = spikezoo.neuron("lif", backend=backend, surrogate=surrogate, alpha=25.0, reset="hard")
    x = torch.tensor([[-1e4, -88.0, -5.0, 0.0, 1.0, 5.0, 88.0, 1e4]]).repeat(3, 1).requires_grad_()
    (g,) = torch.autograd.grad(neuron(x).sum(), x)
    assert g.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_current_gives_no_spikes(backend: str) -> None:
    assert spikezoo.neuron("lif", backend=backend)(torch.zeros(3, 0, 2)).shape == (3, 0, 2)


@pytest.mark.parametrize("name", ["lif", "snntorch.rsynaptic"])
def test_snntorch_keeps_no_layer(name: str) -> None:
    """Its list of all layers ever built would grow with every call, and hold every graph."""
    before = list(snntorch.SpikingNeuron.instances)
    x = random_current(4, 3).requires_grad_()
    spikes = spikezoo.neuron(name, backend="snntorch")(x * 1.0)
    assert snntorch.SpikingNeuron.instances == before
    graph = weakref.ref(spikes)
    del spikes
    gc.collect()
    assert graph() is None


# --- the libraries' own neurons -------------------------------------------------------------

DECAYS = {"alpha": 0.9, "beta": 0.8}
ONE_TO_ONE = {"all_to_all": False}
THEIRS: dict[str, Callable[[], Any]] = {
    "snntorch.leaky": lambda: snntorch.Leaky(0.9),
    "snntorch.lapicque": lambda: snntorch.Lapicque(0.5),
    "snntorch.synaptic": lambda: snntorch.Synaptic(**DECAYS),
    "snntorch.alpha": lambda: snntorch.Alpha(alpha=0.95, beta=0.8),
    "snntorch.rleaky": lambda: snntorch.RLeaky(0.9, **ONE_TO_ONE),
    "snntorch.rsynaptic": lambda: snntorch.RSynaptic(**DECAYS, **ONE_TO_ONE),
    "spikingjelly.lif": sj_neuron.LIFNode,
    "spikingjelly.parametric_lif": sj_neuron.ParametricLIFNode,
    "spikingjelly.klif": sj_neuron.KLIFNode,
    "spikingjelly.qif": sj_neuron.QIFNode,
    "spikingjelly.eif": sj_neuron.EIFNode,
    "spikingjelly.izhikevich": sj_neuron.IzhikevichNode,
}


@pytest.mark.parametrize("name", OWN)
def test_own_neuron_with_its_defaults_is_the_librarys(name: str) -> None:
    """Run as the library's manual says: a layer with hidden state, step by step."""
    ours, theirs = spikezoo.neuron(name), THEIRS[name]()
    x = random_current(12, 5, 7)
    results = []
    for module in (ours, theirs):
        current = x.clone().requires_grad_()
        if module is ours:
            spikes = module(current)
        else:
            theirs.init_hidden = True  # snnTorch's; SpikingJelly's nodes always have it
            spikes = torch.stack([module(step) for step in current])
        inputs = [current, *module.parameters()]
        results.append([spikes, *torch.autograd.grad(spikes.square().sum(), inputs)])
    assert 0 < results[0][0].mean() < 1
    assert len(results[0]) == len(results[1])
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("snntorch.leaky", {"beta": 1.5}, r"beta is a decay in \[0, 1\], given 1.5"),
        ("snntorch.leaky", {"reset": "none"}, "reset is 'soft' or 'hard', given 'none'"),
        ("snntorch.lapicque", {"beta": 1.0}, "beta is between 0 and 1, given 1"),
        ("snntorch.alpha", {"beta": 0.95}, "alpha is above beta, given alpha=0.95 and beta=0.95"),
        ("snntorch.synaptic", {"threshold": 0.0}, "threshold is above 0, given 0"),
        ("spikingjelly.lif", {"tau": 1.0}, r"LIFNode refuses one of tau=1.0, decay_input=True"),
        ("spikingjelly.qif", {"v_rest": -0.5}, "QIFNode refuses one of .*v_rest=-0.5"),
        ("spikingjelly.klif", {"reset": "none"}, "reset is 'soft' or 'hard', given 'none'"),
    ],
)
def test_own_neuron_refuses_a_bad_option(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        spikezoo.neuron(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "learned"),
    [
        ("snntorch.leaky", {"learn_beta": True}, ["beta"]),
        ("snntorch.synaptic", {"learn_alpha": True, "learn_beta": True}, ["alpha", "beta"]),
        ("snntorch.rleaky", {"learn_beta": True}, ["V", "beta"]),
        ("snntorch.rsynaptic", {}, ["V"]),
        ("spikingjelly.parametric_lif", {"init_tau": 3}, ["node.w"]),
        ("spikingjelly.klif", {}, ["node.k"]),
    ],
)
def test_own_neuron_learns(name: str, options: dict[str, Any], learned: list[str]) -> None:
    neuron = spikezoo.neuron(name, **options)
    assert sorted(neuron.state_dict()) == learned
    neuron(random_current(6, 50)).sum().backward()
    assert all(p.grad is not None and p.grad != 0 for p in neuron.parameters())
    copy = deepcopy(neuron)
    with torch.no_grad():
        for p in neuron.parameters():
            p.mul_(0.5)
    x = random_current(6, 50)
    assert not torch.equal(copy(x), neuron(x))
    copy.load_state_dict(neuron.state_dict())
    assert torch.equal(copy(x), neuron(x))


# --- networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", ["lif", "if", "plif", "cuba"])
@pytest.mark.parametrize("name", names("generators", "snn_*"))
def test_network_gives_the_same_images_on_every_backend(name: str, neuron: str) -> None:
    network = generator(name, neuron=neuron, **({} if neuron == "if" else {"beta": "0.9"}))
    z = torch.randn(16, network.latent_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.momentum = 1.0  # the statistics of one batch are all that there is
        network.train()(z)
        network.eval()
        images = {}
        for backend in BACKENDS:
            set_backend(network, backend)
            images[backend] = network(z)
    assert images["reference"].std() > 0.01
    for backend in BACKENDS:
        assert_close(images[backend], images["reference"], rtol=0, atol=1e-5, msg=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_network_lives_through_a_training(backend: str) -> None:
    """Two networks in one process, of changing batch sizes, copied and averaged on the way."""

    def train(backends: tuple[str, str]) -> list[Tensor]:
        networks = [generator("snn_full", b, seed=i) for i, b in enumerate(backends)]
        ema = deepcopy(networks[0])
        random = torch.Generator().manual_seed(0)
        for n in (4, 7, 2):
            for network in networks:
                z = torch.randn(n, network.latent_dim, generator=random)
                network.zero_grad()
                network(z).square().mean().backward()
                with torch.no_grad():
                    for p in network.parameters():
                        p.sub_(0.05 * p.grad)
            ema_now = deepcopy(networks[0])
            with torch.no_grad():
                for old, new in zip(ema.parameters(), ema_now.parameters(), strict=True):
                    old.lerp_(new, 0.5)
        z = torch.randn(3, ema.latent_dim, generator=random)
        with torch.no_grad():
            return [ema(z), networks[0](z), networks[1](z)]

    # Gradients differ by rounding, which may move a spike and, by then, an image a little.
    for found, wanted in zip(train((backend, "native")), train(("native",) * 2), strict=True):
        assert_close(found, wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_network_computes_in_several_threads(backend: str) -> None:
    network = generator("snn_full", backend, neuron="plif").eval()
    zs = [torch.randn(2 + i, network.latent_dim) for i in range(4)]

    def work(z: Tensor) -> list[Tensor]:
        images = network(z)
        inputs = list(network.parameters())
        return [images, *torch.autograd.grad(images.square().sum(), inputs)]

    alone = [work(z) for z in zs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, zs))
    for found, wanted in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_network_compiles(backend: str) -> None:
    network = generator("snn_middle", backend).eval()
    z = torch.randn(3, network.latent_dim)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert_close(compiled(z), network(z), rtol=0, atol=1e-5)
