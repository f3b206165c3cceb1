"""The results of the commands, as lines for people."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft.files import printable
from whisper_peft.model.devices import GIB

if TYPE_CHECKING:
    from whisper_peft.checking.report import CheckReport, ReportedSource
    from whisper_peft.delivery.merging import MergeReport
    from whisper_peft.delivery.publishing import PublishReport
    from whisper_peft.training.planning import MemoryPlan


def transcript_line(transcript: dict, *, named: bool) -> str:
    """A transcript as a line, after the name of its recording where there are several."""
    if not named:
        return transcript["text"]
    return f"{printable(shown_path(transcript['audio']))}: {transcript['text']}"


METRIC_NAMES = {"cer_normalized": "normalised CER"}


def train_lines(result) -> list[str]:
    """What a run came to, and what to do next."""
    facts, shown = result.facts, shown_path(result.run)
    lines = [f"Trained {facts['steps']} steps in {facts['train_seconds'] / 60:.1f} minutes; best: step "
             f"{facts['best_step']} (by {METRIC_NAMES.get(facts['best_metric'], facts['best_metric'])} on the eval "
             "clips)."]  # fmt: skip
    if facts.get("left_out"):
        lines.append(f"Left out: {facts['left_out']} clips, each named in {shown}/left_out.jsonl.")
    before, after, final = facts.get("before"), facts.get("after"), facts.get("final")
    if before and after:
        what = "test" if after["split"] == "test" else "eval (the selection set, optimistic)"
        lines.append(f"On {after['clips']} {what} clips:")
        figures = {"WER": "wer", "CER": "cer"}
        if facts["best_metric"] == "cer_normalized":  # of a script without spaces the others mean little
            figures["CER norm."] = "cer_normalized"
        lines.append(
            f"  {'':8}" + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in figures) + f"{'token loss':>12}"
        )
        for name, row in (("before", before), ("after", after)):
            rates = "".join(f"{row[key]:>{max(9, len(title) + 2)}.1%}" for title, key in figures.items())
            lines.append(f"  {name:8}{rates}{row['token_loss']:>12.3f}")
    if final and (not after or final["clips"] != after["clips"]):
        lines.append(f"Whole {final['split']} set, {final['clips']} clips: WER {final['wer']:.1%}, "
                     f"CER {final['cer']:.1%}.")  # fmt: skip
    if final and final["reached_limit"]:
        lines.append(f"{final['reached_limit']} transcripts reached the generation limit.")
    lines.append("Next:")
    data = _data_of(result.run)
    source = data.test or data.eval  # a held-out tenth is no source of its own, and the rest was learnt from
    named = (("audio-column", data.audio_column), ("text-column", data.text_column), ("times", data.times))
    columns = "".join(f" --{option} {value}" for option, value in named if value)
    if source:
        lines.append(f"  whisper-peft evaluate {shown} {shown_path(source)}{columns}")
    if facts["mode"] == "lora":
        lines.append(f"  whisper-peft merge {shown} {shown}-merged")
    lines.append(f"  whisper-peft transcribe {shown} {_first_clip(result.run)}")
    return lines


def _data_of(run):
    from whisper_peft.recipe_files import load_recipe

    return load_recipe(run / "recipe.yaml").data


def _first_clip(run) -> str:
    from whisper_peft.runs import TRANSCRIPTS, read_jsonl

    scored = read_jsonl(run / TRANSCRIPTS)
    return shown_path(scored[0]["audio"]) if scored else "AUDIO"


def shown_path(path: object) -> str:
    """A path as a person would type it here."""
    text = os.path.relpath(str(path)) if os.path.isabs(str(path)) else str(path)
    return str(path) if text.startswith("../..") else text


MOST_SHOWN = 3  # clips of a finding
MARKS = {"error": "✕", "warning": "!", "note": "·"}


def check_lines(report: CheckReport, *, html: str | None = None) -> list[str]:
    """What a check found: the sources in a line each, the findings with their first clips."""
    lines = [_source_line(one) for one in report.sources]
    lines += [f"Note: {remark}" for remark in report.remarks]
    for one in report.findings:
        head = f"{MARKS[one.severity]} {one.severity}: {one.kind}, {counted(one.count, 'clip')}"
        lines += ["", head, f"  {one.why}."]
        if one.severity != "note":
            lines.append(f"  Remedy: {one.remedy}.")
        for clip in one.clips[: MOST_SHOWN if one.severity != "note" else 1]:
            place = f" ({clip.place})" if clip.place else ""
            lines.append(f"    {name_of(clip.as_dict())}{place}: {clip.detail}")
    sums = []
    for kind, clips in (("error", report.errors), ("warning", report.warnings)):
        sums.append(f"{counted(clips, 'clip')} with {kind}s" if clips else f"no {kind}s")
    said = ", ".join(sums)
    checked = report.checked
    how = "headers, texts and sound" if checked.audio else "headers and texts"
    how += f", and what {checked.model} makes of them" if checked.model else ""
    lines += ["", f"{said[0].upper()}{said[1:]}. Looked at {how} in {report.seconds:.0f} s."]
    if fixed := report.fixed:
        lines.append(
            f"Wrote {fixed.kept:,} clips to {', '.join(map(shown_path, fixed.manifests))}: {fixed.changed:,} "
            f"changed, {fixed.left_out:,} left out, each named in {shown_path(fixed.changes)}."
            + ("" if fixed.kept else " Nothing is left to train on.")
        )
    return lines + ([f"The page: {html}"] if html else [])


def name_of(clip: dict) -> str:
    """Name a clip by its file as a person would type it here, and by its piece of the file."""
    piece = f" {clip['start_s']:.2f}-{clip['end_s']:.2f} s" if clip.get("end_s") is not None else ""
    return shown_path(clip["name"]) + piece


def _source_line(one: ReportedSource) -> str:
    lengths, rates = sorted(one.durations_s), sorted(one.tokens_per_second)
    facts = [counted(one.clips, "clip")]
    facts.append(f"{one.hours:.2f} h" if one.hours >= 0.1 else f"{one.hours * 60:.1f} min")
    if one.speakers:
        facts.append(counted(one.speakers, "speaker"))
    if lengths:
        facts.append(f"{lengths[0]:.1f} to {lengths[-1]:.1f} s (median {lengths[len(lengths) // 2]:.1f})")
    if rates:
        facts.append(f"{rates[len(rates) // 2]:.0f} tokens a second")
    facts += [" and ".join(name for name, share in one.scripts.items() if share > 0.1), ", ".join(one.languages)]
    return f"{one.name}: {', '.join(filter(None, facts))}"


def counted(count: int, word: str) -> str:
    """Count things in words: "1 clip", "2 clips"."""
    return f"{count:,} {word}{'s' * (count != 1)}"


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
    if plan.clips:
        lines.append(f"{micro_batches}.")
    else:
        lines.append(f"{micro_batches}; no clips to look at: 15 s with 15 tokens a second assumed.")
    if plan.hours_per_epoch:
        lines.append(f"An epoch of {plan.clips} clips takes {plan.hours_per_epoch:.2f} hours, as timed.")
    return lines


def matrix_lines(found: dict) -> list[str]:
    """Every size against every mode, in GB: the whole step at once, and one clip at a time."""
    modes = list(next(iter(found["peaks"].values())))
    limit = found["gpu_memory"]
    lines = [
        f"GB at the peak: {found['batch_size']} clips at once / one at a time; {found['precision']}, {found['window']} "
        "windows" + (", gradient checkpointing" if found["gradient_checkpointing"] else "")
        + (f"; * fits {limit / GIB:.0f} GB" if limit else ""),
        f"{'':16}" + "".join(f"{mode:>16}" for mode in modes),
    ]  # fmt: skip
    for name, row in found["peaks"].items():
        cells = []
        for mode, peak in row.items():
            pair = [peak, found["smallest"][name][mode]]
            cells.append("/".join(f"{size / GIB:.1f}{'*' if limit and size <= limit else ''}" for size in pair))
        lines.append(f"{name:16}" + "".join(f"{cell:>16}" for cell in cells))
    if not found["clips"]:
        lines.append("No clips to look at: 15 s with 15 tokens a second assumed.")
    return lines


def merge_lines(output: str, report: MergeReport) -> list[str]:
    """The gaps of a merge."""
    lines = [
        f"Merged into {output} ({report.dtype}), checked on {report.checked_on}.",
        f"  largest logit difference {report.logit_gap:.2e}, limit {report.logit_limit:.2e}",
        f"  transcripts that differ: {report.transcripts_differing} of {report.clips}",
    ]
    for pair in report.transcripts:
        lines += [f"    adapter: {pair['adapter']}", f"    merged:  {pair['merged']}"]
    if found := report.quantized:
        lines.append(
            f"  against the adapter on the {found.base} base it was trained on (no limit): largest logit difference "
            f"{found.logit_gap:.2e}, {found.transcripts_differing} transcripts differ; WER "
            f"{found.adapter_wer:.1%} there, {found.merged_wer:.1%} merged"
        )
    return lines


def demo_lines(facts: dict) -> list[str]:
    """Where the page is."""
    beside = f", beside {facts['compare']}" if facts["compare"] else ""
    shared = [f"For whoever has the link: {facts['share_url']}"] if facts["share_url"] else []
    return [f"{facts['model']}{beside}: open {facts['url']}", *shared]


def publish_lines(report: PublishReport, *, dry_run: bool) -> list[str]:
    """What went up, or would."""
    if not dry_run:
        kept = ", but for the card, which somebody has edited" if report.card_kept else ""
        return [f"Published {report.url} ({len(report.files)} files{kept}), commit {report.commit}."]
    lines = [report.card, f"Files for {report.repo}:"]
    return lines + [f"{file.size:>15,}  {file.name}" for file in report.files]


def first_comment(path: Path) -> str:
    """What a recipe says of itself."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.lstrip("# ").strip()
