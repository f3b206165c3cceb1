"""export: write a model for another runtime, and prove there that it says the same, before it appears."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from whisper_peft import runs
from whisper_peft.data.rows import Row
from whisper_peft.data.text import language_code
from whisper_peft.delivery.check_clips import SHIPPED_LANGUAGE, SHIPPED_NAME, find_check_rows
from whisper_peft.delivery.exporting.formats import writer_of
from whisper_peft.delivery.exporting.proof import (
    PROOF_CLIPS,
    PROOF_RECORDINGS,
    load_proof_clips,
    load_recordings,
    measure_encoder_gap,
    prove,
)
from whisper_peft.delivery.exporting.report import ExportReport, SoundComparison, find_failure
from whisper_peft.delivery.exporting.source import ModelToExport
from whisper_peft.delivery.merging import merge, write
from whisper_peft.delivery.provenance import known_provenance, warning_of
from whisper_peft.errors import UserError
from whisper_peft.evaluation.scoring import label_rows
from whisper_peft.evaluation.whole_recordings import LEAST_FOR_INTERVAL
from whisper_peft.model.build import load_model, whisper_of
from whisper_peft.model.devices import to_device
from whisper_peft.model.locating import Located, locate
from whisper_peft.runtimes.exports import EXPORT, EXPORT_REPORT, PROCESSOR_FOLDER, Export, find_export
from whisper_peft.runtimes.formats import format_named
from whisper_peft.runtimes.opening import open_runtime
from whisper_peft.training.artefacts import save_processor

EXPORT_NEVER_OVERWRITES = "export never overwrites; name another OUT"


@dataclasses.dataclass(frozen=True)
class _Proof:
    """The measurements in the runtime.

    Attributes:
        checked_on: Where the clips came from, in words.
        language: Whisper's code of the language that all clips share, or None.
        encoder_gap: See `measure_encoder_gap`.
        comparisons: See `prove`.
    """

    checked_on: str | None = None
    language: str | None = None
    encoder_gap: float | None = None
    comparisons: tuple[SoundComparison, ...] = ()


@dataclasses.dataclass(frozen=True)
class _ClipSource:
    """The clips to compare on.

    Attributes:
        rows: The rows of the source.
        named: Where they came from, in words.
        language: Their language, if the user names it or they are the shipped ones.
        is_shipped: Whether they are the clips that ship with the package.
    """

    rows: Sequence[Row]
    named: str
    language: str | None
    is_shipped: bool


def export(
    model: str | Path,
    output: str | Path,
    *,
    format: str,
    quantization: str | None = None,
    check: str | Path | None = None,
    clips: int | None = None,
    base: str | None = None,
    language: str | None = None,
    unproved: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], object] = lambda outputs, total: None,
) -> ExportReport:
    """Write a model in the format of another runtime, and compare both before it appears.

    The runtime transcribes clips, and recordings of about 25 s that are joined from clips of the same source, with its
    own default decoding. transformers transcribes the same sound. An export whose weights are not quantised fails if
    its character error rate is more than 1 point above that of transformers with the whole interval above zero, or if
    an output is empty, loops or ends early where that of transformers does not. A quantised export fails above 5
    points.

    Args:
        model: A run, an adapter (which is merged first) or a stand-alone model.
        output: The new folder.
        format: "ctranslate2", "ggml", "openai", "onnx" or "mlx".
        quantization: Type of the weights; None takes the format's usual one. See `EXPORT_FORMATS`.
        check: SRC with the clips to compare on. None takes the run's own test or evaluation clips, or else the clips
            that ship with the package.
        clips: Largest number of clips, at least 5; None is 16.
        base: The adapter's base, if it has moved.
        language: Language of the clips, where neither they nor the model name one.
        unproved: Write the export even if its runtime is not installed. It is not compared then.
        say: Called with each line about what happens.
        progress: Called with the number of outputs since its last call, and the number of all.

    Returns:
        The report, which is also written to OUT/export_report.json.

    Raises:
        UserError: There is no such format or model, something that is needed is not installed, or the comparison
            failed. Nothing is written then.
    """
    if clips is not None and clips < LEAST_FOR_INTERVAL:
        raise UserError(f"--clips {clips}: at least {LEAST_FOR_INTERVAL} clips make a proof.")
    output = Path(output)
    target = format_named(format)
    quantization = target.check_quantization(quantization)
    target.check_writer()
    runs.refuse_existing(output, EXPORT_NEVER_OVERWRITES)
    runs.refuse_odd_name(output)
    runtime_version = target.runtime_version()
    if runtime_version is None and not unproved:
        raise UserError(
            f"--format {format}: {target.runtime}, which runs it, is not installed, so the export cannot be proved; "
            f"{target.remedy}. --unproved exports without a proof."
        )
    if find_export(model) is not None:
        raise UserError(f"{model}: exported already; name the run, adapter or model that it was made from.")
    located = locate(model)
    known = known_provenance(located.adapter or Path(located.base), located.run)
    warning = warning_of(known)
    if warning:
        say(f"Warning: {warning}")
    clip_source = None
    if runtime_version is not None:
        clip_source = _find_clips(located.run, check, language, say)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    writer = writer_of(format)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.model.", dir=output.absolute().parent) as work:
        source = ModelToExport(Path(work) / "model", str(model))
        _write_stand_alone(located, source.folder, base=base, check=check, language=language, say=say)
        writer.check(source)
        if clip_source is not None:
            _refuse_shipped_clips(clip_source, source)
        with runs.new_folder(output, EXPORT_NEVER_OVERWRITES) as folder:
            say(f"Writing {target.name} in {quantization}.")
            weights = writer.write(source, folder, quantization)
            made = Export(
                folder=folder,
                format=target,
                quantization=quantization,
                weights=weights,
                language=source.language,
                task=getattr(source.generation_config, "task", None) or "transcribe",
                multilingual=source.preparation.multilingual,
                alignment_heads=source.alignment_heads,
            )
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            _write_companions(made, source)
            proof = _Proof()
            if clip_source is not None:
                proof = _prove(made, source, located.run, clip_source, clips, say, progress)
            else:
                say(f"Not proved: {target.runtime} is not installed (--unproved).")
            report = ExportReport(
                model=Path(model).name,
                format=target.name,
                quantization=quantization,
                runtime=target.runtime,
                runtime_version=runtime_version,
                size=size,
                proved=runtime_version is not None,
                **{field.name: getattr(proof, field.name) for field in dataclasses.fields(proof)},
                notes=tuple(writer.notes(source, quantization)),
            )
            runs.write_json(folder / EXPORT_REPORT, report.as_dict())
            runs.write_json(folder / runs.PROVENANCE, known)
            failure = find_failure(report, quantized=made.is_quantized)
            if failure:
                raise UserError(f"{output}: not written: {failure}. {_remedy(warning, made)}")
    return report


def _write_stand_alone(
    located: Located,
    folder: Path,
    *,
    base: str | None,
    check: str | Path | None,
    language: str | None,
    say: Callable[[str], None],
) -> None:
    """Write the model to export in float32 into a folder of its own; an adapter is merged, with merge's own checks."""
    if located.adapter is not None:
        say("Merging the adapter into its base.")
        merge(located.name, folder, dtype="float32", base=base, check=check, language=language)
        return
    if base is not None:
        raise UserError(f"--base {base}: only an adapter has a base, and {located.name} is none; leave --base away.")
    model, preparation, _ = load_model(located.name)
    folder.mkdir()
    write(whisper_of(model), preparation.processor, folder)


def _write_companions(made: Export, source: ModelToExport) -> None:
    """Write export.json and, unless the format has them beside its weights, the processor and the configs."""
    runs.write_json(made.folder / EXPORT, made.as_dict())
    if (made.folder / "tokenizer_config.json").is_file():
        return
    processor = made.folder / PROCESSOR_FOLDER
    processor.mkdir()
    save_processor(source.preparation.processor, processor)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(source.folder / name, processor / name)


def _find_clips(
    run: Path | None, check: str | Path | None, language: str | None, say: Callable[[str], None]
) -> _ClipSource:
    """Find the clips to compare on."""
    rows, named, spoken = find_check_rows(run, check, language, say)
    is_shipped = named == SHIPPED_NAME
    if check is not None:
        # The report may be published, and a path of this machine says nothing to others.
        named = named.replace(str(check), Path(check).name)
    return _ClipSource(rows, named, spoken, is_shipped)


def _refuse_shipped_clips(clip_source: _ClipSource, source: ModelToExport) -> None:
    """Refuse to prove a model on the clips that ship with the package if it was not trained for their language.

    Raises:
        UserError: It was trained for another language, or names none.
    """
    if clip_source.is_shipped and source.language != language_code(SHIPPED_LANGUAGE):
        raise UserError(
            f"{source.name}: the clips that ship with whisper-peft are Hindi, and the model was not trained for Hindi "
            "alone; name clips to prove the export on with --check SRC."
        )


def _prove(
    made: Export,
    source: ModelToExport,
    run: Path | None,
    clip_source: _ClipSource,
    clips: int | None,
    say: Callable[[str], None],
    progress: Callable[[int, int], object],
) -> _Proof:
    """Compare the export in its runtime with the same model in transformers."""
    loaded, preparation, _ = load_model(source.folder)
    loaded = to_device(loaded)
    dataset = label_rows(
        loaded,
        Located(source.name, str(source.folder), run=run),
        preparation,
        clip_source.rows,
        language=clip_source.language,
        task=made.task,
    )
    chosen = load_proof_clips(dataset, clips or PROOF_CLIPS)
    if not chosen:
        raise UserError(
            f"{clip_source.named}: no usable clip with text to prove the export on; name some with --check SRC."
        )
    recordings = load_recordings(dataset, PROOF_RECORDINGS)
    checked_on = f"{len(chosen)} clips and {len(recordings)} joined recordings of {clip_source.named}"
    say(f"Proving in {made.format.runtime} on {checked_on}.")
    runtime = open_runtime(made)
    return _Proof(
        checked_on=checked_on,
        language=dataset.language,
        encoder_gap=measure_encoder_gap(loaded, preparation, runtime, chosen[0].wave),
        comparisons=prove(loaded, preparation, runtime, chosen, recordings, task=dataset.task, progress=progress),
    )


def _remedy(warning: str | None, made: Export) -> str:
    """Return a sentence about what to do if the proof fails."""
    if made.is_quantized:
        return f"Take a larger type of weights, such as --quantization {made.format.precisions[0]}."
    if warning:
        return warning
    remedy = "Prove it on other clips with --check SRC"
    if "float32" in made.format.precisions and made.quantization != "float32":
        return f"{remedy}, or take --quantization float32."
    return f"{remedy}, or take another --format."
