"""Speed on this machine, as ratios: every contender takes its turn in every round, medians count.

The floor of a neuron is `relu` on the same tensor, which moves the same bytes and computes nothing;
that of a pair of networks is its twin without spikes. `growth` fits lines in T and in the batch.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import snntorch
import torch
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from spikezoo import by_hand, recipes, zoo
from spikezoo.backends import kernel
from spikezoo.catalog import registry
from spikezoo.sample import sample
from spikezoo.spec import Part, Spec
from spikezoo.train import State, iteration

ROUNDS = 7
# Runs in a contender's turn, the fastest counts: the first finds memory as another's left it, and
# waits for the system to clear new pages. In a loop of its own it would not.
TURN = 3
BETA = 0.5
SHAPE = (32, 64, 16, 16)  # of one time step: N, C, H, W
Job = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A contender in a case: median milliseconds, its ratio to the case's first contender, and how
    far the process's memory rose above what it had before, in MB (None where that is unknown)."""

    case: str
    contender: str
    ms: float
    ratio: float
    peak_mb: float | None
    per_second: float | None = None


def neurons(backends: Sequence[str], times: Sequence[int] = (4, 8, 16, 32)) -> list[Row]:
    """LIF forward and backward on [T, 32, 64, 16, 16]: backends, and the libraries' own nodes as
    their documentation writes them, against `relu`."""
    rows = []
    for T in times:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(T, *SHAPE).to(dtype).requires_grad_()
            grad = torch.randn(T, *SHAPE).to(dtype)
            jobs: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu}
            for name in backends:
                jobs[name] = zoo.neuron("lif", backend=name, beta=BETA)
            jobs["SpikingJelly's LIFNode"] = _spikingjelly
            jobs["snnTorch's Leaky in a loop"] = _snntorch
            case = f"LIF, T={T}, {str(dtype).removeprefix('torch.')}"
            rows += _case(case, {k: _both_ways(f, x, grad) for k, f in jobs.items()})
    return rows


def _both_ways(layer: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Job:
    def job() -> None:
        x.grad = None
        torch.autograd.backward(layer(x), grad)

    return job


def _spikingjelly(x: Tensor) -> Tensor:
    node = LIFNode(tau=1 / (1 - BETA), decay_input=False, v_reset=None, step_mode="m")
    return node(x)


def _snntorch(x: Tensor) -> Tensor:
    node = snntorch.Leaky(beta=BETA)
    v = node.init_leaky()
    spikes = []
    for current in x:
        s, v = node(current, v)
        spikes.append(s)
    return torch.stack(spikes)


def train(spec: Spec, backends: Sequence[str], batch_size: int = 64) -> list[Row]:
    """One iteration of a pair on random images, by backend and precision, against its twin pair
    without spikes in the default precision, and by hand where `by_hand` has it. Without the R1
    penalty, which every eighth iteration has and none by hand."""
    spec = zoo.canonical(spec)
    pixels = _pixels(spec, batch_size)
    twin = Spec(_without_spikes(spec.gen), _without_spikes(spec.disc), spec.dataset)
    chosen = recipes.settings(batch_size=batch_size, r1=0.0)
    jobs = {str(twin): _iteration(twin, chosen, pixels)}
    for name in backends:
        for precision in ("fp32", "bf16"):
            own = replace(chosen, backend=name, precision=precision)
            jobs[f"{name}, {precision}"] = _iteration(spec, own, pixels)
    for library in by_hand.LAYERS if by_hand.can_build(spec) else ():
        jobs[f"by hand with {library}, fp32"] = _by_hand(library, spec, chosen, pixels)
    return _case(f"an iteration of {spec}, batch {batch_size}", jobs, batch_size)


def _without_spikes(part: Part) -> Part:
    """gen:ann or disc:ann with those of the part's options that it knows."""
    known = zoo.resolve(Part(part.kind, "ann"))
    return Part(part.kind, "ann", tuple(option for option in part.options if option[0] in known))


def _pixels(spec: Spec, batch_size: int) -> Tensor:
    """Random images uint8 [N, C, H, W] of a dataset's shape, of four batches."""
    shape = zoo.default_shape(spec.dataset)
    return torch.randint(0, 256, (4 * batch_size, *shape), dtype=torch.uint8)


def _iteration(spec: Spec, chosen: recipes.Settings, pixels: Tensor) -> Job:
    channels, height, width = pixels.shape[1:]
    pair = zoo.create(spec, shape=(channels, height, width), backend=chosen.backend)
    state = State(pair.generator, pair.discriminator, pixels, chosen, torch.device("cpu"))

    def job() -> None:
        iteration(state)

    return job


def _by_hand(library: str, spec: Spec, chosen: recipes.Settings, pixels: Tensor) -> Job:
    channels, height, width = pixels.shape[1:]
    pair = zoo.create(spec, shape=(channels, height, width))
    generator, discriminator = by_hand.build(library, pair)
    betas = (chosen.adam_beta1, chosen.adam_beta2)
    optimizer_g = torch.optim.Adam(generator.parameters(), chosen.lr_g, betas)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), chosen.lr_d, betas)
    loader = DataLoader(TensorDataset(pixels), chosen.batch_size, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def job() -> None:
        (real,) = next(batches)
        z = torch.randn(len(real), by_hand.LATENT_DIM)
        by_hand.iteration(
            *(generator, discriminator, optimizer_g, optimizer_d), real / 127.5 - 1, z
        )

    return job


def draw(spec: Spec, backends: Sequence[str], n: int = 256) -> list[Row]:
    """Sampling n images with an untrained generator, by backend, against its twin without spikes,
    and by hand where `by_hand` has it."""
    spec = zoo.canonical(spec)
    shape = zoo.default_shape(spec.dataset)

    def job(part: Part, backend: str | None) -> Job:
        generator = zoo.build("gen", part.name, zoo.resolve(part), shape, backend).eval()

        def run() -> None:
            sample(generator, range(n))

        return run

    jobs = {"gen:ann": job(Part("gen", "ann"), None)}
    jobs |= {name: job(spec.gen, name) for name in backends}
    for library in by_hand.LAYERS if by_hand.can_build(spec) else ():
        generator, _ = by_hand.build(library, zoo.create(spec, shape=shape))
        jobs[f"by hand with {library}"] = partial(by_hand.draw, generator.eval(), n)
    return _case(f"{n} images of {spec.gen}", jobs, n)


def growth(spec: Spec, times: Sequence[int] = (2, 4, 8, 16)) -> list[Row]:
    """An iteration at each T with a batch of 32, and of the spec as it is with batches to 128.

    The case says how well a straight line fits medians and memory: R^2 of least squares.
    """
    spec = zoo.canonical(spec)
    at_times = {T: _iteration(_with_T(spec, T), *_batch(spec, 32)) for T in times}
    at_batches = {n: _iteration(spec, *_batch(spec, n)) for n in (16, 32, 64, 128)}
    rows = []
    for axis, jobs in (("T", at_times), ("batch", at_batches)):
        found = _case(f"growth with {axis}", {str(x): job for x, job in jobs.items()})
        line = _line(list(jobs), [row.ms for row in found])
        memory = _line(list(jobs), [row.peak_mb or 0.0 for row in found])
        case = f"{spec} by {axis}: ms {line}, MB {memory}"
        rows += [replace(row, case=case, contender=f"{axis}={row.contender}") for row in found]
    return rows


def _batch(spec: Spec, size: int) -> tuple[recipes.Settings, Tensor]:
    return recipes.fitted(recipes.settings(batch_size=size), spec), _pixels(spec, size)


def _with_T(spec: Spec, T: int) -> Spec:
    """The spec with every part that has time steps at T of them."""
    gen, disc = (
        replace(p, options=tuple({**dict(p.options), "T": str(T)}.items()))
        if "T" in zoo.resolve(p)
        else p
        for p in (spec.gen, spec.disc)
    )
    return zoo.canonical(replace(spec, gen=gen, disc=disc))


def _line(x: Sequence[float], y: Sequence[float]) -> str:
    if len(set(y)) < 2:
        return "is not known"
    slope, intercept = statistics.linear_regression(x, y)
    squared = statistics.correlation(x, y) ** 2
    return f"= {intercept:.1f} + {slope:.2f} * it (R^2 {squared:.3f})"


def _case(case: str, jobs: dict[str, Job], per_job: int | None = None) -> list[Row]:
    times: dict[str, list[float]] = {name: [] for name in jobs}
    peaks = {name: _peak_mb(job) for name, job in jobs.items()}  # warms up, too
    for _ in tqdm(range(ROUNDS), desc=case, unit="round", leave=False):
        for name, job in jobs.items():
            times[name].append(min(_seconds(job) for _ in range(TURN)))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    first = next(iter(medians.values()))
    return [
        Row(case, name, 1000 * s, s / first, peaks[name], per_job / s if per_job else None)
        for name, s in medians.items()
    ]


def _seconds(job: Job) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def _peak_mb(job: Job) -> float | None:
    """How far memory rises above what the process holds before, by Linux's own high-water mark."""
    job()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the mark begins anew
        before = _status_kb("VmRSS")
        job()
        return (_status_kb("VmHWM") - before) / 1024
    except (AttributeError, OSError, TypeError):
        job()
        return None


def _status_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


def machine() -> str:
    """The processor, torch's threads, and what computes the LIF family."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, torch {torch.__version__}, lif on {kernel.in_use()}"


def as_text(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| case | who | ms | ratio | peak MB | per second |", "|---|---|---|---|---|---|"]
    for row in rows:
        peak = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        rate = "" if row.per_second is None else f"{row.per_second:.0f}"
        lines.append(
            f"| {row.case} | {row.contender} | {row.ms:.1f} | {row.ratio:.2f} | {peak} | {rate} |"
        )
    return "\n".join([machine(), "", *lines])


def as_json(rows: list[Row]) -> str:
    """The rows and the machine as JSON."""
    return (
        json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
    )


def check_backends(names: Sequence[str]) -> tuple[str, ...]:
    """The backends to compare: those given, or those that are built in.

    Raises:
        UnknownNameError: no such backend.
    """
    for name in names:
        registry("backends").entry(name)
    return tuple(names) or ("native", "reference", "snntorch", "spikingjelly")
