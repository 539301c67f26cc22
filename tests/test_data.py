"""Datasets: real files and a real HTTP server, written and started here."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from spikezoo import data
from spikezoo.data import Batches, load, normalize, quantize
from spikezoo.errors import DataError

SHARED = Path(os.environ.get("SPIKEZOO_DATA") or Path(__file__).parents[2] / "shared/datasets")
ONE = "train-00000-of-00001.parquet"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has its own cache, Hub's included, and no settings of the machine it runs on."""
    monkeypatch.setenv("SPIKEZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPIKEZOO_DATA", raising=False)
    return tmp_path / "cache"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def write_parquet(path: Path, images: list[bytes | None], column: str = "image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [None if image is None else {"bytes": image, "path": None} for image in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({column: pa.array(rows, kind), "label": [0] * len(rows)}), path)
    return path


def mnist_file(root: Path, name: str = ONE) -> Path:
    return root / "ylecun/mnist/mnist" / name


def error_of(*args: object, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load(*args, **options)  # type: ignore[arg-type]  # any wrong call is welcome here
    return str(caught.value)


# datasets -----------------------------------------------------------------------------------------


def test_digits_are_the_real_ones() -> None:
    train, test = load(data.DIGITS, side=8), load(data.DIGITS, side=8, split="test")
    assert (train.dtype, train.shape, test.shape) == (torch.uint8, (1498, 1, 8, 8), (299, 1, 8, 8))
    assert train[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # levels 0 0 5 13 9 1 0 0
    assert train.max() == 255
    assert load(data.DIGITS).shape == (1498, 1, 32, 32)
    assert "'train' and 'test', not 'dev'" in error_of(data.DIGITS, split="dev")


def test_parquet_pixels_are_exact(tmp_path: Path) -> None:
    grey, colour = noise(5, 16, 16), noise(5, 16, 16, 3)
    write_parquet(mnist_file(tmp_path), [png(image) for image in grey])
    write_parquet(tmp_path / "uoft-cs/cifar10/plain_text" / ONE, [*map(png, colour)], "img")
    assert np.array_equal(load(data.MNIST, side=16, data=tmp_path).numpy()[:, 0], grey)
    cifar = load(data.CIFAR10, side=16, data=str(tmp_path))
    assert np.array_equal(cifar.permute(0, 2, 3, 1).numpy(), colour)
    assert cifar.is_contiguous()


def test_shards_are_read_in_order_and_all(tmp_path: Path) -> None:
    images = noise(6, 16, 16)
    for i in (2, 0, 1):
        two = [png(image) for image in images[2 * i : 2 * i + 2]]
        write_parquet(mnist_file(tmp_path, f"train-0000{i}-of-00003.parquet"), two)
    assert np.array_equal(load(data.MNIST, side=16, data=tmp_path).numpy()[:, 0], images)
    mnist_file(tmp_path, "train-00001-of-00003.parquet").unlink()
    message = error_of(data.MNIST, data=tmp_path)
    assert "expected the 3 file(s)" in message
    assert "train-00002-of-00003.parquet" in message


def test_variable_names_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(mnist_file(tmp_path / "set"), [png(noise(1, 16, 16)[0])])
    monkeypatch.setenv("SPIKEZOO_DATA", str(tmp_path / "set"))
    assert len(load(data.MNIST)) == 1
    # What the user gives on the command line is never replaced by another place.
    (tmp_path / "given").mkdir()
    assert str(mnist_file(tmp_path / "given")) in error_of(data.MNIST, data=tmp_path / "given")
    assert "does not exist" in error_of(data.MNIST, data=tmp_path / "absent")


def test_images_are_cut_to_squares_then_resized(tmp_path: Path) -> None:
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200  # only the centre square is kept, and nothing bleeds in from beside it
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert load(data.FOLDER, data=tmp_path).unique().tolist() == [200]


def test_folder_is_searched_recursively_in_order(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    for name, level in (("b.png", 2), ("a/z.bmp", 1), ("c.WEBP", 3)):
        Image.new("L", (16, 16), level).save(root / name, lossless=True)
    (root / "notes.txt").write_text("no image")
    (root / "._b.png").write_text("what a Mac leaves behind")
    pixels = load(data.FOLDER, side=16, data=root)
    # webp knows no grey, so all are RGB
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels[:, 0, 0, 0].tolist() == [1, 2, 3]
    (root / "c.WEBP").unlink()
    assert load(data.FOLDER, side=16, data=root).shape == (2, 1, 16, 16)
    assert f"{root / 'test'}" in error_of(data.FOLDER, data=root, split="test")


def test_folder_with_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (16, 16)).save(tmp_path / "set" / split / f"{i}.png")
    assert len(load(data.FOLDER, data=tmp_path / "set")) == 3
    assert len(load(data.FOLDER, data=tmp_path / "set", split="test")) == 2


def test_folder_keeps_photos_upright(tmp_path: Path) -> None:
    photo = Image.new("RGB", (16, 16))
    photo.paste((255, 255, 255), (0, 0, 8, 16))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: the left half becomes the upper half
    photo.save(tmp_path / "photo.png", exif=exif)
    shown = load(data.FOLDER, side=16, data=tmp_path)[0, 0]
    assert shown[:8].min() == 255
    assert shown[8:].max() == 0


def test_folder_errors(tmp_path: Path) -> None:
    assert "--data DIR" in error_of(data.FOLDER)
    assert "no folder" in error_of(data.FOLDER, data=tmp_path / "absent")
    assert "holds no image" in error_of(data.FOLDER, data=tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    assert str(tmp_path / "broken.jpg") in error_of(data.FOLDER, data=tmp_path)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (None, "the image is missing"),
        (b"", "cannot be decoded"),
        (b"GIF89a, or so it says", "cannot be decoded"),
        (png(noise(1, 16, 16)[0])[:-40], "cannot be decoded"),
        (png(np.full((16, 16), 300, np.uint16)), "more than 8 bits"),
    ],
    ids=["null", "empty", "garbage", "cut off", "16 bits"],
)
def test_broken_row_is_named(tmp_path: Path, bad: bytes | None, expected: str) -> None:
    good = png(noise(1, 16, 16)[0])
    file = write_parquet(mnist_file(tmp_path), [good, good, bad, good])
    message = error_of(data.MNIST, data=tmp_path)
    assert f"{file}, row 2: " in message
    assert expected in message


def test_unreadable_parquet_is_named(tmp_path: Path) -> None:
    file = write_parquet(mnist_file(tmp_path), [png(noise(1, 16, 16)[0])], column="picture")
    message = error_of(data.MNIST, data=tmp_path)
    assert f"{file} has no column 'image'" in message
    assert "picture, label" in message
    pq.write_table(pa.table({"image": [1, 2]}), file)
    assert "no encoded images" in error_of(data.MNIST, data=tmp_path)
    file.write_bytes(b"no parquet")
    assert f"{file} is no readable parquet file" in error_of(data.MNIST, data=tmp_path)
    pq.write_table(pa.table({"image": pa.array([], pa.struct({"bytes": pa.binary()}))}), file)
    assert "no images" in error_of(data.MNIST, data=tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared datasets are not here")
def test_shared_datasets() -> None:
    assert load(data.MNIST, split="test", data=SHARED).shape == (10000, 1, 32, 32)


# the Hub ------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """Enough of the Hub's protocol for one file of one dataset repo."""

    def __init__(self, path: str, body: bytes, seen: list[str], *args: object) -> None:
        self.served, self.body, self.seen = path, body, seen
        super().__init__(*args)  # type: ignore[arg-type]  # what http.server passes on

    def do_GET(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        found = self.path == self.served
        self.send_response(200 if found else 404)
        body = self.body if found else b""
        self.send_header("Content-Length", str(len(body)))
        if found:
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def load_elsewhere(home: Path, script: str, **environment: str) -> str:
    """What a script prints in a new process: the Hub's client reads its settings at import."""
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    begin = (
        "from spikezoo.data import MNIST, load; from spikezoo.errors import DataError\n"
        "def attempt(split):\n"
        "    try: print('loaded', len(load(MNIST, split=split)))\n"
        "    except DataError as error: print(error, '| from', type(error.__cause__).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + script],
        env=kept | settings | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    served = write_parquet(tmp_path / "served", [png(image) for image in noise(4, 28, 28)])
    seen: list[str] = []
    path = f"/datasets/ylecun/mnist/resolve/main/mnist/{ONE}"
    handler = functools.partial(Hub, path, served.read_bytes(), seen)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_then_hub_cache(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, seen = hub
    script = """
import os, pathlib
attempt("train")
os.environ["SPIKEZOO_CACHE"] += "2"  # to be decoded again, but from the Hub's cache
attempt("train")
(file,) = pathlib.Path(os.environ["HF_HOME"]).rglob("train-*.parquet")
damaged = bytearray(file.read_bytes())
damaged[100] ^= 1
file.write_bytes(damaged)
attempt("train")  # the client checks no more than the size of what it fetched
attempt("dev")
"""
    printed = load_elsewhere(tmp_path / "hf", script, HF_ENDPOINT=endpoint).splitlines()
    assert printed[:2] == ["loaded 4", "loaded 4"]
    assert "damaged on its way from the Hub" in printed[2]
    assert "RemoteEntryNotFoundError" in printed[3]
    assert [line.split()[0] for line in seen if "train" in line] == ["HEAD", "GET"]


def test_offline_error_names_three_ways(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    settings = {"HF_HUB_OFFLINE": "1", "SPIKEZOO_DATA": str(tmp_path / "mine")}
    printed = load_elsewhere(tmp_path / "hf", "attempt('train')", **settings)
    assert "--data DIR or SPIKEZOO_DATA=DIR" in printed
    assert str(mnist_file(tmp_path / "mine")) in printed
    assert (
        'hf download ylecun/mnist --repo-type dataset --include "mnist/train-*.parquet"' in printed
    )
    assert "network access" in printed
    assert printed.rstrip().endswith("| from LocalEntryNotFoundError")


# the cache ----------------------------------------------------------------------------------------


class Painted:
    """A dataset as a plugin would write one: it inherits nothing. It counts its decoded images."""

    name, channels = "painted", 1

    def __init__(self, levels: list[int], fingerprint: str) -> None:
        self.levels, self.fingerprint, self.decoded = levels, fingerprint, 0

    def read(self, split: str, data: Path | None) -> Painted:
        return self

    def __len__(self) -> int:
        return len(self.levels)

    def images(self) -> Iterator[Image.Image]:
        for level in self.levels:
            self.decoded += 1
            yield Image.new("L", (16, 16), level)


def levels_of(pixels: Tensor) -> list[int]:
    return pixels[:, 0, 0, 0].tolist()


def test_second_load_decodes_nothing(cache: Path) -> None:
    painted = Painted([1, 2], "a")
    first = load(painted)
    second = load(painted)
    assert painted.decoded == 2
    assert torch.equal(first, second)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]  # no temporary names left
    load(painted, side=16)
    load(painted, split="test")
    assert len(list(cache.iterdir())) == 3


def test_each_content_has_its_own_cache_entry(tmp_path: Path) -> None:
    assert levels_of(load(Painted([1], "a"))) == [1]
    assert levels_of(load(Painted([2], "b"))) == [2]
    assert levels_of(load(Painted([1], "a"))) == [1]
    # Files of equal name, size and date
    for folder, level in (("one", 10), ("two", 20)):
        (tmp_path / folder).mkdir()
        Image.new("L", (16, 16), level).save(tmp_path / folder / "image.bmp")
        os.utime(tmp_path / folder / "image.bmp", (0, 0))
        write_parquet(mnist_file(tmp_path / folder), [png(noise(1, 16, 16, seed=level)[0])])
        os.utime(mnist_file(tmp_path / folder), (0, 0))
    for dataset in (data.FOLDER, data.MNIST):
        one, two = (load(dataset, data=tmp_path / folder) for folder in ("one", "two"))
        assert not torch.equal(one, two)


def test_parquet_cache_follows_content_not_place(tmp_path: Path, cache: Path) -> None:
    file = write_parquet(mnist_file(tmp_path / "one"), [png(noise(1, 16, 16)[0])])
    mnist_file(tmp_path / "two").parent.mkdir(parents=True)
    mnist_file(tmp_path / "two").write_bytes(file.read_bytes())
    assert torch.equal(
        load(data.MNIST, data=tmp_path / "one"), load(data.MNIST, data=tmp_path / "two")
    )
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["flip", "header", "cut", "empty", "other"])
def test_damaged_cache_is_made_anew(
    damage: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(Painted([1, 2], "a"))
    (file,) = cache.iterdir()
    content = file.read_bytes()
    if damage == "other":  # a sound file under the wrong name
        load(Painted([3, 4], "b"))
        (other,) = set(cache.iterdir()) - {file}
        content = other.read_bytes()
    bad = {
        "flip": content[:-1] + bytes([content[-1] ^ 1]),
        "header": content.replace(b"[2,1,32,32]", b"[2,1,16,64]"),
        "cut": content[:-1],
        "empty": b"",
        "other": content,
    }[damage]
    file.unlink()  # `first` may still be mapped to it
    file.write_bytes(bad)
    painted = Painted([1, 2], "a")
    assert torch.equal(load(painted), first)
    assert painted.decoded == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(file) in caplog.text
    assert "\n" not in caplog.records[0].getMessage()
    load(painted)
    assert painted.decoded == 2


def test_load_without_a_usable_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")
    assert levels_of(load(Painted([7], "a"), cache=tmp_path / "file" / "cache")) == [7]
    assert "cannot be cached" in caplog.text


def test_failed_decode_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    write_parquet(mnist_file(tmp_path), [png(noise(1, 16, 16)[0]), b"broken"])
    error_of(data.MNIST, data=tmp_path)
    assert not cache.exists() or not list(cache.iterdir())


def test_source_must_keep_its_count() -> None:
    class Short(Painted):
        def __len__(self) -> int:
            return 3

    with pytest.raises(ValueError, match="shorter"):  # no row of the tensor is left unset
        load(Short([1, 2], "a"))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPIKEZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(Painted([1], "a"))
    assert len(list((tmp_path / "xdg/spikezoo").iterdir())) == 1


# values and batches -------------------------------------------------------------------------------


def test_round_trip_is_exact() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = normalize(values)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(quantize(x), values)
    assert quantize(torch.tensor([-9.0, 9.0, 0.0])).tolist() == [0, 255, 128]
    leaf = torch.zeros(1, requires_grad=True)
    quantize(leaf.bfloat16())
    assert leaf.tolist() == [0]  # the argument is not changed


def test_values_stay_on_their_device() -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device="meta")
    assert normalize(pixels).device.type == quantize(normalize(pixels)).device.type == "meta"


def some_batches(seed: int = 0, channels: int = 3) -> Batches:
    numbered = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    return Batches(numbered.expand(10, channels, 4, 4).contiguous(), 4, seed)


def numbers(batch: Tensor) -> list[int]:
    return quantize(batch)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_have_the_promised_form(channels: int) -> None:
    batch = some_batches(channels=channels).next_batch()
    assert (batch.dtype, batch.shape) == (torch.float32, (4, channels, 4, 4))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert batch.min() >= -1
    assert batch.max() <= 1


def test_epochs_are_shuffled_anew_without_repeats() -> None:
    batches = some_batches()
    epochs = [numbers(batches.next_batch()) + numbers(batches.next_batch()) for _ in range(30)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)  # the last two of ten are left out
    assert epochs[0] != epochs[1]
    assert set().union(*epochs) == set(range(10))


def test_order_depends_on_the_seed_alone() -> None:
    first = [numbers(some_batches(seed).next_batch()) for seed in (0, 1)]
    torch.manual_seed(7)
    assert numbers(some_batches(0).next_batch()) == first[0] != first[1]


@pytest.mark.parametrize("done", [0, 1, 2, 3, 7])
def test_restored_batches_go_on_bit_equal(done: int) -> None:
    batches = some_batches()
    for _ in range(done):
        batches.next_batch()
    state = batches.state()
    expected = [batches.next_batch() for _ in range(9)]
    other = some_batches(seed=99)
    other.restore(state)
    assert other.state()["position"] == state["position"]
    assert torch.equal(other.state()["generator"], state["generator"])
    for batch in expected:
        assert torch.equal(other.next_batch(), batch)


def test_batches_errors() -> None:
    pixels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="3 images, fewer than one batch of 4"):
        Batches(pixels, 4, 0)
    batches = Batches(pixels, 3, 0)
    state = batches.state()
    state["position"] = 4
    with pytest.raises(DataError, match="outside a dataset of 3"):
        batches.restore(state)
