"""The contract over every registered name, and proof that it catches what it is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikezoo import zoo
from spikezoo.backends import Backend
from spikezoo.backends.reference import REFERENCE
from spikezoo.catalog import names, registry
from spikezoo.errors import ContractError, OptionError
from spikezoo.neurons import Neuron, State
from spikezoo.neurons.lif import LIF
from spikezoo.spec import Part
from spikezoo.surrogates import atan, spike
from spikezoo.testing import check_backend, check_discriminator, check_generator, check_neuron

Shape = tuple[int, int, int]
torch.set_num_threads(1)  # small tensors: threads only wait for one another
SHAPES = [pytest.param((1, 32, 32), id="grey"), pytest.param((3, 16, 16), id="colour")]


def build(kind: str, name: str, shape: Shape, **options: str) -> nn.Module:
    """A registered network at its defaults, but small where it has a size."""
    torch.manual_seed(0)
    resolved = zoo.resolve(Part(kind, name, tuple(options.items())))
    small = {"width": 8, "model": "test_resnet"}
    return zoo.build(kind, name, {k: small.get(k, v) for k, v in resolved.items()}, shape)


# --- every registered name ------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", names("generators"))
def test_generator(name: str, shape: Shape) -> None:
    check_generator(build("gen", name, shape), shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", names("discriminators"))
def test_discriminator(name: str, shape: Shape) -> None:
    check_discriminator(build("disc", name, shape), shape)


@pytest.mark.parametrize("name", names("neurons"))
def test_neuron(name: str) -> None:
    check_neuron(registry("neurons").get(name))


@pytest.mark.parametrize("name", names("neurons"))
def test_neuron_compiles(name: str) -> None:
    neuron = registry("neurons").get(name)
    check_neuron(lambda: neuron(), compile=True)  # at its defaults only: compiling is slow


def test_backend() -> None:
    check_backend("reference")  # test_neuron takes every neuron to every backend


def test_native_backend_without_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a C compiler, on a GPU, or in float64."""
    monkeypatch.setattr("spikezoo.backends.kernel.LIBRARY", None)
    check_backend("native")


@pytest.mark.parametrize("options", [{"readout": name, "T": "7"} for name in names("readouts")])
@pytest.mark.parametrize("name", names("generators", "snn_*"))
def test_generator_with_options(name: str, options: dict[str, str]) -> None:
    check_generator(build("gen", name, (1, 16, 16), **options), (1, 16, 16))


@pytest.mark.parametrize("name", names("generators", "snn_*"))
def test_generator_of_one_time_step(name: str) -> None:
    check_generator(build("gen", name, (1, 16, 16), T="1"), (1, 16, 16))


@pytest.mark.parametrize("spectral_norm", ["false", "true"], ids=["plain", "spectral"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("name", names("discriminators", "*nn"))
def test_discriminator_with_options(name: str, norm: str, spectral_norm: str) -> None:
    shape = (1, 32, 32)
    if (name, norm, spectral_norm) == ("snn", "none", "true"):  # its layers would never fire
        with pytest.raises(OptionError, match="too small to fire"):
            build("disc", name, shape, norm=norm, spectral_norm=spectral_norm)
        return
    check_discriminator(build("disc", name, shape, norm=norm, spectral_norm=spectral_norm), shape)


def test_checks_leave_network_and_random_state_alone() -> None:
    network = build("gen", "snn_middle", (1, 16, 16))
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    check_generator(network, (1, 16, 16))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert network.training
    assert all(torch.equal(weights[k], tensor) for k, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


# --- broken generators ----------------------------------------------------------------------

SHAPE = (1, 8, 8)


class Small(nn.Module):
    """A sound generator of 8 x 8 images, for others to break: two spiking layers and a mean."""

    def __init__(self, T: int = 4) -> None:
        super().__init__()
        self.latent_dim, self.T = 10, T
        self.linear = nn.Linear(10, 4 * 8 * 8)
        self.norm = nn.BatchNorm2d(4)
        self.spikes1 = LIF()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        nn.init.normal_(self.conv1.weight, std=0.5)
        self.spikes2 = LIF()
        self.conv2 = nn.Conv2d(4, 1, 3, padding=1)

    def spikes(self, z: Tensor) -> Tensor:
        """z [N, 10] -> spikes [T, N, 4, 8, 8]."""
        x = self.norm(self.linear(z).unflatten(1, (4, 8, 8)))
        s = self.spikes1(x.expand(self.T, *x.shape))
        return self.spikes2(self.conv1(s.flatten(0, 1)).unflatten(0, s.shape[:2]))

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.conv2(self.spikes(z).mean(0)))


class IgnoresItsSpikes(Small):
    """Published fault 1: spikes are computed and left aside."""

    def forward(self, z: Tensor) -> Tensor:
        self.spikes(z)
        return torch.tanh(self.conv2(self.norm(self.linear(z).unflatten(1, (4, 8, 8)))))


class MixesSamples(Small):
    """Published fault 2: [T, N, *] is reshaped, not permuted, to [N, T, *]."""

    def forward(self, z: Tensor) -> Tensor:
        s = self.spikes(z)
        return torch.tanh(self.conv2(s.reshape(len(z), self.T, *s.shape[2:]).mean(1)))


class FirstLayerDead(Small):
    """Published fault 3: the current never reaches the threshold of the first LIF."""

    def __init__(self) -> None:
        super().__init__()
        self.spikes1 = LIF(threshold=100.0)


class TimeInChannels(Small):
    """Published fault 4: T is folded into channels, so a weight's shape depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(4 * self.T, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.conv2(self.spikes(z).transpose(0, 1).flatten(1, 2)))


class TimeIgnored(Small):
    """T cannot be set anew: the layers run 4 steps whatever it says."""

    def spikes(self, z: Tensor) -> Tensor:
        T, self.T = self.T, 4
        s = super().spikes(z)
        self.T = T
        return s


class MixesInEval(Small):
    def forward(self, z: Tensor) -> Tensor:
        image = super().forward(z)
        return torch.tanh(image - image.mean(0))


class TooBright(Small):
    def forward(self, z: Tensor) -> Tensor:
        return 1.1 + super().forward(z)


class Remembers(Small):
    """State that lives on from call to call."""

    def forward(self, z: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(z) / self.calls


class HasIdleParameter(Small):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(3, 3)


class SkipsALayer(Small):
    def __init__(self) -> None:
        super().__init__()
        self.spikes3 = LIF()


class GradedSpikes(Small):
    class Graded(LIF):
        def forward(self, current: Tensor) -> Tensor:
            return 0.5 * super().forward(current)

    def __init__(self) -> None:
        super().__init__()
        self.spikes2 = self.Graded()


FAULTS = [
    (IgnoresItsSpikes, r"ignores its spikes: silencing layer 'spikes1' changes nothing"),
    (MixesSamples, r"mixes the samples of a batch.*reshape across T and N"),
    (FirstLayerDead, r"spiking layer 'spikes1' of FirstLayerDead is dead: its firing rate is 0"),
    (TimeInChannels, r"made for T=4, run at T=5: T is a part of a weight's shape.*channels"),
    (TimeIgnored, r"'spikes1' of TimeIgnored gives \[4, 6, 4, 8, 8\] at T=5 and N=6"),
    (MixesInEval, r"mixes the samples of a batch"),
    (TooBright, r"reach from .* to .*, not in \[-1, 1\]"),
    (Remembers, r"mixes the samples|two calls .* differ"),
    (HasIdleParameter, r"parameter 'idle\.weight' .* gets no gradient"),
    (SkipsALayer, r"spiking layer 'spikes3' of SkipsALayer is never called"),
    (GradedSpikes, r"'spikes2' of GradedSpikes gives values other than 0 and 1"),
]


def test_small_generator_is_sound() -> None:
    torch.manual_seed(0)
    check_generator(Small(), SHAPE)


@pytest.mark.parametrize(("broken", "message"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_fault_of_a_generator_is_named(broken: type[Small], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ContractError, match=message):
        check_generator(broken(), SHAPE)


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ContractError, match=r"gives \[1, 1, 8, 8\] instead of \[1, 3, 8, 8\]"):
        check_generator(Small(), (3, 8, 8))


def test_refusing_another_T_is_allowed() -> None:
    class Refuses(TimeInChannels):
        def forward(self, z: Tensor) -> Tensor:
            if self.T != 4:
                raise OptionError("made for T=4 only")
            return super().forward(z)

    torch.manual_seed(0)
    check_generator(Refuses(), SHAPE)


# --- broken discriminators, neurons, backends -----------------------------------------------


class Judge(nn.Module):
    """A sound discriminator, for others to break."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(64, 8), nn.Linear(8, 1)

    def hidden(self, x: Tensor) -> Tensor:
        return self.linear1(x.flatten(1)).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.hidden(x)).squeeze(1)


class CutsTheGradient(Judge):
    def hidden(self, x: Tensor) -> Tensor:
        return super().hidden(x.detach())


class IsLinear(Judge):
    """Has a gradient, but no second one to learn from."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.linear2(self.hidden(flat.detach())).squeeze(1) + flat.sum(1)


class KeepsItsLastAxis(Judge):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unsqueeze(1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (CutsTheGradient, "a gradient penalty on CutsTheGradient fails"),
        (IsLinear, "has no gradient of its own|fails"),
        (KeepsItsLastAxis, r"gives \[1, 1\] instead of \[1\]"),
    ],
)
def test_fault_of_a_discriminator_is_named(broken: type[Judge], message: str) -> None:
    torch.manual_seed(0)
    check_discriminator(Judge(), SHAPE)
    with pytest.raises(ContractError, match=message):
        check_discriminator(broken(), SHAPE)


class IF(Neuron):
    """Integrate-and-fire with a learned threshold, sound: what a plugin's neuron looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.25))

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        h = v + current * self.scale
        spikes = spike(h - 1, atan, 2.0)
        return spikes.to(current.dtype), (h - spikes,)


class RemembersItsState(IF):
    def initial_state(self, current: Tensor) -> State:
        state: State = getattr(self, "last", super().initial_state(current))
        self.last = (torch.ones_like(state[0]),)
        return state if state[0].shape == current.shape else super().initial_state(current)


class StateInBfloat16(IF):
    def initial_state(self, current: Tensor) -> State:
        return (torch.zeros_like(current),)

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        spikes, (v,) = super().step(current, state)
        return spikes, (v.to(current.dtype),)


class KnowsTheTime(IF):
    """Fires by the number of steps since the call began, which no state carries."""

    def initial_state(self, current: Tensor) -> State:
        self.steps = 0
        return super().initial_state(current)

    def run(self, current: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        spikes, state = super().run(current, state)
        return torch.cat([0 * spikes[:1], spikes[1:]]), state


class FiresWithoutGradient(IF):
    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        spikes, state = super().step(current, state)
        return spikes.detach(), state


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (RemembersItsState, "called again: .* differs from the reference"),
        (StateInBfloat16, "the state is torch.bfloat16"),
        (KnowsTheTime, "cut in two: spikes differs .* first at time step 1"),
        (FiresWithoutGradient, "no gradient flows through the spikes"),
    ],
)
def test_fault_of_a_neuron_is_named(broken: type[IF], message: str) -> None:
    check_neuron(IF)
    with pytest.raises(ContractError, match=message):
        check_neuron(broken)


class Late:
    """A backend that fires on > instead of >=: only ties tell."""

    def supports(self, neuron: Neuron) -> bool:
        return True

    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        return REFERENCE.run(neuron, current - 1e-7, state)


class NoResetGradient(Late):
    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        detached = LIF(reset=neuron.reset, detach_reset=True)
        return REFERENCE.run(detached, current, state)


class Overwrites(Late):
    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        result = REFERENCE.run(neuron, current, state)
        current.data.mul_(2)
        return result


class Lacks(Late):
    def supports(self, neuron: Neuron) -> bool:
        return False


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Late(), r"grid-valued .* spikes differs from the reference .* first at time step \d"),
        (NoResetGradient(), "detach_reset=False .* gradient of current differs .* time step 0"),
        (Overwrites(), "overwrites its input"),
        (Lacks(), "backend 'broken' supports no registered neuron"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_fault_of_a_backend_is_named(broken: Backend, message: str) -> None:
    registry("backends").register("broken")(broken)
    try:
        with pytest.raises(ContractError, match=message):
            check_backend("broken")
    finally:
        registry("backends").unregister("broken")
