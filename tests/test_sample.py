"""Seeds to latents to images: image i depends on seed i alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import spikezoo
from spikezoo.catalog import names
from spikezoo.errors import OptionError
from spikezoo.sample import (
    BATCH,
    latents,
    parse_seeds,
    sample,
    save_grid,
    save_images,
    usable,
)

GENERATORS = names("generators")


def generator(name: str, options: str = ",width=8", channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    pair = spikezoo.create(f"gen:{name}{options}+disc:ann,width=4", shape=(channels, 16, 16))
    network = pair.generator.train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # running statistics that are those of the batches seen
    with torch.no_grad():
        network(torch.randn(64, network.latent_dim))
        network(torch.randn(64, network.latent_dim))
    return network.eval()


# --- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATORS)
def test_an_image_depends_on_its_seed_alone(name: str) -> None:
    """Bit-equal alone, in every place of a batch, in any order and company."""
    network = generator(name)
    seeds = list(range(70))
    images = sample(network, seeds)
    assert images.shape == (70, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert len(torch.unique(images, dim=0)) == 70, "every seed has its own image"
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).tolist()
    companies = [
        [0], [69], [31, 32], seeds[::-1], order, order[:33], [5] * 40, [2**62, 3, 10**17, 4],
        list(range(1, BATCH + 2)),
    ]  # fmt: skip
    for company in companies:
        found = sample(network, company)
        for seed, image in zip(company, found, strict=True):
            if seed < 70:
                assert torch.equal(image, images[seed]), (seed, company)


@pytest.mark.parametrize("name", GENERATORS)
def test_at_the_default_width_too(name: str) -> None:
    """Other kernels compute the wide layers."""
    network = generator(name, options="", channels=1)
    images = sample(network, range(40))
    assert torch.equal(sample(network, [37]), images[37:38])
    assert torch.equal(sample(network, list(range(39, 29, -1))), images[30:].flip(0))


def test_sampling_leaves_torchs_random_state_and_the_network_alone() -> None:
    network = generator("snn_back")
    weights = {k: v.clone() for k, v in network.state_dict().items()}
    before = torch.get_rng_state()
    first = sample(network, [1, 2])
    torch.randn(10)
    assert torch.equal(first, sample(network, [1, 2]))
    torch.set_rng_state(before)
    sample(network, [3])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
    assert not first.requires_grad


def test_no_seeds_no_images() -> None:
    assert sample(generator("ann"), []).shape == (0, 3, 16, 16)


# --- latents --------------------------------------------------------------------------------


def test_latents_are_torchs_of_each_seed() -> None:
    z = latents([0, 1, 2**63 - 1], 4)
    golden = torch.tensor(
        [
            [1.5409960746765137, -0.293428897857666, -2.1787893772125244, 0.5684312582015991],
            [0.6613521575927734, 0.266924113035202, 0.06167725846171379, 0.6213173270225525],
        ]
    )
    assert torch.equal(z[:2], golden)
    assert torch.equal(z[1], latents([1], 4)[0])
    assert len(torch.unique(z, dim=0)) == 3


def test_latents_are_standard_normal() -> None:
    z = latents(range(4000), 3)
    assert z.mean().item() == pytest.approx(0, abs=0.03)
    assert z.std().item() == pytest.approx(1, abs=0.03)
    assert latents([], 5).shape == (0, 5)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(OptionError, match=f"given {seed}"):
        latents([0, seed], 4)


# --- seeds as text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("0", [0]),
        ("0-3", [0, 1, 2, 3]),
        ("5-5", [5]),
        ("1,5,10-12", [1, 5, 10, 11, 12]),
        (" 1 , 2-3 ", [1, 2, 3]),
        ("3,1,3", [3, 1, 3]),
        ("007", [7]),
        ("999999999999999999", [10**18 - 1]),
    ],
)
def test_seeds_are_read(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ",", "1,", ",1", "1,,2", "-1", "1-", "-", "3-1", "1-2-3", "a", "1.5", "1e3", "0x1",
        "+1", "1 2", "1 - 2", "1:3", "²", "٣", "1\x00", "1_000", "9999999999999999999", "0-1000000",
        "0-99999999999", "None", "0-63;rm",
    ],
)  # fmt: skip
def test_other_text_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_seeds(text)
    assert text.strip() in str(caught.value)


@given(st.text(max_size=20) | st.text("0123456789-, ", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        seeds = parse_seeds(text)
    except OptionError:
        return
    assert seeds
    assert all(0 <= seed < 2**63 for seed in (seeds[0], seeds[-1]))


@given(st.lists(st.integers(0, 10**18 - 1), min_size=1, max_size=20))
def test_written_seeds_are_read_back(seeds: list[int]) -> None:
    assert parse_seeds(",".join(map(str, seeds))) == seeds


@given(st.integers(0, 10**17), st.integers(0, 500))
def test_written_ranges_are_read_back(first: int, more: int) -> None:
    assert parse_seeds(f"{first}-{first + more}") == list(range(first, first + more + 1))


# --- files ----------------------------------------------------------------------------------


def pixels(n: int, channels: int, side: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, side, side), generator=random).to(torch.uint8)


def read(path: Path) -> Tensor:
    """PNG -> uint8 [C, H, W]."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        array = np.atleast_3d(np.asarray(image))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns"), [(1, 8), (5, 2), (64, 8), (3, 8)])
def test_a_grid_holds_the_images_row_by_row(
    channels: int, n: int, columns: int, tmp_path: Path
) -> None:
    images = pixels(n, channels)
    path = tmp_path / "new" / "grid.png"
    save_grid(images, path, columns)
    grid = read(path)
    assert grid.shape[0] == channels
    if n > 1:
        wide, high = min(columns, n), -(-n // columns)
        assert grid.shape[1:] == (high * 18 + 2, wide * 18 + 2)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = (row * 18 + 2, column * 18 + 2) if n > 1 else (0, 0)
        cell = grid[:, top : top + 16, left : left + 16]
        assert torch.equal(cell, image), i
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_read_back_pixel_for_pixel(channels: int, tmp_path: Path) -> None:
    images, seeds = pixels(3, channels), [4, 0, 10**17]
    folder = tmp_path / "images"
    save_images(images, seeds, folder)
    save_images(images, seeds, folder)  # again, over the first
    names = ["000000.png", "000004.png", f"{10**17}.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for image, seed in zip(images, seeds, strict=True):
        assert torch.equal(read(folder / f"{seed:06d}.png"), image)


def test_generated_images_go_to_disk_and_back(tmp_path: Path) -> None:
    images = sample(generator("snn_full"), [3, 5])
    save_images(images, [3, 5], tmp_path)
    assert torch.equal(read(tmp_path / "000005.png"), images[1])


# --- devices --------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused() -> None:
    assert usable("cpu") == torch.device("cpu")
    assert usable(torch.device("cpu")) == torch.device("cpu")
    for device in ("nonsense", "cuda:99", "", "cpu:-1"):
        with pytest.raises(OptionError, match=f"device '{device}' cannot be used here"):
            usable(device)
