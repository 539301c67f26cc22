"""Models from anywhere, and to the Hub: `spikezoo.load`, `push`, and the models that come with us.

The Hub's client does not compare what it downloads with any hash, has no time limit on some of its
calls, and lets errors of its transport through as they are; what stands here makes up for that.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants, errors
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from spikezoo import card, export, files, model
from spikezoo.errors import CheckpointError, HubError, OptionError
from spikezoo.model import Model

OFFICIAL = "spikegan"  # the organisation of the models that come with the package
SECONDS = 10.0  # until a Hub that does not answer counts as one that cannot be reached
RETRIES = 3
LARGEST_WEIGHTS = 2**30  # bytes that a download may have, whatever a repo holds

# What the client lets through: its own errors, its transport's, Xet's, the cache's.
CLIENT_ERRORS = (
    HfHubHTTPError,
    errors.RevisionResolutionError,
    httpx2.HTTPError,
    OSError,
    ValueError,
    RuntimeError,
)
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)


# --- load -----------------------------------------------------------------------------------


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    backend: str | None = None,
    device: torch.device | str | None = None,
    offline: bool | None = None,
) -> Model:
    """A trained model, with its averaged (EMA) weights.

    Args:
        source: a run folder, an exported folder, `org/name` or `hf:org/name@revision` on the Hub.
            The official models, `spikegan/...`, come with the package.
        revision: of a Hub repo: a branch, tag or commit; `main` by default.
        backend: who computes the spikes; `native` by default. The images do not depend on it.
        device: where; the CPU by default.
        offline: ask the Hub's cache only; by default as HF_HUB_OFFLINE says.

    Raises:
        OptionError: a source that is none, or could be two things.
        CheckpointError: no model there, of a newer format, or weights that do not fit exactly.
        HubError: no network, no such repo or revision, or no permission.
        PluginError: a plugin that it was trained with is not installed; says which.
    """
    return model.open_folder(
        find(source, revision=revision, offline=offline), backend=backend, device=device
    )


def find(
    source: str | Path,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    whole: bool = False,
) -> Path:
    """The folder of a source, downloaded if it is on the Hub; see `load`.

    Args:
        whole: download every file of the model, not only what `load` needs.
    """
    text = str(source)
    local = Path(source).expanduser()
    name, _, tail = text.removeprefix("hf:").partition("@")
    if isinstance(source, Path) or not (text.startswith("hf:") or _ID.fullmatch(name)):
        if revision is not None:
            raise OptionError(f"revision={revision!r} is for Hub repos, and '{source}' is a folder")
        if not local.exists() and not isinstance(source, Path) and "/" not in text:
            raise OptionError(
                f"there is no folder '{source}', and a model of the Hub is written org/name; those "
                f"that come with SpikeZoo: {_shipped_names()}"
            )
        return local
    if not _ID.fullmatch(name) or (tail and not _REVISION.fullmatch(tail)):
        raise OptionError(f"a model of the Hub is written hf:org/name@revision, given '{source}'")
    if tail and revision and tail != revision:
        raise OptionError(f"'{source}' and revision={revision!r} name two revisions; give one")
    revision = revision or tail or None
    shipped = published().get(name.partition("/")[2]) if name.startswith(f"{OFFICIAL}/") else None
    if not text.startswith("hf:") and revision is None and local.exists():
        # Any path of two words could be a repo; it is one where we know of one by that name.
        known = shipped or (Path(constants.HF_HUB_CACHE) / _cache_name(name)).exists()
        if known or not (local / model.CONFIG).exists():
            raise OptionError(
                f"'{source}' is a folder here and may be a model of the Hub; write './{source}' "
                f"for the folder or 'hf:{source}' for the other"
            )
        return local
    if shipped and revision is None:
        return shipped
    offline = constants.is_offline_mode() if offline is None else offline
    try:
        return _download(name, revision, offline, export.FILES if whole else (model.WEIGHTS,))
    except HubError as error:
        if not name.startswith(f"{OFFICIAL}/"):
            raise
        raise HubError(f"{error}. With SpikeZoo itself come: {_shipped_names()}") from error


def published() -> dict[str, Path]:
    """The folders of the models that come with the package, by name."""
    # In a wheel they lie inside the package, in a checkout beside it.
    for folder in (
        Path(__file__).resolve().parent / "model_cards",
        Path(__file__).resolve().parents[1] / "model_cards",
    ):
        if folder.is_dir():
            return {p.name: p for p in sorted(folder.iterdir()) if (p / model.CONFIG).is_file()}
    return {}


def _shipped_names() -> str:
    return ", ".join(f"{OFFICIAL}/{name}" for name in published()) or "none"


def _cache_name(repo: str) -> str:
    return "models--" + repo.replace("/", "--")


def _download(repo: str, revision: str | None, offline: bool, names: tuple[str, ...]) -> Path:
    """The cached folder of one commit of a repo, its files as they were exported."""
    at = f"'{repo}'" + (f" at '{revision}'" if revision else "")
    with _told(at):
        commit = _commit(repo, revision, offline)
        config_path = _file(repo, model.CONFIG, commit, offline)
        config = model.read_config(config_path.parent)
        for name in names:
            path = _file(repo, name, commit, offline)
            if name in export.HASHED:
                again = partial(_file, repo, name, commit, offline, force=True)
                _must_match(path, config, again, offline)
        if not offline and revision != commit:
            # As the client does on a download by name, but once the files are there: whoever goes
            # offline after a download that failed still has the commit before.
            files.write_text(_ref(repo, revision), commit)
    return config_path.parent


def _ref(repo: str, revision: str | None) -> Path:
    """Where the client's cache says which commit a branch or tag was at last."""
    return Path(constants.HF_HUB_CACHE) / _cache_name(repo) / "refs" / (revision or "main")


def _must_match(
    path: Path, config: dict[str, Any], again: Callable[[], Path], offline: bool
) -> None:
    """Compares a download with its hash, and loads it once more where they differ.

    The client notices no flipped byte, and would serve it from its cache for ever.
    """
    try:
        export.must_match(path, config)
    except CheckpointError:
        path.resolve().unlink(missing_ok=True)
        if offline:
            raise
        path = again()
        try:
            export.must_match(path, config)
        except CheckpointError:
            path.resolve().unlink(missing_ok=True)
            raise


def _commit(repo: str, revision: str | None, offline: bool) -> str:
    """The commit of a revision. Asking for it first bounds the time that a silent Hub can take."""
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    kept = _ref(repo, revision)
    if not offline:
        try:
            found = HfApi().model_info(
                repo, revision=revision, timeout=SECONDS, files_metadata=True
            )
        except (httpx2.HTTPError, HfHubHTTPError) as error:
            if _is_answer(error) or not kept.is_file():
                raise
        else:
            _must_be_ours(repo, found)
            return str(found.sha)
    if not kept.is_file():
        raise HubError(
            f"'{repo}' ({revision or 'main'}) is not in the Hub's cache, and offline nothing can "
            f"be downloaded; where there is a network: hf download {repo}"
        )
    return kept.read_text().strip()


def _is_answer(error: Exception) -> bool:
    """Whether the Hub answered, rather than being out of reach or out of order."""
    response = getattr(error, "response", None)
    return response is not None and response.status_code < 500 and response.status_code != 429


def _must_be_ours(repo: str, found: huggingface_hub.ModelInfo) -> None:
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    if model.CONFIG not in sizes or model.WEIGHTS not in sizes:
        signs = {"model_index.json": "diffusers", "config.json": "transformers"}
        library = found.library_name or next((signs[n] for n in signs if n in sizes), None)
        pickles = [n for n in sizes if n.endswith(model.PICKLES)]
        guess = f"it seems to be a {library} model" if library else f"it has {len(sizes)} files"
        if pickles:
            guess += f", with weights in {pickles[0]}: a pickle, which is never read"
        raise CheckpointError(
            f"'{repo}' is no SpikeZoo model: {model.CONFIG} and {model.WEIGHTS} are not both "
            f"there; {guess}"
        )
    if sizes[model.CONFIG] > model.LARGEST_CONFIG or sizes[model.WEIGHTS] > LARGEST_WEIGHTS:
        raise CheckpointError(f"'{repo}' has files larger than any of ours; nothing was downloaded")


def _file(repo: str, name: str, commit: str, offline: bool, force: bool = False) -> Path:
    for attempt in range(RETRIES):
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    repo,
                    name,
                    revision=commit,
                    local_files_only=offline,
                    force_download=force,
                    etag_timeout=SECONDS,
                )
            )
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except (HfHubHTTPError, httpx2.HTTPError) as error:
            if _is_answer(error) or attempt == RETRIES - 1:
                raise
    raise AssertionError("unreachable")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The client's errors as one of ours, which says what to do."""
    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may"
    try:
        yield
    except GatedRepoError as error:
        raise HubError(
            f"{what} asks for its terms to be accepted on its page; then {login}"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"there is no {what} on the Hub, or it is private: {login}; or is the name misspelt?"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"the Hub has no {what}: no such branch, tag or commit") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{what} is not whole in the Hub's cache, and the Hub cannot be reached "
            f"({_reason(error.__cause__ or error)}); try again where there is a network"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{what} is no SpikeZoo model: {_reason(error)}") from error
    except CLIENT_ERRORS as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = f"; {login}" if status in (401, 403) else "; try again later"
        raise HubError(f"{what}: the Hub's client failed: {_reason(error)}{advice}") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- push -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pushed:
    """What a push did: where to look at it, and the files with their sizes in bytes."""

    url: str
    files: dict[str, int]
    message: str


def push(
    source: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Publishes a run or an exported folder as one commit of a Hub repo, made if it is missing.

    Raises:
        OptionError: a repo, revision or tag that cannot be a name.
        JobError: the folder fails a check of `export.verify`; nothing is sent.
        HubError: the Hub refuses or cannot be reached; the repo is at its previous commit.
    """
    if not _ID.fullmatch(repo):
        raise OptionError(f"a repo of the Hub is written org/name, given '{repo}'")
    for given in (revision, tag):
        if given is not None and not _REVISION.fullmatch(given):
            raise OptionError(f"'{given}' cannot be the name of a branch or tag")
    if create_pr and tag:
        raise OptionError("a pull request cannot be tagged before it is merged; leave out the tag")
    with tempfile.TemporaryDirectory() as temporary:
        folder = source
        if not (source / model.WEIGHTS).exists():
            folder = export.export(source, Path(temporary) / "model")
        export.must_pass(folder)
        sizes = {name: (folder / name).stat().st_size for name in export.FILES}
        message = message or f"{model.read_config(folder)['name']}, by SpikeZoo"
        if dry_run:
            return Pushed(f"{constants.ENDPOINT}/{repo}", sizes, message)
        with _told(f"'{repo}'"):
            url = _send(folder, repo, private, revision, create_pr, message)
            if tag:
                HfApi().create_tag(repo, tag=tag, revision=revision)
    return Pushed(url, sizes, message)


def _send(
    folder: Path, repo: str, private: bool, revision: str | None, create_pr: bool, message: str
) -> str:
    api = HfApi()
    url = api.create_repo(repo, private=private, exist_ok=True)
    if revision and not create_pr:
        api.create_branch(repo, branch=revision, exist_ok=True)
    head = api.model_info(repo, revision=revision, timeout=SECONDS).sha
    operations = [CommitOperationAdd(name, folder / name) for name in export.FILES]
    try:
        # Not upload_folder, which may make several commits of one folder.
        done = api.create_commit(
            repo,
            operations,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    except (httpx2.HTTPError, HfHubHTTPError) as error:
        # An answer that was lost on its way: the commit may have been made.
        if _is_answer(error) or create_pr or not _has_all(api, repo, revision, folder):
            raise
        return str(url)
    return str(done.pr_url or url)


def _has_all(api: HfApi, repo: str, revision: str | None, folder: Path) -> bool:
    found = {
        file.path: file for file in api.get_paths_info(repo, list(export.FILES), revision=revision)
    }
    for name in export.FILES:
        file = found.get(name)
        if not isinstance(file, huggingface_hub.RepoFile):
            return False
        if file.lfs:
            same = file.lfs.sha256 == export.sha256(folder / name)
        else:
            same = file.blob_id == git_hash((folder / name).read_bytes())
        if not same:
            return False
    return True


# --- list -----------------------------------------------------------------------------------


def models_of(org: str) -> dict[str, str]:
    """The SpikeZoo models of a Hub organisation: repo -> the numbers that its card states, or the
    tags where it states none.

    Raises:
        HubError: the Hub cannot be reached.
    """
    with _told(f"organisation '{org}'"):
        found = HfApi().list_models(author=org, filter=card.LIBRARY, cardData=True)
        return {info.id: _stated(info) for info in found}


def _stated(info: huggingface_hub.ModelInfo) -> str:
    results = (info.card_data and info.card_data.eval_results) or ()
    numbers = [f"{result.metric_name} {result.metric_value:.4g}" for result in results]
    return ", ".join(numbers or info.tags or ())


def summary(config: dict[str, Any]) -> str:
    """One line on a published model: its name, and of what was measured distance and cost."""
    measured = config.get("measured", {})
    distances = [row for row in measured.get("quality", ()) if row["metric"] == "fd"]
    numbers = [f"{row['protocol']} {row['value']:.3g}" for row in distances]
    if "energy_nj" in measured:
        numbers.append(f"{measured['energy_nj'] / 1000:,.0f} uJ an image")
    if measured.get("twin_energy_nj"):
        numbers[-1] += f" (twin {measured['twin_energy_nj'] / 1000:,.0f})"
    kimg = config.get("weights", {}).get("images", 0) / 1000
    return ", ".join([str(config.get("name")), f"{kimg:,.0f} kimg", *numbers])
