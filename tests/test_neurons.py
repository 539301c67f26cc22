"""Neurons against other libraries, closed forms and golden values; backends against each other."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import spikezoo
from spikezoo.backends import kernel
from spikezoo.catalog import names, registry
from spikezoo.errors import OptionError, UnknownNameError
from spikezoo.neurons import State
from spikezoo.neurons.lif import LIF
from spikezoo.readouts import Mean, Membrane, Weighted
from spikezoo.surrogates import spike

with warnings.catch_warnings():  # theirs, on import
    warnings.simplefilter("ignore")
    import snntorch
    from snntorch import surrogate as snn_surrogate
    from spikingjelly.activation_based import functional as sj_functional
    from spikingjelly.activation_based import neuron as sj_neuron
    from spikingjelly.activation_based import surrogate as sj_surrogate

torch.set_num_threads(1)  # small tensors: threads only wait for one another

RESETS = list(itertools.product(["soft", "hard"], [False, True]))
Run = Callable[[LIF, Tensor], tuple[Tensor, Tensor]]  # current -> spikes, last v


def random_current(*shape: int, seed: int = 0, grid: bool = False) -> Tensor:
    x = 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return ((4 * x).round() / 4 if grid else x).requires_grad_()


def reference(neuron: LIF, x: Tensor) -> tuple[Tensor, Tensor]:
    neuron.backend = "reference"
    spikes, (v,) = neuron.run(x)
    return spikes, v


def gradient(spikes: Tensor, v: Tensor, x: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(spikes.shape, generator=g), torch.randn(v.shape, generator=g)]
    return torch.autograd.grad([spikes, v], [x], weights)[0]


# --- the equation: other libraries ----------------------------------------------------------


def by_snntorch(neuron: LIF, x: Tensor) -> tuple[Tensor, Tensor]:
    """snnTorch integrates and fires, on >= and with its ATan; we do the reset it does otherwise."""

    def fire(u: Tensor) -> Tensor:
        above = snn_surrogate.ATan.apply(u, neuron.alpha)  # fires on >
        return above + (u == 0).to(u)

    leaky = snntorch.Leaky(
        neuron.beta, threshold=neuron.threshold, reset_mechanism="none", spike_grad=fire
    )
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        s, h = leaky(current, v)
        reset = s.detach() if neuron.detach_reset else s
        v = h - reset * neuron.threshold if neuron.reset == "soft" else (1 - reset) * h
        spikes.append(s)
    return torch.stack(spikes), v


def by_spikingjelly_steps(neuron: LIF, x: Tensor) -> tuple[Tensor, Tensor]:
    fire = sj_surrogate.ATan(neuron.alpha)
    v_reset = None if neuron.reset == "soft" else 0.0
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        s, v = sj_functional.if_step(
            current, neuron.beta * v, neuron.threshold, v_reset, fire, neuron.detach_reset
        )
        spikes.append(s)
    return torch.stack(spikes), v


def by_spikingjelly_layer(neuron: LIF, x: Tensor) -> tuple[Tensor, Tensor]:
    layer = sj_neuron.LIFNode(
        tau=1 / (1 - neuron.beta),
        decay_input=False,
        v_threshold=neuron.threshold,
        v_reset=None if neuron.reset == "soft" else 0.0,
        surrogate_function=sj_surrogate.ATan(neuron.alpha),
        detach_reset=neuron.detach_reset,
        step_mode="m",
    )
    return layer(x), layer.v


@pytest.mark.parametrize(("reset", "detach_reset"), RESETS)
@pytest.mark.parametrize("grid", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize(("beta", "threshold"), [(0.5, 1.0), (0.75, 0.5), (0.9, 1.3), (0.25, 1.0)])
@pytest.mark.parametrize(
    ("other", "tolerance"),
    [(by_snntorch, 0.0), (by_spikingjelly_steps, 0.0), (by_spikingjelly_layer, 2e-6)],
)
def test_reference_equals_other_libraries(
    other: Run,
    tolerance: float,
    beta: float,
    threshold: float,
    grid: bool,
    reset: Any,
    detach_reset: bool,
) -> None:
    neuron = LIF(beta=beta, threshold=threshold, reset=reset, detach_reset=detach_reset)
    x = random_current(16, 4, 25, grid=grid)
    ours, v = reference(neuron, x)
    theirs, their_v = other(neuron, x)
    assert 0.02 < ours.mean() < 0.98
    assert torch.equal(ours, theirs)
    assert_close(v, their_v, rtol=0, atol=tolerance)
    wanted = gradient(theirs, their_v, x)
    assert_close(gradient(ours, v, x), wanted, rtol=2 * tolerance, atol=2 * tolerance)


# --- the equation: closed forms and golden values -------------------------------------------


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("x", [0.15, 0.4, 0.75, 1.2])
def test_first_spike_under_constant_current_is_where_the_formula_says(
    beta: float, x: float
) -> None:
    # Without a spike h[t] = x (1 - beta^t) / (1 - beta) for t = 1, 2, ...; it meets the
    # threshold 1 first at t = ceil(log(1 - (1 - beta) / x) / log(beta)), or never.
    spikes, v = reference(LIF(beta=beta), torch.full((60, 1), x))
    fixed_point = x / (1 - beta)
    if fixed_point <= 1:
        assert not spikes.any()
        assert_close(v.item(), fixed_point * (1 - beta**60), rtol=1e-5, atol=0)
    else:
        first = math.ceil(math.log(1 - (1 - beta) / x) / math.log(beta)) if x < 1 else 1
        assert spikes[:, 0].nonzero()[0].item() + 1 == first


def test_subthreshold_potential_settles_at_current_over_leak() -> None:
    spikes, v = reference(LIF(beta=0.8), torch.full((100, 1), 0.19))
    assert not spikes.any()
    assert_close(v.item(), 0.19 / (1 - 0.8), rtol=1e-6, atol=0)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_without_leak_soft_reset_loses_no_current(reset: Any) -> None:
    spikes, v = reference(LIF(beta=1.0, reset=reset), torch.full((40, 1), 0.375))
    # soft: threshold x spikes + v = all current; hard: every third step reaches 1.125.
    assert spikes.sum() == (15 if reset == "soft" else 13)
    assert v.item() == (0.0 if reset == "soft" else 0.375)


@pytest.mark.parametrize(
    ("reset", "spikes", "v"),
    [
        ("soft", [0, 1, 1, 0, 0], 0.5),  # h = 0.75, 1.125, 1 (a tie fires), 0.5, 0.5
        ("hard", [0, 1, 0, 0, 0], 0.734375),  # h = 0.75, 1.125, 0.9375, 0.96875, 0.734375
    ],
)
def test_golden_values(reset: Any, spikes: list[int], v: float) -> None:
    current = torch.tensor([0.75, 0.75, 0.9375, 0.5, 0.25])[:, None]
    ours, last = reference(LIF(beta=0.5, reset=reset), current)
    assert ours[:, 0].tolist() == spikes
    assert last.item() == v


@pytest.mark.parametrize("backend", names("backends"))
def test_potential_equal_to_the_threshold_fires(backend: str) -> None:
    neuron = spikezoo.neuron("lif", backend=backend)
    below = math.nextafter(1.0, 0.0)
    current = torch.tensor([[1.0, below, 0.0, -1.0]], dtype=torch.float64)
    assert neuron(current).tolist() == [[1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.5}, r"beta is a decay in \[0, 1\], given 1.5"),
        ({"beta": math.nan}, "beta is a decay"),
        ({"threshold": 0.0}, "threshold is above 0, given 0.0"),
        ({"alpha": -1.0}, "alpha is above 0, given -1.0"),
        ({"reset": "none"}, "reset is 'soft' or 'hard', given 'none'"),
    ],
)
def test_bad_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        spikezoo.neuron("lif", **options)


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'treshold'; did you mean 'threshold'"):
        spikezoo.neuron("lif", treshold=1.0)


# --- surrogates -----------------------------------------------------------------------------

ALPHAS = [0.5, 2.0, 25.0]
U = torch.linspace(-2, 2, 401, dtype=torch.float64)
PRIMITIVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "atan": lambda u, a: torch.atan(math.pi / 2 * a * u) / math.pi,
    "sigmoid": lambda u, a: torch.sigmoid(a * u),
    "fast_sigmoid": lambda u, a: u / (1 + a * u.abs()),
    "triangle": lambda u, a: _triangle_primitive((a * u).clamp(-1, 1)),
    "straight_through": lambda u, a: u,
    "erf": lambda u, a: torch.erf(a * u) / 2,
}


def _triangle_primitive(w: Tensor) -> Tensor:
    return w - w.abs() * w / 2


LIBRARIES: dict[str, Callable[[float], Callable[[Tensor], Tensor]]] = {
    "spikingjelly atan": lambda a: sj_surrogate.ATan(a),
    "spikingjelly sigmoid": lambda a: sj_surrogate.Sigmoid(a),
    "spikingjelly erf": lambda a: sj_surrogate.Erf(a),
    "spikingjelly triangle": lambda a: sj_surrogate.PiecewiseQuadratic(a),
    # fast_sigmoid(k) = (2/k) SoftSign(k)
    "spikingjelly fast_sigmoid": lambda a: lambda u: 2 / a * sj_surrogate.SoftSign(a)(u),
    "snntorch atan": lambda a: snn_surrogate.atan(a),
    "snntorch fast_sigmoid": lambda a: snn_surrogate.fast_sigmoid(a),
    "snntorch straight_through": lambda a: snn_surrogate.straight_through_estimator(),
}


def derivative(fire: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    u = u.clone().requires_grad_()
    return torch.autograd.grad(fire(u).sum(), u)[0]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", names("surrogates"))
def test_surrogate_is_the_derivative_of_its_primitive(name: str, alpha: float) -> None:
    surrogate = registry("surrogates").get(name)
    wanted = derivative(lambda u: PRIMITIVES[name](u, alpha), U)
    assert_close(surrogate(U, alpha), wanted, rtol=1e-9, atol=1e-12)
    assert_close(derivative(lambda u: spike(u, surrogate, alpha), U), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", ["atan", "sigmoid", "triangle", "erf"])
def test_surrogate_stands_for_a_step_of_height_one(name: str, alpha: float) -> None:
    u = torch.linspace(-200, 200, 400_001, dtype=torch.float64)
    area = torch.trapezoid(registry("surrogates").get(name)(u, alpha), u)
    # the arc tangent's tails reach beyond the interval: 2 / (pi^2 / 2 alpha 200)
    assert_close(area.item(), 1.0, rtol=0, atol=5e-3)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_surrogate_equals_the_libraries(library: str, alpha: float) -> None:
    surrogate = registry("surrogates").get(library.split()[1])
    u = torch.linspace(-3, 3, 200)  # meets no kink
    theirs = derivative(LIBRARIES[library](alpha), u)
    assert_close(surrogate(u, alpha), theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", names("surrogates"))
def test_surrogate_is_finite_and_even_with_finite_slope(name: str) -> None:
    surrogate = registry("surrogates").get(name)
    for alpha in ALPHAS:
        u = torch.tensor([0.0, 1e-30, 0.3, 4.0, 88.0, 1e4, 1e19]).requires_grad_()
        values = surrogate(u, alpha)
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert_close(surrogate(-u, alpha), values, rtol=1e-4, atol=1e-5)
        if values.requires_grad:
            (slope,) = torch.autograd.grad(values.sum(), u)
            assert slope.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1e-3, *ALPHAS, 1e3])
@pytest.mark.parametrize("name", names("surrogates"))
def test_firing_is_finite_in_both_derivatives_for_every_input(
    name: str, alpha: float, dtype: torch.dtype
) -> None:
    surrogate = registry("surrogates").get(name)
    tiny, most = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    sizes = torch.tensor([0.0, tiny, 1e-30, 1.0, 1e19, 1e30, 1e38, most, math.inf], dtype=dtype)
    u = torch.cat([-sizes, sizes]).requires_grad_()
    spikes = spike(u, surrogate, alpha)
    assert spikes.tolist() == (u >= 0).to(dtype).tolist()
    weight = torch.ones_like(u, requires_grad=True)
    (first,) = torch.autograd.grad(spikes, u, weight, create_graph=True)
    assert first.isfinite().all()
    assert_close(first[: len(sizes)], first[len(sizes) :], rtol=0, atol=1e-6 * alpha)
    second = torch.autograd.grad(first.sum(), [u, weight], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in second)
    assert surrogate(u.detach(), alpha).isfinite().all()  # as backends use it


def test_every_surrogate_is_tested_here() -> None:
    builtin = [n for n in names("surrogates") if "spikezoo" in registry("surrogates").source(n)]
    assert sorted(PRIMITIVES) == builtin


# --- native ---------------------------------------------------------------------------------


@pytest.mark.parametrize("with_kernel", [True, False], ids=["kernel", "torch"])
@settings(max_examples=100)
@given(
    T=st.integers(1, 16),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    options=st.fixed_dictionaries(
        {
            "beta": st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
            "threshold": st.sampled_from([0.1, 0.5, 1.0, 1.7]),
            "reset": st.sampled_from(["soft", "hard"]),
            "detach_reset": st.booleans(),
            "surrogate": st.sampled_from(names("surrogates")),
            "alpha": st.sampled_from([0.5, 2.0, 5.0]),
        }
    ),
    grid=st.booleans(),
    with_state=st.booleans(),
    parts=st.sampled_from(["spikes", "v", "both"]),
    seed=st.integers(0, 1000),
)
def test_native_equals_reference(
    with_kernel: bool,
    T: int,
    shape: list[int],
    options: dict[str, Any],
    grid: bool,
    with_state: bool,
    parts: str,
    seed: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not with_kernel:
            patch.setattr(kernel, "LIBRARY", None)
        compare_native(T, shape, options, grid, with_state, parts, seed)


def compare_native(
    T: int,
    shape: list[int],
    options: dict[str, Any],
    grid: bool,
    with_state: bool,
    parts: str,
    seed: int,
) -> None:
    x = random_current(T, *shape, seed=seed, grid=grid)
    v = random_current(*shape, seed=seed + 1, grid=grid)
    g = torch.Generator().manual_seed(seed)
    w, w_v = torch.randn(x.shape, generator=g), torch.randn(v.shape, generator=g)

    def results(backend: str) -> list[Tensor]:
        neuron = spikezoo.neuron("lif", backend=backend, **options)
        spikes, (last,) = neuron.run(x, (v,) if with_state else None)
        loss = (spikes * w).sum() * (parts != "v") + (last * w_v).sum() * (parts != "spikes")
        inputs = [x, v] if with_state else [x]
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        graphed = torch.autograd.grad(loss, inputs, create_graph=True)
        norm = torch.stack([g.square().sum() for g in graphed]).sum()
        second: tuple[Tensor, ...] = ()
        if norm.requires_grad:  # not so for a constant surrogate
            second = torch.autograd.grad(norm, inputs, allow_unused=True, materialize_grads=True)
        return [spikes.detach(), last.detach(), *first, *graphed, *second]

    ours, wanted = results("native"), results("reference")
    assert torch.equal(ours[0], wanted[0])
    assert torch.equal(ours[1], wanted[1])
    assert len(ours) == len(wanted)
    for found, right in zip(ours[2:], wanted[2:], strict=True):
        size = max(1.0, right.abs().max().item()) if right.numel() else 1.0
        assert_close(found, right, rtol=0, atol=1e-4 * size)


def test_native_equals_reference_in_several_threads() -> None:
    torch.set_num_threads(2)
    try:
        compare_native(4, [3, 70, 100], {"beta": 0.9}, False, True, "both", 0)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("backend", names("backends"))
def test_state_given_as_one_number_is_that_of_every_element(backend: str) -> None:
    neuron = spikezoo.neuron("lif", backend=backend)
    x = random_current(3, 500)
    spikes, (v,) = neuron.run(x, (torch.tensor(0.75),))
    wanted, (wanted_v,) = neuron.run(x, (torch.full((500,), 0.75),))
    assert torch.equal(spikes, wanted)
    assert torch.equal(v, wanted_v)


@pytest.mark.parametrize("backend", names("backends"))
def test_state_that_came_from_the_same_current_counts_once(backend: str) -> None:
    """A constant current in two runs; the second run's state depends on the current too."""

    def gradients(backend: str, again: bool) -> Tensor:
        neuron = spikezoo.neuron("lif", backend=backend)
        x = random_current(4, 3, 5)
        _, state = neuron.run(x)
        spikes, _ = neuron.run(x, state)
        return torch.autograd.grad(spikes.sum(), x, create_graph=again)[0].detach()

    for again in (False, True):
        assert_close(gradients(backend, again), gradients("reference", False))


@pytest.mark.parametrize("backend", names("backends"))
def test_gradient_matches_finite_differences_of_the_smooth_part(backend: str) -> None:
    """Where nothing fires the neuron is linear: v[T] = sum of beta^(T-t) x[t], exactly."""
    neuron = spikezoo.neuron("lif", backend=backend, beta=0.5, alpha=50.0, surrogate="triangle")
    x = torch.full((4, 1), 0.1, requires_grad=True)
    spikes, (v,) = neuron.run(x)
    assert not spikes.any()
    (g,) = torch.autograd.grad(v.sum(), x)
    assert g[:, 0].tolist() == [0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize("backend", names("backends"))
def test_state_stays_float32_under_bfloat16_autocast(backend: str) -> None:
    neuron = spikezoo.neuron("lif", backend=backend, beta=0.9)
    linear = torch.nn.Linear(8, 8)
    x = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        current = linear(x)
        spikes, (v,) = neuron.run(current)
    assert current.dtype == spikes.dtype == torch.bfloat16
    assert v.dtype == torch.float32
    wide, (wide_v,) = neuron.run(current.float())
    assert torch.equal(spikes.float(), wide)
    assert torch.equal(v, wide_v)


@pytest.mark.parametrize("backend", names("backends"))
def test_streaming_step_by_step_equals_one_run(backend: str) -> None:
    neuron = spikezoo.neuron("lif", backend=backend)
    x = random_current(9, 2, 3)
    whole, (last,) = neuron.run(x)
    state: State | None = None
    for t in range(9):
        spikes, state = neuron.run(x[t : t + 1], state)
        assert torch.equal(spikes[0], whole[t])
    assert state is not None
    assert torch.equal(state[0], last)


# --- readouts -------------------------------------------------------------------------------


def test_mean_is_the_firing_rate() -> None:
    spikes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])[:, None]
    assert Mean(4)(spikes).tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("T", [1, 2, 16])
def test_membrane_is_an_integrator_that_never_fires(beta: float, T: int) -> None:
    spikes = (random_current(T, 3, 4) > 0).float()
    v = torch.zeros(3, 4)
    for s in spikes:
        v = beta * v + s
    wanted = v / sum(beta**t for t in range(T))
    assert_close(Membrane(T, beta=beta)(spikes), wanted)
    assert_close(Membrane(T, beta=beta)(torch.ones(T, 2, 1)), torch.ones(2, 1))


def test_membrane_refuses_a_beta_that_is_no_decay() -> None:
    with pytest.raises(OptionError, match=r"readout\.beta is a decay in \[0, 1\], given 2"):
        Membrane(4, beta=2)


def test_weighted_starts_as_the_mean_and_learns_one_weight_per_step() -> None:
    spikes = (random_current(5, 3, 4) > 0).float()
    readout = Weighted(5)
    assert_close(readout(spikes), spikes.mean(0))
    assert [list(p.shape) for p in readout.parameters()] == [[5]]
    readout(spikes).square().sum().backward()
    assert readout.weight is not None
    assert readout.weight.grad is not None
    assert readout.weight.grad.all()
    with torch.no_grad():
        readout.weight[2] = 30.0  # the softmax of it is 1
    assert_close(readout(spikes), spikes[2])


def test_weighted_over_one_step_has_nothing_to_learn() -> None:
    spikes = torch.ones(1, 2, 3)
    assert torch.equal(Weighted(1)(spikes), spikes[0])
    assert not list(Weighted(1).parameters())


@pytest.mark.parametrize("T", [1, 5])
def test_weighted_refuses_another_T(T: int) -> None:
    with pytest.raises(OptionError, match=f"each of T={T} steps and cannot read T=6.*readout=mean"):
        Weighted(T)(torch.zeros(6, 2, 1))


@pytest.mark.parametrize("name", names("readouts"))
def test_readout_keeps_range_dtype_and_samples(name: str) -> None:
    readout = registry("readouts").get(name)(7)
    spikes = (random_current(7, 5, 2, 2) > 0).float()
    out = readout(spikes)
    assert ((out >= 0) & (out <= 1)).all()
    assert torch.equal(readout(spikes[:, 2:3]), out[2:3])
    narrow = readout(spikes.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert_close(narrow.float(), out, rtol=0, atol=2**-6)  # a bfloat16 has 8 bits
