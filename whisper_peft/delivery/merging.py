"""merge: fold an adapter into its unquantised base, and prove the result equal to the adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_peft import runs
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import Example, SpeechDataset
from whisper_peft.data.features import IGNORED, Preparation
from whisper_peft.delivery.check_clips import find_check_rows
from whisper_peft.delivery.provenance import MERGE_REPORT, known_provenance, warning_of
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import encode, full_limit, generate
from whisper_peft.evaluation.metrics import score
from whisper_peft.evaluation.scoring import label_rows
from whisper_peft.model.build import load_model, whisper_of
from whisper_peft.model.configs import load_config, load_generation_config, load_preparation
from whisper_peft.model.devices import to_device
from whisper_peft.model.loading import load_base
from whisper_peft.model.locating import Located, locate, with_base
from whisper_peft.model.lora import changes_nothing, load_adapter
from whisper_peft.model.weights import refuse_not_finite
from whisper_peft.training.artefacts import save_model, save_processor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, WhisperForConditionalGeneration, WhisperProcessor

DTYPES = ("float32", "float16", "bfloat16")
# Largest number of clips on which the merged model is compared with the adapter.
CHECK_CLIPS = 8
# float16 has no fast kernels on CPUs: Whisper base takes a minute for each clip there.
CHECK_CLIPS_HALF_CPU = 2
# In float32 a logit may differ by this share of the largest logit, and of 10 where the largest is smaller.
FLOAT32_TOLERANCE = 1e-5
# In another type a logit may differ by this multiple of the unmerged adapter's own difference between it and float32.
ROUNDING_TOLERANCE = 2
NEVER_OVER_ANYTHING = "merge never overwrites; name another OUT"


@dataclasses.dataclass(frozen=True)
class QuantizedGaps:
    """The differences between a merged model and its adapter on the quantised base that it was trained on.

    Attributes:
        base: How that base was quantised, "8bit" or "4bit".
        logit_gap: Largest difference of a logit.
        transcripts_differing: Number of check clips whose transcripts differ.
        adapter_wer: Word error rate of the adapter on the quantised base, on the check clips.
        adapter_cer: Its character error rate.
        merged_wer: Word error rate of the merged model on the check clips.
        merged_cer: Its character error rate.
    """

    base: str
    logit_gap: float
    transcripts_differing: int
    adapter_wer: float
    adapter_cer: float
    merged_wer: float
    merged_cer: float


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """The result of `merge`, and how close the merged model is to its adapter.

    Attributes:
        model: The adapter or run that was merged.
        base: Folder or Hub id of the base that it was folded into.
        dtype: Type of the merged weights, for example "float16".
        checked_on: Where the check clips came from, in words.
        changed_tensors: Number of tensors in which the merged model differs from its base.
        clips: Number of check clips.
        logit_gap: Largest difference of a logit between the merged model and the adapter in float32.
        logit_limit: Largest difference that is allowed.
        largest_logit: Largest absolute logit of the adapter in float32.
        unmerged_logit_gap: Largest difference between the adapter in `dtype` and the adapter in float32.
        transcripts_differing: Number of check clips whose transcripts differ.
        transcripts: The transcripts that differ: for each clip what the `adapter` and what the `merged` model said.
        passed: Whether the merged model is within the limits.
        quantized: The differences from the adapter on the quantised base; None if it was not trained on one.
    """

    model: str
    base: str
    dtype: str
    checked_on: str
    changed_tensors: int
    clips: int
    logit_gap: float
    logit_limit: float
    largest_logit: float
    unmerged_logit_gap: float
    transcripts_differing: int
    transcripts: list[dict[str, str]]
    passed: bool
    quantized: QuantizedGaps | None = None

    def as_dict(self) -> dict:
        """Return the content of merge_report.json; `quantized` is missing where it is None."""
        content = dataclasses.asdict(self)
        if self.quantized is None:
            del content["quantized"]
        return content


@dataclasses.dataclass(frozen=True)
class CheckClips:
    """The clips on which models are compared.

    Attributes:
        dataset: The rows of a source as examples.
        numbers: The rows that are used.
        named: How many clips these are, and where they came from, in words.
    """

    dataset: SpeechDataset
    numbers: list[int]
    named: str

    @property
    def references(self) -> list[str]:
        """The transcripts that persons wrote."""
        return [self.dataset.text(number) for number in self.numbers]


@dataclasses.dataclass(frozen=True)
class Heard:
    """The output of a model for the check clips.

    Attributes:
        logits: For each clip float32 (n_tokens, vocab), at the positions that have a label.
        texts: For each clip the greedy transcript.
    """

    logits: list[torch.Tensor]
    texts: list[str]


def merge(
    model: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    base: str | None = None,
    check: str | Path | None = None,
    language: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> MergeReport:
    """Fold an adapter into its unquantised base, and prove the result equal before it appears.

    In float32 the largest logit difference must stay within 1e-5 × max(10, largest |logit|), and transcripts must be
    equal. In float16 and bfloat16 the merged model may differ from the float32 adapter by at most twice what the
    unmerged adapter itself differs between that type and float32.

    Args:
        model: A run or an adapter folder.
        output: The new model folder. The processor and the generation config are written with the weights.
        dtype: float32, float16 or bfloat16; None takes the base's own type.
        base: The base model, if it has moved since training.
        check: SRC with the clips to compare on. None takes the run's own evaluation clips, or else the clips that ship
            with the package. At most 8 clips are used, 2 for float16 on a CPU.
        language: Language of the check clips, where neither they nor the adapter name one.
        say: Called with each line about what happens.

    Returns:
        The report, which is also written to OUT/merge_report.json.

    Raises:
        UserError: `model` is no adapter, the base is not the one that it was trained on, or a gap is over its limit.
            Nothing is written then.
    """
    output = Path(output)
    runs.refuse_existing(output, NEVER_OVER_ANYTHING)
    located = locate(model)
    adapter = located.adapter
    if adapter is None:
        raise UserError(f"{model}: no adapter to merge; it is a stand-alone model already.")
    located = with_base(located, base)
    merged_dtype = _stored_dtype(located) if dtype is None else _named_dtype(dtype)
    adapted, preparation, _ = load_model(model, base=base, quantize="none")
    if changes_nothing(adapter):
        raise UserError(
            f"{adapter}: the adapter changes nothing, its update is zero; there is nothing to merge. Likely it "
            "was saved before its first step, or lora_alpha in its config is 0."
        )
    adapted = to_device(adapted)
    clips = _find_check_clips(located, preparation, check, language, adapted, merged_dtype, say)
    say(f"Checking on {clips.named}.")
    known = known_provenance(adapter, located.run)
    warning = warning_of(known)
    if warning:
        say(f"Warning: {warning}")

    reference, unmerged = hear_in_both_types(adapted, clips, merged_dtype)
    # The weights must leave memory before the base is loaded again.
    del adapted
    with runs.new_folder(output, NEVER_OVER_ANYTHING) as folder:
        whisper = fold(located, merged_dtype)
        n_changed = _count_changed_tensors(whisper, located, merged_dtype)
        write(whisper, preparation.processor, folder)
        del whisper
        merged = hear_written(folder, clips, merged_dtype)
        quantized = None
        if located.quantize:
            quantized = against_quantized(model, base, clips, merged)
        report = MergeReport(
            model=str(model),
            base=located.base,
            dtype=_name_of(merged_dtype),
            checked_on=clips.named,
            changed_tensors=n_changed,
            **verify(reference, unmerged, merged, exact=_name_of(merged_dtype) == "float32"),
            quantized=quantized,
        )
        runs.write_json(folder / MERGE_REPORT, report.as_dict())
        runs.write_json(folder / runs.PROVENANCE, known)
        if not report.passed:
            raise UserError(
                f"{output}: not written: merged and unmerged differ by {report.logit_gap:.2e} in logits "
                f"(limit {report.logit_limit:.2e}) and in {report.transcripts_differing} of {report.clips} "
                "transcripts. Try --dtype float32; if that fails too, the adapter is damaged."
            )
    return report


def fold(located: Located, dtype: torch.dtype) -> WhisperForConditionalGeneration:
    """Add an adapter's update to the weights of its base.

    Args:
        located: Where the adapter and its base are.
        dtype: Type of the weights that are returned.

    Returns:
        A stand-alone Whisper, with the generation config that the adapter was saved with.
    """
    assert located.adapter is not None, "merge refuses stand-alone models before"
    # The sum is made in float32, so that only its result is rounded.
    folded = load_adapter(load_base(located.base, revision=located.commit), located.adapter)
    generation_config = load_generation_config(located.adapter, revision=located.commit, base=located.base)
    if generation_config is not None:
        whisper_of(folded).generation_config = generation_config
    whisper = folded.merge_and_unload(safe_merge=True).to(dtype)
    whisper.config.dtype = dtype
    whisper.config.use_cache = True
    return whisper


def write(whisper: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path) -> None:
    """Write a model folder that loads alone: weights, processor and generation config."""
    save_model(whisper, folder)
    save_processor(processor, folder)


def verify(reference: Heard, unmerged: Heard, merged: Heard, *, exact: bool) -> dict[str, Any]:
    """Compare the merged model with the adapter, and both with the limits.

    Args:
        reference: What the unmerged adapter said in float32.
        unmerged: What the unmerged adapter said in the merged model's type.
        merged: What the merged model said.
        exact: Whether the merged model's type is float32.

    Returns:
        The fields of a `MergeReport` that hold the comparison, from `clips` to `passed`.
    """
    largest = max(logits.abs().max().item() for logits in reference.logits)
    gap = logit_gap(reference, merged)
    rounding_gap = logit_gap(reference, unmerged)
    limit = ROUNDING_TOLERANCE * rounding_gap
    if exact:
        limit = FLOAT32_TOLERANCE * max(10.0, largest)
    differing = [
        {"adapter": adapter_text, "merged": merged_text}
        for adapter_text, merged_text in zip(reference.texts, merged.texts, strict=True)
        if adapter_text != merged_text
    ]
    return {
        "clips": len(reference.texts),
        "logit_gap": gap,
        "logit_limit": limit,
        "largest_logit": largest,
        "unmerged_logit_gap": rounding_gap,
        "transcripts_differing": len(differing),
        "transcripts": differing,
        "passed": gap <= limit and not (exact and differing),
    }


def hear_in_both_types(adapted: PreTrainedModel, clips: CheckClips, dtype: torch.dtype) -> tuple[Heard, Heard]:
    """Let an unmerged adapter hear the check clips in float32, and then in the merged model's type.

    Args:
        adapted: The adapter on its base, in float32. Afterwards it is in the other type, adapter weights included.
        clips: The clips to hear.
        dtype: The merged model's type.

    Returns:
        Its logits and transcripts in float32, and in `dtype`.
    """
    in_float32 = hear_clips(adapted, clips)
    if _name_of(dtype) == "float32":
        return in_float32, in_float32
    return in_float32, hear_clips(adapted.to(dtype), clips)


def hear_written(folder: Path, clips: CheckClips, dtype: torch.dtype) -> Heard:
    """Load a merged model from its files, and let it hear the check clips.

    Args:
        folder: Where the model was written.
        clips: The clips to hear.
        dtype: Type that its weights must have.
    """
    reloaded = to_device(load_base(str(folder), dtype="auto")).eval()
    if reloaded.dtype != dtype:
        raise AssertionError(f"merged weights came back as {reloaded.dtype}, not {dtype}")
    return hear_clips(reloaded, clips, load_preparation(str(folder)))


def hear_clips(model: PreTrainedModel, clips: CheckClips, preparation: Preparation | None = None) -> Heard:
    """Collect a model's logits at the label positions and its greedy transcript, for each clip.

    Args:
        model: A Whisper, or an adapter on one.
        clips: The clips to hear.
        preparation: The model's own tokens and features; None takes those of the clips.
    """
    import torch

    dataset = clips.dataset
    preparation = preparation or dataset.preparation
    whisper = whisper_of(model)
    logits_of_clips: list[torch.Tensor] = []
    texts: list[str] = []
    for number in clips.numbers:
        example = dataset[number]
        assert isinstance(example, Example), "the numbers are those of usable rows"
        batch = SpeechCollator(preparation)([example])
        with torch.no_grad():
            # Encoded once, for the logits and for the transcript. `generate` would pad the features with zeros.
            encoded = encode(whisper, batch["input_features"])
            # (n_tokens, vocab)
            logits = whisper(
                encoder_outputs=encoded,
                decoder_input_ids=batch["decoder_input_ids"].to(whisper.device),
                use_cache=False,
            ).logits[0]
            logits_of_clips.append(logits[batch["labels"][0] != IGNORED].float().cpu())
            tokens = generate(
                whisper,
                preparation,
                encoded,
                language=dataset.language_of(number),
                task=dataset.task,
                max_new_tokens=min(full_limit(preparation), 2 * len(example.labels) + 10),
            )[0]
        texts.append(preparation.decode(tokens))
    return Heard(logits_of_clips, texts)


def against_quantized(model: str | Path, base: str | None, clips: CheckClips, merged: Heard) -> QuantizedGaps:
    """Compare the merged model with the adapter on the quantised base that it was trained on. There is no limit.

    Args:
        model: The run or the adapter folder.
        base: The base model, if it has moved since training.
        clips: The clips that both heard.
        merged: What the merged model said.
    """
    trained, _, located = load_model(model, base=base)
    assert located.quantize is not None, "only for an adapter that was trained on a quantised base"
    quantized = hear_clips(trained, clips)
    adapter_scores: dict[str, Any] = score(clips.references, quantized.texts)
    merged_scores: dict[str, Any] = score(clips.references, merged.texts)
    return QuantizedGaps(
        base=located.quantize,
        logit_gap=logit_gap(quantized, merged),
        transcripts_differing=sum(a != b for a, b in zip(quantized.texts, merged.texts, strict=True)),
        adapter_wer=adapter_scores["wer"],
        adapter_cer=adapter_scores["cer"],
        merged_wer=merged_scores["wer"],
        merged_cer=merged_scores["cer"],
    )


def logit_gap(a: Heard, b: Heard) -> float:
    """Return the largest difference of a logit."""
    return max((x - y).abs().max().item() for x, y in zip(a.logits, b.logits, strict=True))


def _count_changed_tensors(merged: WhisperForConditionalGeneration, located: Located, dtype: torch.dtype) -> int:
    """Count the tensors in which a merged model differs from its base.

    Args:
        merged: The merged model.
        located: Where its adapter and its base are.
        dtype: Type of the merged weights.

    Raises:
        UserError: None differs, or a merged weight is too large for the type.
    """
    name = _name_of(dtype)
    refuse_not_finite(
        merged.named_parameters(),
        place=str(located.adapter),
        remedy=f"they came from merging in {name}: take --dtype float32 or bfloat16",
    )
    base = load_base(located.base, revision=located.commit).to(dtype).state_dict()
    n_changed = sum(not tensor.equal(base[key]) for key, tensor in merged.state_dict().items())
    if not n_changed:
        raise UserError(
            f"{located.adapter}: the merged weights are those of the base, bit for bit; the adapter's update is "
            f"smaller than {name} can hold. Take --dtype float32."
        )
    return n_changed


def _stored_dtype(located: Located) -> torch.dtype:
    """Return the type that a base is loaded in when nobody names one."""
    import torch

    # transformers follows this field of config.json; only where it is missing does it look at the weights.
    stated = load_config(located.base, revision=located.commit).dtype
    if stated is None:
        return load_base(located.base, dtype="auto", revision=located.commit).dtype
    if isinstance(stated, str):
        return getattr(torch, stated)
    return stated


def _named_dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise UserError(f"--dtype {name}: expected one of {', '.join(DTYPES)}.")
    return getattr(torch, name)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _find_check_clips(
    located: Located,
    preparation: Preparation,
    check: str | Path | None,
    language: str | None,
    model: PreTrainedModel,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> CheckClips:
    """Choose usable clips to compare on: those that the user names, else the run's own, else the shipped ones."""
    rows, named, language = find_check_rows(located.run, check, language, say)
    # Here the rows are given their languages, by what they say or by what the model hears.
    dataset = label_rows(model, located, preparation, rows, language=language, task=None)
    most = CHECK_CLIPS
    if _name_of(dtype) == "float16" and model.device.type == "cpu":
        most = CHECK_CLIPS_HALF_CPU
    numbers = _usable_rows(dataset, most)
    if not numbers:
        raise UserError(f"{named}: no usable clip to check the merged model on; name some with --check SRC.")
    return CheckClips(dataset, numbers, f"{len(numbers)} clips of {named}")


def _usable_rows(dataset: SpeechDataset, most: int) -> list[int]:
    """Return the numbers of the first rows that make an example, at most so many."""
    numbers: list[int] = []
    for number in range(len(dataset)):
        if isinstance(dataset[number], Example):
            numbers.append(number)
        if len(numbers) == most:
            break
    return numbers
