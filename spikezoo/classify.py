"""Trains the small classifiers that quality is measured with, on a dataset's training split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from spikezoo import data, files
from spikezoo.catalog import registry
from spikezoo.models.classifier import Classifier
from spikezoo.recipes import has_bf16

BATCH = 128
# Of our datasets: width, epochs of each cycle, and whether a mirrored image is one of its class.
PLANS = {
    "digits": (8, (40,), False),
    "mnist": (16, (12,), False),
    "fashion_mnist": (16, (20,), True),
    "cifar10": (32, (16, 8), True),
}
RATES = (0.2, 0.05)  # the highest of each cycle


def train(
    dataset: str,
    path: Path,
    *,
    data_dir: Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
) -> float:
    """Trains a dataset's classifier, writes it as float16, and returns its accuracy on the test
    split, which is kept beside the weights.

    Raises:
        DataError: the dataset is not here, or does not say what its images show.
    """
    width, own_epochs, flip = PLANS.get(dataset, (32, (16, 8), True))
    source = registry("datasets").get(dataset)
    pixels, labels, test, wanted = (
        piece
        for split in ("train", "test")
        for piece in (
            data.load(source, split=split, data=data_dir),
            data.load_labels(source, split=split, data=data_dir),
        )
    )
    cycles = (epochs,) if epochs else own_epochs
    network = fit(pixels, labels, width=width, cycles=cycles, flip=flip, seed=seed)
    network.half().float()  # as it will be read back
    found = accuracy(network, test, wanted)
    tensors = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    facts = {"dataset": dataset, "test_accuracy": f"{found:.4f}", "seed": str(seed)}
    with files.writing(path) as temporary:
        save_file(tensors, temporary, facts)
    return found


def fit(
    pixels: Tensor,
    labels: Tensor,
    *,
    width: int,
    cycles: Sequence[int],
    flip: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Classifier:
    """A classifier of images uint8 [N, C, H, W] by labels [N], in eval mode.

    SGD with Nesterov momentum, the rate up and down once in each cycle (Smith 2018; Loshchilov and
    Hutter 2017); images are shifted by up to an eighth of their side, and mirrored where `flip`.

    Args:
        cycles: epochs of each.
    """
    torch.manual_seed(seed)
    network = Classifier(pixels.shape[1], width=width, classes=int(labels.max()) + 1)
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stub lacks it
    for epochs, rate in zip(cycles, RATES[: len(cycles)], strict=True):
        _cycle(network, pixels, labels, epochs, rate, flip)
    return network.eval()


def _cycle(
    network: Classifier, pixels: Tensor, labels: Tensor, epochs: int, rate: float, flip: bool
) -> None:
    device = next(network.parameters()).device
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    batches = len(pixels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=epochs * batches, pct_start=0.25
    )
    for _ in tqdm(range(epochs), "epochs", disable=None):
        order = torch.randperm(len(pixels))
        for chosen in order[: batches * BATCH].view(batches, BATCH):
            x = data.normalize(_shifted(pixels[chosen].to(device), flip))
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
                logits = network(x)
            loss = F.cross_entropy(logits.float(), labels[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network: Classifier, pixels: Tensor, labels: Tensor) -> float:
    """The fraction of images uint8 [N, C, H, W] that a classifier in eval mode names rightly."""
    device = next(network.parameters()).device
    right = 0
    for x, wanted in zip(torch.split(pixels, 500), torch.split(labels, 500), strict=True):
        found = network(data.normalize(x.to(device))).argmax(1).cpu()
        right += int((found == wanted).sum())
    return right / len(pixels)


def _shifted(pixels: Tensor, flip: bool) -> Tensor:
    """Each image [N, C, H, W] moved by its own few pixels, over its own mirrored edge."""
    most = pixels.shape[2] // 8
    if flip:
        mirrored = torch.rand(len(pixels)) < 0.5
        pixels = torch.where(
            mirrored[:, None, None, None].to(pixels.device), pixels.flip(3), pixels
        )
    wide = F.pad(pixels.float(), (most,) * 4, mode="reflect").to(pixels.dtype)
    rows, columns = (torch.randint(0, 2 * most + 1, (len(pixels), 1)) for _ in range(2))
    at = torch.arange(pixels.shape[2])
    n = torch.arange(len(pixels))[:, None, None]
    moved = wide.permute(0, 2, 3, 1)[n, (rows + at)[:, :, None], (columns + at)[:, None, :]]
    return moved.permute(0, 3, 1, 2)
