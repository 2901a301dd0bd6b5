"""The figures of a run as numbers under flat names, as logs of training runs take them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from imagebind.evaluation.errors import EvaluationError, OptionError

COMPARED = ("margin", "mismatched_similarity_mean", "auc", "suspects", "mismatches_like_pairs")
RANKED = ("mean_rank", "median_rank", "mean_reciprocal_rank")
TEXTS = ("text_audio", "text_video")


def scalars(results: Mapping[str, Any] | str | os.PathLike) -> dict[str, float]:
    """Return the figures of a run by flat names, of letters, digits, _ and / alone; those of metrics.json.

    n_pairs, n_skipped (pairs without a similarity) and the other counts; for each protocol, such as
    imagebind, imagebind/similarity (the mean of the pairs) and imagebind/n_scored; for the first one
    imagebind/auc, imagebind/margin and others too; audio_to_video/recall_at_1 and
    the other figures of ranks, and those of video_to_audio; with captions text_audio/similarity,
    text_to_audio/recall_at_1 and others. The ends of an interval have _low and _high behind the figure's
    name. What cannot be told is left out.

    Args:
        results: what an evaluation returned, its metrics, or the path of metrics.json.

    Raises:
        OptionError: results are something else.
        EvaluationError: there is no such file, or it is none of metrics.
    """
    metrics = read_metrics(results)
    values = {name: float(value) for name, value in figures(metrics) if value is not None}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def read_metrics(results: Any) -> Mapping[str, Any]:
    """Return the metrics of results, or of a file; raises as scalars."""
    is_path = isinstance(results, str | os.PathLike)
    metrics = results
    if is_path:
        try:
            with open(results, encoding="utf-8") as file:
                metrics = json.load(file)
        except OSError as e:
            raise EvaluationError(f"{results}: {e.strerror}; name the metrics.json of a run") from e
        except (ValueError, RecursionError) as e:
            raise EvaluationError(f"{results}: not the metrics.json of a run") from e
    elif isinstance(results, Mapping):
        metrics = results.get("metrics", results)
    if isinstance(metrics, Mapping) and {"counts", "scores"} <= set(metrics):
        return metrics
    if is_path:
        raise EvaluationError(f"{results}: not the metrics.json of a run")
    raise OptionError("must be those of an evaluation, their metrics, or the path of metrics.json", "results")


def figures(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield names and values; None for a figure that cannot be told."""
    for name, n in metrics["counts"].items():
        yield "n_skipped" if name == "pairs_skipped" else f"n_{name}", n
    scores = metrics["scores"]
    for name, score in scores.items():
        yield from score_figures(name, score)
    leading = next(iter(scores))
    yield from compared_figures(leading, metrics)
    yield from ranked_figures("audio_to_video", metrics)
    yield from ranked_figures("video_to_audio", metrics.get("video_to_audio", {}))
    for name in TEXTS:
        if (of_texts := metrics.get(name)) is not None:
            modality = name.removeprefix("text_")
            yield f"{name}/similarity", of_texts.get("paired_similarity_mean")
            yield from ends(f"{name}/similarity", of_texts.get("paired_similarity_interval"))
            yield from compared_figures(name, of_texts)
            yield from ranked_figures(f"text_to_{modality}", of_texts)
            yield from ranked_figures(f"{modality}_to_text", of_texts.get(f"{modality}_to_text", {}))


def score_figures(name: str, score: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield those of a protocol, and of its scores with texts."""
    yield f"{name}/similarity", score["mean"]
    yield from ends(f"{name}/similarity", score["interval"])
    for figure in ("mean_of_categories", "n_scored"):
        yield f"{name}/{figure}", score.get(figure)
    for with_text, its_score in score.get("with_text", {}).items():
        yield from score_figures(with_text, its_score)


def compared_figures(name: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield those of pairs against mismatches."""
    for figure in COMPARED:
        yield f"{name}/{figure.removesuffix('_mean')}", metrics.get(figure)
        yield from ends(f"{name}/{figure}", metrics.get(f"{figure}_interval"))


def ranked_figures(name: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield those of the ranks in one direction."""
    for figure in (*RANKED, *(key for key in metrics if key.startswith("recall_at_"))):
        if figure.endswith("_interval"):
            yield from ends(f"{name}/{figure.removesuffix('_interval')}", metrics[figure])
        else:
            yield f"{name}/{figure}", metrics.get(figure)


def ends(name: str, interval: tuple[float, float] | None) -> Iterator[tuple[str, float | None]]:
    """Yield the two ends of an interval."""
    if interval is not None:
        yield from zip((f"{name}_low", f"{name}_high"), interval, strict=True)
