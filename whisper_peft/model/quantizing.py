"""A frozen base in 8 or 4 bits, by bitsandbytes, for an adapter to be trained on.

Only the linear layers of encoder and decoder are quantised: convolutions, layer norms, embeddings and the output head
(which is the embedding's own weight) stay as they are. On a CPU bitsandbytes computes otherwise than on a GPU: an 8-bit
base trains with its weights turned back into floats. It would be evaluated by LLM.int8(), which rounds its inputs, too,
and takes 80 bytes a number there; here it is evaluated as it is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HEAD = "proj_out"


def quantization_config(kind: str, compute_dtype: torch.dtype | None):
    """What transformers needs to load a base so.

    Args:
        kind: "8bit", LLM.int8() (Dettmers et al. 2022), or "4bit", NF4 with double quantisation (Dettmers et al. 2023).
        compute_dtype: of a 4-bit base's matrix products; None: float32.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[HEAD])
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype or torch.float32, llm_int8_skip_modules=[HEAD],
    )  # fmt: skip


def settle(model) -> None:
    """Makes a base that was loaded quantised fit for training and evaluation by turns."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            module.register_forward_pre_hook(_in_autocast_dtype)
        if isinstance(module, Linear8bitLt):
            module.register_forward_hook(_forget_input)
            if module.weight.device.type == "cpu":
                module.register_forward_pre_hook(_as_in_training)
        if isinstance(module, Linear4bit):
            # In eval mode it would repack its weights for a kernel without backward, and never unpack them again.
            module.support_avx512bf16_for_cpu = False


def _as_in_training(module, inputs: tuple) -> None:
    """The layer looks at its mode for one thing only: which of the two ways it computes."""
    module.training = True


def _forget_input(module, inputs: tuple, output: torch.Tensor) -> None:
    """An 8-bit layer's function keeps its input for a gradient of its weights, which are frozen.

    It is the larger half of what a layer keeps, and gradient checkpointing does not know of it.
    """
    function = output.grad_fn
    if hasattr(function, "A"):
        function.A = None
    if hasattr(function, "tensors"):
        function.tensors = (None, None, None)


def _in_autocast_dtype(module, inputs: tuple) -> tuple:
    """bitsandbytes' layers are unknown to autocast: their input is cast here, and their output comes in its type."""
    import torch

    (states,) = inputs
    kind = states.device.type
    return (states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states,)
