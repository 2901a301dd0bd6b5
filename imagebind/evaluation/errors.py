"""What ends a run."""

from __future__ import annotations


class EvaluationError(RuntimeError):
    """A run that cannot be done; the message is one line that says why and what to do."""


class NothingLeftError(EvaluationError):
    """So many files were skipped that no pair, or in retrieval mode no file of a modality, is left.

    Args:
        counts: as in metrics.json.
    """

    def __init__(self, counts: dict[str, int]):
        super().__init__(f"nothing is left to evaluate: {counts['failed']} files were skipped")
        self.counts = counts


class OptionError(ValueError):
    """An option with a value that it does not take.

    Args:
        sentence: what it takes, such as "must be a whole number from 1 to 4096, not 0".
        name: of the option.
    """

    def __init__(self, sentence: str, name: str = ""):
        super().__init__(f"{name} {sentence}".strip())
        self.sentence, self.name = sentence, name
