"""An adapter on an 8-bit or 4-bit base uses the same preparation, collator and trainer as any other adapter."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tiny_model, tiny_recipe
from transformers import TrainerCallback

from whisper_peft import SpeechCollator, SpeechDataset, UserError, evaluate, load_model, load_source, merge, runs, train
from whisper_peft.model.build import build_model, whisper_of
from whisper_peft.model.loading import load_base
from whisper_peft.model.locating import locate

KINDS = ("8bit", "4bit")
QUICK = {"train.learning_rate": 0.02, "evaluate.compare_clips": 2, "evaluate.max_clips": 2}


class Crash(TrainerCallback):
    """Raises an error in the third step, after the checkpoint of the second step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise MemoryError


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """Make a model so wide that a block of 64 weights is only a part of a row."""
    return make_tiny_model(tmp_path_factory.mktemp("wide") / "model", d_model=128, encoder_ffn_dim=256)


@pytest.fixture(scope="module")
def quantized_runs(wide_model, speech, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    return {
        kind: train(tiny_recipe(wide_model, speech, **{**QUICK, "train.quantize": kind}), output=folder / kind).run
        for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_linear_layers_are_quantised(wide_model, kind):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    model = load_base(str(wide_model), quantize=kind)
    layer = {"8bit": Linear8bitLt, "4bit": Linear4bit}[kind]
    for name, module in model.named_modules():
        if ".layers." in name and name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"):
            assert type(module) is layer, name
        elif own := list(module.parameters(recurse=False)):
            assert {parameter.dtype for parameter in own} == {torch.float32}, name
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_of_a_quantised_base_are_near_those_of_the_unquantised_one(wide_model, kind):
    torch.manual_seed(0)
    features, tokens = torch.randn(2, 80, 120), torch.randint(0, 500, (2, 7))
    with torch.no_grad():
        exact, rounded = (
            load_base(str(wide_model), quantize=quantize).eval()(input_features=features, decoder_input_ids=tokens)
            for quantize in (None, kind)
        )
    gap = (exact.logits - rounded.logits).std() / exact.logits.std()
    assert 0 < gap < {"8bit": 0.05, "4bit": 0.35}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_an_evaluation_does_not_change_the_gradient(wide_model, kind, autocast):
    """In eval mode a 4-bit layer would repack its weights for a kernel that has no backward."""
    dtype = torch.bfloat16 if autocast else None
    torch.manual_seed(0)
    model = build_model(
        locate(wide_model), "lora", lora={"rank": 4, "dropout": 0.0}, quantize=kind, autocast_dtype=dtype
    )
    features, tokens = torch.randn(2, 80, 120), torch.randint(0, 500, (2, 7))

    def gradient() -> torch.Tensor:
        model.train().zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(input_features=features, labels=tokens).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradient()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        encoded = whisper_of(model.eval()).get_encoder()(features)
        whisper_of(model).generate(encoder_outputs=encoded, language="hi", max_new_tokens=3)
    assert before.any() and torch.equal(gradient(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_a_quantised_base_learns_and_is_evaluated_and_merged(
    wide_model, speech, tmp_path, quantized_runs, kind
):
    run = quantized_runs[kind]
    facts = runs.read_json(run / "run.json")
    assert facts["base"]["quantize"] == kind == runs.read_json(run / "adapter" / "base.json")["quantize"]
    losses = [record["loss"] for record in runs.read_jsonl(run / "metrics.jsonl") if "loss" in record]
    assert losses[-1] < losses[0] - 0.3
    for asked, expected_kind in (("as-trained", kind), ("none", None), ("8bit", "8bit"), ("4bit", "4bit")):
        model, _, _ = load_model(run, quantize=asked)
        loaded = [word for word in KINDS if getattr(whisper_of(model), f"is_loaded_in_{word}", False)]
        assert loaded == ([expected_kind] if expected_kind else [])
    same = evaluate(run, speech / "test")
    assert same.token_loss == pytest.approx(facts["final"]["token_loss"], abs=1e-3)
    plain = evaluate(run, speech / "test", quantize="none")
    assert plain.token_loss == pytest.approx(same.token_loss, abs=0.1) and plain != same
    report = merge(run, tmp_path / "merged")
    assert report.passed and report.logit_gap < 1e-4
    assert report.quantized.base == kind and report.quantized.logit_gap > 10 * report.logit_gap
    assert report.quantized.merged_wer >= 0 and report.quantized.adapter_wer >= 0
    merged = evaluate(tmp_path / "merged", speech / "test")
    assert merged.token_loss == pytest.approx(plain.token_loss, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_quantised_run_equals_an_uninterrupted_one(wide_model, speech, tmp_path, quantized_runs, kind):
    recipe = tiny_recipe(wide_model, speech, **{**QUICK, "train.quantize": kind})
    with pytest.raises(MemoryError):
        train(recipe, output=tmp_path / "run", callbacks=[Crash()])
    resumed = train(resume=tmp_path / "run")
    name = "adapter_model.safetensors"
    assert (resumed.model / name).read_bytes() == (quantized_runs[kind] / "adapter" / name).read_bytes()


@pytest.mark.parametrize("kind", [None, "4bit"])
def test_an_adapter_continues_training_on_any_base_with_the_same_token_loss(
    wide_model, speech, tmp_path, quantized_runs, kind
):
    done, said = quantized_runs["4bit"], []
    changes = {"model.name": str(done), "train.quantize": kind, "train.steps": 1, "train.learning_rate": 1e-9}
    run = train(tiny_recipe(wide_model, speech, **{**QUICK, **changes}), output=tmp_path / "on", say=said.append).run
    before, after = (evaluate(run_folder, speech / "test", quantize="4bit").token_loss for run_folder in (done, run))
    assert after == pytest.approx(before, abs=1e-4)
    assert runs.read_json(run / "adapter" / "base.json")["quantize"] == kind
    noted = [line for line in said if "trained on a 4bit base, this run has an unquantised one" in line]
    assert bool(noted) == (kind is None)


def test_every_mode_gets_the_same_batches(wide_model, speech, tmp_path):
    from test_trainer import first_batches

    from whisper_peft.training import trainer as room

    seen = {}
    for mode, quantize in (("full", None), ("lora", None), ("lora", "8bit"), ("lora", "4bit")):
        changes = {**QUICK, "train.mode": mode, "train.quantize": quantize, "train.steps": 1}
        with pytest.MonkeyPatch.context() as patch:

            def look(self, *arguments, key=(mode, quantize), **options):
                seen[key] = first_batches(self, 3)
                raise InterruptedError

            patch.setattr(room.SpeechTrainer, "train", look)
            with pytest.raises(InterruptedError):
                train(tiny_recipe(wide_model, speech, **changes), output=tmp_path / f"{mode}{quantize}")
    first = seen.pop(("full", None))
    for others in seen.values():
        for a, b in zip(first, others, strict=True):
            assert a["rows"] == b["rows"]
            for key in ("input_features", "decoder_input_ids", "labels"):
                assert torch.equal(a[key], b[key])


def test_full_fine_tuning_of_a_quantised_base_is_refused(wide_model, speech, tmp_path):
    recipe = tiny_recipe(wide_model, speech, **{"train.mode": "full", "train.quantize": "4bit"})
    with pytest.raises(UserError, match=r"train.quantize: 4bit weights cannot be trained, only an adapter"):
        train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_8_bit_optimizer_trains_and_keeps_its_state_in_8_bits(wide_model, speech, tmp_path, mode):
    changes = {**QUICK, "train.mode": mode, "train.optimizer": "adamw_8bit", "train.learning_rate": 0.003}
    recipe = tiny_recipe(wide_model, speech, **changes)
    if not torch._C._dispatch_has_kernel_for_dispatch_key("bitsandbytes::optimizer_update_8bit_blockwise", "CPU"):
        with pytest.raises(UserError, match=r"bitsandbytes .* has adamw_8bit for GPUs only"):
            train(recipe, output=tmp_path / "run")
        return
    with pytest.raises(MemoryError):
        train(recipe, output=tmp_path / "run", callbacks=[Crash()])
    train(resume=tmp_path / "run")
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("checkpoint-4"))
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    sizes = {torch.uint8: 0, torch.float32: 0}
    for own in state.values():
        for part in own.get("__bnb_optimizer_quant_state__", own).values():
            # A smaller tensor is the table of the 256 quantised values.
            if isinstance(part, torch.Tensor) and part.numel() > 256:
                sizes[part.dtype] += part.numel()
    # The tensors of an adapter as small as this stay in float32.
    if mode == "full":
        assert sizes[torch.uint8] > sizes[torch.float32]
    losses = [record["loss"] for record in runs.read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in record]
    assert losses[-1] < losses[0]


def test_the_collator_gives_float32_features_also_for_a_quantised_base(wide_model, speech, quantized_runs):
    """A quantised model is evaluated on float32 features, as any other model."""
    for kind in KINDS:
        model, preparation, _ = load_model(quantized_runs[kind])
        dataset = SpeechDataset(load_source(str(speech / "test")), preparation, language="hi")
        batch = SpeechCollator(preparation)([dataset[0]])
        assert batch["input_features"].dtype == torch.float32 == whisper_of(model).get_encoder().conv1.weight.dtype
