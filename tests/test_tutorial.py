"""docs/add_a_neuron.md followed to the letter, and the packages of `spikezoo plugin new`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from click.testing import CliRunner

from spikezoo import testing
from spikezoo.catalog import REGISTRIES
from spikezoo.cli import main
from spikezoo.errors import ContractError, DuplicateNameError, OptionError
from spikezoo.scaffold import new_plugin

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_neuron.md").read_text(encoding="utf-8")
# ```sh: commands; ```text: what they print; ```python FILE: what to put there.
BLOCKS = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def environment(folder: Path) -> dict[str, str]:
    """A new virtual environment that sees all that is installed here; for a PATH of its own."""
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    # addsitedir, not a bare path, reads the .pth files there: of editable installations.
    here = [sysconfig.get_path("purelib"), str(ROOT)]
    site.joinpath("here.pth").write_text(
        f"import site; site.addsitedir({here[0]!r})\n{here[1]}\n", encoding="utf-8"
    )
    for command in ("pip", "pytest", "spikezoo"):
        script = folder / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {command} "$@"\n')
        script.chmod(0o755)
    ours = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's word for: no isolation
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "SPIKEZOO_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PIP"))} | ours


def shell(script: str, cwd: Path, env: dict[str, str]) -> str:
    """What a script prints; it stops at the first command that fails."""
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", script], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_page_works_word_for_word(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    script, wanted = "", []
    for language, file, text in BLOCKS:
        if language == "sh":
            script += text
        elif language == "python":
            assert re.search(rf"Put\s+this in `{file}`:\n\n```python {file}\n", PAGE)
            script += f"cat > {file} <<'END'\n{text}END\n"
        else:
            wanted += text.splitlines()
    printed = shell(script, folder, environment(tmp_path / "venv"))
    rest = printed
    for line in wanted:
        assert line in rest, f"'{line}' is missing, or not in this place, in:\n{printed}"
        rest = rest.partition(line)[2]


def test_page_ends_in_the_package_of_the_repository() -> None:
    modules = {file: text for language, file, text in BLOCKS if language == "python"}
    package = ROOT / "plugins" / "spikezoo-stochastic"
    module = package / "spikezoo_stochastic.py"
    assert modules[module.name] == module.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "broken", "message"),
    [
        (" < p if self.training else h >= self.threshold", " < p", "first at time step"),
        (" + (p - p.detach())", "", "no gradient flows"),
    ],
)
def test_what_the_page_tells_to_break_fails(code: str, broken: str, message: str) -> None:
    (module,) = (text for _, file, text in BLOCKS if file == "spikezoo_stochastic.py")
    assert code in module
    scope = {"__name__": "spikezoo_stochastic"}
    exec(module.replace(code, broken), scope)  # noqa: S102  # the page's own code
    with pytest.raises(ContractError, match=message):
        testing.check_neuron(scope["Stochastic"])


def test_page_names_every_check() -> None:
    checks = {name for name in vars(testing) if name.startswith("check_")}
    assert checks == set(re.findall(r"^\| `(check_\w+)\(", PAGE, re.MULTILINE))
    assert "feature extractor" in PAGE
    assert "features" in REGISTRIES


# --- spikezoo plugin new --------------------------------------------------------------------


NEW = [
    ("fading", "spikezoo-fading", "spikezoo_fading", "Fading"),
    ("my_neuron2", "spikezoo-my-neuron2", "spikezoo_my_neuron2", "MyNeuron2"),
    ("spikezoo-two-words", "spikezoo-two-words", "spikezoo_two_words", "TwoWords"),
]


@pytest.mark.parametrize(("name", "folder", "module", "neuron"), NEW)
def test_new_package_has_its_four_files(
    name: str, folder: str, module: str, neuron: str, tmp_path: Path
) -> None:
    package = new_plugin(name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    files = {path.name: path.read_text() for path in package.iterdir()}
    assert set(files) == {"README.md", "pyproject.toml", f"{module}.py", f"test_{module}.py"}
    assert f'= "{module}:{neuron}"' in files["pyproject.toml"]
    assert not [file for file, text in files.items() if re.search(r"<\w+>", text)]


def test_new_packages_pass_their_own_tests(tmp_path: Path) -> None:
    for name, *_ in NEW:
        new_plugin(name, tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", OptionError, "'' names no neuron"),
        ("Stochastic", OptionError, "'Stochastic' names no neuron: lower-case letters"),
        ("2lif", OptionError, "a letter first, like 'my_neuron'"),
        ("a.b", OptionError, "names no neuron"),
        ("a__b", OptionError, "names no neuron"),
        ("ends_", OptionError, "names no neuron"),
        ("../up", OptionError, "names no neuron"),
        ("spikezoo-", OptionError, "names no neuron"),
        ("none", OptionError, "a class None would hide another"),
        ("tensor", OptionError, "a class Tensor would hide another"),
        ("option_error", OptionError, "a class OptionError would hide another"),
        ("test_pulse", OptionError, "pytest would take a class TestPulse for tests"),
        ("lif", DuplicateNameError, "spikezoo-gan has a neuron 'lif' already"),
        ("gan", DuplicateNameError, "'spikezoo-gan' is SpikeZoo itself"),
    ],
)
def test_name_that_cannot_be_used_is_refused(
    name: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        new_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_command_writes_here_and_never_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(main, ["plugin", "new", "fading"])
    assert first.exit_code == 0
    assert first.stdout.startswith("spikezoo-fading written; next: pip install --editable ")
    readme = tmp_path / "spikezoo-fading" / "README.md"
    readme.write_text("mine")
    again = CliRunner().invoke(main, ["plugin", "new", "fading"])
    assert again.exit_code == 2
    assert "'spikezoo-fading' exists; choose another name" in again.stderr
    assert readme.read_text() == "mine"
