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
from torch._subclasses.fake_tensor import FakeTensorMode
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
        raise ZeroDivisionError("by\ndesign")


class Forgets(FiresLate):
    """Has no gradient from the third step on."""

    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        return REFERENCE.run(neuron, torch.cat([current[:2], current[2:].detach()]), state)


class Widens(FiresLate):
    """Gives float32 spikes for a bfloat16 current."""

    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        spikes, last = REFERENCE.run(neuron, current, state)
        return spikes.float(), last


class Cuts(FiresLate):
    """Gives the spikes of all neurons but one."""

    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        spikes, last = REFERENCE.run(neuron, current, state)
        return spikes[:, 1:], last


BROKEN = {
    "late": (FiresLate, r"step 0; tie rule: h = threshold; beta="),
    "fails": (Fails, r"ZeroDivisionError: by design; beta="),
    "forgets": (Forgets, r"step 2; gradient of current; beta="),
    "widens": (Widens, r"ValueError: it gives spikes torch.float32 .*T=1 bfloat16"),
    "cuts": (Cuts, r"ValueError: it gives spikes torch.float32 \[8, 255\]"),
}


@pytest.fixture
def _broken_backends() -> Iterator[None]:
    for name, (backend, _) in BROKEN.items():
        registry("backends").register(name)(backend())
    yield
    for name in BROKEN:
        registry("backends").unregister(name)


@pytest.mark.usefixtures("_small_grid", "_broken_backends")
def test_command_says_where_and_why_a_backend_differs(tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    chosen = [f"--backend={name}" for name in (*BROKEN, "spikingjelly_exact")]
    written = ["--json", str(rows), "--markdown", str(page)]
    result = CliRunner().invoke(main, ["parity", "lif", *chosen, *written])
    assert result.exit_code == 1
    for name, (_, why) in BROKEN.items():
        assert re.search(rf"lif +{name} +differs .* {why}", result.output)
    assert re.search(r"lif +spikingjelly_exact +bit-equal", result.output)
    table = json.loads(rows.read_text())
    assert table["versions"]["snntorch"] == snntorch.__version__
    verdicts = {row["backend"]: row["verdict"] for row in table["rows"]}
    assert verdicts == dict.fromkeys(BROKEN, "differs") | {"spikingjelly_exact": "bit-equal"}
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
    with pytest.raises(OptionError, match=r"'ttfs' runs on native, reference; .* and snntorch$"):
        parity.parity(["lif", "ttfs"], ["snntorch"])
    with pytest.raises(OptionError, match=r"'spikingjelly.klif' runs on spikingjelly; .* another"):
        parity.parity(["spikingjelly.klif"])


class NoStep(Neuron):
    """A neuron that was never finished."""


class Explodes(Neuron):
    def __init__(self) -> None:
        raise KeyError("by design")


@pytest.fixture
def _broken_neurons() -> Iterator[None]:
    registry("neurons").register("nostep")(NoStep)
    registry("neurons").register("explodes")(Explodes)
    yield
    registry("neurons").unregister("nostep")
    registry("neurons").unregister("explodes")


@pytest.mark.usefixtures("_broken_neurons")
def test_broken_neuron_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parity, "GRID", {})
    rows = {row.neuron: row for row in parity.parity(backends=["native"])}
    assert {name for name, row in rows.items() if row.verdict != "differs"} == set(BUILTIN) - {*OWN}
    assert rows["nostep"].why.startswith("NotImplementedError")
    assert "neuron 'explodes' is left out: KeyError: 'by design'" in caplog.text


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
    ("name", "library"),
    [("lif", "snntorch"), ("snntorch.leaky", "snntorch"), ("lif", "spikingjelly")],
)
def test_missing_library_names_the_command(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = spikezoo.neuron(name, backend=library)
    for module in list(sys.modules):
        if module.partition(".")[0] == library:
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=f"pip install {library}"):
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
    sizes = torch.tensor([0.0, 1.0, 5.0, 88.0, 1e4, 1e19, 1e30])
    x = torch.cat([-sizes, sizes]).repeat(2, 1).requires_grad_()
    spikes = neuron(x)
    weights = torch.ones_like(x, requires_grad=True)
    (first,) = torch.autograd.grad(spikes, x, weights, create_graph=True)
    second = torch.autograd.grad(first.sum(), [x, weights], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in (first, *second))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_current_gives_no_spikes(backend: str) -> None:
    assert spikezoo.neuron("lif", backend=backend)(torch.zeros(3, 0, 2)).shape == (3, 0, 2)


@pytest.mark.parametrize("name", ["lif", "cuba", *(n for n in OWN if "snntorch" in n)])
def test_snntorch_keeps_no_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list of all layers ever built would keep them; a cycle would, for a while."""
    before = list(snntorch.SpikingNeuron.instances)
    built: list[weakref.ref[nn.Module]] = []
    init = snntorch.SpikingNeuron.__init__

    def record(self: nn.Module, *arguments: Any, **options: Any) -> None:
        built.append(weakref.ref(self))
        init(self, *arguments, **options)

    monkeypatch.setattr(snntorch.SpikingNeuron, "__init__", record)
    gc.disable()  # nothing is left to collect
    try:
        spikezoo.neuron(name, backend="snntorch")(random_current(4, 3).requires_grad_())
        assert built
        assert not any(layer() for layer in built)
    finally:
        gc.enable()
    assert snntorch.SpikingNeuron.instances == before


# PLIF, and the fused functions, ask for numbers, of which a fake tensor has none.
ON_DEVICE = [(n, b) for n in BUILTIN for b in BACKENDS_OF[n]]
ON_DEVICE = [pair for pair in ON_DEVICE if pair[1] != "spikingjelly" or pair[0] in OWN]
ON_DEVICE.remove(("plif", "native"))


@pytest.mark.parametrize(("name", "backend"), ON_DEVICE)
def test_nothing_is_made_on_another_device(name: str, backend: str) -> None:
    """Fake tensors on a GPU, which need none: operations that mix devices fail, values are none."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        neuron = spikezoo.neuron(name, backend=backend)
        for key, p in list(neuron.named_parameters()):
            owner, _, attribute = key.rpartition(".")
            fake = nn.Parameter(torch.empty(p.shape, device="cuda"))
            setattr(neuron.get_submodule(owner), attribute, fake)
        current = torch.empty(4, 3, 5, device="cuda", dtype=torch.bfloat16)
        spikes, state = neuron.run(current)
    assert spikes.device.type == "cuda"
    assert spikes.dtype == torch.bfloat16
    assert {(s.device.type, s.dtype) for s in state} == {("cuda", torch.float32)}


@pytest.mark.parametrize("name", [n for n in BUILTIN if n != "izhikevich"])
def test_state_is_as_precise_under_autocast(name: str) -> None:
    neuron, linear = spikezoo.neuron(name), nn.Linear(8, 50)
    x = 3 * random_current(6, 3, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        current = linear(x)
        spikes, state = neuron.run(current)
    assert current.dtype == spikes.dtype == torch.bfloat16
    wanted, wanted_state = neuron.run(current.float())
    assert torch.equal(spikes.float(), wanted)
    for found, right in zip(state, wanted_state, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, right)


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
        (
            "spikingjelly.lif",
            {"tau": 1.0},
            r"LIFNode refuses one of tau=1.0, decay_input=True, .*: tau is above 1, ",
        ),
        ("spikingjelly.qif", {"v_rest": -0.5}, "QIFNode refuses one of .*v_rest=-0.5.*not below"),
        ("spikingjelly.izhikevich", {"tau_w": 0.0}, "tau_w is above 0, given 0"),
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


@pytest.mark.parametrize("name", [n for n in OWN if "snntorch" in n])
def test_hard_reset_of_snntorch_is_late_and_loses_the_current(name: str) -> None:
    neuron = spikezoo.neuron(name, reset="hard")
    x = random_current(6, 500)
    _, before = neuron.run(x[:5])
    _, after = neuron.run(x[5:], before)
    fired = before[-1] > 1
    assert fired.any()
    wanted = x[5] if name == "snntorch.leaky" else torch.zeros(500)
    assert torch.equal(after[-1][fired], wanted[fired])


def test_reset_of_snntorch_without_delay_is_in_the_gradient() -> None:
    def results(name: str, **options: Any) -> list[Tensor]:
        x = random_current(12, 300).requires_grad_()
        spikes = spikezoo.neuron(name, beta=0.5, reset="hard", **options)(x)
        return [spikes, *torch.autograd.grad((spikes * random_current(12, 300, seed=1)).sum(), x)]

    found, wanted = results("snntorch.leaky", reset_delay=False), results("lif")
    assert torch.equal(found[0], wanted[0])
    assert_close(found[1], wanted[1])


def test_reset_of_snntorch_without_delay_asks_twice_the_threshold_above_it() -> None:
    x = torch.tensor([[1.2, 1.3]])  # h = 0.5 * 1.5 + x
    fires = spikezoo.neuron("snntorch.leaky", beta=0.5, reset_delay=False)
    assert fires.run(x, (torch.tensor(1.5),))[0].tolist() == [[0, 1]]
    assert fires.run(x, (torch.tensor(0.9),))[0].tolist() == [[1, 1]]


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
    """Two networks at once, each in two threads."""
    networks = [
        generator("snn_full", backend, neuron="plif").eval(),
        generator("snn_middle", backend, neuron="cuba").eval(),
    ]

    def work(i: int) -> list[Tensor]:
        network = networks[i % 2]
        images = network(random_current(2 + i, 100, seed=i))
        inputs = list(network.parameters())
        return [images, *torch.autograd.grad(images.square().sum(), inputs)]

    alone = [work(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(8)))
    for found, wanted in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_network_compiles(backend: str) -> None:
    network = generator("snn_middle", backend).eval()
    z = torch.randn(3, network.latent_dim)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert_close(compiled(z), network(z), rtol=0, atol=1e-5)
