"""The pipeline of the well-known notebook beside ours, with the same model, clips, batch size, steps and workers.

    python benchmarks/notebook_vs_whisper_peft.py                    real Whisper base and Malayalam, on the CPU
    python benchmarks/notebook_vs_whisper_peft.py --shape small --batch-size 20 --steps 60      on a GPU: random weights

The sides run one after the other, each in a process of its own, so that each has its own peak memory. The side of the
notebook is written here from its description: `map` to float32 log-mels of 30 s, its collator, Seq2SeqTrainer, all
weights, gradient checkpointing, fp16 on a GPU and float32 on a CPU, and evaluation by generation of up to 225 tokens in
batches of 8. Our side is `whisper_peft.train`. Needs the shared folder (WHISPER_PEFT_SHARED, default ../shared).

Seconds per step are the mean over one pass of the clips, without the first step, which warms up. Peak memory is that of
the process that trains: resident memory on a CPU, and the peak of the allocator on a GPU. Token losses are measured on
the 30 s windows of the same test clips, in float32.

Writes notebook_vs_whisper_peft.json beside itself, or notebook_vs_whisper_peft_<shape>.json with --shape. On a CPU
without bf16 instructions it skips the bf16 sides, and the name ends in _without_bf16.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

HERE = Path(__file__).parent
CPU_SIDES: dict[str, dict[str, object]] = {
    "tight, as the notebook": {"features.window": "tight", "train.gradient_checkpointing": True},
    "condensed, as the notebook": {"train.gradient_checkpointing": True},
    "tight, float32": {"features.window": "tight"},
    "condensed, float32": {},
    "tight, bf16": {"features.window": "tight", "train.precision": "bf16"},
    "condensed, bf16": {"train.precision": "bf16"},
    "condensed, bf16, LoRA": {"train.precision": "bf16", "train.mode": "lora"},
}
GPU_SIDES: dict[str, dict[str, object]] = {
    "condensed, as the notebook": {"train.precision": "fp16", "train.gradient_checkpointing": True},
    "condensed, fp16": {"train.precision": "fp16"},
    "tight, fp16": {"features.window": "tight", "train.precision": "fp16"},
    "condensed, auto": {"train.precision": "auto"},
    "condensed, auto, LoRA": {"train.precision": "auto", "train.mode": "lora"},
}


class Clock:
    """Makes a callback that notes when each step began and ended, and when the evaluation ended."""

    def __new__(cls):
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def __init__(self):
                self.begun, self.ended, self.evaluated, self.previous = [], [], None, None

            def on_step_begin(self, args, state, control, **kwargs):
                self.begun.append(time.monotonic())

            def on_step_end(self, args, state, control, **kwargs):
                self.ended.append(time.monotonic())

            def on_evaluate(self, args, state, control, **kwargs):
                self.evaluated = time.monotonic()

            @property
            def step_s(self) -> float:
                """Mean seconds of a step after the first, with the loading of data between the steps."""
                return (self.ended[-1] - self.ended[0]) / (len(self.ended) - 1)

            @property
            def evaluation_s(self) -> float:
                return self.evaluated - self.ended[-1]

        return Callback()


def notebook(settings: dict, work: Path) -> dict:
    """Prepare, train and evaluate as the notebook does."""
    import torch
    from datasets import Dataset
    from transformers import (
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    import whisper_peft

    gpu = torch.cuda.is_available()
    processor = WhisperProcessor.from_pretrained(settings["model"], language=settings["language"], task="transcribe")
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer

    def prepare(row: dict) -> dict:
        wave = whisper_peft.load_audio(row["audio"])
        features = extractor(wave, sampling_rate=16_000).input_features[0]
        return {"input_features": features, "labels": tokenizer(row["text"]).input_ids}

    began = time.monotonic()
    sets = {}
    for split in ("train", "test"):
        rows = whisper_peft.load_source(settings[split])
        sets[split] = Dataset.from_dict({"audio": [row.audio for row in rows], "text": [row.text for row in rows]}).map(
            prepare, remove_columns=["audio", "text"], cache_file_name=str(work / f"{split}.arrow")
        )
    prepare_s = time.monotonic() - began
    prepared = sum(file.stat().st_size for file in work.glob("*.arrow"))

    model = WhisperForConditionalGeneration.from_pretrained(settings["model"], dtype=torch.float32)
    model.generation_config.language, model.generation_config.task = settings["language"], "transcribe"
    model.generation_config.forced_decoder_ids = None
    model.config.use_cache = False

    def collate(examples: list[dict]) -> dict:
        features = [{"input_features": example["input_features"]} for example in examples]
        batch = extractor.pad(features, return_tensors="pt")
        padded = tokenizer.pad([{"input_ids": example["labels"]} for example in examples], return_tensors="pt")
        labels = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
        if (labels[:, 0] == model.config.decoder_start_token_id).all():
            labels = labels[:, 1:]
        batch["labels"] = labels
        return batch

    known = Seq2SeqTrainingArguments.__dataclass_fields__
    word = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(work / "out"),
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=1e-5,
        warmup_steps=1,
        max_steps=settings["steps"],
        **{word: True},
        fp16=gpu,
        use_cpu=not gpu,
        per_device_eval_batch_size=8,
        predict_with_generate=True,
        generation_max_length=225,
        eval_strategy="steps",
        eval_steps=settings["steps"],
        save_strategy="no",
        logging_steps=25,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=settings["workers"],
    )
    clock, rates = Clock(), {}

    def compute_metrics(prediction) -> dict:
        labels = prediction.label_ids
        labels[labels == -100] = tokenizer.pad_token_id
        heard = tokenizer.batch_decode(prediction.predictions, skip_special_tokens=True)
        rates.update(whisper_peft.score(tokenizer.batch_decode(labels, skip_special_tokens=True), heard))
        return {"wer": rates["wer"]}

    trainer = Seq2SeqTrainer(
        args=arguments,
        model=model,
        train_dataset=sets["train"],
        eval_dataset=sets["test"],
        data_collator=collate,
        compute_metrics=compute_metrics,
        processing_class=extractor,
        callbacks=[clock],
    )
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    from whisper_peft.training.facts import peak_memory_bytes

    result = {
        "prepare_s": prepare_s,
        "prepared_bytes": prepared,
        "step_s": clock.step_s,
        "evaluation_s": clock.evaluation_s / len(sets["test"]),
        "peak_memory_bytes": peak_memory_bytes(),
        "wer": rates["wer"],
        "cer": rates["cer"],
        "precision": "fp16" if gpu else "fp32",
        "window": "full (30 s)",
    }
    model.save_pretrained(work / "model")
    processor.save_pretrained(work / "model")
    return {**result, "test_loss": token_loss(work / "model", settings)}


def ours(settings: dict, work: Path, changes: dict[str, object]) -> dict:
    """Prepare, train and evaluate with whisper_peft.train."""
    import whisper_peft

    began = time.monotonic()
    # Before training, only the tables and the headers of a block are read.
    for split in ("train", "test"):
        rows = whisper_peft.load_source(settings[split])
        dataset = whisper_peft.SpeechDataset(rows, None)
        for row in range(len(rows)):
            dataset.duration_s(row)
    prepare_s = time.monotonic() - began
    clock = Clock()
    recipe = {
        "model.name": settings["model"],
        "model.language": settings["language"],
        "train.mode": "full",
        "data.train": [settings["train"]],
        "data.eval": settings["test"],
        "train.steps": settings["steps"],
        "train.batch_size": settings["batch_size"],
        "train.precision": "fp32",
        "train.warmup_steps": 1,
        "evaluate.every_steps": settings["steps"],
        "evaluate.compare_clips": 0,
        "train.workers": settings["workers"],
        "evaluate.best_metric": "wer",
    }
    rate = {"train.learning_rate": 1e-3 if changes.get("train.mode") == "lora" else 1e-5}
    result = whisper_peft.train(changes={**recipe, **rate, **changes}, output=work / "run", callbacks=[clock])
    facts = result.facts
    scored = [json.loads(line) for line in (work / "run" / "metrics.jsonl").open()]
    scored = next(line for line in scored if "eval_wer" in line)
    used = whisper_peft.load_recipe(work / "run")
    return {
        "prepare_s": prepare_s,
        "prepared_bytes": 0,
        "step_s": clock.step_s,
        "evaluation_s": clock.evaluation_s / facts["data"]["eval_clips"],
        "wer": scored["eval_wer"],
        "cer": scored["eval_cer"],
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "precision": used.train.precision,
        "padding_share": facts["padding_share"],
        "window": used.features.window,
        "test_loss": token_loss(result.model, settings),
    }


def token_loss(model: Path, settings: dict) -> float:
    """Return the mean token loss on the 30 s windows of the test clips, in float32."""
    import whisper_peft
    from whisper_peft.model.devices import to_device

    loaded, preparation, _ = whisper_peft.load_model(model)
    rows = whisper_peft.load_source(settings["test"])
    dataset = whisper_peft.SpeechDataset(rows, preparation, language=settings["language"])
    found = whisper_peft.transcribe_rows(to_device(loaded), dataset, range(len(rows)), max_new_tokens=0).transcripts
    return sum(one.loss_sum for one in found) / sum(one.loss_tokens for one in found)


def random_whisper(shape: str, shared: Path, folder: Path) -> Path:
    """Save a Whisper of a published shape with random weights and the processor of the real base."""
    import shutil

    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    base = shared / "models" / "whisper-base"
    layers, width, heads = {"tiny": (4, 384, 6), "base": (6, 512, 8), "small": (12, 768, 12), "medium": (24, 1024, 16)}[
        shape
    ]
    config = WhisperConfig.from_pretrained(
        base,
        encoder_layers=layers,
        decoder_layers=layers,
        d_model=width,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
    )
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    shutil.copy(base / "generation_config.json", folder)
    return folder


def subset(source: Path, count: int, folder: Path, name: str) -> str:
    """Write a manifest of the first `count` clips."""
    import whisper_peft

    rows = whisper_peft.load_source(str(source))[:count]
    manifest = folder / f"{name}.jsonl"
    lines = (json.dumps({"audio": row.audio, "text": row.text}, ensure_ascii=False) for row in rows)
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(manifest)


def machine() -> dict:
    import torch

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next((line.split(":")[1].strip() for line in flags.splitlines() if line.startswith("model name")), "")
    return {
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU {name} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "avx512_bf16": "avx512_bf16" in flags,
        "torch": torch.__version__,
    }


@click.command()
@click.option("--shape", type=click.Choice(["tiny", "base", "small", "medium"]), help="Random weights of this shape.")
@click.option("--steps", default=8, show_default=True)
@click.option("--batch-size", default=8, show_default=True)
@click.option("--test-clips", default=32, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--side", hidden=True)
@click.option("--settings", hidden=True)
def main(shape, steps: int, batch_size: int, test_clips: int, workers: int, side: str | None, settings: str | None):
    # This process measures a single side.
    if side:
        given = json.loads(settings)
        with tempfile.TemporaryDirectory() as work:
            sides = GPU_SIDES if given["gpu"] else CPU_SIDES
            found = notebook(given, Path(work)) if side == "notebook" else ours(given, Path(work), sides[side])
        print("RESULT " + json.dumps(found))
        return
    import torch

    shared = Path(os.environ.get("WHISPER_PEFT_SHARED", HERE.parent.parent / "shared")).resolve()
    speech, rows = shared / "data" / "malayalam", []
    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as work:
        model = random_whisper(shape, shared, Path(work) / "model") if shape else shared / "models" / "whisper-base"
        common = {
            "model": str(model),
            "language": "ml",
            "steps": steps,
            "batch_size": batch_size,
            "workers": workers,
            "train": subset(speech / "train", steps * batch_size, Path(work), "train"),
            "gpu": gpu,
            "test": subset(speech / "test", test_clips, Path(work), "test"),
        }
        sides = ("notebook", *(GPU_SIDES if gpu else CPU_SIDES))
        # Such a CPU emulates bf16, so its figures would tell nothing.
        if not gpu and not machine()["avx512_bf16"]:
            sides = [side for side in sides if "bf16" not in side]
        for side in sides:
            done = subprocess.run(
                [sys.executable, __file__, "--side", side, "--settings", json.dumps(common)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.rpartition("RESULT ")[2])
            rows.append({"side": side, **found})
            print(f"{side}: {found['step_s']:.2f} s a step", file=sys.stderr, flush=True)
    first = rows[0]
    print(f"{'':28}{'prepare':>9}{'on disk':>10}{'s/step':>9}{'':>7}{'s/eval clip':>12}", end="")
    print(f"{'':>7}{'peak':>9}{'test loss':>10}")
    for row in rows:
        print(
            f"{row['side']:28}{row['prepare_s']:>8.1f}s{row['prepared_bytes'] / 1e6:>8.0f}MB{row['step_s']:>9.2f}"
            f"{first['step_s'] / row['step_s']:>6.1f}x{row['evaluation_s']:>12.3f}"
            f"{first['evaluation_s'] / row['evaluation_s']:>6.1f}x{row['peak_memory_bytes'] / 1e9:>7.2f}GB"
            f"{row['test_loss']:>10.3f}"
        )
    page = {
        "machine": machine(),
        "model": f"random {shape}" if shape else "whisper-base",
        "batch_size": batch_size,
        "data": f"malayalam: {steps * batch_size} train, {test_clips} test clips",
        "steps": steps,
        "workers": workers,
        "rows": rows,
    }
    name = "notebook_vs_whisper_peft" + (f"_{shape}" if shape else "")
    name += "" if gpu or machine()["avx512_bf16"] else "_without_bf16"
    (HERE / f"{name}.json").write_text(json.dumps(page, indent=1) + "\n")


if __name__ == "__main__":
    main()
