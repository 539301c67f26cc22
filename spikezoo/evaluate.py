"""How far generated images are from real ones: distances between features, and a classifier's view.

A number always carries its protocol, `fd[spikezoo-mnist,10k,test]`: metric, features, images on
either side, and the split of the real ones. Beside it stands its floor: the same number for real
training images in place of generated ones.

- `fd`: Frechet distance of Gaussians (Heusel et al. 2017), `kid`: kernel distance (Binkowski et
  al. 2018), `precision` and `recall` (Kynkaanniemi et al. 2019): by torch-fidelity.
- `density` and `coverage` (Naeem et al. 2020).
- Where the features classify: `score`, the inception score's formula; `label_kl`, the divergence
  of the labels' histogram from that of real images (half a label added to each); `confidence`, the
  mean probability of the label chosen; `classes`, how many labels occur.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from tqdm import tqdm

from spikezoo import data, files, sample, zoo
from spikezoo.catalog import names, registry
from spikezoo.errors import OptionError, unknown
from spikezoo.features import Features
from spikezoo.model import QUALITY

DISTANCES = ("fd", "kid", "precision", "recall", "density", "coverage")
SCORES = ("score", "label_kl", "confidence", "classes")
METRICS = (*DISTANCES, *SCORES)
BATCH = 250
NEIGHBOURS = 5  # of density and coverage, as in their paper
PIECE = 1000  # images compared at a time


@dataclass(frozen=True)
class Row:
    """A measured number, its protocol, its floor, and the generated images that it is of."""

    metric: str
    protocol: str
    value: float
    floor: float
    samples: int


@dataclass(frozen=True)
class Yardstick:
    """Real images, and the features by which generated ones are compared with them.

    Attributes:
        test: uint8 [n, C, H, W], of the test split.
        train: as many of the training split, of which the floors are.
        extractors: each with its canonical text.
    """

    test: Tensor
    train: Tensor
    extractors: tuple[tuple[Features, str], ...]

    @property
    def protocols(self) -> list[str]:
        """What stands in the brackets of each extractor's numbers."""
        n = f"{len(self.test) // 1000}k" if len(self.test) % 1000 == 0 else str(len(self.test))
        names = [getattr(extractor, "protocol", name) for extractor, name in self.extractors]
        return [f"{name},{n},test" for name in names]

    def only(self, protocols: Sequence[str]) -> Yardstick:
        """The same with fewer extractors."""
        pairs = zip(self.extractors, self.protocols, strict=True)
        return replace(self, extractors=tuple(e for e, p in pairs if p in protocols))

    def measure(
        self, generator: nn.Module, seeds: Sequence[int], metrics: Sequence[str] = METRICS
    ) -> list[Row]:
        """Rows of a generator in eval mode, of as many of the seeds as there are real images.

        Raises:
            OptionError: features that give none of the metrics.
        """
        seeds = seeds[: len(self.test)]
        fake = _generate(generator, seeds)
        rows: list[Row] = []
        for (extractor, name), where in zip(self.extractors, self.protocols, strict=True):
            real, floor, found = (
                _Extracted.of(extractor, name, images, kept)
                for images, kept in ((self.test, True), (self.train, True), (fake, False))
            )
            values = measure(extractor, real, found, metrics)
            if not values:
                raise OptionError(f"{name} gives none of the metrics {', '.join(metrics)}")
            floors = measure(extractor, real, floor, metrics)
            rows += [Row(m, f"{m}[{where}]", values[m], floors[m], len(seeds)) for m in values]
        return rows


def yardstick(
    dataset: str,
    *,
    features: Sequence[str] = (),
    n: int = 10_000,
    side: int = 32,
    data_dir: Path | str | None = None,
) -> Yardstick:
    """What a dataset's generators are measured by; n is lowered to what its splits have.

    Raises:
        OptionError, UnknownNameError: features or a number of images that cannot be used.
        DataError: the dataset is not here, or has no test images.
    """
    chosen = [_spelled(f) for f in features] or [default_features(dataset)]
    extractors = tuple(zoo.component("features", text) for text in chosen)
    of = registry("datasets").get(dataset)
    test = data.load(of, side=side, split="test", data=data_dir)
    train = data.load(of, side=side, data=data_dir)
    n = min(n, len(test), len(train))
    if n < 10:  # of which an inception score is the mean over tenths
        raise OptionError(f"10 images or more are compared, given {n}")
    return Yardstick(_some(test, n), _some(train, n), extractors)


def evaluate(
    generator: nn.Module,
    dataset: str,
    *,
    features: Sequence[str] = (),
    metrics: Sequence[str] = METRICS,
    seeds: Sequence[int] = range(10_000),
    data_dir: Path | str | None = None,
) -> list[Row]:
    """Measures a generator in eval mode against a dataset's test images.

    Args:
        features: what to compare, as `name,key=value`; by default our classifier of the dataset.
        seeds: of the generated images. Where the test split is smaller, as many of them as it has
            images: distances depend on how many they are computed from.
        data_dir: where the dataset lies, see `spikezoo.data`.

    Raises:
        OptionError, UnknownNameError: features, metrics or a number of images that cannot be used.
        DataError: the dataset is not here, or has no test images.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
    side: int = generator.shape[-1]  # type: ignore[index,assignment]  # part of the contract
    by = yardstick(dataset, features=features, n=len(seeds), side=side, data_dir=data_dir)
    return by.measure(generator, seeds, metrics)


def as_text(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| protocol | value | floor |", "|---|---|---|"]
    lines += [f"| {row.protocol} | {row.value:.4g} | {row.floor:.4g} |" for row in rows]
    return "\n".join(lines)


def keep(rows: Sequence[Row], run: Path, images: int) -> Path:
    """Writes the rows to a run's quality.json, beside those of other protocols, and returns it.

    They are of the checkpoint at so many images; what was measured of another one is dropped.
    """
    path = run / QUALITY
    before: dict[str, Any] = {"images": images, "rows": []}
    if path.exists():
        before = json.loads(path.read_text())
    kept = {row["protocol"]: row for row in before["rows"] if before["images"] == images}
    kept |= {row.protocol: asdict(row) for row in rows}
    files.write_json(path, {"images": images, "rows": list(kept.values())})
    return path


def default_features(dataset: str) -> str:
    """The features that a dataset is compared by unless others are asked for.

    Raises:
        OptionError: there are none.
    """
    name = f"spikezoo_{dataset}"
    if name not in names("features"):
        raise OptionError(
            f"there is no classifier of '{dataset}'; name features to compare by: "
            f"{', '.join(names('features'))}"
        )
    return name


def measure(
    extractor: Features, real: _Extracted, found: _Extracted, metrics: Sequence[str]
) -> dict[str, float]:
    """Those of the metrics that an extractor gives, of found images against real ones."""
    stored = getattr(extractor, "stored", None)
    values: dict[str, float] = {}
    by_name: dict[str, Callable[[], float]] = {"fd": lambda: _frechet(real, found, stored)}
    if stored is None:
        neighbours = cache(lambda: _precision_recall(real.features, found.features))
        manifold = cache(lambda: density_coverage(real.features, found.features))
        by_name |= {
            "kid": lambda: _kid(real.features, found.features),
            "precision": lambda: neighbours()[0],
            "recall": lambda: neighbours()[1],
            "density": lambda: manifold()[0],
            "coverage": lambda: manifold()[1],
        }
    if found.logits is not None and real.logits is not None:
        by_name |= _scores(real.logits, found.logits)
    for metric in metrics:
        if metric in by_name:
            values[metric] = by_name[metric]()
    return values


# --- distances ------------------------------------------------------------------------------


def _frechet(real: _Extracted, found: _Extracted, stored: Any) -> float:
    statistics = fid_features_to_statistics(found.features.double())
    if stored is None:
        wanted = fid_features_to_statistics(real.features.double())
    else:
        wanted = dict(zip(("mu", "sigma"), stored, strict=True))
    (value,) = fid_statistics_to_metric(statistics, wanted, verbose=False).values()
    return float(value)


def _kid(real: Tensor, found: Tensor) -> float:
    size = min(1000, len(real))
    chosen = kid_features_to_metric(
        found.double(), real.double(), kid_subset_size=size, verbose=False
    )
    return float(chosen["kernel_inception_distance_mean"])


def _precision_recall(real: Tensor, found: Tensor) -> tuple[float, float]:
    pair = prc_features_to_metric(
        found, real, save_cpu_ram=True, prc_batch_size=PIECE, verbose=False
    )
    return float(pair["precision"]), float(pair["recall"])


def density_coverage(real: Tensor, found: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage of found features [N, D] about real ones [M, D] (Naeem et al. 2020).

    A real image's neighbourhood reaches to its k-th nearest real one. Density: neighbourhoods that
    a found image lies in, over k; coverage: neighbourhoods that hold a found image.
    """
    k = min(k, len(real) - 1)
    inside = covered = 0
    for rows in torch.split(real, PIECE):
        radius = torch.cdist(rows, real).kthvalue(k + 1).values  # the nearest is itself
        within = torch.cdist(rows, found) < radius[:, None]
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return inside / (k * len(found)), covered / len(real)


# --- a classifier's view --------------------------------------------------------------------


def _scores(real: Tensor, found: Tensor) -> dict[str, Callable[[], float]]:
    probabilities = found.double().softmax(1)
    confidence, labels = probabilities.max(1)
    counts, wanted = (
        torch.bincount(chosen, minlength=found.shape[1]).double()
        for chosen in (labels, real.argmax(1))
    )
    # Half a label more of each: a label that no real image has would be infinitely far.
    p, q = (counts + 0.5) / (counts + 0.5).sum(), (wanted + 0.5) / (wanted + 0.5).sum()
    divergence = (p * (p / q).log()).sum()
    return {
        "score": lambda: float(isc_features_to_metric(found)["inception_score_mean"]),
        "label_kl": divergence.item,
        "confidence": confidence.mean().item,
        "classes": lambda: float((counts > 0).sum()),
    }


# --- features -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Extracted:
    """Features [N, D] of images and, of a classifier, logits [N, K]."""

    features: Tensor
    logits: Tensor | None

    @classmethod
    def of(cls, extractor: Features, name: str, pixels: Tensor, kept: bool) -> _Extracted:
        """Of images uint8 [N, C, H, W]; real ones are kept in the cache, by their content."""
        path = _cached(extractor, name, pixels) if kept else None
        features = _read(path)
        if features is None:
            features = _extract(extractor, pixels, name)
            _write(path, features)
        with torch.no_grad():
            logits = extractor.logits(features) if hasattr(extractor, "logits") else None
        return cls(features, logits)


@torch.no_grad()
def _extract(extractor: Features, pixels: Tensor, name: str) -> Tensor:
    batches = torch.split(pixels, getattr(extractor, "batch_size", BATCH))
    bar = tqdm(batches, f"features {name}", leave=False, delay=1, disable=None, unit="batch")
    return torch.cat([extractor(data.normalize(x)).float() for x in bar])


def _cached(extractor: Features, name: str, pixels: Tensor) -> Path | None:
    """Where the features of real images lie: by all that they depend on. None for an extractor
    whose weights are unknown."""
    if not isinstance(extractor, nn.Module):
        return None
    digest = hashlib.sha256(f"1 {name} {tuple(pixels.shape)}".encode())
    digest.update(pixels.numpy().data)
    for key, tensor in extractor.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().data)
    return data.cache_folder() / f"features-{digest.hexdigest()[:32]}.safetensors"


def _read(path: Path | None) -> Tensor | None:
    try:
        return None if path is None or not path.exists() else load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):
        return None  # it is made anew


def _write(path: Path | None, features: Tensor) -> None:
    if path is None:
        return
    try:
        with files.writing(path) as temporary:
            save_file({"features": features}, temporary)
    except (OSError, SafetensorError):
        pass  # without it only the next evaluation is slower


def _some(images: Tensor, n: int) -> Tensor:
    """n of the images: of a longer split not its first, which may be of one class."""
    if n == len(images):
        return images
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]]


def _generate(generator: nn.Module, seeds: Sequence[int]) -> Tensor:
    pieces = [seeds[i : i + PIECE] for i in range(0, len(seeds), PIECE)]
    bar = tqdm(pieces, "sampling", leave=False, delay=1, disable=None)
    return torch.cat([sample.sample(generator, piece).cpu() for piece in bar])


def _spelled(text: str) -> str:
    """As the registry spells it what a protocol writes with hyphens: spikezoo-mnist."""
    name, comma, options = text.partition(",")
    return name.replace("-", "_") + comma + options
