"""The operator behind LIF, IF and PLIF: in torch.compile, under DDP, with others' surrogates."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import spikezoo
from spikezoo.backends import fused, kernel
from spikezoo.catalog import registry
from spikezoo.neurons import Neuron

torch.set_num_threads(1)  # small tensors: threads only wait for one another

FAMILY = ("lif", "if", "plif")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["kernel", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The operator with its kernel, and as on a machine without a C compiler."""
    if request.param == "torch":
        monkeypatch.setattr(kernel, "LIBRARY", None)
    return str(request.param)


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# --- an operator like torch's own -----------------------------------------------------------


# The compiler itself looks at the .grad of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("from_rest", [True, False], ids=["rest", "state"])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_operator_keeps_what_torch_asks_of_one(
    path: str, order: torch.memory_format, dtype: torch.dtype, from_rest: bool, reset: str
) -> None:
    """torch's own examination: schema, gradients registered as they should, fake tensors of the
    shape, type and strides of real ones."""
    x = random(6, 3, 4, 4).to(dtype).contiguous(memory_format=order).view(3, 2, 3, 4, 4)
    v = None if from_rest else random(2, 3, 4, 4).to(torch.promote_types(dtype, torch.float32))
    beta = torch.tensor(0.5, requires_grad=True)
    equation = (1.0, reset, False, "atan", 2.0)
    state = None if v is None else v.clone().requires_grad_()
    torch.library.opcheck(fused.lif, (x.clone().requires_grad_(), state, beta, *equation))
    g_v = random(2, 3, 4, 4).to(torch.promote_types(dtype, torch.float32))
    tensors = (torch.ones_like(x), g_v, x, v, beta.detach())
    torch.library.opcheck(fused.lif_backward, (*tensors, True, *equation))


@pytest.mark.parametrize("name", FAMILY)
def test_compiles_without_a_graph_break(name: str, path: str, compiler: None) -> None:
    neuron, linear = spikezoo.neuron(name), nn.Linear(5, 7)

    def loss(x: Tensor) -> Tensor:
        spikes, (v,) = neuron.run(linear(x))
        return (spikes * spikes.cumsum(0)).sum() + v.square().sum()

    found = []
    for call in (torch.compile(loss, backend="aot_eager", fullgraph=True), loss):
        x = random(4, 3, 5).requires_grad_()
        inputs = [x, *linear.parameters(), *neuron.parameters()]
        found.append(torch.autograd.grad(call(x), inputs))
    for compiled, eager in zip(*found, strict=True):
        assert_close(compiled, eager)
        assert eager.any()


def test_compiled_graph_calls_the_operator(compiler: None) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(spikezoo.neuron("lif"), backend=keep, fullgraph=True)(random(4, 3))
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert [t for t in targets if "spikezoo" in t] == ["spikezoo.lif.default"]


# --- surrogates of others -------------------------------------------------------------------


def box(u: Tensor, alpha: float) -> Tensor:
    """A surrogate as a plugin registers it."""
    return alpha * (u.abs() < 0.5 / alpha).to(u.dtype) + 0.1 * torch.exp(-u.square())


@pytest.fixture
def box_surrogate() -> Iterator[str]:
    registry("surrogates").register("box_of_a_test")(box)
    yield "box_of_a_test"
    registry("surrogates").unregister("box_of_a_test")


@pytest.mark.parametrize("name", FAMILY)
def test_surrogate_that_the_kernel_does_not_know(
    name: str, box_surrogate: str, compiler: None
) -> None:
    neuron = spikezoo.neuron(name, surrogate=box_surrogate)
    assert not kernel.usable(fused._equation(neuron), torch.ones(1))

    def gradients(call: Any, backend: str, again: bool) -> list[Tensor]:
        neuron.backend = backend
        x = random(5, 4).requires_grad_()
        inputs = [x, *neuron.parameters()]
        first = torch.autograd.grad(call(x).square().sum(), inputs, create_graph=again)
        if not again:
            return list(first)
        return [*first, *torch.autograd.grad(first[0].square().sum(), inputs)]

    for again in (False, True):
        assert_close(gradients(neuron, "native", again), gradients(neuron, "reference", again))
    compiled = torch.compile(neuron, backend="aot_eager", fullgraph=True)
    assert_close(gradients(compiled, "native", False), gradients(neuron, "native", False))


# --- DDP ------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 1)
        self.spikes: Neuron = spikezoo.neuron("plif")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.spikes(self.first(x).expand(4, -1, -1)).mean(0)).squeeze(1)


def one_iteration(network: nn.Module, x: Tensor) -> None:
    network(x).square().mean().backward()


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    network = Network()
    one_iteration(nn.parallel.DistributedDataParallel(network), random(8, 6).chunk(2)[rank])
    if rank == 0:
        torch.save({name: p.grad for name, p in network.named_parameters()}, f"{folder}/gradients")
    torch.distributed.destroy_process_group()


def test_two_processes_under_ddp_have_the_gradients_of_one(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=one_of_two, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    found = torch.load(tmp_path / "gradients", weights_only=True)
    network = Network()
    one_iteration(network, random(8, 6))
    for name, p in network.named_parameters():
        assert_close(found[name], p.grad)
        assert p.grad is not None
        assert p.grad.any()
