"""The dimensions of a Whisper, and the number of weights that follows from them; openai's own models are listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import WhisperConfig

# Encoder positions per second of sound. A second has 100 log-mel frames, and the second convolution halves them.
POSITIONS_PER_S = 50
# Positions that stand for the silence in Whisper's own window of 1,500 positions.
_SILENCE_POSITIONS = 64
_WHISPER_POSITIONS = 1500


def silence_positions(max_source_positions: int) -> int:
    """Return how many positions stand for the silence behind a condensed window.

    The number is 64 for Whisper's 1,500 positions. It was chosen by trial on the untouched Whisper base, with 32 Hindi
    clips and 0.5 s of slack. The mean Kullback-Leibler divergence from the model's answers on 30 s was 0.126 with none,
    0.050 with 32, 0.019 with 64 and 0.010 with 128.

    Args:
        max_source_positions: Encoder positions of the model's whole window.

    Example:
        >>> silence_positions(1500)
        64
    """
    return round(max_source_positions * _SILENCE_POSITIONS / _WHISPER_POSITIONS)


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a Whisper.

    Args:
        d_model: Width of the states.
        layers: Number of encoder layers.
        decoder_layers: Number of decoder layers.
        heads: Number of attention heads in a layer.
        vocab: Number of tokens in the vocabulary.
        n_mels: Number of mel bins.
        ffn: Width of the feed-forward layers; 0 means four times the width of the states.
        max_positions: Encoder positions of the whole window.
        max_tokens: Longest sequence of tokens that the decoder takes.
    """

    d_model: int
    layers: int
    decoder_layers: int
    heads: int
    vocab: int = 51865
    n_mels: int = 80
    ffn: int = 0
    max_positions: int = 1500
    max_tokens: int = 448

    @property
    def window_s(self) -> float:
        """Return the length of the whole window in seconds."""
        return self.max_positions / POSITIONS_PER_S

    def positions_of(self, window_s: float) -> int:
        """Return the number of encoder positions in a window of some seconds."""
        return round(window_s * POSITIONS_PER_S)

    @property
    def silence_positions(self) -> int:
        """Return how many positions stand for the silence behind a condensed window."""
        return silence_positions(self.max_positions)

    @property
    def ffn_width(self) -> int:
        """Return the width of the feed-forward layers."""
        return self.ffn or 4 * self.d_model

    @property
    def encoder_matrices(self) -> int:
        """Count the weights of the encoder's linear layers, without their biases."""
        return self.layers * (4 * self.d_model**2 + 2 * self.d_model * self.ffn_width)

    @property
    def decoder_matrices(self) -> int:
        """Count the weights of the decoder's linear layers, without their biases."""
        return self.decoder_layers * (8 * self.d_model**2 + 2 * self.d_model * self.ffn_width)

    @property
    def convolutions(self) -> int:
        """Count the weights and biases of the two convolutions, whose kernels are 3 frames long."""
        return 3 * self.d_model * (self.n_mels + self.d_model) + 2 * self.d_model

    @property
    def embedding(self) -> int:
        """Count the weights of the token embedding, which is the output head as well."""
        return self.vocab * self.d_model

    @property
    def positions(self) -> int:
        """Count the weights of the two position embeddings."""
        return (self.max_positions + self.max_tokens) * self.d_model

    @property
    def biases(self) -> int:
        """Count the biases of the linear layers; the projections to keys have none."""
        encoder_layer = 4 * self.d_model + self.ffn_width
        decoder_layer = 7 * self.d_model + self.ffn_width
        return self.layers * encoder_layer + self.decoder_layers * decoder_layer

    @property
    def norms(self) -> int:
        """Count the weights and biases of the layer norms."""
        return (4 * self.layers + 6 * self.decoder_layers + 4) * self.d_model

    @property
    def parameters(self) -> int:
        """Count all weights of the model."""
        matrices = self.encoder_matrices + self.decoder_matrices
        embeddings = self.embedding + self.positions
        return matrices + self.convolutions + embeddings + self.biases + self.norms

    def parameters_of(self, name: str) -> int:
        """Count the weights of all modules whose name ends in some words, as peft's `modules_to_save` takes them.

        Args:
            name: The last part of the modules' names.

        Returns:
            The number of weights; 0 for a name that is not known.
        """
        d = self.d_model
        n_layers = self.layers + self.decoder_layers
        # A layer norm has a weight and a bias for each number of a state.
        norm = 2 * d
        known = {
            "conv1": 3 * d * self.n_mels + d,
            "conv2": 3 * d * d + d,
            "embed_positions": self.positions,
            "embed_tokens": self.embedding,
            "proj_out": self.embedding,
            "self_attn_layer_norm": n_layers * norm,
            "encoder_attn_layer_norm": self.decoder_layers * norm,
            "final_layer_norm": n_layers * norm,
            # All of the above end in it, and each half has one more behind its last layer.
            "layer_norm": (2 + 2 * n_layers + self.decoder_layers) * norm,
        }
        return known.get(name, 0)

    @classmethod
    def of(cls, config: WhisperConfig) -> Architecture:
        """Read the dimensions from the config of a model."""
        return cls(
            d_model=config.d_model,
            layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            heads=config.encoder_attention_heads,
            vocab=config.vocab_size,
            n_mels=config.num_mel_bins,
            ffn=config.encoder_ffn_dim,
            max_positions=config.max_source_positions,
            max_tokens=config.max_target_positions,
        )


# openai's own models, by the part of their Hub id after "openai/whisper-".
PUBLISHED = {
    "tiny": Architecture(384, 4, 4, 6),
    "tiny.en": Architecture(384, 4, 4, 6, vocab=51864),
    "base": Architecture(512, 6, 6, 8),
    "base.en": Architecture(512, 6, 6, 8, vocab=51864),
    "small": Architecture(768, 12, 12, 12),
    "small.en": Architecture(768, 12, 12, 12, vocab=51864),
    "medium": Architecture(1024, 24, 24, 16),
    "medium.en": Architecture(1024, 24, 24, 16, vocab=51864),
    "large": Architecture(1280, 32, 32, 20),
    "large-v2": Architecture(1280, 32, 32, 20),
    "large-v3": Architecture(1280, 32, 32, 20, vocab=51866, n_mels=128),
    "large-v3-turbo": Architecture(1280, 32, 4, 20, vocab=51866, n_mels=128),
}
