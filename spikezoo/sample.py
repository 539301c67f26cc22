"""Seeds to latents to images: image i depends on seed i alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from spikezoo import data, files
from spikezoo.errors import OptionError

# Convolutions sum in another order for another batch size, so every batch has this one.
BATCH = 32
MOST = 1_000_000  # seeds in one range: images of that many still fit into memory


def usable(device: torch.device | str) -> torch.device:
    """The device, having shown that it is there.

    Raises:
        OptionError: it is not; says why.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch raises either
        reason = str(error).split(". ")[0].splitlines()[0]
        raise OptionError(
            f"device '{device}' cannot be used here ({reason}); 'cpu' always can"
        ) from error


def latents(seeds: Sequence[int], latent_dim: int) -> Tensor:
    """Standard normal z [N, latent_dim], each row from its own generator.

    Raises:
        OptionError: a seed below 0 or above 2^63 - 1.
    """
    rows = []
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise OptionError(f"a seed is a whole number from 0 to 2^63 - 1, given {seed}")
        rows.append(torch.randn(latent_dim, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(rows) if rows else torch.empty(0, latent_dim)


def sample(
    generator: nn.Module, seeds: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Images of the seeds, uint8 [N, C, H, W] on `device`; the generator is in eval mode.

    Bit-equal whatever other seeds are asked for along with one.
    """
    latent_dim: int = generator.latent_dim  # type: ignore[assignment]  # part of the contract
    return images_of(generator, latents(seeds, latent_dim), device)


@torch.no_grad()
def images_of(generator: nn.Module, z: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Images of latents z [N, latent_dim], uint8 [N, C, H, W] on `device`."""
    if not len(z):
        return torch.empty(0, *generator.shape, dtype=torch.uint8)  # type: ignore[misc]
    images = []
    for rows in torch.split(z, BATCH):
        padded = torch.cat([rows, rows.new_zeros(BATCH - len(rows), z.shape[1])])
        images.append(data.quantize(generator(padded.to(device))[: len(rows)]))
    return torch.cat(images)


def parse_seeds(text: str) -> list[int]:
    """Seeds from text: `0-63`, `7`, `1,5,10-12`.

    Raises:
        OptionError: the text has another form.
    """
    seeds: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", piece.strip())
        if not match:
            raise OptionError(f"seeds are written like 0-63 or 1,5,10-12, given '{text}'")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < MOST:
            raise OptionError(f"'{piece}' is no range of seeds from low to high, {MOST} at most")
        seeds.extend(range(first, last + 1))
    return seeds


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Writes uint8 images [N, C, H, W] as one PNG, row by row, whole or not at all."""
    grid = make_grid(images.cpu(), nrow=columns, padding=2, pad_value=128)
    _save_png(grid, path)


def save_images(images: Tensor, seeds: Iterable[int], folder: Path) -> None:
    """Writes uint8 images [N, C, H, W] as `folder/<seed>.png`, one file each."""
    for image, seed in zip(images.cpu(), seeds, strict=True):
        _save_png(image, folder / f"{seed:06d}.png")


def _save_png(image: Tensor, path: Path) -> None:
    pixels = image.permute(1, 2, 0).numpy()  # [H, W, C]
    if pixels.shape[2] == 3 and (pixels[..., :1] == pixels).all():
        pixels = pixels[..., :1]  # make_grid turns grey into RGB
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    with files.writing(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
