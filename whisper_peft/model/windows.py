"""The Whisper encoder on a window shorter than the model's own 30 s.

Whisper was trained on 30 s, and ordinary inference pads every clip to that: the model also attends to the silence. A
window that simply ends after the clip saves that work, and is a little different from what the model knows. A
*condensed* window keeps both: behind the clip stand a few positions that speak for all the silence up to 30 s. Silence
is the same vector at every position but for the position's embedding, so its keys and values vary slowly along it:
`silence_positions` of them are spread evenly over it, and each counts in every attention as the `weight` positions it
stands for, by a bias of log(weight). Where they would save nothing, it is the whole window.

Only the encoder and the decoder's cross-attention are put in another class; the model around them stays transformers'
own, so what is saved is a plain WhisperForConditionalGeneration or a plain peft adapter.
Imported only when a model is loaded: transformers' modelling code takes seconds to import.
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

EDGE_FRAMES = 8  # of silence behind a window, so that the convolutions end in it; a multiple of their stride
# transformers 4 has an argument without default here
LAYER_OPTIONS = {
    name: None for name in ("layer_head_mask",) if name in inspect.signature(WhisperEncoderLayer.forward).parameters
}


def window_encoder(model) -> None:
    """Lets a Whisper take windows of any even number of frames; on the whole window it computes what it did."""
    model.set_attn_implementation(attention.NAME)
    inner = model.model
    inner.encoder = _of_class(WindowedEncoder, inner.encoder)
    for layer in inner.decoder.layers:
        layer.encoder_attn = _of_class(WindowedCrossAttention, layer.encoder_attn)
    condense(model, False)


def condense(model, wanted: bool) -> None:
    """Chooses what stands behind a short window: nothing, or positions that speak for the silence up to 30 s."""
    inner = model.model
    positions = silence_positions(inner.config.max_source_positions) if wanted else 0
    inner.encoder.silence_positions = positions
    for layer in inner.decoder.layers:
        layer.encoder_attn.silence_positions = positions


def silence_weight(n_positions: int, silence_positions: int, max_source_positions: int) -> float:
    """How many positions each of the silence's stands for, from the number of encoder positions alone."""
    if not silence_positions or n_positions >= max_source_positions:
        return 1.0
    return (max_source_positions - (n_positions - silence_positions)) / silence_positions


def attention_bias(states: torch.Tensor, silence_positions: int, max_source_positions: int) -> torch.Tensor | None:
    """The bias (1, 1, 1, n_positions) on attention to encoder states (batch, n_positions, width); None: none."""
    n_positions = states.shape[1]
    weight = silence_weight(n_positions, silence_positions, max_source_positions)
    if weight == 1.0:
        return None
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype  # that of the queries
    bias = torch.zeros((1, 1, 1, n_positions), dtype=dtype, device=states.device)
    bias[..., n_positions - silence_positions :] = math.log(weight)
    return bias


class WindowedEncoder(WhisperEncoder):
    """Whisper's encoder; a short window's positions are the first of the whole one's."""

    silence_positions = 0

    def forward(self, input_features: torch.Tensor, attention_mask=None, **kwargs) -> BaseModelOutput:
        """Encodes log-mels (batch, n_mels, n_frames), n_frames even and at most the model's own.

        Returns:
            last_hidden_state (batch, n_positions, width): half as many positions as frames, and those that speak for
            the silence behind the window.
        """
        n_head = input_features.shape[-1] // 2
        n_silent = self.max_source_positions - n_head
        if n_silent <= 0:
            return super().forward(input_features, attention_mask=attention_mask, **kwargs)
        n_chosen = min(self.silence_positions, n_silent)
        if n_chosen:
            floor = input_features.amin(dim=(1, 2), keepdim=True)  # silence beside this clip
            edge = floor.expand(-1, input_features.shape[1], EDGE_FRAMES)
            input_features = torch.cat([input_features, edge], dim=2)
        hidden = gelu(self.conv2(gelu(self.conv1(input_features)))).permute(0, 2, 1)
        positions = self.embed_positions.weight
        states = hidden[:, :n_head] + positions[:n_head]
        if n_chosen:
            places = torch.arange(n_chosen, device=states.device) + 0.5
            places = n_head + (places * (n_silent / n_chosen)).long()
            silence = hidden[:, n_head + 1 : n_head + 2]  # the first position that sees nothing of the window
            states = torch.cat([states, silence + positions[places]], dim=1)
        states = dropout(states, p=self.dropout, training=self.training)
        bias = attention_bias(states, n_chosen, self.max_source_positions)
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand([]) < self.layerdrop:
                continue
            states = layer(states, bias, **LAYER_OPTIONS)
            states = states[0] if isinstance(states, tuple) else states  # a tuple in transformers 4
        return BaseModelOutput(last_hidden_state=self.layer_norm(states))


class WindowedCrossAttention(WhisperAttention):
    """The decoder's attention to the encoder; the silence's positions count as what they stand for."""

    silence_positions = 0

    def forward(self, hidden_states: torch.Tensor, key_value_states=None, attention_mask=None, **kwargs):
        """As transformers', with a bias where the encoder condensed the silence."""
        if key_value_states is not None and attention_mask is None:
            attention_mask = attention_bias(key_value_states, self.silence_positions, self.config.max_source_positions)
        return super().forward(
            hidden_states, key_value_states=key_value_states, attention_mask=attention_mask, **kwargs
        )


def _of_class(kind: type, module: torch.nn.Module) -> torch.nn.Module:
    """A module of a subclass with everything the given one has: weights, buffers and settings are the same objects."""
    other = kind.__new__(kind)
    other.__dict__.update(module.__dict__)
    return other
