"""The contract as code: run by us over every registered name, by plugin authors over theirs.

    from spikezoo.testing import check_neuron
    check_neuron(MyNeuron)

Each check works on copies, leaves torch's random state as it found it, returns nothing, and raises
`ContractError` with what is wrong and where to look.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikezoo.backends import backends_of, set_backend
from spikezoo.catalog import registry
from spikezoo.errors import ContractError, OptionError
from spikezoo.monitor import spiking_layers
from spikezoo.neurons import Neuron, State

Shape = tuple[int, int, int]
N = 6
# Samples of one batch that differ by less than this share of the distance between two unrelated
# samples are the same: rounding moves a spike now and then, mixing moves far more.
SAME = 0.01


def check_generator(generator: nn.Module, shape: Shape) -> None:
    """Checks a generator of images (C, H, W): z [N, latent_dim] -> images [N, C, H, W].

    Image i depends on z[i] alone; every spiking layer fires and shapes the image; every parameter
    learns; calls agree; any batch size and T; weights and copies carry all there is.

    Raises:
        ContractError: the first thing that is wrong.
    """
    latent_dim = getattr(generator, "latent_dim", None)
    if not isinstance(latent_dim, int):
        raise ContractError(f"{_name(generator)} has no whole number latent_dim, {latent_dim=}")
    z = _normal(N, latent_dim, like=generator)
    with _own_random_state():
        network = _settled(generator, z)
        for n in (1, 2, N):
            images = _run(network, z[:n], f"a batch of {n}")
            _check_shape(network, images, (n, *shape))
            low, high = images.min().item(), images.max().item()
            _require(
                low >= -1 and high <= 1,  # false for NaN too
                f"images of {_name(network)} reach from {low:.4g} to {high:.4g}, not in [-1, 1]",
            )
        _check_network(network, z)


def check_discriminator(discriminator: nn.Module, shape: Shape) -> None:
    """Checks a discriminator of images (C, H, W): x [N, C, H, W] -> logits [N].

    All of `check_generator` that applies, and gradients with respect to the images that can be
    differentiated once more, as R1 and the gradient penalty need.

    Raises:
        ContractError: the first thing that is wrong.
    """
    x = _normal(N, *shape, like=discriminator).clamp(-1, 1)
    with _own_random_state():
        network = _settled(discriminator, x)
        for n in (1, 2, N):
            logits = _run(network, x[:n], f"a batch of {n}")
            _check_shape(network, logits, (n,))
            _require(bool(logits.isfinite().all()), f"logits of {_name(network)} are not finite")
        _check_network(network, x)
        _check_penalty(network, x)


def check_neuron(neuron: Callable[..., Neuron], *, compile: bool = False) -> None:
    """Checks a neuron, given as its class or a factory, on every backend that has it.

    Its spikes, state and gradients, first and second, equal those of the `reference` backend for
    many T, shapes, dtypes and memory layouts; with each `reset` and `detach_reset` where it has
    these options. A call leaves nothing behind, and a run can be cut in two. A stochastic neuron
    is checked in eval mode, where it draws nothing.

    Args:
        compile: also under torch.compile, which is slow.

    Raises:
        ContractError: the first thing that is wrong.
    """
    with _own_random_state():
        for layer, label in _variants(neuron):
            backends = backends_of(layer)
            _require(bool(backends), f"{label}: no backend that can be loaded has this neuron")
            for name in backends:
                _check_layer(layer, name, f"{label} on backend '{name}'", compile)


def check_backend(backend: str) -> None:
    """Checks a registered backend: every registered neuron that it has, as `check_neuron` does.

    Raises:
        ContractError: the first thing that is wrong.
    """
    found = False
    with _own_random_state():
        for name in registry("neurons").names():
            for layer, label in _variants(registry("neurons").get(name)):
                if registry("backends").get(backend).supports(layer):
                    found = True
                    _check_layer(layer, backend, f"{label} on backend '{backend}'")
    _require(found, f"backend '{backend}' supports no registered neuron")


# --- networks -------------------------------------------------------------------------------


def _check_network(network: nn.Module, x: Tensor) -> None:
    # Spikes first: where they are dead, most of the rest fails too and says less.
    _check_spiking(network, x)
    _check_samples(network, x)
    _check_time_steps(network, x)
    _check_repeats(network, x)
    _check_weights(network, x)
    _check_gradients(network, x)


def _check_spiking(network: nn.Module, x: Tensor) -> None:
    """Each fires, sometimes, and what the network makes depends on it."""
    plain, spikes = _record(network, x)
    for name, s in spikes.items():
        layer = f"spiking layer '{name}' of {_name(network)}"
        _require(bool(((s == 0) | (s == 1)).all()), f"{layer} gives values other than 0 and 1")
        rate = s.double().mean().item()
        _require(
            0 < rate < 1,
            f"{layer} is {'dead' if rate == 0 else 'saturated'}: its firing rate is {rate:g}; "
            "scale the current into it",
        )
    for name in spikes:
        zeroed = network.get_submodule(name).register_forward_hook(
            lambda _layer, _input, output: torch.zeros_like(output)
        )
        try:
            changed = not torch.equal(plain, _run(network, x, f"'{name}' silenced"))
        finally:
            zeroed.remove()
        _require(
            changed,
            f"{_name(network)} ignores its spikes: silencing layer '{name}' changes nothing",
        )


def _check_samples(network: nn.Module, x: Tensor) -> None:
    """Sample i of the output depends on sample i of the input alone."""
    plain = _run(network, x, "a batch")
    unrelated = _distance(plain, plain.roll(1, 0)).mean().item()
    _require(unrelated > 0, f"the output of {_name(network)} does not depend on its input")

    def check(found: Tensor, wanted: Tensor, how: str) -> None:
        gaps = _distance(found, wanted)
        _require(
            bool((gaps <= SAME * unrelated).all()),
            f"{_name(network)} mixes the samples of a batch: sample {int(gaps.argmax())} changes "
            f"by {gaps.max().item():.3g} {how} (two unrelated samples differ by {unrelated:.3g}); "
            "look for a reshape across T and N, or statistics over the batch in eval mode",
        )

    other = x.clone()
    other[-1] = x[0]
    check(_run(network, other, "a batch")[:-1], plain[:-1], f"when input {N - 1} does")
    check(_run(network, x.flip(0), "a batch").flip(0), plain, "when the batch is reversed")
    alone = torch.cat([_run(network, x[i : i + 1], "a batch of 1") for i in range(N)])
    check(alone, plain, "when it is computed alone")


def _check_time_steps(network: nn.Module, x: Tensor) -> None:
    """T can be set anew, so it is no part of any weight's shape; or the network refuses clearly."""
    if not spiking_layers(network):
        return
    T = getattr(network, "T", None)
    if not isinstance(T, int):
        raise ContractError(f"{_name(network)} has spiking layers and no whole number T, {T=}")
    other = deepcopy(network)
    for steps in (T, T + 1):
        other.T = steps  # type: ignore[assignment]  # nn.Module declares its attributes as modules
        try:
            _, spikes = _record(other, x)
        except OptionError:
            return  # a readout that learned one weight per time step says so
        except ContractError as error:
            raise ContractError(
                f"{error}; made for T={T}, run at T={steps}: T is a part of a weight's shape, "
                "perhaps folded into channels; time is the first axis of spikes, never a channel"
            ) from error
        for name, s in spikes.items():
            _require(
                s.shape[:2] == (steps, len(x)),
                f"spiking layer '{name}' of {_name(network)} gives {_shape(s)} at T={steps} and "
                f"N={len(x)}, not [T, N, *]",
            )


def _check_repeats(network: nn.Module, x: Tensor) -> None:
    """Nothing is kept between calls, and how the input lies in memory does not matter."""
    plain = _run(network, x, "a batch")
    _run(network, x.flip(0), "a batch")
    again = _run(network, x, "a batch")
    _require(torch.equal(plain, again), f"two calls of {_name(network)} in eval mode differ")
    strided = x.repeat_interleave(2, -1)[..., ::2]
    gaps = _distance(plain, _run(network, strided, "a non-contiguous batch"))
    near = bool((gaps <= SAME * _distance(plain, plain.roll(1, 0)).mean()).all())
    _require(near, f"{_name(network)} gives other values for a non-contiguous input")


def _check_weights(network: nn.Module, x: Tensor) -> None:
    """The weights, through safetensors and back, are all that tells two networks apart."""
    other = deepcopy(network)
    with _must(f"a safetensors round trip of {_name(network)}"):
        tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        data = safetensors.torch.save(tensors)
        for tensor in other.state_dict().values():
            tensor.zero_()
        other.load_state_dict(safetensors.torch.load(data), strict=True)
    same = torch.equal(_run(network, x, "a batch"), _run(other, x, "a batch"))
    _require(same, f"{_name(network)} computes something else after a safetensors round trip")


def _check_gradients(network: nn.Module, x: Tensor) -> None:
    """In training every parameter gets a gradient; afterwards the network can be copied."""
    network = deepcopy(network).train()
    with _must(f"a backward pass through {_name(network)}"):
        out = network(x)
        torch.autograd.backward(out, torch.randn_like(out))
    for name, parameter in network.named_parameters():
        g = torch.zeros(()) if parameter.grad is None else parameter.grad
        where = f"parameter '{name}' of {_name(network)}"
        _require(bool(g.any()), f"{where} gets no gradient: it cannot learn")
        _require(bool(g.isfinite().all()), f"the gradient of {where} is not finite")
    with _must(f"a deepcopy of {_name(network)} after a backward pass"):
        copy = deepcopy(network).eval()
    same = torch.equal(_run(network.eval(), x, "a batch"), _run(copy, x, "a batch"))
    _require(same, f"a deepcopy of {_name(network)} computes something else")


def _check_penalty(network: nn.Module, x: Tensor) -> None:
    """The gradient with respect to the images is finite, not zero, and differentiable."""
    network = deepcopy(network)
    x = x.clone().requires_grad_()
    with _must(f"a gradient penalty on {_name(network)}"):
        (g,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        torch.autograd.backward(g.square().sum())
    where = f"gradient of {_name(network)} with respect to its images"
    alive = g.flatten(1).any(1)
    _require(bool(alive.all()), f"the {where} is zero for image {int(alive.int().argmin())}")
    _require(bool(g.isfinite().all()), f"the {where} is not finite")
    second = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    _require(any(bool(h.any()) for h in second.values()), f"the {where} has no gradient of its own")
    for name, h in second.items():
        _require(bool(h.isfinite().all()), f"the second {where} is not finite at '{name}'")


def _settled(network: nn.Module, x: Tensor) -> nn.Module:
    """A copy in eval mode whose batch norms know the statistics of x, as those of a trained network
    would; with fresh ones a layer may be silent in eval mode only."""
    with _must(f"a deepcopy of {_name(network)}"):
        network = deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.momentum = 1.0
    _run(network.train(), x, "a batch in train mode")
    return network.eval()


def _record(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the spikes of each spiking layer by its name."""
    spikes: dict[str, Tensor] = {}
    layers = spiking_layers(network)
    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():

            def keep(_layer: nn.Module, _input: Any, output: Tensor, name: str = name) -> None:
                spikes[name] = output

            hooks.callback(layer.register_forward_hook(keep).remove)
        out = _run(network, x, "a batch")
    for name in layers:
        _require(name in spikes, f"spiking layer '{name}' of {_name(network)} is never called")
    return out, spikes


@torch.no_grad()
def _run(network: nn.Module, x: Tensor, what: str) -> Tensor:
    with _must(f"{_name(network)} on {what}"):
        out: Tensor = network(x)
    return out


# --- neurons --------------------------------------------------------------------------------


def _variants(neuron: Callable[..., Neuron]) -> Iterator[tuple[Neuron, str]]:
    """The neuron with each combination of those options of its own that change its equation."""
    known = inspect.signature(neuron).parameters
    choices: list[list[dict[str, Any]]] = [
        [{}, {"beta": 0.9, "threshold": 0.7}],  # the second rounds at every step
        [{"reset": "soft"}, {"reset": "hard"}],
        [{"detach_reset": False}, {"detach_reset": True}],
    ]
    seen = []
    for chosen in itertools.product(*choices):
        options = {k: v for choice in chosen for k, v in choice.items() if k in known}
        if options not in seen:
            seen.append(options)
            layer = neuron(**options)
            _require(isinstance(layer, Neuron), f"{_name(layer)} is no spikezoo.neurons.Neuron")
            layer.train(not layer.is_stochastic)  # draws of two runs cannot be compared
            yield layer, " ".join([_name(layer), *(f"{k}={v}" for k, v in options.items())])


def _currents(threshold: float) -> Iterator[tuple[str, Tensor]]:
    """Currents [T, N, *] of every T, shape, dtype and memory layout that networks meet."""
    for T, shape in ((1, (3,)), (2, (3, 5)), (4, (2, 3, 4, 4)), (16, (2, 7, 23))):
        x = 1.5 * threshold * _normal(T, *shape)
        yield f"random {_shape(x)}", x
        yield f"bfloat16 {_shape(x)}", x.bfloat16()
        # Multiples of a quarter of the threshold: h meets it exactly, again and again.
        yield f"grid-valued {_shape(x)}", (4 * x / threshold).round() * threshold / 4
        yield f"expanded over T {_shape(x)}", x[0].expand_as(x)
    x = 1.5 * threshold * _normal(5, 2, 3, 4, 4)
    yield f"every second time step of {_shape(x)}", x[::2]
    yield f"non-contiguous {_shape(x)}", x.transpose(0, 1).contiguous().transpose(0, 1)
    channels_last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    yield f"channels-last {_shape(x)}", channels_last.view(x.shape)


def _check_layer(layer: Neuron, backend: str, label: str, compile: bool = False) -> None:
    reference, layer = deepcopy(layer), deepcopy(layer)
    # A neuron that only a library has is compared with its one backend: with itself.
    if registry("backends").get("reference").supports(layer):
        set_backend(reference, "reference")
    set_backend(layer, backend)
    runs = (
        ("", layer.run),
        (", called again", layer.run),
        (", cut in two", partial(_halves, layer)),
    )
    for what, current in _currents(layer.threshold):
        wanted = _evaluate(reference, reference.run, current, f"{label}, {what} current, reference")
        for how, run in runs:
            where = f"{label}, {what} current{how}"
            _compare(_evaluate(layer, run, current, where), wanted, where)
    if compile:
        torch.compiler.reset()  # what was compiled for other constants counts against a limit
        compiled: Run = torch.compile(layer.run, backend="aot_eager")
        where = f"{label}, {what} current, compiled"
        # torch.compile has no double backward.
        _compare(_evaluate(layer, compiled, current, where, twice=False), wanted, where)


def _halves(layer: Neuron, current: Tensor) -> tuple[Tensor, State]:
    """A run cut in two, the state carried over; a single time step stays whole."""
    half = (len(current) + 1) // 2
    spikes, state = layer.run(current[:half])
    if half == len(current):
        return spikes, state
    rest, state = layer.run(current[half:], state)
    return torch.cat([spikes, rest]), state


Run = Callable[[Tensor], tuple[Tensor, State]]
Results = dict[str, tuple[Tensor, float]]  # what -> (values, tolerance)


def _evaluate(layer: Neuron, run: Run, current: Tensor, where: str, twice: bool = True) -> Results:
    """Spikes, last state, and the gradients of a random weighting of both; then the gradients of
    those gradients' norm, unless only once differentiated."""
    x = current.detach().requires_grad_()
    before = current.clone()
    with _must(f"{where}: a run"):
        spikes, state = run(x)
    _require(torch.equal(x, before), f"{where}: the run overwrites its input")
    _check_spikes(spikes, x, where)
    floats = [s for s in state if s.is_floating_point()]
    for s in floats:
        _require(s.dtype in (torch.float32, torch.float64), f"{where}: the state is {s.dtype}")
    floats = [s for s in floats if s.requires_grad]  # a neuron may detach a part of its state
    # The weights of spikes stand for the layers behind, which a gradient penalty reaches too.
    g_spikes = _normal(*spikes.shape, seed=1).to(spikes).requires_grad_()
    weights = [g_spikes, *(_normal(*s.shape, seed=2).to(s) for s in floats)]
    inputs = {"current": x, **dict(layer.named_parameters())}
    results: Results = {"spikes": (spikes, 0.0)}
    results |= {f"state[{i}]": (s, 1e-5) for i, s in enumerate(state)}
    # bfloat16 keeps 8 bits of a gradient.
    loose = 100 if x.dtype == torch.bfloat16 else 1
    with _must(f"{where}: a backward pass"):
        # Backends may take another path where a second backward pass is to follow: check both.
        for again in (False, True) if twice else (False,):
            first = _gradients([spikes, *floats], inputs.values(), weights, again, keep=twice)
            for key, g in zip(inputs, first, strict=True):
                results[f"gradient{' (differentiable)' * again} of {key}"] = (g, 1e-4 * loose)
        if twice:
            norm = torch.stack([g.float().square().sum() for g in first]).sum()
            inputs["gradient of the spikes"] = g_spikes
            second = _gradients([norm], inputs.values(), None, again=False, keep=False)
            for key, g in zip(inputs, second, strict=True):
                results[f"second gradient of {key}"] = (g, 3e-4 * loose)
    return results


def _gradients(
    outputs: list[Tensor],
    inputs: Iterable[Tensor],
    weights: list[Tensor] | None,
    again: bool,
    keep: bool,
) -> tuple[Tensor, ...]:
    if not outputs[0].requires_grad:  # a constant surrogate has no second derivative
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(
        outputs,
        list(inputs),
        weights,
        retain_graph=keep,
        create_graph=again,
        allow_unused=True,
        materialize_grads=True,
    )


def _check_spikes(spikes: Tensor, x: Tensor, where: str) -> None:
    _require(spikes.shape == x.shape, f"{where}: the spikes are {_shape(spikes)}")
    _require(spikes.dtype == x.dtype, f"{where}: the spikes are {spikes.dtype}, not {x.dtype}")
    _require(bool(((spikes == 0) | (spikes == 1)).all()), f"{where}: spikes are not all 0 or 1")
    _require(spikes.requires_grad, f"{where}: no gradient flows through the spikes")


def _compare(found: Results, wanted: Results, where: str) -> None:
    for what, (values, tolerance) in found.items():
        right = wanted[what][0].double()
        gap = (values.double() - right).abs()
        limit = tolerance * max(1.0, right.abs().max().item())
        wrong = ~(gap <= limit)  # NaN is wrong
        if bool(wrong.any()):
            timed = what == "spikes" or what.endswith("current")
            first = wrong.nonzero()[0].tolist()
            at = f"first at time step {first[0]}, " if timed else ""
            raise ContractError(
                f"{where}: {what} differs from the reference in {int(wrong.sum())} of "
                f"{wrong.numel()} values, {at}at {first}; the largest difference is "
                f"{gap.max().item():.3g}, allowed is {limit:.3g}"
            )


# --- pieces ---------------------------------------------------------------------------------


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


@contextlib.contextmanager
def _must(what: str) -> Iterator[None]:
    """Turns whatever is raised inside into a ContractError, but for a refusal of an option."""
    try:
        yield
    except (ContractError, OptionError):
        raise
    except Exception as error:  # whatever a component raises is that component's fault
        raise ContractError(f"{what} fails: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        yield


def _normal(*shape: int, seed: int = 0, like: nn.Module | None = None) -> Tensor:
    """The same normal values at every call, where the module's parameters are."""
    device = next((p.device for p in like.parameters()), None) if like is not None else None
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of each sample: [N, *] -> [N]."""
    return (a - b).abs().double().reshape(len(a), -1).mean(1)


def _check_shape(network: nn.Module, out: Tensor, shape: tuple[int, ...]) -> None:
    _require(out.shape == shape, f"{_name(network)} gives {_shape(out)} instead of {list(shape)}")


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def _name(module: object) -> str:
    return type(module).__name__
