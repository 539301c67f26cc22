"""The operator behind LIF, IF and PLIF: in torch.compile, under DDP, with others' surrogates."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.hooks import RemovableHandle

import spikezoo
from spikezoo import time_axis
from spikezoo.backends import fused, kernel
from spikezoo.backends.native import read_out
from spikezoo.catalog import registry
from spikezoo.describe import describe
from spikezoo.monitor import firing_rates
from spikezoo.neurons import Neuron
from spikezoo.readouts import Mean

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
    g_v = random(2, 3, 4, 4).to(torch.promote_types(dtype, torch.float32))
    for current in (x, x[:1]):  # the other is the same at each of three steps
        tensors = (current.clone().requires_grad_(), state, beta)
        torch.library.opcheck(fused.lif, (*tensors, 3, *equation))
        if path == "kernel" and dtype != torch.float64:
            torch.library.opcheck(fused.lif_rate, (*tensors, 3, *equation))
        tensors = (torch.ones_like(x), g_v, current, v, beta.detach())
        torch.library.opcheck(fused.lif_backward, (*tensors, 3, True, *equation))


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("expanded", [False, True])
def test_compiles_without_a_graph_break(
    name: str, expanded: bool, path: str, compiler: None
) -> None:
    neuron, linear = spikezoo.neuron(name), nn.Linear(5, 7)

    def loss(x: Tensor) -> Tensor:
        current = time_axis.expand(linear(x[0]), 4) if expanded else linear(x)
        spikes, (v,) = neuron.run(current)
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


# --- a current that is the same at every time step ------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("T", [1, 4, 7])
def test_expanded_current_equals_one_written_out(
    name: str, dtype: torch.dtype, T: int, path: str
) -> None:
    neuron = spikezoo.neuron(name, beta=0.9) if name != "if" else spikezoo.neuron(name)
    weight = random(T, 2, 3, 4, 4, seed=1).to(dtype)
    found = []
    for written in (False, True):
        x = random(2, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        current = time_axis.expand(x, T)
        spikes, (v,) = neuron.run(torch.stack(list(current)) if written else current)
        loss = (spikes * weight).sum() + v.sum()
        inputs = [x, *neuron.parameters()]
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        graphed = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(graphed[0].square().sum(), inputs)
        found.append([spikes, v, *first, *graphed, *second])
    for ours, wanted in zip(*found, strict=True):
        size = wanted.abs().max().item()
        bits = 1e-2 if dtype == torch.bfloat16 else 1e-5
        assert_close(ours, wanted, rtol=0, atol=bits * size)
    assert torch.equal(found[0][0], found[1][0])


def test_expanded_current_is_read_once_and_its_gradient_written_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    read, written, forward, backward = [], [], kernel.forward, kernel.backward

    def watch_forward(equation: Any, current: Tensor, *rest: Any) -> Any:
        read.append((current.data_ptr(), current.shape))
        return forward(equation, current, *rest)

    def watch_backward(*inputs: Any) -> Any:
        found = backward(*inputs)
        written.append((found[0].data_ptr(), found[0].shape))
        return found

    monkeypatch.setattr(kernel, "forward", watch_forward)
    monkeypatch.setattr(kernel, "backward", watch_backward)
    spikezoo.neuron("lif")(time_axis.expand(x, 5)).sum().backward()
    assert x.grad is not None
    assert read == [(x.data_ptr(), (1, *x.shape))]
    assert written == [(x.grad.data_ptr(), (1, *x.shape))]


def test_leaf_of_stride_0_keeps_a_gradient_for_each_step(path: str) -> None:
    leaf = random(2, 3).expand(4, 2, 3).requires_grad_()
    copy = leaf.detach().clone().requires_grad_()
    for x in (leaf, copy):
        (spikezoo.neuron("lif")(x) * random(4, 2, 3, seed=1)).sum().backward()
    assert_close(leaf.grad, copy.grad)


# --- a mean readout straight behind ---------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("T", [1, 3, 7, 300])
def test_mean_of_spikes_that_are_never_stored(
    name: str, dtype: torch.dtype, expanded: bool, T: int
) -> None:
    neuron, readout = spikezoo.neuron(name), Mean(T)
    x = random(2 if expanded else 2 * T, 3, 4, 4).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = random(2, 3, 4, 4, seed=1).to(dtype)

    def results(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        rate = call(time_axis.expand(x, T) if expanded else x.view(T, 2, 3, 4, 4))
        loss, inputs = (rate * weight).sum(), [x, *neuron.parameters()]
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        graphed = torch.autograd.grad(loss, inputs, create_graph=True)
        return [rate, *first, *graphed, *torch.autograd.grad(graphed[0].square().sum(), inputs)]

    ours, wanted = (
        results(lambda c: read_out(neuron, readout, c)),
        results(lambda c: readout(neuron(c))),
    )
    assert torch.equal(ours[0], wanted[0])
    assert ours[0].stride() == wanted[0].stride()
    for found, right in zip(ours[1:], wanted[1:], strict=True):
        bits = 1e-2 if dtype == torch.bfloat16 else 1e-5
        assert_close(found, right, rtol=0, atol=bits * right.abs().max().item())


def hook(layer: nn.Module, kind: str, seen: list[str]) -> RemovableHandle:
    def note(*_: Any) -> None:
        seen.append(kind)

    if kind == "of all modules":
        return nn.modules.module.register_module_forward_hook(
            lambda module, *_: note() if module is layer else None
        )
    handle: RemovableHandle = getattr(layer, f"register_{kind}_hook")(note)
    return handle


@pytest.mark.parametrize("layer", ["spikes", "readout"])
@pytest.mark.parametrize(
    "kind", ["forward", "forward_pre", "full_backward", "full_backward_pre", "of all modules"]
)
def test_hooks_see_the_spikes(kind: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = spikezoo.create("gen:snn_middle,width=4+disc:ann@digits").generator.eval()
    z = random(2, 100).requires_grad_()
    plain = network(z)
    seen: list[str] = []
    handle = hook(network.get_submodule(layer), kind, seen)
    monkeypatch.setattr(kernel, "rate", None)  # not to be called
    try:
        images = network(z)
        images.sum().backward()
    finally:
        handle.remove()
    assert seen == [kind]
    assert torch.equal(images, plain)


def test_without_hooks_no_spikes_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    network = spikezoo.create("gen:snn_middle,width=4+disc:ann@digits").generator.eval()
    z = random(2, 100)
    with firing_rates(network) as rates:
        plain = network(z)
    assert 0 < rates["spikes"] < 1
    monkeypatch.setattr(kernel, "forward", None)  # not to be called
    assert torch.equal(network(z), plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", ["snn_middle", "snn_full"])
def test_whole_generator_compiles_without_a_graph_break(name: str, compiler: None) -> None:
    network = spikezoo.create(f"gen:{name},width=4+disc:ann@digits").generator.eval()
    z = random(2, 100)
    # Not aot_eager, in which torch takes the strides of a batch norm's gradient for others.
    compiled = torch.compile(network, fullgraph=True)
    found = []
    for call in (compiled, network):
        images = call(z)
        found.append([images, *torch.autograd.grad(images.square().sum(), network.parameters())])
    for ours, wanted in zip(*found, strict=True):
        assert_close(ours, wanted)


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_but_the_input_is_saved(
    name: str, expanded: bool, dtype: torch.dtype, path: str
) -> None:
    neuron = spikezoo.neuron(name)
    shape = (2, 3, 4, 4) if expanded else (8, 2, 3, 4, 4)
    x = random(*shape).to(dtype).requires_grad_()
    current = time_axis.expand(x, 8) if expanded else x
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        neuron.run(current)
    inside = [s for s in saved if s.numel() > 1]  # beta is one number
    assert [s.data_ptr() for s in inside] == [x.data_ptr()]
    assert sum(s.numel() for s in inside) == x.numel()


def test_state_is_saved_where_one_is_given() -> None:
    x, v = random(8, 5).requires_grad_(), random(5)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        spikezoo.neuron("lif").run(x, (v,))
    assert {x.data_ptr(), v.data_ptr()} <= set(saved)
    assert len(saved) == 3  # and beta


# --- surrogates of the kernel ---------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 2.0, 25.0])
@pytest.mark.parametrize("surrogate", kernel.SURROGATES)
def test_kernel_derives_as_precisely_as_float32_can(surrogate: str, alpha: float) -> None:
    u = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([-1e38, -1e4, 1e4, 1e38])])
    x = (1 + u).requires_grad_()
    neuron = spikezoo.neuron("lif", surrogate=surrogate, alpha=alpha)
    assert kernel.usable(fused._equation(neuron), x)
    (found,) = torch.autograd.grad(neuron(x[None]).sum(), x)
    exact = (x.detach() - 1).double().clamp(-1e30, 1e30)
    wanted = registry("surrogates").get(surrogate)(exact, alpha)
    assert_close(found.double(), wanted, rtol=2e-5, atol=1e-6 * alpha)


@pytest.mark.parametrize("surrogate", kernel.SURROGATES)
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_current_that_is_no_number_is_not_hidden(surrogate: str, reset: str) -> None:
    """A network that diverges shows it in the gradients, on the kernel as in the reference."""
    x = torch.tensor([[0.5, 0.5], [0.5, torch.nan], [0.7, 0.7]], requires_grad=True)
    found = []
    for backend in ("native", "reference"):
        neuron = spikezoo.neuron("lif", surrogate=surrogate, reset=reset, backend=backend)
        spikes, (v,) = neuron.run(x)
        found.append([spikes, v, *torch.autograd.grad(spikes.sum() + v.sum(), x)])
    for ours, wanted in zip(*found, strict=True):
        assert_close(ours, wanted, equal_nan=True)


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


# What CUDA tensors take, which needs no GPU to be compiled and compared.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # as above
@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("lif", {}, 4),
        ("lif", {"reset": "hard", "detach_reset": True, "surrogate": "triangle"}, 4),
        ("plif", {"reset": "hard"}, 4),
        ("if", {}, 1),
    ],
)
def test_operator_compiled_in_torch(
    name: str,
    options: dict[str, Any],
    steps: int,
    compiler: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kernel, "LIBRARY", None)
    monkeypatch.setattr(fused, "COMPILED_ON", ("cpu",))
    neuron = spikezoo.neuron(name, **options)
    found = []
    for backend in ("native", "reference"):
        neuron.backend = backend
        x = random(steps, 3, 4, 8, 8).requires_grad_()
        current = x if steps > 1 else time_axis.expand(x[0], 4)
        spikes, state = neuron.run(current)
        loss = (spikes * random(*spikes.shape, seed=1)).sum() + state[0].square().sum()
        found.append([spikes, *torch.autograd.grad(loss, [x, *neuron.parameters()])])
    assert 0 < found[0][0].mean() < 1
    assert torch.equal(found[0][0], found[1][0])
    assert_close(found[0][1:], found[1][1:], rtol=1e-5, atol=1e-5)
    assert "uncompiled" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elements", [2**17, 2**17 + 3], ids=["aligned", "unaligned"])
def test_results_larger_than_the_caches(elements: int, dtype: torch.dtype) -> None:
    """They take another way to memory, unless their rows are not aligned."""
    neuron = spikezoo.neuron("lif", reset="hard")
    T = 17  # from 4 MB on
    found = []
    for backend in ("native", "reference"):
        neuron.backend = backend
        x = random(T, elements).to(dtype).requires_grad_()
        spikes = neuron(x)
        spikes.backward(random(T, elements, seed=1).to(dtype))
        found.append((spikes, x.grad))
    assert torch.equal(found[0][0], found[1][0])
    bits = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert_close(found[0][1], found[1][1], rtol=bits, atol=bits)


# --- sanitizers -----------------------------------------------------------------------------


@pytest.mark.parametrize("past_caches", ["1", "1LL<<40"])
def test_kernel_stays_within_its_buffers_and_the_language(past_caches: str, tmp_path: Path) -> None:
    """Built with the address and undefined-behaviour sanitizers, where the compiler has them; with
    every result stored past the caches, and with none."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    build = [compiler, "-g", "-O1", "-std=gnu11", "-fopenmp", "-ffp-contract=off"]
    build += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    build.append(f"-DPAST_CACHES=({past_caches})")
    program = tmp_path / "program"
    trial = tmp_path / "trial.c"
    trial.write_text("int main(void) { return 0; }")

    def run(source: Path) -> subprocess.CompletedProcess[str]:
        command = [*build, str(source), "-o", str(program), "-lm"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            return built
        return subprocess.run(
            [program], capture_output=True, text=True, check=False, env=environment
        )

    # Waiting threads sleep: with fewer cores than threads they would take each other's time.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    if run(trial).returncode:
        pytest.skip(f"{compiler} has no sanitizers here")
    ran = run(Path(__file__).with_name("sanitized_lif.c"))
    assert ran.returncode == 0, ran.stderr


# --- what is in use -------------------------------------------------------------------------


def test_show_says_what_computes(path: str) -> None:
    text = describe(spikezoo.Spec.parse("gen:snn_back+disc:ann@mnist"))
    wanted = {"kernel": "C kernel, 1 thread", "torch": "torch, since no C kernel was built"}[path]
    assert text.splitlines()[2] == f"lif, if and plif on the CPU: {wanted}"


# --- DDP ------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 1)
        self.spikes: Neuron = spikezoo.neuron("plif")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.spikes(time_axis.expand(self.first(x), 4)).mean(0)).squeeze(1)


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
