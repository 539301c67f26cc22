"""Training: resumable at any moment, bit for bit, and clear about what goes wrong."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spikezoo
from spikezoo import checkpoint
from spikezoo.catalog import names, registry
from spikezoo.errors import CheckpointError, JobError, TrainingError
from spikezoo.losses import Loss
from spikezoo.recipes import Settings, fitted, settings
from spikezoo.spec import Spec
from spikezoo.train import Result, train

TINY = "gen:snn_middle,width=4,latent_dim=4,T=2+disc:snn,width=4,T=2@digits"


@pytest.fixture(autouse=True)
def _own_cache_one_thread(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKEZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def tiny(**given: object) -> Settings:
    return settings(**{"batch_size": 16, "side": 16, "precision": "fp32", **given})


def run(out: Path, spec: str = TINY, kimg: float = 0.32, **given: object) -> Result:
    arguments = {key: given.pop(key) for key in ("resume", "snapshot_kimg") if key in given}
    return train(Spec.parse(spec), tiny(**given), kimg=kimg, out=out, **arguments)


def final(result: Result) -> dict[str, torch.Tensor]:
    found, refused = checkpoint.newest(result.run / "checkpoints")
    assert found is not None
    assert not refused
    return found.tensors


def assert_bit_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def rows(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("disc", names("discriminators"))
@pytest.mark.parametrize("gen", names("generators"))
def test_every_pair_trains(gen: str, disc: str, tmp_path: Path) -> None:
    spec = f"gen:{gen},width=4+disc:{disc},{'model=test_resnet' if disc == 'timm' else 'width=4'}"
    result = run(tmp_path, spec, kimg=0.064)
    assert result.finished
    before = spikezoo.create(spec, shape=(1, 16, 16))
    after = final(result)
    for prefix, network in (
        ("generator", before.generator),
        ("discriminator", before.discriminator),
    ):
        for name, parameter in network.named_parameters():
            assert after[f"{prefix}.{name}"].shape == parameter.shape
            moments = after[f"optimizer_{prefix[0]}.0.exp_avg"]
            assert moments.abs().max() > 0


@pytest.mark.parametrize("loss", names("losses"))
def test_every_loss_trains_with_r1(loss: str, tmp_path: Path) -> None:
    spec = "gen:ann,width=4+disc:snn,width=4,norm=layer"
    result = run(tmp_path, spec, kimg=0.16, loss=loss, r1=0.1)
    assert all(tensor.isfinite().all() for tensor in final(result).values())


@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_a_recipe_is_a_set_of_settings(recipe: str) -> None:
    chosen = settings(recipe, lr_g=0.5)
    assert (chosen.recipe, chosen.lr_g) == (recipe, 0.5)


@pytest.mark.parametrize(
    ("spec", "weight"),
    [
        ("gen:snn_back+disc:ann@digits", 0.2),
        ("gen:ann+disc:snn,width=16@mnist", 0.5),
        ("gen:ann+disc:ann@cifar10", 0.01),
        ("gen:ann+disc:snn@cifar10", 0.025),
    ],
)
def test_r1_suits_the_pair_and_dataset_unless_it_is_given(spec: str, weight: float) -> None:
    assert fitted(settings(), Spec.parse(spec)).r1 == weight
    assert fitted(settings(r1=0.0), Spec.parse(spec)).r1 == 0
    assert fitted(settings("paper"), Spec.parse(spec)).r1 == 0


def test_a_run_says_the_weight_of_r1_that_it_had(tmp_path: Path) -> None:
    result = run(tmp_path, "gen:snn_middle,width=4+disc:snn,width=4", kimg=0.016)
    assert json.loads((result.run / "config.json").read_text())["training"]["r1"] == 0.5


def test_a_run_is_told_by_its_seed_alone(tmp_path: Path) -> None:
    a, b, other = (run(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert a.run != b.run, "a new run never overwrites an old one"
    assert_bit_equal(final(a), final(b))
    assert not torch.equal(final(a)["ema.conv3.weight"], final(other)["ema.conv3.weight"])


def test_a_run_folder_holds_what_the_readme_says(tmp_path: Path) -> None:
    result = run(tmp_path, snapshot_kimg=0.16)
    assert result.run == tmp_path / Spec.parse(str(result_spec(result))).slug
    assert result.grid.exists()
    assert (result.run / "curves.png").stat().st_size > 1000
    assert len(list((result.run / "samples").glob("*.png"))) == 2
    files = {path.suffix for path in (result.run / "checkpoints").rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors"}
    metrics = rows(result)
    assert metrics[0]["images"] == 16
    assert set(metrics[0]) == {
        "images", "loss_d", "loss_g", "images_per_second", "rates", "gradients",
    }  # fmt: skip
    assert "G.spikes" in metrics[0]["rates"]  # type: ignore[operator]
    assert "D.convs.0" in metrics[0]["gradients"]  # type: ignore[operator]


def result_spec(result: Result) -> Spec:
    config = json.loads((result.run / "config.json").read_text())
    assert Spec.parse(config["name"]) == Spec.from_json(config["spec"])
    return Spec.from_json(config["spec"])


def test_config_json_reproduces_the_run(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    config = json.loads((first.run / "config.json").read_text())
    training = config["training"]
    kimg = training.pop("kimg")
    again = train(
        Spec.from_json(config["spec"]), Settings(**training), kimg=kimg, out=tmp_path / "again"
    )
    assert_bit_equal(final(first), final(again))


def test_a_lengthened_run_equals_a_long_one(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", kimg=0.64)
    half = run(tmp_path / "parts", kimg=0.32)
    longer = run(tmp_path / "parts", kimg=0.64, resume=True)
    assert longer.run == half.run
    assert_bit_equal(final(whole), final(longer))
    assert [r["images"] for r in rows(whole)] == [r["images"] for r in rows(longer)]


def test_resume_starts_a_run_where_there_is_none_like_it(tmp_path: Path) -> None:
    first = run(tmp_path, resume=True)
    same = run(tmp_path, resume=True)
    other = run(tmp_path, resume=True, lr_g=3e-3)
    assert (first.run == same.run, first.run == other.run) == (True, False)


def test_killed_at_any_moment_and_resumed_it_ends_bit_equal(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "spikezoo", "train", TINY, "--kimg", "3.2", "--batch-size", "16",
        "--side", "16", "--precision", "fp32", "--snapshot-kimg", "0.1", "--resume",
    ]  # fmt: skip
    whole = subprocess.run(
        [*command, "--out", tmp_path / "whole"], check=True, capture_output=True, text=True
    )
    assert "kimg done" in whole.stdout

    kills = 0
    for patience in (0.0, 0.3, 0.9):
        with subprocess.Popen(
            [*command, "--out", tmp_path / "killed"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            before = newest_folder(tmp_path / "killed")
            while process.poll() is None and newest_folder(tmp_path / "killed") == before:
                time.sleep(0.01)
            time.sleep(patience)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
    assert kills >= 1, "the run ended before it could be killed"
    subprocess.run([*command, "--out", tmp_path / "killed"], check=True, capture_output=True)

    ends = [next((tmp_path / name).iterdir()) for name in ("whole", "killed")]
    a, b = (load_file(end / "checkpoints/000003200/tensors.safetensors") for end in ends)
    assert_bit_equal(a, b)
    lines = [(end / "metrics.jsonl").read_text().splitlines() for end in ends]
    images = [[json.loads(line)["images"] for line in found] for found in lines]
    assert images[0] == images[1]


def newest_folder(out: Path) -> str:
    return max((path.name for path in out.glob("*/checkpoints/[0-9]*")), default="")


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(tmp_path / "whole")
    result = run(tmp_path / "damaged", snapshot_kimg=0.16)
    newest = sorted((result.run / "checkpoints").iterdir())[-1]
    file = newest / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:1000] if damage == "cut" else content)
    with caplog.at_level(logging.WARNING, "spikezoo"):
        again = run(tmp_path / "damaged", resume=True)
    assert str(newest) in caplog.text
    assert again.run == result.run
    assert_bit_equal(final(whole), final(again))


def test_with_no_sound_checkpoint_left_nothing_is_overwritten(tmp_path: Path) -> None:
    result = run(tmp_path)
    for state in (result.run / "checkpoints").glob("*/state.json"):
        state.write_text(state.read_text().replace('"iteration": ', '"iteration": 1'))
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint is left.*state\.json"):
        run(tmp_path, resume=True)


def test_a_second_process_is_kept_out_of_a_run(tmp_path: Path) -> None:
    result = run(tmp_path)
    from filelock import FileLock

    with FileLock(result.run / ".lock"), pytest.raises(JobError, match="another process"):
        run(tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    calls = 0

    def fails_later(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return (real.mean() - fake.mean()) * (1.0 if calls <= 12 else float("nan"))

    registry("losses").register("fails_later")(Loss(fails_later, lambda fake: -fake.mean()))
    try:
        with pytest.raises(TrainingError, match=r"discriminator is nan at 0\.2 kimg.*--lr-d"):
            run(tmp_path, loss="fails_later", snapshot_kimg=0.08)
    finally:
        registry("losses").unregister("fails_later")
    found, refused = checkpoint.newest(next(tmp_path.iterdir()) / "checkpoints")
    assert found is not None
    assert (found.state["images"], refused) == (160, [])


def test_a_layer_that_does_not_work_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Dropout of everything leaves the second layer its bias alone, too small to fire.
    spec = "gen:ann,width=4+disc:snn,width=4,norm=none,dropout=1"
    with caplog.at_level(logging.WARNING, "spikezoo"):
        run(tmp_path, spec, kimg=0.8)
    warnings = [record.getMessage() for record in caplog.records]
    assert len([text for text in warnings if "D.spikes.1 is silent" in text]) == 1, "said once"
    assert any("D.convs.0 has a vanishing gradient" in text for text in warnings)


def test_sampling_during_training_changes_nothing(tmp_path: Path) -> None:
    often = run(tmp_path / "often", snapshot_kimg=0.032)
    seldom = run(tmp_path / "seldom", snapshot_kimg=10)
    assert_bit_equal(final(often), final(seldom))


def test_averaged_weights_follow_their_formula(tmp_path: Path) -> None:
    """Without averaging (the paper's recipe) they are the generator's own."""
    tensors = final(run(tmp_path, recipe="paper"))
    own = {k: v for k, v in tensors.items() if k.startswith("generator.")}
    assert_bit_equal(own, {k: tensors[k.replace("generator.", "ema.")] for k in own})
    averaged = final(run(tmp_path, recipe="default"))
    assert not torch.equal(averaged["ema.conv3.weight"], averaged["generator.conv3.weight"])


def test_tensorboard_logs_are_written(tmp_path: Path) -> None:
    result = train(Spec.parse(TINY), tiny(), kimg=0.032, out=tmp_path, tensorboard=True)
    assert list((result.run / "tensorboard").glob("events.*"))


def test_native_and_reference_train_alike(tmp_path: Path) -> None:
    """50 iterations in float32: same spikes, gradients within rounding, so the same losses."""
    a = run(tmp_path / "native", kimg=0.8, backend="native")
    b = run(tmp_path / "reference", kimg=0.8, backend="reference")
    for x, y in zip(rows(a), rows(b), strict=True):
        assert x["loss_d"] == pytest.approx(y["loss_d"], rel=1e-2)
        assert x["loss_g"] == pytest.approx(y["loss_g"], rel=1e-2)


def test_settings_are_checked() -> None:
    assert replace(tiny(), seed=3).seed == 3
    for wrong in ({"lr_g": -1.0}, {"batch_size": 1}, {"precision": "fp8"}, {"r1": float("nan")}):
        with pytest.raises(spikezoo.SpikeZooError):
            settings(**wrong)  # type: ignore[arg-type]


def test_the_command_keeps_freed_memory_unless_told_not_to() -> None:
    """By the process's own count of page faults, for a block that is used, freed and used again."""
    code = (
        "import resource, torch; from spikezoo import memory\n"
        "kept = memory.keep_freed()\n"
        "for i in range(30):\n"  # the first ones find no freed block that is large enough
        "    if i == 20: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(2**24)\n"
        "print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = {}
    for choice in ("1", "0"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SPIKEZOO_KEEP_MEMORY": choice},
            capture_output=True,
            text=True,
            check=True,
        )
        kept, faults[choice] = map(int, done.stdout.split())
        if choice == "1" and not kept:
            pytest.skip("not glibc")
    assert faults["1"] < faults["0"] / 10
