"""Registries: built-ins, the decorator, and plugins installed as real small distributions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spikezoo import catalog
from spikezoo.errors import DuplicateNameError, PluginError, UnknownNameError
from spikezoo.registry import Registry


@pytest.fixture
def animals() -> Registry[Any]:
    """A registry of a kind that nothing on this machine has plugins for."""
    return Registry(
        "animals",
        {
            "dog": ("collections:OrderedDict", "barks"),
            "sea.dog": ("collections:Counter", "barks in water"),
            "wolf": ("no_such_module_here:Wolf", "howls"),
        },
    )


# --- names ----------------------------------------------------------------------------------


def test_names_are_sorted_and_chosen_by_wildcard(animals: Registry[Any]) -> None:
    assert animals.names() == ["dog", "sea.dog", "wolf"]
    assert animals.names("*dog") == ["dog", "sea.dog"]
    assert animals.names("[w]?lf") == ["wolf"]
    assert animals.names("cat") == []
    assert catalog.names("generators", "snn_m*") == ["snn_middle"]


def test_a_component_is_imported_when_it_is_asked_for(animals: Registry[Any]) -> None:
    import collections

    assert animals.get("dog") is collections.OrderedDict
    assert animals.source("wolf") == "spikezoo-gan"  # still not imported
    with pytest.raises(PluginError, match=r"'wolf' of spikezoo-gan .*No module named 'no_such"):
        animals.get("wolf")


@pytest.mark.parametrize(
    ("kind", "given", "nearest"),
    [
        ("generators", "snn_midle", "snn_middle"),
        ("generators", "SNN_Back", "snn_back"),
        ("datasets", "cifar", "cifar10"),
        ("readouts", "menbrane", "membrane"),
    ],
)
def test_an_unknown_name_says_what_was_given_the_nearest_and_all_there_are(
    kind: str, given: str, nearest: str
) -> None:
    for ask in (catalog.registry(kind).get, catalog.registry(kind).source):
        with pytest.raises(UnknownNameError) as caught:
            ask(given)
        assert str(caught.value).startswith(
            f"no {kind[:-1]} '{given}'; did you mean '{nearest}'? There are: "
        )
        for name in catalog.names(kind):
            assert name in str(caught.value)


def test_an_unknown_name_that_is_near_to_nothing_gets_no_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"^no neuron 'xyzzy'\. There are: .*lif"):
        catalog.registry("neurons").get("xyzzy")


def test_an_unknown_kind_says_the_nearest_kind() -> None:
    with pytest.raises(UnknownNameError, match="no kind 'generator'; did you mean 'generators'"):
        catalog.names("generator")


def test_every_built_in_can_be_imported_and_has_a_summary() -> None:
    for kind, registry in catalog.REGISTRIES.items():
        for name in registry.names():
            assert registry.get(name) is not None, (kind, name)
            if registry.source(name) == "spikezoo-gan":
                assert registry.entry(name).summary, (kind, name)


# --- the decorator --------------------------------------------------------------------------


@pytest.fixture
def cat(animals: Registry[Any]) -> type:
    @animals.register("cat")
    class Cat:
        pass

    return Cat


def test_the_decorator_adds_a_component_and_hands_it_back(
    animals: Registry[Any], cat: type
) -> None:
    assert cat.__name__ == "Cat"
    assert animals.get("cat") is cat
    assert "cat" in animals
    assert animals.names() == ["cat", "dog", "sea.dog", "wolf"]
    assert animals.source("cat") == f"module {__name__}"


def test_what_was_registered_can_be_taken_back(animals: Registry[Any], cat: type) -> None:
    animals.unregister("cat")
    assert "cat" not in animals
    animals.register("cat")(cat)
    assert animals.get("cat") is cat


def test_a_name_registered_twice_is_an_error_naming_both(animals: Registry[Any], cat: type) -> None:
    with pytest.raises(DuplicateNameError, match=r"'cat' is claimed by .*Cat\) and .*OtherCat\)"):

        @animals.register("cat")
        class OtherCat:
            pass

    assert animals.get("cat") is cat


def test_a_built_in_name_cannot_be_registered(animals: Registry[Any], cat: type) -> None:
    with pytest.raises(
        DuplicateNameError,
        match=r"'dog' is claimed by spikezoo-gan \(collections:OrderedDict\) and module .*Cat\)",
    ):
        animals.register("dog")(cat)


@pytest.mark.parametrize("name", ["Cat", "", "a-b", "a b", "a.", "1a", "a\n", "ä"])
def test_a_component_is_registered_under_a_name_of_the_grammar(
    animals: Registry[Any], cat: type, name: str
) -> None:
    with pytest.raises(UnknownNameError, match="is no name"):
        animals.register(name)(cat)


# --- plugins --------------------------------------------------------------------------------


class Site:
    """A folder of installed distributions, and a Python that has it on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        name: str,
        entry_points: str,
        *,
        version: str = "1.0",
        module: str = "",
        metadata: str | None = None,
    ) -> None:
        """Writes a distribution: its module, and the dist-info that pip would leave."""
        package = name.replace("-", "_")
        info = self.folder / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        if metadata is None:
            metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(entry_points)
        (self.folder / f"{package}.py").write_text(module)

    def run(self, code: str) -> Any:
        """What `code` leaves in `out`, run by a fresh interpreter; its stderr in `self.stderr`."""
        prelude = (
            "import json, sys\n"
            "from spikezoo import catalog, errors\n"
            "def error(call, *arguments):\n"
            "    try: call(*arguments)\n"
            "    except errors.SpikeZooError as e: return [type(e).__name__, str(e)]\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", f"{prelude}{code}\nprint(json.dumps(out))"],
            env=os.environ | {"PYTHONPATH": str(self.folder), "PYTHONWARNINGS": "error"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.stderr = done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


GOOD = "class Neuron:\n    pass\n\nclass Inner:\n    class Neuron:\n        pass\n"


def test_listing_every_kind_imports_no_torch_and_no_plugin(site: Site) -> None:
    site.install("zoo-good", "[spikezoo.neurons]\ngood = zoo_good:Neuron\n", module=GOOD)
    out = site.run(
        "names = {kind: catalog.names(kind) for kind in catalog.REGISTRIES}\n"
        "sources = [r.source(n) for r in catalog.REGISTRIES.values() for n in r.names()]\n"
        "heavy = ['torch', 'numpy', 'PIL', 'sklearn', 'pyarrow', 'huggingface_hub', 'zoo_good']\n"
        "out = [names, [name for name in heavy if name in sys.modules]]"
    )
    assert "good" in out[0]["neurons"]
    assert "snn_middle" in out[0]["generators"]
    assert out[1] == []


def test_a_plugin_is_listed_named_with_its_version_and_loaded(site: Site) -> None:
    site.install(
        "zoo-good",
        "[spikezoo.neurons]\ngood = zoo_good:Neuron\ngood.inner = zoo_good:Inner.Neuron\n"
        "[spikezoo.readouts]\ngood = zoo_good:Neuron\n"
        "[other.group]\nbad = nothing:at_all\n",
        version="1.2.3",
        module=GOOD,
    )
    out = site.run(
        "neurons = catalog.registry('neurons')\n"
        "out = [neurons.names('good*'), neurons.source('good'), 'zoo_good' in sys.modules,\n"
        "    neurons.get('good').__qualname__, neurons.get('good.inner').__qualname__,\n"
        "    catalog.names('readouts', 'g*'), 'bad' in neurons, neurons.conflicts()]"
    )
    assert out == [
        ["good", "good.inner"],
        "zoo-good 1.2.3",
        False,
        "Neuron",
        "Inner.Neuron",
        ["good"],
        False,
        [],
    ]


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise ValueError('out of cheese')", "ValueError: out of cheese"),
        ("import sys; sys.exit('no GPU')", "SystemExit: no GPU"),
        ("def f(:", "SyntaxError: "),
        ("", "AttributeError: module 'zoo_bad' has no attribute 'Neuron'"),
    ],
    ids=["library", "raises", "exits", "syntax", "attribute"],
)
def test_a_broken_plugin_fails_only_when_asked_for_with_name_version_and_cause(
    site: Site, module: str, cause: str
) -> None:
    site.install("zoo-bad", "[spikezoo.neurons]\nbad = zoo_bad:Neuron\n", module=module)
    site.install("zoo-good", "[spikezoo.neurons]\ngood = zoo_good:Neuron\n", module=GOOD)
    out = site.run(
        "r = catalog.registry('neurons')\n"
        "out = [r.names(), r.source('bad'), r.get('good').__name__, error(r.get, 'bad'),\n"
        "    catalog.registry('features').names(), error(r.get, 'bd')]"
    )
    assert {"bad", "good", "lif"} <= set(out[0])
    assert out[1] == "zoo-bad 1.0"
    assert out[2] == "Neuron"
    assert out[3][0] == "PluginError"
    assert "neuron 'bad' of zoo-bad 1.0 cannot be loaded from 'zoo_bad:Neuron'" in out[3][1]
    assert cause in out[3][1]
    assert out[5][0] == "UnknownNameError"


def test_a_broken_plugin_leaves_built_ins_usable(site: Site) -> None:
    site.install(
        "zoo-bad",
        "[spikezoo.surrogates]\nbad = zoo_bad:f\n[spikezoo.datasets]\nbad = zoo_bad:f\n",
        module="raise RuntimeError",
    )
    out = site.run(
        "import spikezoo\nout = [str(spikezoo.neuron('lif')), catalog.names('datasets', 'bad')]"
    )
    assert out[0].startswith("LIF(")
    assert out[1] == ["bad"]


def test_a_name_claimed_by_two_plugins_is_an_error_naming_both(site: Site) -> None:
    site.install("zoo-one", "[spikezoo.neurons]\nlif2 = zoo_one:Neuron\n", module=GOOD)
    site.install(
        "zoo-two",
        "[spikezoo.neurons]\nlif2 = zoo_two:Neuron\nmine = zoo_two:Neuron\n",
        version="2.0",
        module=GOOD,
    )
    out = site.run(
        "r = catalog.registry('neurons')\n"
        "out = [r.names('lif*'), error(r.get, 'lif2'), error(r.source, 'lif2'),\n"
        "    r.get('mine').__module__, [str(e) for e in r.conflicts()]]"
    )
    assert out[0] == ["lif", "lif2"]
    for kind, message in out[1:3]:
        assert kind == "DuplicateNameError"
        assert "zoo-one 1.0 (zoo_one:Neuron)" in message
        assert "zoo-two 2.0 (zoo_two:Neuron)" in message
        assert "rename or uninstall one of them" in message
    assert out[3] == "zoo_two"
    assert out[4] == [out[1][1]]


def test_a_plugin_that_claims_a_built_in_name_is_reported_and_the_built_in_answers(
    site: Site,
) -> None:
    site.install("zoo-thief", "[spikezoo.neurons]\nlif = zoo_thief:Neuron\n", module=GOOD)
    out = site.run(
        "r = catalog.registry('neurons')\n"
        "out = [r.names('lif'), r.source('lif'), r.entry('lif').target,\n"
        "    [str(e) for e in r.conflicts()]]"
    )
    assert out[:3] == [["lif"], "spikezoo-gan", "spikezoo.neurons.lif:LIF"]
    (message,) = out[3]
    assert "'lif' is claimed by spikezoo-gan (spikezoo.neurons.lif:LIF)" in message
    assert "and zoo-thief 1.0 (zoo_thief:Neuron)" in message


def test_the_decorator_refuses_the_name_of_a_plugin(site: Site) -> None:
    site.install("zoo-good", "[spikezoo.neurons]\ngood = zoo_good:Neuron\n", module=GOOD)
    out = site.run("out = error(catalog.registry('neurons').register('good'), dict)")
    assert out[0] == "DuplicateNameError"
    assert "'good' is claimed by zoo-good 1.0 (zoo_good:Neuron) and module builtins" in out[1]


def test_a_distribution_that_is_on_the_path_twice_counts_once(site: Site) -> None:
    site.install("zoo-good", "[spikezoo.neurons]\ngood = zoo_good:Neuron\n", module=GOOD)
    older = Site(site.folder / "older")
    older.install("zoo-good", "[spikezoo.neurons]\ngood = old:Old\n", version="0.9", module=GOOD)
    out = site.run(
        f"sys.path.append({str(older.folder)!r})\n"
        "r = catalog.registry('neurons')\n"
        "out = [r.source('good'), r.conflicts()]"
    )
    assert out == ["zoo-good 1.0", []]


@pytest.mark.parametrize(
    ("entry_points", "metadata", "warning"),
    [
        ("[spikezoo.neurons]\nno equals sign\n", None, "unreadable metadata"),
        ("[spikezoo.neurons]\nBad-Name = zoo_bad:Neuron\n", None, "'Bad-Name' of zoo-bad 1.0"),
        ("[spikezoo.neurons]\nbad = zoo_bad:Neuron\n", "", "names no distribution"),
    ],
    ids=["entry_points", "name", "metadata"],
)
def test_an_installation_that_cannot_be_read_is_left_out_with_a_warning(
    site: Site, entry_points: str, metadata: str | None, warning: str
) -> None:
    site.install("zoo-bad", entry_points, module=GOOD, metadata=metadata)
    site.install("zoo-good", "[spikezoo.neurons]\ngood = zoo_good:Neuron\n", module=GOOD)
    out = site.run("out = [catalog.names('neurons', '*ood'), catalog.names('neurons', '*ad*')]")
    assert out == [["good"], []]
    assert warning in site.stderr
