"""Push and load through the Hub's real client, over HTTP, against the Hub of `local_hub`.

The client reads its environment when it is imported, so every user here is a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_hub import Files, LocalHub

from spikezoo import export
from spikezoo.card import render
from spikezoo.model import open_folder
from spikezoo.recipes import settings
from spikezoo.spec import Spec
from spikezoo.train import train

REPO = "lab/digits-middle"
SPEC = "gen:snn_middle,width=4,latent_dim=4,T=2+disc:snn,width=4,T=2@digits"

# Runs each job and prints one line: its result, or the error's class and text.
CLIENT = """
import json, sys
import spikezoo
from spikezoo import hub
def load(*args, **options):
    images = spikezoo.load(*args, **options).sample(range(4))
    return images.flatten().tolist()
def push(folder, repo, **options):
    from pathlib import Path
    return hub.push(Path(folder), repo, **options).url
def listed(org):
    return hub.models_of(org)
for job in json.loads(sys.argv[1]):
    name, args, options = job
    try:
        print(json.dumps({"value": locals()[name](*args, **options)}), flush=True)
    except spikezoo.SpikeZooError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model."""
    place = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIKEZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        chosen = settings(batch_size=16, side=16, precision="fp32")
        run = train(Spec.parse(SPEC), chosen, kimg=0.8, out=place / "runs").run
    return export.export(run, place / "exported")


@pytest.fixture
def files(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as server:
        yield server


def start(hub: LocalHub, home: Path, *jobs: Any, **env: Any) -> subprocess.Popen[str]:
    full = [(name, args, options) for name, *rest in jobs for args, options in [_split(rest)]]
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, json.dumps(full)],
        env=hub.env(home, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _split(rest: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    return (rest[:-1], rest[-1]) if rest and isinstance(rest[-1], dict) else (rest, {})


def finish(process: subprocess.Popen[str], timeout: float = 100) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def client(hub: LocalHub, home: Path, *jobs: Any, **env: Any) -> list[dict[str, Any]]:
    """What becomes of jobs, one after another in one new process."""
    return finish(start(hub, home, *jobs, **env))


def paths(hub: LocalHub, method: str) -> list[str]:
    return [path for seen, path in hub.requests if seen == method]


# --- push, then load ------------------------------------------------------------------------


def test_what_is_pushed_is_loaded(
    hub: LocalHub, folder: Path, files: Files, tmp_path: Path
) -> None:
    (pushed,) = client(
        hub, tmp_path / "a", ("push", str(folder), REPO, {"tag": "v1"}), token=hub.token
    )
    assert pushed["value"] == f"{hub.url}/{REPO}"
    assert hub.files(REPO) == files
    repo = hub.repos[REPO]
    assert len(repo.commits) == 2, "the empty one that every repo begins with, and ours"
    assert repo.refs["v1"] == repo.refs["main"]

    local, clean, cached, tagged = client(
        hub, tmp_path / "b",
        ("load", str(folder)), ("load", REPO), ("load", REPO), ("load", f"hf:{REPO}@v1"),
    )  # fmt: skip
    assert clean["value"] == local["value"]
    assert cached == clean == tagged
    assert len([p for p in paths(hub, "GET") if "/resolve/" in p]) == 2, "config and weights, once"
    hub.requests.clear()
    by_sha, by_name, offline = client(
        hub, tmp_path / "b",
        ("load", REPO, {"revision": repo.refs["main"]}),
        ("load", REPO), ("load", REPO, {"offline": True}),
    )  # fmt: skip
    assert by_sha == by_name == offline == clean
    assert hub.requests == [("GET", f"/api/models/{REPO}")], "a full commit asks for nothing at all"


def test_offline_the_cache_is_all_there_is(hub: LocalHub, files: Files, tmp_path: Path) -> None:
    hub.commit(REPO, files)
    (first,) = client(hub, tmp_path / "a", ("load", REPO))
    hub.requests.clear()
    again, missing = client(hub, tmp_path / "a", ("load", REPO), ("load", "lab/no"), offline=True)
    assert again == first
    assert missing["error"] == "HubError"
    assert "'lab/no' (main) is not in the Hub's cache" in missing["text"]
    assert not hub.requests


def test_a_pinned_revision_stays_what_it_was(
    hub: LocalHub, folder: Path, files: Files, tmp_path: Path
) -> None:
    pinned = hub.commit(REPO, files)
    hub.commit(REPO, files | {"config.json": b'{"format_version": 99}'})
    old, new, none = client(
        hub, tmp_path, ("load", REPO, {"revision": pinned}), ("load", REPO),
        ("load", f"hf:{REPO}@v9"),
    )  # fmt: skip
    assert "value" in old
    assert "has format version 99, this SpikeZoo reads 1" in new["text"]
    assert none["error"] == "HubError"
    assert f"no '{REPO}' at 'v9'" in none["text"]


def test_pull_requests_branches_and_dry_runs(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    dry, made, branch, pull = client(
        hub, tmp_path,
        ("push", str(folder), REPO, {"dry_run": True}),
        ("push", str(folder), REPO, {"private": True}),
        ("push", str(folder), REPO, {"revision": "half"}),
        ("push", str(folder), REPO, {"create_pr": True, "message": "Please"}),
        token=hub.token,
    )  # fmt: skip
    assert dry["value"] == made["value"] == branch["value"] == f"{hub.url}/{REPO}"
    assert hub.repos[REPO].private
    assert hub.files(REPO, "half") == hub.files(REPO)
    assert pull["value"] == f"{hub.url}/{REPO}/discussions/1"
    assert hub.repos[REPO].at("refs/pr/1").message == "Please"  # type: ignore[union-attr]


def test_a_dry_run_sends_nothing(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    client(hub, tmp_path, ("push", str(folder), REPO, {"dry_run": True}), token=hub.token)
    assert not hub.requests


# --- who may --------------------------------------------------------------------------------


def test_private_missing_and_gated(hub: LocalHub, files: Files, tmp_path: Path) -> None:
    hub.commit(REPO, files, private=True)
    hub.commit("lab/gated", files, gated=True)
    private, missing, gated = client(
        hub, tmp_path, ("load", REPO), ("load", "lab/missing"), ("load", "lab/gated")
    )
    for found in (private, missing):
        assert found["error"] == "HubError"
        assert "on the Hub, or it is private: log in with `hf auth login`" in found["text"]
    assert "asks for its terms to be accepted" in gated["text"]
    (mine,) = client(hub, tmp_path, ("load", REPO), token=hub.read_token)
    assert "value" in mine


def test_a_push_without_the_right_changes_nothing_and_shows_no_token(
    hub: LocalHub, folder: Path, files: Files, tmp_path: Path
) -> None:
    hub.commit(REPO, {"README.md": b"before"})
    before = hub.head(REPO)
    (reader,) = client(hub, tmp_path, ("push", str(folder), REPO), token=hub.read_token)
    (elsewhere,) = client(hub, tmp_path, ("push", str(folder), "others/x"), token=hub.token)
    (stranger,) = client(hub, tmp_path, ("push", str(folder), REPO), token="hf_no_one")
    for found in (reader, elsewhere, stranger):
        assert found["error"] == "HubError"
        assert "set HF_TOKEN to a token that may" in found["text"]
        assert "hf_" not in found["text"].replace("hf_hub", "")
    assert hub.head(REPO) == before


# --- what goes wrong on the way -------------------------------------------------------------


def test_a_fault_of_the_moment_is_got_over(
    hub: LocalHub, files: Files, folder: Path, tmp_path: Path
) -> None:
    actions: list[str | int] = ["cut", 429, 500, "drop", "flip"]
    for action in actions:
        hub.commit(f"lab/{action}", files)
        hub.fail("GET", rf"lab/{action}/resolve/.*/model\.safetensors", action)
    local, *loaded = client(
        hub, tmp_path, ("load", str(folder)), *[("load", f"lab/{action}") for action in actions]
    )
    assert loaded == [local] * 5
    assert not any(fault.left for fault in hub.faults), "the faults did happen"


def test_a_fault_that_stays_is_an_error_and_no_half_model(
    hub: LocalHub, files: Files, tmp_path: Path
) -> None:
    hub.commit(REPO, files)
    hub.fail("GET", r"resolve/.*/model\.safetensors", "flip", 2)
    hub.fail("GET", r"resolve/.*/model\.safetensors", 500, 3)
    flipped, broken, fine = client(hub, tmp_path, *[("load", REPO)] * 3)
    # A later commit that cannot be fetched leaves the one that was.
    hub.commit(REPO, files | {"model.safetensors": b"of another commit"})
    hub.fail("GET", r"resolve/.*/model\.safetensors", 500, 3)
    newer, offline = client(hub, tmp_path, ("load", REPO), ("load", REPO, {"offline": True}))
    assert newer["error"] == "HubError"
    assert offline == fine
    assert flipped["error"] == "CheckpointError"
    assert "is not the file that was exported" in flipped["text"]
    assert broken["error"] == "HubError"
    assert "value" in fine


def test_a_hub_out_of_order(hub: LocalHub, files: Files, tmp_path: Path) -> None:
    actions: list[str | int] = ["drop", 503, "html"]
    for action in actions:
        hub.commit(f"lab/{action}", files)
        hub.fail("GET", f"/api/models/lab/{action}", action, 100)
    results = client(hub, tmp_path, *[("load", f"lab/{action}") for action in actions])
    for action, found in zip(actions, results, strict=True):
        assert found["error"] == "HubError"
        assert f"lab/{action}" in found["text"]


def test_no_network(hub: LocalHub, files: Files, tmp_path: Path) -> None:
    """What is cached is loaded all the same; what is not is an error that says so."""
    hub.commit(REPO, files)
    (first,) = client(hub, tmp_path, ("load", REPO))
    hub.shutdown()
    hub.server_close()
    cached, missing = client(hub, tmp_path, ("load", REPO), ("load", "lab/other"))
    assert cached == first
    assert missing["error"] == "HubError"
    assert "'lab/other'" in missing["text"]


def test_a_hub_that_never_answers(hub: LocalHub, files: Files, tmp_path: Path) -> None:
    hub.commit(REPO, files)
    hub.fail("GET", "/api/models", "stall", 9)
    (found,) = finish(start(hub, tmp_path, ("load", REPO)), timeout=60)
    assert found["error"] == "HubError"


def test_a_failed_push_leaves_the_repo_as_it_was(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    repos = ["lab/a", "lab/b", "lab/c"]
    before = [hub.commit(repo, {"README.md": b"before"}) for repo in repos]
    hub.fail("PUT", "/lfs/", 403)
    hub.fail("POST", "lab/b/commit/", 500, 100)
    hub.fail("POST", "lab/c/commit/", "drop", 100)
    jobs = [("push", str(folder), repo) for repo in repos]
    results = client(hub, tmp_path, *jobs, token=hub.token)
    assert [found.get("error") for found in results] == ["HubError"] * 3
    assert [hub.head(repo) for repo in repos] == before


def test_a_commit_whose_answer_is_lost_is_found_again(
    hub: LocalHub, folder: Path, files: Files, tmp_path: Path
) -> None:
    hub.fail("POST", "/commit/", "lost")
    (found,) = client(hub, tmp_path, ("push", str(folder), REPO), token=hub.token)
    assert found == {"value": f"{hub.url}/{REPO}"}
    assert len(hub.repos[REPO].commits) == 2
    assert hub.files(REPO) == files


def test_two_processes_load_at_once(hub: LocalHub, files: Files, tmp_path: Path) -> None:
    hub.commit(REPO, files)
    processes = [start(hub, tmp_path, ("load", REPO)) for _ in range(2)]
    (one,), (other,) = (finish(process) for process in processes)
    assert "value" in one
    assert one == other


def test_a_load_that_is_killed_leaves_nothing_that_a_later_one_takes_for_whole(
    hub: LocalHub, files: Files, tmp_path: Path
) -> None:
    hub.commit(REPO, files)
    hub.fail("GET", r"resolve/.*/model\.safetensors", "stall")
    process = start(hub, tmp_path, ("load", REPO))
    while not any(fault.left == 0 for fault in hub.faults):
        assert process.poll() is None
    process.kill()
    process.communicate()
    (offline,) = client(hub, tmp_path, ("load", REPO, {"offline": True}))
    assert offline["error"] == "HubError"
    (found,) = client(hub, tmp_path, ("load", REPO))
    assert "value" in found


def test_an_organisation_lists_the_numbers_of_its_cards(
    hub: LocalHub, folder: Path, files: Files, tmp_path: Path
) -> None:
    config = json.loads(files["config.json"])
    row = {
        "metric": "fd",
        "protocol": "fd[spikezoo-digits,299,test]",
        "value": 7.25,
        "floor": 0.5,
        "samples": 299,
    }
    config["measured"]["quality"] = [row]
    measured = render(config, open_folder(folder).generator).encode()
    hub.commit("lab/plain", files)
    hub.commit("lab/measured", {**files, "README.md": measured})
    hub.commit("lab/other", {"README.md": b"---\ntags: [gan]\n---\n"})
    (found,) = client(hub, tmp_path, ("listed", "lab"))
    assert found["value"].keys() == {"lab/plain", "lab/measured"}
    assert found["value"]["lab/measured"] == "fd[spikezoo-digits,299,test] 7.25"
    assert "snn_middle" in found["value"]["lab/plain"]


# --- what is no model of ours ---------------------------------------------------------------


def test_repos_of_others(hub: LocalHub, files: Files, tmp_path: Path) -> None:
    hub.commit(
        "lab/bert", {"config.json": b'{"architectures": ["X"]}', "pytorch_model.bin": b"\x80"}
    )
    hub.commit("lab/empty", {"README.md": b"hello"})
    hub.commit("lab/theirs", {"config.json": b'{"architectures": ["X"]}', "model.safetensors": b""})
    bert, empty, theirs = client(
        hub, tmp_path, ("load", "lab/bert"), ("load", "lab/empty"), ("load", "lab/theirs")
    )
    assert "seems to be a transformers model, with weights in pytorch_model.bin" in bert["text"]
    assert "a pickle, which is never read" in bert["text"]
    assert "it has 1 files" in empty["text"]
    assert "is no config of SpikeZoo; it seems to be from transformers" in theirs["text"]
    assert {found["error"] for found in (bert, empty, theirs)} == {"CheckpointError"}
    assert not [path for path in paths(hub, "GET") if path.endswith(".bin")]
