"""How much time each saving in a training step is worth, with savings that we did not adopt.

    python benchmarks/savings.py WORK            every missing side, one after the other
    python benchmarks/savings.py WORK --table    only the table of the finished sides

Every side trains the real Whisper base on real Malayalam, with the same steps of 8 clips, condensed windows and no
gradient checkpointing. It uses bf16 autocast on a CPU that computes in bf16, and float32 elsewhere. Each side runs
twice, in a process of its own, and the second round has the opposite order. Of each step, the quicker of its two times
counts. The first step warms up and does not count. Needs the shared folder (WHISPER_PEFT_SHARED, default ../shared).
Writes savings.json beside itself.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from notebook_vs_whisper_peft import Clock, machine, subset

HERE = Path(__file__).parent
RESULTS = HERE / "savings.json"
STEPS, BATCH, ROUNDS = 9, 8, 2


def logits_everywhere() -> dict:
    """Compute the output projection at every position, and the loss only where there is a target."""
    from whisper_peft.model import head
    from whisper_peft.training import trainer

    def everywhere(whisper, wanted, then):
        every = wanted.new_ones(wanted.shape)
        return head.logits_at(whisper, every, then=lambda logits: then(logits[wanted.flatten()]))

    trainer.logits_at = everywhere
    return {}


def library_loss() -> dict:
    """Use the cross-entropy of torch on all logits in float32."""
    from torch.nn.functional import cross_entropy

    return {"loss": lambda logits, labels: cross_entropy(logits.float(), labels, reduction="sum")}


def library_attention() -> dict:
    """Use the fused attention of torch where ours is plain matrix products."""
    from whisper_peft.model import attention

    attention.PLAIN_ATTENTION_KEYS = 0
    return {}


def many_kernels() -> dict:
    """Use AdamW with one kernel for each operation."""
    from whisper_peft.training import session

    made = session.training_arguments

    def arguments(*given, **named):
        made_arguments = made(*given, **named)
        made_arguments.optim = "adamw_torch"
        return made_arguments

    session.training_arguments = arguments
    return {}


def compiled() -> dict:
    """Compile every layer with torch.compile, for any length."""
    import torch
    from transformers import TrainerCallback

    class Compile(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            torch._dynamo.config.cache_size_limit = 64
            inner = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
            for layer in (*inner.encoder.layers, *inner.decoder.layers):
                layer.compile(dynamic=True)

    return {"callbacks": [Compile()]}


def free_encoder() -> dict:
    """Replace the output of the encoder by noise of its shape: no cache of the output can be quicker."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    from whisper_peft.model import windows

    # Positions and width of Whisper base.
    noise = torch.randn(1500, 512)

    def forward(self, input_features, attention_mask=None, **kwargs):
        n_positions = min(input_features.shape[-1] // 2 + self.silence_positions, self.max_source_positions)
        return BaseModelOutput(last_hidden_state=noise[:n_positions].repeat(len(input_features), 1, 1))

    windows.WindowedEncoder.forward = forward
    return {}


LORA = {"train.mode": "lora", "train.learning_rate": 1e-3}
DECODER = {**LORA, "lora.targets": "attention+mlp+decoder"}
# Name: the side to compare with, settings of the recipe, and a function that changes the package.
SIDES: dict[str, tuple[str | None, dict, Callable[[], dict]]] = {
    "all weights": (None, {}, dict),
    "logits at every position": ("all weights", {}, logits_everywhere),
    "torch's cross-entropy in float32": ("all weights", {}, library_loss),
    "torch's fused attention": ("all weights", {}, library_attention),
    "AdamW, not fused": ("all weights", {}, many_kernels),
    "all weights, torch.compile": ("all weights", {}, compiled),
    "LoRA": (None, LORA, dict),
    "LoRA, no dropout": ("LoRA", {**LORA, "lora.dropout": 0.0}, dict),
    "LoRA, torch.compile": ("LoRA", LORA, compiled),
    "LoRA, decoder only": ("LoRA", DECODER, dict),
    "LoRA, decoder only, encoder for nothing": ("LoRA, decoder only", DECODER, free_encoder),
}


def one_side(name: str, shared: Path, work: Path) -> dict:
    """Train one side, and return the seconds of each step and the peak of the memory."""
    import whisper_peft

    _, settings, prepare = SIDES[name]
    speech, more, clock = shared / "data" / "malayalam", prepare(), Clock()
    changes = {
        "model.name": str(shared / "models" / "whisper-base"),
        "model.language": "ml",
        "train.mode": "full",
        "data.train": [subset(speech / "train", STEPS * BATCH, work, "train")],
        "data.eval": subset(speech / "validation", 1, work, "validation"),
        "train.steps": STEPS,
        "train.batch_size": BATCH,
        "evaluate.every_steps": STEPS,
        "evaluate.compare_clips": 0,
        "evaluate.best_metric": "loss",
        **settings,
    }
    callbacks = [*more.pop("callbacks", []), clock]
    result = whisper_peft.train(changes=changes, output=work / "run", callbacks=callbacks, **more)
    return {
        "step_s": [round(end - start, 3) for start, end in itertools.pairwise([clock.begun[0], *clock.ended])],
        "peak_memory_bytes": result.facts["peak_memory_bytes"],
    }


def table(rounds: list[dict]) -> None:
    """Print the seconds per step of each side, also as a share of the side to compare with."""
    sums = {
        name: sum(map(min, zip(*(one[name]["step_s"][1:] for one in rounds if name in one), strict=True)))
        for name in SIDES
        if any(name in one for one in rounds)
    }
    print(f"{'':42}{'first step':>11}{'s/step':>8}{'peak':>9}   beside")
    for name, total in sums.items():
        found, (other, *_) = [one[name] for one in rounds if name in one], SIDES[name]
        line = f"{name:42}{min(one['step_s'][0] for one in found):>10.1f}s{total / (STEPS - 1):>8.2f}"
        line += f"{min(one['peak_memory_bytes'] for one in found) / 1e9:>7.2f}GB"
        print(line + (f"   {total / sums[other]:.2f} of '{other}'" if other in sums else ""))


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--table", "only_table", is_flag=True)
@click.option("--side", hidden=True)
def main(work: Path, only_table: bool, side: str | None) -> None:
    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    # This process measures a single side.
    if side:
        print("RESULT " + json.dumps(one_side(side, shared, work)))
        return
    work.mkdir(parents=True, exist_ok=True)
    page = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": machine(), "rounds": []}
    rounds = page["rounds"]
    for number in range(0 if only_table else ROUNDS):
        if len(rounds) <= number:
            rounds.append({})
        for name in list(SIDES)[:: -1 if number % 2 else 1]:
            if name in rounds[number]:
                continue
            with tempfile.TemporaryDirectory(dir=work) as folder:
                done = subprocess.run(
                    [sys.executable, __file__, folder, "--side", name], stdout=subprocess.PIPE, text=True, check=True
                )
            rounds[number][name] = json.loads(done.stdout.rpartition("RESULT ")[2])
            RESULTS.write_text(json.dumps(page, separators=(",", ":")) + "\n")
            print(name, rounds[number][name], flush=True)
    table(rounds)


if __name__ == "__main__":
    main()
