"""Backbones of timm, PyTorch Image Models: any of them as a discriminator or feature extractor.

    disc:timm,model=convnext_atto

Weights are random or, with `pretrained`, those that timm's authors trained on photographs, fetched
from the Hub once. What timm's own input wants (side, mean, spread) is taken from its configuration.

Source: Wightman, "PyTorch Image Models" (2019), https://github.com/huggingface/pytorch-image-models
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikezoo.errors import OptionError, UnknownNameError

Shape = tuple[int, int, int]


class TimmDiscriminator(nn.Module):
    """A backbone with one logit: images [N, C, H, W] in [-1, 1] -> logits [N].

    Images are resized only for a backbone that computes one size, or none as small as theirs.
    Most backbones take a gradient penalty; those with hard sigmoids (MobileNetV3, LCNet) do not,
    since torch has no second derivative of these.
    """

    def __init__(self, shape: Shape, *, model: str = "resnet18", pretrained: bool = False) -> None:
        super().__init__()
        self.backbone = _backbone(model, pretrained, in_chans=shape[0], num_classes=1)
        config = _config(self.backbone)
        self.normalise = _Normalise(config, channels=shape[0])
        own = config["input_size"][1]
        self.side = own if config.get("fixed_input_size") else _side(self.backbone, shape, own)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(_resize(x, self.side))
        return self.backbone(x).squeeze(1)  # [N]


class TimmFeatures(nn.Module):
    """A frozen backbone without its classifier: images [N, C, H, W] in [-1, 1] -> features [N, D].

    Images are resized to the side that the backbone was trained on; grey ones become colour.
    """

    def __init__(self, *, model: str = "resnet18", pretrained: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):  # without pretrained weights always the same ones
            torch.manual_seed(0)
            self.backbone = _backbone(model, pretrained, in_chans=3, num_classes=0)
        self.protocol = f"timm-{model}" + ("" if pretrained else "-random")
        config = _config(self.backbone)
        self.normalise = _Normalise(config, channels=3)
        self.side = config["input_size"][1]
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = _resize(x.expand(-1, 3, -1, -1), self.side)
        return self.backbone(self.normalise(x))  # [N, D]


class _Normalise(nn.Module):
    """Images in [-1, 1] to the mean and spread that a backbone was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        for key in ("mean", "std"):  # of images in [0, 1], [3]
            value = torch.tensor(config[key])
            value = value if channels == 3 else value.mean().repeat(channels)
            self.register_buffer(key, value.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2 - self.mean) / self.std


def _backbone(model: str, pretrained: bool, in_chans: int, num_classes: int) -> nn.Module:
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=5, cutoff=0.4)
        raise UnknownNameError(
            f"timm {timm.__version__} has no model '{model}'; the nearest: "
            f"{', '.join(near) or 'none'}. All there are: python -c 'import timm; "
            "print(timm.list_models())'"
        )
    try:
        network: nn.Module = timm.create_model(
            model, pretrained=pretrained, in_chans=in_chans, num_classes=num_classes
        )
    except Exception as error:
        if not pretrained:
            raise
        raise OptionError(
            f"the pretrained weights of timm's '{model}' cannot be had ({type(error).__name__}: "
            f"{error}); build it once with network, which keeps them in HF_HOME for later, or give "
            "pretrained=false"
        ) from error
    if not pretrained:
        # timm starts each residual branch at 0, and the convolutions in it with no gradient.
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.affine and not layer.weight.any():
                nn.init.ones_(layer.weight)
    for layer in network.modules():
        if hasattr(layer, "fused_attn"):  # has no second derivative, which R1 needs
            layer.fused_attn = False  # type: ignore[assignment]  # nn.Module declares tensors
    return network


def _config(backbone: nn.Module) -> Mapping[str, Any]:
    """What timm says of a backbone's input: side, mean, spread."""
    config: Mapping[str, Any] = vars(backbone)["pretrained_cfg"]
    return config


@torch.no_grad()
def _side(backbone: nn.Module, shape: Shape, own: int) -> int:
    """The side of the images [C, H, W], or where it is too small the next larger that is not."""
    backbone.eval()
    side = shape[1]
    while side < own:
        try:
            backbone(torch.zeros(1, shape[0], side, side))
            break
        except (AssertionError, RuntimeError):  # of a kernel larger than what it should act on
            side = min(2 * side, own)
    backbone.train()
    return side


def _resize(x: Tensor, side: int) -> Tensor:
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
