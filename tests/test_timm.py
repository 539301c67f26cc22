"""Backbones of timm: as discriminators, and as extractors of features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import spikezoo
from spikezoo.catalog import registry
from spikezoo.errors import OptionError, UnknownNameError
from spikezoo.models.timm import TimmDiscriminator, TimmFeatures
from spikezoo.recipes import settings
from spikezoo.spec import Spec
from spikezoo.testing import check_discriminator
from spikezoo.train import train

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("model", "side", "its_own"),
    [
        ("test_resnet", 16, 16),
        ("test_convnext", 32, 32),
        ("test_convnext", 16, 32),  # too small for its last stage
        ("test_vit", 32, 160),  # computes one size only
    ],
)
def test_a_backbone_is_a_discriminator_that_resizes_only_where_it_must(
    model: str, side: int, its_own: int
) -> None:
    torch.manual_seed(0)
    network = TimmDiscriminator((1, side, side), model=model)
    assert network.side == its_own
    assert network.training
    check_discriminator(network, (1, side, side))


def test_a_backbone_may_refuse_small_images_by_an_assertion() -> None:
    assert TimmDiscriminator((1, 32, 32), model="halonet26t").side == 256


def test_pixels_are_normalised_as_the_backbone_was_trained() -> None:
    network = TimmDiscriminator((3, 16, 16), model="test_resnet")
    mean, std = (network.backbone.pretrained_cfg[key] for key in ("mean", "std"))
    grey = TimmDiscriminator((1, 16, 16), model="test_resnet").normalise(torch.ones(1, 1, 2, 2))
    colour = network.normalise(torch.ones(1, 3, 2, 2))  # white: 1 in [0, 1]
    wanted = (1 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(colour[0, :, 0, 0], wanted)
    torch.testing.assert_close(
        grey.mean(), (1 - torch.tensor(mean).mean()) / torch.tensor(std).mean()
    )


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"has no model 'resnet81'; the nearest: resnet18, "):
        spikezoo.create("gen:ann,width=4+disc:timm,model=resnet81")


def test_pretrained_weights_that_cannot_be_had_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OptionError, match=r"disc:timm: the pretrained .* 'resnet18' .*HF_HOME"):
        spikezoo.create("gen:ann,width=4+disc:timm,pretrained=true")


def test_a_run_with_a_backbone_trains_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKEZOO_CACHE", str(tmp_path / "cache"))
    spec = Spec.parse("gen:snn_middle,width=4,T=2+disc:timm,model=test_resnet")
    chosen = settings(batch_size=16, side=16, precision="fp32", r1=1.0)
    run = train(spec, chosen, kimg=0.064, out=tmp_path).run
    assert spikezoo.load(run).sample([0, 1]).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 16)])
def test_features_are_frozen_and_of_each_image_alone(shape: tuple[int, int, int]) -> None:
    extract = registry("features").get("timm")(model="test_resnet", pretrained=False)
    assert isinstance(extract, TimmFeatures)
    assert not any(parameter.requires_grad for parameter in extract.parameters())
    images = torch.rand(3, *shape) * 2 - 1
    assert extract.protocol == "timm-test_resnet-random"
    again = registry("features").get("timm")(model="test_resnet", pretrained=False)
    assert torch.equal(again(images), extract(images)), "random weights, but always the same"
    features = extract(images)
    assert features.dim() == 2
    assert features.std() > 0
    torch.testing.assert_close(extract(images[1:2]), features[1:2])
