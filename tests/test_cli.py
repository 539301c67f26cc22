"""The command line: what it prints, where, and with which exit status."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import spikezoo
from spikezoo.catalog import REGISTRIES, names
from spikezoo.cli import main
from spikezoo.spec import Spec

TINY = ("gen:snn_middle,width=4,latent_dim=4,T=2", "disc:snn,width=4,T=2")
FAST = ("--batch-size", "16", "--side", "16", "--precision", "fp32")
GENERATORS, DISCRIMINATORS = names("generators"), names("discriminators", "*nn")


@pytest.fixture(autouse=True)
def _own_cache_one_thread(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKEZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # else the command's own would outlive a test
    monkeypatch.delenv("SPIKEZOO_DATA", raising=False)
    torch.set_num_threads(1)


def spikezoo_command(*arguments: object) -> Result:
    """Runs the command in this process."""
    return CliRunner().invoke(main, [str(word) for word in arguments], prog_name="spikezoo")


def refused(*arguments: object, status: int = 2) -> str:
    """The message of a command that fails as a command should: it is all that is printed."""
    result = spikezoo_command(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status
    assert result.stderr.startswith("spikezoo: error: ")
    assert result.stderr.count("spikezoo: error") == 1
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


def real(*arguments: object, code: str = "from spikezoo.cli import main; main()") -> str:
    """What a fresh Python prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# --- a fast start ---------------------------------------------------------------------------

HEAVY = ("torch", "torchvision", "numpy", "sklearn", "matplotlib", "pyarrow", "huggingface_hub")
WATCHED = f"""
import atexit, sys
heavy = {HEAVY!r}
atexit.register(lambda: print("HEAVY", *(name for name in heavy if name in sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",), ("--version",), ("list",), ("list", "generators", "snn_*"),
        ("train", "--help"), ("sample", "--help"), ("show", "--help"), ("list", "--help"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_and_list_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = WATCHED + "from spikezoo.cli import main\ntry: main()\nexcept SystemExit: pass"
    out = real(*arguments, code=code)
    assert out.splitlines()[-1] == "HEAVY"
    assert len(out) > 20


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = WATCHED + "import spikezoo; spikezoo.names('generators'); spikezoo.Spec; dir(spikezoo)"
    assert real(code=code) == "HEAVY\n"
    assert "torch" in real(code=WATCHED + "import spikezoo; spikezoo.load").split(), "a control"


def test_the_command_is_installed_and_so_is_the_module() -> None:
    script = Path(sys.executable).with_name("spikezoo")
    for command in ([script], [sys.executable, "-m", "spikezoo"]):
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert result.stdout == f"spikezoo, version {spikezoo.__version__}\n"


def test_a_mistake_is_a_message_on_stderr_in_a_fresh_process_too() -> None:
    command = [sys.executable, "-m", "spikezoo", "train", "gen:ann", "disc:an"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(
        r"spikezoo: error: no discriminator 'an'; did you mean 'ann'\? There are: ann, .*\n",
        result.stderr,
    )


def test_every_option_says_what_it_is_for() -> None:
    for command in main.commands.values():
        assert command.help, command.name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, (command.name, parameter.name)  # type: ignore[attr-defined]


# --- list -----------------------------------------------------------------------------------


def test_list_shows_every_kind_and_every_name() -> None:
    result = spikezoo_command("list")
    assert (result.exit_code, result.stderr) == (0, "")
    kinds = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert kinds == [kind for kind in REGISTRIES if names(kind)]
    listed = re.findall(r"^  (\S+)  ", result.stdout, re.MULTILINE)
    assert listed == [name for kind in kinds for name in names(kind)]


def test_list_of_one_kind_and_pattern() -> None:
    result = spikezoo_command("list", "generators", "snn_[bm]*")
    lines = result.stdout.splitlines()
    assert lines[0] == "generators"
    assert [line.split()[0] for line in lines[1:]] == ["snn_back", "snn_middle"]
    assert all(len(line.split()) > 2 for line in lines[1:]), "with a few words on each"
    assert "bce" in spikezoo_command("list", "losses").stdout


def test_list_of_nothing_says_so() -> None:
    result = spikezoo_command("list", "generators", "zzz*")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "none of the generators matches 'zzz*'\n"


def test_list_of_an_unknown_kind() -> None:
    assert "no kind 'generator'; did you mean 'generators'?" in refused("list", "generator")


# --- show -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gen", [name for name in GENERATORS if name != "ann"])
def test_show_compares_a_network_with_its_twin(gen: str) -> None:
    result = spikezoo_command("show", f"gen:{gen}", "disc:snn@cifar10", "--side", "48")
    assert result.exit_code == 0
    differences = re.findall(r"([+-][0-9.]+) % of the twin (gen|disc):ann", result.stdout)
    assert [kind for _, kind in differences] == ["gen", "disc"]
    assert all(abs(float(percent)) <= 1 for percent, _ in differences)
    assert "images [3, 48, 48]" in result.stdout
    assert f"slug cifar10-{gen}-snn" in result.stdout


def test_show_lists_options_layers_and_spikes() -> None:
    spec = "gen:snn_middle,T=8,beta=0.9+disc:snn"
    text = spikezoo_command("show", spec).stdout
    first, second, *_ = text.splitlines()
    assert first == "gen:snn_middle,T=8,neuron.beta=0.9+disc:snn@digits"
    assert "images [1, 32, 32]" in second
    options = re.findall("options  (.*)", text)
    assert len(options) == 2
    for word in (
        "T=8",
        "neuron=lif",
        "neuron.beta=0.9",
        "neuron.threshold=1.0",
        "readout=mean",
        "neuron.reset=soft",
        "neuron.surrogate=atan",
        "width=64",
        "latent_dim=100",
    ):
        assert word in options[0].split(", "), word  # fmt: skip
    assert "T=4" in options[1]
    marked = [line.split() for line in text.splitlines() if line.endswith("spikes")]
    assert [words[0] for words in marked] == ["spikes", *(f"spikes.{i}" for i in range(4))]
    assert " ".join(marked[0]) == "spikes LIF [T=8, N, 128, 16, 16] 0 spikes"
    assert "conv3           Conv2d       [N, 1, 32, 32]         577" in text


@pytest.mark.parametrize("options", ["", ",spectral_norm=true", ",spectral_norm=true,norm=layer"])
@pytest.mark.parametrize("disc", DISCRIMINATORS)
def test_the_layers_shown_hold_all_parameters(disc: str, options: str) -> None:
    text = spikezoo_command("show", "gen:ann", f"disc:{disc}{options}").stdout
    for part in text.split("\n\n")[1:]:
        rows = re.findall(r"\]  +([0-9,]+)(?: +spikes)?$", part, re.MULTILINE)
        (total,) = re.findall(r"^  ([0-9,]+) parameters", part, re.MULTILINE)
        assert sum(int(row.replace(",", "")) for row in rows) == int(total.replace(",", ""))


def test_show_refuses_what_cannot_be_built() -> None:
    assert "nearest side is 32" in refused("show", "gen:ann", "disc:ann", "--side", "30")
    assert "did you mean 'neuron.beta'" in refused("show", "gen:snn_back,bta=1", "disc:ann")
    assert "no 'disc:' part in 'gen:ann'" in refused("show", "gen:ann")


# --- train: what is refused -----------------------------------------------------------------

PAIR = ("gen:ann,width=4", "disc:ann,width=4")


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("gen:snn_midle", "disc:ann"), ["no generator 'snn_midle'", "did you mean 'snn_middle'"]),
        (("gen:snn_middle,thresold=1", "disc:ann"), ["'thresold'", "mean 'neuron.threshold'"]),
        (("gen:snn_middle,T=0", "disc:ann"), ["T are at least 1", "given 100 and 0"]),
        (("gen:snn_middle,T=x", "disc:ann"), ["option T is a whole number, given 'x'"]),
        (("gen:snn_middle,neuron=lfi", "disc:ann"), ["no neuron 'lfi'", "did you mean 'lif'"]),
        (("gen:ann",), ["no 'disc:' part", "gen:snn_middle,T=8+disc:snn@mnist"]),
        (("nonsense",), ["'nonsense' is no part"]),
        (("gen:ann", "disc:ann@mnits"), ["no dataset 'mnits'", "did you mean 'mnist'"]),
        (("gen:ann", "disc:ann@folder"), ["needs the folder of the images: --data DIR"]),
        (("gen:ann", "disc:ann@folder", "--data", "/no/such"), ["no folder /no/such"]),
        ((*PAIR, "--loss", "bec"), ["no loss 'bec'", "did you mean 'bce'"]),
        ((*PAIR, "--backend", "naitve"), ["no backend 'naitve'", "did you mean 'native'"]),
        ((*PAIR, "--recipe", "papr"), ["--recipe", "'papr'", "default", "paper"]),
        ((*PAIR, "--precision", "fp8"), ["--precision", "'fp8'", "bf16"]),
        ((*PAIR, "--side", "30"), ["divisible by 16, given 30; the nearest is 32"]),
        ((*PAIR, "--side", "0"), ["divisible by 16, given 0; the nearest is 16"]),
        ((*PAIR, "--side", "-16"), ["given -16; the nearest is 16"]),
        ((*PAIR, "--lr-g", "-1"), ["lr_g is 0 or more, given -1"]),
        ((*PAIR, "--lr-d", "nan"), ["lr_d is 0 or more, given nan"]),
        ((*PAIR, "--r1", "-0.5"), ["r1 is 0 or more"]),
        ((*PAIR, "--ema-halflife-kimg", "inf"), ["ema_halflife_kimg is 0 or more, given inf"]),
        ((*PAIR, "--lr-g", "fast"), ["--lr-g", "'fast'"]),
        ((*PAIR, "--kimg", "-1"), ["--kimg", "-1"]),
        ((*PAIR, "--kimg", "0"), ["--kimg"]),
        ((*PAIR, "--kimg", "0.0001"), ["kimg is 0.001 (one image) or more, given 0.0001"]),
        ((*PAIR, "--kimg", "inf"), ["given inf"]),
        ((*PAIR, "--kimg", "nan"), ["given nan"]),
        ((*PAIR, "--batch-size", "1"), ["--batch-size", "1"]),
        ((*PAIR, "--batch-size", "5000"), ["1498 images", "5000", "smaller batch size"]),
        ((*PAIR, "--seed", "-1"), ["--seed"]),
        ((*PAIR, "--device", "gpu"), ["device 'gpu' cannot be used here", "'cpu' always can"]),
        ((*PAIR, "--device", "cuda:99"), ["device 'cuda:99' cannot be used here"]),
        ((*PAIR, "--nonsense"), ["--nonsense", "spikezoo train --help"]),
        ((), ["PART", "spikezoo train --help"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_train_refuses_a_mistake(
    arguments: tuple[str, ...], messages: list[str], tmp_path: Path
) -> None:
    text = refused("train", *arguments, "--out", tmp_path / "runs")
    for message in messages:
        assert message in text
    assert not (tmp_path / "runs").exists(), "a refused run leaves nothing behind"


def test_a_dataset_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (20, 20), 80 * i).save(tmp_path / f"{i}.png")
    text = refused("train", *PAIR[:1], f"{PAIR[1]}@folder", "--data", tmp_path, "--out", tmp_path)
    assert "3 images, fewer than one batch of 64" in text


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"no image")
    text = refused("train", *PAIR[:1], f"{PAIR[1]}@folder", "--data", tmp_path, "--out", tmp_path)
    assert f"{tmp_path / 'photo.png'}: the image cannot be decoded" in text


def test_an_unknown_command_is_refused() -> None:
    assert "No such command 'trian'" in refused("trian")


def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = refused("train", *PAIR, *FAST, "--out", tmp_path / "file" / "runs", status=1)
    assert str(tmp_path / "file") in text


def test_debug_raises_the_error_itself() -> None:
    result = spikezoo_command("--debug", "train", "gen:nope", "disc:ann")
    assert isinstance(result.exception, spikezoo.SpikeZooError)
    command = [sys.executable, "-m", "spikezoo", "--debug", "show", "gen:nope+disc:ann"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.stderr.startswith("Traceback")
    assert shown.returncode != 0


# --- train: what is done --------------------------------------------------------------------


def test_a_dry_run_prints_the_config_and_does_nothing(tmp_path: Path) -> None:
    arguments = [*TINY, *FAST, "--lr-g", "0.5", "--kimg", "3", "--out", tmp_path / "runs"]
    result = spikezoo_command("train", *arguments, "--dry-run")
    assert result.exit_code == 0
    config = json.loads(result.stdout)
    spec = Spec.from_json(config["spec"])
    assert str(spec) == config["name"]
    assert spec == Spec.parse("+".join(TINY))
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert config["shape"] == [1, 16, 16]
    assert config["generator"]["options"]["neuron.beta"] == 0.5, "defaults are written out"
    training = config["training"]
    assert (training["lr_g"], training["kimg"], training["side"]) == (0.5, 3, 16)
    assert not (tmp_path / "runs").exists()


def test_a_recipe_sets_what_is_not_given() -> None:
    paper = ("train", *PAIR, "--recipe", "paper", "--side", "16", "--dry-run")
    training = json.loads(spikezoo_command(*paper).stdout)["training"]
    assert (training["lr_g"], training["lr_d"], training["loss"]) == (2e-4, 2e-4, "bce")
    assert (training["adam_beta1"], training["adam_beta2"]) == (0.5, 0.999)
    assert training["batch_size"] == 64
    given = json.loads(spikezoo_command(*paper, "--lr-d", "0.1").stdout)["training"]
    assert given == {**training, "lr_d": 0.1}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by the command, whose last line names its grid."""
    out = tmp_path_factory.mktemp("cli")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "SPIKEZOO_CACHE": str(tmp_path_factory.getbasetemp() / "cache"),
    }
    command = [sys.executable, "-m", "spikezoo", "train", *TINY, *FAST, "--kimg", "0.4"]
    result = subprocess.run(
        [*command, "--out", out], capture_output=True, text=True, check=True, env=environment
    )
    last = result.stdout.splitlines()[-1]
    assert last.startswith("0.4 kimg done; 64 images: ")
    grid = Path(last.removeprefix("0.4 kimg done; 64 images: "))
    assert "Traceback" not in result.stderr
    with Image.open(grid) as image:
        assert (image.format, image.size) == ("PNG", (8 * 18 + 2, 8 * 18 + 2))
    return grid.parent.parent


def test_training_ends_by_naming_its_grid(run: Path) -> None:
    """The fixture looks at what is printed; here is what lies in the folder."""
    assert run.name == spikezoo.create("+".join(TINY)).spec.slug
    for name in ("config.json", "metrics.jsonl", "curves.png", "samples", "checkpoints"):
        assert (run / name).exists(), name


def test_training_on_a_folder_of_colour_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(20):
        pixels = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    result = spikezoo_command(
        "train", "gen:snn_back,width=4", "disc:ann,width=4@folder", *FAST,
        "--kimg", "0.048", "--data", tmp_path / "images", "--out", tmp_path / "runs",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    grid = Path(result.stdout.splitlines()[-1].rpartition(": ")[2])
    with Image.open(grid) as image:
        assert image.mode == "RGB"


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["train", *TINY, *FAST, "--snapshot-kimg", "0.032", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "spikezoo", *arguments]
    with subprocess.Popen(
        [*command, "--kimg", "500"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/checkpoints/[0-9]*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    match = re.fullmatch(
        r"stopped at ([0-9.]+) kimg and saved; go on with: spikezoo (.*) --resume", last
    )
    assert match, last
    assert match[2] == " ".join([*arguments, "--kimg", "500"])
    (run,) = tmp_path.iterdir()
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())[-1]
    assert int(saved) == round(float(match[1]) * 1000)
    assert (run / "curves.png").exists()

    # What it says works, and goes on from there.
    arguments[-1:] = [str(tmp_path), "--kimg", f"{int(saved) / 1000 + 0.032:g}", "--resume"]
    result = spikezoo_command(*arguments)
    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == [run]


# --- sample ---------------------------------------------------------------------------------


def test_sample_draws_a_grid(run: Path, tmp_path: Path) -> None:
    result = spikezoo_command("sample", run, "--out", tmp_path / "grid.png")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'grid.png'}\n")
    newest = sorted((run / "samples").glob("kimg*.png"))[-1]
    with Image.open(tmp_path / "grid.png") as ours, Image.open(newest) as theirs:
        assert np.array_equal(np.asarray(ours), np.asarray(theirs)), "the run's own last grid"


def test_sample_without_out_writes_into_the_run(run: Path) -> None:
    result = spikezoo_command("sample", run, "--n", "4", "--columns", "2")
    assert Path(result.stdout.strip()) == run / "samples" / "seeds-0-3.png"
    with Image.open(run / "samples" / "seeds-0-3.png") as image:
        assert image.size == (2 * 18 + 2, 2 * 18 + 2)


def test_sample_writes_an_image_per_seed(run: Path, tmp_path: Path) -> None:
    result = spikezoo_command(
        "sample", run, "--seeds", "3,10-11", "--images", "--out", tmp_path / "images",
        "--backend", "reference",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    files = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert files == ["000003.png", "000010.png", "000011.png"]
    drawn = spikezoo.load(run).sample([10])[0, 0]
    with Image.open(tmp_path / "images" / "000010.png") as image:
        assert np.array_equal(np.asarray(image), drawn.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "x"), "seeds are written like 0-63 or 1,5,10-12, given 'x'"),
        (("--seeds", ""), "given ''"),
        (("--seeds", "9-1"), "'9-1' is no range of seeds from low to high"),
        (("--seeds", "-1"), "given '-1'"),
        (("--seeds", "1", "--n", "3"), "give one of them"),
        (("--n", "0"), "--n"),
        (("--n", "100000000000"), "at most"),
        (("--columns", "0"), "--columns"),
        (("--out", "grid.jpg"), "is a .png file, given 'grid.jpg'; or use --images"),
        (("--backend", "nativ"), "did you mean 'native'"),
        (("--device", "nowhere"), "device 'nowhere' cannot be used here"),
    ],
)
def test_sample_refuses_a_mistake(arguments: tuple[str, ...], message: str, run: Path) -> None:
    before = sorted(run.rglob("*"))
    assert message in refused("sample", run, *arguments)
    assert sorted(run.rglob("*")) == before


def test_sample_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert "is no run and no model: it has no config.json" in refused("sample", tmp_path, status=1)
    assert "is no run" in refused("sample", tmp_path / "missing", status=1)
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in refused("sample", tmp_path, status=1)


def test_seeds_too_many_for_a_file_name_need_a_name(run: Path, tmp_path: Path) -> None:
    seeds = ",".join(str(10**17 + i) for i in range(20))
    assert "give one with --out" in refused("sample", run, "--seeds", seeds)
    result = spikezoo_command("sample", run, "--seeds", seeds, "--out", tmp_path / "grid.png")
    assert result.exit_code == 0, result.output
