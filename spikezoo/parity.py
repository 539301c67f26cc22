"""Do all backends compute the same? Every neuron on every backend against `reference`, as a table.

    spikezoo parity lif --backend snntorch

Per case of a grid over options, T, dtype and kind of current: spikes, last state, and the gradients
of a random weighting of both. Below come the libraries' own neurons against our nearest one: what
differs between libraries, and why.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from spikezoo import zoo
from spikezoo.backends import backends_of, set_backend
from spikezoo.catalog import registry
from spikezoo.errors import OptionError, SpikeZooError
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
    """A library's own neuron, with its defaults but for some options, and our nearest to it."""

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
        {"beta": 0.5, "reset": "hard"},
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
    first_step: int | None = None  # where the first case that differs does so first, if in time
    first_case: str = ""
    why: str = ""
    library_default: bool = False

    def add(
        self,
        found: dict[str, Tensor],
        wanted: dict[str, Tensor],
        case: Case,
        why: Callable[[], str],
    ) -> None:
        """Takes one case into account; `why` says why spikes differ.

        Raises:
            ValueError: the results are not even alike in shape and dtype.
        """
        if _kinds(found) != _kinds(wanted):
            raise ValueError(f"it gives {_kinds(found)}, not {_kinds(wanted)}")
        self.cases += 1
        for what, right in wanted.items():
            gap = (found[what].double() - right.double()).abs()
            largest, size = _largest(gap), max(1.0, _largest(right.double()))
            if what == "spikes":
                self.spikes = max(self.spikes, (gap != 0).double().mean().item())
                limit = 0.0
            elif what.startswith("state"):
                self.state = max(self.state, largest)
                limit = STATE_TOLERANCE * size
            elif right.dtype == torch.bfloat16:
                limit = BFLOAT16_TOLERANCE * size
            else:
                self.gradient = max(self.gradient, largest / size)
                limit = GRADIENT_TOLERANCE * size
            wrong = ~(gap <= limit)  # NaN is wrong
            if wrong.any() and self.verdict != DIFFERS:
                self.differ(case, why() if what == "spikes" else what)
                if what in ("spikes", "gradient of current"):
                    self.first_step = int(wrong.flatten(1).any(1).nonzero()[0])
            elif self.verdict == BIT_EQUAL and not torch.equal(found[what], right):
                self.verdict = CLOSE

    def differ(self, case: Case, why: str) -> None:
        """Notes where and why it differs, if it did not before."""
        if self.verdict != DIFFERS:
            self.verdict, self.first_case, self.why = DIFFERS, str(case), why


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
        OptionError: `reference` or the chosen backends lack a neuron asked for by name.
    """
    for name in backends:
        registry("backends").entry(name)
    defaults = [d for d in LIBRARY_DEFAULTS if not neurons or {d.neuron, d.ours} & set(neurons)]
    if backends:
        defaults = [d for d in defaults if d.neuron.partition(".")[0] in backends]
    asked = " or ".join(backends) or "another backend"
    work: list[tuple[str, list[str], Case]] = []
    for name in neurons or registry("neurons").names():
        try:
            found = backends_of(zoo.neuron(name))
            chosen = [b for b in found if (b in backends if backends else b != "reference")]
            grid = list(cases(name)) if chosen and "reference" in found else []
        except Exception as error:  # a plugin's fault, which is to hide no other neuron
            if neurons:
                raise
            log.warning("neuron '%s' is left out: %s", name, _told(error))
            continue
        if neurons and not grid and name not in {d.neuron for d in defaults}:
            raise OptionError(
                f"nothing to compare: '{name}' runs on {', '.join(found)}; parity needs reference "
                f"and {asked}"
            )
        work += [(name, chosen, case) for case in grid]
    if not work and not defaults:
        raise OptionError(f"nothing to compare: no neuron runs on reference and {asked}")
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
        if not _possible(name, options):  # a learned beta never starts at 0 or 1
            continue
        for surrogate in surrogates:
            if _possible(name, {"surrogate": surrogate}):  # a broken plugin's is not
                yield Case({**options, "surrogate": surrogate}, ties=ties)
        for T, dtype in itertools.product((1, 4, 16), (torch.float32, torch.bfloat16)):
            yield Case(options, T, dtype, ties)


def _possible(name: str, options: Options) -> bool:
    try:
        zoo.neuron(name, **options)
    except SpikeZooError:
        return False
    return True


def _compare_backends(name: str, rows: list[Row], case: Case) -> None:
    with _blamed(rows, case):
        reference = _neuron(name, case.options, "reference")
        current = case.current(reference.threshold)
        wanted = _results(reference, current)
        for row in rows:
            with _blamed([row], case):
                layer = deepcopy(reference)
                set_backend(layer, row.backend)
                found = _results(layer, current)
                why = partial(_why, reference, current, found["spikes"], wanted["spikes"])
                row.add(found, wanted, case, why)


@contextlib.contextmanager
def _blamed(rows: list[Row], case: Case) -> Iterator[None]:
    """A plugin's fault is its rows', not the table's."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever it raises
        for row in rows:
            row.differ(case, _told(error))


def _told(error: Exception) -> str:
    """An error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _compare_default(default: LibraryDefault) -> Row:
    theirs = _neuron(default.neuron, default.options)
    ours = _neuron(default.ours, default.ours_options, "reference")
    options = [f"{key}={value}" for key, value in default.options.items()]
    row = Row(" ".join([default.neuron, *options]), theirs.backend, library_default=True)
    for ties in (False, True):
        case = Case(default.ours_options, T=16, ties=ties)
        current = case.current(ours.threshold)
        found, wanted = _results(theirs, current), _results(ours, current)
        why = partial(_why, ours, current, found["spikes"], wanted["spikes"])
        row.add(found, wanted, case, (lambda: default.why) if default.why else why)
    return row


def _neuron(name: str, options: Options, backend: str = "native") -> Neuron:
    layer = zoo.neuron(name, backend=backend, **options)
    return layer.train(not layer.is_stochastic)  # draws of two runs cannot be compared


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
        nudged = current.double()  # a hair is less than bfloat16 can tell
        nudged[t, n] += sign * 1e-5 * reference.threshold
        near.append(reference(nudged)[t, n].item())
    return "tie rule: h = threshold" if near[0] != near[1] else ""


def _kinds(results: dict[str, Tensor]) -> str:
    """What there is, of which dtype and shape."""
    return ", ".join(f"{what} {x.dtype} {list(x.shape)}" for what, x in results.items())


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
    table = "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)
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
  libraries' own neurons, with their defaults but for the options named, against our `lif`: these
  are other neurons.

Neurons other than `lif`, `if` and `plif` are run by `native` as by `reference` where a current is
as small as here; large ones it compiles.

{table}
"""


def as_json(rows: Sequence[Row]) -> str:
    """Versions and rows."""
    return json.dumps({"versions": versions(), "rows": [asdict(row) for row in rows]}, indent=2)
