"""`spikezoo plugin new`: a package with one neuron, a test that passes, and nothing to fill in."""

from __future__ import annotations

import builtins
import re
import tempfile
from pathlib import Path

from spikezoo.catalog import registry
from spikezoo.errors import DuplicateNameError, OptionError

# What is a name here, a module, and a distribution once '_' is '-'.
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# The classes that the module below imports.
_IMPORTED = ("Neuron", "OptionError", "State", "Tensor")


def new_plugin(name: str, where: Path = Path()) -> Path:
    """Writes the package `spikezoo-NAME` with a neuron NAME into a folder; returns its path.

    Args:
        name: of the neuron, as `stochastic`; `spikezoo-stochastic` means the same.
        where: the folder that the package's own is made in.

    Raises:
        OptionError: the name cannot be used, or the package's folder exists.
        DuplicateNameError: another distribution has a neuron of that name.
    """
    neuron = name.removeprefix("spikezoo-").replace("-", "_")
    names = {"name": neuron, "class": "".join(part.capitalize() for part in neuron.split("_"))}
    if not _NAME.fullmatch(neuron):
        raise OptionError(
            f"'{name}' names no neuron: lower-case letters, digits and single '_', "
            "a letter first, like 'my_neuron'"
        )
    if hasattr(builtins, names["class"]) or names["class"] in _IMPORTED:
        raise OptionError(f"a class {names['class']} would hide another; choose a longer name")
    if names["class"].startswith("Test"):
        raise OptionError(f"pytest would take a class {names['class']} for tests; rename it")
    distribution = f"spikezoo-{neuron.replace('_', '-')}"
    neurons = registry("neurons")
    if distribution == "spikezoo-gan":
        raise DuplicateNameError("'spikezoo-gan' is SpikeZoo itself; choose another name")
    # A package may be written anew while it is installed.
    if neuron in neurons and neurons.entry(neuron).distribution != distribution:
        raise DuplicateNameError(f"{neurons.source(neuron)} has a neuron '{neuron}' already")
    target = where / distribution
    if target.exists():
        raise OptionError(f"'{target}' exists; choose another name, or move it away")
    with tempfile.TemporaryDirectory(dir=where, prefix=f".{distribution}-") as temporary:
        package = Path(temporary) / distribution
        package.mkdir()
        for file, text in _FILES.items():
            for key, value in {**names, "distribution": distribution}.items():
                file, text = file.replace(f"<{key}>", value), text.replace(f"<{key}>", value)
            (package / file).write_text(text, encoding="utf-8")
        package.rename(target)
    return target


_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "<distribution>"
version = "0.1.0"
description = "The neuron <name> for SpikeZoo"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["spikezoo-gan"]

[project.entry-points."spikezoo.neurons"]
<name> = "spikezoo_<name>:<class>"

[tool.setuptools]
py-modules = ["spikezoo_<name>"]
""",
    "README.md": """\
# <distribution>

The neuron `<name>` for SpikeZoo.

    pip install --editable .
    pytest
    spikezoo train gen:snn_middle,neuron=<name> disc:snn

Its equation stands in `spikezoo_<name>.py`.
""",
    "spikezoo_<name>.py": '''\
"""<class>: say here what it does, in one line.

    h[t] = beta v[t-1] + x[t]
    s[t] = H(h[t] - threshold),  H(0) = 1
    v[t] = h[t] - s[t] threshold

Source: name the paper here.
"""

from __future__ import annotations

from torch import Tensor

from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron, State
from spikezoo.surrogates import atan, spike


class <class>(Neuron):
    """Its state is the membrane potential (v [N, *],), 0 at rest.

    Args:
        beta: decay of v per time step, in [0, 1].
        threshold: of h, above 0.
    """

    def __init__(self, *, beta: float = 0.5, threshold: float = 1.0) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise OptionError(f"beta is a decay in [0, 1], given {beta}")
        if not threshold > 0:
            raise OptionError(f"threshold is above 0, given {threshold}")
        self.beta, self.threshold = beta, threshold

    def step(self, current: Tensor, state: State) -> tuple[Tensor, State]:
        (v,) = state
        h = self.beta * v + current
        spikes = spike(h - self.threshold, atan, 2.0)
        return spikes.to(current.dtype), (h - spikes * self.threshold,)
''',
    "test_spikezoo_<name>.py": '''\
"""The contract of SpikeZoo over <name>."""

from __future__ import annotations

from spikezoo_<name> import <class>

from spikezoo.testing import check_neuron


def test_contract() -> None:
    check_neuron(<class>)
''',
}
