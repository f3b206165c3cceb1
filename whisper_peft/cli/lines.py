"""The results of the commands, as lines for people."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.files import printable
from whisper_peft.model.devices import GIB

if TYPE_CHECKING:
    from whisper_peft.checking.report import CheckReport, FixResult, ReportedClip, ReportedFinding, ReportedSource
    from whisper_peft.delivery.merging import MergeReport
    from whisper_peft.delivery.publishing import PublishReport
    from whisper_peft.recipe import Data
    from whisper_peft.training.planning import MemoryPlan
    from whisper_peft.training.train import TrainResult

METRIC_NAMES = {"cer_normalized": "normalised CER"}
# Clips of a finding that are shown; the JSON and the page have more.
MOST_SHOWN_CLIPS = 3
SEVERITY_MARKS = {"error": "✕", "warning": "!", "note": "·"}
ASSUMED_CLIPS = "no clips to look at: 15 s with 15 tokens a second assumed."


def counted(count: int, word: str) -> str:
    """Write a number of things in words.

    >>> counted(1, "clip"), counted(2000, "clip")
    ('1 clip', '2,000 clips')
    """
    plural = "" if count == 1 else "s"
    return f"{count:,} {word}{plural}"


def shown_path(path: object) -> str:
    """Shorten a path to what a person types in the working directory."""
    text = str(path)
    if not os.path.isabs(text):
        return text
    relative = os.path.relpath(text)
    return text if relative.startswith("../..") else relative


def name_of(name: str, start_s: float | None, end_s: float | None) -> str:
    """Name a clip by its file and, if it is a piece of it, by its times."""
    if end_s is None:
        return shown_path(name)
    return f"{shown_path(name)} {start_s or 0.0:.2f}-{end_s:.2f} s"


def transcript_line(transcript: dict, *, named: bool) -> str:
    """Write a transcript as a line, after the name of its recording if `named`."""
    if not named:
        return transcript["text"]
    return f"{printable(shown_path(transcript['audio']))}: {transcript['text']}"


def train_lines(result: TrainResult) -> list[str]:
    """Write what a run achieved, and what to do next."""
    facts = result.facts
    shown = shown_path(result.run)
    minutes = facts["train_seconds"] / 60
    metric = METRIC_NAMES.get(facts["best_metric"], facts["best_metric"])
    lines = [
        f"Trained {facts['steps']} steps in {minutes:.1f} minutes; best: step {facts['best_step']} (by {metric} on the "
        "eval clips)."
    ]
    if facts.get("left_out"):
        lines.append(f"Left out: {facts['left_out']} clips, each named in {shown}/left_out.jsonl.")
    before = facts.get("before")
    after = facts.get("after")
    final = facts.get("final")
    if before and after:
        lines += _comparison_lines(before, after, facts["best_metric"])
    if final and (not after or final["clips"] != after["clips"]):
        lines.append(
            f"Whole {final['split']} set, {final['clips']} clips: WER {final['wer']:.1%}, CER {final['cer']:.1%}."
        )
    if final and final["reached_limit"]:
        lines.append(f"{final['reached_limit']} transcripts reached the generation limit.")
    return lines + _next_lines(result)


def _comparison_lines(before: dict, after: dict, best_metric: str) -> list[str]:
    """Write the figures before and after as a table."""
    split = "test" if after["split"] == "test" else "eval (the selection set, optimistic)"
    keys = {"WER": "wer", "CER": "cer"}
    # For a script without spaces, the rates as written mean little.
    if best_metric == "cer_normalized":
        keys["CER norm."] = "cer_normalized"
    widths = {title: max(9, len(title) + 2) for title in keys}
    titles = "".join(f"{title:>{widths[title]}}" for title in keys)
    lines = [f"On {after['clips']} {split} clips:", f"  {'':8}{titles}{'token loss':>12}"]
    for name, row in (("before", before), ("after", after)):
        rates = "".join(f"{row[key]:>{widths[title]}.1%}" for title, key in keys.items())
        lines.append(f"  {name:8}{rates}{row['token_loss']:>12.3f}")
    return lines


def _next_lines(result: TrainResult) -> list[str]:
    """Write the commands that a user runs after a training."""
    shown = shown_path(result.run)
    data = _data_of(result.run)
    # A held-out tenth of the training clips is no source of its own, so it cannot be named here.
    source = data.test or data.eval
    options = {"audio-column": data.audio_column, "text-column": data.text_column, "times": data.times}
    columns = "".join(f" --{option} {value}" for option, value in options.items() if value)
    lines = ["Next:"]
    if source:
        lines.append(f"  whisper-peft evaluate {shown} {shown_path(source)}{columns}")
    if result.facts["mode"] == "lora":
        lines.append(f"  whisper-peft merge {shown} {shown}-merged")
    lines.append(f"  whisper-peft transcribe {shown} {_first_clip(result.run)}")
    return lines


def _data_of(run: Path) -> Data:
    from whisper_peft.recipe_files import load_recipe

    return load_recipe(run / "recipe.yaml").data


def _first_clip(run: Path) -> str:
    """Return the path of a clip that the run has scored."""
    from whisper_peft.runs import TRANSCRIPTS, read_jsonl

    transcripts = read_jsonl(run / TRANSCRIPTS)
    return shown_path(transcripts[0]["audio"]) if transcripts else "AUDIO"


def check_lines(report: CheckReport, *, html: str | None = None) -> list[str]:
    """Write the report of a check: the sources, then the findings with their first clips."""
    lines = [_source_line(source) for source in report.sources]
    lines += [f"Note: {remark}" for remark in report.remarks]
    for finding in report.findings:
        lines += _finding_lines(finding)
    sums = []
    for kind, n_clips in (("error", report.errors), ("warning", report.warnings)):
        sums.append(f"{counted(n_clips, 'clip')} with {kind}s" if n_clips else f"no {kind}s")
    looked_at = "headers, texts and sound" if report.checked.audio else "headers and texts"
    if report.checked.model:
        looked_at += f", and the losses of {report.checked.model}"
    result = ", ".join(sums)
    lines += ["", f"{result[0].upper()}{result[1:]}. Looked at {looked_at} in {report.seconds:.0f} s."]
    if report.fixed is not None:
        lines.append(_fix_line(report.fixed))
    if html:
        lines.append(f"The page: {html}")
    return lines


def _source_line(source: ReportedSource) -> str:
    """Write the figures of a source in one line."""
    lengths = sorted(source.durations_s)
    rates = sorted(source.tokens_per_second)
    facts = [counted(source.clips, "clip")]
    facts.append(f"{source.hours:.2f} h" if source.hours >= 0.1 else f"{source.hours * 60:.1f} min")
    if source.speakers:
        facts.append(counted(source.speakers, "speaker"))
    if lengths:
        facts.append(f"{lengths[0]:.1f} to {lengths[-1]:.1f} s (median {lengths[len(lengths) // 2]:.1f})")
    if rates:
        facts.append(f"{rates[len(rates) // 2]:.0f} tokens a second")
    scripts = [name for name, share in source.scripts.items() if share > 0.1]
    facts.append(" and ".join(scripts))
    facts.append(", ".join(source.languages))
    return f"{source.name}: {', '.join(filter(None, facts))}"


def _finding_lines(finding: ReportedFinding) -> list[str]:
    """Write a finding with its reason, its remedy and its first clips."""
    mark = SEVERITY_MARKS[finding.severity]
    head = f"{mark} {finding.severity}: {finding.kind}, {counted(finding.count, 'clip')}"
    lines = ["", head, f"  {finding.why}."]
    n_shown = 1
    if finding.severity != "note":
        n_shown = MOST_SHOWN_CLIPS
        lines.append(f"  Remedy: {finding.remedy}.")
    return lines + [f"    {_clip_line(clip)}" for clip in finding.clips[:n_shown]]


def _clip_line(clip: ReportedClip) -> str:
    place = f" ({clip.place})" if clip.place else ""
    return f"{name_of(clip.name, clip.start_s, clip.end_s)}{place}: {clip.detail}"


def _fix_line(fixed: FixResult) -> str:
    """Write what --fix did."""
    manifests = ", ".join(shown_path(manifest) for manifest in fixed.manifests)
    line = (
        f"Wrote {fixed.kept:,} clips to {manifests}: {fixed.changed:,} changed, {fixed.left_out:,} left out, each "
        f"named in {shown_path(fixed.changes)}."
    )
    return line if fixed.kept else f"{line} Nothing is left to train on."


def plan_lines(plan: MemoryPlan) -> list[str]:
    """Write a plan as a table of the memory, with what follows from it."""
    kind = plan.mode
    if plan.quantize:
        kind += f", {plan.quantize} base"
    checkpointing = ", gradient checkpointing" if plan.gradient_checkpointing else ""
    lines = [
        f"{plan.device.name}: {plan.device.memory / GIB:.1f} GB, {plan.device.free / GIB:.1f} GB free",
        f"{plan.model}: {plan.parameters / 1e6:,.1f} M parameters, {plan.trainable / 1e6:,.1f} M trained "
        f"({kind}, {plan.precision}, {plan.window} windows{checkpointing})",
        f"  {'at the highest point':22}{'GB':>8}",
    ]
    for name, size in dataclasses.asdict(plan.memory).items():
        if size:
            lines.append(f"  {name:22}{size / GIB:>8.2f}")
    lines.append(f"  {'in all':22}{plan.memory.peak / GIB:>8.2f}  {'fits' if plan.fits else 'does not fit'}")
    micro_batches = f"Micro-batches of up to {plan.clips_at_once} of the {plan.batch_size} clips of a step"
    lines.append(f"{micro_batches}." if plan.clips else f"{micro_batches}; {ASSUMED_CLIPS}")
    if plan.hours_per_epoch:
        lines.append(f"An epoch of {plan.clips} clips takes {plan.hours_per_epoch:.2f} hours, as timed.")
    return lines


def matrix_lines(matrix: dict) -> list[str]:
    """Write the memory of every size in every mode, in GB: for the whole step at once, and for one clip at a time."""
    modes = list(next(iter(matrix["peaks"].values())))
    limit = matrix["gpu_memory"]
    head = (
        f"GB at the peak: {matrix['batch_size']} clips at once / one at a time; {matrix['precision']}, "
        f"{matrix['window']} windows"
    )
    if matrix["gradient_checkpointing"]:
        head += ", gradient checkpointing"
    if limit:
        head += f"; * fits {limit / GIB:.0f} GB"
    lines = [head, f"{'':16}" + "".join(f"{mode:>16}" for mode in modes)]
    for name, row in matrix["peaks"].items():
        cells = []
        for mode, peak in row.items():
            smallest = matrix["smallest"][name][mode]
            cells.append(f"{_size_cell(peak, limit)}/{_size_cell(smallest, limit)}")
        lines.append(f"{name:16}" + "".join(f"{cell:>16}" for cell in cells))
    if not matrix["clips"]:
        lines.append(ASSUMED_CLIPS.capitalize())
    return lines


def _size_cell(size: int, limit: int | None) -> str:
    """Write a size in GB, with a star if it fits."""
    star = "*" if limit and size <= limit else ""
    return f"{size / GIB:.1f}{star}"


def merge_lines(output: str, report: MergeReport) -> list[str]:
    """Write how close a merged model is to its adapter."""
    lines = [
        f"Merged into {output} ({report.dtype}), checked on {report.checked_on}.",
        f"  largest logit difference {report.logit_gap:.2e}, limit {report.logit_limit:.2e}",
        f"  transcripts that differ: {report.transcripts_differing} of {report.clips}",
    ]
    for pair in report.transcripts:
        lines += [f"    adapter: {pair['adapter']}", f"    merged:  {pair['merged']}"]
    if report.quantized is not None:
        gaps = report.quantized
        lines.append(
            f"  against the adapter on the {gaps.base} base it was trained on (no limit): largest logit difference "
            f"{gaps.logit_gap:.2e}, {gaps.transcripts_differing} transcripts differ; WER {gaps.adapter_wer:.1%} there, "
            f"{gaps.merged_wer:.1%} merged"
        )
    return lines


def demo_lines(facts: dict) -> list[str]:
    """Write where the page of a demo is."""
    beside = f", beside {facts['compare']}" if facts["compare"] else ""
    lines = [f"{facts['model']}{beside}: open {facts['url']}"]
    if facts["share_url"]:
        lines.append(f"For whoever has the link: {facts['share_url']}")
    return lines


def publish_lines(report: PublishReport, *, dry_run: bool) -> list[str]:
    """Write what was uploaded; of a dry run, the card and the files that would be."""
    if dry_run:
        lines = [report.card, f"Files for {report.repo}:"]
        return lines + [f"{file.size:>15,}  {file.name}" for file in report.files]
    kept = ", but for the card, which somebody has edited" if report.card_kept else ""
    return [f"Published {report.url} ({len(report.files)} files{kept}), commit {report.commit}."]


def first_comment(path: Path) -> str:
    """Return the first line of a recipe, which says what it is."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip("# ").strip()
