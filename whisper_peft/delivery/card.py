"""The model card: README.md of a repository, from what a run knows of itself.

The words stand in card.md.jinja; this module finds the values that they need.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft.data.text import LANGUAGES, language_code
from whisper_peft.errors import UserError
from whisper_peft.model.devices import GIB

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from whisper_peft.runtimes.exports import Export

CARD_TEMPLATE = Path(__file__).with_name("card.md.jinja")
TASK = "automatic-speech-recognition"
# The line that tells an untouched card. It has the first 16 digits of the SHA-256 of everything around it.
UNTOUCHED_MARK = re.compile(r"^<!-- whisper-peft card ([0-9a-f]{16}) -->\n", re.MULTILINE)
LIBRARIES = {"adapter": "peft", "finetune": "transformers", "merged": "transformers", "model": "transformers"}
# The Hub's names for the libraries that load exports.
EXPORT_LIBRARIES = {
    "ctranslate2": "ctranslate2",
    "ggml": "whisper.cpp",
    "openai": "whisper",
    "onnx": "transformers.js",
    "mlx": "mlx",
}
# On the Hub, "merge" is a mixture of several models; an adapter folded into its base is a fine-tuned base.
RELATIONS = {"adapter": "adapter", "finetune": "finetune", "merged": "finetune", "model": "finetune"}
# Key in run.json, name of the rate, and how its texts are written.
SHOWN_RATES = (
    ("wer", "WER", "as written"),
    ("cer", "CER", "as written"),
    ("wer_normalized", "WER", "normalised"),
    ("cer_normalized", "CER", "normalised"),
)
# Counts behind a rate, in the order of the card's columns.
SHOWN_COUNTS = ("substitutions", "deletions", "insertions", "reference_length")
# The languages that Whisper names otherwise than ISO 639.
ISO_CODE_OF = {"jw": "jv"}
WHISPER_CODE_OF = {iso: whisper for whisper, iso in ISO_CODE_OF.items()}
# What Markdown or HTML could read as markup. An underscore between two letters or digits is none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class CardWords:
    """Details of a model that only the user knows. None and () leave a detail to the run, or out.

    Attributes:
        license: Licence of the weights, as the Hub writes it.
        language: Name or code of the language.
        dataset_tags: Hub ids of the data sets that the model was trained on.
        dataset: Name of the data that was scored.
        dataset_args: Configuration and split of that data, in words.
        model_name: Title of the card.
        finetuned_from: What the card calls the base.
        tasks: The task, as the Hub names it.
        tags: Further tags.
    """

    license: str | None = None
    language: str | None = None
    dataset_tags: Sequence[str] = ()
    dataset: str | None = None
    dataset_args: str | None = None
    model_name: str | None = None
    finetuned_from: str | None = None
    tasks: str | None = None
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class Subject:
    """The model that a card describes.

    Attributes:
        kind: "adapter", "finetune", "merged", "export", or "model" for one of which nothing more is known.
        repo: Name of the repository, owner/name.
        base: Hub id of the base.
        known: What is known of its making; see `provenance`. It may be empty.
        merge_report: Content of merge_report.json.
        unfinished_step: The step of the checkpoint, for a run that is still training.
        selection: The last figures of such a run on its eval clips.
        export: The exported model, if it is one.
        export_report: Content of export_report.json.
    """

    kind: str
    repo: str
    base: str | None
    known: dict[str, Any]
    merge_report: dict[str, Any] | None = None
    unfinished_step: int | None = None
    selection: dict[str, Any] | None = None
    export: Export | None = None
    export_report: dict[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The content of run.json; empty where it is not known."""
        return self.known.get("facts") or {}

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the run; empty where it is not known."""
        return self.known.get("recipe") or {}

    @property
    def scored(self) -> dict[str, Any] | None:
        """The figures on the whole of the set that was scored last; a run that is still training has none."""
        if self.unfinished_step is not None:
            return None
        return self.facts.get("final")


@dataclass(frozen=True)
class RateRow:
    """A line in the card's table of rates.

    Attributes:
        name: Name of the rate, and how its texts are written.
        rate: The rate, as a share.
        interval: Low and high end of its 95 % interval, as shares; None if it is not known.
        counts: Substitutions, deletions and insertions, and the length of the references.
    """

    name: str
    rate: float
    interval: Sequence[float] | None
    counts: list[int]


def write_card(subject: Subject, words: CardWords) -> str:
    """Write the card, with its metadata and with the mark that tells an untouched card from an edited one.

    Args:
        subject: The model that the card describes.
        words: What only the user can say of it.
    """
    from huggingface_hub import ModelCard

    title = words.model_name or subject.repo.rpartition("/")[2]
    # huggingface_hub renders without escaping, so the template escapes each name itself.
    card = ModelCard.from_template(
        _card_data(subject, words, title), template_path=str(CARD_TEMPLATE), **_template_values(subject, words, title)
    )
    metadata = str(card).removesuffix(card.text)
    body = card.text.strip("\n") + "\n"
    return f"{metadata}\n{_mark_for(metadata + body)}{body}"


def is_untouched(card: str) -> bool:
    """Tell whether a card is one of ours, as it was written. Only such a card may be replaced."""
    match = UNTOUCHED_MARK.search(card)
    if not match:
        return False
    metadata = card[: match.start()].removesuffix("\n")
    body = card[match.end() :]
    return _mark_for(metadata + body) == match.group(0)


def escape_markdown(value: object) -> str:
    r"""Return a value as text within a line of Markdown: never markup, never a new line or another cell of a table.

    Example:
        >>> escape_markdown("hindi_tts:train")
        'hindi_tts:train'
        >>> print(escape_markdown("my|clips <b> *new*"))
        my\|clips \<b\> \*new\*
        >>> escape_markdown("two\nlines")
        'two lines'
    """
    line = " ".join(str(value).split())
    return _MARKUP.sub(lambda match: f"\\{match.group()}", line)


def _mark_for(page: str) -> str:
    """Return the mark of a card, given everything that stands around it."""
    return f"<!-- whisper-peft card {hashlib.sha256(page.encode('utf-8')).hexdigest()[:16]} -->\n"


def _template_values(subject: Subject, words: CardWords, title: str) -> dict[str, Any]:
    """Return the values that card.md.jinja names. `text` is the function that escapes a name."""
    import yaml

    language = _iso_language(subject, words)
    language_name = None
    if language:
        language_name = LANGUAGES.get(WHISPER_CODE_OF.get(language, language), language).title()
    scored_source = words.dataset
    train_sources = None
    recipe_yaml = None
    if subject.recipe:
        scored_source = scored_source or _scored_source(subject)
        train_sources = ", ".join(words.dataset_tags) or _name_train_sources(subject.recipe)
        recipe_yaml = yaml.safe_dump(subject.recipe, sort_keys=False, allow_unicode=True)
    return {
        "text": escape_markdown,
        "bytes_per_gb": GIB,
        "title": title,
        "kind": subject.kind,
        "repo": subject.repo,
        "base": subject.base,
        "finetuned_from": words.finetuned_from or subject.base or "a Whisper of the author's own",
        "language_name": language_name,
        "unfinished_step": subject.unfinished_step,
        "selection": subject.selection,
        "facts": subject.facts,
        "recipe": subject.recipe,
        "scored": subject.scored,
        "scored_source": scored_source,
        "rate_rows": _rate_rows(subject),
        "train_sources": train_sources,
        "merge_report": subject.merge_report,
        "export": subject.export,
        "export_report": subject.export_report,
        "license": words.license,
        "recipe_yaml": recipe_yaml,
    }


def _rate_rows(subject: Subject) -> list[RateRow]:
    scored = subject.scored
    if not scored:
        return []
    intervals = subject.known.get("intervals") or {}
    return [
        RateRow(
            name=f"{rate}, {form}",
            rate=scored[key],
            interval=intervals.get(key),
            counts=[scored[f"{key}_{count}"] for count in SHOWN_COUNTS],
        )
        for key, rate, form in SHOWN_RATES
    ]


def _card_data(subject: Subject, words: CardWords, title: str) -> ModelCardData:
    """Return the metadata at the top of the card."""
    from huggingface_hub import ModelCardData

    base = words.finetuned_from or subject.base
    tags = ["whisper", "whisper-peft"]
    if subject.kind == "adapter" or subject.facts.get("mode") == "lora":
        tags.append("lora")
    metrics = ["wer", "cer"] if subject.scored else None
    return ModelCardData(
        language=_iso_language(subject, words),
        license=words.license,
        library_name=_library_of(subject),
        pipeline_tag=words.tasks or TASK,
        base_model=base,
        base_model_relation=_relation_of(subject) if base else None,
        datasets=list(words.dataset_tags) or None,
        tags=[*tags, *words.tags],
        metrics=metrics,
        model_name=title,
        eval_results=_eval_results(subject, words),
    )


def _library_of(subject: Subject) -> str:
    """Return the Hub's name of the library that loads a model."""
    if subject.export is not None:
        return EXPORT_LIBRARIES[subject.export.format.name]
    return LIBRARIES[subject.kind]


def _relation_of(subject: Subject) -> str:
    """Return the Hub's word for how a model relates to its base."""
    if subject.export is not None:
        return "quantized" if subject.export.is_quantized else "finetune"
    return RELATIONS[subject.kind]


def _eval_results(subject: Subject, words: CardWords) -> list[EvalResult] | None:
    """Return the model-index: each rate in percent, as leaderboards have it."""
    from huggingface_hub import EvalResult

    scored = subject.scored
    if not scored:
        return None
    dataset = words.dataset or _scored_source(subject) or "the author's own clips"
    results = []
    for key, rate, form in SHOWN_RATES:
        if form == "normalised":
            form = f"{form} ({scored['normalizer']})"
        results.append(
            EvalResult(
                task_type=words.tasks or TASK,
                task_name="Speech recognition",
                dataset_type=next(iter(words.dataset_tags), dataset),
                dataset_name=dataset,
                dataset_split=scored["split"],
                # Cards on the Hub have words here, as `Trainer.create_model_card` writes them.
                dataset_args=words.dataset_args,  # type: ignore[arg-type]
                metric_type=rate.lower(),
                metric_value=round(100 * scored[key], 2),
                metric_name=f"{rate} in %, {form}",
            )
        )
    return results


def _scored_source(subject: Subject) -> str | None:
    """Return the last name of the source that was scored."""
    if not subject.scored:
        return None
    data = subject.recipe["data"]
    if subject.scored["split"] == "test":
        return data["test"]
    return data["eval"] or f"{_name_train_sources(subject.recipe)} (held out)"


def _name_train_sources(recipe: dict[str, Any]) -> str:
    """Name the training sources, with their weights where these are not 1."""
    names = []
    for source in recipe["data"]["train"]:
        if isinstance(source, str):
            names.append(source)
        elif source["weight"] == 1:
            names.append(source["source"])
        else:
            names.append(f"{source['source']} (weight {source['weight']:g})")
    return ", ".join(names)


def _iso_language(subject: Subject, words: CardWords) -> str | None:
    """Return the language as ISO 639 names it. A name that Whisper does not know is no code, and left out."""
    named = words.language or subject.recipe.get("model", {}).get("language")
    if not named:
        return None
    try:
        code = language_code(named)
    except UserError:
        if re.fullmatch(r"[A-Za-z]{2,3}", named):
            return named.lower()
        return None
    return ISO_CODE_OF.get(code, code)
