"""The charts of the pages, as plotly figures."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from imagebind.evaluation.compare.candidates import Candidates
from imagebind.evaluation.write.words import PAGE_WORDS
from imagebind.names import one_line

MAX_NAMED = 50  # files whose names stand beside the heat map
MAX_BARS = 50  # of a histogram
MAX_CATEGORIES = 100
CURVE_POINTS = 200
LINE_LENGTH = 40  # of a name on a chart, in characters
SHORT_LENGTH = 24  # of a name beside a chart
COLORS = ("#3b82c4", "#e08a2b", "#3a9d6e", "#b565c9", "#c8553d", "#8a8f3c", "#4aa8b8", "#8d6e63")
GRAY = "#8a929c"


def chart_text(name: str) -> str:
    """Format a name so that plotly shows it as it is, a long one in several lines.

    Plotly interprets some tags in its texts as markup.
    """
    text = one_line(name)
    lines = [text[i : i + LINE_LENGTH] for i in range(0, len(text), LINE_LENGTH)]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def short(name: str) -> str:
    """Format the end of a name, where there is little room."""
    text = one_line(name)
    return chart_text(text if len(text) <= SHORT_LENGTH else f"…{text[1 - SHORT_LENGTH :]}")


def histogram_chart(histograms: dict[str, np.ndarray], lang: str) -> go.Figure:
    """Draw the similarities of pairs over those of mismatched combinations, each as shares of its own number.

    Args:
        histograms: edges (B + 1,), and counts (B,) of "paired" and "mismatched".
    """
    texts, edges = PAGE_WORDS[lang], histograms["edges"]
    names = {"mismatched": texts["mismatched"], "paired": texts["pairs"]}
    used = np.flatnonzero(histograms["paired"] + histograms["mismatched"])
    first, end = (used[0], used[-1] + 1) if len(used) else (0, len(edges) - 1)
    group = math.ceil((end - first) / MAX_BARS)  # bins that go into one bar
    starts = np.arange(first, end, group)
    lows, highs = edges[starts], edges[np.minimum(starts + group, len(edges) - 1)]
    spans = [(f"{low:.3f}", f"{high:.3f}") for low, high in zip(lows, highs, strict=True)]
    figure = go.Figure()
    for (kind, name), color in zip(names.items(), (COLORS[1], COLORS[0]), strict=True):
        counts = np.add.reduceat(histograms[kind], starts)
        figure.add_bar(
            x=(lows + highs) / 2,
            y=counts / max(counts.sum(), 1),
            width=highs - lows,
            name=name,
            marker={"color": color, "line": {"width": 0}},
            opacity=0.65,
            customdata=[[*ends, n] for ends, n in zip(spans, counts.tolist(), strict=True)],
            hovertemplate="%{customdata[0]} … %{customdata[1]}<br>%{customdata[2]} (%{y:.1%})",
        )
    shares = {"title": texts["share"], "tickformat": ".0%"}
    return figure.update_layout(barmode="overlay", height=420, xaxis={"title": texts["cosine"]}, yaxis=shares)


def heat_map(
    similarity: np.ndarray, audio_names: Sequence[str], video_names: Sequence[str], lang: str
) -> go.Figure:
    """Draw a similarity matrix (N, M) that names both files under the pointer."""
    audio, video = PAGE_WORDS[lang]["audio"], PAGE_WORDS[lang]["video"]
    figure = go.Figure(
        go.Heatmap(
            z=similarity,
            meta={"rows": list(map(chart_text, audio_names)), "columns": list(map(chart_text, video_names))},
            colorscale="Viridis",
            colorbar={"orientation": "h", "thickness": 12, "y": 1, "yanchor": "bottom"},
            hovertemplate=f"{audio}: %{{customdata[0]}}<br>{video}: %{{customdata[1]}}"
            "<br>%{z:.4f}<extra></extra>",
        )
    )
    axis = {"ticks": "", "showgrid": False, "zeroline": False}
    axes = [
        {"showticklabels": False, **axis}
        if max(similarity.shape) > MAX_NAMED
        else {"tickvals": list(range(len(names))), "ticktext": list(map(short, names)), **axis}
        for names in (video_names, audio_names)
    ]
    square = {"autorange": "reversed", "constrain": "domain", "constraintoward": "top", "scaleanchor": "x"}
    return figure.update_layout(
        height=560,
        xaxis={"title": {"text": video, "standoff": 12}, "tickangle": 90, "constrain": "domain", **axes[0]},
        yaxis={"title": {"text": audio, "standoff": 12}, **square, **axes[1]},
    )


def category_chart(categories: dict[str, dict[str, Any]], mean: float, lang: str) -> go.Figure:
    """Draw the means of categories with their intervals, the highest first.

    Args:
        categories: name -> mean and interval.
        mean: of all pairs.
    """
    names = sorted(categories, key=lambda name: -categories[name]["mean"])[:MAX_CATEGORIES]
    rows = [(chart_text(name), categories[name]["mean"], categories[name]["interval"]) for name in names]
    figure = interval_chart(rows, PAGE_WORDS[lang]["cosine"])
    return figure.add_vline(mean, line={"color": GRAY, "dash": "dash"})


def interval_chart(rows: Sequence[tuple[str, float, Sequence[float] | None]], title: str) -> go.Figure:
    """Draw means with their intervals, one below the other.

    Args:
        rows: of each its label, the mean, and low and high ends if there are any.
        title: of the axis.
    """
    labels, means, intervals = zip(*rows, strict=True)
    ends = [interval or (mean, mean) for mean, interval in zip(means, intervals, strict=True)]
    texts = [f"{mean:.4f} [{low:.4f}, {high:.4f}]" for mean, (low, high) in zip(means, ends, strict=True)]
    figure = go.Figure(
        go.Scatter(
            x=means,
            y=list(range(len(rows))),
            mode="markers",
            marker={"size": 10, "color": COLORS[0]},
            error_x={
                "array": [high - mean for mean, (_, high) in zip(means, ends, strict=True)],
                "arrayminus": [mean - low for mean, (low, _) in zip(means, ends, strict=True)],
                "color": COLORS[0],
            },
            customdata=list(map(list, zip(labels, texts, strict=True))),
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    )
    return one_below_the_other(figure, labels, title)


def one_below_the_other(figure: go.Figure, labels: Sequence[str], title: str) -> go.Figure:
    """Lay out a chart of rows, the first at the top; the title is that of the axis of figures."""
    yaxis = {"tickvals": list(range(len(labels))), "ticktext": labels, "range": [len(labels) - 0.5, -0.5]}
    return figure.update_layout(height=140 + 44 * len(labels), xaxis={"title": title}, yaxis=yaxis)


def recall_chart(directions: dict[str, Candidates], lang: str) -> go.Figure:
    """Draw Recall@K over K.

    Args:
        directions: such as "audio_to_video" -> what each pair competes with.
    """
    texts = PAGE_WORDS[lang]
    figure = go.Figure()
    drawn = {"mode": "lines", "hovertemplate": "K = %{x}<br>%{y:.1%}"}
    longest = max(int(candidates.n.max()) for candidates in directions.values())
    ks = np.unique(np.geomspace(1, longest, CURVE_POINTS).round().astype(int))
    chances = [np.array([candidates.recall_chance(k) for k in ks]) for candidates in directions.values()]
    one_chance = all(np.allclose(chance, chances[0]) for chance in chances)
    for i, (direction, candidates) in enumerate(directions.items()):
        recall = [candidates.hits(k).mean() for k in ks]
        line = {"color": COLORS[i], "width": 2.5}
        figure.add_scatter(x=ks, y=recall, name=texts[direction], line=line, **drawn)
        if i == 0 or not one_chance:
            name = texts["chance"] if one_chance else f"{texts['chance']}, {texts[direction]}"
            line = {"color": GRAY, "dash": "dash"}
            figure.add_scatter(x=ks, y=chances[i], name=name, line=line, **drawn)
    ranks = {"title": "K", "type": "log", "dtick": "D1"}
    shares = {"title": texts["recall"], "tickformat": ".0%", "range": [0, 1.02]}
    return figure.update_layout(height=420, xaxis=ranks, yaxis=shares)
