"""Texts to inputs."""

from __future__ import annotations

import pytest
import torch

from imagebind import data


def test_tokens_are_those_of_clip():
    """Its marks, cleaning, lower case and byte pairs; as clip.tokenize gives them."""
    expected = {
        "A dog.": [320, 1929, 269],
        "hello world!": [3306, 1002, 256],
        " a \n photo&amp;amp;  of a CAT ": [320, 1125, 261, 539, 320, 2368],
        "<|startoftext|> a <|endoftext|>": [49406, 320, 49407],
    }
    tokens = data.load_and_transform_text(list(expected), "cpu")
    assert tokens.shape == (4, 77)
    assert tokens.dtype == torch.int64
    for row, ids in zip(tokens.tolist(), expected.values(), strict=True):
        assert row == [49406, *ids, 49407, *[0] * (75 - len(ids))]
    assert data.load_and_transform_text(None, "cpu") is None


@pytest.mark.parametrize(("n_words", "is_cut"), [(75, False), (76, True), (500, True)])
def test_a_long_text_keeps_its_first_75_tokens_and_both_marks(n_words, is_cut):
    text = data.read_text("dog " * n_words)
    assert text.tokens.tolist() == [49406, *[1929] * 75, 49407]
    assert text.is_truncated == is_cut
