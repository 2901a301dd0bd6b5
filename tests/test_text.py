"""Texts to inputs."""

from __future__ import annotations

import gzip

import pytest
import torch

from imagebind import data
from imagebind.models.multimodal_preprocessors import SimpleTokenizer


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


def test_the_tokenizer_of_the_released_package():
    tokenizer = SimpleTokenizer(bpe_path=data.return_bpe_path())
    texts = ["A dog.", "dog " * 500]
    rows = tokenizer(texts)
    assert torch.equal(rows, data.load_and_transform_text(texts, "cpu"))
    assert torch.equal(tokenizer(texts[0]), rows[0])
    assert tokenizer([texts[0]]).shape == (1, 77)
    assert torch.equal(SimpleTokenizer()(texts), rows)
    assert SimpleTokenizer(context_length=5)("a dog and a cat").tolist() == [49406, 320, 1929, 537, 49407]
    assert tokenizer("a dog", context_length=6).tolist() == [49406, 320, 1929, 49407, 0, 0]
    assert tokenizer.encode("A dog.") == [320, 1929, 269]
    assert tokenizer.decode(rows[0, :5]) == "<|startoftext|>a dog . <|endoftext|>"


def test_a_given_vocabulary_is_used(tmp_path):
    """With the first two merges swapped, which are tokens 512 and 513."""
    with gzip.open(data.return_bpe_path(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    lines[1], lines[2] = lines[2], lines[1]
    with gzip.open(tmp_path / "vocabulary.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    usual, swapped = SimpleTokenizer(), SimpleTokenizer(tmp_path / "vocabulary.txt.gz")
    first, second = (usual.decode([token]) for token in (512, 513))
    assert (first, second) == tuple(swapped.decode([token]) for token in (513, 512))
