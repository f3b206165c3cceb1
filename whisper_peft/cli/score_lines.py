"""What an evaluation came to, as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_peft.cli.lines import counted, name_of

if TYPE_CHECKING:
    from whisper_peft.evaluation.evaluation_result import EvaluationResult

MOST_RECORDINGS = 5  # that are shown by themselves


def score_lines(result: EvaluationResult, output: str | None) -> list[str]:
    """The table of an evaluation."""
    language = f", language {result.language}" if result.language else ""
    seconds = result.seconds
    if result.recordings is not None:
        seconds -= result.recordings["seconds"]
    lines = [
        f"{result.model} on {result.source}: {result.clips} clips{language}, {result.window} windows, {seconds:.0f} s"
    ]
    lines += _rate_lines(result.as_dict())
    lines.append(f"  token loss {result.token_loss:.3f}; normaliser: {result.normalizer}")
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
    """The error rates, their intervals and counts as a table."""
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


def _recording_lines(found: dict) -> list[str]:
    """The scores of whole recordings: all together, the worst ones, and those that could not be scored."""
    lines = []
    if found["recordings"]:
        lines.append(
            f"{counted(found['recordings'], 'whole recording')}, decoded with times as transcribe does, "
            f"{found['seconds']:.0f} s"
        )
        lines += _rate_lines(found)
        lines.append(f"  {_long_form_facts(found)}")
        if found["reached_limit"]:
            lines.append(f"  {counted(found['reached_limit'], 'recording')} reached the limit on tokens in a window")
    each = found.get("each", [])
    if len(each) > 1:
        worst = sorted(each, key=lambda recording: -recording["cer_normalized"])[:MOST_RECORDINGS]
        lines.append("  The worst:" if len(each) > len(worst) else "  Each, the worst first:")
        for recording in worst:
            lines.append(
                f"    {name_of({**recording, 'name': recording['audio']})}: CER, normalised "
                f"{recording['cer_normalized']:.1%}; {_long_form_facts(recording)}"
            )
    for failure in found["failed"]:
        name = name_of({**failure, "name": failure["audio"]})
        lines.append(f"  not scored as a whole: {name}: {failure['error']}")
    return lines


def _long_form_facts(scores: dict) -> str:
    """What text scores hide, in one line."""
    share = f" ({scores['uncovered_s'] / scores['speech_s']:.1%})" if scores["speech_s"] else ""
    facts = [f"{scores['uncovered_s']:.1f} of {scores['speech_s']:.1f} s of speech without output{share}"]
    if scores["start_error_s"] is None:
        facts.append("no segments")
    else:
        facts.append(f"segments start {scores['start_error_s']:.2f} s off (median)")
    facts.append(counted(scores["loops"], "loop"))
    facts.append(counted(scores["empty_windows"], "empty window"))
    return ", ".join(facts)
