"""One training loop, readable from top to bottom, that can be stopped and resumed at any moment."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from spikezoo import (
    checkpoint,
    data,
    files,
    losses,
    model,
    monitor,
    recipes,
    run_folder,
    sample,
    zoo,
)
from spikezoo.catalog import registry
from spikezoo.errors import OptionError, TrainingError
from spikezoo.recipes import R1_EVERY, Settings
from spikezoo.spec import Spec

log = logging.getLogger(__name__)

TICK = 25  # iterations from one line of metrics to the next; the first line is iteration 1
SHOWN_SEEDS = range(64)


@dataclass(frozen=True)
class Result:
    """Where a run lies, its newest grid of images, and whether it reached its kimg."""

    run: Path
    grid: Path
    images: int
    finished: bool


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
    chosen = recipes.fitted(chosen, spec)
    pixels, pair, config = _prepare(spec, chosen, kimg, data_dir)
    kimg = config["training"]["kimg"]
    state = State(pair.generator, pair.discriminator, pixels, chosen, torch.device(device))
    run = run_folder.open_run(Path(out), pair.spec.slug, config, resume)
    with run_folder.lock(run):
        if resume:
            state.resume(run)
        files.write_json(run / "config.json", config)
        run_folder.keep_metrics(run, state.images)
        result = _loop(state, run, kimg, snapshot_kimg or kimg / 10, tensorboard)
    return result


def dry_run(
    spec: Spec, chosen: Settings, *, kimg: float | None = None, data_dir: Path | None = None
) -> dict[str, Any]:
    """The config of the run that `train` would start."""
    return _prepare(spec, recipes.fitted(chosen, spec), kimg, data_dir)[2]


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
        "format_version": model.FORMAT_VERSION,
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


def _loop(state: State, run: Path, kimg: float, snapshot_kimg: float, tensorboard: bool) -> Result:
    total = round(kimg * 1000)
    write_board = monitor.tensorboard_writer(run / "tensorboard") if tensorboard else None
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
                sums.append(iteration(state))
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


def iteration(state: State) -> tuple[float, float]:
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


class State:
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
        averaged = self.ema.state_dict()
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
        model.load_weights(self.generator, tensors, "generator.", where)
        model.load_weights(self.discriminator, tensors, "discriminator.", where)
        model.load_weights(self.ema, tensors, "ema.", where)
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
    state: State,
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


def _save_grid(state: State, run: Path) -> Path:
    path = run / "samples" / f"kimg{state.images / 1000:06.1f}.png"
    images = sample.sample(state.ema, SHOWN_SEEDS, state.device)
    sample.save_grid(images, path)
    return path


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
