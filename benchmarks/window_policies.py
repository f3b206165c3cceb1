"""Which audio window training should use: error on 30 s windows against cost, on real Malayalam with the real base.

    python benchmarks/window_policies.py WORK           every missing run, in order; resumes a stopped run
                                                        (several processes share the runs: OMP_NUM_THREADS=1 for each)
    python benchmarks/window_policies.py WORK --table   only the table and the plot of the finished runs

Each run trains Whisper base under one policy, with 8 clips a step and without gradient checkpointing. It uses bf16
autocast if the CPU computes in bf16, and float32 elsewhere; its JSON file says which.

The model after the last step is scored, not the best checkpoint, so that all runs have equal steps. The score is the
teacher-forced token loss of each clip on 30 s windows in float32, on validation (140 clips). The winner and `full` are
also scored on test (91 clips). Differences to `full` are paired over clips, with 95 % bootstrap intervals. When a run
ends, its results are written to a JSON file in benchmarks/window_policies/. WORK holds the run folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

import click
import torch
from transformers import TrainerCallback

import whisper_peft
from whisper_peft.evaluation.generation import use_window
from whisper_peft.training.artefacts import load_weights

HERE = Path(__file__).parent
RESULTS = HERE / "window_policies"
POLICIES: dict[str, dict[str, object]] = {
    "full": {"features.window": "full"},
    "condensed": {"features.window": "condensed"},
    "tight": {"features.window": "tight"},
    "tight, last 15 % full": {"features.window": "tight", "features.full_last": 0.15},
    "tight, 15 % full at random": {"features.window": "tight", "features.full_share": 0.15},
    "tight + 3 s": {"features.window": "tight", "features.slack_s": 3.0},
    # Only for LoRA.
    "condensed, no dropout": {"features.window": "condensed", "lora.dropout": 0.0},
}
MODES = {
    "full": {"steps": 60, "train.learning_rate": 4e-5},
    "lora": {"steps": 200, "train.learning_rate": 1e-3},
}
WINNER, ADAPTERS_ONLY = "condensed", "condensed, no dropout"


def planned() -> list[tuple[str, str, int, int]]:
    """Return (mode, policy, seed, steps) of all runs, with the runs that tell most first."""
    runs, others = [], [policy for policy in POLICIES if policy not in ("full", WINNER)]
    for mode in ("full", "lora"):
        runs += [(mode, policy, 1, MODES[mode]["steps"]) for policy in ("full", WINNER, *others)]
        runs += equal_minutes(mode)
    for mode in ("full", "lora"):
        among = ("full", WINNER, ADAPTERS_ONLY)
        runs += [(mode, policy, seed, MODES[mode]["steps"]) for seed in (2, 3) for policy in among]
    return [run for run in runs if run[:2] != ("full", ADAPTERS_ONLY)]


def equal_minutes(mode: str) -> list[tuple[str, str, int, int]]:
    """Return a run with as many steps of full windows as fit into the minutes of the winner."""
    winner, full = load(mode, WINNER, 1, MODES[mode]["steps"]), load(mode, "full", 1, MODES[mode]["steps"])
    if not (winner and full):
        return []
    return [(mode, "full", 1, round(median(winner["step_s"]) * winner["steps"] / median(full["step_s"])))]


def name_of(mode: str, policy: str, seed: int, steps: int) -> str:
    words = policy.replace(" %", "").replace(",", "").replace("+ ", "").replace(" ", "-")
    return f"{mode}-{words}-seed{seed}-{steps}"


def load(mode: str, policy: str, seed: int, steps: int) -> dict | None:
    path = RESULTS / f"{name_of(mode, policy, seed, steps)}.json"
    return json.loads(path.read_text()) if path.exists() else None


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


class Clock(TrainerCallback):
    """Writes the seconds of each step to a file, with the loading of its data and without evaluation."""

    def __init__(self, path: Path):
        self.path, self.begun = path, None

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = self.begun or time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, "seconds": now - self.begun}) + "\n")
        self.begun = None if control.should_evaluate else now


@contextlib.contextmanager
def claimed(path: Path):
    """Claim a run for this process; the value is False if another process has claimed the run."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def token_losses(run: Path, source: Path, window: str, steps: int) -> dict:
    """Return the summed token loss and the number of tokens of each clip, in float32 and after the last step."""
    model, preparation, _ = whisper_peft.load_model(run)
    load_weights(model, run / "checkpoints" / f"checkpoint-{steps}")
    dataset = whisper_peft.SpeechDataset(whisper_peft.load_source(str(source)), preparation, language="ml")
    with use_window(model, window) as slack_s:
        found = whisper_peft.transcribe_rows(
            model, dataset, range(len(dataset)), slack_s=slack_s, batch_size=8, max_new_tokens=0, workers=2
        )
    return {
        "sums": [round(one.loss_sum, 5) for one in found.transcripts],
        "tokens": [one.loss_tokens for one in found.transcripts],
    }


def one_run(work: Path, shared: Path, mode: str, policy: str, seed: int, steps: int) -> None:
    name = name_of(mode, policy, seed, steps)
    run, speech, clock = work / name, shared / "data" / "malayalam", work / f"{name}.steps.jsonl"
    print(f"== {name}", flush=True)
    if not (run / "run.json").exists():
        changes = {
            "model.name": str(shared / "models" / "whisper-base"),
            "model.language": "ml",
            "train.mode": mode,
            "data.train": [str(speech / "train")],
            "data.eval": str(speech / "validation"),
            "train.steps": steps,
            "train.batch_size": 8,
            "train.seed": seed,
            "train.keep_checkpoints": 1,
            "train.micro_batch_size": 4,
            "train.learning_rate": MODES[mode]["train.learning_rate"],
            "evaluate.every_steps": max(10, steps // 4),
            "evaluate.max_clips": 8,
            "evaluate.compare_clips": 0,
            "evaluate.best_metric": "loss",
            **POLICIES[policy],
        }
        whisper_peft.train(changes=changes, output=run, callbacks=[Clock(clock)], say=print)
    elif not json.loads((run / "run.json").read_text()).get("finished"):
        whisper_peft.train(resume=run, callbacks=[Clock(clock)], say=print)
    facts = json.loads((run / "run.json").read_text())
    result = {
        "mode": mode,
        "policy": policy,
        "seed": seed,
        "steps": facts["steps"],
        "best_step": facts["best_step"],
        "versions": facts["versions"],
        "threads": torch.get_num_threads(),
        "precision": whisper_peft.load_recipe(run).train.precision,
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "padding_share": facts["padding_share"],
        "step_s": [round(json.loads(line)["seconds"], 3) for line in clock.read_text().splitlines()],
        "train_loss": [
            (line["step"], round(line["loss"], 4))
            for line in map(json.loads, (run / "metrics.jsonl").open())
            if "loss" in line
        ],
        "validation": token_losses(run, speech / "validation", "full", steps),
    }
    if policy in ("full", WINNER) and seed == 1:
        result["test"] = token_losses(run, speech / "test", "full", steps)
    if policy != "full" and seed == 1:
        own = str(POLICIES[policy]["features.window"])
        result["validation_own_window"] = token_losses(run, speech / "validation", own, steps)
    if mode == "lora" and seed == 1 and policy in ("full", WINNER, "tight"):
        report = whisper_peft.evaluate(run / "checkpoints" / f"checkpoint-{steps}", speech / "test", language="ml")
        kept = ("clips", "wer", "cer", "wer_interval", "cer_interval", "reached_limit", "window")
        result["test_text"] = {key: getattr(report, key) for key in kept}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


def mean_loss(losses: dict) -> float:
    return sum(losses["sums"]) / sum(losses["tokens"])


def table() -> None:
    for split in ("validation", "test"):
        for mode in MODES:
            rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{mode}-*.json"))]
            rows = [row for row in rows if split in row]
            if rows:
                print(f"\n{mode}, {split}: token loss on 30 s windows; difference to full at equal steps and seed")
            for row in sorted(rows, key=lambda row: (row["steps"], row["seed"], list(POLICIES).index(row["policy"]))):
                line = f"  {row['policy']:28}{row['steps']:>5} steps  seed {row['seed']}"
                line += f"  {median(row['step_s']):6.2f} s/step  {mean_loss(row[split]):.4f}"
                other = load(mode, WINNER if row["policy"] == ADAPTERS_ONLY else "full", row["seed"], row["steps"])
                if row["policy"] != "full" and other:
                    low, high = whisper_peft.paired_loss_interval(
                        other[split]["sums"], row[split]["sums"], row[split]["tokens"]
                    )
                    line += f"  {mean_loss(row[split]) - mean_loss(other[split]):+.4f} ({low:+.4f} to {high:+.4f})"
                    line += f" to {WINNER}" if row["policy"] == ADAPTERS_ONLY else ""
                winner = load(mode, WINNER, row["seed"], MODES[mode]["steps"])
                if row["policy"] == "full" and row["steps"] != MODES[mode]["steps"] and winner and split in winner:
                    low, high = whisper_peft.paired_loss_interval(
                        row[split]["sums"], winner[split]["sums"], row[split]["tokens"]
                    )
                    line += f"  {WINNER} in the same minutes: {mean_loss(winner[split]) - mean_loss(row[split]):+.4f}"
                    line += f" ({low:+.4f} to {high:+.4f})"
                print(line)


COLOURS = ("#444444", "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")


def plot(path: Path) -> None:
    """Plot the training loss of each policy against steps and against minutes, for seed 1, as an SVG."""
    panels, legend = [], {}
    for row, mode in enumerate(MODES):
        found = [load(mode, policy, 1, MODES[mode]["steps"]) for policy in POLICIES]
        found = [one for one in found if one]
        for column, unit in enumerate(("steps", "minutes")):
            lines = []
            for one in found:
                at = [sum(one["step_s"][:step]) / 60 if unit == "minutes" else step for step, _ in one["train_loss"]]
                lines.append((one["policy"], at, [loss for _, loss in one["train_loss"]]))
                legend[one["policy"]] = COLOURS[list(POLICIES).index(one["policy"])]
            if lines:
                panels.append(panel(lines, f"{mode}: training loss, by {unit}", 60 + 400 * column, 40 + 290 * row))
    names = "".join(
        f'<text x="{60 + 200 * (number % 4)}" y="{625 + 16 * (number // 4)}" fill="{colour}">{name}</text>'
        for number, (name, colour) in enumerate(legend.items())
    )
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 655" font-family="sans-serif" font-size="11">'
        f'<rect width="860" height="655" fill="white"/>{"".join(panels)}{names}</svg>\n'
    )


def panel(lines: list[tuple], title: str, left: float, top: float, width: float = 340, height: float = 210) -> str:
    """Draw one pair of axes with a line for each policy."""
    far = max(max(at) for _, at, _ in lines)
    high = max(max(losses) for _, _, losses in lines)
    parts = [
        f'<text x="{left}" y="{top - 8}" font-weight="bold">{title}</text>',
        f'<path d="M{left},{top} v{height} h{width}" fill="none" stroke="#888"/>',
        f'<text x="{left + width}" y="{top + height + 14}" text-anchor="end">{far:.0f}</text>',
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{high:.1f}</text>',
        f'<text x="{left - 4}" y="{top + height}" text-anchor="end">0</text>',
    ]
    for policy, at, losses in lines:
        points = " ".join(
            f"{left + width * x / far:.1f},{top + height * (1 - y / high):.1f}" for x, y in zip(at, losses, strict=True)
        )
        colour = COLOURS[list(POLICIES).index(policy)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return "".join(parts)


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--table", "only_table", is_flag=True)
@click.option("--only", help="Of the runs, those whose name begins so.", default="")
def main(work: Path, only_table: bool, only: str) -> None:
    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    going_on = not only_table
    while going_on:
        going_on = False
        for run in planned():
            if load(*run) is not None or not name_of(*run).startswith(only):
                continue
            with claimed(work / f"{name_of(*run)}.lock") as ours:
                if ours and load(*run) is None:
                    one_run(work, shared, *run)
                    going_on = True
                    # The plan may depend on the run that has just ended.
                    break
    table()
    plot(HERE.parent / "docs" / "windows.svg")


if __name__ == "__main__":
    main()
