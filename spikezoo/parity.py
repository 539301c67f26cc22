"""Do all backends compute the same? Every neuron on every backend against `reference`, as a table.

    spikezoo parity lif --backend snntorch

Per case of a grid over options, T, dtype and kind of current: spikes, last state, and the gradients
of a random weighting of both. Below come the libraries' own neurons as their defaults make them,
against our nearest neuron: what differs between libraries, and why.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import itertools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from spikezoo.backends import backends_of, set_backend
from spikezoo.catalog import registry
from spikezoo.errors import OptionError, PluginError
from spikezoo.neurons import Neuron

log = logging.getLogger(__name__)
Options = dict[str, Any]

BIT_EQUAL = "bit-equal"
CLOSE = "equal spikes within tolerance"
DIFFERS = "differs"

# Of the state, and of gradients relative to the largest one; bfloat16 keeps 8 bits of a gradient.
STATE_TOLERANCE, GRADIENT_TOLERANCE, BFLOAT16_TOLERANCE = 1e-5, 1e-4, 1e-2
NEURONS = 256
GRID: dict[str, tuple[Any, ...]] = {
    "beta": (0.0, 0.5, 0.9, 1.0),
    "threshold": (0.7, 1.0),
    "reset": ("soft", "hard"),
    "detach_reset": (False, True),
}


@dataclass(frozen=True)
class Case:
    """One point of the grid."""

    options: Options
    T: int = 8
    dtype: torch.dtype = torch.float32
    ties: bool = False

    def current(self, threshold: float) -> Tensor:
        """[T, 256]: normal, or multiples of a quarter of the threshold, which h often meets."""
        x = torch.randn(self.T, NEURONS, generator=torch.Generator().manual_seed(self.T))
        x = (6 * x).round() / 4 if self.ties else 1.5 * x
        return (x * threshold).to(self.dtype)

    def __str__(self) -> str:
        kind = "grid-valued" if self.ties else "random"
        dtype = str(self.dtype).removeprefix("torch.")
        options = [f"{key}={value}" for key, value in self.options.items()]
        return " ".join([*options, f"T={self.T}", dtype, kind])


@dataclass(frozen=True)
class LibraryDefault:
    """A library's own neuron as its defaults make it, and our neuron nearest to it."""

    neuron: str
    options: Options
    ours: str
    ours_options: Options
    why: str


_SIGMOID = {"surrogate": "sigmoid", "alpha": 4.0}
LIBRARY_DEFAULTS = (
    LibraryDefault(
        "snntorch.leaky",
        {"beta": 0.5},
        "lif",
        {"beta": 0.5, "detach_reset": True},
        "delayed reset: one step after the spike",
    ),
    LibraryDefault(
        "snntorch.leaky",
        {"beta": 0.5, "reset": "hard", "reset_delay": False},
        "lif",
        {"beta": 0.5, "reset": "hard", "detach_reset": True},
        "",
    ),
    LibraryDefault(
        "spikingjelly.lif",
        {},
        "lif",
        {"beta": 0.5, "reset": "hard", **_SIGMOID},
        "decayed input: x / tau",
    ),
    LibraryDefault(
        "spikingjelly.lif",
        {"decay_input": False},
        "lif",
        {"beta": 0.5, "reset": "hard", **_SIGMOID},
        "",
    ),
)


@dataclass
class Row:
    """A neuron on a backend over all cases, against `reference` (or our own neuron)."""

    neuron: str
    backend: str
    verdict: str = BIT_EQUAL
    cases: int = 0
    spikes: float = 0.0  # largest share of spikes in a case that differ
    state: float = 0.0  # largest difference
    gradient: float = 0.0  # largest difference in float32, relative to the largest gradient
    first_step: int | None = None  # where the first case that differs does so first
    first_case: str = ""
    why: str = ""
    library_default: bool = False

    def add(self, found: dict[str, Tensor], wanted: dict[str, Tensor], case: Case) -> None:
        """Takes one case into account."""
        self.cases += 1
        equal, close = True, True
        for what, right in wanted.items():
            left = found[what]
            equal &= torch.equal(left, right)
            gap = _largest(left.double() - right.double())
            size = max(1.0, _largest(right.double()))
            if what == "spikes":
                wrong = left != right
                close &= not wrong.any()
                self.spikes = max(self.spikes, wrong.double().mean().item())
                if wrong.any() and self.first_step is None:
                    self.first_step = int(wrong.flatten(1).any(1).nonzero()[0])
                    self.first_case = str(case)
            elif what.startswith("state"):
                self.state = max(self.state, gap)
                close &= gap <= STATE_TOLERANCE * size
            elif left.dtype == torch.bfloat16:
                close &= gap <= BFLOAT16_TOLERANCE * size
            else:
                self.gradient = max(self.gradient, gap / size)
                close &= gap <= GRADIENT_TOLERANCE * size
        if not close:
            self.verdict = DIFFERS
            self.first_case = self.first_case or str(case)
        elif not equal and self.verdict == BIT_EQUAL:
            self.verdict = CLOSE


def parity(
    neurons: Sequence[str] = (), backends: Sequence[str] = (), *, progress: bool = False
) -> list[Row]:
    """One row per neuron and backend that has it, then the libraries' own defaults.

    Args:
        neurons: registered names; all that more than one backend has by default.
        backends: registered names; all but `reference` by default.
        progress: show a bar.

    Raises:
        UnknownNameError: no such neuron or backend.
        PluginError: a neuron asked for by name cannot be loaded; else it is left out.
        OptionError: none of the backends has any of the neurons.
    """
    for name in backends:
        registry("backends").entry(name)
    work: list[tuple[str, list[str], Case]] = []
    for name in neurons or registry("neurons").names():
        try:
            found = set(backends_of(registry("neurons").get(name)()))
        except PluginError as error:
            if neurons:
                raise
            log.warning("left out: %s", error)
            continue
        chosen = sorted(found & set(backends) if backends else found - {"reference"})
        if chosen and "reference" in found:
            work += [(name, chosen, case) for case in cases(name)]
    defaults = [d for d in LIBRARY_DEFAULTS if not neurons or {d.neuron, d.ours} & set(neurons)]
    if backends:
        defaults = [d for d in defaults if d.neuron.partition(".")[0] in backends]
    if not work and not defaults:
        raise OptionError(
            f"none of the backends {', '.join(backends) or 'but reference'} has any of the neurons "
            f"{', '.join(neurons)}"
        )
    rows: dict[tuple[str, str], Row] = {}
    with tqdm(total=len(work), desc="parity", disable=None if progress else True) as bar:
        for name, chosen, case in work:
            for backend in chosen:
                rows.setdefault((name, backend), Row(name, backend))
            _compare_backends(name, [rows[name, backend] for backend in chosen], case)
            bar.update()
    return [*rows.values(), *map(_compare_default, defaults)]


def cases(name: str) -> Iterator[Case]:
    """The grid of a neuron: every surrogate at T=8, then every T and dtype with the default one."""
    known = inspect.signature(registry("neurons").get(name)).parameters
    grid = {key: values for key, values in GRID.items() if key in known}
    surrogates = registry("surrogates").names() if "surrogate" in known else []
    for values in itertools.product(*grid.values(), (False, True)):
        *chosen, ties = values
        options = dict(zip(grid, chosen, strict=True))
        try:
            registry("neurons").get(name)(**options)
        except OptionError:  # a learned beta never starts at 0 or 1
            continue
        for surrogate in surrogates:
            yield Case({**options, "surrogate": surrogate}, ties=ties)
        for T, dtype in itertools.product((1, 4, 16), (torch.float32, torch.bfloat16)):
            yield Case(options, T, dtype, ties)


def _compare_backends(name: str, rows: list[Row], case: Case) -> None:
    reference = _neuron(name, case.options, "reference")
    current = case.current(reference.threshold)
    wanted = _results(reference, current)
    for row in rows:
        layer = deepcopy(reference)
        try:
            set_backend(layer, row.backend)
            found = _results(layer, current)
        except Exception as error:  # noqa: BLE001  # a plugin's fault is its row's, not the table's
            row.verdict, row.first_case = DIFFERS, str(case)
            row.why = f"{type(error).__name__}: {error}"
            continue
        new = row.first_step is None
        row.add(found, wanted, case)
        if new and row.first_step is not None and not row.why:
            row.why = _why(reference, current, found["spikes"], wanted["spikes"])


def _compare_default(default: LibraryDefault) -> Row:
    theirs = _neuron(default.neuron, default.options, None)
    ours = _neuron(default.ours, default.ours_options, "reference")
    options = [f"{key}={value}" for key, value in default.options.items()]
    row = Row(" ".join([default.neuron, *options]), theirs.backend, library_default=True)
    for ties in (False, True):
        case = Case(default.ours_options, T=16, ties=ties)
        current = case.current(ours.threshold)
        found, wanted = _results(theirs, current), _results(ours, current)
        new = row.first_step is None
        row.add(found, wanted, case)
        if new and row.first_step is not None:
            row.why = default.why or _why(ours, current, found["spikes"], wanted["spikes"])
    return row


def _neuron(name: str, options: Options, backend: str | None) -> Neuron:
    layer: Neuron = registry("neurons").get(name)(**options)
    layer.train(not layer.is_stochastic)  # draws of two runs cannot be compared
    set_backend(layer, backend)
    return layer


def _results(layer: Neuron, current: Tensor) -> dict[str, Tensor]:
    """Spikes, last state, and the gradients of a random weighting of both."""
    x = current.clone().requires_grad_()
    spikes, state = layer.run(x)
    outputs = [spikes, *(s for s in state if s.requires_grad)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    inputs = {"current": x, **dict(layer.named_parameters())}
    gradients = torch.autograd.grad(
        outputs, list(inputs.values()), weights, allow_unused=True, materialize_grads=True
    )
    results = {"spikes": spikes.detach()}
    results |= {f"state {i}": s.detach() for i, s in enumerate(state)}
    return results | {f"gradient of {k}": g for k, g in zip(inputs, gradients, strict=True)}


def _why(reference: Neuron, current: Tensor, found: Tensor, wanted: Tensor) -> str:
    """The tie rule, where a hair more or less of current decides on the first wrong spike."""
    t, n = (found != wanted).nonzero()[0].tolist()
    near = []
    for sign in (-1, 1):
        nudged = current.clone()
        nudged[t, n] += sign * 1e-5 * reference.threshold
        near.append(reference(nudged)[t, n].item())
    return "tie rule: h = threshold" if near[0] != near[1] else ""


def _largest(x: Tensor) -> float:
    """The largest size; NaN counts as infinite."""
    return x.abs().nan_to_num(nan=math.inf).max().item() if x.numel() else 0.0


# --- the table ------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """The versions that a table holds for."""
    packages = ("spikezoo-gan", "torch", "snntorch", "spikingjelly")
    return {package: importlib.metadata.version(package) for package in packages}


def differs(rows: Sequence[Row]) -> bool:
    """Whether a backend differs from `reference`; a library's own default is free to."""
    return any(row.verdict == DIFFERS and not row.library_default for row in rows)


HEAD = ("neuron", "backend", "verdict", "cases", "spikes", "state", "gradient", "first difference")


def _cells(row: Row) -> tuple[str, ...]:
    verdict = f"{row.verdict} (library default)" if row.library_default else row.verdict
    step = "" if row.first_step is None else f"step {row.first_step}"
    first = "; ".join(filter(None, [step, row.why, row.first_case]))
    spikes = f"{100 * row.spikes:.2g} %" if row.spikes else "0"
    state, gradient = (f"{x:.1e}" if x else "0" for x in (row.state, row.gradient))
    return row.neuron, row.backend, verdict, str(row.cases), spikes, state, gradient, first


def as_text(rows: Sequence[Row]) -> str:
    """The table for a terminal, the versions on top."""
    lines = [HEAD, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join([", ".join(f"{k} {v}" for k, v in versions().items()), "", *table])


def as_markdown(rows: Sequence[Row]) -> str:
    """The page `docs/parity.md`."""
    lines = [HEAD, ("---",) * len(HEAD), *map(_cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    measured = ", ".join(f"{package} {version}" for package, version in versions().items())
    return f"""# Parity of backends

Written by `spikezoo parity --markdown docs/parity.md`, with {measured}.

The same neuron with the same options on each backend, against `reference`, the loop over its
equation. *cases*: combinations of beta, threshold, reset, detach_reset, surrogate, T (1, 4, 8, 16)
and dtype, on random currents and on currents that often make h = threshold exactly. *spikes*: the
largest share that differs in a case. *state*: the largest difference. *gradient*: the largest
difference in float32, relative to the largest gradient.

- **{BIT_EQUAL}**: spikes, last state and gradients are equal to the last bit.
- **{CLOSE}**: every spike is equal; the state within {STATE_TOLERANCE:g}, gradients within
  {GRADIENT_TOLERANCE:g} (in bfloat16 {BFLOAT16_TOLERANCE:g}).
- **{DIFFERS}**: anything else. The rows marked *library default* are no backends, but the
  libraries' own neurons as their defaults make them, against our `lif`: these are other neurons.

Neurons other than `lif`, `if` and `plif` are run by `native` as by `reference` where a current is
as small as here; large ones it compiles.

{table}
"""


def as_json(rows: Sequence[Row]) -> str:
    """Versions and rows."""
    return json.dumps({"versions": versions(), "rows": [asdict(row) for row in rows]}, indent=2)
