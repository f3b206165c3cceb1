"""publish: a run, an adapter or a model into a repository on the Hub, with its card filled in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_peft import runs
from whisper_peft.delivery.card import CardWords, Subject, write_card
from whisper_peft.delivery.provenance import PROVENANCE, known_provenance, warning_of, without_paths
from whisper_peft.delivery.repository import CARD, HubFile, check_base, check_login, check_repo_name, look, send
from whisper_peft.errors import UserError
from whisper_peft.model.identity import BASE_FACTS, WEIGHTS_INDEX
from whisper_peft.model.locating import Located, locate
from whisper_peft.model.weight_checks import check_weights

MERGE_REPORT = "merge_report.json"
ADAPTER_CONFIG = "adapter_config.json"
PAGES = (  # all that a loader asks for beside the weights; what else lies there was not made to be seen
    "config.json", "generation_config.json", ADAPTER_CONFIG, BASE_FACTS, "preprocessor_config.json",
    "processor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "normalizer.json",
    "added_tokens.json", "special_tokens_map.json", WEIGHTS_INDEX,
)  # fmt: skip
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")  # can run code where they are loaded
RUN_FOLDER = "run"  # of the repository: how the model was made; beside the weights it would look like a run's folder


@dataclass(frozen=True)
class Package:
    """All that goes up, made without any network."""

    kind: str  # adapter or model
    base: str | None  # on the Hub
    base_sha256: str | None
    files: list[HubFile]
    pickles: list[str]  # stay behind
    warning: str | None  # what the model was not trained for

    @property
    def card(self) -> str:
        """README.md."""
        return next(file.content for file in self.files if file.name == CARD).decode("utf-8")


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
    """What `publish` uploaded, or would upload.

    Attributes:
        repo: Name of the repository, owner/name.
        kind: "adapter" or "model".
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

    def as_dict(self) -> dict:
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
    """Puts a run's result, an adapter or a model on the Hub, as one commit, with a card filled in from its run.

    The login is huggingface_hub's. What else is in the repository stays; a card that somebody has edited does, too.

    Args:
        model: a run, an adapter folder or a model folder (merged, or fully trained).
        repo: owner/name; made where it is not there.
        private: whether a new repository is; one that exists stays as it is.
        dry_run: make the card and the list of files, touch no network.
        base: an adapter's base on the Hub, where it was trained on a local folder.
        license: of the weights, as the Hub writes it; None names none.
        language: name or code; None: the run's.
        dataset_tags: data sets on the Hub that it was trained on.
        dataset: what the data that was scored is called; None: the last name of the run's source.
        dataset_args: configuration and split of it, in words.
        model_name: the title; None: the repository's name.
        finetuned_from: what the card calls the base; None: the base.
        tasks: the task; None: automatic-speech-recognition.
        tags: besides whisper and whisper-peft.
        say: told one line at a time what happens.

    Returns:
        The report; after a dry run without an address and a commit.

    Raises:
        UserError: nothing to publish, no login, no permission, or a repository that holds something else.
    """
    check_repo_name(repo)
    words = CardWords(license, language, dataset_tags, dataset, dataset_args, model_name, finetuned_from, tasks, tags)
    located = locate(model)
    package = pack(located, repo, words, base=base)
    check_weights(located.base, located.adapter, revision=located.commit)
    for note in _notes(package, words):
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
    found = look(repo, package.kind)
    if package.kind == "adapter":
        check_base(package.base, package.base_sha256)
    say(f"Uploading {sum(file.size for file in package.files) / 1e6:.1f} MB to {repo}.")
    message = f"{package.kind.capitalize()}, with whisper-peft"
    url, commit, kept = send(repo, package.files, found, private=private, message=message)
    if kept:
        say(f"Note: the README.md of {repo} has been edited and stays as it is; --dry-run prints the one of this run.")
    return dataclasses.replace(report, url=url, commit=commit, card_kept=kept)


def pack(
    located: Located, repo: str, words: CardWords, *, base: str | None = None, unfinished_step: int | None = None
) -> Package:
    """Card and files of what was located; reads no weights and no network.

    Args:
        located: see `locate`.
        repo: owner/name.
        words: what only the user can say.
        base: of an adapter, on the Hub.
        unfinished_step: of a run that goes on.

    Raises:
        UserError: on the Hub already; no safetensors or processor in it; an adapter whose base has no name there.
    """
    if located.adapter is None and located.from_hub:
        raise UserError(f"{located.name}: on the Hub already; publish a run, an adapter folder or a model folder.")
    folder = located.adapter or Path(located.base)
    known = known_provenance(folder, located.run)
    base = base_on_hub(located, known, base)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    _check_complete(folder, pickles)
    if known.get("recipe") and base:
        known["recipe"]["model"]["name"] = base
    merged = folder / MERGE_REPORT
    subject = Subject(
        _kind(located, folder, known), repo, base, known,
        merge_report=runs.read_json(merged) if merged.is_file() else None, unfinished_step=unfinished_step,
        selection=_selection(located.run, unfinished_step),
    )  # fmt: skip
    files = [HubFile(CARD, write_card(subject, words).encode("utf-8")), *_model_files(folder, base, known)]
    files += _run_files(known, located.run)
    return Package(
        "adapter" if located.adapter else "model", base, known.get("base", {}).get("sha256"),
        sorted(files, key=lambda file: file.name), pickles, warning_of(known),
    )  # fmt: skip


def base_on_hub(located: Located, known: dict, base: str | None) -> str | None:
    """What the base is called on the Hub; None for a stand-alone model that came from a local folder.

    Raises:
        UserError: an adapter whose base is known as a local folder only, or a `base` that cannot be a name.
    """
    if base is not None:
        base = base.removeprefix("hf:")
        check_repo_name(base, "--base")
        return base
    if found := known.get("base", {}).get("hub_id"):
        return found
    if located.adapter is None:
        return None
    if "base" not in known and located.from_hub and located.base.count("/") == 1 and located.base[0] not in "./~":
        return located.base  # an adapter of somebody else's
    raise UserError(
        f"{located.name}: its base is a local folder ({Path(located.base).name}), where nobody else finds it; name it "
        "on the Hub with --base HUB_ID."
    )


def _kind(located: Located, folder: Path, known: dict) -> str:
    if located.adapter:
        return "adapter"
    if (folder / PROVENANCE).is_file():
        return "merged"
    return "finetune" if known else "model"


def _check_complete(folder: Path, pickles: list[str]) -> None:
    names = {path.name for path in folder.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        found = f"only {pickles[0]}, and pickled weights can run code" if pickles else "no weights"
        raise UserError(f"{folder}: {found}; only safetensors are published.")
    for what, either in {
        "feature extractor": {"preprocessor_config.json", "processor_config.json"},
        "tokenizer": {"tokenizer.json", "vocab.json"},
    }.items():
        if not names & either:
            raise UserError(f"{folder}: no {what} beside the weights; publish the run, or a folder that loads alone.")


def _model_files(folder: Path, base: str | None, known: dict) -> list[HubFile]:
    """What loads from a folder, its configs without paths of this machine and an adapter's with its base."""
    files = []
    for path in folder.iterdir():
        weights = path.suffix == ".safetensors" and path.name.startswith(("model", "adapter_model"))
        if not weights and path.name not in PAGES:
            continue
        content: Path | bytes = path
        if path.name.endswith("config.json") or path.name == BASE_FACTS:
            page = runs.read_json(path)
            clean = without_paths(page)
            if path.name == ADAPTER_CONFIG:
                clean["base_model_name_or_path"] = base
            elif path.name == BASE_FACTS:
                clean = {"hub_id": base} | {key: clean[key] for key in clean if key not in ("hub_id", "path")}
            content = path if clean == page else _as_json(clean)
        files.append(HubFile(path.name, content))
    return files


def _run_files(known: dict, run: Path | None) -> list[HubFile]:
    import yaml

    files = []
    if recipe := known.get("recipe"):
        page = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        files.append(HubFile(f"{RUN_FOLDER}/{runs.RECIPE}", page.encode("utf-8")))
        files.append(HubFile(f"{RUN_FOLDER}/{runs.FACTS}", _as_json(known["facts"])))
    if run and (run / runs.METRICS).is_file():
        files.append(HubFile(f"{RUN_FOLDER}/{runs.METRICS}", (run / runs.METRICS).read_bytes()))
    return files


def _selection(run: Path | None, step: int | None) -> dict | None:
    """The last figures on the eval clips up to a step of a run that goes on."""
    if run is None or step is None:
        return None
    found = [one for one in runs.read_jsonl(run / runs.METRICS) if "eval_wer" in one and one["step"] <= step]
    return found[-1] if found else None


def _notes(package: Package, words: CardWords) -> list[str]:
    notes = []
    if package.pickles:
        notes.append(f"{', '.join(package.pickles)} stay here: pickles can run code where they are loaded.")
    if words.license is None:
        notes.append("no licence is named; --license names one, as apache-2.0.")
    return notes


def _as_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
