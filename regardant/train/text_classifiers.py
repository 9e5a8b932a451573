"""Small classifiers of token sequences that show their attention: a BiLSTM with additive attention, and a
transformer that reads its class off the first token.

Both take tokens, or embeddings with a mask, so that explainers can move between the two; token 0 is padding.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regardant.core.mixer import MultiHead

PAD = 0


class TextClassifier(nn.Module):
    """Tokens [b, n] → logits [b, classes]. Subclasses define `read`."""

    def __init__(self, vocabulary: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=PAD)

    def embed(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
        return self.embedding(tokens)

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b classes"]:
        return self.read(self.embed(tokens), tokens != PAD)

    def read(self, embedded: Float[Tensor, "b n c"], real: Bool[Tensor, "b n"]) -> Float[Tensor, "b classes"]:
        raise TypeError(f"{type(self).__name__} must define read")


class AttentiveLSTM(TextClassifier):
    """h = BiLSTM(x), a = softmax(w·tanh(W h)), y = U Σ a h."""

    def __init__(self, vocabulary: int, *, dim: int = 64, classes: int = 2):
        super().__init__(vocabulary, dim)
        self.lstm = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)
        self.score = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))
        self.head = nn.Linear(dim, classes)

    def read(self, embedded, real):
        states = self._states(embedded, real)
        return self.head((self._weights(states, real)[..., None] * states).sum(1))

    def attention(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """The weights of the pooling."""
        real = tokens != PAD
        return self._weights(self._states(self.embed(tokens), real), real)

    def _states(self, embedded: Tensor, real: Tensor) -> Tensor:
        # Packed, so that the backward direction begins at each text's own end.
        packed = nn.utils.rnn.pack_padded_sequence(
            embedded, real.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = self.lstm(packed)
        return nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=real.shape[1])[0]

    def _weights(self, states: Tensor, real: Tensor) -> Tensor:
        return self.score(states)[..., 0].masked_fill(~real, -torch.inf).softmax(-1)


class TokenTransformer(TextClassifier):
    """Pre-norm blocks of softmax attention and a ReLU MLP over learned positions."""

    def __init__(
        self, vocabulary: int, *, dim: int = 64, heads: int = 4, layers: int = 2, length: int = 64,
        classes: int = 2,
    ):  # fmt: skip
        super().__init__(vocabulary, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(length, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.mixers = nn.ModuleList(MultiHead(dim, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def read(self, embedded, real):
        return self.head(self.norm(self._run(embedded, real)[0][:, 0]))

    def attention(self, tokens: Int[Tensor, "b n"]) -> list[Float[Tensor, "b h n n"]]:
        """The maps of every layer."""
        return self._run(self.embed(tokens), tokens != PAD, maps=True)[1]

    def _run(self, embedded: Tensor, real: Tensor, *, maps: bool = False) -> tuple[Tensor, list[Tensor]]:
        x, kept = embedded + self.positions[: embedded.shape[1]], []
        for norm, mixer, mlp in zip(self.norms, self.mixers, self.mlps):
            if maps:
                kept.append(mixer.mixing_matrix(norm(x), padding=real))
            x = x + mixer(norm(x), padding=real)
            x = x + mlp(x)
        return x, kept
