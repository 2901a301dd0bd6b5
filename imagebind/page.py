"""Pages to look at: figures, charts and tables in one HTML file that opens without a network.

A page is data, shown by the script in page.html; plotly's script is put in beside it. What comes from files,
their names first of all, goes in as JSON and comes out as text, never as markup.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from imagebind.names import one_line

REPORT_PAGE = "report.html"
PAIRS_SHOWN = 10_000  # in the table
FILES_SHOWN = 200  # on each side of the heat map
BARS = 50  # of a histogram, at most
POINTS = 200  # of a curve
LETTERS_IN_LINE = 40  # of a name on a chart
LETTERS_OF_SHORT = 24  # of a name beside one
COLORS = ("#3b82c4", "#e08a2b", "#3a9d6e", "#b565c9", "#c8553d", "#8a8f3c", "#4aa8b8", "#8d6e63")
GRAY = "#8a929c"

Part = dict[str, Any]  # of a page: a title, how to read it, and tiles, facts, a chart or a table

TEXTS = {
    "en": {
        "report": "Audio-video consistency report",
        "comparison": "Comparison of systems",
        "noscript": "This page is drawn by a script, which this browser does not run.",
        "back": "back",
        "next": "next",
        "filter": "search",
        "nothing": "nothing found",
        "share": "share",
        "cosine": "similarity (cosine)",
        "pairs": "pairs",
        "mismatched": "mismatched combinations",
        "audio": "audio",
        "video": "video",
        "audio to video": "audio to video",
        "video to audio": "video to audio",
        "text to audio": "caption to audio",
        "audio to text": "audio to caption",
        "text to video": "caption to video",
        "video to text": "video to caption",
        "text_audio": "Captions and audio",
        "text_video": "Captions and video",
        "mean of text_audio": "caption and its audio",
        "mean of text_video": "caption and its video",
        "text how": (
            "How similar captions and what they belong to are, over all other combinations of the two; and "
            "how often each is among the K most similar ones of the other."
        ),
        "text columns": ("caption", "caption-audio", "caption-video", "audio rank of it", "video rank of it"),
        "chance": "by chance",
        "yes": "yes",
        "no": "no",
        "mean of pairs": "mean of pairs",
        "mean of mismatches": "mean of mismatches",
        "interval": "95% interval {:.4f} to {:.4f}",
        "deviation": "deviation {:.4f}",
        "auc": "pair above mismatch (AUC)",
        "of chance": "by chance {:.4f}",
        "suspects": "suspects",
        "too few": "too few files to tell",
        "of pairs": "of {} pairs",
        "evaluated": "pairs evaluated",
        "left out": "{} files skipped, {} without a partner",
        "histogram": "Pairs and mismatches",
        "histogram how": (
            "How similar the pairs are, over all combinations of a sound and a video that are no pair; "
            "each as shares of its own. The less the two overlap, the more a score says. A similarity "
            "means something only against the mismatches of the same run."
        ),
        "heat map": "Similarity matrix",
        "heat map how": (
            "A row for each sound, a column for each video, pairs first: the diagonal are the pairs. A "
            "bright diagonal on a dark ground is what a consistent set looks like; a bright row or "
            "column is a file that resembles everything. The pointer, or the arrow keys, name the two "
            "files."
        ),
        "sample": "Shown is a sample: {} of {} audio files, {} of {} video files.",
        "recall": "Recall@K",
        "recall how": (
            "The share of sounds whose own video is among the K most similar ones, and the other way "
            "round. By chance it is the dashed line; compare it only between sets of one size."
        ),
        "pair table": "Pair by pair",
        "pair table how": (
            "The least similar first; a click on a heading sorts. Rank: the place of the own video among "
            "all videos, and of the own sound among all sounds; 1 is best. Percentile: the share of the "
            "mismatches in the pair's own row and column that are less similar. Clips alike: 1 where all "
            "clips of a file are equal. A suspect cannot be told from a mismatch: a pair to look at, not "
            "a fault found."
        ),
        "least": "Shown are the {} least similar of {} pairs; all are in pair_scores.csv.",
        "columns": (
            *("name", "similarity", "suspect", "video rank", "audio rank", "percentile", "p-value"),
            *("audio clips alike", "video clips alike", "audio", "video"),
        ),
        "skipped": "Skipped files",
        "skipped how": "These files have no row, and their pairs are in no figure.",
        "skipped columns": ("side", "file", "reason"),
        "all figures": "All figures, and how they were computed",
        "systems": "Systems",
        "systems how": (
            "Recall@K is comparable only between sets of one size; suspects are pairs that cannot be "
            "told from a mismatch."
        ),
        "means": "Mean of pairs",
        "means how": "The mean similarity of each system's pairs with its 95% bootstrap interval.",
        "outlines": "Similarities of pairs",
        "outlines how": "How the similarities of each system's pairs are distributed.",
        "differences": "Differences",
        "differences how": (
            "For every two systems the mean difference on the pairs that both have, with its 95% "
            "bootstrap interval. Where the interval holds 0, no difference can be told."
        ),
        "difference": "difference",
        "no pairs": "No two systems have a pair of the same name.",
        "system": "system",
        "minus": "minus",
        "mean": "mean",
        "low": "95% low",
        "high": "95% high",
        "skipped files": "skipped",
        "different": "The runs were computed in different ways: {}",
    },
    "zh": {
        "report": "音频-视频一致性评估报告",
        "comparison": "系统比较",
        "noscript": "本页由脚本绘制，而此浏览器不运行脚本。",
        "back": "上一页",
        "next": "下一页",
        "filter": "搜索",
        "nothing": "没有找到",
        "share": "占比",
        "cosine": "相似度（余弦）",
        "pairs": "成对",
        "mismatched": "不成对的组合",
        "audio": "音频",
        "video": "视频",
        "audio to video": "音频到视频",
        "video to audio": "视频到音频",
        "text to audio": "文本到音频",
        "audio to text": "音频到文本",
        "text to video": "文本到视频",
        "video to text": "视频到文本",
        "text_audio": "文本与音频",
        "text_video": "文本与视频",
        "mean of text_audio": "文本与其音频",
        "mean of text_video": "文本与其视频",
        "text how": (
            "各文本与其所属文件的相似度，与两者所有其他组合的相似度重叠显示；以及各自排在对方最相似的前 K 个"
            "之内的比例。"
        ),
        "text columns": ("文本", "文本-音频", "文本-视频", "文本的音频排名", "文本的视频排名"),
        "chance": "随机水平",
        "yes": "是",
        "no": "否",
        "mean of pairs": "平均配对相似度",
        "mean of mismatches": "不成对组合的平均值",
        "interval": "95% 置信区间 {:.4f} 至 {:.4f}",
        "deviation": "标准差 {:.4f}",
        "auc": "配对高于不成对 (AUC)",
        "of chance": "随机水平 {:.4f}",
        "suspects": "可疑配对",
        "too few": "文件太少，无法判断",
        "of pairs": "共 {} 对",
        "evaluated": "已评估的配对",
        "left out": "跳过 {} 个文件，{} 个没有配对",
        "histogram": "成对与不成对",
        "histogram how": (
            "各配对的相似度，与所有不成对的音频-视频组合的相似度重叠显示，各自按占比计。两者重叠越少，分"
            "数越能说明问题。相似度只有与同一次运行中不成对的组合相比才有意义。"
        ),
        "heat map": "相似度矩阵",
        "heat map how": (
            "每行一个音频，每列一个视频，配对在前：对角线即各配对。一致性好的数据集是暗底上的亮对角线；整"
            "行或整列偏亮，说明该文件与什么都相似。鼠标或方向键会显示两个文件的名称。"
        ),
        "sample": "此处为抽样：{}/{} 个音频文件，{}/{} 个视频文件。",
        "recall": "Recall@K",
        "recall how": (
            "自身视频排在最相似的前 K 个之内的音频所占比例，以及反方向的比例。虚线为随机水平；只能在大小"
            "相同的集合之间比较。"
        ),
        "pair table": "逐对查看",
        "pair table how": (
            "相似度最低的在前，点击表头可排序。排名：自身视频在所有视频中的名次，以及自身音频在所有音频中"
            "的名次，1 为最好。百分位：同一行和同一列中相似度低于该配对的不成对组合所占比例。片段相似：文"
            "件的各片段完全相同时为 1。可疑配对与不成对的组合无法区分：需要人工查看，并不等于有错。"
        ),
        "least": "此处为 {} 个相似度最低的配对，共 {} 对；全部见 pair_scores.csv。",
        "columns": (
            *("名称", "相似度", "可疑", "视频排名", "音频排名", "百分位", "p 值"),
            *("音频片段相似", "视频片段相似", "音频", "视频"),
        ),
        "skipped": "跳过的文件",
        "skipped how": "这些文件没有嵌入，其配对不计入任何指标。",
        "skipped columns": ("类别", "文件", "原因"),
        "all figures": "全部指标与计算方式",
        "systems": "各系统",
        "systems how": "Recall@K 只能在大小相同的集合之间比较；可疑配对是与不成对的组合无法区分的配对。",
        "means": "平均配对相似度",
        "means how": "各系统配对的平均相似度，以及 95% 自助法置信区间。",
        "outlines": "配对相似度的分布",
        "outlines how": "各系统配对的相似度如何分布。",
        "differences": "差异",
        "differences how": (
            "每两个系统在共有配对上的平均差，以及 95% 自助法置信区间。区间含 0 时，无法断定有差异。"
        ),
        "difference": "差",
        "no pairs": "没有两个系统含有同名的配对。",
        "system": "系统",
        "minus": "减去",
        "mean": "平均值",
        "low": "95% 下限",
        "high": "95% 上限",
        "skipped files": "跳过",
        "different": "各次运行的计算方式不同：{}",
    },
}


def write_page(file: BinaryIO, lang: str, title: str, note: str, parts: Sequence[Part]) -> None:
    """Write a page.

    Args:
        lang: a key of TEXTS.
        note: what is to be known before anything else, or "".
        parts: in order.
    """
    page = {"texts": TEXTS[lang], "note": note, "parts": parts}
    content = {
        "lang": lang,
        "title": html.escape(title),
        "noscript": TEXTS[lang]["noscript"],
        "page": json.dumps(page, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c"),
        "plotly": get_plotlyjs(),
    }
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for i, text in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
        file.write((content[text] if i % 2 else text).encode())


# Parts


def tiles(figures: Iterable[tuple[str, Any, str]]) -> Part:
    """Show figures large: label, value, and what it is to be held against."""
    return {"tiles": [(label, cell(value), detail) for label, value, detail in figures]}


def facts(sections: dict[str, dict[str, Any]]) -> Part:
    """Show the sections of a report: title -> label -> value; what is indented has a table of its own."""
    return {
        "facts": {
            title: {label: cell(str(value)) for label, value in rows.items() if not label.startswith(" ")}
            for title, rows in sections.items()
        }
    }


def chart(title: str, how: str, figure: go.Figure) -> Part:
    figure.layout.template = {}  # the page has its own, for light and dark
    return {"title": title, "how": how, "chart": json.loads(figure.to_json())}


def table(
    title: str,
    how: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Any]],
    order: tuple[int, int] | None = None,
) -> Part:
    """Show a table that can be sorted and searched.

    Args:
        columns: of each its label, and its kind: "text", "long" for texts of many words, "number" or "file".
        rows: of cells; a file is a pair of what is shown and its address.
        order: the column by which it is sorted, and 1 or -1; None leaves the rows in theirs.
    """
    rows = [[cell(value) for value in row] for row in rows]
    return {"title": title, "how": how, "columns": list(columns), "rows": rows, "order": order}


def cell(value: Any) -> Any:
    """Give what stands in a cell: text in one line; a number in six digits; None for what is not there."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, tuple):
        return [one_line(value[0]), value[1]]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


def address(path: str, folder: str | os.PathLike) -> str:
    """Give the address of a file for a page in a folder: relative, so that both can move together."""
    return quote(os.fsencode(os.path.relpath(path, folder)))


# Charts


def chart_text(name: str) -> str:
    """Write a name so that plotly shows it as it is, long ones in several lines.

    Plotly takes some tags in its texts for markup.
    """
    text = one_line(name)
    lines = [text[i : i + LETTERS_IN_LINE] for i in range(0, len(text), LETTERS_IN_LINE)]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def short(name: str) -> str:
    """Write the end of a name, for a place where there is little room."""
    text = one_line(name)
    return chart_text(text if len(text) <= LETTERS_OF_SHORT else f"…{text[1 - LETTERS_OF_SHORT :]}")


def histogram_chart(histograms: dict[str, np.ndarray], lang: str) -> go.Figure:
    """Draw the similarities of pairs over those of mismatched combinations, each as shares of its own.

    Args:
        histograms: edges (B + 1,), and counts (B,) of "paired" and "mismatched".
    """
    texts, edges = TEXTS[lang], histograms["edges"]
    names = {"mismatched": texts["mismatched"], "paired": texts["pairs"]}
    used = np.flatnonzero(histograms["paired"] + histograms["mismatched"])
    first, end = (used[0], used[-1] + 1) if len(used) else (0, len(edges) - 1)
    group = math.ceil((end - first) / BARS)  # bins that go into one bar
    starts = np.arange(first, end, group)
    lows, highs = edges[starts], edges[np.minimum(starts + group, len(edges) - 1)]
    figure = go.Figure()
    for (side, name), color in zip(names.items(), (COLORS[1], COLORS[0]), strict=True):
        counts = np.add.reduceat(histograms[side], starts)
        figure.add_bar(
            x=(lows + highs) / 2,
            y=counts / max(counts.sum(), 1),
            width=highs - lows,
            name=name,
            marker={"color": color, "line": {"width": 0}},
            opacity=0.65,
            customdata=[
                [f"{low:.3f}", f"{high:.3f}", n]
                for low, high, n in zip(lows, highs, counts.tolist(), strict=True)
            ],
            hovertemplate="%{customdata[0]} … %{customdata[1]}<br>%{customdata[2]} (%{y:.1%})",
        )
    figure.update_layout(
        barmode="overlay",
        height=420,
        xaxis={"title": texts["cosine"]},
        yaxis={"title": texts["share"], "tickformat": ".0%"},
    )
    return figure


def heat_map(
    similarity: np.ndarray, audio_names: Sequence[str], video_names: Sequence[str], lang: str
) -> go.Figure:
    """Draw a similarity matrix (N, M) that names both files under the pointer."""
    audio, video = TEXTS[lang]["audio"], TEXTS[lang]["video"]
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
    axis = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False}
    figure.update_layout(
        height=620, xaxis={"title": video, **axis}, yaxis={"title": audio, "autorange": "reversed", **axis}
    )
    return figure


def sample_cells(shape: tuple[int, int], pair_rows: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Choose what to draw of a similarity matrix: pairs first, so that they are its diagonal.

    Args:
        shape: (N, M).
        pair_rows: P pairs (row, column).
    """
    pairs = [pair_rows[i] for i in spread(len(pair_rows), FILES_SHOWN)]
    chosen = []
    for side, n in enumerate(shape):
        paired = list(dict.fromkeys(pair[side] for pair in pairs))
        others = np.setdiff1d(np.arange(n), paired).tolist()
        chosen.append(paired + [others[i] for i in spread(len(others), FILES_SHOWN - len(paired))])
    return chosen


def spread(n: int, k: int) -> list[int]:
    """Choose k of n places, evenly.

    >>> spread(9, 3)
    [0, 4, 8]
    """
    return np.linspace(0, n - 1, min(n, k)).round().astype(int).tolist()


def recall_chart(directions: dict[str, tuple[np.ndarray, int]], lang: str) -> go.Figure:
    """Draw Recall@K over K.

    Args:
        directions: such as "audio to video", of each ranks (P,) and the number of candidates.
    """
    texts = TEXTS[lang]
    figure = go.Figure()
    drawn = {"mode": "lines", "hovertemplate": "K = %{x}<br>%{y:.1%}"}
    one_chance = len({n for _, n in directions.values()}) == 1
    for i, (direction, (ranks, n)) in enumerate(directions.items()):
        k = np.unique(np.geomspace(1, n, POINTS).round().astype(int))
        recall = np.searchsorted(np.sort(ranks), k, "right") / len(ranks)
        line = {"color": COLORS[i], "width": 2.5}
        figure.add_scatter(x=k, y=recall, name=texts[direction], line=line, **drawn)
        if i == 0 or not one_chance:
            name = texts["chance"] if one_chance else f"{texts['chance']}, {texts[direction]}"
            line = {"color": GRAY, "dash": "dash"}
            figure.add_scatter(x=k, y=k / n, name=name, line=line, **drawn)
    figure.update_layout(
        height=420,
        xaxis={"title": "K", "type": "log", "dtick": "D1"},
        yaxis={"title": texts["recall"], "tickformat": ".0%", "range": [0, 1.02]},
    )
    return figure


def interval_chart(rows: Sequence[dict[str, Any]], title: str) -> go.Figure:
    """Draw means with their intervals, one below the other.

    Args:
        rows: of comparison.csv, with a mean; where they are differences, no difference is marked.
        title: of the axis.
    """

    def ends(row: dict[str, Any]) -> tuple[float, float]:
        return (row["mean"], row["mean"]) if row["low"] is None else (row["low"], row["high"])

    names = [[row[key] for key in ("system", "minus") if key in row] for row in rows]
    figure = go.Figure(
        go.Scatter(
            x=[row["mean"] for row in rows],
            y=list(range(len(rows))),
            mode="markers",
            marker={"size": 10, "color": COLORS[0]},
            error_x={
                "array": [ends(row)[1] - row["mean"] for row in rows],
                "arrayminus": [row["mean"] - ends(row)[0] for row in rows],
                "color": COLORS[0],
            },
            customdata=[
                [
                    "<br>− ".join(map(chart_text, name)),
                    "{:.4f} [{:.4f}, {:.4f}]".format(row["mean"], *ends(row)),
                ]
                for name, row in zip(names, rows, strict=True)
            ],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    )
    if "minus" in rows[0]:
        figure.add_vline(0, line={"color": GRAY, "dash": "dash"})
    figure.update_layout(
        height=140 + 44 * len(rows),
        xaxis={"title": title},
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": ["<br>− ".join(map(short, name)) for name in names],
            "range": [len(rows) - 0.5, -0.5],
        },
    )
    return figure


def outline_chart(names: Sequence[str], similarities: Sequence[np.ndarray], lang: str) -> go.Figure:
    """Draw how the similarities (P,) of each system are distributed, a line for each."""
    texts = TEXTS[lang]
    edges = np.histogram_bin_edges(np.concatenate(similarities), BARS // 2)
    figure = go.Figure()
    for i, (name, values) in enumerate(zip(names, similarities, strict=True)):
        figure.add_scatter(
            x=(edges[:-1] + edges[1:]) / 2,
            y=np.histogram(values, edges)[0] / len(values),
            mode="lines",
            line={"shape": "hvh", "width": 2.5, "color": COLORS[i % len(COLORS)]},
            name=short(name),
            hovertemplate="%{x:.3f}<br>%{y:.1%}",
        )
    figure.update_layout(
        height=420,
        xaxis={"title": texts["cosine"]},
        yaxis={"title": texts["share"], "tickformat": ".0%", "rangemode": "tozero"},
    )
    return figure


# The two pages


def write_report_page(
    file: BinaryIO,
    results: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    lang: str,
    folder: str | os.PathLike,
) -> None:
    """Write the page of a run.

    Args:
        results: of the run.
        sections: all figures as they are in the report.
        lang: a key of TEXTS.
        folder: where the page will lie; its links start from there.
    """
    texts, metrics = TEXTS[lang], results["metrics"]
    parts = [tiles(report_tiles(metrics, texts))]
    if results["pairs"]:
        parts.append(
            chart(texts["histogram"], texts["histogram how"], histogram_chart(results["histograms"], lang))
        )
    parts.append(matrix_part(results, lang))
    if results["pairs"]:
        scores = results["pair_scores"]
        ranks = {
            "audio to video": (scores.columns["video_rank"], metrics["counts"]["video"]),
            "video to audio": (scores.columns["audio_rank"], metrics["counts"]["audio"]),
        }
        parts.append(chart(texts["recall"], texts["recall how"], recall_chart(ranks, lang)))
        parts.append(pair_table(scores, texts, folder))
    for side in ("audio", "video"):
        parts += text_parts(results, side, lang)
    if failures := results["failures"]:
        rows = ((texts[f["side"]], linked(f["path"], folder), f["reason"]) for f in failures)
        columns = zip(texts["skipped columns"], ("text", "file", "text"), strict=True)
        parts.append(table(texts["skipped"], texts["skipped how"], list(columns), rows))
    parts.append({"title": texts["all figures"], **facts(sections)})
    write_page(file, lang, texts["report"], metrics["protocol"]["checkpoint"]["note"], parts)


def text_parts(results: dict[str, Any], side: str, lang: str) -> list[Part]:
    """Show how captions agree with the files of a side, where there are both."""
    texts, key = TEXTS[lang], f"text_{side}"
    if key not in results or not len(results[key]["pair_rows"]):
        return []
    of_text, counts = results[key], results["metrics"]["counts"]
    ranks = {
        f"text to {side}": (of_text[f"{side}_rank"], counts[side]),
        f"{side} to text": (of_text["text_rank"], counts["text"]),
    }
    return [
        chart(texts[key], texts["text how"], histogram_chart(of_text["histograms"], lang)),
        chart("", "", recall_chart(ranks, lang)),
    ]


def report_tiles(metrics: dict[str, Any], texts: dict[str, str]) -> list[tuple[str, Any, str]]:
    """Choose the figures that are looked at first."""
    counts = metrics["counts"]
    evaluated = (
        texts["evaluated"],
        counts["pairs"],
        texts["left out"].format(counts["failed"], counts["unmatched"]),
    )
    if not counts["pairs"]:
        return [evaluated]

    def mean_tile(label: str, figures: dict[str, Any]) -> tuple[str, Any, str]:
        interval = figures["paired_similarity_interval"]
        detail = texts["interval"].format(*interval) if interval else ""
        return label, figures["paired_similarity_mean"], detail

    chosen = [mean_tile(texts["mean of pairs"], metrics)]
    if "margin" in metrics:
        suspects = metrics["suspects"]
        chosen += [
            (
                texts["mean of mismatches"],
                metrics["mismatched_similarity_mean"],
                texts["deviation"].format(metrics["mismatched_similarity_std"]),
            ),
            (texts["auc"], metrics["auc"], texts["of chance"].format(0.5)),
            (
                texts["suspects"],
                "–" if suspects is None else suspects,
                texts["too few"] if suspects is None else texts["of pairs"].format(counts["pairs"]),
            ),
        ]
    chance = texts["of chance"].format(metrics["recall_at_1_chance"])
    chosen.append(("Recall@1", metrics["recall_at_1"], chance))
    for key in ("text_audio", "text_video"):
        of_text = metrics.get(key, {})
        if "paired_similarity_mean" in of_text:
            chosen.append(mean_tile(texts[f"mean of {key}"], of_text))
    return [*chosen, evaluated]


def matrix_part(results: dict[str, Any], lang: str) -> Part:
    """Show the similarity matrix, or a sample that says it is one."""
    from imagebind.similarity import cosine_similarity  # with torch, which a comparison does without

    texts, embeddings = TEXTS[lang], (results["audio_embeddings"], results["video_embeddings"])
    n_rows, n_columns = map(len, embeddings)
    rows, columns = sample_cells((n_rows, n_columns), results["pair_rows"])
    how = texts["heat map how"]
    if (len(rows), len(columns)) != (n_rows, n_columns):
        how += " " + texts["sample"].format(len(rows), n_rows, len(columns), n_columns)
    names = [results["audio_names"][i] for i in rows], [results["video_names"][j] for j in columns]
    similarity = cosine_similarity(
        *(e[chosen].numpy() for e, chosen in zip(embeddings, (rows, columns), strict=True))
    )
    return chart(texts["heat map"], how, heat_map(similarity, *names, lang))


def pair_table(scores: Any, texts: dict[str, Any], folder: str | os.PathLike) -> Part:
    """Show the pairs, the least similar first."""
    lowest = scores.lowest(PAIRS_SHOWN)
    how = texts["pair table how"]
    if len(lowest) < len(scores):
        how += " " + texts["least"].format(len(lowest), len(scores))
    figures = ("video_rank", "audio_rank", "percentile", "p_value", "audio_clips_alike", "video_clips_alike")
    said = {None: None, True: texts["yes"], False: texts["no"]}
    rows = (
        (
            *(pair["name"], pair["similarity"], said[pair.get("suspect")]),
            *(pair.get(figure) for figure in figures),
            *(linked(pair[side], folder) for side in ("audio", "video")),
            *(pair[column] for column in scores.text_columns),
        )
        for pair in lowest
    )
    kinds = ("text", "number", "text", *["number"] * len(figures), "file", "file")
    columns = list(zip(texts["columns"], kinds, strict=True))
    if scores.text_columns:
        columns += zip(texts["text columns"], ("long", *["number"] * 4), strict=True)
    return table(texts["pair table"], how, columns, rows, order=(1, 1))


def linked(path: str, folder: str | os.PathLike) -> tuple[str, str]:
    return os.path.basename(path), address(path, folder)


def write_comparison_page(
    file: BinaryIO,
    rows: Sequence[dict[str, Any]],
    similarities: Sequence[np.ndarray],
    difference: str | None,
    lang: str,
    folder: str | os.PathLike,
) -> None:
    """Write the page of a comparison.

    Args:
        rows: of comparison.csv.
        similarities: (P,) of each system's pairs.
        difference: in how the systems were computed, or None.
        lang, folder: as in write_report_page.
    """
    texts = TEXTS[lang]
    names = list(dict.fromkeys(row["system"] for row in rows))
    outlines = outline_chart(names, similarities, lang)
    parts = compared_parts(rows, "audio_video", texts, folder)
    parts.insert(2, chart(texts["outlines"], texts["outlines how"], outlines))
    for agreement in ("text_audio", "text_video"):
        parts += compared_parts(rows, agreement, texts, folder)
    write_page(
        file, lang, texts["comparison"], texts["different"].format(difference) if difference else "", parts
    )


def compared_parts(
    rows: Sequence[dict[str, Any]], agreement: str, texts: dict[str, Any], folder: str | os.PathLike
) -> list[Part]:
    """Show the systems and their differences in one agreement; nothing where none has it."""
    rows = [row for row in rows if row["agreement"] == agreement]
    systems = [row for row in rows if "minus" not in row]
    differences = [row for row in rows if "minus" in row]
    if not systems:
        return []
    title = "" if agreement == "audio_video" else f"{texts[agreement]}: "
    interval = {"pairs": texts["pairs"], "mean": texts["mean"], "low": texts["low"], "high": texts["high"]}
    figures = {
        key: figure_label(key, texts)
        for key in systems[0]
        if key not in ("agreement", "system", *interval) and any(row[key] is not None for row in systems)
    }
    columns = interval | figures
    parts = [
        table(
            title + texts["systems"],
            texts["systems how"],
            [(texts["system"], "file"), *((label, "number") for label in columns.values())],
            ((report_of(row["system"], folder), *(row[key] for key in columns)) for row in systems),
        ),
        chart(title + texts["means"], texts["means how"], interval_chart(systems, texts["cosine"])),
    ]
    if told := [row for row in differences if row["pairs"]]:
        drawn = interval_chart(told, texts["difference"])
        parts.append(chart(title + texts["differences"], texts["differences how"], drawn))
    columns = {"system": texts["system"], "minus": texts["minus"], **interval, "mean": texts["difference"]}
    kinds = {"system": "text", "minus": "text"}
    parts.append(
        table(
            "",
            "" if told else texts["no pairs"],
            [(label, kinds.get(key, "number")) for key, label in columns.items()],
            ([row.get(key) for key in columns] for row in differences),
        )
    )
    return parts


def figure_label(key: str, texts: dict[str, str]) -> str:
    """Name a column of comparison.csv.

    >>> figure_label("video_to_audio_recall_at_5", TEXTS["en"])
    'Recall@5, video to audio'
    """
    if "recall_at_" in key:
        k, back = key.rpartition("_")[2], key.startswith("video_to_audio")
        return f"Recall@{k}, {texts['video to audio' if back else 'audio to video']}"
    return {"auc": "AUC", "suspects": texts["suspects"], "skipped": texts["skipped files"]}[key]


def report_of(system: str, folder: str | os.PathLike) -> tuple[str, str]:
    """Link a system to its page, or to its directory where it has none."""
    page = os.path.join(system, REPORT_PAGE)
    return system, address(page if os.path.exists(page) else system, folder)
