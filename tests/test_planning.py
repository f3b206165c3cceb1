"""The predicted memory is compared with the tensors that are really alive."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref

import pytest
import torch
from conftest import make_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whisper_peft.model.activations import Load
from whisper_peft.model.architecture import PUBLISHED, Architecture
from whisper_peft.model.build import build_model, whisper_of
from whisper_peft.model.head import logits_at
from whisper_peft.model.locating import locate
from whisper_peft.model.memory import predict_memory
from whisper_peft.model.trained_weights import Method, adapter_parameters, count_trainable, weight_bytes
from whisper_peft.training.loss import token_loss_sum

CLIPS, TOKENS, RANK = 3, 30, 8


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and are alive, and their highest number."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.known and key not in self.sizes and storage.nbytes():
                self.sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.forget, key)
        self.peak = max(self.peak, self.now)
        return output

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """Make a model of four layers of width 64; the layers need more memory than the ends, as in a real model."""
    return make_tiny_model(
        tmp_path_factory.mktemp("deep") / "model",
        d_model=64,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_layers=4,
        decoder_layers=4,
        max_source_positions=1500,
    )


def measured(model, frames: int, dtype, *, steps: int = 2) -> tuple[int, int]:
    """Return the most bytes that a step needs beyond the model, and the number of target tokens."""
    labels = torch.randint(0, 500, (CLIPS, TOKENS))
    labels[0, 25:] = -100
    wanted = labels != -100
    # The first step makes the tensors that stay, such as the gradients.
    for _ in range(steps):
        model.zero_grad()
        alive = Alive([*model.parameters(), *model.buffers()])
        with alive:
            features = torch.randn(CLIPS, 80, frames)
            with (
                torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext(),
                logits_at(whisper_of(model), wanted, then=lambda logits: token_loss_sum(logits, labels[wanted])),
            ):
                loss = model(input_features=features, decoder_input_ids=labels.clamp_min(0), use_cache=False).logits
            loss.backward()
    return alive.peak, int(wanted.sum())


ADAPTED = [(kind, dropout) for kind in ("lora", "8bit", "4bit") for dropout in (0.0, 0.05)]


@pytest.mark.parametrize("kind, dropout", [("full", 0.0), *ADAPTED])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
# In bf16, attention is plain on short windows and the fused kernel on long ones.
@pytest.mark.parametrize("frames", [400, 1600])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_predicted_memory_of_a_step_is_near_the_measured_one(
    deep_model, kind, precision, frames, checkpointing, dropout
):
    mode, quantize = ("full", None) if kind == "full" else ("lora", None if kind == "lora" else kind)
    dtype = torch.bfloat16 if precision == "bf16" else None
    torch.manual_seed(0)
    model = build_model(
        locate(deep_model), mode, lora={"rank": RANK, "dropout": dropout}, quantize=quantize, autocast_dtype=dtype
    ).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    peak, targets = measured(model, frames, dtype)
    method = Method(
        mode=mode,
        quantize=quantize,
        precision=precision,
        device="cpu",
        gradient_checkpointing=checkpointing,
        rank=RANK,
        dropout=dropout,
    )
    memory = predict_memory(
        Architecture.of(whisper_of(model).config), method, Load(CLIPS, frames // 2, TOKENS, targets)
    )
    assert memory.activations + memory.logits + memory.gradients == pytest.approx(peak, rel=0.12)


@pytest.mark.parametrize("quantize", [None, "4bit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_the_prediction_holds_for_dora_and_for_modules_trained_in_full(deep_model, quantize, precision, dropout):
    dtype = torch.bfloat16 if precision == "bf16" else None
    lora = {"rank": RANK, "dropout": dropout, "dora": True, "modules_to_save": ("layer_norm",)}
    model = build_model(locate(deep_model), "lora", lora=lora, quantize=quantize, autocast_dtype=dtype).train()
    method = Method(
        quantize=quantize,
        precision=precision,
        device="cpu",
        rank=RANK,
        dropout=dropout,
        dora=True,
        trained_modules=("layer_norm",),
    )
    shape = Architecture.of(whisper_of(model).config)
    assert count_trainable(shape, method) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    peak, n_targets = measured(model, 800, dtype)
    memory = predict_memory(shape, method, Load(CLIPS, 400, TOKENS, n_targets))
    assert memory.activations + memory.logits + memory.gradients == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize(
    "name",
    [
        "conv1",
        "conv2",
        "embed_positions",
        "embed_tokens",
        "proj_out",
        "layer_norm",
        "self_attn_layer_norm",
        "encoder_attn_layer_norm",
        "final_layer_norm",
    ],
)
def test_the_parameters_of_each_module_are_counted_exactly(deep_model, name):
    whisper = whisper_of(build_model(locate(deep_model), "full"))
    modules = [module for key, module in whisper.named_modules() if key.endswith(name)]
    counted = Architecture.of(whisper.config).parameters_of(name)
    assert counted == sum(p.numel() for module in modules for p in module.parameters()) > 0


@pytest.mark.parametrize(
    "targets, freeze",
    [
        ("attention+mlp", None),
        ("attention", None),
        ("mlp", None),
        ("encoder", None),
        ("decoder+attention", None),
        ("attention+mlp", "encoder"),
        ("attention", "encoder"),
        ("mlp", "encoder"),
        ("decoder+attention", "encoder"),
    ],
)
def test_the_prediction_holds_for_adapters_on_a_part_of_the_model(deep_model, targets, freeze):
    model = build_model(locate(deep_model), "lora", lora={"rank": RANK, "targets": targets}, freeze=freeze).train()
    words = targets.split("+")
    method = Method(
        precision="fp32",
        device="cpu",
        rank=RANK,
        freeze=freeze,
        attention="mlp" not in words or "attention" in words,
        mlp="attention" not in words or "mlp" in words,
        encoder="decoder" not in words,
        decoder="encoder" not in words,
    )
    shape = Architecture.of(whisper_of(model).config)
    sizes = [p.numel() for name, p in model.named_parameters() if "lora_" in name]
    assert adapter_parameters(shape, method) == sum(sizes)
    assert count_trainable(shape, method) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    peak, n_targets = measured(model, 800, None)
    memory = predict_memory(shape, method, Load(CLIPS, 400, TOKENS, n_targets))
    held = memory.activations + memory.logits + memory.gradients
    # The prediction counts the activations before the first adapter, although they are not kept.
    assert 0.95 * peak < held < 1.35 * peak


@pytest.mark.parametrize("kind", ["full", "lora", "8bit", "4bit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bytes_of_the_weights_are_counted_exactly(deep_model, kind, precision):
    mode, quantize = ("full", None) if kind == "full" else ("lora", None if kind == "lora" else kind)
    dtype = torch.bfloat16 if precision == "bf16" else None
    model = build_model(locate(deep_model), mode, lora={"rank": RANK}, quantize=quantize, autocast_dtype=dtype)
    held = [p for name, p in model.named_parameters() if "lora_" not in name]
    shape = Architecture.of(whisper_of(model).config)
    method = Method(mode=mode, quantize=quantize, precision=precision, device="cpu", rank=RANK)
    n_bytes = sum(p.numel() * p.element_size() for p in held)
    assert weight_bytes(shape, method) == pytest.approx(n_bytes, rel=0.03 if quantize else 1e-6)
    assert count_trainable(shape, method) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if kind == "full":
        frozen = build_model(locate(deep_model), "full", freeze="encoder")
        wanted = sum(p.numel() for p in frozen.parameters() if p.requires_grad)
        assert count_trainable(shape, dataclasses.replace(method, freeze="encoder")) == wanted


def test_the_published_sizes_have_as_many_parameters_as_published():
    """The numbers are those of the checkpoints on the Hub, with the encoder positions."""
    known = {
        "tiny": 37_760_640,
        "base": 72_593_920,
        "small": 241_734_912,
        "medium": 763_857_920,
        "large-v2": 1_543_304_960,
        "large-v3": 1_543_490_560,
        "large-v3-turbo": 808_878_080,
    }
    assert len(PUBLISHED) == 12
    assert {name: PUBLISHED[name].parameters for name in known} == known


def test_the_predicted_peak_is_of_the_evaluation_if_it_needs_the_most_memory():
    shape, method = PUBLISHED["base"], Method(device="cpu")
    step = Load(1, 200, 30, 30)
    evaluated = dataclasses.replace(step, evaluated_clips=64, evaluated_positions=250, evaluated_tokens=200)
    alone, both = predict_memory(shape, method, step), predict_memory(shape, method, evaluated)
    assert alone.generation == 0 < both.generation and both.peak > alone.peak
    # The training step is another point in time.
    assert both.activations == both.logits == both.gradients == 0


def test_the_prediction_of_loading_has_no_adapter_and_no_optimizer():
    method = Method(precision="bf16", device="cpu", gradient_checkpointing=True)
    loading = predict_memory(PUBLISHED["base"], method, Load(1, 100, 20, 20))
    assert loading.loading > 0 and loading.adapters == loading.optimizer == 0
    step = predict_memory(PUBLISHED["base"], method, Load(8, 1500, 200, 1600))
    assert step.loading == 0 and step.adapters > 0 and step.optimizer > 0
