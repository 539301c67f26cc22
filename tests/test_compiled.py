"""Neurons without a path of their own: large currents run their `step` compiled by torch."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from spikezoo.backends import native
from spikezoo.neurons import Neuron, State
from spikezoo.surrogates import atan, spike

torch.set_num_threads(1)  # compiled in this process, where nothing else runs

T, N = 4, native.WORTH_COMPILING // 4


class Adaptive(Neuron):
    """What a plugin's neuron looks like: two states, two learned parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.75))
        self.rise = nn.Parameter(torch.tensor(0.5))

    def initial_state(self, current: Tensor) -> State:
        (v,) = super().initial_state(current)
        return v, torch.zeros_like(v)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        v, a = state
        h = self.beta * v + current
        spikes = spike(h - 1 - self.rise * a, atan, 2.0)
        return spikes.to(current.dtype), (h - spikes, 0.5 * a + spikes)


class KnowsWhoRunsIt(Adaptive):
    """Fires everywhere, but only where a compiler reads it."""

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        spikes, state = super().step(current, state)
        return (torch.ones_like(spikes) if torch.compiler.is_compiling() else 0 * spikes), state


class NoCompiler(Adaptive):
    """A class of its own: what is compiled once is not compiled again."""

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        spikes, (v, a) = super().step(current, state)
        return spikes, (0.8125 * v, a)  # a graph that no cache holds


def results(neuron: Neuron, backend: str, x: Tensor) -> dict[str, Tensor]:
    """Of a run from a given state: spikes, last state, first and second gradients."""
    neuron.backend = backend
    g = torch.Generator().manual_seed(1)
    state = tuple(torch.rand(2, N, generator=g).requires_grad_())
    spikes, last = neuron.run(x, state)
    weights = [torch.randn(s.shape, generator=g) for s in (spikes, *last)]
    inputs = {"x": x, "v": state[0], "a": state[1], **dict(neuron.named_parameters())}
    first = torch.autograd.grad([spikes, *last], inputs.values(), weights, retain_graph=True)
    graphed = torch.autograd.grad([spikes, *last], inputs.values(), weights, create_graph=True)
    norm = torch.stack([f.square().sum() for f in graphed[:3]]).sum()
    second = torch.autograd.grad(norm, inputs.values())
    found = {"spikes": spikes, "last v": last[0], "last a": last[1]}
    found |= {f"gradient of {k}": f for k, f in zip(inputs, first, strict=True)}
    found |= {f"second gradient of {k}": f for k, f in zip(inputs, second, strict=True)}
    return found


def current() -> Tensor:
    return torch.randn(T, N, generator=torch.Generator().manual_seed(0)).requires_grad_()


def compare(neuron: Neuron) -> None:
    x = current()
    found, wanted = results(neuron, "native", x), results(neuron, "reference", x)
    assert 0.02 < wanted["spikes"].mean() < 0.98
    assert torch.equal(found.pop("spikes"), wanted["spikes"])
    for what, values in found.items():
        size = wanted[what].abs().max().item()
        assert_close(values, wanted[what], rtol=0, atol=1e-5 * size, msg=lambda m, w=what: w + m)


# The compiler itself looks at the .grad of states that are not leaves, and silences this as it can.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_large_current_is_compiled_and_agrees_with_reference(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "spikezoo"):
        x = current()
        assert KnowsWhoRunsIt()(x).all()
        assert not KnowsWhoRunsIt()(x[:, :100]).any()  # not worth compiling
        neuron = Adaptive()
        compare(neuron)
    assert not [r for r in caplog.records if r.name.startswith("spikezoo")]
    gone = weakref.ref(neuron)
    del neuron
    gc.collect()
    assert gone() is None  # what was compiled keeps no layer alive


def test_step_that_cannot_be_compiled_runs_as_it_is_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with caplog.at_level(logging.WARNING, "spikezoo"):
        compare(NoCompiler())
        NoCompiler()(current())
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("spikezoo")]
    assert [m.partition(":")[0] for m in messages] == ["NoCompiler runs uncompiled"]
