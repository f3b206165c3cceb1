"""The result of an evaluation, as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_peft.cli.lines import counted, name_of

if TYPE_CHECKING:
    from whisper_peft.evaluation.evaluation_result import EvaluationResult

# Recordings whose own scores are shown.
MOST_RECORDINGS = 5


def score_lines(result: EvaluationResult, output: str | None) -> list[str]:
    """Write the result of an evaluation."""
    language = f", language {result.language}" if result.language else ""
    seconds = result.seconds
    if result.recordings is not None:
        seconds -= result.recordings["seconds"]
    heard_by = f"{result.window} windows"
    if result.runtime is not None:
        heard_by = f"{result.runtime} ({result.precision})"
    lines = [f"{result.model} on {result.source}: {result.clips} clips{language}, {heard_by}, {seconds:.0f} s"]
    lines += _rate_lines(result.as_dict())
    loss = "" if result.token_loss is None else f"token loss {result.token_loss:.3f}; "
    lines.append(f"  {loss}normaliser: {result.normalizer}")
    if result.reached_limit:
        lines.append(f"  {result.reached_limit} transcripts reached the limit of {result.max_new_tokens} tokens")
    if result.left_out:
        named = f", named in {output}/left_out.jsonl" if output else ""
        lines.append(f"  {result.left_out} clips left out{named}")
    if result.recordings is not None:
        lines += _recording_lines(result.recordings)
    if output:
        lines.append(f"  transcripts: {output}/transcripts.jsonl")
    return lines


def _rate_lines(result: dict) -> list[str]:
    """Write the error rates with their intervals and counts as a table."""
    lines = [f"  {'':18}{'rate':>8}  {'95 % interval':>17}{'subst.':>8}{'delet.':>8}{'insert.':>8}"]
    names = {
        "wer": "WER",
        "cer": "CER",
        "wer_normalized": "WER, normalised",
        "cer_normalized": "CER, normalised",
    }
    for key, name in names.items():
        interval = result.get(f"{key}_interval")
        shown = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else ""
        counts = "".join(f"{result[f'{key}_{kind}']:>8}" for kind in ("substitutions", "deletions", "insertions"))
        lines.append(f"  {name:18}{result[key]:>8.1%}  {shown:>17}{counts}")
    return lines


def _recording_lines(recordings: dict) -> list[str]:
    """Write the scores of whole recordings: all together, the worst ones, and those that could not be scored."""
    lines = []
    if recordings["recordings"]:
        lines.append(
            f"{counted(recordings['recordings'], 'whole recording')}, decoded with times as transcribe does, "
            f"{recordings['seconds']:.0f} s"
        )
        lines += _rate_lines(recordings)
        lines.append(f"  {_long_form_facts(recordings)}")
        if recordings["reached_limit"]:
            n_recordings = counted(recordings["reached_limit"], "recording")
            lines.append(f"  {n_recordings} reached the limit on tokens in a window")
    each = recordings.get("each", [])
    if len(each) > 1:
        lines += _worst_lines(each)
    for failure in recordings["failed"]:
        lines.append(f"  not scored as a whole: {_recording_name(failure)}: {failure['error']}")
    return lines


def _worst_lines(each: list[dict]) -> list[str]:
    """Write the scores of the worst recordings."""
    worst = sorted(each, key=lambda recording: -recording["cer_normalized"])[:MOST_RECORDINGS]
    lines = ["  The worst:" if len(each) > len(worst) else "  Each, the worst first:"]
    for recording in worst:
        rate = f"CER, normalised {recording['cer_normalized']:.1%}"
        lines.append(f"    {_recording_name(recording)}: {rate}; {_long_form_facts(recording)}")
    return lines


def _recording_name(recording: dict) -> str:
    return name_of(recording["audio"], recording.get("start_s"), recording.get("end_s"))


def _long_form_facts(scores: dict) -> str:
    """Write in one line what text scores do not show."""
    share = ""
    if scores["speech_s"]:
        share = f" ({scores['uncovered_s'] / scores['speech_s']:.1%})"
    facts = [f"{scores['uncovered_s']:.1f} of {scores['speech_s']:.1f} s of speech without output{share}"]
    if scores["start_error_s"] is None:
        facts.append("no segments")
    else:
        facts.append(f"segments start {scores['start_error_s']:.2f} s off (median)")
    facts.append(counted(scores["loops"], "loop"))
    facts.append(counted(scores["empty_windows"], "empty window"))
    return ", ".join(facts)
