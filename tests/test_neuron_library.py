"""alif, cuba, izhikevich and ttfs against other libraries, NumPy, ODE solvers and closed forms."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.testing import assert_close

import spikezoo
from spikezoo import zoo
from spikezoo.catalog import names, registry
from spikezoo.errors import OptionError
from spikezoo.spec import Part
from spikezoo.testing import check_discriminator, check_generator

with warnings.catch_warnings():  # theirs, on import
    warnings.simplefilter("ignore")
    import snntorch
    from snntorch import surrogate as snn_surrogate

torch.set_num_threads(1)  # small tensors: threads only wait for one another

OURS = ["alif", "cuba", "izhikevich", "ttfs"]
RESETS = list(itertools.product(["soft", "hard"], [False, True]))
Array = Any  # numpy's own types say nothing here


def random_current(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(shape, generator=g, dtype=torch.float64)


def spike_times(spikes: Tensor) -> list[int]:
    """Steps of one neuron's spikes [T, 1], the first step being 1."""
    return [int(t) + 1 for t in spikes[:, 0].nonzero()[:, 0]]


# --- alif -----------------------------------------------------------------------------------


def alif_in_numpy(
    x: Array, beta: float, rho: float, adaptation: float, threshold: float, reset: str
) -> tuple[Array, Array, Array]:
    """Bellec et al. 2018, equations 1 to 3, one neuron and one step at a time."""
    T, neurons = x.shape
    spikes, last_v, last_b = np.zeros((T, neurons)), np.zeros(neurons), np.zeros(neurons)
    for j in range(neurons):
        V = b = 0.0
        for t in range(T):
            V = beta * V + x[t, j]
            B = threshold + adaptation * b
            z = 1.0 if V >= B else 0.0
            V = V - B * z if reset == "soft" else V * (1.0 - z)
            b = rho * b + (1.0 - rho) * z
            spikes[t, j] = z
        last_v[j], last_b[j] = V, b
    return spikes, last_v, last_b


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize(
    ("beta", "rho", "adaptation", "threshold"),
    [(0.5, 0.9, 1.8, 1.0), (0.9, 0.5, 0.6, 0.7), (0.8, 0.0, 3.0, 1.3), (1.0, 1.0, 1.0, 1.0)],
)
def test_alif_equals_the_papers_equations(
    beta: float, rho: float, adaptation: float, threshold: float, reset: str
) -> None:
    x = random_current(40, 50)
    layer = spikezoo.neuron(
        "alif", beta=beta, rho=rho, adaptation=adaptation, threshold=threshold, reset=reset
    )
    spikes, (v, a) = layer.run(x)
    wanted = alif_in_numpy(x.numpy(), beta, rho, adaptation, threshold, reset)
    assert 0.02 < spikes.mean() < 0.6
    assert np.array_equal(spikes.numpy(), wanted[0])
    assert_close(v.numpy(), wanted[1], rtol=0, atol=1e-12)
    assert_close(a.numpy(), wanted[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("reset", "detach_reset"), RESETS)
def test_alif_without_adaptation_is_lif(reset: str, detach_reset: bool) -> None:
    options = {"beta": 0.75, "threshold": 0.8, "reset": reset, "detach_reset": detach_reset}

    def spikes_and_gradient(name: str, **more: float) -> tuple[Tensor, Tensor]:
        x = random_current(12, 30).requires_grad_()
        spikes = spikezoo.neuron(name, **options, **more)(x)
        return spikes, torch.autograd.grad((spikes * random_current(12, 30, seed=1)).sum(), x)[0]

    ours, wanted = spikes_and_gradient("alif", adaptation=0.0), spikes_and_gradient("lif")
    assert torch.equal(ours[0], wanted[0])
    assert_close(ours[1], wanted[1], rtol=0, atol=1e-12)


def test_alif_slows_down_under_a_constant_current() -> None:
    times = spike_times(spikezoo.neuron("alif", beta=0.9, rho=0.98)(torch.full((200, 1), 0.6)))
    gaps = np.diff(times)
    assert gaps[0] < gaps[-1]
    assert (np.diff(gaps) >= -1).all()  # never sooner again, but for the grid of time steps


# --- cuba -----------------------------------------------------------------------------------


def by_snntorch(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """snnTorch integrates and fires, on >= and with its ATan; we do the reset it does otherwise."""

    def fire(u: Tensor) -> Tensor:
        return snn_surrogate.ATan.apply(u, layer.alpha) + (u == 0).to(u)  # theirs fires on >

    synaptic = snntorch.Synaptic(
        alpha=layer.synaptic_beta,
        beta=layer.beta,
        threshold=layer.threshold,
        reset_mechanism="none",
        spike_grad=fire,
    )
    i, v, spikes = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for current in x:
        s, i, h = synaptic(current, i, v)
        reset = s.detach() if layer.detach_reset else s
        v = h - reset * layer.threshold if layer.reset == "soft" else (1 - reset) * h
        spikes.append(s)
    return torch.stack(spikes), i, v


@pytest.mark.parametrize(("reset", "detach_reset"), RESETS)
@pytest.mark.parametrize("grid", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize(
    ("beta", "synaptic_beta", "threshold"), [(0.5, 0.5, 1.0), (0.9, 0.75, 1.3), (0.25, 0.9, 0.5)]
)
def test_cuba_equals_snntorch(
    beta: float, synaptic_beta: float, threshold: float, grid: bool, reset: str, detach_reset: bool
) -> None:
    x = random_current(16, 4, 25).float()
    x = ((4 * x).round() / 4 if grid else x).requires_grad_()
    layer = spikezoo.neuron(
        "cuba",
        beta=beta,
        synaptic_beta=synaptic_beta,
        threshold=threshold,
        reset=reset,
        detach_reset=detach_reset,
    )
    spikes, state = layer.run(x)
    ours, theirs = [spikes, *state], list(by_snntorch(layer, x))
    assert 0.02 < spikes.mean() < 0.98
    for found, wanted in zip(ours, theirs, strict=True):
        assert torch.equal(found, wanted)
    weights = [random_current(*s.shape, seed=1).float() for s in ours]
    assert torch.equal(
        torch.autograd.grad(ours, [x], weights)[0], torch.autograd.grad(theirs, [x], weights)[0]
    )


def test_cuba_answers_an_impulse_with_a_difference_of_exponentials() -> None:
    beta, synaptic_beta, T = 0.9, 0.6, 30
    x = torch.zeros(T, 1, dtype=torch.float64)
    x[0] = 0.1  # far below the threshold
    layer = spikezoo.neuron("cuba", beta=beta, synaptic_beta=synaptic_beta)
    for t in range(1, T + 1):
        _, (i, v) = layer.run(x[:t])
        wanted = 0.1 * (beta**t - synaptic_beta**t) / (beta - synaptic_beta)
        assert_close(v.item(), wanted, rtol=1e-12, atol=0)
        assert_close(i.item(), 0.1 * synaptic_beta ** (t - 1), rtol=1e-12, atol=0)


# --- izhikevich -----------------------------------------------------------------------------

KINDS = {  # the paper's figure 2
    "regular spiking": (0.02, 0.2, -65.0, 8.0),
    "intrinsically bursting": (0.02, 0.2, -55.0, 4.0),
    "chattering": (0.02, 0.2, -50.0, 2.0),
    "fast spiking": (0.1, 0.2, -65.0, 2.0),
    "low-threshold spiking": (0.02, 0.25, -65.0, 2.0),
}


def izhikevich(kind: str = "regular spiking", **options: Any) -> Any:
    a, b, c, d = KINDS[kind]
    return spikezoo.neuron("izhikevich", a=a, b=b, c=c, d=d, **options)


def izhikevich_in_numpy(
    current: Array, kind: str, dt: float
) -> tuple[list[list[int]], Array, Array]:
    """Euler steps of the paper's equations, implicit where df/dv < 0; current is the paper's I."""
    a, b, c, d = KINDS[kind]
    fired, last_v, last_u = [], [], []
    for series in current.T:
        v = min(np.roots([0.04, 5 - b, 140]))
        u, times = b * v, []
        for t, I in enumerate(series):  # noqa: E741  # the paper's letter
            slope = 0.08 * v + 5
            f = 0.04 * v**2 + 5 * v + 140 - u + I
            v = v + dt * f / (1 - dt * slope if slope < 0 else 1)
            u = u + dt * a * (b * v - u)
            if v >= 30:
                v, u = c, u + d
                times.append(t)
        fired.append(times)
        last_v.append(v)
        last_u.append(u)
    return fired, np.array(last_v), np.array(last_u)


def test_izhikevich_scales_its_current_in_float32() -> None:
    """A bfloat16 current is exact in float32; scaled before it is widened, it would be rounded."""
    x = torch.rand(20, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    neuron = izhikevich(gain=37.0)
    for narrow, wide in zip(neuron.run(x)[1], neuron.run(x.float())[1], strict=True):
        assert torch.equal(narrow, wide)


@pytest.mark.parametrize("dt", [1.0, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_izhikevich_equals_numpy_with_the_same_dt(kind: str, dt: float) -> None:
    x = random_current(60, 20)
    spikes, (v, r) = izhikevich(kind, dt=dt, gain=40.0).run(x)
    times, wanted_v, wanted_u = izhikevich_in_numpy(40.0 * x.numpy(), kind, dt)
    assert 0.01 < spikes.mean() < 0.5
    assert [s.nonzero()[:, 0].tolist() for s in spikes.T] == times
    assert_close(v.numpy(), wanted_v, rtol=1e-7, atol=1e-7)
    assert_close(r.numpy(), wanted_u, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["regular spiking", "chattering", "fast spiking"])
def test_izhikevich_nears_the_differential_equation_as_dt_shrinks(kind: str) -> None:
    a, b, c, d = KINDS[kind]

    def slopes(_: float, y: Array) -> list[float]:
        return [0.04 * y[0] ** 2 + 5 * y[0] + 140 - y[1] + 10, a * (b * y[0] - y[1])]

    def peak(_: float, y: Array) -> float:
        return float(y[0] - 30)

    peak.terminal = True  # type: ignore[attr-defined]  # as solve_ivp wants it
    now, y, wanted = 0.0, [-70.0, -14.0], []
    while True:
        part = solve_ivp(slopes, (now, 60.0), y, events=peak, rtol=1e-9, atol=1e-9)
        if not part.t_events[0].size:
            break
        now = float(part.t_events[0][0])
        wanted.append(now)
        y = [c, float(part.y_events[0][0][1]) + d]
    largest = []
    for dt in (0.04, 0.01):
        current = torch.ones(round(60 / dt), 1, dtype=torch.float64)
        found = [dt * t for t in spike_times(izhikevich(kind, dt=dt, gain=10.0)(current))]
        assert len(found) == len(wanted) >= 2
        largest.append(max(abs(f - w) for f, w in zip(found, wanted, strict=True)))
    assert largest[1] < 0.7  # ms, of 60
    assert largest[1] < 0.5 * largest[0]  # of first order: a quarter, within a step


def test_izhikevich_fires_in_the_papers_patterns() -> None:
    def gaps(kind: str) -> Array:
        current = torch.ones(1200, 1, dtype=torch.float64)
        return np.diff(spike_times(izhikevich(kind, dt=0.25, gain=10.0)(current)))

    regular = gaps("regular spiking")
    assert regular[0] < 0.8 * regular[-1]  # adapts,
    assert regular[-3:].max() - regular[-3:].min() <= 1  # then keeps time
    assert gaps("fast spiking")[-1] < 0.5 * regular[-1]
    bursts = gaps("chattering")
    assert bursts.max() > 5 * bursts.min()


def test_izhikevich_rests_without_current_and_under_inhibition() -> None:
    for kind in KINDS:
        layer = izhikevich(kind)
        spikes, (v, _) = layer.run(torch.zeros(50, 1, dtype=torch.float64))
        assert not spikes.any()
        assert_close(v, layer.initial_state(torch.zeros(1, dtype=torch.float64))[0])
        # An explicit Euler step throws strongly inhibited neurons over the peak.
        inhibited = torch.tensor([-0.1, -1.0, -10.0, -1e3, -1e6]).expand(50, -1)
        spikes, (v, r) = layer.run(inhibited)
        assert not spikes.any()
        assert v.isfinite().all()
        assert r.isfinite().all()
        assert (v < -60).all()


def test_izhikevich_threshold_scales_its_current() -> None:
    x = random_current(8, 200)
    assert_close(izhikevich(threshold=0.25)(0.25 * x), izhikevich()(x))
    # At rest an I of 20 fires at the fourth step of 1 ms, as its docstring says.
    assert spike_times(izhikevich(gain=20.0)(torch.ones(6, 1)))[0] == 4


# --- ttfs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("x", [0.03, 0.15, 0.4, 0.55, 0.75, 1.2])
def test_ttfs_fires_once_and_when_the_formula_says(beta: float, x: float) -> None:
    # h[t] = x (1 - beta^t) / (1 - beta), or t x without a leak, meets the threshold 1 first at
    times = spike_times(spikezoo.neuron("ttfs", beta=beta)(torch.full((60, 1), x)))
    if beta == 1:
        wanted = [math.ceil(1 / x)]
    elif x >= 1:
        wanted = [1]
    else:
        left = 1 - (1 - beta) / x
        wanted = [math.ceil(math.log(left) / math.log(beta))] if left > 0 else []
    assert times == wanted


def test_ttfs_fires_at_most_once_whatever_the_current() -> None:
    x = random_current(50, 400)
    layer = spikezoo.neuron("ttfs", beta=0.8)
    spikes, (_, fired) = layer.run(x)
    assert spikes.sum(0).max() == 1
    assert torch.equal(spikes.sum(0), fired)
    more, _ = layer.run(x, (x[0], fired))  # the same sample goes on
    assert not more[:, fired == 1].any()


def test_ttfs_fires_sooner_for_a_larger_current() -> None:
    spikes = spikezoo.neuron("ttfs")(torch.linspace(0.05, 1.2, 100).expand(25, -1))
    first = spikes.argmax(0)
    assert (spikes.sum(0) == 1).all()
    assert (first[1:] <= first[:-1]).all()
    assert first[0] == 19
    assert first[-1] == 0


def test_ttfs_gradient_reaches_no_step_behind_the_spike() -> None:
    x = torch.full((8, 1), 0.3, requires_grad=True)  # fires at step 4
    spikes = spikezoo.neuron("ttfs", detach_reset=True)(x)
    (g,) = torch.autograd.grad(spikes.sum(), x)
    assert g[:4, 0].all()
    assert not g[4:, 0].any()


# --- all four -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alif", {"beta": 1.5}, r"beta is a decay in \[0, 1\], given 1.5"),
        ("alif", {"rho": -0.1}, r"rho is a decay in \[0, 1\], given -0.1"),
        ("alif", {"adaptation": -1.0}, "adaptation is at least 0, given -1.0"),
        ("cuba", {"synaptic_beta": 2.0}, r"synaptic_beta is a decay in \[0, 1\], given 2.0"),
        ("izhikevich", {"b": 0.27}, "b is at most 0.2671, or there is no rest, given 0.27"),
        ("izhikevich", {"dt": 2.0}, "dt is a time step of at most 1 ms, given 2.0"),
        ("izhikevich", {"gain": 0.0}, "gain is above 0, given 0.0"),
        ("ttfs", {"beta": math.nan}, "beta is a decay"),
        ("ttfs", {"threshold": 0.0}, "threshold is above 0, given 0.0"),
    ],
)
def test_bad_option_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        spikezoo.neuron(name, **options)


@pytest.mark.parametrize("threshold", [0.3, 1.0])
@pytest.mark.parametrize("name", OURS)
def test_currents_of_one_threshold_make_a_sensible_share_fire(name: str, threshold: float) -> None:
    """What every network starts with: normal currents of that spread, the same for T = 4."""
    x = threshold * random_current(5000).float() / 1.5
    rate = spikezoo.neuron(name, threshold=threshold)(x.expand(4, -1)).mean().item()
    assert 0.05 < rate < 0.4


def network(kind: str, name: str, neuron: str, shape: tuple[int, int, int]) -> torch.nn.Module:
    torch.manual_seed(0)
    options = zoo.resolve(Part(kind, name, (("neuron", neuron),))) | {"width": 8}
    return zoo.build(kind, name, options, shape)


@pytest.mark.parametrize("generator", names("generators", "snn_*"))
@pytest.mark.parametrize("neuron", OURS)
def test_generator_of_the_neuron_keeps_the_contract(neuron: str, generator: str) -> None:
    check_generator(network("gen", generator, neuron, (1, 16, 16)), (1, 16, 16))


@pytest.mark.parametrize("neuron", OURS)
def test_discriminator_of_the_neuron_keeps_the_contract(neuron: str) -> None:
    check_discriminator(network("disc", "snn", neuron, (1, 32, 32)), (1, 32, 32))


@pytest.mark.parametrize("neuron", OURS)
def test_network_of_the_neuron_learns(neuron: str) -> None:
    """Spikes in the last layer draw 16 given images of two greys, by their surrogate gradients."""
    generator = network("gen", "snn_back", neuron, (1, 16, 16))
    z = random_current(16, 100).float()
    x = 0.5 * random_current(16, 1, 4, 4, seed=1).float().sign()
    x = x.repeat_interleave(4, 2).repeat_interleave(4, 3)  # [16, 1, 16, 16]
    adam = torch.optim.Adam(generator.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        loss = (generator(z) - x).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses[::10]


def test_every_neuron_with_an_equation_of_its_own_is_tested() -> None:
    builtin = {n for n, e in registry("neurons").entries().items() if e[0].source == "spikezoo-gan"}
    in_core = {n for n in builtin if "." not in n}  # dotted names are a library's own
    assert in_core == {"lif", "if", "plif", *OURS}
