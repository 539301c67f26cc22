"""From names to networks: options, canonical specs, parameter counts, the public names."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import spikezoo
from spikezoo import catalog
from spikezoo.catalog import Component
from spikezoo.errors import OptionError, PluginError, SpecError, UnknownNameError
from spikezoo.monitor import firing_rates
from spikezoo.neurons.lif import LIF
from spikezoo.spec import Part, Spec
from spikezoo.zoo import build, canonical, create, default_shape, neuron, resolve

if TYPE_CHECKING:
    from decimal import Decimal

GENERATORS = catalog.names("generators")
SPIKING = [name for name in GENERATORS if name != "ann"]
DISCRIMINATORS = catalog.names("discriminators", "*nn")  # our own; tests/test_timm.py has the other
PAIRS = [f"gen:{gen}+disc:{disc}" for gen in GENERATORS for disc in DISCRIMINATORS]


@pytest.fixture
def registered() -> Iterator[Callable[[str, str, Any], None]]:
    """Registers components for one test."""
    added = []

    def register(kind: str, name: str, component: Any) -> None:
        catalog.registry(kind).register(name)(component)
        added.append((kind, name))

    yield register
    for kind, name in added:
        catalog.registry(kind).unregister(name)


# --- canonical specs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Options at their default are dropped, in whatever spelling.
        ("gen:snn_middle,T=4,width=64.0+disc:ann", "gen:snn_middle+disc:ann@digits"),
        ("gen:snn_middle,neuron=lif,readout=mean+disc:ann", "gen:snn_middle+disc:ann@digits"),
        ("gen:snn_middle,beta=5e-1,alpha=2+disc:ann", "gen:snn_middle+disc:ann@digits"),
        ("gen:ann+disc:snn,spectral_norm=FALSE,norm=batch", "gen:ann+disc:snn@digits"),
        ("gen:snn_full,readout=membrane+disc:ann", "gen:snn_full+disc:ann@digits"),
        # The others stay, by their full key.
        ("gen:snn_back,T=8+disc:ann@mnist", "gen:snn_back,T=8+disc:ann@mnist"),
        ("gen:snn_full,readout=mean+disc:ann", "gen:snn_full,readout=mean+disc:ann@digits"),
        ("gen:snn_back,beta=.8+disc:ann", "gen:snn_back,neuron.beta=0.8+disc:ann@digits"),
        ("gen:snn_back,neuron.beta=.8+disc:ann", "gen:snn_back,neuron.beta=0.8+disc:ann@digits"),
        ("gen:ann+disc:snn,reset=hard", "gen:ann+disc:snn,neuron.reset=hard@digits"),
        ("gen:ann+disc:snn,dropout=0.50", "gen:ann+disc:snn,dropout=0.5@digits"),
        ("gen:ann+disc:ann,spectral_norm=True", "gen:ann+disc:ann,spectral_norm=true@digits"),
        (
            "gen:snn_back,readout=membrane,readout.beta=0.75+disc:ann",
            "gen:snn_back,readout=membrane,readout.beta=0.75+disc:ann@digits",
        ),
        (
            "gen:snn_back,readout=membrane,readout.beta=0.5+disc:ann",
            "gen:snn_back,readout=membrane+disc:ann@digits",
        ),
        # `beta` is the neuron's, also where the readout has one.
        ("gen:snn_full,beta=0.25+disc:ann", "gen:snn_full,neuron.beta=0.25+disc:ann@digits"),
    ],
)
def test_the_canonical_spec_has_full_keys_and_no_defaults(text: str, expected: str) -> None:
    spec = canonical(Spec.parse(text))
    assert str(spec) == expected
    assert canonical(spec) == spec


@pytest.mark.parametrize("dataset", catalog.names("datasets"))
@pytest.mark.parametrize("pair", PAIRS)
def test_every_registered_pair_is_its_own_canonical_spec(pair: str, dataset: str) -> None:
    assert str(canonical(Spec.parse(f"{pair}@{dataset}"))) == f"{pair}@{dataset}"


def test_every_option_is_resolved_with_its_own_type() -> None:
    part = Part.parse("disc:snn,beta=1,T=8.0,dropout=1,spectral_norm=TRUE,readout=membrane")
    resolved = resolve(part)
    assert resolved == {
        "T": 8,
        "neuron": "lif",
        "neuron.beta": 1.0,
        "neuron.threshold": 1.0,
        "neuron.reset": "soft",
        "neuron.detach_reset": False,
        "neuron.surrogate": "atan",
        "neuron.alpha": 2.0,
        "readout": "membrane",
        "readout.beta": 0.5,
        "width": 32,
        "dropout": 1.0,
        "norm": "batch",
        "spectral_norm": True,
    }
    types = {key: type(value) for key, value in resolved.items()}
    assert types["neuron.beta"] is types["dropout"] is float
    assert types["T"] is int
    assert types["spectral_norm"] is bool


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gen:snn_midle+disc:ann", "no generator 'snn_midle'; did you mean 'snn_middle'?"),
        ("gen:ann+disc:sn", "no discriminator 'sn'; did you mean 'snn'?"),
        ("gen:ann+disc:ann@minst", "no dataset 'minst'; did you mean 'mnist'?"),
        ("gen:snn_back,neuron=lfi+disc:ann", "no neuron 'lfi'; did you mean 'lif'?"),
        ("gen:snn_back,readout=men+disc:ann", "no readout 'men'; did you mean 'mean'?"),
        (
            "gen:snn_back,widht=8+disc:ann",
            "no option of gen:snn_back 'widht'; did you mean 'width'?",
        ),
        ("gen:snn_back,t=8+disc:ann", "no option of gen:snn_back 't'; did you mean 'T'?"),
        (
            "gen:snn_back,bta=0.9+disc:ann",
            "no option of gen:snn_back 'bta'; did you mean 'neuron.beta'?",
        ),
        (
            "gen:snn_back,nueron.beta=0.9+disc:ann",
            "no option of gen:snn_back 'nueron.beta'; did you mean 'neuron.beta'?",
        ),
        (
            "gen:snn_back,neuron.betta=0.9+disc:ann",
            "no option of gen:snn_back, neuron=lif 'betta'; did you mean 'beta'?",
        ),
        ("gen:snn_back,neuron.beta.x=0.9+disc:ann", "no option of gen:snn_back, neuron=lif"),
        ("gen:snn_back,T.x=0.9+disc:ann", "no option of gen:snn_back 'T.x'"),
        ("gen:snn_back,readout.beta=0.9+disc:ann", "no option of gen:snn_back, readout=weighted"),
        ("gen:ann,T=4+disc:ann", "no option of gen:ann 'T'. There are: latent_dim, width"),
        ("gen:ann,beta=0.5+disc:ann", "no option of gen:ann 'beta'"),
        ("gen:ann+disc:snn,surrogate=sigmod", "no surrogate 'sigmod'; did you mean 'sigmoid'?"),
    ],
)
def test_an_unknown_name_or_key_says_the_nearest_right_thing(text: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        create(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gen:ann,width=8.5+disc:ann", "option width is a whole number, given '8.5'"),
        ("gen:ann,width=wide+disc:ann", "option width is a whole number, given 'wide'"),
        ("gen:ann,width=1_6+disc:ann", "option width is a whole number, given '1_6'"),
        ("gen:ann,width=true+disc:ann", "option width is a whole number, given 'true'"),
        ("gen:snn_back,beta=high+disc:ann", "option beta is a number, given 'high'"),
        ("gen:snn_back,threshold=nan+disc:ann", "option threshold is a number, given 'nan'"),
        ("gen:snn_back,threshold=inf+disc:ann", "option threshold is a number, given 'inf'"),
        ("gen:snn_back,threshold=1_0+disc:ann", "option threshold is a number, given '1_0'"),
        ("gen:ann+disc:ann,spectral_norm=1", "spectral_norm is one of true, false, given '1'"),
        ("gen:ann+disc:ann,norm=bach", "option norm is one of batch, layer, none, given 'bach'"),
        ("gen:snn_back,reset=Soft+disc:ann", "option reset is one of soft, hard, given 'Soft'"),
        ("gen:snn_back,beta=1,neuron.beta=1+disc:ann", "'beta' and 'neuron.beta' in"),
        ("gen:snn_back,reset=soft,neuron.reset=soft+disc:ann", "'reset' and 'neuron.reset' in"),
    ],
)
def test_a_value_of_another_type_is_refused_before_anything_is_built(
    text: str, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        canonical(Spec.parse(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gen:ann,width=10+disc:ann", "gen:ann: width is a multiple of 4, given 10"),
        ("gen:ann+disc:ann,width=0", "disc:ann: width is a multiple of 4, given 0"),
        ("gen:snn_back,T=0+disc:ann", "gen:snn_back: .*T are at least 1"),
        ("gen:snn_back,latent_dim=-1+disc:ann", "gen:snn_back: latent_dim"),
        ("gen:snn_back,beta=1.5+disc:ann", r"gen:snn_back: beta is a decay in \[0, 1\], given 1.5"),
        ("gen:ann+disc:snn,threshold=0", "disc:snn: threshold is above 0"),
        ("gen:ann+disc:snn,alpha=-1", "disc:snn: alpha is above 0"),
        ("gen:ann+disc:ann,dropout=2", "disc:ann: dropout"),  # torch's own ValueError
        ("gen:snn_full,readout.beta=2+disc:ann", r"gen:snn_full: readout.beta .*\[0, 1\]"),
    ],
)
def test_a_value_that_a_constructor_refuses_names_the_part(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create(text)


@pytest.mark.parametrize("text", ["", "gen:ann", "gen:ann+disc:ann,", "gen:ann+disc:ann@"])
def test_a_text_that_is_no_spec_cannot_be_created(text: str) -> None:
    with pytest.raises(SpecError):
        create(text)


# --- canonical specs of any option values ---------------------------------------------------

neuron_options = {
    "beta": st.floats(0, 1).map(repr),
    "threshold": st.floats(1e-3, 1e3).map(repr),
    "reset": st.sampled_from(["soft", "hard"]),
    "detach_reset": st.sampled_from(["true", "false", "True"]),
    "surrogate": st.sampled_from(catalog.names("surrogates")),
    "alpha": st.floats(1e-3, 1e3).map(repr),
}
long_neuron_options = {f"neuron.{key}": value for key, value in neuron_options.items()}
spiking_options = {
    "T": st.integers(1, 32).map(lambda T: f"{T}.0"),
    "neuron": st.just("lif"),
    "readout": st.sampled_from(catalog.names("readouts")),
}
generator_options = {
    "width": st.integers(1, 3).map(lambda n: str(4 * n)),
    "latent_dim": st.integers(1, 8).map(str),
}
discriminator_options = {
    "width": st.integers(1, 4).map(lambda n: str(4 * n)),
    "dropout": st.floats(0, 1).map(repr),
    "norm": st.sampled_from(["batch", "layer", "none"]),
    "spectral_norm": st.sampled_from(["true", "false"]),
}


@st.composite
def parts(draw: st.DrawFn, kind: str, names: list[str], own: dict[str, Any]) -> Part:
    """A part whose constructor accepts every option that it is given."""
    name = draw(st.sampled_from(names))
    if name == "ann":
        return Part(kind, name, tuple(draw(st.fixed_dictionaries({}, optional=own)).items()))
    neuron = draw(st.sampled_from([neuron_options, long_neuron_options]))
    options = draw(st.fixed_dictionaries({}, optional=own | spiking_options | neuron))
    if options.get("readout", name == "snn_full" and "membrane") == "membrane" and draw(
        st.booleans()
    ):
        options["readout.beta"] = draw(st.floats(0, 1).map(repr))
    return Part(kind, name, tuple(options.items()))


valid_specs = st.builds(
    Spec,
    parts("gen", GENERATORS, generator_options),
    parts("disc", DISCRIMINATORS, discriminator_options),
    st.sampled_from(catalog.names("datasets")),
)


@given(valid_specs)
def test_canonical_is_idempotent_and_resolves_to_the_same_options(spec: Spec) -> None:
    short = canonical(spec)
    assert canonical(short) == short
    assert Spec.parse(str(short)) == short
    assert resolve(short.gen) == resolve(spec.gen)
    assert resolve(short.disc) == resolve(spec.disc)
    assert len(short.gen.options) <= len(spec.gen.options)


@settings(max_examples=30)
@given(valid_specs)
def test_the_spec_of_what_was_created_creates_the_same_again(spec: Spec) -> None:
    options = dict(spec.disc.options)
    # Refused together: layers that would never fire, weights that would never learn.
    assume((options.get("norm"), options.get("spectral_norm")) != ("none", "true"))
    pair = create(spec, shape=(1, 16, 16))
    again = create(str(pair.spec), shape=(1, 16, 16))
    assert again.spec == pair.spec == canonical(spec)
    assert repr(again.generator) == repr(pair.generator)
    assert repr(again.discriminator) == repr(pair.discriminator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"T": None}, "gen:snn_back: option T of SNNBack is missing"),
        ({"neuron": None}, "gen:snn_back: option neuron of SNNBack is missing"),
        ({"neuron.beta": None}, "gen:snn_back: option beta of LIF is missing"),
        ({"depth": 3}, "gen:snn_back: SNNBack has no option depth"),
        ({"neuron.gamma": 3}, "gen:snn_back: LIF has no option gamma"),
        ({"readout.beta": 0.5}, "gen:snn_back: Weighted has no option beta"),
        ({"T": "four"}, "gen:snn_back: "),
        ({"neuron.beta": None, "neuron": 5}, "gen:snn_back: option neuron is of type str, given 5"),
    ],
)
def test_stored_options_are_taken_whole_or_refused(change: dict[str, Any], message: str) -> None:
    stored = {**resolve(Part.parse("gen:snn_back,width=4")), **change}
    stored = {key: value for key, value in stored.items() if value is not None}
    with pytest.raises((OptionError, UnknownNameError), match=message):
        build("gen", "snn_back", stored, (1, 16, 16))


# --- components of others -------------------------------------------------------------------


class Chooser(nn.Module):
    """A generator with every type of option."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        count: int = 3,
        size: float = 1,
        even: bool = True,
        mode: Literal["fast", "slow"] = "fast",
        bits: Literal[8, 16] = 8,
        label: str = "none",
        hidden: tuple[int, ...] = (1, 2),
        neuron: Component = Component("neurons", "lif", {"beta": 0.9}),  # noqa: B008  # frozen
        limit: float | None = None,
    ) -> None:
        super().__init__()
        if label == "type":
            raise TypeError("no such label")
        self.spikes = neuron()
        self.seen = (count, size, even, mode, bits, label, hidden, limit)


@pytest.fixture
def chooser(registered: Callable[[str, str, Any], None]) -> None:
    registered("generators", "chooser", Chooser)


@pytest.mark.usefixtures("chooser")
def test_each_option_reaches_the_constructor_with_its_type() -> None:
    pair = create(
        "gen:chooser,count=1e1,size=2,even=false,mode=slow,bits=16,label=a/b.c+disc:ann,width=4"
    )
    assert pair.generator.seen == (10, 2.0, False, "slow", 16, "a/b.c", (1, 2), None)
    assert type(pair.generator.seen[1]) is float
    assert str(pair.spec.gen) == (
        "gen:chooser,bits=16,count=10,even=false,label=a/b.c,mode=slow,size=2"
    )


@pytest.mark.usefixtures("chooser")
def test_a_constructors_own_default_for_its_neuron_is_the_default() -> None:
    def beta(options: str) -> tuple[float, str]:
        pair = create(f"gen:chooser{options}+disc:ann,width=4")
        return pair.generator.spikes.beta, str(pair.spec.gen)

    assert beta("") == (0.9, "gen:chooser")
    assert beta(",neuron=lif") == (0.9, "gen:chooser")
    assert beta(",beta=0.9") == (0.9, "gen:chooser")
    assert beta(",beta=0.5") == (0.5, "gen:chooser,neuron.beta=0.5")


@pytest.mark.usefixtures("chooser")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bits=12", "option bits is one of 8, 16, given '12'"),
        ("hidden=3", "option hidden has the type .*, which a spec cannot give"),
        ("limit=3", "option limit has the type .*, which a spec cannot give"),
        ("label=type", "gen:chooser: no such label"),
    ],
)
def test_what_a_plugin_refuses_is_an_option_error(options: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create(f"gen:chooser,{options}+disc:ann,width=4")


class Wrapped(LIF):
    """A neuron whose own option is a component."""

    def __init__(
        self,
        *,
        gain: float = 1.0,
        inner: Component = Component("readouts", "mean"),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
        self.gain = gain
        self.inner = inner(4)


def test_components_inside_components_are_reached_by_dots(
    registered: Callable[[str, str, Any], None],
) -> None:
    registered("neurons", "wrapped", Wrapped)
    text = "gen:snn_back,neuron=wrapped,neuron.inner=membrane,neuron.inner.beta=0.25,width=4"
    pair = create(f"{text}+disc:ann", shape=(1, 16, 16))
    assert pair.generator.spikes.inner.beta == 0.25
    assert canonical(pair.spec) == pair.spec
    assert str(pair.spec.gen) == text
    shorter = canonical(Spec.parse(f"{text},gain=1+disc:ann".replace("0.25", "0.5")))
    assert str(shorter.gen) == "gen:snn_back,neuron=wrapped,neuron.inner=membrane,width=4"


def unreadable(shape: Any, *, amount: Decimal = 1) -> None:  # type: ignore[assignment]
    """Its annotation does not exist at run time."""


def incomplete(shape: Any, *, amount: int) -> None:
    """Its option has no default."""


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (unreadable, "the options of .*unreadable.* cannot be read: NameError"),
        (incomplete, "option amount of .*incomplete.* has no default"),
        (7, "the options of 7 cannot be read"),
    ],
)
def test_a_plugin_without_readable_options_is_named(
    registered: Callable[[str, str, Any], None], plugin: Any, message: str
) -> None:
    registered("generators", "odd", plugin)
    with pytest.raises(PluginError, match=message):
        canonical(Spec.parse("gen:odd+disc:ann"))


# --- networks -------------------------------------------------------------------------------


def parameter_count(text: str, shape: tuple[int, int, int], part: str) -> int:
    with torch.device("meta"):
        network = getattr(create(text, shape=shape), part)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("width", [8, 12, 16, 32, 48, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [16, 32, 48, 64])
def test_every_spiking_generator_weighs_as_much_as_the_twin(
    side: int, channels: int, width: int
) -> None:
    counts = {
        name: parameter_count(
            f"gen:{name},width={width}+disc:ann", (channels, side, side), "generator"
        )
        for name in GENERATORS
    }
    for name, count in counts.items():
        assert abs(count / counts["ann"] - 1) <= 0.01, (name, counts)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [16, 32, 48, 64])
def test_the_spiking_discriminator_weighs_as_much_as_the_twin(side: int, channels: int) -> None:
    ann, snn = (
        parameter_count(f"gen:ann+disc:{name}", (channels, side, side), "discriminator")
        for name in ("ann", "snn")
    )
    assert abs(snn / ann - 1) <= 0.01


@pytest.mark.parametrize("T", [1, 16])
@pytest.mark.parametrize("readout", ["mean", "membrane"])
@pytest.mark.parametrize("name", SPIKING)
def test_no_weight_has_T_in_its_shape(name: str, readout: str, T: int) -> None:
    def shapes(T: int) -> list[tuple[int, ...]]:
        with torch.device("meta"):
            text = f"gen:{name},T={T},readout={readout},width=8+disc:ann"
            return [tuple(p.shape) for p in create(text).generator.state_dict().values()]

    assert shapes(T) == shapes(4)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 48, 48)], ids=["grey16", "colour48"])
@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_builds_and_fits_together(pair: str, shape: tuple[int, int, int]) -> None:
    networks = create(
        pair.replace("+", ",width=8,latent_dim=7+") + ",width=4", shape=shape, backend="reference"
    )
    z = torch.randn(2, networks.generator.latent_dim)
    images = networks.generator(z)
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert networks.discriminator(images).shape == (2,)


@pytest.mark.parametrize("text", PAIRS[:1] + PAIRS[-1:])
@pytest.mark.parametrize(
    ("shape", "nearest"),
    [((1, 28, 28), 32), ((3, 40, 40), 32), ((1, 8, 8), 16), ((1, 0, 0), 16), ((1, 100, 100), 96)],
)
def test_a_side_that_16_does_not_divide_is_refused_with_the_nearest_that_it_does(
    text: str, shape: tuple[int, int, int], nearest: int
) -> None:
    with pytest.raises(OptionError, match=f"divisible by 16, given .*; the nearest .* {nearest}$"):
        create(text, shape=shape)


@pytest.mark.parametrize("threshold", [1.0, 0.1])
@pytest.mark.parametrize("name", SPIKING)
def test_about_a_fifth_of_the_neurons_fire_at_first(name: str, threshold: float) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        network = create(f"gen:{name},threshold={threshold}+disc:ann").generator.train()
        with torch.no_grad(), firing_rates(network) as rates:
            network(torch.randn(32, 100))
        assert all(0.15 < rate < 0.3 for rate in rates.values()), rates


@pytest.mark.parametrize("shape", [(1, 32, 48), (0, 32, 32), (32, 32), (1, -16, -16)])
def test_a_shape_that_is_no_square_image_is_refused(shape: Any) -> None:
    with pytest.raises(OptionError, match="gen:ann"):
        create("gen:ann+disc:ann", shape=shape)


def test_the_weighted_readout_refuses_another_T_and_says_what_reads_any() -> None:
    pair = create("gen:snn_back,readout=weighted,T=4,width=8+disc:ann", shape=(1, 16, 16))
    z = torch.randn(2, pair.generator.latent_dim)
    assert pair.generator(z).shape == (2, 1, 16, 16)
    pair.generator.T = 6
    with pytest.raises(OptionError, match="T=4 steps and cannot read T=6; use readout=mean"):
        pair.generator(z)


@pytest.mark.parametrize("readout", ["mean", "membrane"])
def test_the_other_readouts_read_any_T(readout: str) -> None:
    pair = create(f"gen:snn_back,readout={readout},T=4,width=8+disc:ann", shape=(1, 16, 16))
    pair.generator.T = 6
    assert pair.generator(torch.randn(2, 100)).shape == (2, 1, 16, 16)


@pytest.mark.parametrize(("dataset", "channels"), [("digits", 1), ("mnist", 1), ("cifar10", 3)])
def test_images_are_32_wide_in_the_datasets_colours_by_default(dataset: str, channels: int) -> None:
    assert default_shape(dataset) == (channels, 32, 32)
    with torch.device("meta"):
        assert create(f"gen:ann+disc:ann@{dataset}").generator.shape == (channels, 32, 32)


def test_a_dataset_of_unknown_colours_needs_a_shape() -> None:
    with pytest.raises(OptionError, match="'folder' may be grey or colour; give shape="):
        create("gen:ann+disc:ann@folder")
    with torch.device("meta"):
        create("gen:ann+disc:ann@folder", shape=(3, 32, 32))


def test_the_backend_computes_every_spiking_layer_and_is_no_part_of_the_name() -> None:
    for backend in catalog.names("backends", "[nr]*"):
        pair = create("gen:snn_extractor,width=4+disc:snn,width=4", backend=backend)
        layers = [
            layer
            for network in (pair.generator, pair.discriminator)
            for layer in network.modules()
            if getattr(layer, "is_spiking", False)
        ]
        assert len(layers) == 6
        assert {layer.backend for layer in layers} == {backend}
        assert backend not in str(pair.spec)
    with pytest.raises(UnknownNameError, match="no backend 'natve'; did you mean 'native'"):
        create("gen:ann+disc:ann", backend="natve")


def test_the_same_random_state_gives_the_same_networks() -> None:
    first, second = (
        torch.manual_seed(3) and create("gen:snn_full,width=4+disc:snn,width=4") for _ in range(2)
    )
    for part in ("generator", "discriminator"):
        one, other = (getattr(pair, part).state_dict() for pair in (first, second))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_neuron_by_name_takes_its_options_and_a_backend() -> None:
    layer = neuron("lif", backend="reference", beta=0.9, reset="hard")
    assert (layer.beta, layer.reset, layer.backend) == (0.9, "hard", "reference")
    assert layer(torch.ones(4, 2, 3)).shape == (4, 2, 3)
    with pytest.raises(UnknownNameError, match=r"no option of neuron 'lif' 'bta'.* 'beta'"):
        neuron("lif", bta=0.9)
    with pytest.raises(OptionError, match="neuron 'lif': beta is a decay"):
        neuron("lif", beta=2)
    with pytest.raises(OptionError, match="neuron 'lif': "):
        neuron("lif", beta="high")
    with pytest.raises(UnknownNameError, match="no neuron 'lfi'"):
        neuron("lfi")


# --- public names ---------------------------------------------------------------------------

PUBLIC = {
    "names": "(kind, pattern='*')",
    "create": "(spec, *, shape=None, backend=None)",
    "neuron": "(name, *, backend='native', **options)",
    "load": "(source, *, revision=None, backend=None, device=None, offline=None)",
}


def test_the_public_names_are_these() -> None:
    assert set(spikezoo.__all__) == {"Spec", "SpikeZooError", *PUBLIC}
    assert set(dir(spikezoo)) == {*spikezoo.__all__, "__version__"}
    with pytest.raises(AttributeError, match="module 'spikezoo' has no attribute 'nonsense'"):
        _ = spikezoo.nonsense


@pytest.mark.parametrize("name", spikezoo.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(spikezoo, name).__name__ == name


@pytest.mark.parametrize(("name", "expected"), PUBLIC.items())
def test_every_public_function_has_the_promised_signature(name: str, expected: str) -> None:
    signature = inspect.signature(getattr(spikezoo, name))
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == expected


@pytest.mark.parametrize(
    "code",
    [
        "import spikezoo",
        "import spikezoo.catalog",
        "import spikezoo; spikezoo.names('generators')",
        "import spikezoo; spikezoo.Spec.parse('gen:snn_back,T=8+disc:ann@mnist').slug",
        "import spikezoo; spikezoo.create",
        "import spikezoo.errors, spikezoo.registry, spikezoo.spec, spikezoo.zoo",
    ],
)
def test_importing_and_naming_imports_no_torch(code: str) -> None:
    heavy = ["torch", "numpy", "PIL", "sklearn", "pyarrow", "matplotlib", "huggingface_hub"]
    check = f"import sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
