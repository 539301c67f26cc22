"""The training state on disk: tensors in safetensors, the rest in JSON, each checkpoint a folder.

    checkpoints/000012800/tensors.safetensors
    checkpoints/000012800/state.json          {"state": ..., "tensors_sha256": ..., "digest": ...}

A checkpoint is written under a temporary name and renamed when it is whole. `digest` covers the
rest of state.json, `tensors_sha256` the other file: what was cut short or changed is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spikezoo import files
from spikezoo.errors import CheckpointError

KEEP = 2  # the newest and, should that one be damaged, the one before it


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds: tensors by name, and plain values."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, images: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Writes the checkpoint `folder/<images>` whole or not at all, then drops the oldest ones.

    Raises:
        OSError: the disk is full, or the folder cannot be written; older checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(".writing-*"):  # of a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    path = folder / f"{images:09d}"
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    file = temporary / "tensors.safetensors"
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # a full disk
        raise OSError(f"{file}: {error}") from error
    body = {"state": state, "tensors_sha256": _sha256(file)}
    files.write_json(temporary / "state.json", {**body, "digest": _digest(body)})
    for written in temporary.iterdir():
        _flush(written)
    if path.exists():  # the same point of the same run, reached once more after a resume
        shutil.rmtree(path)
    os.replace(temporary, path)
    for old in _folders(folder)[:-KEEP]:
        shutil.rmtree(old)
    return path


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint.

    Raises:
        CheckpointError: it is half-written, damaged or tampered with; names it and the reason.
    """
    try:
        stored = json.loads((path / "state.json").read_bytes())
        body = {key: stored[key] for key in ("state", "tensors_sha256")}
        if stored["digest"] != _digest(body):
            raise ValueError("state.json is not what was written")
        file = path / "tensors.safetensors"
        if _sha256(file) != body["tensors_sha256"]:
            raise ValueError("tensors.safetensors is not what was written")
        return Checkpoint(path, load_file(file), body["state"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} is refused: {type(error).__name__}: {error}"
        ) from error


def newest(folder: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest sound checkpoint, and what was wrong with newer ones.

    Raises:
        CheckpointError: there are checkpoints and none is sound.
    """
    refused: list[CheckpointError] = []
    for path in reversed(_folders(folder)):
        try:
            return load(path), refused
        except CheckpointError as error:
            refused.append(error)
    if refused:
        raise CheckpointError("no checkpoint is left:\n" + "\n".join(map(str, refused)))
    return None, refused


def _folders(folder: Path) -> list[Path]:
    """The checkpoints, oldest first; a copy that somebody keeps beside them is none."""
    found = [path for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _flush(file: Path) -> None:
    """Asks the disk to hold the file before its name promises it."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
