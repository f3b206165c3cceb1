"""Peak memory of training, predicted and measured, beside the settings of the notebook: real base, real Malayalam.

    python benchmarks/memory.py                  every missing case, on the device of this machine in its best precision
    python benchmarks/memory.py --precision fp32

Each case runs in a process of its own, with two steps and an evaluation of 8 clips. On a CPU, the figure is the growth
of peak resident memory above what the process held after its imports. On a GPU, it is the peak of the allocator.
Prediction and measurement use the same 2 × batch clips. The settings of the notebook are all weights, 30 s windows,
gradient checkpointing and the trainer of transformers, with fp16 on a GPU and float32 on a CPU. Needs the shared
folder. Writes memory_<device>_<precision>.json beside itself.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from notebook_vs_whisper_peft import machine, notebook, subset

from whisper_peft.model.devices import best_precision

HERE = Path(__file__).parent
KINDS = {"full": ("full", None), "lora": ("lora", None), "8bit": ("lora", "8bit"), "4bit": ("lora", "4bit")}
STEPS, EVALUATED = 2, 8


def cases() -> list[dict]:
    """Return all cases, the notebook's first and then ours with the quickest first."""
    grid = itertools.product((4, 8), ("tight", "full"), (True, False), KINDS)
    ours = [
        {"kind": kind, "window": window, "batch": batch, "checkpointing": checkpointing}
        for batch, window, checkpointing, kind in grid
    ]
    return [*({"kind": "notebook", "window": "full", "batch": batch, "checkpointing": True} for batch in (4, 8)), *ours]


def name_of(case: dict) -> str:
    kept = "checkpointing" if case["checkpointing"] else ""
    return " ".join(filter(None, [case["kind"], case["window"], f"batch {case['batch']}", kept]))


def resident_bytes() -> int:
    """Return the resident memory of the process now."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def measure(case: dict, shared: Path) -> dict:
    """Measure one case in a fresh process: predicted and measured bytes."""
    # Unused names are imported here because the memory of imports must not count.
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch
    from transformers import Seq2SeqTrainer  # noqa: F401

    import whisper_peft
    from whisper_peft.training import trainer  # noqa: F401
    from whisper_peft.training.facts import peak_memory_bytes

    gpu, speech = torch.cuda.is_available(), shared / "data" / "malayalam"
    base = shared / "models" / "whisper-base"
    with tempfile.TemporaryDirectory() as work:
        train = subset(speech / "train", STEPS * case["batch"], Path(work), "train")
        test = subset(speech / "test", EVALUATED, Path(work), "test")
        before = 0 if gpu else resident_bytes()
        if case["kind"] == "notebook":
            settings = {
                "model": str(base),
                "language": "ml",
                "steps": STEPS,
                "batch_size": case["batch"],
                "workers": 0,
                "train": train,
                "test": test,
                "gpu": gpu,
            }
            return {"measured": notebook(settings, Path(work))["peak_memory_bytes"] - before}
        mode, quantize = KINDS[case["kind"]]
        changes = {
            "model.name": str(base),
            "model.language": "ml",
            "data.train": [train],
            "data.eval": test,
            "train.mode": mode,
            "train.quantize": quantize,
            "train.steps": STEPS,
            "train.batch_size": case["batch"],
            "train.micro_batch_size": case["batch"],
            "train.precision": case["precision"],
            "train.workers": 0,
            "train.gradient_checkpointing": case["checkpointing"],
            "features.window": case["window"],
            "evaluate.every_steps": STEPS,
            "evaluate.compare_clips": 0,
        }
        result = whisper_peft.train(changes=changes, output=Path(work) / "run", force=True)
        peak = peak_memory_bytes()
        found = whisper_peft.plan(result.run, changes={"train.micro_batch_size": case["batch"]})
        predicted = found.memory.peak - (found.memory.context if gpu else 0)
        return {
            "measured": peak - before,
            "predicted": predicted,
            "parts": found.as_dict()["memory"],
            "precision": found.precision,
        }


@click.command()
@click.option("--precision", default="auto", show_default=True)
@click.option("--case", hidden=True)
def main(precision: str, case: str | None) -> None:
    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    if case:
        print("RESULT " + json.dumps(measure(json.loads(case), shared)))
        return
    here = machine()
    device = "gpu" if not here["device"].startswith("CPU") else "cpu"
    precision = best_precision() if precision == "auto" else precision
    path = HERE / f"memory_{device}_{precision}.json"
    page = json.loads(path.read_text()) if path.exists() else {"machine": here, "cases": {}}
    for one in cases():
        name = name_of(one)
        if name not in page["cases"]:
            command = [sys.executable, __file__, "--case", json.dumps({**one, "precision": precision})]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            page["cases"][name] = {**one, **json.loads(done.stdout.rpartition("RESULT ")[2])}
            path.write_text(json.dumps(page, indent=1) + "\n")
        row = page["cases"][name]
        beside = page["cases"][f"notebook full batch {one['batch']} checkpointing"]["measured"]
        line = f"{name:42}{row['measured'] / 1e9:>7.2f} GB {row['measured'] / beside:>5.0%} of the notebook's"
        if "predicted" in row:
            off = row["predicted"] / row["measured"] - 1
            line += f"; predicted {row['predicted'] / 1e9:.2f} ({off:+.0%})"
        print(line, flush=True)


if __name__ == "__main__":
    main()
