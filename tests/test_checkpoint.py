"""Checkpoints: whole or not at all, and refused by name when they are not what was written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spikezoo import checkpoint, files
from spikezoo.errors import CheckpointError

STATE = {"images": 64, "iteration": 1, "place": 32, "note": "Ä ✓", "pi": 0.1 + 0.2, "list": [1, []]}
DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16,
    torch.int64, torch.int32, torch.uint8, torch.bool,
)  # fmt: skip


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {
        str(dtype): (torch.randn(3, 4, generator=generator) * 100).to(dtype) for dtype in DTYPES
    }
    found["scalar"] = torch.tensor(7.0)
    found["empty"] = torch.empty(0, 3)
    found["rng"] = torch.Generator().manual_seed(seed).get_state()
    found["odd"] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    found["channels last"] = torch.randn(2, 3, 4, 4, generator=generator).to(
        memory_format=torch.channels_last
    )
    found["transposed"] = torch.arange(6).view(2, 3).T
    return found


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert bits(a[name]) == bits(b[name]), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound checkpoints, 64 and 128."""
    for images in (64, 128):
        checkpoint.save(tmp_path, images, tensors(images), {**STATE, "images": images})
    return tmp_path


def test_load_gives_what_save_was_given_bit_for_bit(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "deep" / "er", 64, tensors(), STATE)
    assert path == tmp_path / "deep" / "er" / "000000064"
    found = checkpoint.load(path)
    assert_same(found.tensors, tensors())
    assert (found.path, found.state) == (path, STATE)


def test_no_pickle(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"tensors.safetensors", "state.json"}
    for path in files:
        start = path.read_bytes()
        json.loads(start if path.suffix == ".json" else start[8 : 8 + start[0] + 256 * start[1]])


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "missing") == (None, [])


def test_the_newest_two_are_kept(folder: Path) -> None:
    assert checkpoint.KEEP == 2
    checkpoint.save(folder, 1_000_000_000, tensors(), STATE)  # a digit more than the others
    checkpoint.save(folder, 999_999_999, tensors(), STATE)
    assert sorted(path.name for path in folder.iterdir()) == ["1000000000", "999999999"]
    found, _ = checkpoint.newest(folder)
    assert found is not None
    assert found.path.name == "1000000000"


def test_a_copy_beside_the_checkpoints_is_neither_read_nor_deleted(folder: Path) -> None:
    (folder / "000000128-copy").mkdir()
    (folder / "000000999").write_text("a file")
    found, refused = checkpoint.newest(folder)
    assert found is not None
    assert (found.path.name, refused) == ("000000128", [])
    checkpoint.save(folder, 192, tensors(), STATE)
    assert (folder / "000000128-copy").is_dir()


def test_the_same_point_reached_again_replaces_its_checkpoint(folder: Path) -> None:
    checkpoint.save(folder, 128, tensors(7), {**STATE, "again": True})
    found, _ = checkpoint.newest(folder)
    assert found is not None
    assert found.state["again"] is True
    assert_same(found.tensors, tensors(7))
    assert len(list(folder.iterdir())) == 2


def test_what_a_killed_process_left_is_ignored_and_then_removed(folder: Path) -> None:
    left = folder / ".writing-abc"
    left.mkdir()
    (left / "tensors.safetensors").write_bytes(b"half")
    found, refused = checkpoint.newest(folder)
    assert found is not None
    assert (found.path.name, refused) == ("000000128", [])
    checkpoint.save(folder, 192, tensors(), STATE)
    assert sorted(path.name for path in folder.iterdir()) == ["000000128", "000000192"]


# --- damage ---------------------------------------------------------------------------------


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def flip(name: str, where: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[int((len(content) - 1) * where)] ^= 1
        (path / name).write_bytes(content)

    return damage


def gone(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def edit(old: str, new: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        text = (path / "state.json").read_text("utf-8")
        assert old in text
        (path / "state.json").write_text(text.replace(old, new), "utf-8")

    return damage


def rewrite(text: str) -> Callable[[Path], None]:
    return lambda path: (path / "state.json").write_text(text) and None


def other_weights(path: Path) -> None:
    """A whole, sound file of other tensors."""
    other = path.parent / "000000064" / "tensors.safetensors"
    (path / "tensors.safetensors").write_bytes(other.read_bytes())


DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"{name} cut to {keep}": cut(name, keep)
       for name in ("tensors.safetensors", "state.json") for keep in (0, 0.1, 0.5, 0.99)},
    **{f"{name} flipped at {where}": flip(name, where)
       for name in ("tensors.safetensors", "state.json") for where in (0, 0.3, 0.6, 0.9)},
    "no tensors.safetensors": gone("tensors.safetensors"),
    "no state.json": gone("state.json"),
    "a number edited": edit('"iteration": 1', '"iteration": 2'),
    "a key added": edit('"iteration": 1', '"iteration": 1, "more": 0'),
    "a list": rewrite("[]"),
    "null": rewrite("null"),
    "keys missing": rewrite("{}"),
    "state is no dict": rewrite('{"state": 3, "tensors_sha256": 1, "digest": 2}'),
    "other weights": other_weights,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_used(
    damage: str, folder: Path
) -> None:
    path = folder / "000000128"
    DAMAGES[damage](path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert "refused" in str(caught.value)

    found, refused = checkpoint.newest(folder)
    assert found is not None
    assert found.path == folder / "000000064"
    assert_same(found.tensors, tensors(64))
    assert [str(error) for error in refused] == [str(caught.value)]


def test_every_single_byte_of_state_json_is_watched(tmp_path: Path) -> None:
    """White space aside: a changed byte is refused or means the same."""
    path = checkpoint.save(tmp_path, 64, {"x": torch.zeros(1)}, {"images": 64, "lr": 0.5})
    file = path / "state.json"
    whole = file.read_bytes()
    for index in range(len(whole)):
        changed = bytearray(whole)
        changed[index] ^= 1
        file.write_bytes(changed)
        try:
            state = checkpoint.load(path).state
        except CheckpointError:
            continue
        assert state == {"images": 64, "lr": 0.5}, bytes(changed)


def test_with_all_refused_every_one_is_named(folder: Path) -> None:
    gone("state.json")(folder / "000000064")
    cut("tensors.safetensors", 0.5)(folder / "000000128")
    with pytest.raises(CheckpointError, match="no checkpoint is left") as caught:
        checkpoint.newest(folder)
    assert "000000064 is refused" in str(caught.value)
    assert "000000128 is refused" in str(caught.value)


def test_a_save_that_fails_leaves_the_older_ones(folder: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(folder, 192, tensors(), {"no": object()})
    found, refused = checkpoint.newest(folder)
    assert found is not None
    assert (found.path.name, refused) == ("000000128", [])


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 64, tensors(), STATE)


def test_a_full_disk_is_an_os_error_and_leaves_the_older_ones(folder: Path) -> None:
    resource = pytest.importorskip("resource", reason="POSIX limits stand in for a full disk")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save(folder, 192, tensors(), STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found, refused = checkpoint.newest(folder)
    assert found is not None
    assert (found.path.name, refused) == ("000000128", [])
    checkpoint.save(folder, 192, tensors(), STATE)
    assert sorted(path.name for path in folder.iterdir()) == ["000000128", "000000192"]


def test_json_is_written_whole_and_readable(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for value in (STATE, {"short": 1}):
        files.write_json(file, value)
        assert json.loads(file.read_bytes()) == value
    assert "\n  " in file.read_text(), "indented, for people"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(TypeError):
        files.write_json(file, {"no": object()})
    assert json.loads(file.read_bytes()) == {"short": 1}
