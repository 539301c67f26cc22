"""A small residual classifier, whose last features measure how far generated images are from real.

    conv - [conv - pool]* - residual - ... - mean over pixels - linear

Each stage halves the sides; its width doubles once. Source of the form: Page, "How to train your
ResNet" (2018), narrowed until it can be shipped with the package.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Images [N, channels, 32, 32] in [-1, 1] -> logits [N, classes].

    `features(x)` are the values before the last layer, [N, 4 * width].
    """

    def __init__(self, channels: int, *, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.first = _block(channels, width)  # [N, w, 32, 32]
        self.stage1 = _block(width, 2 * width)  # pooled to [N, 2w, 16, 16]
        self.residual1 = nn.Sequential(_block(2 * width, 2 * width), _block(2 * width, 2 * width))
        self.stage2 = _block(2 * width, 4 * width)  # pooled to [N, 4w, 8, 8]
        self.stage3 = _block(4 * width, 4 * width)  # pooled to [N, 4w, 4, 4]
        self.residual3 = nn.Sequential(_block(4 * width, 4 * width), _block(4 * width, 4 * width))
        self.last = nn.Linear(4 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stage1(self.first(x)), 2)
        x = F.max_pool2d(self.stage2(x + self.residual1(x)), 2)
        x = F.max_pool2d(self.stage3(x), 2)
        x = x + self.residual3(x)
        return x.float().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )
