"""The folder of a run: which one, for one process at a time, with no metrics from the future.

    runs/<slug>/config.json      all that reproduces the run
                metrics.jsonl    one line per 25 iterations
                samples/*.png    images of the same 64 seeds as training goes on
                checkpoints/     the newest two, see `spikezoo.checkpoint`
                curves.png       losses, firing rates and gradient norms

A second run of a spec is `<slug>-run2`: no run is ever written over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from spikezoo import files, model
from spikezoo.errors import JobError


def open_run(out: Path, slug: str, config: dict[str, Any], resume: bool) -> Path:
    """The newest run of the same config to go on with, or a new folder; never another run's."""
    pattern = re.compile(re.escape(slug) + r"(?:-run([0-9]+))?")
    taken = {
        int(match[1] or 1): path
        for path in (out.iterdir() if out.is_dir() else ())
        if (match := pattern.fullmatch(path.name))
    }
    if resume:
        for _, path in sorted(taken.items(), reverse=True):
            if (path / "config.json").exists() and _same_run(model.read_config(path), config):
                return path
    number = max(taken, default=0) + 1
    path = out / (slug if number == 1 else f"{slug}-run{number}")
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
def lock(run: Path) -> Iterator[None]:
    """Keeps a second process out of a run; the system drops the lock of a killed one."""
    try:
        with FileLock(run / ".lock", timeout=0):
            yield
    except Timeout:
        raise JobError(f"another process is training {run}") from None


def keep_metrics(run: Path, images: int) -> None:
    """Drops the lines that were written after the checkpoint from which training goes on."""
    path = run / "metrics.jsonl"
    if path.exists():
        rows = [line for line in path.read_text().splitlines() if _images_of(line) <= images]
        files.write_text(path, "".join(line + "\n" for line in rows))


def _images_of(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except ValueError:  # the last line of a killed process
        return math.inf
