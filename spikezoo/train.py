"""One training loop, readable from top to bottom, that can be stopped and resumed at any moment.

runs/<slug>/config.json      all that reproduces the run
            metrics.jsonl    one line per 25 iterations
            samples/*.png    images of the same 64 seeds as training goes on
            checkpoints/     the newest two, see `spikezoo.checkpoint`
            curves.png       losses, firing rates and gradient norms
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import logging
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from spikezoo import checkpoint, data, hub, losses, monitor, sample, zoo
from spikezoo.catalog import registry
from spikezoo.errors import JobError, OptionError, TrainingError, unknown
from spikezoo.spec import Spec

log = logging.getLogger(__name__)

TICK = 25  # iterations from one line of metrics to the next; the first line is iteration 1
SHOWN_SEEDS = range(64)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a spec is trained. Two runs of equal spec, settings and data are the same run.

    `kimg` is not among them: a run can be lengthened. R1 is applied to every `R1_EVERY`th
    iteration with its weight multiplied by that (Karras et al. 2020, "lazy regularisation").
    """

    recipe: str = "default"
    loss: str = "bce"
    lr_g: float = 2e-4
    lr_d: float = 2e-4
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    batch_size: int = 64
    r1: float = 0.0
    ema_halflife_kimg: float = 10.0
    seed: int = 0
    side: int = 32
    precision: str = "fp32"
    backend: str | None = None


R1_EVERY = 8
RECIPES: dict[str, dict[str, Any]] = {
    # What the paper used: the tutorials' DCGAN, which averages no weights.
    "paper": {"lr_g": 2e-4, "lr_d": 2e-4, "ema_halflife_kimg": 0.0},
    # Found on the digits, 40 kimg: 2e-4 for both needs longer, at equal rates the discriminator
    # wins and images grow noisy; averaging removes most of the noise that is left.
    "default": {"lr_g": 1e-3, "lr_d": 5e-4, "ema_halflife_kimg": 10.0},
}


@dataclass(frozen=True)
class Result:
    """Where a run lies, its newest grid of images, and whether it reached its kimg."""

    run: Path
    grid: Path
    images: int
    finished: bool


def settings(recipe: str = "default", *, device: str = "cpu", **given: Any) -> Settings:
    """The settings of a recipe, with what is given (and not None) in place of its own.

    Precision, where it is not given, is bf16 on a device that computes in it.

    Raises:
        UnknownNameError, OptionError: the recipe, the loss, the device, or a value that cannot be
            used.
    """
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    precision = "bf16" if _has_bf16(sample.usable(device)) else "fp32"
    chosen = Settings(recipe=recipe, precision=precision, **RECIPES[recipe])
    chosen = replace(chosen, **{key: value for key, value in given.items() if value is not None})
    registry("losses").entry(chosen.loss)
    if chosen.backend is not None:
        registry("backends").entry(chosen.backend)
    if chosen.precision not in ("fp32", "bf16"):
        raise OptionError(f"precision is fp32 or bf16, given '{chosen.precision}'")
    for field in fields(chosen):
        value = getattr(chosen, field.name)
        if isinstance(value, float) and not (0 <= value < math.inf):
            raise OptionError(f"{field.name} is 0 or more, given {value}")
    if chosen.side < 16 or chosen.side % 16:
        nearest = max(16, 16 * round(chosen.side / 16))
        raise OptionError(f"side is divisible by 16, given {chosen.side}; the nearest is {nearest}")
    if chosen.batch_size < 2:
        raise OptionError("batch_size is at least 2: batch norm needs more than one image")
    return chosen


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def train(
    spec: Spec,
    chosen: Settings,
    *,
    kimg: float | None = None,
    data_dir: Path | None = None,
    out: Path = Path("runs"),
    resume: bool = False,
    snapshot_kimg: float | None = None,
    tensorboard: bool = False,
    device: str = "cpu",
) -> Result:
    """Trains a spec and returns where the run lies.

    Args:
        kimg: thousands of real images to show; by default 300, or 48 for a small dataset.
        data_dir: where datasets are looked for, see `spikezoo.data`.
        resume: go on with the newest run of the same spec, settings and data under `out`.
        snapshot_kimg: from one checkpoint and grid to the next; a tenth of kimg by default.

    Raises:
        TrainingError: a loss or weight is no longer finite; the last checkpoint is kept.
        UserError, CheckpointError: what was asked for cannot be done; says what can.
    """
    pixels, pair, config = _prepare(spec, chosen, kimg, data_dir)
    kimg = config["training"]["kimg"]
    state = _State(pair.generator, pair.discriminator, pixels, chosen, torch.device(device))
    run = _open_run(Path(out), pair.spec, config, resume)
    with _lock(run):
        if resume:
            state.resume(run)
        checkpoint.write_json(run / "config.json", config)
        _keep_metrics(run, state.images)
        result = _loop(state, run, kimg, snapshot_kimg or kimg / 10, tensorboard)
    return result


def dry_run(
    spec: Spec, chosen: Settings, *, kimg: float | None = None, data_dir: Path | None = None
) -> dict[str, Any]:
    """The config of the run that `train` would start."""
    return _prepare(spec, chosen, kimg, data_dir)[2]


def _prepare(
    spec: Spec, chosen: Settings, kimg: float | None, data_dir: Path | None
) -> tuple[Tensor, zoo.Pair, dict[str, Any]]:
    """The images uint8 [N, C, H, W], the networks as the seed makes them, and config.json."""
    spec = zoo.canonical(spec)
    if kimg is not None and not 0.001 <= kimg < math.inf:
        raise OptionError(f"kimg is 0.001 (one image) or more, given {kimg:g}")
    pixels = data.load(registry("datasets").get(spec.dataset), side=chosen.side, data=data_dir)
    shape = (pixels.shape[1], chosen.side, chosen.side)
    torch.manual_seed(chosen.seed)
    pair = zoo.create(spec, shape=shape, backend=chosen.backend)
    if kimg is None:  # a small dataset would be shown hundreds of times
        kimg = 48.0 if len(pixels) < 10_000 else 300.0
    return pixels, pair, _config(spec, chosen, pixels, kimg)


def _config(spec: Spec, chosen: Settings, pixels: Tensor, kimg: float) -> dict[str, Any]:
    """What config.json holds: every option resolved, so that a changed default changes nothing."""
    generator, discriminator = zoo.resolve(spec.gen), zoo.resolve(spec.disc)
    return {
        "format_version": hub.FORMAT_VERSION,
        "name": str(spec),
        "spec": spec.to_json(),
        "shape": list(pixels.shape[1:]),
        "generator": {"name": spec.gen.name, "options": generator},
        "discriminator": {"name": spec.disc.name, "options": discriminator},
        "dataset": {
            "name": spec.dataset,
            "images": len(pixels),
            "pixels_sha256": hashlib.sha256(pixels.numpy().data).hexdigest(),
        },
        "latent": {"distribution": "normal", "dim": generator.get("latent_dim")},
        "image_range": [-1, 1],
        "training": {**asdict(chosen), "kimg": kimg},
        "versions": {name: importlib.metadata.version(name) for name in ("spikezoo-gan", "torch")},
        "plugins": zoo.distributions(spec, losses=chosen.loss, backends=chosen.backend),
    }


def _loop(state: _State, run: Path, kimg: float, snapshot_kimg: float, tensorboard: bool) -> Result:
    total = round(kimg * 1000)
    write_board = _tensorboard_writer(run) if tensorboard else None
    complained: set[str] = set()
    sums: list[tuple[float, float]] = []
    began = time.perf_counter()
    next_snapshot = (state.images // (snapshot_kimg * 1000) + 1) * snapshot_kimg * 1000
    bar = tqdm(total=total, initial=state.images, unit="img", unit_scale=True, desc=run.name)
    with bar, logging_redirect_tqdm(), _asked_to_stop() as asked_to_stop:
        while state.images < total and not asked_to_stop():
            # One iteration, watched if it starts an interval.
            watched = state.iteration % TICK == 0
            rates: dict[str, dict[str, float]] = {}
            with ExitStack() as watch:
                if watched:
                    for name, network in state.networks.items():
                        rates[name] = watch.enter_context(monitor.firing_rates(network))
                sums.append(_iteration(state))
            bar.update(state.batch_size)

            # Metrics, and complaints about layers that do not work.
            if watched:
                row = _metrics(state, sums, rates, time.perf_counter() - began)
                sums, began = [], time.perf_counter()
                with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                if write_board:
                    write_board(row)
                bar.set_postfix_str(_status(row))
                for about, sentence in monitor.complaints(row["rates"], row["gradients"]).items():
                    if about not in complained:
                        log.warning("%.1f kimg: %s", state.images / 1000, sentence)
                        complained.add(about)

            # Snapshot: a checkpoint, then a grid of the averaged generator's images.
            if state.images >= next_snapshot and state.images < total:
                state.save(run)
                _save_grid(state, run)
                next_snapshot += snapshot_kimg * 1000

    state.save(run)
    grid = _save_grid(state, run)
    monitor.draw_curves(run / "metrics.jsonl", run / "curves.png")
    return Result(run, grid, state.images, finished=state.images >= total)


def _iteration(state: _State) -> tuple[float, float]:
    """One update of each network on one batch; returns the losses of D and G."""
    loss: losses.Loss = state.loss
    real = state.batches.next_batch().to(state.device)
    z = torch.randn(len(real), state.generator.latent_dim, device=state.device)

    # Discriminator: real against generated images, which are made once for both updates.
    state.discriminator.requires_grad_(True)
    with state.autocast():
        fake = state.generator(z)
        logits_real = state.discriminator(real).float()
        logits_fake = state.discriminator(fake.detach()).float()
        loss_d = loss.discriminator(logits_real, logits_fake)
    if loss.gradient_penalty:
        penalty = losses.gradient_penalty(state.discriminator, real, fake.detach().float())
        loss_d = loss_d + loss.gradient_penalty * penalty
    if state.settings.r1 and state.iteration % R1_EVERY == 0:
        loss_d = loss_d + state.settings.r1 * R1_EVERY * losses.r1(state.discriminator, real)
    _update(state.optimizer_d, loss_d, "discriminator", state.images)

    # Generator: through the discriminator as it is now, whose own gradients nobody needs.
    state.discriminator.requires_grad_(False)
    with state.autocast():
        loss_g = loss.generator(state.discriminator(fake).float())
    _update(state.optimizer_g, loss_g, "generator", state.images)

    state.iteration += 1
    state.images += len(real)
    state.average()
    return loss_d.item(), loss_g.item()


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, network: str, images: int) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss of the {network} is {loss.item()} at {images / 1000:.1f} kimg; the last "
            "good checkpoint is kept. Start anew with a lower --lr-g and --lr-d, with --precision "
            "fp32, with --r1 1, or with detach_reset=true in the spiking parts"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's
    optimizer.step()


class _State:
    """All that changes while training, and its way to and from a checkpoint."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        pixels: Tensor,
        chosen: Settings,
        device: torch.device,
    ) -> None:
        self.settings, self.device = chosen, device
        self.generator = generator.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stub lacks it
        self.discriminator = discriminator.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # as above
        self.networks = {"G": self.generator, "D": self.discriminator}
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        betas = (chosen.adam_beta1, chosen.adam_beta2)
        self.optimizer_g = torch.optim.Adam(
            self.generator.parameters(), chosen.lr_g, betas, fused=True
        )
        self.optimizer_d = torch.optim.Adam(
            self.discriminator.parameters(), chosen.lr_d, betas, fused=True
        )
        self.loss: losses.Loss = registry("losses").get(chosen.loss)
        self.batches = data.Batches(pixels, chosen.batch_size, chosen.seed)
        self.batch_size = chosen.batch_size
        self.images = 0
        self.iteration = 0

    def autocast(self) -> torch.autocast:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def average(self) -> None:
        """Moves the averaged generator towards the present one, batch norm statistics included.

        The half-life grows with training (a fifth of it), so that early weights are forgotten.
        """
        halflife = min(self.settings.ema_halflife_kimg * 1000, self.images / 5)
        decay = 0.5 ** (self.batch_size / halflife) if halflife > 0 else 0.0
        now = self.generator.state_dict()
        averaged = {k: v for k, v in self.ema.state_dict().items()}
        floating = [k for k, v in averaged.items() if v.is_floating_point()]
        torch._foreach_lerp_([averaged[k] for k in floating], [now[k] for k in floating], 1 - decay)
        for k in averaged.keys() - set(floating):  # batch norm's count of batches
            averaged[k].copy_(now[k])

    def save(self, run: Path) -> None:
        place = self.batches.state()
        tensors = {
            **_prefixed("generator.", self.generator.state_dict()),
            **_prefixed("discriminator.", self.discriminator.state_dict()),
            **_prefixed("ema.", self.ema.state_dict()),
            **_prefixed("optimizer_g.", _optimizer_tensors(self.optimizer_g)),
            **_prefixed("optimizer_d.", _optimizer_tensors(self.optimizer_d)),
            "rng.data": place["generator"],
            "rng.cpu": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
        if bad:
            raise TrainingError(
                f"not finite at {self.images / 1000:.1f} kimg: {', '.join(bad[:5])}; the last good "
                "checkpoint is kept. Start anew with a lower --lr-g and --lr-d"
            )
        state = {"images": self.images, "iteration": self.iteration, "place": place["position"]}
        checkpoint.save(run / "checkpoints", self.images, tensors, state)

    def resume(self, run: Path) -> None:
        found, refused = checkpoint.newest(run / "checkpoints")
        for error in refused:
            log.warning("%s; going on from the one before it", error)
        if found is None:
            return
        tensors, where = found.tensors, str(found.path)
        hub.load_weights(self.generator, tensors, "generator.", where)
        hub.load_weights(self.discriminator, tensors, "discriminator.", where)
        hub.load_weights(self.ema, tensors, "ema.", where)
        _load_optimizer(self.optimizer_g, tensors, "optimizer_g.")
        _load_optimizer(self.optimizer_d, tensors, "optimizer_d.")
        place = found.state["place"]
        self.batches.restore({"generator": tensors["rng.data"], "position": place})
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.images, self.iteration = found.state["images"], found.state["iteration"]
        log.info("going on from %s", found.path)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts as `<parameter's index>.<name>`."""
    return {
        f"{index}.{name}": tensor
        for index, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".")
            like = parameters[int(index)]
            if tensor.shape == like.shape:  # a moment: in memory as its parameter is
                tensor = torch.empty_like(like).copy_(tensor)
            moments.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _metrics(
    state: _State,
    sums: list[tuple[float, float]],
    rates: dict[str, dict[str, float]],
    seconds: float,
) -> dict[str, Any]:
    """One line of metrics.jsonl: losses are means since the last line, the rest is of now."""
    gradients = {name: monitor.gradient_norms(net) for name, net in state.networks.items()}
    return {
        "images": state.images,
        "loss_d": sum(d for d, _ in sums) / len(sums),
        "loss_g": sum(g for _, g in sums) / len(sums),
        "images_per_second": round(len(sums) * state.batch_size / seconds, 1),
        "rates": {f"{n}.{layer}": rate for n in rates for layer, rate in rates[n].items()},
        "gradients": {f"{n}.{layer}": g for n in gradients for layer, g in gradients[n].items()},
    }


def _status(row: dict[str, Any]) -> str:
    """Losses and mean firing rates, for the progress bar."""
    text = f"loss G {row['loss_g']:.2f} D {row['loss_d']:.2f}"
    for network in ("G", "D"):
        rates = [rate for name, rate in row["rates"].items() if name.startswith(network)]
        if rates:
            text += f", rate {network} {sum(rates) / len(rates):.2f}"
    return text


def _save_grid(state: _State, run: Path) -> Path:
    path = run / "samples" / f"kimg{state.images / 1000:06.1f}.png"
    images = sample.sample(state.ema, SHOWN_SEEDS, state.device)
    sample.save_grid(images, path)
    return path


def _open_run(out: Path, spec: Spec, config: dict[str, Any], resume: bool) -> Path:
    """The newest run of the same config to go on with, or a new folder; never another run's."""
    pattern = re.compile(re.escape(spec.slug) + r"(?:-run([0-9]+))?")
    taken = {
        int(match[1] or 1): path
        for path in (out.iterdir() if out.is_dir() else ())
        if (match := pattern.fullmatch(path.name))
    }
    if resume:
        for _, path in sorted(taken.items(), reverse=True):
            if (path / "config.json").exists() and _same_run(hub.read_config(path), config):
                return path
    number = max(taken, default=0) + 1
    path = out / (spec.slug if number == 1 else f"{spec.slug}-run{number}")
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise JobError(f"cannot make the run folder {path}: {error}") from error
    return path


def _same_run(old: dict[str, Any], new: dict[str, Any]) -> bool:
    def essence(config: dict[str, Any]) -> dict[str, Any]:
        training = {k: v for k, v in config.get("training", {}).items() if k != "kimg"}
        return {**config, "training": training, "versions": None, "plugins": None}

    return essence(json.loads(json.dumps(new))) == essence(old)


@contextmanager
def _lock(run: Path) -> Iterator[None]:
    """Keeps a second process out of a run; the system drops the lock of a killed one."""
    try:
        with FileLock(run / ".lock", timeout=0):
            yield
    except Timeout:
        raise JobError(f"another process is training {run}") from None


def _keep_metrics(run: Path, images: int) -> None:
    """Drops the lines that were written after the checkpoint from which training goes on."""
    path = run / "metrics.jsonl"
    if path.exists():
        rows = [line for line in path.read_text().splitlines() if _images_of(line) <= images]
        checkpoint.write_text(path, "".join(line + "\n" for line in rows))


def _images_of(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except ValueError:  # the last line of a killed process
        return math.inf


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and a polite kill into a question asked between iterations; a second Ctrl-C
    interrupts at once. Only the main thread receives signals."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tensorboard_writer(run: Path) -> Callable[[dict[str, Any]], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError(
            "--tensorboard needs the package tensorboard: pip install 'spikezoo-gan[tensorboard]'"
        ) from error
    writer = SummaryWriter(str(run / "tensorboard"))

    def write(row: dict[str, Any]) -> None:
        for key, value in row.items():
            named = value if isinstance(value, dict) else {"": value}
            for name, number in named.items():
                writer.add_scalar(f"{key}/{name}".rstrip("/"), number, row["images"])
        writer.flush()

    return write
