"""The main job on a real checkpoint: train Whisper base on synthetic Hindi speech, with LoRA or in full, and merge.

    python benchmarks/hindi_tts.py lora WORK     (or full, or full --steps 40 …)

Needs the shared folder (WHISPER_PEFT_SHARED, default ../shared). The run folder stays in WORK, and a stopped run
resumes when the script is started again. At its end the script writes the figures to
benchmarks/hindi_tts_<mode>.json.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import torch

import whisper_peft

HERE = Path(__file__).parent


@click.command()
@click.argument("mode", type=click.Choice(["lora", "full"]))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--steps", default=100, show_default=True)
@click.option("--precision", default="bf16", show_default=True, help="bf16 autocast pays on CPUs with avx512_bf16.")
@click.option("--window", default="condensed", show_default=True)
def main(mode: str, work: Path, steps: int, precision: str, window: str) -> None:
    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    speech, run = shared / "data" / "hindi_tts", work / mode
    if (run / "run.json").exists():
        facts = json.loads((run / "run.json").read_text())
        if not facts.get("finished"):
            facts = whisper_peft.train(resume=run, say=print, progress=True).facts
    else:
        changes = {
            "model.name": str(shared / "models" / "whisper-base"),
            "model.language": "hi",
            "train.mode": mode,
            "data.train": [str(speech / "train")],
            "data.eval": str(speech / "validation"),
            "data.test": str(speech / "test"),
            "train.steps": steps,
            "train.batch_size": 8,
            "train.precision": precision,
            "features.window": window,
            "evaluate.every_steps": max(1, steps // 2),
            "evaluate.max_clips": 32,
        }
        facts = whisper_peft.train(changes=changes, output=run, say=print, progress=True).facts
    merges = {}
    if mode == "lora":
        for dtype in ("float32", "float16"):
            out = work / f"{mode}-merged-{dtype}"
            if not out.exists():
                whisper_peft.merge(run, out, dtype=dtype, say=print)
            report = json.loads((out / "merge_report.json").read_text())
            kept = ("dtype", "clips", "logit_gap", "logit_limit", "unmerged_logit_gap", "transcripts_differing")
            merges[dtype] = {key: report[key] for key in kept}
    figures = {
        "data": "hindi_tts (synthetic): 524 train, 70 validation, 90 test clips",
        "model": "whisper-base",
        "mode": mode,
        "precision": precision,
        "gradient_checkpointing": False,
        "window": window,
        "batch_size": 8,
        "threads": torch.get_num_threads(),
        "merge": merges,
        **{key: facts[key] for key in ("device", "steps", "best_step", "train_seconds", "seconds", "versions")},
        **{
            key: {
                name: facts[key][name]
                for name in (
                    "clips",
                    "wer",
                    "cer",
                    "wer_normalized",
                    "cer_normalized",
                    "token_loss",
                    "reached_limit",
                    "max_new_tokens",
                )
            }
            for key in ("before", "after", "final")
        },
    }
    (HERE / f"hindi_tts_{mode}.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(figures, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
