"""Datasets as images: the only place that knows where images come from and what values they have.

Outside the networks an image is uint8 in 0..255, inside it is float32 in [-1, 1]. A dataset finds
its source; `load` decodes it once, caches the result and hands out one tensor; `Batches` cuts
shuffled batches from it. A plugin's dataset needs what `Dataset` lists and inherits nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from spikezoo import files
from spikezoo.errors import DataError

log = logging.getLogger(__name__)

CACHE_FORMAT = "1"  # to be raised when the same source would be decoded to other pixels
GREY_MODES = frozenset({"1", "L", "LA", "La"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class Source(Protocol):
    """The images of one split: counted and identified cheaply, decoded only when asked for."""

    @property
    def fingerprint(self) -> str:
        """Text that differs whenever the images do; it must be found without decoding them."""
        ...

    def __len__(self) -> int: ...

    def images(self) -> Iterator[Image.Image]:
        """The images, decoded, in a fixed order. Raises DataError naming one that cannot be."""
        ...


class LabelledSource(Source, Protocol):
    """A source that knows what its images show."""

    def labels(self) -> list[int]:
        """The classes from 0, in the order of the images. Raises DataError where there are none."""
        ...


class Dataset(Protocol):
    """What the registry kind `datasets` holds."""

    @property
    def name(self) -> str: ...

    @property
    def channels(self) -> int | None:
        """1 for grey, 3 for RGB; None: grey if every image is grey, else RGB."""
        ...

    def read(self, split: str, data: Path | None) -> Source:
        """Find the images of a split, in the folder `data` if one is given, or raise DataError."""
        ...


# scikit-learn's digits ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """1,797 real handwritten digits of 8x8 pixels that come with scikit-learn.

    Every sixth image is `test` (299), the others are `train` (1,498): the images are ordered by
    writer, so a cut in one place would put different hands into the two splits.
    """

    name: str = "digits"
    channels: int | None = 1

    def read(self, split: str, data: Path | None) -> Source:
        if split not in ("train", "test"):
            raise DataError(f"digits has the splits 'train' and 'test', not {split!r}")
        return _DigitsSource(split)


@dataclass(frozen=True)
class _DigitsSource:
    split: str

    @property
    def fingerprint(self) -> str:
        # The version stands for the content: importing scikit-learn alone takes a second.
        return f"scikit-learn {importlib.metadata.version('scikit-learn')}"

    def __len__(self) -> int:
        return len(self._pixels())

    def images(self) -> Iterator[Image.Image]:
        return map(Image.fromarray, self._pixels())

    def labels(self) -> list[int]:
        return list(map(int, self._chosen("target")))

    def _pixels(self) -> NDArray[np.uint8]:
        levels = self._chosen("images")  # [n, 8, 8], grey levels 0..16
        pixels: NDArray[np.uint8] = np.round(levels * (255 / 16)).astype(np.uint8)
        return pixels

    def _chosen(self, what: str) -> NDArray[np.float64]:
        from sklearn.datasets import load_digits

        rows: NDArray[np.float64] = load_digits()[what]
        is_test = np.arange(len(rows)) % 6 == 5
        return rows[is_test if self.split == "test" else ~is_test]


# dataset repos of the Hub, in parquet -------------------------------------------------------------


@dataclass(frozen=True)
class HubParquet:
    """A dataset repo of the Hub whose images are encoded in a column of parquet files.

    The files of a split, `{repo}/{config_dir}/{split}-00000-of-00001.parquet` or several shards,
    come from `data` and nowhere else if it is given; otherwise from the folder SPIKEZOO_DATA, else
    from the Hub's cache, else from the Hub (one shard).
    """

    name: str
    repo: str
    config_dir: str
    image_column: str
    channels: int | None
    label_column: str = "label"

    def read(self, split: str, data: Path | None) -> Source:
        variable = os.environ.get("SPIKEZOO_DATA")
        root = data or (Path(variable).expanduser() if variable else None)
        if root and not root.is_dir():
            raise DataError(f"dataset {self.name!r}: the data folder {root} does not exist")
        shards = _shards(root / self.repo / self.config_dir, split) if root else []
        if not shards and data:
            expected = data / self.repo / self.config_dir / f"{split}-00000-of-00001.parquet"
            raise DataError(f"dataset {self.name!r}: there is no {expected}")
        paths = tuple(shards or self._from_hub(split, root))
        return _ParquetSource(paths, self.image_column, self.label_column)

    def _from_hub(self, split: str, root: Path | None) -> list[Path]:
        import httpx2
        from huggingface_hub import errors, hf_hub_download, snapshot_download

        file = f"{self.config_dir}/{split}-00000-of-00001.parquet"
        pattern = f"{self.config_dir}/{split}-*.parquet"
        try:
            try:
                snapshot = snapshot_download(
                    self.repo, repo_type="dataset", allow_patterns=pattern, local_files_only=True
                )
                cached = _shards(Path(snapshot) / self.config_dir, split)
            except errors.LocalEntryNotFoundError:
                cached = []
            return cached or [Path(hf_hub_download(self.repo, file, repo_type="dataset"))]
        except (  # what the client lets through: it wraps neither its transport nor Xet's errors
            errors.HfHubHTTPError,
            errors.RevisionResolutionError,
            errors.XetDownloadError,
            httpx2.HTTPError,
            OSError,
            ValueError,
            RuntimeError,
        ) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"dataset {self.name!r} ({split}) is not on this machine and cannot be downloaded "
                f"({type(error).__name__}: {reason}).\n"
                "There are three ways to get it:\n"
                "  1. a folder, --data DIR or SPIKEZOO_DATA=DIR, that holds\n"
                f"     {root or 'DIR'}/{self.repo}/{file}\n"
                "  2. the Hub's cache, filled where there is a network by\n"
                f"     hf download {self.repo} --repo-type dataset "
                f'--include "{pattern}"\n'
                "  3. network access to the Hub (HF_ENDPOINT) with HF_HUB_OFFLINE unset"
            ) from error


def _shards(folder: Path, split: str) -> list[Path]:
    """The parquet files of a split in order, or none. Raises DataError if only some are there."""
    number = "[0-9]" * 5
    names = f"{split}-{number}-of-{number}.parquet"
    found = sorted(file for file in folder.glob(names) if file.exists())  # no link to nowhere
    if not found:
        return []
    total = found[-1].stem[-5:]
    expected = [f"{split}-{i:05d}-of-{total}.parquet" for i in range(int(total))]
    if [file.name for file in found] != expected:
        raise DataError(
            f"{folder}: expected the {int(total)} file(s) {split}-*-of-{total}.parquet, "
            f"found {', '.join(file.name for file in found)}"
        )
    return found


@dataclass(frozen=True)
class _ParquetSource:
    files: tuple[Path, ...]
    column: str
    label_column: str

    @property
    def fingerprint(self) -> str:
        return " ".join([self.column, *map(_file_sha256, self.files)])

    def __len__(self) -> int:
        from pyarrow import ArrowException, parquet

        rows = 0
        for path in self.files:
            try:
                rows += parquet.read_metadata(path).num_rows
            except (ArrowException, OSError) as error:
                raise DataError(f"{path} is no readable parquet file: {error}") from error
        return rows

    def labels(self) -> list[int]:
        from pyarrow import ArrowException, parquet

        found: list[int] = []
        for path in self.files:
            try:
                column = parquet.read_table(path, columns=[self.label_column])[self.label_column]
                found += map(int, column.to_pylist())
            except (ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path} has no column '{self.label_column}' of classes: {error}"
                ) from error
        return found

    def images(self) -> Iterator[Image.Image]:
        for path in self.files:
            for row, encoded in enumerate(self._rows(path)):  # rows count from 0 in each file
                if encoded is None:
                    raise DataError(f"{path}, row {row}: the image is missing")
                yield _decode(encoded, f"{path}, row {row}")

    def _rows(self, path: Path) -> Iterator[bytes | None]:
        from pyarrow import ArrowException, parquet, types

        try:
            with parquet.ParquetFile(path) as file:
                schema = file.schema_arrow
                if self.column not in schema.names:
                    columns = ", ".join(schema.names)
                    raise DataError(f"{path} has no column {self.column!r}, but {columns}")
                kind = schema.field(self.column).type
                if not types.is_struct(kind) or kind.get_field_index("bytes") < 0:
                    raise DataError(f"{path}: column {self.column!r} is {kind}, no encoded images")
                for batch in file.iter_batches(batch_size=1000, columns=[self.column]):
                    for image in batch.column(self.column).to_pylist():
                        yield image and image["bytes"]
        except (ArrowException, OSError) as error:
            raise DataError(f"{path} is no readable parquet file: {error}") from error


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    # The Hub's cache names a large file by its sha256, but its client checks nothing but the size.
    if path.is_symlink():
        blob = path.readlink()
        if blob.parent.name == "blobs" and len(blob.name) == len(digest) and blob.name != digest:
            raise DataError(
                f"{path} was damaged on its way from the Hub; "
                "fetch it again with: hf download --force-download --repo-type dataset ..."
            )
    return digest


# a folder of images -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """The images under the folder `data`, searched recursively, in the order of their paths.

    The folder has one split, `train`, unless it has a subfolder `train` or `test`: then the
    subfolders are the splits.
    """

    name: str = "folder"
    channels: int | None = None

    def read(self, split: str, data: Path | None) -> Source:
        if data is None:
            raise DataError("dataset 'folder' needs the folder of the images: --data DIR")
        has_splits = (data / "train").is_dir() or (data / "test").is_dir()
        root = data / split if has_splits else data
        if not root.is_dir() or (split != "train" and not has_splits):
            raise DataError(f"there is no folder {data / split if data.is_dir() else data}")
        paths = tuple(
            path
            for path in sorted(root.rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        )
        if not paths:
            raise DataError(f"{root} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return _FolderSource(root, paths)


@dataclass(frozen=True)
class _FolderSource:
    root: Path
    paths: tuple[Path, ...]

    @property
    def fingerprint(self) -> str:
        # Reading every photo again would make each start slow. The change time cannot be set by a
        # copying program, so it tells files of equal size and date apart.
        digest = hashlib.sha256(str(self.root.resolve()).encode())
        for path in self.paths:
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}") from error
            name = path.relative_to(self.root).as_posix()
            seen = f"\n{name!r} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
            digest.update(seen.encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def images(self) -> Iterator[Image.Image]:
        for path in self.paths:
            # Cameras store a turned photo as it is, with a note which side is up.
            yield ImageOps.exif_transpose(_decode(path, str(path)))


def _decode(file: Path | bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file if isinstance(file, bytes) else file.read_bytes()))
        image.load()
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise DataError(f"{where}: the image cannot be decoded: {error}") from error
    if image.mode[0] in "IF":  # Pillow would clip these to white instead of scaling them
        raise DataError(f"{where}: the image has more than 8 bits per channel; convert it first")
    return image


DIGITS = Digits()
MNIST = HubParquet("mnist", "ylecun/mnist", "mnist", "image", 1)
FASHION_MNIST = HubParquet(
    "fashion_mnist", "zalando-datasets/fashion_mnist", "fashion_mnist", "image", 1
)
CIFAR10 = HubParquet("cifar10", "uoft-cs/cifar10", "plain_text", "img", 3)
FOLDER = Folder()


# decoded once, then cached ------------------------------------------------------------------------


def load(
    dataset: Dataset,
    *,
    side: int = 32,
    split: str = "train",
    data: Path | str | None = None,
    cache: Path | None = None,
) -> Tensor:
    """All images of a split as one tensor, uint8 [N, C, side, side].

    Images are cut to their centre square and resized (bilinear, antialiased when shrinking). The
    result is kept in the folder `cache`, by default SPIKEZOO_CACHE, else `spikezoo` in the user's
    cache folder. Raises DataError where images are missing or unreadable.
    """
    source = dataset.read(split, None if data is None else Path(data).expanduser())
    facts = (CACHE_FORMAT, dataset.name, split, side, dataset.channels, source.fingerprint)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()
    path = (cache or cache_folder()) / f"{dataset.name}-{split}-{side}-{key[:16]}.safetensors"
    pixels = _read_cache(path, key)
    if pixels is None:
        pixels = _pixels(source, side, dataset.channels, f"decoding {dataset.name} ({split})")
        _write_cache(path, key, pixels)
    return pixels


def load_labels(
    dataset: Dataset, *, split: str = "train", data: Path | str | None = None
) -> Tensor:
    """The classes of a split's images, int64 [N], in the order of `load`.

    Raises:
        DataError: the dataset has none.
    """
    source = dataset.read(split, None if data is None else Path(data).expanduser())
    if not hasattr(source, "labels"):
        raise DataError(f"dataset {dataset.name!r} does not say what its images show")
    return torch.tensor(source.labels())


def cache_folder() -> Path:
    if own := os.environ.get("SPIKEZOO_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spikezoo"


def _pixels(source: Source, side: int, channels: int | None, title: str) -> Tensor:
    count, depth = len(source), channels or 3
    if count == 0:
        raise DataError(f"{title}: there are no images")
    mode = "L" if depth == 1 else "RGB"
    pixels = np.empty((count, side, side, depth), np.uint8)  # [N, H, W, C]
    grey = True
    bar = tqdm(source.images(), title, count, leave=False, delay=1, disable=None, unit="image")
    for slot, image in zip(pixels, bar, strict=True):
        grey = grey and image.mode in GREY_MODES
        square = _centre_square(image.convert(mode))
        resized = square.resize((side, side), Image.Resampling.BILINEAR)
        slot[:] = np.asarray(resized).reshape(slot.shape)
    if channels is None and grey:
        pixels = pixels[..., :1]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # [N, C, H, W]


def _centre_square(image: Image.Image) -> Image.Image:
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return image.crop((left, top, left + edge, top + edge))


def _read_cache(path: Path, key: str) -> Tensor | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            pixels: Tensor = file.get_tensor("pixels")
        if facts.get("key") == key and facts.get("sha256") == _tensor_sha256(pixels):
            return pixels
        reason = "its content is not what was written"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    log.warning("the cached dataset %s is damaged and is made anew: %s", path, reason)
    return None


def _write_cache(path: Path, key: str, pixels: Tensor) -> None:
    facts = {"key": key, "sha256": _tensor_sha256(pixels)}
    try:
        with files.writing(path) as temporary:
            save_file({"pixels": pixels}, temporary, facts)
    except (SafetensorError, OSError) as error:
        # Without a cache only the next start is slower: no reason to refuse this one.
        log.warning("the decoded dataset cannot be cached in %s: %s", path.parent, error)


def _tensor_sha256(pixels: Tensor) -> str:
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)} ".encode())
    digest.update(pixels.numpy().data)
    return digest.hexdigest()


# values and batches -------------------------------------------------------------------------------


def normalize(pixels: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1], on the same device and in the same memory format."""
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def quantize(x: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, rounded and clamped: the exact inverse of `normalize`."""
    return x.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


class BatchesState(TypedDict):
    """A place in the data, from which the epoch's order can be drawn again."""

    generator: Tensor  # uint8, the generator's state before the order was drawn
    position: int  # images of this epoch already handed out


class Batches:
    """Endless shuffled batches of `pixels`, uint8 [N, C, H, W], cut on the device where they lie.

    Each epoch has a new order and drops its last, incomplete batch. The order depends on `seed`,
    not on the device or on global state. Raises DataError if there are too few images for a batch.
    """

    def __init__(self, pixels: Tensor, batch_size: int, seed: int) -> None:
        if len(pixels) < batch_size:
            raise DataError(
                f"the dataset has {len(pixels)} images, fewer than one batch of {batch_size}; "
                "choose a smaller batch size"
            )
        self.batch_size = batch_size
        # Channels last in memory: one row per image to copy, and the format convolutions like.
        self._pixels = pixels.permute(0, 2, 3, 1).contiguous()  # [N, H, W, C]
        self._generator = torch.Generator().manual_seed(seed)
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._epoch_start = self._generator.get_state()
        order = torch.randperm(len(self._pixels), generator=self._generator)
        self._order = order.to(self._pixels.device)
        self._position = 0

    def next_batch(self) -> Tensor:
        """The next images, float32 [batch_size, C, H, W] in [-1, 1], channels last in memory."""
        if self._position + self.batch_size > len(self._pixels):
            self._start_epoch()
        chosen = self._order[self._position : self._position + self.batch_size]
        self._position += self.batch_size
        images = self._pixels.index_select(0, chosen)  # [N, H, W, C]
        return normalize(images.permute(0, 3, 1, 2))  # [N, C, H, W]

    def state(self) -> BatchesState:
        """The place in the data, from which `restore` continues with bit-equal batches."""
        return {"generator": self._epoch_start.clone(), "position": self._position}

    def restore(self, state: BatchesState) -> None:
        """Continue from a state taken over the same images; DataError if they are too few."""
        if not 0 <= state["position"] <= len(self._pixels):
            raise DataError(
                f"position {state['position']} lies outside a dataset of {len(self._pixels)} images"
            )
        self._generator.set_state(state["generator"])
        self._start_epoch()
        self._position = state["position"]
