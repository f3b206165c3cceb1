"""A recipe in Python with its own augmentation, loss and callback. Run it: python custom_recipe.py"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

import whisper_peft


def louder_and_noisier(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(len(wave), dtype=np.float32) * np.abs(wave).max() * rng.uniform(0, 0.02)
    # `rng` is seeded by run, epoch and clip, so the result is the same after --resume.
    return (wave + noise) * rng.uniform(0.5, 1.5)


def smoothed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed loss with label smoothing; the trainer divides it by the tokens of the whole step."""
    return cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), label_smoothing=0.1, reduction="sum")


class Diary(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        print(f"step {state.global_step}: WER {metrics['eval_wer']:.1%}, CER {metrics['eval_cer']:.1%}")


def main(output: str = "runs/custom", changes: dict[str, object] | None = None) -> whisper_peft.TrainResult:
    recipe = whisper_peft.override(whisper_peft.load_recipe("quickstart"), {"train.seed": 1, **(changes or {})})
    return whisper_peft.train(
        recipe, output=output, augment=louder_and_noisier, loss=smoothed_loss, callbacks=[Diary()], say=print
    )


if __name__ == "__main__":
    main()
