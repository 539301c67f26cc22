"""Who computes a neuron: `reference` defines the result, every other backend must agree with it."""

from __future__ import annotations

import logging
from typing import Protocol

from torch import Tensor, nn

from spikezoo.catalog import registry
from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron, State

log = logging.getLogger(__name__)


class Backend(Protocol):
    """Computes neurons without changing the model: same weights, same spikes."""

    def supports(self, neuron: Neuron) -> bool:
        """Whether this backend has the neuron."""

    def run(self, neuron: Neuron, current: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Current [T, N, *] -> spikes [T, N, *] and the last state; `None` starts from rest."""


def set_backend(network: nn.Module, name: str | None) -> None:
    """Lets a backend compute every spiking layer of a network; None: `native`, or for a library's
    own neuron that library.

    Raises:
        UnknownNameError: no such backend.
        OptionError: the backend lacks a neuron of the network; says which backends have it.
    """
    if name is not None:
        registry("backends").entry(name)
    for layer in network.modules():
        if isinstance(layer, Neuron):
            chosen = name or layer.only_backend or "native"
            if not registry("backends").get(chosen).supports(layer):
                raise OptionError(
                    f"backend '{chosen}' has no neuron '{type(layer).__name__}'; "
                    f"backends that have it: {', '.join(backends_of(layer))}"
                )
            layer.backend = chosen


def backends_of(neuron: Neuron) -> list[str]:
    """The names of the installed backends that have a neuron."""
    return [name for name in registry("backends").names() if _has(name, neuron)]


def _has(backend: str, neuron: Neuron) -> bool:
    try:
        return bool(registry("backends").get(backend).supports(neuron))
    except Exception as error:  # noqa: BLE001  # a plugin's fault, which is to hurt no one else
        log.debug("backend '%s' is left out: %r", backend, error)
        return False
