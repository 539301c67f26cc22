"""From a run to a folder that can be published, and the checks that such a folder must pass.

config.json                what it is, all that reproduces it, what was measured, hashes
model.safetensors          the averaged (EMA) generator
discriminator.safetensors  the discriminator of the same moment
probe.safetensors          the images of two seeds, for checking a load on another machine
samples.png                the images of seeds 0 to 63
README.md                  the card
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikezoo import card, checkpoint, cost, files, model, sample
from spikezoo.backends import backends_of, set_backend
from spikezoo.describe import build_twin, parameters
from spikezoo.errors import CheckpointError, JobError, OptionError, SpikeZooError
from spikezoo.neurons import Neuron

CARD, PROBE, SAMPLES = "README.md", "probe.safetensors", "samples.png"
HASHED = (model.WEIGHTS, model.DISCRIMINATOR, PROBE, SAMPLES)
FILES = (model.CONFIG, CARD, *HASHED)
PROBE_SEEDS = (0, 1)
# Between machines, sums round differently and a potential at its threshold may fall on the other
# side: a few pixels move by more than rounding does, an image never becomes another.
PIXEL_TOLERANCE, MOVED_PIXELS = 0.02, 0.01
NUMBER_TOLERANCE = 0.01
BACKEND_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """One thing that `verify` looked at: what, and what is wrong with it, if anything."""

    name: str
    found: str
    wrong: bool = False


# --- export ---------------------------------------------------------------------------------


def export(run: Path, out: Path, *, half: bool = False, licence: str = "mit") -> Path:
    """Writes the newest checkpoint of a run as a folder that can be published.

    Args:
        out: a folder that is not there yet.
        half: store weights as float16, at half the size; they are read as float32.
        licence: of the model, by the Hub's identifier.

    Raises:
        CheckpointError: no run there, or weights that float16 cannot hold.
        OptionError: `out` is already there.
    """
    if out.exists():
        raise OptionError(f"'{out}' is already there; give another folder, or remove it first")
    trained = model.open_folder(run)
    found, _ = checkpoint.newest(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"'{run}' is no run but an exported model; copy the folder instead")
    dtype = torch.float16 if half else torch.float32
    generator = trained.generator
    weights = _stored(generator.state_dict(), dtype)
    model.load_weights(generator, weights, "", "the averaged generator in this precision")
    prefix = "discriminator."
    discriminator = {
        key.removeprefix(prefix): tensor
        for key, tensor in found.tensors.items()
        if key.startswith(prefix)
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        save_file(weights, folder / model.WEIGHTS)
        save_file(_stored(discriminator, dtype), folder / model.DISCRIMINATOR)
        probe = _images(generator)
        save_file({"images": probe, "seeds": torch.tensor(PROBE_SEEDS)}, folder / PROBE)
        sample.save_grid(trained.sample(range(64)), folder / SAMPLES)
        images = found.state["images"]
        asked = trained.config["training"]
        config = {
            **trained.config,
            # A run that was stopped early, or lengthened since, has not shown what it was asked to.
            "training": {**asked, "kimg": min(asked["kimg"], images / 1000)},
            "license": licence,
            "weights": {"images": images, "dtype": str(dtype).split(".")[1]},
            "measured": {**_history(run, images), **measure(generator, trained.config)},
            "sha256": {name: sha256(folder / name) for name in HASHED},
        }
        files.write_json(folder / model.CONFIG, config)
        files.write_text(folder / CARD, card.render(config, generator))
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner alone
        folder.rename(out)
    return out


def _stored(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }


def _history(run: Path, images: int) -> dict[str, Any]:
    """What the run itself recorded: hours of training, and quality where it was evaluated at this
    many images."""
    found: dict[str, Any] = {}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before, seconds = 0, 0.0
    for row in rows:
        seconds += (row["images"] - before) / row["images_per_second"]
        before = row["images"]
    if seconds:
        found["training_hours"] = round(seconds / 3600, 3)
    quality = run / model.QUALITY
    if quality.exists():
        evaluated = json.loads(quality.read_text())
        if evaluated["images"] == images:
            found["quality"] = evaluated["rows"]
    return found


def measure(generator: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """What is measured of a generator itself: its cost, and how far backends differ."""
    return {**costs(generator, config), "backends": _differences(generator)}


def costs(generator: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """Parameters, firing rates, operations and energy of one image, and its twin's energy."""
    spent = cost.cost(generator)
    found = {
        "parameters": parameters(generator),
        "rates": {name: round(rate, 5) for name, rate in spent.rates.items()},
        "T": spent.T,
        "macs": {name: round(n) for name, n in spent.macs.items()},
        "acs": {name: round(n) for name, n in spent.acs.items()},
        "energy_nj": round(spent.energy_nj, 1),
    }
    if spent.rates:
        options = config["generator"]["options"]
        with torch.random.fork_rng(devices=()):
            twin = build_twin("gen", options, tuple(config["shape"])).eval()
        found["twin_energy_nj"] = round(cost.cost(twin).energy_nj, 1)
    return found


def _differences(generator: nn.Module) -> dict[str, float]:
    """Backend -> greatest difference of a pixel from `reference`, for all that have the neurons."""
    neurons = [layer for layer in generator.modules() if isinstance(layer, Neuron)]
    if not neurons or any(neuron.only_backend for neuron in neurons):
        return {}
    names = set.intersection(*(set(backends_of(neuron)) for neuron in neurons)) - {"reference"}
    before = [neuron.backend for neuron in neurons]
    try:
        set_backend(generator, "reference")
        reference = _images(generator)
        found = {}
        for name in sorted(names):
            set_backend(generator, name)
            found[name] = float((_images(generator) - reference).abs().max())
    finally:
        for neuron, backend in zip(neurons, before, strict=True):
            set_backend(neuron, backend)
    return found


@torch.no_grad()
def _images(generator: nn.Module) -> Tensor:
    """Images float32 [2, C, H, W] in [-1, 1] of the probe's seeds."""
    latent_dim: int = generator.latent_dim  # type: ignore[assignment]  # part of the contract
    z = sample.latents(PROBE_SEEDS, latent_dim).to(next(generator.parameters()).device)
    return generator(z).float().cpu().contiguous()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- verify ---------------------------------------------------------------------------------


def verify(folder: Path, backend: str | None = None) -> list[Check]:
    """Checks an exported folder: files, hashes, strict loading, probe, numbers, card.

    A later check may need what an earlier one found wrong; then it is left out.
    """
    checks: list[Check] = []

    def check(name: str, look: Callable[[], str]) -> bool:
        try:
            checks.append(Check(name, look()))
        except SpikeZooError as error:
            checks.append(Check(name, str(error), wrong=True))
        return not checks[-1].wrong

    found: dict[str, Any] = {}

    def complete() -> str:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"'{folder}' has no {', '.join(missing)}")
        found["config"] = config = model.read_config(folder)
        gaps = [k for k in ("license", "weights", "measured", "sha256") if k not in config]
        if gaps:
            raise CheckpointError(f"config.json lacks {', '.join(gaps)}; export the run again")
        return f"{len(FILES)} files"

    def hashes() -> str:
        for name in HASHED:
            must_match(folder / name, found["config"])
        return f"{len(HASHED)} files are those that were exported"

    def networks() -> str:
        found["model"] = model.open_folder(folder, backend=backend)
        model.read_network("disc", found["config"], folder / model.DISCRIMINATOR)
        return "every tensor of both networks, no other"

    if not check("files", complete) or not check("hashes", hashes) or not check("load", networks):
        return checks
    generator = found["model"].generator
    check("probe", lambda: _check_probe(folder, generator))
    check("numbers", lambda: _check_numbers(found["config"], generator))
    check("card", lambda: _check_card(folder, found["config"], generator))
    return checks


def must_match(path: Path, config: dict[str, Any]) -> None:
    """Compares a file with its hash in config.json.

    Raises:
        CheckpointError: they differ, or there is no hash.
    """
    hashes = config.get("sha256")
    wanted = hashes.get(path.name) if isinstance(hashes, dict) else None
    if not isinstance(wanted, str) or sha256(path) != wanted:
        raise CheckpointError(
            f"{path} is not the file that was exported (its SHA-256 is not config.json's); "
            "load it again from where it comes from, or export the run again"
        )


def _check_probe(folder: Path, generator: nn.Module) -> str:
    try:
        stored = load_file(folder / PROBE)
        images, seeds = stored["images"], stored["seeds"]
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{folder / PROBE} cannot be read: {error!r}") from error
    now = _images(generator)
    if tuple(seeds.tolist()) != PROBE_SEEDS or images.shape != now.shape:
        raise CheckpointError(f"{folder / PROBE} is no probe of this network")
    difference = (now - images).abs()
    moved = (difference > PIXEL_TOLERANCE).float().mean().item()
    text = f"largest difference {difference.max():.1e} of 2, {moved:.2%} of pixels moved"
    if moved > MOVED_PIXELS or not torch.isfinite(now).all():
        raise CheckpointError(f"the images of seeds 0 and 1 are others here: {text}")
    return text


def _check_numbers(config: dict[str, Any], generator: nn.Module) -> str:
    """Everything that `measure` finds, found again."""
    stated = config["measured"]
    if not isinstance(stated, dict):
        raise CheckpointError(f"config.json has no numbers under 'measured', but {stated!r}")
    count = 0
    for key, now in measure(generator, config).items():
        then = stated.get(key)
        if key == "backends":
            stored = then if isinstance(then, dict) else {}
            agree = stored.keys() == now.keys()
            # Another processor rounds otherwise; that they agree is what a card says.
            values = [*now.values(), *stored.values(), 0.0]
            agree = agree and max(values) <= BACKEND_TOLERANCE
        elif isinstance(now, dict):
            stored = then if isinstance(then, dict) else {}
            agree = stored.keys() == now.keys()
            agree = agree and all(_near(stored[name], value) for name, value in now.items())
        else:
            agree = _near(then, now)
        if not agree:
            raise CheckpointError(f"config.json says {key} {then}, but here it is {now}")
        count += len(now) if isinstance(now, dict) else 1
    return f"{count} numbers measured again"


def _near(then: Any, now: float) -> bool:
    return isinstance(then, int | float) and abs(then - now) <= NUMBER_TOLERANCE * abs(now) + 1e-4


def _check_card(folder: Path, config: dict[str, Any], generator: nn.Module) -> str:
    """The metadata by the Hub's own reader, and every line of ours that states a number."""
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8")
        data = dict(ModelCard(text).data.to_dict())  # type: ignore[no-untyped-call]
    except Exception as error:  # a YAML parser's, of any kind
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    try:
        wanted = ModelCard(card.render(config, generator))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json lacks what a card states: {error!r}") from error
    metadata = wanted.data.to_dict()  # type: ignore[no-untyped-call]
    wrong = [key for key, value in metadata.items() if data.get(key) != value]
    if wrong:
        raise CheckpointError(f"the metadata of {path} lacks or changes {', '.join(wrong)}")
    lines = set(text.splitlines())
    stated = [line for line in wanted.text.splitlines() if any(c.isdigit() for c in line)]
    changed = [line for line in stated if line not in lines]
    if changed:
        raise CheckpointError(f"{path} does not say what config.json does: '{changed[0]}'")
    return f"{len(stated)} lines with numbers, and the metadata"


def must_pass(folder: Path) -> None:
    """Runs `verify`.

    Raises:
        JobError: a check fails; names it.
    """
    wrong = [check for check in verify(folder) if check.wrong]
    if wrong:
        raise JobError(f"{folder} cannot be published: {wrong[0].name}: {wrong[0].found}")
