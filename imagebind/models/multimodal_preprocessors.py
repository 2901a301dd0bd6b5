"""The tokenizer under the released package's names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch

from imagebind.data.text import TEXT_TOKENS, clip_tokenizer, read_text


class SimpleTokenizer:
    """CLIP's tokenizer: texts -> token ids, as load_and_transform_text gives them.

    Args:
        bpe_path: a vocabulary in the form of CLIP's file; None takes that.
        context_length: of a row of ids.
    """

    def __init__(self, bpe_path: str | os.PathLike | None = None, context_length: int = TEXT_TOKENS):
        self.context_length = context_length
        self._tokenizer = clip_tokenizer(bpe_path and os.fspath(bpe_path))
        self.encoder, self.decoder = self._tokenizer.encoder, self._tokenizer.decoder

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end token."""
        return self._tokenizer.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids, with a space after each word."""
        return self._tokenizer.decode([int(token) for token in tokens])

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Tokenize one text, (77,) int64, or B, (B, 77); a long one keeps its start, and its end token.

        Raises:
            MediaError: a text cannot be encoded.
        """
        if isinstance(texts, str):
            return read_text(texts, self._tokenizer, context_length or self.context_length).tokens
        return torch.stack([self(text, context_length) for text in texts])
