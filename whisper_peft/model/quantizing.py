"""A frozen base in 8 or 4 bits, by bitsandbytes, on which an adapter is trained.

Only the linear layers of encoder and decoder are quantised. Convolutions, layer norms, embeddings and the output head,
whose weight is the token embedding's, stay as they are.

On a CPU, bitsandbytes computes 8 bits differently than on a GPU, and in two ways. In training mode it turns the weights
back into floats. In eval mode it runs LLM.int8(), which also rounds the inputs, and takes 80 bytes a number on a CPU.
Here the base is evaluated as it is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

# The name of the one linear layer that is not quantised.
OUTPUT_HEAD = "proj_out"


def quantization_config(kind: str, compute_dtype: torch.dtype | None) -> BitsAndBytesConfig:
    """Return the setting with which transformers loads a quantised base.

    Args:
        kind: "8bit" for LLM.int8() (Dettmers et al. 2022), or "4bit" for NF4 with double quantisation (Dettmers et al.
            2023).
        compute_dtype: Type of the matrix products of a 4-bit base; None is float32.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[OUTPUT_HEAD])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype or torch.float32,
        llm_int8_skip_modules=[OUTPUT_HEAD],
    )


def prepare_quantized_layers(model: torch.nn.Module) -> None:
    """Let the layers of a quantised base be trained on and evaluated by turns, under autocast and in little memory.

    Args:
        model: A Whisper that was loaded quantised. Its layers get hooks.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            module.register_forward_pre_hook(_cast_to_autocast_dtype)
        if isinstance(module, Linear8bitLt):
            module.register_forward_hook(_forget_input)
            if module.weight.device.type == "cpu":
                module.register_forward_pre_hook(_set_training_mode)
        if isinstance(module, Linear4bit):
            # In eval mode it would repack its weights for a kernel without backward, and never unpack them again.
            module.support_avx512bf16_for_cpu = False


def _set_training_mode(module: torch.nn.Module, inputs: tuple) -> None:
    """Let an 8-bit layer on a CPU compute as in training, also in eval mode.

    The layer looks at its mode for nothing but the choice between the two ways of computing.
    """
    module.training = True


def _forget_input(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    """Drop the input that an 8-bit layer keeps for a gradient of its weights, which are frozen.

    The input is the larger half of what a layer keeps, and gradient checkpointing does not know of it.
    """
    function = output.grad_fn
    if hasattr(function, "A"):
        function.A = None
    if hasattr(function, "tensors"):
        function.tensors = (None, None, None)


def _cast_to_autocast_dtype(module: torch.nn.Module, inputs: tuple) -> tuple:
    """Cast a layer's input as autocast would, which does not know the layers of bitsandbytes.

    The output then has the type of the input.
    """
    import torch

    (states,) = inputs
    device_type = states.device.type
    if torch.is_autocast_enabled(device_type):
        states = states.to(torch.get_autocast_dtype(device_type))
    return (states,)
