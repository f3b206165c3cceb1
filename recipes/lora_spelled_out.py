"""What `whisper-peft train small-hindi-lora` does, step by step over the public API. Read it, change it, run it.

    python lora_spelled_out.py

A test checks that this script sees the same batches and gets the same first losses as its twin, the YAML recipe.
`train` does more, which this script leaves out: checkpoints and --resume, left_out.jsonl and the limit on unusable
clips, checks of gradients and settings, fp16 with its scaler, and more than one process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup, set_seed

import whisper_peft


def print_step(step: int, batch: dict, loss: float) -> None:
    """Print the loss of every 25th step."""
    if step % 25 == 0:
        print(f"step {step}: loss {loss:.3f} on {len(batch['rows'])} clips, {batch['seconds']:.0f} s of speech")


def main(
    model_name: str = "openai/whisper-small",
    train: str = "cv-corpus/hi:train",
    eval: str = "cv-corpus/hi:dev",
    test: str = "cv-corpus/hi:test",
    output: str = "whisper-small-hindi-lora",
    *,
    language: str = "hi",
    steps: int = 4000,
    batch_size: int = 20,
    micro_batch_size: int = 8,
    learning_rate: float = 1e-3,
    warmup_steps: int = 50,
    every_steps: int = 1000,
    workers: int = 2,
    seed: int = 42,
    watch: Callable[[int, dict, float], None] = print_step,
) -> dict:
    """Train an adapter, save it in the folder `output`, and return its error rates on test."""
    # This fails if the folder is there already, so that nothing is overwritten.
    Path(output).mkdir(parents=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    # Speech in: a row names an audio file and its text. A data set decodes and encodes a row when it is asked for it.
    located = whisper_peft.locate(model_name)
    preparation = whisper_peft.load_preparation(located.base)
    speech = {
        split: whisper_peft.SpeechDataset(
            whisper_peft.load_source(source), preparation, language=language, seed=seed
        )
        for split, source in {"train": train, "eval": eval, "test": test}.items()
    }  # fmt: skip

    # The model: a frozen base with a fresh adapter on its attention and MLP layers.
    set_seed(seed)
    base = whisper_peft.load_base(located.base)
    # A window ends 0.2 s after the longest clip; a few positions stand for the silence up to 30 s. See docs/windows.md.
    whisper_peft.condense_silence(base, "condensed")
    base.generation_config.language, base.generation_config.task = language, "transcribe"
    model = whisper_peft.add_adapter(base, rank=32, alpha=64, dropout=0.05, targets="attention+mlp").to(device)

    def error_rates(split: str) -> dict:
        found = whisper_peft.transcribe_rows(
            model, speech[split], range(len(speech[split])), workers=workers, autocast=lambda: autocast,
            max_new_tokens=min(225, preparation.max_label_tokens - len(preparation.prefix(language))),
        )  # fmt: skip
        references = [speech[split].text(one.row) for one in found.transcripts]
        return whisper_peft.score(references, [one.text for one in found.transcripts])

    print(f"Before: WER {error_rates('test')['wer']:.1%} on test")

    # Batches: an optimizer step is a seeded list of clips. Clips of like length are put together.
    order = whisper_peft.steps(
        len(speech["train"]), batch_size, seed=seed, duration_s=speech["train"].duration_s, slack_s=lambda step: 0.2
    )
    batches = DataLoader(
        speech["train"], batch_sampler=itertools.islice(order, steps), num_workers=workers,
        collate_fn=whisper_peft.SpeechCollator(preparation), generator=torch.Generator(),
    )  # fmt: skip
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps, steps)
    best = float("inf")
    # This seeds the dropout.
    set_seed(seed)

    for step, batch in enumerate(batches, start=1):
        model.train()
        n_tokens = int((batch["labels"] != -100).sum())
        if n_tokens == 0:
            # No clip of this step can be used; batch["left_out"] says why.
            continue
        loss = 0.0
        # Micro-batches only save memory. Each adds its summed loss, divided by the tokens of the whole step.
        for piece in whisper_peft.cut(len(batch["labels"]), micro_batch_size):
            with autocast:
                logits = model(
                    input_features=batch["input_features"][piece].to(device),
                    decoder_input_ids=batch["decoder_input_ids"][piece].to(device),
                    use_cache=False,
                ).logits
                part = whisper_peft.token_loss_sum(logits, batch["labels"][piece].to(device)) / n_tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        watch(step, batch, loss)

        if step % every_steps == 0 or step == steps:
            wer = error_rates("eval")["wer"]
            print(f"step {step}: WER {wer:.1%} on eval")
            # Only the best adapter is kept.
            if wer < best:
                best = wer
                model.save_pretrained(output)

    # The result: the best adapter, with all the files that it needs to load alone.
    preparation.processor.save_pretrained(output)
    base.generation_config.save_pretrained(output)
    model.load_adapter(output, adapter_name="default")
    final = error_rates("test")
    print(f"After: WER {final['wer']:.1%} on test; the adapter is in {output}")
    return final


if __name__ == "__main__":
    main()
