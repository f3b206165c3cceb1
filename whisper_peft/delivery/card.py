"""The model card: README.md of a repository, from what a run knows of itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_peft.data.text import LANGUAGES, language_code
from whisper_peft.errors import UserError
from whisper_peft.model.memory import GIB

TASK = "automatic-speech-recognition"
MARK = re.compile(r"^<!-- whisper-peft card ([0-9a-f]{16}) -->\n", re.MULTILINE)
LIBRARIES = {"adapter": "peft", "finetune": "transformers", "merged": "transformers", "model": "transformers"}
# On the Hub, "merge" is a mixture of several models; an adapter folded into its base is a fine-tuned base.
RELATIONS = {"adapter": "adapter", "finetune": "finetune", "merged": "finetune", "model": "finetune"}
MEASURES = (("wer", "WER", "as written"), ("cer", "CER", "as written"),
            ("wer_normalized", "WER", "normalised"), ("cer_normalized", "CER", "normalised"))  # fmt: skip
ISO_CODES = {"jw": "jv"}  # where Whisper's code is not the one of ISO 639

ADAPTER_CODE = """\
import soundfile
from peft import PeftModel
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor, pipeline

base = WhisperForConditionalGeneration.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{repo}").merge_and_unload()
model.generation_config = GenerationConfig.from_pretrained("{repo}")
processor = WhisperProcessor.from_pretrained("{repo}")
recognizer = pipeline(
    "automatic-speech-recognition", model=model,
    tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor,
)
wave, rate = soundfile.read("recording.wav", dtype="float32")  # mono, 16 kHz
print(recognizer({{"raw": wave, "sampling_rate": rate}})["text"])
"""
MODEL_CODE = """\
import soundfile
from transformers import pipeline

recognizer = pipeline("automatic-speech-recognition", model="{repo}")
wave, rate = soundfile.read("recording.wav", dtype="float32")  # mono, 16 kHz
print(recognizer({{"raw": wave, "sampling_rate": rate}})["text"])
"""


@dataclass(frozen=True)
class CardWords:
    """What only the user can say of a model; None and () leave it to the run, or out."""

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
    """What a card is of."""

    kind: str  # adapter, finetune, merged or model (of which nothing more is known)
    repo: str
    base: str | None  # on the Hub
    known: dict  # see `provenance`; may be empty
    merge_report: dict | None = None
    unfinished_step: int | None = None  # of a run that goes on
    selection: dict | None = None  # its last figures on the eval clips


def write_card(subject: Subject, words: CardWords) -> str:
    """The card, with its metadata, and a mark that tells an untouched card from one that somebody has edited."""
    title = words.model_name or subject.repo.rpartition("/")[2]
    parts = [
        f"# {title}\n\n{_opening(subject, words)}", _use(subject), _figures(subject, words), _training(subject, words),
        _limits(subject, words), _recipe(subject),
    ]  # fmt: skip
    body = "\n\n".join(filter(None, parts)) + "\n"
    metadata = f"---\n{_metadata(subject, words, title)}\n---\n"
    return f"{metadata}\n{_mark(metadata + body)}{body}"


def is_untouched(card: str) -> bool:
    """Whether a card is one of ours as it was written; an edited one, or somebody else's, is not to be replaced."""
    found = MARK.search(card)
    if not found:
        return False
    metadata, body = card[: found.start()].removesuffix("\n"), card[found.end() :]
    return _mark(metadata + body) == found.group(0)


def _mark(text: str) -> str:
    return f"<!-- whisper-peft card {hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]} -->\n"


def _metadata(subject: Subject, words: CardWords, title: str) -> str:
    from huggingface_hub import ModelCardData

    base = words.finetuned_from or subject.base
    return ModelCardData(
        language=_language(subject, words), license=words.license, library_name=LIBRARIES[subject.kind],
        pipeline_tag=words.tasks or TASK, base_model=base,
        base_model_relation=RELATIONS[subject.kind] if base else None,
        datasets=list(words.dataset_tags) or None,
        tags=["whisper", "whisper-peft", *(["lora"] if _mode(subject) == "lora" else []), *words.tags],
        metrics=["wer", "cer"] if _scored(subject) else None, model_name=title, eval_results=_results(subject, words),
    ).to_yaml()  # fmt: skip


def _results(subject: Subject, words: CardWords) -> list | None:
    """The model-index: each rate in percent, as leaderboards have it."""
    from huggingface_hub import EvalResult

    if not (scored := _scored(subject)):
        return None
    name = words.dataset or _source(subject) or "the author's own clips"
    return [
        EvalResult(
            task_type=words.tasks or TASK, task_name="Speech recognition",
            dataset_type=next(iter(words.dataset_tags), name), dataset_name=name,
            dataset_split=scored["split"], dataset_args=words.dataset_args, metric_type=kind.lower(),
            metric_value=round(100 * scored[key], 2), metric_name=f"{kind} in %, {_form(form, scored)}",
        )
        for key, kind, form in MEASURES
    ]  # fmt: skip


def _form(form: str, scored: dict) -> str:
    return f"{form} ({scored['normalizer']})" if form == "normalised" else form


def _opening(subject: Subject, words: CardWords) -> str:
    base = words.finetuned_from or subject.base or "a Whisper of the author's own"
    language = _language(subject, words)
    spoken = f" for {LANGUAGES.get(_whisper_code(language), language).title()} speech" if language else ""
    what = {
        "adapter": f"A LoRA adapter{spoken}, on {base}.",
        "finetune": f"{base}, all weights fine-tuned{spoken}.",
        "merged": f"{base}, fine-tuned{spoken} with a LoRA adapter that is folded into its weights.",
        "model": f"A Whisper{spoken}.",
    }[subject.kind]
    if subject.unfinished_step is not None:
        steps = subject.known["recipe"]["train"]["steps"]
        what += f"\n\n**Not finished:** the checkpoint after step {subject.unfinished_step} of {steps}."
    return what + "\n\nMade with whisper-peft."


def _use(subject: Subject) -> str:
    code = ADAPTER_CODE if subject.kind == "adapter" else MODEL_CODE
    return f"## Use it\n\n```python\n{code.format(repo=subject.repo, base=subject.base)}```"


def _figures(subject: Subject, words: CardWords) -> str:
    if subject.unfinished_step is not None and subject.selection:
        found = subject.selection
        return (
            f"## Figures\n\nAfter step {found['step']}, on the clips that select the checkpoint, so optimistic: WER "
            f"{found['eval_wer']:.1%}, CER {found['eval_cer']:.1%}."
        )
    if not (scored := _scored(subject)):
        return "## Figures\n\nNot evaluated."
    facts, intervals = subject.known["facts"], subject.known.get("intervals") or {}
    before, after = facts.get("before"), facts.get("after")
    what = words.dataset or _source(subject)
    lines = [
        "## Figures", "",
        f"On {scored['clips']} clips" + (f" of {what}" if what else "") + f", {_split(scored)}.", "",
        "| | rate | 95 % interval | substituted | deleted | inserted | of |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for key, kind, form in MEASURES:
        interval = intervals.get(key)
        shown = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else ""
        counts = [
            scored[f"{key}_{count}"] for count in ("substitutions", "deletions", "insertions", "reference_length")
        ]
        lines.append(f"| {kind}, {form} | {scored[key]:.1%} | {shown} | {' | '.join(map(str, counts))} |")
    lines += ["", f"The normaliser is {scored['normalizer']}: it keeps vowel signs. The interval is a bootstrap over "
              "clips; with few speakers the true one is wider."]  # fmt: skip
    if before and after:
        which = f"{after['clips']} of these clips" if after["clips"] != scored["clips"] else "the same clips"
        said = f"Before and after, on {which}"
        if after["max_new_tokens"] != scored["max_new_tokens"]:  # runs of earlier versions
            said += f", both with at most {after['max_new_tokens']} tokens a clip instead of {scored['max_new_tokens']}"
        lines += ["", f"{said}:", "", "| | WER | CER | token loss |", "|---|---|---|---|"]
        for name, row in (("before", before), ("after", after)):
            lines.append(f"| {name} | {row['wer']:.1%} | {row['cer']:.1%} | {row['token_loss']:.3f} |")
    return "\n".join(lines)


def _training(subject: Subject, words: CardWords) -> str | None:
    facts = subject.known.get("facts")
    if not facts:
        return None
    recipe, data = subject.known["recipe"], facts["data"]
    sources = ", ".join(words.dataset_tags) or _train_sources(recipe)
    clips = "a stream" if data["train_clips"] is None else f"{data['train_clips']} clips"
    clips += f", {facts['train_hours']:g} hours" if facts.get("train_hours") else ""
    rows = [("data", f"{sources}: {clips}"), ("hardware", facts["device"])]
    if facts.get("train_seconds"):
        steps = f"{facts['steps']} steps of {recipe['train']['batch_size']} clips"
        done = f"{facts['train_seconds'] / 3600:.2f} hours for {steps}"
        best = f"; step {facts['best_step']} was the best by {facts['best_metric']}" if facts.get("best_step") else ""
        rows.append(("training time", done + best))
    if facts.get("trainable_parameters"):
        rows.append(("trained", f"{facts['trainable_parameters']:,} of {facts['parameters']:,} parameters"))
    if facts.get("peak_memory_bytes"):
        rows.append(("peak memory", f"{facts['peak_memory_bytes'] / GIB:.1f} GB"))
    commit = f", commit {facts['base']['commit']}" if facts["base"].get("commit") else ""
    rows.append(("base", f"{subject.base or 'a local folder'}{commit}; SHA-256 {facts['base']['sha256']}"))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())))
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {text} |" for name, text in rows)


def _limits(subject: Subject, words: CardWords) -> str:
    facts, scored, report = subject.known.get("facts") or {}, _scored(subject), subject.merge_report
    limits = []
    if scored and scored["split"] != "test":
        limits.append("The figures are of the selection set: the clips that also chose the checkpoint. Optimistic.")
    if facts.get("left_out"):
        limits.append(f"{facts['left_out']} clips could not be used and were left out.")
    if scored and scored["reached_limit"]:
        limits.append(f"{scored['reached_limit']} transcripts reached the generation limit.")
    if facts.get("base", {}).get("quantize") and scored:
        limits.append(f"The figures are of the adapter on the base in {facts['base']['quantize']}, as it was trained.")
    if subject.kind == "merged" and report:
        limits.append(
            ("The figures are of the adapter before it was folded in. " if scored else "")
            + f"The folded model ({report['dtype']}) was held against the adapter on {report['clips']} clips: largest "
            f"logit difference {report['logit_gap']:.2e}, {report['transcripts_differing']} transcripts differ."
        )
    limits.append(
        "Not measured: what is invented on silence, noise and music; other languages after training, English among "
        "them; recordings over 30 s; speakers and rooms unlike those of the clips above."
    )
    if words.license is None:
        limits.append("No licence is named here; the base's terms and those of the data apply.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in limits)


def _recipe(subject: Subject) -> str | None:
    import yaml

    if not (recipe := subject.known.get("recipe")):
        return None
    page = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return f"## Recipe\n\nSources are shown by their last name.\n\n```yaml\n{page}```"


def _mode(subject: Subject) -> str | None:
    return "lora" if subject.kind == "adapter" else (subject.known.get("facts") or {}).get("mode")


def _scored(subject: Subject) -> dict | None:
    """The figures of the whole of the set that was scored last; none of a run that goes on."""
    facts = subject.known.get("facts") or {}
    return None if subject.unfinished_step is not None else facts.get("final")


def _split(scored: dict) -> str:
    return "a test set that chose nothing" if scored["split"] == "test" else "the set that also chose the checkpoint"


def _source(subject: Subject) -> str | None:
    """The last name of what was scored."""
    data, scored = subject.known["recipe"]["data"], _scored(subject)
    if scored["split"] == "test":
        return data["test"]
    return data["eval"] or f"{_train_sources(subject.known['recipe'])} (held out)"


def _train_sources(recipe: dict) -> str:
    """What was learnt from, with weights where they are not 1."""
    named = []
    for one in recipe["data"]["train"]:
        source, weight = (one, 1.0) if isinstance(one, str) else (one["source"], one["weight"])
        named.append(source if weight == 1 else f"{source} (weight {weight:g})")
    return ", ".join(named)


def _language(subject: Subject, words: CardWords) -> str | None:
    """As ISO 639 has it; a name that Whisper does not know is no code, and left out."""
    named = words.language or (subject.known.get("recipe") or {}).get("model", {}).get("language")
    if not named:
        return None
    try:
        code = language_code(named)
    except UserError:
        return named.lower() if re.fullmatch(r"[A-Za-z]{2,3}", named) else None
    return ISO_CODES.get(code, code)


def _whisper_code(code: str) -> str:
    return {iso: whisper for whisper, iso in ISO_CODES.items()}.get(code, code)
