"""Which file is which row of the embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from imagebind.evaluation.embed.embedded import MEDIA_MODALITIES, EmbeddedFiles
from imagebind.evaluation.inputs.plan import Plan
from imagebind.sources import Source


@dataclass(frozen=True)
class Rows:
    """The files behind the rows of the embeddings, and the P pairs among them."""

    files: dict[str, Sequence[Source]]  # modality -> its files
    numbers: list[int]  # of the pairs in the plan
    cells: np.ndarray  # (P, 2) row of the sound and row of the video of each pair

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.numbers)


def choose_rows(plan: Plan, embedded: EmbeddedFiles, mode: str) -> Rows:
    """Choose the order of the rows, from the files that have an embedding.

    In pairing mode pair i is row i of both modalities; of pairs alone each file has one row; in retrieval
    mode all files stay, in their order.

    Args:
        mode: as Options.mode.
    """
    files = {
        m: [source for source in plan.inputs[m] if source in embedded.leading[m]] for m in MEDIA_MODALITIES
    }
    row_of = {m: {source: i for i, source in enumerate(of)} for m, of in files.items()}
    pairs = plan.pairing.pairs
    numbers = [
        i for i, (audio, video) in enumerate(pairs) if audio in row_of["audio"] and video in row_of["video"]
    ]
    if mode == "pairing":
        files = {m: [pairs[i][axis] for i in numbers] for axis, m in enumerate(MEDIA_MODALITIES)}
        return Rows(files, numbers, np.stack([np.arange(len(numbers))] * 2, axis=1))
    if mode == "pairs_only":
        row_of = {m: {} for m in MEDIA_MODALITIES}
        for i in numbers:
            for m, source in zip(MEDIA_MODALITIES, pairs[i], strict=True):
                row_of[m].setdefault(source, len(row_of[m]))
        files = {m: list(of) for m, of in row_of.items()}
    cells = to_cells((row_of["audio"][pairs[i][0]], row_of["video"][pairs[i][1]]) for i in numbers)
    return Rows(files, numbers, cells)


def to_cells(indices: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return rows and columns as an array (C, 2)."""
    return np.array(list(indices), np.int64).reshape(-1, 2)
