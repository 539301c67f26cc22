"""SpikeZoo: spiking image generators by name. Public names load on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikezoo.catalog import names as names
    from spikezoo.errors import SpikeZooError as SpikeZooError
    from spikezoo.hub import load as load
    from spikezoo.spec import Spec as Spec
    from spikezoo.zoo import create as create
    from spikezoo.zoo import neuron as neuron

__version__ = "0.1.0"

_HOME = {
    "Spec": "spikezoo.spec",
    "SpikeZooError": "spikezoo.errors",
    "create": "spikezoo.zoo",
    "load": "spikezoo.hub",
    "names": "spikezoo.catalog",
    "neuron": "spikezoo.zoo",
}
__all__ = ["Spec", "SpikeZooError", "create", "load", "names", "neuron"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spikezoo' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
