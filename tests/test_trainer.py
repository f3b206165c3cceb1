"""A training step: its micro-batches, loss, gradients and schedule, and the records that a run keeps of them."""

from __future__ import annotations

import csv
import itertools
import math
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, make_wave, tiny_recipe

from whisper_peft import Augmentation, SpeechDataset, build_model, load_preparation, load_source, locate, runs, train
from whisper_peft.data.batching import slack_policy
from whisper_peft.data.samplers import StepSampler
from whisper_peft.training.arguments import training_arguments
from whisper_peft.training.callbacks import GradientCheck
from whisper_peft.training.defaults import resolve
from whisper_peft.training.trainer import OneDeviceArguments, SpeechTrainer


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    """Make 8 clips whose texts have from 1 to 8 words."""
    import soundfile

    folder = tmp_path_factory.mktemp("uneven") / "clips"
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "transcription"])
        for number in range(8):
            soundfile.write(folder / f"{number}.wav", make_wave(0.3 + 0.2 * number, number), 16000)
            writer.writerow([f"{number}.wav", " ".join(WORDS[: number + 1])])
    return folder


def make_trainer(folder: Path, model: Path, source: Path, *, callbacks=(), prepare=lambda model: None, **changes):
    """Make a SpeechTrainer as `train` does, but without a run folder."""
    from transformers import set_seed

    workers = changes.pop("train.workers", 0)
    recipe = tiny_recipe(
        model, source, **{"train.batch_size": 8, "train.steps": 1, "lora.dropout": 0.0, "train.seed": 3, **changes}
    )
    dataset = SpeechDataset(
        load_source(str(source)),
        load_preparation(str(model)),
        language="hi",
        augmentation=Augmentation(**recipe.augment.effects) if recipe.augment.effects else None,
    )
    recipe, _ = resolve(recipe, n_rows=len(dataset), d_model=16, multilingual=True)
    recipe = resolved_with(recipe, workers)
    set_seed(recipe.train.seed)
    lora = {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha, "dropout": recipe.lora.dropout}
    built = build_model(locate(model), recipe.train.mode, lora=lora)
    prepare(built)
    arguments = training_arguments(recipe, folder)
    sampler = StepSampler(
        dataset,
        recipe.train.batch_size,
        slack_s=slack_policy(recipe.features.window),
        seed=recipe.train.seed,
        start=0,
        parts=(),
        rank=arguments.process_index,
        n_ranks=arguments.world_size,
    )
    return SpeechTrainer(
        built,
        arguments,
        dataset=dataset,
        sampler=sampler,
        evaluate_model=lambda step, autocast: {"wer": 1.0},
        micro_batch_size=recipe.train.micro_batch_size,
        micro_batch_s=recipe.train.micro_batch_s or math.inf,
        callbacks=list(callbacks),
    )


def first_batches(trainer: SpeechTrainer, count: int) -> list[dict]:
    """Return the batches of the first steps as the trainer gets them."""
    return list(itertools.islice(iter(trainer.get_train_dataloader()), count))


def resolved_with(recipe, workers: int):
    from whisper_peft import override

    return override(recipe, {"train.workers": workers})


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_step_does_not_depend_on_its_cut(mode, tiny_model, uneven, tmp_path):
    losses, gradients, after = [], [], []
    # The step is cut into 8 micro-batches of 1 clip, 4 of 2, and 1 of 8.
    for micro in (1, 2, 8):
        changes = {"train.mode": mode, "train.micro_batch_size": micro}
        # Augmentation changes lengths and windows, but in the same way under every cut.
        if mode == "lora":
            changes |= {"augment.speed": 0.5, "augment.gain": 0.5}
        trainer = make_trainer(tmp_path / str(micro), tiny_model, uneven, **changes)
        (batch,) = first_batches(trainer, 1)
        losses.append(trainer.training_step(trainer.model, batch).item())
        gradients.append(gradients_of(trainer.model))
        fresh = make_trainer(tmp_path / f"{micro}-run", tiny_model, uneven, **changes)
        before = weights_of(fresh.model)
        fresh.train()
        after.append(weights_of(fresh.model))
        moved = [name for name in before if not torch.equal(before[name], after[-1][name])]
        assert moved and all("lora_B" in name for name in moved) == (mode == "lora")
    assert max(losses) - min(losses) < 1e-5
    for other, other_weights in zip(gradients[1:], after[1:], strict=True):
        assert other.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
        for name, weight in after[0].items():
            # Adam's first step is lr * sign(gradient). If a gradient is only rounding, its sign is, too.
            certain = gradients[0][name].abs() > 1e-5
            torch.testing.assert_close(other_weights[name][certain], weight[certain], rtol=1e-4, atol=1e-5, msg=name)


def test_full_and_lora_training_get_byte_identical_batches(tiny_model, speech, tmp_path):
    seen = []
    for mode, workers in (("full", 0), ("lora", 0), ("lora", 2)):
        changes = {"train.mode": mode, "train.batch_size": 4, "train.workers": workers}
        trainer = make_trainer(tmp_path / f"{mode}{workers}", tiny_model, speech / "train", **changes)
        # The five steps reach into the second epoch.
        seen.append(first_batches(trainer, 5))
    for batches in seen[1:]:
        for ours, theirs in zip(seen[0], batches, strict=True):
            assert ours["rows"] == theirs["rows"]
            for key in ("input_features", "decoder_input_ids", "labels"):
                assert ours[key].numpy().tobytes() == theirs[key].numpy().tobytes()
                assert ours[key].dtype == theirs[key].dtype and ours[key].shape == theirs[key].shape
    # The second epoch is shuffled again.
    assert seen[0][0]["rows"] != seen[0][3]["rows"]


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_decoder_gets_exactly_one_start_of_transcript(mode, tiny_model, uneven, tmp_path):
    trainer = make_trainer(tmp_path, tiny_model, uneven, **{"train.mode": mode, "train.micro_batch_size": 4})
    reached = []
    base = trainer.model if mode == "full" else trainer.model.get_base_model()
    base.get_decoder().embed_tokens.register_forward_pre_hook(lambda module, inputs: reached.extend(inputs[0].tolist()))
    trainer.train()
    preparation = trainer.train_dataset.preparation
    start, prefix = preparation.token_id("<|startoftranscript|>"), preparation.prefix("hi")
    assert len(reached) == 8
    for ids in reached:
        assert ids.count(start) == 1
        assert ids[: len(prefix)] == prefix


def test_the_loss_is_the_token_mean_of_the_whole_step(tiny_model, uneven, tmp_path):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    changes = {"train.mode": "full", "train.micro_batch_size": 2, "features.window": "full"}
    trainer = make_trainer(tmp_path, tiny_model, uneven, **changes)
    (batch,) = first_batches(trainer, 1)
    ours = trainer.training_step(trainer.model, batch).item()
    # The expected loss is computed clip by clip with the extractor, the tokens and the loss of transformers.
    model = WhisperForConditionalGeneration.from_pretrained(tiny_model, dtype=torch.float32).train()
    processor = WhisperProcessor.from_pretrained(tiny_model)
    processor.tokenizer.set_prefix_tokens(language="hindi", task="transcribe")
    means, counts = [], []
    for row in load_source(str(uneven)):
        import soundfile

        features = processor.feature_extractor(soundfile.read(row.audio)[0], sampling_rate=16000, return_tensors="pt")
        ids = processor.tokenizer(row.text).input_ids
        labels = torch.tensor([ids[1:]])
        with torch.no_grad():
            output = model(
                input_features=features.input_features, decoder_input_ids=torch.tensor([ids[:-1]]), labels=labels
            )
        means.append(output.loss.item())
        counts.append(labels.numel())
    assert max(counts) > 2 * min(counts)
    assert ours == pytest.approx(np.average(means, weights=counts), abs=1e-4)
    # Here the mean of the means is another number.
    assert abs(ours - np.mean(means)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# With a scale of 100, the probabilities of most targets are zero in float32.
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_loss_and_its_gradient_equal_those_of_cross_entropy(dtype, scale):
    from whisper_peft import token_loss_sum

    draw = torch.Generator().manual_seed(0)
    # The loss takes a fixed number of rows at a time, and 93 rows are not a multiple of it.
    labels = torch.randint(0, 50, (3, 31), generator=draw)
    labels[1, 20:] = -100
    logits = (scale * torch.randn(3, 31, 50, generator=draw)).to(dtype)
    results = []
    for loss in (
        token_loss_sum,
        lambda a, b: torch.nn.functional.cross_entropy(a.float().flatten(0, 1), b.flatten(), reduction="sum"),
    ):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, labels) / 7
        value.backward()
        assert torch.equal(leaf.detach(), logits)
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*(value for value, _ in results))
    torch.testing.assert_close(
        *(gradient for _, gradient in results), atol=1e-6, rtol=1e-5 if dtype == torch.float32 else 1e-2
    )
    assert (results[0][1][1, 20:] == 0).all()
    with torch.no_grad():
        assert token_loss_sum(logits, labels) / 7 == results[0][0]


def test_a_step_without_usable_clips_is_skipped_and_counted(tiny_model, speech, tmp_path):
    """The headers of these clips are whole, so only decoding shows that the clips cannot be used."""
    import soundfile

    rows = (speech / "train" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    manifest, cut = speech / "train" / "gone.csv", tmp_path / "cut.flac"
    soundfile.write(tmp_path / "whole.flac", make_wave(2.0), 16000)
    content = (tmp_path / "whole.flac").read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    manifest.write_text("\n".join([rows[0], f"{cut},a", f"{cut},b", *rows[1:3]]), encoding="utf-8")
    try:
        # The headers of the cut clips state 2 s, so these clips come last. The two good clips are the other step.
        changes = {"train.batch_size": 2, "train.mode": "full", "train.weight_decay": 0.1}
        trainer = make_trainer(tmp_path / "a", tiny_model, manifest, **{**changes, "train.steps": 2})
        batches = first_batches(trainer, 2)
        assert sorted(len(batch["rows"]) for batch in batches) == [0, 2]
        snapshots = [weights_of(trainer.model)]

        from transformers import TrainerCallback

        class Look(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                snapshots.append(weights_of(model))

        trainer.add_callback(Look())
        trainer.train()
    finally:
        manifest.unlink()
    assert trainer.empty_steps == 1 and trainer.state.global_step == 2
    for number, batch in enumerate(batches):
        same = all(torch.equal(snapshots[number][name], snapshots[number + 1][name]) for name in snapshots[0])
        assert same == (not batch["rows"])


def test_the_gradient_check_passes_with_non_reentrant_checkpointing(tiny_model, uneven, tmp_path):
    gradients = []
    for checkpointing in (False, True):
        check = GradientCheck()
        trainer = make_trainer(
            tmp_path / str(checkpointing),
            tiny_model,
            uneven,
            callbacks=[check],
            **{"train.gradient_checkpointing": checkpointing, "train.steps": 2},
        )
        reruns = []
        layer = trainer.model.get_base_model().get_encoder().layers[0]
        layer.fc1.register_forward_hook(lambda *_, reruns=reruns: reruns.append(1))
        trainer.train()
        assert check.is_done
        # Checkpointing is really on, because the layer runs again in the backward pass.
        assert len(reruns) == (4 if checkpointing else 2)
        gradients.append(weights_of(trainer.model))
    for name, weight in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], weight, rtol=1e-4, atol=1e-5, msg=name)


def break_encoder(model) -> None:
    """Detach the output of the encoder from its graph, as re-entrant checkpointing does."""

    def detach(module, inputs, output):
        output.last_hidden_state = output.last_hidden_state.detach()
        return output

    model.get_base_model().get_encoder().register_forward_hook(detach)


def reentrant(model) -> None:
    """Use re-entrant checkpointing as transformers 4 does: the input of the encoder requires no gradient."""
    embeddings = model.get_base_model().get_decoder().embed_tokens
    embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


def silence_values(model) -> None:
    """Set the weights after fc1 of the encoder to zero, so that no gradient flows back to fc1."""
    torch.nn.init.zeros_(model.get_encoder().layers[0].fc2.weight)


def explode(model) -> None:
    parameter = next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)
    parameter.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("mode", "fault", "finding"),
    [
        ("lora", break_encoder, "encoder.*no gradient|no gradient.*encoder"),
        ("lora", reentrant, "no gradient.*encoder"),
        ("full", silence_values, "zero gradient.*fc1"),
        ("lora", explode, "non-finite gradient"),
    ],
)
def test_the_gradient_check_names_a_weight_with_a_wrong_gradient(mode, fault, finding, tiny_model, uneven, tmp_path):
    changes = {"train.mode": mode, "train.steps": 2, "train.max_grad_norm": 0.0}
    trainer = make_trainer(tmp_path, tiny_model, uneven, callbacks=[GradientCheck()], prepare=fault, **changes)
    with pytest.raises(AssertionError, match=finding):
        trainer.train()
    assert trainer.state.global_step == 0


def test_train_checks_the_gradients(tiny_model, speech, tmp_path, monkeypatch):
    from whisper_peft.training import train as room

    def broken(*arguments, **options):
        model = build_model(*arguments, **options)
        break_encoder(model)
        return model

    monkeypatch.setattr(room, "build_model", broken)
    with pytest.raises(AssertionError, match="no gradient"):
        train(tiny_recipe(tiny_model, speech, **{"evaluate.compare_clips": 0}), output=tmp_path / "run")


def test_two_visible_gpus_do_not_start_data_parallel_training(tiny_model, uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(OneDeviceArguments.__mro__[2], "n_gpu", property(lambda self: 2))
    trainer = make_trainer(tmp_path, tiny_model, uneven)
    # The machine seems to have two GPUs.
    assert super(OneDeviceArguments, trainer.args).n_gpu == 2
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 1
    trainer.train()
    assert not isinstance(trainer.model_wrapped, torch.nn.DataParallel)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_follows_its_schedule(schedule, tiny_model, uneven, tmp_path):
    peak, warmup, steps = 1e-3, 2, 8
    trainer = make_trainer(
        tmp_path,
        tiny_model,
        uneven,
        **{"train.schedule": schedule, "train.learning_rate": peak, "train.warmup_steps": warmup, "train.steps": steps},
    )
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(steps, optimizer)
    rates = []
    for _ in range(steps):
        # This is the rate of the step that comes next.
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    shape = {
        "linear": lambda share: 1 - share,
        "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
        "constant": lambda share: 1.0,
    }[schedule]
    wanted = [peak * (k / warmup if k < warmup else shape((k - warmup) / (steps - warmup))) for k in range(steps)]
    assert rates == pytest.approx(wanted, abs=1e-9)


def test_early_stopping_ends_a_run_after_two_evaluations_without_gain(tiny_model, speech, tmp_path):
    changes = {
        "train.learning_rate": 1e-9,
        "train.early_stopping": 2,
        "train.steps": 9,
        "evaluate.every_steps": 1,
        "evaluate.best_metric": "cer",
        "evaluate.compare_clips": 0,
    }
    result = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run")
    # The first evaluation sets the mark, and the next two are no better.
    assert result.facts["steps"] == 3 and result.facts["best_step"] == 1


@pytest.mark.parametrize(("keep", "left"), [(1, {2, 5}), (2, {2, 4, 5})])
def test_the_newest_and_the_best_checkpoint_stay_and_the_best_is_the_result(
    keep, left, tiny_model, speech, tmp_path, monkeypatch
):
    from safetensors.torch import load_file

    from whisper_peft.training import scorer as room

    # The last rate is that of the test split, after training.
    plan = iter([0.9, 0.3, 0.5, 0.6, 0.4, 1.0])
    real = room.figures
    monkeypatch.setattr(room, "figures", lambda *arguments: {**real(*arguments), "wer": next(plan)})
    seen = []
    changes = {
        "train.steps": 5,
        "evaluate.every_steps": 1,
        "train.keep_checkpoints": keep,
        "evaluate.compare_clips": 0,
        "train.learning_rate": 0.01,
    }
    result = train(
        tiny_recipe(tiny_model, speech, **changes),
        output=tmp_path / "run",
        on_checkpoint=[lambda folder: seen.append(load_file(folder / "adapter_model.safetensors"))],
    )
    assert {runs.checkpoint_step(path) for path in runs.complete_checkpoints(result.run)} == left
    assert {int(path.name.split("-")[1]) for path in (result.run / "checkpoints").iterdir()} == left
    assert result.facts["best_step"] == 2 and len(seen) == 5
    final = load_file(result.model / "adapter_model.safetensors")
    assert final.keys() == seen[1].keys()
    assert all(torch.equal(final[name], seen[1][name]) for name in final)
    assert not all(torch.equal(final[name], seen[4][name]) for name in final)


def test_a_run_records_its_facts_losses_and_evaluations(lora_run, tiny_model):
    facts = runs.read_json(lora_run / "run.json")
    assert facts["mode"] == "lora" and facts["steps"] == 4 and facts["device"].startswith(("CPU", "NVIDIA"))
    assert {"python", "whisper-peft", "torch", "transformers", "peft"} <= facts["versions"].keys()
    assert facts["base"]["path"] == str(tiny_model) and len(facts["base"]["sha256"]) == 64
    assert facts["data"]["train_clips"] == 12 and set(facts["data"]["fingerprints"]) == {"train", "eval", "test"}
    assert facts["train_hours"] > 0 and facts["train_seconds"] > 0 and facts["peak_memory_bytes"] > 1e7
    assert 0 < facts["trainable_parameters"] < facts["parameters"]
    assert facts["before"]["split"] == facts["after"]["split"] == facts["final"]["split"] == "test"
    # Both transcribe the same clips with the same limit.
    assert facts["before"]["max_new_tokens"] == facts["after"]["max_new_tokens"]
    assert facts["before"]["clips"] == facts["after"]["clips"] == facts["final"]["clips"] == 4

    records = runs.read_jsonl(lora_run / "metrics.jsonl")
    losses = [record for record in records if "loss" in record]
    assert [record["step"] for record in losses] == [1, 2, 3, 4]
    assert all(math.isfinite(record["loss"]) and "learning_rate" in record for record in losses)
    # There are 12 clips in steps of 4.
    assert [record["epoch"] for record in losses] == [0.3333, 0.6667, 1.0, 1.3333]
    evaluations = [record for record in records if "eval_wer" in record]
    assert [record["step"] for record in evaluations] == [2, 4]
    assert {"eval_cer", "eval_loss", "eval_reached_limit", "eval_wer_insertions"} <= evaluations[0].keys()
    assert not (lora_run / "left_out.jsonl").read_text()
    assert {path.name for path in lora_run.iterdir()} == {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "left_out.jsonl",
        "checkpoints",
        "adapter",
        "transcripts.jsonl",
        "tensorboard",
    }


def test_tensorboard_has_the_losses_and_error_rates(lora_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(lora_run / "tensorboard")).Reload()
    assert {"train/loss", "eval/wer"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_a_run_in_bf16_does_not_change_the_precision_of_the_next_run(tiny_model, speech, tmp_path):
    from torch import is_autocast_enabled
    from transformers import TrainerCallback

    seen = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            model.get_base_model().proj_out.register_forward_hook(lambda *_: seen.append(is_autocast_enabled("cpu")))

    for precision in ("bf16", "fp32"):
        changes = {"train.precision": precision, "train.steps": 1, "evaluate.compare_clips": 0}
        train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / precision, callbacks=[Look()])
        assert set(seen) == {precision == "bf16"}
        seen.clear()


def test_the_recipe_in_a_run_folder_trains_to_the_same_weights(lora_run, tmp_path):
    rerun = train(str(lora_run / "recipe.yaml"), output=tmp_path / "again", changes={"train.report_to": []})
    ours = (lora_run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (rerun.model / "adapter_model.safetensors").read_bytes() == ours


def test_train_uses_the_loss_augmentation_callback_and_checkpoint_function_of_the_user(tiny_model, speech, tmp_path):
    from transformers import TrainerCallback

    from whisper_peft import token_loss_sum

    heard, calls, folders, steps = [], [], [], []

    def louder(wave, rng):
        heard.append((len(wave), rng.random()))
        return wave * 0.5

    def double(logits, labels):
        calls.append(logits.shape[:-1] == labels.shape and bool((labels >= 0).all()))
        return 2 * token_loss_sum(logits, labels)

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    recipe = tiny_recipe(tiny_model, speech, **{"evaluate.compare_clips": 0})
    result = train(
        recipe,
        output=tmp_path / "run",
        augment=louder,
        loss=double,
        callbacks=[Count()],
        on_checkpoint=[lambda folder: folders.append((folder.name, (folder / runs.COMPLETE).is_file()))],
    )
    # Only train clips are augmented, and each draw has a random number of its own.
    assert len(heard) == 4 * 4 and len({draw for _, draw in heard}) == 16
    assert calls == [True] * 4
    assert steps == [1, 2, 3, 4]
    assert folders == [("checkpoint-2", True), ("checkpoint-4", True)]
    plain = train(recipe, output=tmp_path / "plain")
    doubled, single = (
        next(record["loss"] for record in runs.read_jsonl(run.run / "metrics.jsonl") if "loss" in record)
        for run in (result, plain)
    )
    assert doubled == pytest.approx(2 * single, rel=0.05)


def test_training_in_bf16_works_on_the_cpu(tiny_model, speech, tmp_path):
    from transformers import TrainerCallback

    types = set()

    class Spy(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            layer = model.get_encoder().layers[0].fc1
            layer.register_forward_hook(lambda module, inputs, output: types.add((output.dtype, module.weight.dtype)))

    changes = {"train.precision": "bf16", "train.mode": "full", "train.steps": 2}
    result = train(tiny_recipe(tiny_model, speech, **changes), output=tmp_path / "run", callbacks=[Spy()])
    losses = [record["loss"] for record in runs.read_jsonl(result.run / "metrics.jsonl") if "loss" in record]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    # Training and evaluation compute in bf16, but the weights stay in fp32.
    assert types == {(torch.bfloat16, torch.float32)}


def rank_child(rank: int, n_ranks: int, port: int, folder: Path, model: Path, source: Path) -> None:
    """Train as one rank of a data-parallel run on the CPU, and store the weights and the losses."""
    sys.stdout = sys.stderr = (folder / f"{n_ranks}-{rank}.log").open("w")
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(n_ranks),
        LOCAL_WORLD_SIZE=str(n_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    changes = {"train.mode": "full", "train.steps": 2, "train.micro_batch_size": 2, "train.learning_rate": 1e-3}
    trainer = make_trainer(folder / f"{n_ranks}-{rank}", model, source, **changes)
    assert trainer.accelerator.num_processes == n_ranks
    losses = []
    step = trainer.training_step
    trainer.training_step = lambda *arguments, **options: losses.append(step(*arguments, **options)) or losses[-1]
    trainer.train()
    torch.save((weights_of(trainer.model), [loss.item() for loss in losses]), folder / f"{n_ranks}-{rank}.pt")


@pytest.mark.slow
def test_two_ranks_train_to_the_same_weights_as_one_rank(tiny_model, uneven, tmp_path, monkeypatch):
    """There are 9 clips in steps of 8, so the second rank has no clip in the second step."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    lines = (uneven / "metadata.csv").read_text(encoding="utf-8").splitlines()
    source = tmp_path / "nine.csv"
    rows = [f"{uneven}/{line}" for line in lines[1:]]
    source.write_text("\n".join([lines[0], *rows, f"{uneven}/0.wav,{WORDS[3]}"]), encoding="utf-8")
    processes = multiprocessing.get_context("spawn")
    results = {}
    for n_ranks in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (n_ranks, port, tmp_path, tiny_model, source)
        ranks = [processes.Process(target=rank_child, args=(rank, *arguments)) for rank in range(n_ranks)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(600)
        logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob(f"{n_ranks}-*.log"))
        assert [rank.exitcode for rank in ranks] == [0] * n_ranks, logs
        results[n_ranks] = torch.load(tmp_path / f"{n_ranks}-0.pt")
    (one_weights, one_losses), (two_weights, two_losses) = results[1], results[2]
    assert one_losses == pytest.approx(two_losses, abs=1e-5)
    # Adam divides by the size of the gradient, so rounding shows where the gradient is tiny.
    for name, weight in one_weights.items():
        difference = (weight - two_weights[name]).abs()
        assert difference.mean() < 1e-6 and difference.max() < 2.1e-3, name
