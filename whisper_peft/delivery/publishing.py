"""publish: a run, an adapter or a model into a repository on the Hub, with its card filled in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_peft import runs
from whisper_peft.delivery.card import CardWords, Subject, write_card
from whisper_peft.delivery.loaded_files import LOADED_FILES
from whisper_peft.delivery.provenance import MERGE_REPORT, known_provenance, warning_of, without_paths
from whisper_peft.delivery.repository import CARD, RepoFile, check_base, check_login, check_repo_name, look_into, send
from whisper_peft.errors import UserError
from whisper_peft.model.adapter_configs import ADAPTER_CONFIG
from whisper_peft.model.extractor import PREPROCESSOR, PROCESSOR
from whisper_peft.model.identity import BASE_FACTS
from whisper_peft.model.locating import Located, locate
from whisper_peft.model.weight_checks import check_weights
from whisper_peft.recipe_files import HUB_PREFIX
from whisper_peft.runtimes.exports import EXPORT, EXPORT_REPORT, PROCESSOR_FOLDER, Export, find_export

# A folder needs one file of each pair to load alone.
NEEDED_FILES = {
    "feature extractor": {PREPROCESSOR, PROCESSOR},
    "tokenizer": {"tokenizer.json", "vocab.json"},
}
# Files at the top of an export, beside those of its model in the layout of transformers.
EXPORT_FILES = frozenset(
    {
        EXPORT,
        EXPORT_REPORT,
        "model.bin",
        "vocabulary.json",
        "vocabulary.txt",
        "ggml-model.bin",
        "model.pt",
        "weights.safetensors",
    }
)
# Files of these kinds can run code where they are loaded.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
# The repository's folder for how the model was made. Beside the weights these files would look like a run's.
RUN_FOLDER = "run"


@dataclass(frozen=True)
class Package:
    """All that goes up, made without any network.

    Attributes:
        kind: "adapter", "model" or "export".
        base: Hub id of the base.
        base_sha256: SHA-256 of the base's weights, where it is known.
        files: The files, sorted by name.
        pickles: Names of the files that stay behind, because they can run code.
        warning: What the model was not trained for, if anything.
    """

    kind: str
    base: str | None
    base_sha256: str | None
    files: list[RepoFile]
    pickles: list[str]
    warning: str | None

    @property
    def card(self) -> str:
        """The content of README.md."""
        content = next(file.content for file in self.files if file.name == CARD)
        assert isinstance(content, bytes), "the card is written here, not read from a file"
        return content.decode("utf-8")


@dataclass(frozen=True)
class PublishedFile:
    """A file that `publish` uploaded, or would upload.

    Attributes:
        name: Its name in the repository.
        size: Its size in bytes.
    """

    name: str
    size: int


@dataclass(frozen=True)
class PublishReport:
    """The result of `publish`: what it uploaded or, in a dry run, would upload.

    Attributes:
        repo: Name of the repository, owner/name.
        kind: "adapter", "model" or "export".
        base: Hub id of the base; None for a stand-alone model whose base is not known.
        files: The files.
        card: The model card, as README.md holds it.
        url: Address of the repository; None after a dry run.
        commit: The commit on the Hub; None after a dry run.
        card_kept: Whether a card that somebody had edited was left as it was.
    """

    repo: str
    kind: str
    base: str | None
    files: list[PublishedFile]
    card: str
    url: str | None = None
    commit: str | None = None
    card_kept: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON content."""
        return dataclasses.asdict(self)


def publish(
    model: str | Path,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    base: str | None = None,
    license: str | None = None,
    language: str | None = None,
    dataset_tags: Sequence[str] = (),
    dataset: str | None = None,
    dataset_args: str | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: str | None = None,
    tags: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> PublishReport:
    """Put a run's result, an adapter or a model on the Hub, as one commit, with a card filled in from its run.

    The login is huggingface_hub's. What else is in the repository stays, and so does a card that somebody has edited.

    Args:
        model: A run, an adapter folder, a model folder (merged, or fully trained) or an export.
        repo: Name of the repository, owner/name. It is made if it is not there.
        private: Whether a new repository is private. One that exists stays as it is.
        dry_run: Make the card and the list of files, and touch no network.
        base: Hub id of an adapter's base, where the adapter was trained on a local folder.
        license: Licence of the weights, as the Hub writes it; None names none.
        language: Name or code of the language; None takes the run's.
        dataset_tags: Hub ids of the data sets that it was trained on.
        dataset: Name of the data that was scored; None takes the last name of the run's source.
        dataset_args: Configuration and split of that data, in words.
        model_name: Title of the card; None takes the repository's name.
        finetuned_from: What the card calls the base; None takes the base.
        tasks: The task, as the Hub names it; None is automatic-speech-recognition.
        tags: Tags besides whisper and whisper-peft.
        say: Called with each line about what happens.

    Returns:
        The report; after a dry run without an address and a commit.

    Raises:
        UserError: There is nothing to publish, no login or no permission, or the repository holds something else.
    """
    check_repo_name(repo)
    words = CardWords(license, language, dataset_tags, dataset, dataset_args, model_name, finetuned_from, tasks, tags)
    exported = find_export(model)
    if exported is not None:
        package = pack_export(exported, repo, words, base=base)
    else:
        located = locate(model)
        package = pack(located, repo, words, base=base)
        check_weights(located.base, located.adapter, revision=located.commit)
    for note in _list_notes(package, words):
        say(f"Note: {note}")
    if package.warning:
        say(f"Warning: {package.warning}")
    report = PublishReport(
        repo=repo,
        kind=package.kind,
        base=package.base,
        files=[PublishedFile(file.name, file.size) for file in package.files],
        card=package.card,
    )
    if dry_run:
        return report
    check_login(repo)
    state = look_into(repo, package.kind)
    if package.kind == "adapter":
        assert package.base is not None, "pack refuses an adapter whose base has no name on the Hub"
        check_base(package.base, package.base_sha256)
    say(f"Uploading {sum(file.size for file in package.files) / 1e6:.1f} MB to {repo}.")
    message = f"{package.kind.capitalize()}, with whisper-peft"
    url, commit, card_kept = send(repo, package.files, state, private=private, message=message)
    if card_kept:
        say(f"Note: the README.md of {repo} has been edited and stays as it is; --dry-run prints the one of this run.")
    return dataclasses.replace(report, url=url, commit=commit, card_kept=card_kept)


def pack(
    located: Located, repo: str, words: CardWords, *, base: str | None = None, unfinished_step: int | None = None
) -> Package:
    """Make the card, and collect the files of a model. No weights are read, and no network is needed.

    Args:
        located: Where the model is; see `locate`.
        repo: Name of the repository, owner/name.
        words: What only the user can say.
        base: Hub id of an adapter's base.
        unfinished_step: The step of the checkpoint, for a run that is still training.

    Raises:
        UserError: The model is on the Hub already, has no safetensors or no processor, or is an adapter whose base has
            no name on the Hub.
    """
    if located.adapter is None and located.from_hub:
        raise UserError(f"{located.name}: on the Hub already; publish a run, an adapter folder or a model folder.")
    folder = located.adapter or Path(located.base)
    known = known_provenance(folder, located.run)
    base = base_on_hub(located, known, base)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    _check_complete(folder, pickles)
    if known.get("recipe") and base:
        # A folder of this machine says nothing to others.
        known["recipe"]["model"]["name"] = base
    merge_report = folder / MERGE_REPORT
    subject = Subject(
        kind=_card_kind(located, folder, known),
        repo=repo,
        base=base,
        known=known,
        merge_report=runs.read_json(merge_report) if merge_report.is_file() else None,
        unfinished_step=unfinished_step,
        selection=_last_selection(located.run, unfinished_step),
    )
    card = RepoFile(CARD, write_card(subject, words).encode("utf-8"))
    files = [card, *_model_files(folder, base, known), *_run_files(known, located.run)]
    return Package(
        kind="adapter" if located.adapter else "model",
        base=base,
        base_sha256=known.get("base", {}).get("sha256"),
        files=sorted(files, key=lambda file: file.name),
        pickles=pickles,
        warning=warning_of(known),
    )


def pack_export(exported: Export, repo: str, words: CardWords, *, base: str | None = None) -> Package:
    """Make the card of an export, and collect its files in the layout that its loaders expect.

    Args:
        exported: The exported model.
        repo: Name of the repository, owner/name.
        words: What only the user can say.
        base: Hub id of the model that was fine-tuned.

    Raises:
        UserError: The export has no report, so it was not finished or somebody took it apart.
    """
    folder = exported.folder
    if not (folder / EXPORT_REPORT).is_file():
        raise UserError(f"{folder / EXPORT_REPORT}: gone; export the model again.")
    known = known_provenance(folder, None)
    report = _public_report(runs.read_json(folder / EXPORT_REPORT))
    base = base_on_hub(Located(str(folder), str(folder)), known, base)
    subject = Subject(kind="export", repo=repo, base=base, known=known, export=exported, export_report=report)
    files = [RepoFile(CARD, write_card(subject, words).encode("utf-8"))]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not _is_of_export(name) or not path.is_file() or not path.resolve().is_relative_to(folder):
            continue
        content: Path | bytes = path
        # The other JSON files hold tokens, and some of these look like paths.
        if name == EXPORT_REPORT:
            content = _as_json(report)
        elif name.endswith("config.json"):
            content = _as_json(without_paths(runs.read_json(path)))
        files.append(RepoFile(name, content))
    return Package(
        kind="export",
        base=base,
        base_sha256=None,
        files=sorted([*files, *_run_files(known, None)], key=lambda file: file.name),
        pickles=[],
        warning=warning_of(known),
    )


def _is_of_export(name: str) -> bool:
    """Tell whether a file in the folder of an export was written by `export`, and is for its loaders.

    Args:
        name: Its path in the folder, with slashes.
    """
    folder, _, last = name.rpartition("/")
    if folder == "onnx":
        return last.endswith((".onnx", ".onnx_data"))
    if folder == PROCESSOR_FOLDER:
        return last in LOADED_FILES
    return not folder and (last in LOADED_FILES or last in EXPORT_FILES)


def _public_report(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report of an export without transcripts, which stay on this machine, and without paths."""
    page = without_paths(report)
    for comparison in page.get("comparisons", []):
        comparison.pop("texts", None)
        comparison.pop("new_faults", None)
    return page


def base_on_hub(located: Located, known: dict[str, Any], base: str | None) -> str | None:
    """Return what the base is called on the Hub; None for a stand-alone model that came from a local folder.

    Args:
        located: Where the model is.
        known: What is known of its making; see `known_provenance`.
        base: The name that the user gives, if any.

    Raises:
        UserError: The base of an adapter is known as a local folder only, or `base` cannot be a name on the Hub.
    """
    if base is not None:
        base = base.removeprefix(HUB_PREFIX)
        check_repo_name(base, "--base")
        return base
    known_id = known.get("base", {}).get("hub_id")
    if known_id:
        return known_id
    if located.adapter is None:
        return None
    if "base" not in known and located.from_hub and located.base.count("/") == 1 and located.base[0] not in "./~":
        # The adapter is somebody else's, and its own config names the base.
        return located.base
    raise UserError(
        f"{located.name}: its base is a local folder ({Path(located.base).name}), where nobody else finds it; name it "
        "on the Hub with --base HUB_ID."
    )


def _card_kind(located: Located, folder: Path, known: dict[str, Any]) -> str:
    if located.adapter:
        return "adapter"
    if (folder / runs.PROVENANCE).is_file():
        return "merged"
    if known:
        return "finetune"
    return "model"


def _check_complete(folder: Path, pickles: list[str]) -> None:
    """Refuse a folder that would not load alone from the Hub."""
    names = {path.name for path in folder.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        weights = "no weights"
        if pickles:
            weights = f"only {pickles[0]}, and pickled weights can run code"
        raise UserError(f"{folder}: {weights}; only safetensors are published.")
    for part, alternatives in NEEDED_FILES.items():
        if not names & alternatives:
            raise UserError(f"{folder}: no {part} beside the weights; publish the run, or a folder that loads alone.")


def _model_files(folder: Path, base: str | None, known: dict[str, Any]) -> list[RepoFile]:
    """Collect what loads from a folder. Its configs lose the paths of this machine, and name the base on the Hub."""
    files = []
    for path in folder.iterdir():
        is_weights = path.suffix == ".safetensors" and path.name.startswith(("model", "adapter_model"))
        if not is_weights and path.name not in LOADED_FILES:
            continue
        content: Path | bytes = path
        if path.name.endswith("config.json") or path.name == BASE_FACTS:
            page = runs.read_json(path)
            public_page = without_paths(page)
            if path.name == ADAPTER_CONFIG:
                public_page["base_model_name_or_path"] = base
            elif path.name == BASE_FACTS:
                public_page = {"hub_id": base, **_without_keys(public_page, "hub_id", "path")}
            # A page that has nothing to hide goes up byte for byte.
            if public_page != page:
                content = _as_json(public_page)
        files.append(RepoFile(path.name, content))
    return files


def _without_keys(page: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in page.items() if key not in keys}


def _run_files(known: dict[str, Any], run: Path | None) -> list[RepoFile]:
    """Collect how the model was made: recipe, facts and metrics, as far as they are known."""
    import yaml

    files = []
    recipe = known.get("recipe")
    if recipe:
        page = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        files.append(RepoFile(f"{RUN_FOLDER}/{runs.RECIPE}", page.encode("utf-8")))
        files.append(RepoFile(f"{RUN_FOLDER}/{runs.FACTS}", _as_json(known["facts"])))
    if run and (run / runs.METRICS).is_file():
        files.append(RepoFile(f"{RUN_FOLDER}/{runs.METRICS}", (run / runs.METRICS).read_bytes()))
    return files


def _last_selection(run: Path | None, step: int | None) -> dict[str, Any] | None:
    """Return the last figures on the eval clips, up to a step of a run that is still training."""
    if run is None or step is None:
        return None
    last = None
    for record in runs.read_jsonl(run / runs.METRICS):
        if "eval_wer" in record and record["step"] <= step:
            last = record
    return last


def _list_notes(package: Package, words: CardWords) -> list[str]:
    """List what the user may want to do differently."""
    notes = []
    if package.pickles:
        notes.append(
            f"{', '.join(package.pickles)}: not uploaded, because pickled files can run code where they are loaded."
        )
    if words.license is None:
        notes.append("no licence is named; name one with --license, for example --license apache-2.0.")
    return notes


def _as_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
