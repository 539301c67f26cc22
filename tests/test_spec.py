"""The grammar: tables of texts, and properties over all texts."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikezoo.errors import SpecError
from spikezoo.spec import MAX_LENGTH, Part, Spec

# As huggingface_hub.utils.validate_repo_id has it; it also refuses "--", ".." and a final ".git".
HUB_REPO_NAME = re.compile(r"\b[\w\-.]{1,96}\b", re.ASCII)

CANONICAL = [
    ("gen:ann+disc:ann@mnist", "gen:ann+disc:ann@mnist"),
    # Dataset, white space and order.
    ("gen:ann+disc:ann", "gen:ann+disc:ann@digits"),
    ("gen:ann disc:ann", "gen:ann+disc:ann@digits"),
    ("disc:ann+gen:snn_back", "gen:snn_back+disc:ann@digits"),
    ("  disc:ann \t+\n gen:ann  @  mnist ", "gen:ann+disc:ann@mnist"),
    ("gen:ann+disc:ann@my.set_2", "gen:ann+disc:ann@my.set_2"),
    ("gen:snntorch.synaptic+disc:a1", "gen:snntorch.synaptic+disc:a1@digits"),
    # Options sorted by key.
    ("gen:a,z=1,T=8,b=x+disc:d", "gen:a,T=8,b=x,z=1+disc:d@digits"),
    ("gen:a,neuron.beta=0.9,neuron=lif+disc:d", "gen:a,neuron=lif,neuron.beta=0.9+disc:d@digits"),
    # One spelling per number.
    ("gen:a,k=8.0+disc:d", "gen:a,k=8+disc:d@digits"),
    ("gen:a,k=8.+disc:d", "gen:a,k=8+disc:d@digits"),
    ("gen:a,k=008+disc:d", "gen:a,k=8+disc:d@digits"),
    ("gen:a,k=1e1+disc:d", "gen:a,k=10+disc:d@digits"),
    ("gen:a,k=1E5+disc:d", "gen:a,k=100000+disc:d@digits"),
    ("gen:a,k=0.90+disc:d", "gen:a,k=0.9+disc:d@digits"),
    ("gen:a,k=.9+disc:d", "gen:a,k=0.9+disc:d@digits"),
    ("gen:a,k=-0.0+disc:d", "gen:a,k=0+disc:d@digits"),
    ("gen:a,k=0.00001+disc:d", "gen:a,k=1e-05+disc:d@digits"),
    ("gen:a,k=9007199254740991+disc:d", "gen:a,k=9007199254740991+disc:d@digits"),
    # Words, and what only looks like a number.
    ("gen:a,k=TRUE,l=False+disc:d", "gen:a,k=true,l=false+disc:d@digits"),
    ("gen:a,k=org/name:v1.2-b+disc:d", "gen:a,k=org/name:v1.2-b+disc:d@digits"),
    ("gen:a,k=1.2.3+disc:d", "gen:a,k=1.2.3+disc:d@digits"),
    ("gen:a,k=1_000+disc:d", "gen:a,k=1_000+disc:d@digits"),
    ("gen:a,k=nan,l=inf+disc:d", "gen:a,k=nan,l=inf+disc:d@digits"),
]

REFUSED = [
    ("", "'' is no part"),
    ("   ", "'' is no part"),
    ("gen:ann", "no 'disc:' part"),
    ("disc:ann", "no 'gen:' part"),
    ("ann+disc:ann", "'ann' is no part"),
    ("gen:a+gen:b+disc:d", "two gen parts: 'gen:a' and 'gen:b'"),
    ("gen:a+disc:d+disc:d", "two disc parts"),
    ("gan:a+disc:d", "part kind 'gan' is neither 'gen' nor 'disc'"),
    ("Gen:a+disc:d", "part kind 'Gen'"),
    ("gen :a+disc:d", "'gen' is no part"),
    ("gen:+disc:d", "'' cannot be the name of a gen"),
    ("gen:Ann+disc:d", "'Ann' cannot be the name of a gen"),
    ("gen:1a+disc:d", "'1a' cannot be the name"),
    ("gen:a.+disc:d", "'a.' cannot be the name"),
    ("gen:a..b+disc:d", "'a..b' cannot be the name"),
    ("gen:a-b+disc:d", "'a-b' cannot be the name"),
    ("gen:ä+disc:d", "'ä' cannot be the name"),
    ("gen:a\x00+disc:d", r"'a\\x00' cannot be the name"),
    ("gen:a++disc:d", "'' is no part"),
    ("gen:a+disc:d+", "'' is no part"),
    ("gen:a,+disc:d", "'' is no option: KEY=VALUE"),
    ("gen:a,T+disc:d", "'T' is no option: KEY=VALUE"),
    ("gen:a,T=+disc:d", "'' cannot be the value"),
    ("gen:a,=8+disc:d", "'' cannot be the name of an option"),
    ("gen:a,T=8,T=9+disc:d", "option 'T' is given twice in 'gen:a'"),
    ("gen:a,T=8,T=8+disc:d", "option 'T' is given twice"),
    ("gen:a,T==8+disc:d", "'=8' cannot be the value"),
    ("gen:a,T= 8+disc:d", "'' cannot be the value"),
    ("gen:a,T=1e+5+disc:d", "'5' is no part"),
    ("gen:a,k=ü+disc:d", "'ü' cannot be the value"),
    ("gen:a,k=٣+disc:d", "'٣' cannot be the value"),
    ("gen:a,k=1e999+disc:d", "'1e999' is too large a number"),
    ("gen:a,k=9007199254740993+disc:d", "'9007199254740993' is too large a number"),
    ("gen:a+disc:d@", "no dataset behind '@'"),
    ("gen:a+disc:d@ ", "no dataset behind '@'"),
    ("@mnist", "'' is no part"),
    ("gen:a+disc:d@x@y", "'x@y' cannot be the name of a dataset"),
    ("gen:a@mnist+disc:d", "no 'disc:' part"),
    ("gen:a disc:d@mnist,T=8", "'mnist,T=8' cannot be the name of a dataset"),
    ("gen:a+disc:d@" + "x" * MAX_LENGTH, f"at most {MAX_LENGTH} characters"),
]


@pytest.mark.parametrize(("text", "canonical"), CANONICAL)
def test_a_spec_has_one_spelling(text: str, canonical: str) -> None:
    assert str(Spec.parse(text)) == canonical
    assert str(Spec.parse(canonical)) == canonical


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_text_that_is_no_spec_is_refused_and_the_message_says_why(
    text: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        Spec.parse(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_part_stands_only_in_its_own_place() -> None:
    with pytest.raises(SpecError, match="'disc:ann' stands where a gen part is wanted"):
        Spec(Part("disc", "ann"), Part("gen", "ann"))


def test_a_text_whose_canonical_text_would_be_too_long_is_refused() -> None:
    options = "".join(f",k{i}=1e15" for i in range(180))
    text = f"gen:a{options}+disc:d"
    assert len(text) < MAX_LENGTH
    with pytest.raises(SpecError, match=f"at most {MAX_LENGTH} characters"):
        Spec.parse(text)


def test_the_slug_is_plain_without_options_and_has_eight_hex_digits_with_them() -> None:
    assert Spec.parse("gen:snn_back+disc:ann@cifar10").slug == "cifar10-snn_back-ann"
    with_options = Spec.parse("gen:snn_back,T=8+disc:ann@cifar10").slug
    assert re.fullmatch(r"cifar10-snn_back-ann-[0-9a-f]{8}", with_options)
    assert with_options == Spec.parse("disc:ann gen:snn_back,T=8.0 @cifar10").slug


@pytest.mark.parametrize(
    "text",
    [
        "gen:a+disc:x.git",
        f"gen:{'a' * 300}+disc:b",
        f"gen:{'a.' * 40}a+disc:b@x",
        f"gen:{'a' * 72}+disc:b",  # cut right behind a '-'
        f"gen:{'a' * 71}.b+disc:b,T=8",  # cut right behind a '.'
        "gen:a_+disc:b_@c_",
    ],
)
def test_the_slug_of_an_awkward_name_is_safe(text: str) -> None:
    assert_safe(Spec.parse(text).slug)


# --- properties -----------------------------------------------------------------------------

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}(\.[a-z0-9_]{1,8})?", fullmatch=True)
keys = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}(\.[A-Za-z0-9_]{1,8})?", fullmatch=True)
values = st.one_of(
    st.integers(-(2**53) + 1, 2**53 - 1).map(str),
    st.floats(-1e15, 1e15).map(lambda x: f"{x:.6e}".replace("e+", "e")),
    st.floats(-1e15, 1e15).map(lambda x: repr(x).replace("e+", "e")),
    st.sampled_from(["true", "FALSE", "nan", "-inf", ".5", "5.", "1_0", "0x1", "1e1.5", "--1"]),
    st.from_regex(r"[A-Za-z_/:][A-Za-z0-9_./:\-]{0,11}", fullmatch=True),
)
options = st.dictionaries(keys, values, max_size=4).map(lambda d: tuple(d.items()))
specs = st.builds(
    Spec,
    st.builds(Part, st.just("gen"), names, options),
    st.builds(Part, st.just("disc"), names, options),
    names,
)
# So few that two of them are often equal, however they are spelled.
few = st.builds(
    Spec,
    st.builds(
        Part,
        st.just("gen"),
        st.sampled_from(["a", "a.b"]),
        st.permutations([("k", "1"), ("k.l", "0.5")])
        | st.sampled_from([(), (("k", "1.0"), ("k.l", ".5")), (("k", "1e0"),)]),
    ),
    st.just(Part("disc", "d")),
    st.sampled_from(["x", "y"]),
)
# Text near the grammar: its own words and signs in any order, with a little of everything else.
tokens = st.one_of(
    st.sampled_from(["gen:", "disc:", "gen:a", "disc:d", "@", "+", ",", "=", ".", ":", "-", "T=8"]),
    st.sampled_from([" ", "\n", "\u2028", "1e999", "-0", "0.10", "1e5", "true", "@digits", "\x00"]),
    names,
    values,
    st.text(max_size=3),
)
texts = st.one_of(st.text(), st.lists(tokens, max_size=16).map("".join))
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | names,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["gen", "disc", "dataset", "name", "options", "T"]) | st.text(),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def assert_safe(slug: str) -> None:
    """A folder name on any system, and a repo name that the Hub takes."""
    assert HUB_REPO_NAME.fullmatch(slug)
    assert "--" not in slug
    assert ".." not in slug
    assert not slug.endswith((".git", "."))


@given(texts)
def test_any_text_is_a_spec_whose_text_is_a_fixed_point_or_raises_spec_error(text: str) -> None:
    try:
        spec = Spec.parse(text)
    except SpecError:
        return
    canonical = str(spec)
    assert Spec.parse(canonical) == spec
    assert str(Spec.parse(canonical)) == canonical


@given(specs)
def test_text_and_json_lead_back_to_the_same_spec(spec: Spec) -> None:
    read = Spec.parse(str(spec))
    stored = json.loads(json.dumps(read.to_json()))
    assert Spec.from_json(stored) == read == spec
    assert str(Spec.from_json(stored)) == str(spec)


@given(specs | few, few)
def test_specs_are_equal_exactly_where_their_texts_are(one: Spec, other: Spec) -> None:
    assert (one == other) == (str(one) == str(other))
    if one == other:
        assert hash(one) == hash(other)
        assert one.slug == other.slug


@given(st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-9e15, 9e15))
def test_a_number_has_one_spelling_and_keeps_its_value(number: float) -> None:
    spellings = [repr(number), f"{number:.17e}", f"{float(number):.1100f}"]
    spelled = {
        Part("gen", "a", (("k", text.replace("e+", "e")),)).options[0][1] for text in spellings
    }
    assert len(spelled) == 1
    assert float(spelled.pop()) == number


@given(specs)
def test_the_order_in_which_parts_and_options_are_given_does_not_matter(spec: Spec) -> None:
    gen, disc = (
        ",".join([f"{p.kind}:{p.name}", *(f"{k}={v}" for k, v in reversed(p.options))])
        for p in (spec.gen, spec.disc)
    )
    assert Spec.parse(f"{disc} {gen} @{spec.dataset}") == spec


@given(specs)
def test_the_slug_is_a_safe_name_for_a_folder_and_a_repo(spec: Spec) -> None:
    assert_safe(spec.slug)


@given(json_like)
def test_json_that_is_no_spec_raises_spec_error_and_nothing_else(data: object) -> None:
    with pytest.raises(SpecError):
        Spec.from_json(data)


@given(json_like, json_like, json_like)
def test_json_of_the_right_shape_is_a_spec_or_raises_spec_error(
    name: object, options: object, dataset: object
) -> None:
    part = {"name": name, "options": options}
    try:
        spec = Spec.from_json({"gen": part, "disc": part, "dataset": dataset})
    except SpecError:
        return
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "options",
    [{"T": 8}, {"T": None}, {"T": True}, {"T": ["8"]}, {"T": "8 "}, {"": "8"}, [], None, "T=8"],
)
def test_options_in_json_are_texts(options: object) -> None:
    good = {"name": "ann", "options": {}}
    with pytest.raises(SpecError):
        Spec.from_json({"gen": {"name": "ann", "options": options}, "disc": good, "dataset": "x"})
