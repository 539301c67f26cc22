"""Draws the built-in surrogates of docs/surrogates.md: python docs/draw_surrogates.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from spikezoo.catalog import names, registry

ALPHAS = (1.0, 2.0, 5.0)
FOLDER = Path(__file__).parent / "images"


def builtin() -> list[str]:
    """The surrogates that come with the package; a plugin documents its own."""
    found = registry("surrogates")
    return [name for name in names("surrogates") if found.source(name).startswith("spikezoo-gan")]


def draw(name: str, path: Path) -> None:
    """Writes a PNG of a surrogate over u for several slopes."""
    surrogate = registry("surrogates").get(name)
    u = torch.linspace(-2, 2, 401)
    figure, axes = plt.subplots(figsize=(3.6, 2.2), dpi=80, layout="constrained")
    for alpha, style in zip(ALPHAS, (":", "-", "--"), strict=True):
        axes.plot(u, surrogate(u, alpha), style, label=f"alpha = {alpha:g}")
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="u = h - threshold", title=name, ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    # Without the version of matplotlib in it, the file changes only where the picture does.
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def main(folder: Path = FOLDER) -> None:
    plt.switch_backend("agg")  # needs no screen
    folder.mkdir(parents=True, exist_ok=True)
    for name in builtin():
        draw(name, folder / f"surrogate-{name}.png")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
