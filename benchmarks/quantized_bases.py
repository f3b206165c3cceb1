"""How much error an 8-bit or 4-bit base adds to an adapter, on 30 s windows of real Malayalam with the real base.

    python benchmarks/quantized_bases.py WORK           every missing run; resumes a stopped run
    python benchmarks/quantized_bases.py WORK --table   only the table of the finished runs

Each run trains LoRA (rank 32, all linear layers, learning rate 1e-3) for 100 steps of 8 clips, with condensed windows,
in the best precision of this machine and without gradient checkpointing. After its last step, the adapter is scored on
the base that it was trained on. An adapter of a quantised base is also scored as merged into the unquantised base.

The scores are the teacher-forced token loss of each of 91 test clips, and the error rates of the transcripts. The
95 % bootstrap intervals of the loss are paired over clips against the run on the full-precision base. On a CPU,
bitsandbytes computes otherwise than on a GPU (docs/memory.md), so figures of a CPU say nothing about a GPU.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
from notebook_vs_whisper_peft import machine
from window_policies import claimed, mean_loss

import whisper_peft

HERE = Path(__file__).parent
RESULTS = HERE / "quantized_bases"
KINDS = (None, "8bit", "4bit")
STEPS = 100


def losses_and_rates(model: Path, source: Path, quantize: str) -> dict:
    """Return the token loss of each clip and the error rates of all clips, on full 30 s windows."""
    loaded, preparation, _ = whisper_peft.load_model(model, quantize=quantize)
    dataset = whisper_peft.SpeechDataset(whisper_peft.load_source(str(source)), preparation, language="ml")
    transcripts = whisper_peft.transcribe_rows(
        loaded, dataset, range(len(dataset)), max_new_tokens=300, stop_loops=True, workers=2
    ).transcripts
    rates = whisper_peft.score(
        [dataset.text(transcript.row) for transcript in transcripts], [transcript.text for transcript in transcripts]
    )
    return {
        "sums": [round(transcript.loss_sum, 5) for transcript in transcripts],
        "tokens": [transcript.loss_tokens for transcript in transcripts],
        "wer": rates["wer"],
        "cer": rates["cer"],
        "looped": sum(transcript.reached_limit for transcript in transcripts),
    }


def one_run(work: Path, shared: Path, quantize: str | None) -> None:
    name = quantize or "full-precision"
    run, speech = work / name, shared / "data" / "malayalam"
    print(f"== {name}", flush=True)
    if not (run / "run.json").exists():
        changes = {
            "model.name": str(shared / "models" / "whisper-base"),
            "model.language": "ml",
            "train.quantize": quantize,
            "data.train": [str(speech / "train")],
            "data.eval": str(speech / "validation"),
            "train.steps": STEPS,
            "train.learning_rate": 1e-3,
            "train.seed": 1,
            "evaluate.every_steps": STEPS // 4,
            "evaluate.max_clips": 8,
            "evaluate.compare_clips": 0,
            "evaluate.best_metric": "loss",
            "train.keep_checkpoints": 1,
        }
        whisper_peft.train(changes=changes, output=run, say=print)
    elif not json.loads((run / "run.json").read_text()).get("finished"):
        whisper_peft.train(resume=run, say=print)
    facts, last = json.loads((run / "run.json").read_text()), run / "checkpoints" / f"checkpoint-{STEPS}"
    result = {
        "machine": machine(),
        "quantize": quantize,
        "precision": whisper_peft.load_recipe(run).train.precision,
        "step_s": facts["train_seconds"] / facts["steps"],
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "as trained": losses_and_rates(last, speech / "test", quantize or "none"),
    }
    if quantize:
        result["merged"] = losses_and_rates(last, speech / "test", "none")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


def table() -> None:
    pages = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    full = pages.get("full-precision")
    print(f"{'base':16}{'judged on':24}{'token loss':>11}{'difference (95 %)':>30}{'CER':>8}{'WER':>8}")
    for name, page in sorted(pages.items(), key=lambda pair: KINDS.index(pair[1]["quantize"])):
        device = f"{page['machine']['device'].split()[0]}, {page['precision']}"
        for judged in ("as trained", "merged"):
            if judged not in page:
                continue
            row, between = page[judged], ""
            if full and page is not full:
                low, high = whisper_peft.paired_loss_interval(full["as trained"]["sums"], row["sums"], row["tokens"])
                apart = mean_loss(row) - mean_loss(full["as trained"])
                between = f"{apart:+.4f} ({low:+.4f} to {high:+.4f})"
            where = "unquantised base" if judged == "merged" else "the base it knew"
            print(
                f"{name:16}{where:24}{mean_loss(row):>11.4f}{between:>30}{row['cer']:>8.1%}{row['wer']:>8.1%}  {device}"
            )


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--table", "only_table", is_flag=True)
def main(work: Path, only_table: bool) -> None:
    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    for quantize in () if only_table else KINDS:
        name = quantize or "full-precision"
        with claimed(work / f"{name}.lock") as ours:
            if ours and not (RESULTS / f"{name}.json").exists():
                one_run(work, shared, quantize)
    table()


if __name__ == "__main__":
    main()
