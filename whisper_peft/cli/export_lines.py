"""The result of `export`, as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_peft.cli.lines import counted, shown_path

if TYPE_CHECKING:
    from whisper_peft.delivery.exporting.report import ExportReport, SideScores, SoundComparison

# Outputs that differ and are shown; the report has all of them.
MOST_SHOWN_TEXTS = 3


def export_lines(output: str, report: ExportReport) -> list[str]:
    """Write what was exported, and the figures of the runtime beside those of transformers."""
    lines = [
        f"Exported to {shown_path(output)}: {report.format}, {report.quantization}, {report.size / 1e6:,.1f} MB.",
    ]
    if not report.proved:
        lines.append(f"  not proved: {report.runtime} is not installed")
    else:
        runtime = f"{report.runtime} ({report.runtime_version})"
        lines.append(f"  proved in {runtime}, default decoding, on {report.checked_on}")
    for comparison in report.comparisons:
        lines += _comparison_lines(comparison, report.runtime)
    if report.encoder_gap is not None:
        lines.append(f"  largest difference of an encoder output: {report.encoder_gap:.1e} of the largest output")
    return lines + [f"  {note}" for note in report.notes]


def _comparison_lines(comparison: SoundComparison, runtime: str) -> list[str]:
    low, high = comparison.cer_difference
    lines = [
        f"  {counted(comparison.number, comparison.sound[:-1])}, {comparison.sound_seconds:.0f} s",
        f"    {'':16}{'WER':>8}{'CER':>8}{'empty':>7}{'loops':>7}{'early':>7}{'× real time':>13}",
        _side_line("transformers", comparison.transformers),
        _side_line(runtime, comparison.runtime),
        f"    CER difference {100 * comparison.cer_gap:+.1f} points (95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}); {comparison.differing} of {comparison.number} transcripts differ",
    ]
    for texts in comparison.texts[:MOST_SHOWN_TEXTS]:
        lines += [f"      transformers: {texts['transformers']}", f"      {runtime}: {texts['runtime']}"]
    return lines


def _side_line(name: str, side: SideScores) -> str:
    return (
        f"    {name:16}{side.wer:8.1%}{side.cer:8.1%}{side.empty:7}{side.looping:7}{side.ended_early:7}"
        f"{side.real_time_factor:13.3f}"
    )
