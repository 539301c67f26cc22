"""Networks whose features tell how far generated images are from real ones: the kind `features`.

Each takes images [N, C, H, W] in [-1, 1] and gives features [N, D]; one that classifies turns these
into logits [N, K]. None is trained here (`spikezoo.classify` trains ours), none sees a gradient.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from spikezoo import data
from spikezoo.errors import CheckpointError, OptionError
from spikezoo.models.classifier import Classifier

CLASSIFIERS = Path(str(importlib.resources.files("spikezoo"))) / "classifiers"


class Features(Protocol):
    """What the registry kind `features` makes. An extractor may have, besides:

    `protocol`, its name in a metric's (else it is what was asked for); `batch_size`, where its
    result depends on it; `logits(features)` [N, K], if it classifies; `stored`, the mean [D] and
    covariance [D, D] of the real images, if it brings its own.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] -> features [N, D]."""
        ...


class ShippedClassifier(nn.Module):
    """A classifier of one dataset, from the package."""

    def __init__(self, dataset: str) -> None:
        super().__init__()
        self.protocol = f"spikezoo-{dataset}"
        path = CLASSIFIERS / f"{dataset}.safetensors"
        tensors = _read(path)
        width, channels = tensors["first.0.weight"].shape[:2]
        self.network = Classifier(channels, width=width, classes=len(tensors["last.bias"]))
        self.network.load_state_dict(tensors)
        self.channels = channels
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = _sized(_in_colours(x, self.channels))
        return self.network.features(x.contiguous(memory_format=torch.channels_last))

    def logits(self, features: Tensor) -> Tensor:
        return self.network.last(features)


class Digits(ShippedClassifier):
    """Our classifier of scikit-learn's digits."""

    def __init__(self) -> None:
        super().__init__("digits")


class Mnist(ShippedClassifier):
    """Our classifier of MNIST."""

    def __init__(self) -> None:
        super().__init__("mnist")


class Cifar10(ShippedClassifier):
    """Our classifier of CIFAR-10."""

    def __init__(self) -> None:
        super().__init__("cifar10")


class FsvaeEncoder(nn.Module):
    """The encoder with which autoencoder distances (FAD) of spiking generators are published.

    The published protocol leaves batch norm in train mode over batches of 256 and compares with
    stored statistics; `eval_mode` is its stricter twin, against real images in the same mode.
    Source: Kamata et al. 2022, "Fully Spiking Variational Autoencoder"; FSVAE's repository.

    Args:
        path: a folder with `encoder.safetensors` and `test_stats.npz` of one dataset.
    """

    batch_size = 256

    def __init__(self, *, path: str = "", eval_mode: bool = False) -> None:
        super().__init__()
        if not path:
            raise OptionError(
                "fad_fsvae needs path=DIR with encoder.safetensors and test_stats.npz, "
                "as `--features fad_fsvae,path=DIR`"
            )
        folder = Path(path).expanduser()
        self.protocol = "fad-fsvae-eval" if eval_mode else "fad-fsvae"
        self.encoder = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(c, d, 3, stride=2, padding=1), nn.BatchNorm2d(d), nn.LeakyReLU()
                )
                for c, d in ((1, 32), (32, 64), (64, 128), (128, 256))
            )
        )
        self.latent_layer = nn.Linear(1024, 64)
        try:
            self.load_state_dict(_read(folder / "encoder.safetensors"))
        except RuntimeError as error:
            raise CheckpointError(f"{folder} is not FSVAE's encoder: {error}") from error
        self.stored = None if eval_mode else _statistics(folder / "test_stats.npz")
        self.train(not eval_mode).requires_grad_(False)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.0  # what it has seen before changes nothing
                layer.num_batches_tracked = None

    def forward(self, x: Tensor) -> Tensor:
        return self.latent_layer(self.encoder(_sized(_in_colours(x, 1))).flatten(1))


class Inception(nn.Module):
    """torch-fidelity's Inception v3, the one whose Frechet distance is called FID.

    Args:
        path: its weights; by default from torch's cache, or downloaded by torch-fidelity.
    """

    batch_size = 64
    protocol = "inception"

    def __init__(self, *, path: str = "") -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048"],
                feature_extractor_weights_path=path or None,
            )
        except Exception as error:  # a download, or whatever lies at that path
            raise OptionError(
                f"the weights of Inception cannot be had ({type(error).__name__}: {error}); give "
                "features=inception,path=FILE with torch-fidelity's "
                "pt_inception-2015-12-05-6726825d.pth"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        return self.network(data.quantize(_in_colours(x, 3)))[0]

    def logits(self, features: Tensor) -> Tensor:
        """Those of torch-fidelity's inception score, which has no bias."""
        return features @ self.network.fc.weight.T


def _in_colours(x: Tensor, channels: int) -> Tensor:
    """Images with 1 or 3 channels, whichever they have: grey ones repeated, colours averaged."""
    if x.shape[1] == channels:
        return x
    return x.expand(-1, 3, -1, -1) if channels == 3 else x.mean(1, keepdim=True)


def _sized(x: Tensor) -> Tensor:
    if x.shape[-1] == 32:
        return x
    return F.interpolate(x, size=(32, 32), mode="bilinear", antialias=True)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _statistics(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} holds no mu and sigma: {error}") from error
