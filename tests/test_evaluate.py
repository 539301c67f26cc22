"""Measured quality: against closed forms and definitions, on real images, by the command."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open
from torch import Tensor, nn

import spikezoo
from spikezoo import classify, data, evaluate, export, zoo
from spikezoo.catalog import registry
from spikezoo.cli import main
from spikezoo.errors import CheckpointError, DataError, OptionError, UnknownNameError
from spikezoo.features import CLASSIFIERS
from spikezoo.models.classifier import Classifier
from spikezoo.recipes import settings
from spikezoo.spec import Spec
from spikezoo.train import train

SHARED = Path(os.environ.get("SPIKEZOO_DATA") or Path(__file__).parents[2] / "shared/datasets")
FSVAE = Path(__file__).parents[2] / "shared/metrics/fsvae-autoencoder/mnist"
TINY = "gen:snn_middle,width=4,latent_dim=4,T=2+disc:snn,width=4,T=2@digits"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKEZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def extracted(features: Tensor, logits: Tensor | None = None) -> evaluate._Extracted:
    return evaluate._Extracted(features, logits)


def measured(real: Tensor, found: Tensor, *metrics: str) -> list[float]:
    values = evaluate.measure(lambda x: x, extracted(real), extracted(found), metrics)
    return [values[m] for m in metrics]


# --- distances ------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_is_its_closed_form() -> None:
    """|shift|^2 + sum (s1 - s2)^2 for diagonal covariances, which whitened samples have exactly."""
    samples = normal(2000, 6).double()
    samples -= samples.mean(0)
    samples @= torch.linalg.cholesky(torch.linalg.inv(torch.cov(samples.T)))
    spread, shift = torch.arange(1.0, 7).double(), torch.full((6,), 0.5).double()
    (found,) = measured(samples, samples * spread + shift, "fd")
    assert found == pytest.approx(6 * 0.25 + float(((spread - 1) ** 2).sum()), rel=1e-6)
    assert measured(samples, samples, "fd")[0] == pytest.approx(0, abs=1e-8)


def test_stored_statistics_replace_those_of_real_images() -> None:
    class Stored:
        stored = (np.zeros(3), np.eye(3))

        def __call__(self, x: Tensor) -> Tensor:
            return x

    found = normal(4000, 3).double()
    found = (found - found.mean(0)) / found.std(0)
    values = evaluate.measure(
        Stored(), extracted(normal(10, 3) + 9), extracted(found + 2), evaluate.METRICS
    )
    assert list(values) == ["fd"]  # for all else it has no real images
    assert values["fd"] == pytest.approx(12, abs=0.05)


def test_density_and_coverage_are_their_definitions() -> None:
    real, found, k = normal(60, 4), normal(50, 4, seed=1) * 0.7, 3
    inside = np.zeros((60, 50), bool)
    for i in range(60):
        radius = sorted((real[i] - other).norm().item() for other in real)[k]
        for j in range(50):
            inside[i, j] = (real[i] - found[j]).norm().item() < radius
    density, coverage = evaluate.density_coverage(real, found, k)
    assert density == pytest.approx(inside.sum() / (k * 50))
    assert coverage == pytest.approx(inside.any(1).mean())
    assert evaluate.density_coverage(real, real, k)[1] == 1.0


def test_distances_grow_where_images_move_away() -> None:
    real = normal(600, 8)
    near, far = (measured(real, normal(600, 8, seed=1) + d, *evaluate.DISTANCES) for d in (0, 2))
    worse = dict(zip(evaluate.DISTANCES, zip(near, far, strict=True), strict=True))
    assert worse["fd"][0] < 1 < worse["fd"][1]
    assert abs(worse["kid"][0]) < 0.01 < worse["kid"][1]
    for metric in ("precision", "recall", "density", "coverage"):
        assert worse[metric][0] > 0.5 > worse[metric][1]


def test_a_classifiers_view() -> None:
    real = torch.eye(10).repeat(200, 1) * 50  # each class alike, without a doubt
    one = torch.eye(10)[torch.zeros(2000, dtype=torch.long)] * 50
    values = evaluate.measure(
        lambda x: x, extracted(real, real), extracted(real, real), evaluate.SCORES
    )
    assert values == pytest.approx(
        {"score": 10, "label_kl": 0, "confidence": 1, "classes": 10}, rel=0.03, abs=1e-6
    )
    values = evaluate.measure(
        lambda x: x, extracted(real, real), extracted(one, one), evaluate.SCORES
    )
    p, rest = 2000.5 / 2005, 0.5 / 2005  # half a label is added to each
    divergence = p * math.log(p * 10) + 9 * rest * math.log(rest * 10)
    wanted = {"score": 1, "label_kl": divergence, "confidence": 1, "classes": 1}
    assert values == pytest.approx(wanted, abs=1e-6)
    # A label that no real image has is far, but not infinitely.
    values = evaluate.measure(
        lambda x: x, extracted(one, one), extracted(real, real), evaluate.SCORES
    )
    assert 5 < values["label_kl"] < math.inf


# --- a generator against real images --------------------------------------------------------


class Replays(nn.Module):
    """A generator of given images, by the order of its calls."""

    latent_dim = 2

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.pixels, self.shape, self.at = pixels, tuple(pixels.shape[1:]), 0

    def forward(self, z: Tensor) -> Tensor:
        x = self.pixels[self.at : self.at + len(z)]
        self.at += len(z)
        return data.normalize(torch.cat([x, x.new_zeros(len(z) - len(x), *self.shape)]))


def test_real_images_have_their_floor_and_noise_is_far_from_it() -> None:
    some = evaluate.yardstick("digits", n=299).train
    rows = evaluate.evaluate(Replays(some), "digits", seeds=range(299))
    assert [row.protocol for row in rows] == [
        f"{m}[spikezoo-digits,299,test]" for m in evaluate.METRICS
    ]
    for row in rows:
        assert row.value == pytest.approx(row.floor), row
        assert row.samples == 299
    noise = torch.randint(0, 256, (299, 1, 32, 32), dtype=torch.uint8)
    worse = {r.metric: r for r in evaluate.evaluate(Replays(noise), "digits", seeds=range(999))}
    assert worse["fd"].value > 20 * worse["fd"].floor
    assert worse["precision"].value < 0.1 < worse["precision"].floor
    assert worse["score"].floor > 8


def same(rows: list[evaluate.Row], wanted: list[evaluate.Row]) -> bool:
    """But for rounding: sums of float32 take another order where an array lies elsewhere."""
    return [vars(row) for row in rows] == [
        {**vars(row), **{k: pytest.approx(getattr(row, k), rel=1e-6) for k in ("value", "floor")}}
        for row in wanted
    ]


def test_features_of_real_images_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    extract = evaluate._extract

    def counted(extractor: evaluate.Features, pixels: Tensor, name: str) -> Tensor:
        seen.append(len(pixels))
        return extract(extractor, pixels, name)

    monkeypatch.setattr(evaluate, "_extract", counted)
    generator = zoo.create(Spec.parse(TINY)).generator.eval()
    first = evaluate.evaluate(generator, "digits", seeds=range(40), metrics=["fd"])
    again = evaluate.evaluate(generator, "digits", seeds=range(40), metrics=["fd"])
    assert same(again, first)
    hyphened = ["spikezoo-digits"]  # as its protocol writes it
    spelled = evaluate.evaluate(
        generator, "digits", features=hyphened, seeds=range(40), metrics=["fd"]
    )
    assert same(spelled, first)
    assert seen == [40, 40, 40, 40, 40]  # test, train, generated; then generated alone
    for file in data.cache_folder().glob("features-*"):
        file.write_bytes(b"damaged")
    anew = evaluate.evaluate(generator, "digits", seeds=range(40), metrics=["fd"])
    assert same(anew, first)


def test_of_more_images_than_are_compared_not_the_first_are_taken(tmp_path: Path) -> None:
    """A folder of images lists one class after the other."""
    for split, number in (("train", 40), ("test", 20)):
        for i in range(number):
            path = tmp_path / split / f"{i // (number // 2)}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 255 * (i // (number // 2))).save(path)
    by = evaluate.yardstick("folder", features=["spikezoo_mnist"], n=10, side=16, data_dir=tmp_path)
    for images in (by.test, by.train):
        assert len(images) == 10
        assert 0 < images.float().mean() < 255, "both classes"
    again = evaluate.yardstick(
        "folder", features=["spikezoo_mnist"], n=10, side=16, data_dir=tmp_path
    )
    assert torch.equal(by.train, again.train)
    assert by.protocols == ["spikezoo-mnist,10,test"]


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    generator = zoo.create(Spec.parse(TINY)).generator.eval()
    with pytest.raises(UnknownNameError, match="did you mean 'fd'"):
        evaluate.evaluate(generator, "digits", metrics=["fid"])
    with pytest.raises(UnknownNameError, match="spikezoo_digits"):
        evaluate.evaluate(generator, "digits", features=["spikezoo_digit"])
    with pytest.raises(OptionError, match=r"no classifier of 'folder'.*timm"):
        evaluate.default_features("folder")
    with pytest.raises(OptionError, match="10 images or more"):
        evaluate.evaluate(generator, "digits", seeds=range(3))
    with pytest.raises(OptionError, match=r"timm.* gives none of the metrics score"):
        evaluate.evaluate(
            generator, "digits", seeds=range(10), metrics=["score"],
            features=["timm,model=test_resnet,pretrained=false"],
        )  # fmt: skip
    with pytest.raises(OptionError, match="path=DIR"):
        zoo.component("features", "fad_fsvae")
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors cannot be read"):
        zoo.component("features", f"fad_fsvae,path={tmp_path}")
    with pytest.raises(OptionError, match="key=value"):
        zoo.component("features", "timm,resnet18")


def test_weights_of_inception_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"weights of Inception cannot be had.*path=FILE"):
        zoo.component("features", f"inception,path={tmp_path / 'none.pth'}")


def original_order(split: str) -> list[int]:
    """Of rows whose files are named `<class>_<number in MNIST>.png`."""
    file = SHARED / f"ylecun/mnist/mnist/{split}-00000-of-00001.parquet"
    rows = parquet.read_table(file, columns=["image"])["image"].to_pylist()
    numbers = [int(row["path"].rpartition("_")[2].removesuffix(".png")) for row in rows]
    return sorted(range(len(numbers)), key=numbers.__getitem__)


@pytest.mark.skipif(
    not (FSVAE.is_dir() and SHARED.is_dir()), reason="the shared files are not here"
)
def test_published_autoencoder_distances_are_reproduced() -> None:
    """In MNIST's own order, writer after writer: statistics of a batch depend on its company."""
    mnist = registry("datasets").get("mnist")
    test, training = (
        data.load(mnist, split=split, data=SHARED)[original_order(split)]
        for split in ("test", "train")
    )
    distances = {}
    for mode in ("", ",eval_mode=true"):
        extractor, name = zoo.component("features", f"fad_fsvae,path={FSVAE}{mode}")
        real, *found = (
            evaluate._Extracted.of(extractor, name, pixels, kept=False)
            for pixels in (test, test, training[:10_240])
        )
        distances[mode] = [evaluate.measure(extractor, real, f, ["fd"])["fd"] for f in found]
    assert distances[""] == pytest.approx([0.0, 3.48], abs=0.05)
    assert distances[",eval_mode=true"] == pytest.approx([0.0, 3.66], abs=0.05)


# --- the classifiers ------------------------------------------------------------------------


def test_a_classifier_learns_digits(tmp_path: Path) -> None:
    file = tmp_path / "digits.safetensors"
    done = CliRunner().invoke(main, ["classifier", "digits", str(file), "--epochs", "6"])
    assert done.exit_code == 0, done.output
    with safe_open(file, "pt") as stored:
        assert float(stored.metadata()["test_accuracy"]) > 0.9
        assert stored.get_tensor("last.weight").dtype == torch.float16
    assert "of digits's test images named rightly" in done.output


@pytest.mark.parametrize(("name", "least"), [("digits", 0.97), ("mnist", 0.993), ("cifar10", 0.88)])
def test_shipped_classifiers_are_as_good_as_they_say(name: str, least: float) -> None:
    with safe_open(CLASSIFIERS / f"{name}.safetensors", "pt") as stored:
        said = float(stored.metadata()["test_accuracy"])
    assert said >= least
    assert f"{said:.2%}" in (CLASSIFIERS / "README.md").read_text()
    if name != "digits" and not SHARED.is_dir():
        pytest.skip("the shared datasets are not here")
    source, where = registry("datasets").get(name), None if name == "digits" else SHARED
    pixels = data.load(source, split="test", data=where)
    labels = data.load_labels(source, split="test", data=where)
    extractor, _ = zoo.component("features", f"spikezoo_{name}")
    assert isinstance(extractor.network, Classifier)
    assert classify.accuracy(extractor.network, pixels, labels) == pytest.approx(said, abs=2e-3)


def test_shipped_classifiers_are_small() -> None:
    assert sum(f.stat().st_size for f in CLASSIFIERS.glob("*.safetensors")) < 2.5e6


def test_labels_belong_to_their_images() -> None:
    digits = registry("datasets").get("digits")
    for split in ("train", "test"):
        labels = data.load_labels(digits, split=split)
        assert len(labels) == len(data.load(digits, split=split))
        assert labels.unique().tolist() == list(range(10))
    with pytest.raises(DataError, match="does not say what its images show"):
        data.load_labels(registry("datasets").get("folder"), data=Path(__file__).parent / "..")


# --- the command ----------------------------------------------------------------------------


def test_a_run_keeps_its_numbers_for_its_card(tmp_path: Path) -> None:
    small = settings(batch_size=16, precision="fp32")
    run = train(Spec.parse(TINY), small, kimg=0.032, out=tmp_path / "runs").run
    file = tmp_path / "rows.json"
    call = ["evaluate", str(run), "--n", "40", "--json", str(file)]
    done = CliRunner().invoke(main, [*call, "--metrics", "fd"])
    assert done.exit_code == 0, done.output
    assert "kept in" in done.output
    done = CliRunner().invoke(main, [*call, "--metrics", "kid", "--seeds", "5-44"])
    assert done.exit_code == 0, done.output
    assert "kept in" not in done.output, "nobody may choose the seeds of a card's numbers"
    done = CliRunner().invoke(main, [*call, "--metrics", "coverage"])
    assert done.exit_code == 0, done.output
    assert "| coverage[spikezoo-digits,40,test] |" in done.output
    (row,) = json.loads(file.read_text())
    assert row["protocol"] == "coverage[spikezoo-digits,40,test]"
    export.export(run, tmp_path / "model")
    kept = json.loads((tmp_path / "model" / "config.json").read_text())["measured"]["quality"]
    assert [r["protocol"].partition("[")[0] for r in kept] == ["fd", "coverage"]
    card = (tmp_path / "model" / "README.md").read_text()
    row = kept[0]
    line = f"| fd[spikezoo-digits,40,test] | 40 | {row['value']:.4g} | {row['floor']:.4g} |"
    assert line in card
    # Of an exported model the numbers are printed only.
    done = CliRunner().invoke(main, ["evaluate", str(tmp_path / "model"), "--n", "40"])
    assert done.exit_code == 0, done.output
    assert "kept in" not in done.output
    # Trained on, it is another model.
    train(Spec.parse(TINY), small, kimg=0.064, out=tmp_path / "runs", resume=True)
    export.export(run, tmp_path / "later")
    later = json.loads((tmp_path / "later" / "config.json").read_text())
    assert "quality" not in later["measured"]
    assert spikezoo.load(tmp_path / "later").config["weights"]["images"] == 64
