"""The shape of a Whisper, from which its size follows; openai's own are known."""

from __future__ import annotations

from dataclasses import dataclass

POSITIONS_PER_S = 50  # of the encoder: half as many as frames


def silence_positions(max_source_positions: int) -> int:
    """How many positions speak for the silence: 64 for Whisper's 1,500.

    By trial on the untouched Whisper base (mean Kullback-Leibler divergence from its answers on 30 s, 32 Hindi clips,
    0.5 s of slack): 0.126 with none, 0.050 with 32, 0.019 with 64, 0.010 with 128.
    """
    return round(max_source_positions * 64 / 1500)


@dataclass(frozen=True)
class Architecture:
    """The shape of a Whisper."""

    d_model: int
    layers: int  # of the encoder
    decoder_layers: int
    heads: int
    vocab: int = 51865
    n_mels: int = 80
    ffn: int = 0  # 0: four times the width
    max_positions: int = 1500
    max_tokens: int = 448

    @property
    def window_s(self) -> float:
        """Seconds of the whole window."""
        return self.max_positions / POSITIONS_PER_S

    def positions_of(self, window_s: float) -> int:
        """Encoder positions of a window."""
        return round(window_s * POSITIONS_PER_S)

    @property
    def silence_positions(self) -> int:
        """How many stand for the silence behind a condensed window."""
        return silence_positions(self.max_positions)

    @property
    def f(self) -> int:
        """Width of the feed-forward layers."""
        return self.ffn or 4 * self.d_model

    @property
    def encoder_matrices(self) -> int:
        """Weights of the encoder's linear layers."""
        return self.layers * (4 * self.d_model**2 + 2 * self.d_model * self.f)

    @property
    def decoder_matrices(self) -> int:
        """Weights of the decoder's linear layers."""
        return self.decoder_layers * (8 * self.d_model**2 + 2 * self.d_model * self.f)

    @property
    def convolutions(self) -> int:
        """Weights of the two convolutions."""
        return 3 * self.d_model * (self.n_mels + self.d_model) + 2 * self.d_model

    @property
    def embedding(self) -> int:
        """Weights of the token embedding, which is the output head, too."""
        return self.vocab * self.d_model

    @property
    def positions(self) -> int:
        """Weights of the two position embeddings."""
        return (self.max_positions + self.max_tokens) * self.d_model

    @property
    def biases(self) -> int:
        """Of the linear layers."""
        d, f = self.d_model, self.f
        return self.layers * (4 * d + f) + self.decoder_layers * (7 * d + f)

    @property
    def norms(self) -> int:
        """Weights of the layer norms."""
        return (4 * self.layers + 6 * self.decoder_layers + 4) * self.d_model

    @property
    def parameters(self) -> int:
        """All weights."""
        return (
            self.encoder_matrices + self.decoder_matrices + self.convolutions + self.embedding + self.positions
            + self.biases + self.norms
        )  # fmt: skip

    def parameters_of(self, name: str) -> int:
        """Weights of all modules whose name ends so, as peft's `modules_to_save` takes them; 0 if it is not known."""
        d, both = self.d_model, self.layers + self.decoder_layers
        known = {
            "conv1": 3 * d * self.n_mels + d, "conv2": 3 * d * d + d, "embed_positions": self.positions,
            "embed_tokens": self.embedding, "proj_out": self.embedding, "self_attn_layer_norm": both * 2 * d,
            "encoder_attn_layer_norm": self.decoder_layers * 2 * d, "final_layer_norm": both * 2 * d,
            "layer_norm": (2 + 2 * both + self.decoder_layers) * 2 * d,
        }  # fmt: skip
        return known.get(name, 0)

    @classmethod
    def of(cls, config) -> Architecture:
        """From a WhisperConfig."""
        return cls(
            d_model=config.d_model, layers=config.encoder_layers, decoder_layers=config.decoder_layers,
            heads=config.encoder_attention_heads, vocab=config.vocab_size, n_mels=config.num_mel_bins,
            ffn=config.encoder_ffn_dim, max_positions=config.max_source_positions,
            max_tokens=config.max_target_positions,
        )  # fmt: skip


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
