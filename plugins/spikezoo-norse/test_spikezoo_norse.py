"""The contract for norse's backend and neurons; skipped where norse cannot be imported."""

from __future__ import annotations

import pytest
import torch

import spikezoo
from spikezoo.errors import OptionError
from spikezoo.neurons import Neuron
from spikezoo.neurons.lif import LIF
from spikezoo.testing import check_backend, check_generator, check_neuron

pytest.importorskip("norse.torch", reason="norse cannot be imported", exc_type=ImportError)

import norse.torch as norse
from spikezoo_norse import NORSE, LIFAdEx, LIFBox

torch.set_num_threads(1)  # small tensors: threads only wait for one another


def test_contract_of_the_backend() -> None:
    check_backend("norse")


@pytest.mark.parametrize("neuron", [LIFBox, LIFAdEx])
def test_contract_of_the_neurons(neuron: type[Neuron]) -> None:
    check_neuron(neuron)


@pytest.mark.parametrize("neuron", [LIF, LIFBox, LIFAdEx])
def test_contract_when_compiled(neuron: type[Neuron]) -> None:
    check_neuron(lambda: neuron(), compile=True)


@pytest.mark.parametrize("name", ["lif", "if", "plif"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spikes_and_states_are_bit_equal_at_ties_too(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    current = torch.randint(-3, 8, (16, 4, 500), generator=generator).to(dtype) / 4
    (spikes, (v,)), (wanted, (wanted_v,)) = (
        spikezoo.neuron(name, backend=backend).run(current) for backend in ("norse", "reference")
    )
    assert torch.equal(spikes, wanted)
    assert torch.equal(v, wanted_v)


def test_what_it_does_not_have_is_refused() -> None:
    assert not NORSE.supports(spikezoo.neuron("cuba"))
    with pytest.raises(OptionError, match=r"backend 'norse' has no neuron 'CUBA'; .*: .*native"):
        spikezoo.neuron("cuba", backend="norse")
    with pytest.raises(OptionError, match=r"'native' has no neuron 'LIFBox'; .*: norse"):
        spikezoo.create("gen:snn_middle,neuron=norse.lif_box,width=4+disc:ann", backend="native")


def test_lif_box_is_the_module_of_norse() -> None:
    current = 20 * torch.randn(12, 3, 50, generator=torch.Generator().manual_seed(0))
    cell, state = norse.LIFBoxCell(), None
    for x, spikes in zip(current, spikezoo.neuron("norse.lif_box")(current), strict=True):
        theirs, state = cell(x, state)
        assert torch.equal(spikes, theirs)


def test_lif_adex_is_the_module_of_norse() -> None:
    current = 20 * torch.randn(12, 3, 50, generator=torch.Generator().manual_seed(0))
    theirs, _ = norse.LIFAdEx()(current)
    assert torch.equal(spikezoo.neuron("norse.lif_adex")(current), theirs)


@pytest.mark.parametrize("name", ["lif", "norse.lif_box", "norse.lif_adex"])
def test_a_generator_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    spec = f"gen:snn_middle,neuron={name},width=8+disc:ann"
    generator = spikezoo.create(spec, shape=(1, 16, 16), backend="norse").generator
    check_generator(generator, (1, 16, 16))


@pytest.mark.parametrize("options", [{"v_th": 0.0}, {"dt": 0.1}, {"tau_mem_inv": -1.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="v_th is above 0"):
        LIFBox(**options)
