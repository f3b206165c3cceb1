"""The Whisper encoder on a window shorter than the model's own 30 s.

Whisper was trained on 30 s, and ordinary inference pads every clip to that length, so the model also attends to the
silence behind the clip. A *tight* window ends soon after the clip. It saves the work for the silence, and differs a
little from what the model knows. A *condensed* window saves nearly as much and differs less: behind the clip stand a
few positions that represent all the silence up to 30 s.

    log-mel frames   |0 . . . . . . . . . . . . 999|  + 8 frames of silence (EDGE_FRAMES), for the convolutions
                      two convolutions, stride 2
    hidden           |0 . . . . . . . . . . . . 499|500|501|  501 is the first that sees nothing but silence
                      + position embeddings
    states           |0 . . . . . . . . . . . . 499| s  s  s  ...  s|  s: hidden[501], 64 times, with the embeddings of
    weight            1 1 1 1 1 1 1 1 1 1 1 1 1  1   w  w  w  ...  w   places spread evenly over 500 to 1499

The picture shows a window of 10 s, with w = 1000 / 64. Silence has the same hidden vector at every position; only the
position embedding differs, and that changes slowly. So a few positions can speak for all. Each counts in every
attention as the w positions that it stands for: log(w) is added to its scores. Where the silence has no more positions
than would represent it, all of them are there, and w is 1.

Only the encoder and the cross-attention of the decoder get another class. The model around them stays transformers'
own, so what is saved is a plain WhisperForConditionalGeneration or a plain peft adapter.

This module is imported only when a model is loaded: transformers' modelling code takes seconds to import.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch.nn.functional import dropout, gelu
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoder, WhisperEncoderLayer

from whisper_peft.model import attention
from whisper_peft.model.architecture import silence_positions

# Frames of silence behind a window, so that the convolutions end in silence and not in zeros, which are loud. The
# number is a multiple of the convolutions' stride.
EDGE_FRAMES = 8
# In transformers 4, a layer has an argument without a default value.
LAYER_OPTIONS = {
    name: None for name in ("layer_head_mask",) if name in inspect.signature(WhisperEncoderLayer.forward).parameters
}


def window_encoder(model) -> None:
    """Let a Whisper take windows of any even number of frames; on the whole window it computes what it did before.

    Args:
        model: A WhisperForConditionalGeneration, which is changed.
    """
    attention.register_attention()
    model.set_attn_implementation(attention.NAME)
    inner = model.model
    inner.encoder = _change_class(inner.encoder, WindowedEncoder)
    for layer in inner.decoder.layers:
        layer.encoder_attn = _change_class(layer.encoder_attn, WindowedCrossAttention)
    condense(model, False)


def condense(model, wanted: bool) -> None:
    """Choose what stands behind a short window: nothing, or positions that represent the silence up to 30 s.

    Args:
        model: A Whisper whose encoder takes windows, see `window_encoder`. It stays so until the next call.
        wanted: Whether the silence is represented.
    """
    inner = model.model
    n_silence = silence_positions(inner.config.max_source_positions) if wanted else 0
    inner.encoder.silence_positions = n_silence
    for layer in inner.decoder.layers:
        layer.encoder_attn.silence_positions = n_silence


def silence_weight(n_positions: int, silence_positions: int, max_source_positions: int) -> float:
    """Return how many positions each one that represents the silence stands for.

    The number follows from the number of encoder positions alone, so the decoder needs nothing else to know it.

    Args:
        n_positions: Encoder positions, those for the silence included.
        silence_positions: Positions that represent the silence; 0 if nothing stands behind the window.
        max_source_positions: Encoder positions of the model's whole window.
    """
    if not silence_positions or n_positions >= max_source_positions:
        return 1.0
    n_of_window = n_positions - silence_positions
    return (max_source_positions - n_of_window) / silence_positions


def attention_bias(states: torch.Tensor, silence_positions: int, max_source_positions: int) -> torch.Tensor | None:
    """Return the bias that is added to the scores of attention to encoder states.

    Args:
        states: Encoder states (batch, n_positions, width).
        silence_positions: How many of them, the last ones, represent the silence.
        max_source_positions: Encoder positions of the model's whole window.

    Returns:
        The bias (1, 1, 1, n_positions); None where all positions stand for themselves.
    """
    n_positions = states.shape[1]
    weight = silence_weight(n_positions, silence_positions, max_source_positions)
    if weight == 1.0:
        return None
    device_type = states.device.type
    # The type has to be that of the queries.
    dtype = states.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    bias = torch.zeros((1, 1, 1, n_positions), dtype=dtype, device=states.device)
    bias[..., n_positions - silence_positions :] = math.log(weight)
    return bias


class WindowedEncoder(WhisperEncoder):
    """Whisper's encoder; the positions of a short window are the first ones of the whole window."""

    silence_positions = 0

    def forward(self, input_features: torch.Tensor, attention_mask=None, **kwargs) -> BaseModelOutput:
        """Encode log-mels.

        Args:
            input_features: Log-mels (batch, n_mels, n_frames); n_frames is even, and at most the model's own.
            attention_mask: Handed on to transformers on the whole window, which ignores it.
            **kwargs: Handed on as well.

        Returns:
            last_hidden_state (batch, n_positions, width). Its positions are half as many as the frames, and those that
            represent the silence behind the window.
        """
        n_window = input_features.shape[-1] // 2
        n_silent = self.max_source_positions - n_window
        if n_silent <= 0:
            return super().forward(input_features, attention_mask=attention_mask, **kwargs)
        n_chosen = min(self.silence_positions, n_silent)
        states = self._embed(input_features, n_window, n_silent, n_chosen)
        states = dropout(states, p=self.dropout, training=self.training)
        bias = attention_bias(states, n_chosen, self.max_source_positions)
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand([]) < self.layerdrop:
                continue
            states = layer(states, bias, **LAYER_OPTIONS)
            # transformers 4 returns a tuple.
            if isinstance(states, tuple):
                states = states[0]
        return BaseModelOutput(last_hidden_state=self.layer_norm(states))

    def _embed(self, log_mels: torch.Tensor, n_window: int, n_silent: int, n_chosen: int) -> torch.Tensor:
        """Return the states that the first layer reads: (batch, n_window + n_chosen, width).

        Args:
            log_mels: (batch, n_mels, 2 * n_window).
            n_window: Positions of the window.
            n_silent: Positions between the window's end and 30 s.
            n_chosen: How many of them are computed.
        """
        if n_chosen:
            # Each clip has its own value for silence, its floor: (batch, 1, 1).
            floor = log_mels.amin(dim=(1, 2), keepdim=True)
            edge = floor.expand(-1, log_mels.shape[1], EDGE_FRAMES)
            log_mels = torch.cat([log_mels, edge], dim=2)
        # (batch, n_window and a few, width)
        hidden = gelu(self.conv2(gelu(self.conv1(log_mels)))).permute(0, 2, 1)
        embeddings = self.embed_positions.weight
        states = hidden[:, :n_window] + embeddings[:n_window]
        if not n_chosen:
            return states
        # The middles of n_chosen equal parts of the silence.
        places = torch.arange(n_chosen, device=states.device) + 0.5
        places = n_window + (places * (n_silent / n_chosen)).long()
        # The position after the window's end still sees its last frame; the next one sees nothing of it.
        silence = hidden[:, n_window + 1 : n_window + 2]
        return torch.cat([states, silence + embeddings[places]], dim=1)


class WindowedCrossAttention(WhisperAttention):
    """The decoder's attention to the encoder, in which a position of the silence counts as many."""

    silence_positions = 0

    def forward(self, hidden_states: torch.Tensor, key_value_states=None, attention_mask=None, **kwargs):
        """Attend as transformers does, with a bias where the encoder condensed the silence."""
        if key_value_states is not None and attention_mask is None:
            attention_mask = attention_bias(key_value_states, self.silence_positions, self.config.max_source_positions)
        return super().forward(
            hidden_states, key_value_states=key_value_states, attention_mask=attention_mask, **kwargs
        )


def _change_class(module: torch.nn.Module, subclass: type) -> torch.nn.Module:
    """Return a module of a subclass that shares everything with the given one.

    Weights, buffers and settings are the same objects: nothing is copied, and no weight is drawn anew, as a constructor
    would do. The given module keeps its class.
    """
    changed: torch.nn.Module = object.__new__(subclass)
    changed.__dict__.update(module.__dict__)
    return changed
