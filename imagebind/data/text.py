"""Texts -> (77,): ids of CLIP's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from imagebind import packages
from imagebind.data.inputs import ModelInput
from imagebind.data.media import media_errors

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

TEXT_TOKENS = 77
TOKENIZER = ("open_clip", "ftfy", "regex")  # the modules that it needs
# Names of the start and the end token: open_clip's -> CLIP's
SPECIAL_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


@dataclass(frozen=True)
class TextInput(ModelInput):
    """A text as the model sees it."""

    tokens: torch.Tensor  # (77,) int64: start token, text, end token, zeros
    is_truncated: bool  # the text has more tokens than fit

    @property
    def counts(self) -> dict[int, int]:
        """One clip, once; as for the other inputs."""
        return {0: 1}

    def clips(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return the tokens on a device, (1, 77)."""
        return self.tokens.to(device, non_blocking=True)[None]


def return_bpe_path() -> str:
    """Return the path of CLIP's vocabulary, bpe_simple_vocab_16e6.txt.gz; open_clip brings it along."""
    return packages.load("open_clip.tokenizer").default_bpe()


@cache
def clip_tokenizer(bpe_path: str | None = None) -> SimpleTokenizer:
    """Make CLIP's tokenizer (Radford et al. 2021): open_clip's, with the special tokens spelt as in CLIP.

    Args:
        bpe_path: of another vocabulary than CLIP's.
    """
    packages.require(*TOKENIZER)
    regex = packages.load("regex")
    made = packages.load("open_clip.tokenizer").SimpleTokenizer(bpe_path or return_bpe_path())
    pattern = made.pat.pattern
    for theirs, ours in SPECIAL_TOKENS.items():
        made.encoder[ours] = made.encoder[theirs]
        made.decoder[made.encoder[theirs]] = ours
        made.cache[ours] = ours
        pattern = pattern.replace(theirs, regex.escape(ours))
    made.pat = regex.compile(pattern, regex.IGNORECASE)
    return made


def read_text(text: str, tokenizer: SimpleTokenizer | None = None, n_tokens: int = TEXT_TOKENS) -> TextInput:
    """Tokenize a text; of a long one the first 75 tokens are kept, between start and end token.

    Args:
        tokenizer: another one than CLIP's.
        n_tokens: another length than 77.

    Raises:
        MediaError: the text cannot be encoded.
    """
    tokenizer = tokenizer or clip_tokenizer()
    with media_errors(text):
        start, end = tokenizer.all_special_ids
        ids = tokenizer.encode(text)
        kept = [start, *ids[: n_tokens - 2], end]
        tokens = torch.zeros(n_tokens, dtype=torch.int64)
        tokens[: len(kept)] = torch.tensor(kept)
        return TextInput(tokens, len(kept) < len(ids) + 2)
