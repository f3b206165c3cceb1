"""merge: adapter + unquantised base -> a stand-alone model, checked against the adapter by logits and transcripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import Example, SpeechDataset
from whisper_peft.data.features import IGNORED, Preparation
from whisper_peft.data.rows import Row
from whisper_peft.data.sources import load_source
from whisper_peft.delivery.provenance import PROVENANCE, known_provenance, warning_of
from whisper_peft.errors import UserError
from whisper_peft.evaluation.generation import encode, full_limit, generate
from whisper_peft.evaluation.metrics import score
from whisper_peft.evaluation.scoring import labelled
from whisper_peft.model.build import load_model, whisper_of
from whisper_peft.model.configs import load_generation_config, load_preparation
from whisper_peft.model.devices import to_device
from whisper_peft.model.from_pretrained import without_bars
from whisper_peft.model.loading import load_base
from whisper_peft.model.locating import Located, locate, with_base
from whisper_peft.model.lora import changes_nothing, load_adapter
from whisper_peft.model.weights import refuse_not_finite
from whisper_peft.recipe_files import PACKAGE, absolute, load_recipe
from whisper_peft.training.artefacts import save_processor

DTYPES = ("float32", "float16", "bfloat16")
CHECK_CLIPS = 8
CHECK_CLIPS_HALF_CPU = 2  # float16 has no fast kernels on CPUs: Whisper base takes a minute a clip there
REPORT = "merge_report.json"


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
    """What `merge` did, and how close the merged model is to its adapter.

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
class Heard:
    """What a model said to the check clips."""

    logits: list  # float32 (n_tokens, vocab) a clip, at positions with a label
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
    """Folds an adapter into its unquantised base, and proves the result equal before it appears.

    In float32 the largest logit difference must stay within 1e-5 × max(10, largest |logit|), and transcripts must be
    equal; in float16 and bfloat16 the merged model may differ from the float32 adapter by at most twice what the
    unmerged adapter itself differs between that type and float32.

    Args:
        model: a run or an adapter folder.
        output: the new model folder; processor and generation config are written with the weights.
        dtype: float32, float16 or bfloat16; None: the base's own.
        base: the base model, if it has moved since training.
        check: SRC to check on; None: the run's own evaluation clips, else the shipped ones. At most 8 clips are
            used, 2 for float16 on a CPU.
        language: of the check clips, where neither they nor the adapter say.
        say: told one line at a time what happens.

    Returns:
        The report, also written to OUT/merge_report.json: gaps, limits, transcripts, and what was checked on.

    Raises:
        UserError: not an adapter, another base than it was trained on, or a gap over its limit (then no OUT).
    """
    import torch

    output = Path(output)
    runs.refuse_existing(output, "merge never overwrites; name another OUT")
    located = locate(model)
    if located.adapter is None:
        raise UserError(f"{model}: no adapter to merge; it is a stand-alone model already.")
    located = with_base(located, base)
    source, commit = located.base, located.commit
    own = load_base(source, dtype="auto", revision=commit).dtype
    wanted = own if dtype is None else _dtype(dtype)
    exact, preparation, _ = load_model(model, base=base, quantize="none")
    if changes_nothing(located.adapter):
        raise UserError(
            f"{located.adapter}: the adapter changes nothing, its update is zero; there is nothing to merge. Likely it "
            "was saved before its first step, or lora_alpha in its config is 0."
        )
    exact = to_device(exact)
    slow = wanted == torch.float16 and exact.device.type == "cpu"
    dataset, checked_on = _check_clips(
        located, preparation, check, language, exact, say, most=CHECK_CLIPS_HALF_CPU if slow else CHECK_CLIPS
    )
    say(f"Checking on {checked_on}.")
    known = known_provenance(located.adapter, located.run)
    warning = warning_of(known)
    if warning:
        say(f"Warning: {warning}")

    reference = listen(exact, dataset)
    unmerged = reference if wanted == torch.float32 else listen(_in_dtype(exact, wanted), dataset)
    del exact
    with runs.new_folder(output, "merge never overwrites; name another OUT") as folder:
        # In float32: the fold itself must not round.
        folded = load_adapter(load_base(source, revision=commit), located.adapter)
        _take_generation_config(folded, located)
        whisper = folded.merge_and_unload(safe_merge=True).to(wanted)
        whisper.config.dtype = wanted
        whisper.config.use_cache = True
        changed = _changed_tensors(whisper, located, wanted)
        with without_bars():
            whisper.save_pretrained(str(folder))
        save_processor(preparation.processor, folder)
        whisper.generation_config.save_pretrained(str(folder))
        del folded, whisper
        reloaded = to_device(load_base(str(folder), dtype="auto")).eval()
        if reloaded.dtype != wanted:
            raise AssertionError(f"merged weights came back as {reloaded.dtype}, not {wanted}")
        merged = listen(reloaded, dataset, load_preparation(str(folder)))
        report = MergeReport(
            model=str(model),
            base=source,
            dtype=str(wanted).removeprefix("torch."),
            checked_on=checked_on,
            changed_tensors=changed,
            **compare(reference, unmerged, merged, exact=wanted == torch.float32),
            quantized=against_quantized(model, base, dataset, merged) if located.quantize else None,
        )
        runs.write_json(folder / REPORT, report.as_dict())
        runs.write_json(folder / PROVENANCE, known)
        if not report.passed:
            raise UserError(
                f"{output}: not written: merged and unmerged differ by {report.logit_gap:.2e} in logits "
                f"(limit {report.logit_limit:.2e}) and in {report.transcripts_differing} of {report.clips} "
                "transcripts. Try --dtype float32; if that fails too, the adapter is damaged."
            )
    return report


def listen(model, dataset: SpeechDataset, preparation: Preparation | None = None) -> Heard:
    """Logits at the label positions, and greedy transcripts, of every clip in a dataset."""
    import torch

    preparation, whisper = preparation or dataset.preparation, whisper_of(model)
    heard = Heard([], [])
    for number in range(len(dataset)):
        example = dataset[number]
        batch = SpeechCollator(preparation)([example])
        with torch.no_grad():
            encoded = encode(whisper, batch["input_features"])
            logits = whisper(
                encoder_outputs=encoded, decoder_input_ids=batch["decoder_input_ids"].to(whisper.device),
                use_cache=False,
            ).logits[0]  # fmt: skip
            heard.logits.append(logits[batch["labels"][0] != IGNORED].float().cpu())
            tokens = generate(
                whisper, preparation, encoded, language=dataset.language_of(number), task=dataset.task,
                max_new_tokens=min(full_limit(preparation), 2 * len(example.labels) + 10),
            )[0]  # fmt: skip
        heard.texts.append(preparation.decode(tokens))
    return heard


def compare(reference: Heard, unmerged: Heard, merged: Heard, *, exact: bool) -> dict:
    """Holds the merged model against its limits.

    Args:
        reference: the unmerged adapter in float32.
        unmerged: the unmerged adapter in the merged model's type.
        merged: the merged model.
        exact: whether that type is float32.
    """
    largest = max(one.abs().max().item() for one in reference.logits)
    gap, own_gap = logit_gap(reference, merged), logit_gap(reference, unmerged)
    limit = 1e-5 * max(10.0, largest) if exact else 2 * own_gap
    differing = [
        {"adapter": ours, "merged": theirs}
        for ours, theirs in zip(reference.texts, merged.texts, strict=True)
        if ours != theirs
    ]
    return {
        "clips": len(reference.texts), "logit_gap": gap, "logit_limit": limit, "largest_logit": largest,
        "unmerged_logit_gap": own_gap, "transcripts_differing": len(differing), "transcripts": differing,
        "passed": gap <= limit and not (exact and differing),
    }  # fmt: skip


def against_quantized(model: str | Path, base: str | None, dataset: SpeechDataset, merged: Heard) -> QuantizedGaps:
    """How far the merged model is from the adapter on the quantised base that it was trained on; it sets no limit."""
    trained, _, located = load_model(model, base=base)
    quantized = listen(trained, dataset)
    references = [dataset.text(number) for number in range(len(dataset))]
    adapter_scores = score(references, quantized.texts)
    merged_scores = score(references, merged.texts)
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
    """The largest difference of a logit."""
    return max((x - y).abs().max().item() for x, y in zip(a.logits, b.logits, strict=True))


def _changed_tensors(merged, located: Located, dtype) -> int:
    """Count the tensors in which a merged model differs from its base.

    Args:
        merged: The merged model.
        located: Where its adapter and its base are.
        dtype: Of the merged weights.

    Raises:
        UserError: None differs, or a merged weight is too large for the type.
    """
    name = str(dtype).removeprefix("torch.")
    refuse_not_finite(
        merged.named_parameters(),
        place=str(located.adapter),
        remedy=f"they came from merging in {name}: take --dtype float32 or bfloat16",
    )
    base = load_base(located.base, revision=located.commit).to(dtype).state_dict()
    changed = sum(not tensor.equal(base[key]) for key, tensor in merged.state_dict().items())
    if not changed:
        raise UserError(
            f"{located.adapter}: the merged weights are those of the base, bit for bit; the adapter's update is "
            f"smaller than {name} can hold. Take --dtype float32."
        )
    return changed


def _in_dtype(model, dtype):
    """The unmerged adapter in reduced precision, adapter weights included."""
    return model.to(dtype)


def _dtype(name: str):
    import torch

    if name not in DTYPES:
        raise UserError(f"--dtype {name}: expected one of {', '.join(DTYPES)}.")
    return getattr(torch, name)


def _take_generation_config(model, located: Located) -> None:
    own = load_generation_config(located.adapter, revision=located.commit, base=located.base)
    if own is not None:
        whisper_of(model).generation_config = own


def _check_clips(
    located: Located, preparation: Preparation, check: str | Path | None, language: str | None, model,
    say: Callable[[str], None], *, most: int,
) -> tuple[SpeechDataset, str]:  # fmt: skip
    """At most so many usable clips to compare on, and where they come from."""
    if check is not None:
        rows, named = load_source(str(check)), f"{check} (--check)"
    elif located.run and (found := _run_clips(located.run, say)):
        rows, named = found[0], f"the run's own {found[1]} clips"
    else:
        rows, named = load_source(str(PACKAGE / "quickstart" / "speech" / "test")), "the shipped Hindi clips"
        language = "hindi" if language is None else language
    dataset = labelled(model, located, preparation, rows, language=language, task=None)
    usable: list[Row] = []
    for number, row in enumerate(dataset.rows):  # with the languages that were heard or settled
        if isinstance(dataset[number], Example):
            usable.append(row)
        if len(usable) == most:
            break
    if not usable:
        raise UserError(f"{named}: no usable clip to check the merged model on; name some with --check SRC.")
    dataset.rows = usable
    return dataset, f"{len(usable)} clips of {named}"


def _run_clips(run: Path, say: Callable[[str], None]) -> tuple[Sequence[Row], str] | None:
    """Rows of a run and which split they are, where they still are; says which are not."""
    recipe = absolute(load_recipe(run / runs.RECIPE), run)
    splits = {
        "test": (recipe.data.test,),
        "eval": (recipe.data.eval,),
        "train": [one.source for one in recipe.data.sources],
    }
    for split, sources in splits.items():
        for source in filter(None, sources):
            try:
                return load_source(source, **{**recipe.data.columns, "prompt_column": None}), split
            except UserError as error:  # moved or gone since: the next one, at last the shipped clips
                say(f"Note: the run's {split} clips cannot be read ({error}) Name their new place with --check SRC.")
    return None
