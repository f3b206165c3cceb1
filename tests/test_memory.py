"""After running out of memory, a step is repeated in smaller micro-batches, and transcripts in smaller batches."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import tiny_recipe

from whisper_peft import SpeechDataset, UserError, load_model, load_recipe, load_source, runs, train, transcribe_rows
from whisper_peft.evaluation import clip_transcripts
from whisper_peft.model.devices import return_large_blocks
from whisper_peft.training.trainer import SpeechTrainer

CHANGES = {
    "train.batch_size": 4,
    "train.learning_rate": 0.01,
    "lora.dropout": 0.2,
    "evaluate.compare_clips": 0,
    "evaluate.max_clips": 1,
}


@pytest.fixture
def small_device(monkeypatch):
    """Simulate a device that runs out of memory half-way through a step with more than `most` clips at a time."""
    real, tried = SpeechTrainer.compute_loss, []

    def fitting(most: int, error: Exception) -> list[int]:
        def compute_loss(self, model, inputs, **options):
            tried.append(len(inputs["labels"]))
            # The model draws random numbers for its dropout.
            loss = real(self, model, inputs, **options)
            if len(inputs["labels"]) > most:
                # The failed attempt leaves gradients behind.
                loss.backward()
                raise error
            return loss

        monkeypatch.setattr(SpeechTrainer, "compute_loss", compute_loss)
        return tried

    return fitting


def weights(run) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_step_that_does_not_fit_is_repeated_in_smaller_micro_batches(
    tiny_model, speech, tmp_path, small_device, error
):
    finer = {**CHANGES, "train.micro_batch_size": 1}
    expected = train(tiny_recipe(tiny_model, speech, **finer), output=tmp_path / "expected").run
    tried, said = small_device(1, error), []
    run = train(tiny_recipe(tiny_model, speech, **CHANGES), output=tmp_path / "run", say=said.append).run
    # The size that fits is found once and kept for the following steps.
    assert tried == [4, 2, 1, 1, 1, 1] + [1] * 12
    # With dropout the weights are equal only if random numbers and gradients were reset.
    assert weights(run) == weights(expected)
    lines = [line for line in said if "Out of memory" in line]
    assert [line.split(" at a time")[0].rpartition("with ")[2] for line in lines] == ["2 clips", "1 clips"]
    kept = load_recipe(run).train
    # The run stores the size as seconds of its 3 s window, and a resume begins with it.
    assert kept.micro_batch_size == "auto" and 0 < kept.micro_batch_s < 3.1


def test_the_loss_of_a_repeated_step_equals_that_of_the_whole_step(tiny_model, speech, tmp_path, small_device):
    changes = {**CHANGES, "lora.dropout": 0.0, "train.steps": 2, "features.window": "tight"}
    whole = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "whole").run
    small_device(2, torch.OutOfMemoryError("out of memory"))
    fine = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "fine").run
    losses = [
        [record["loss"] for record in runs.read_jsonl(run / "metrics.jsonl") if "loss" in record]
        for run in (whole, fine)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 2


def test_a_single_clip_that_does_not_fit_gives_a_clear_message(tiny_model, speech, tmp_path, small_device):
    small_device(0, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(UserError, match=r"out of memory with one clip of 3\.0 s.*gradient_checkpointing=true"):
        train(tiny_recipe(tiny_model, speech, **CHANGES, **{"features.window": "full"}), output=tmp_path / "run")


def test_other_errors_are_not_mistaken_for_running_out_of_memory(tiny_model, speech, tmp_path, small_device):
    tried = small_device(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        train(tiny_recipe(tiny_model, speech, **CHANGES), output=tmp_path / "run")
    assert tried == [4]


def test_an_evaluation_that_does_not_fit_continues_in_smaller_batches(tiny_model, speech, monkeypatch):
    model, preparation, _ = load_model(tiny_model)
    dataset = SpeechDataset(load_source(str(speech / "train")), preparation, language="hi")
    expected = transcribe_rows(model, dataset, range(12), batch_size=6, max_new_tokens=5)
    real, tried = clip_transcripts._transcribe_batch, []

    def small(model, preparation, batch, **options):
        tried.append(len(batch["rows"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, preparation, batch, **options)

    monkeypatch.setattr(clip_transcripts, "_transcribe_batch", small)
    result = transcribe_rows(model, dataset, range(12), batch_size=6, max_new_tokens=5)
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1, *[1] * 6]
    assert [(transcript.row, transcript.text) for transcript in result.transcripts] == [
        (transcript.row, transcript.text) for transcript in expected.transcripts
    ]
    for transcript, other in zip(result.transcripts, expected.transcripts, strict=True):
        assert (
            transcript.loss_sum == pytest.approx(other.loss_sum, abs=1e-3)
            and transcript.loss_tokens == other.loss_tokens
        )


FREED = """
import re, sys, torch
from whisper_peft.model.devices import return_large_blocks
def resident(): return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
if sys.argv[1:]:
    return_large_blocks()
torch.ones(6 << 20)  # 24 MB, freed at once: the C library would now keep all blocks up to this size
before = resident()
held = [torch.ones((12 << 20) // 4) for _ in range(20)]
kept = held[1::2]
del held  # a hole of 12 MB beside each of those kept
print(resident() - before)
"""


def test_freed_cpu_memory_is_returned_to_the_system():
    # On other systems the function asks nothing of the C library and must not fail.
    if sys.platform != "linux":
        return_large_blocks()
        return
    grown = [
        int(subprocess.run([sys.executable, "-c", FREED, *given], capture_output=True, text=True, check=True).stdout)
        for given in ([], ["returned"])
    ]
    assert grown[0] > 200e6, "nothing to prove here: the C library does not keep it"
    assert grown[1] < 150e6


@pytest.mark.parametrize(
    "window, checkpointing, returned",
    [
        ("full", False, True),
        ("tight", True, True),
        ("tight", False, False),
    ],
)
def test_train_returns_freed_memory_for_long_windows_and_with_checkpointing(
    tiny_model, speech, tmp_path, monkeypatch, window, checkpointing, returned
):
    from whisper_peft.training import train as room

    called = []
    # The whole window of the tiny model is 150 positions.
    monkeypatch.setattr(room, "LONG_WINDOW", 149)
    monkeypatch.setattr(room, "return_large_blocks", lambda: called.append(True))
    changes = {
        "features.window": window,
        "train.gradient_checkpointing": checkpointing,
        "train.steps": 1,
        "evaluate.compare_clips": 0,
    }
    train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run")
    assert bool(called) == returned
