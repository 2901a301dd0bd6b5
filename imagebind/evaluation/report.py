"""Metrics -> consistency_report.txt, and the sections that the page shows too."""

from __future__ import annotations

from typing import Any

from imagebind.evaluation.metrics import RECALL_AT
from imagebind.evaluation.words import REPORT_WORDS
from imagebind.names import one_line

REPORT_RULE = "=" * 80
FAILURES_SHOWN = 20  # metrics.json has all


def format_report(metrics: dict[str, Any], lang: str = "zh") -> str:
    """Format metrics as a text report, in Chinese ("zh") or English ("en")."""
    words = REPORT_WORDS[lang]
    counts, note = metrics["counts"], metrics["protocol"]["checkpoint"]["note"]
    lines = [REPORT_RULE, words["音频-视频一致性评估报告"], REPORT_RULE, ""]
    lines += [f"{words['注意']}: {one_line(note)}", ""] if note else []
    for label, key in (("音频数量", "audio"), ("视频数量", "video"), ("配对数量", "pairs")):
        lines.append(f"{words[label]}: {counts[key]}")
    for title, rows in report_sections(metrics, lang).items():
        lines += ["", f"{title}:"]
        lines += [f"  {label}: {value}" for label, value in rows.items()]
    return "\n".join(lines) + "\n"


def report_sections(metrics: dict[str, Any], lang: str) -> dict[str, dict[str, Any]]:
    """Return the sections of the report: title -> label -> value; the labels of files are indented."""
    words = REPORT_WORDS[lang]
    sections = {
        "相似度统计": {
            "平均相似度": f"{metrics['similarity_matrix_mean']:.4f}",
            "标准差": f"{metrics['similarity_matrix_std']:.4f}",
        },
        **pair_sections(metrics, words),
        **caption_sections(metrics, words),
        **other_files_section(metrics, words),
        **protocol_section(metrics, words),
    }
    return {
        words[title]: {words.get(label, label): value for label, value in rows.items()}
        for title, rows in sections.items()
    }


def pair_sections(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe the pairs and their ranks, or say why there are none."""
    if not metrics["counts"]["pairs"]:
        if metrics["pairing_rule"] == "none":
            why = words["两侧没有相同的文件名，不知道哪些文件成对"]
        else:
            why = words["每一对都有文件被跳过" if metrics["failures"] else "没有能够确定的配对"]
        return {"配对一致性": {"无": why}, "检索性能": {"无": why}}

    def retrieval(ranks: dict[str, Any]) -> dict[str, str]:
        return {
            "平均排名": f"{ranks['mean_rank']:.2f}",
            "中位数排名": f"{ranks['median_rank']:.2f}",
            **{f"Recall@{k}": f"{ranks[f'recall_at_{k}']:.4f}" for k in RECALL_AT},
        }

    return {
        "配对一致性": {
            "平均配对相似度": mean_and_std(metrics, "paired"),
            "最小值": f"{metrics['paired_similarity_min']:.4f}",
            "最大值": f"{metrics['paired_similarity_max']:.4f}",
        },
        "检索性能": retrieval(metrics),
        "检索性能 (视频到音频)": retrieval(metrics["video_to_audio"]),
        "与不成对的组合相比": against_mismatches(metrics, words),
    }


def mean_and_std(figures: dict[str, Any], which: str) -> str:
    """Format the mean and the standard deviation of the "paired" or the "mismatched" similarities."""
    return f"{figures[f'{which}_similarity_mean']:.4f} ± {figures[f'{which}_similarity_std']:.4f}"


def against_mismatches(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, str]:
    """Describe the confidence interval of the pairs' mean, and how the pairs compare with mismatches."""
    rows = {}
    if interval := metrics["paired_similarity_interval"]:
        rows["平均配对相似度的 95% 置信区间"] = "[{:.4f}, {:.4f}]".format(*interval)
    if "margin" not in metrics:
        return rows or {"无": words["只有一对"]}
    rows |= {
        "不成对组合的平均相似度": mean_and_std(metrics, "mismatched"),
        "差距": f"{metrics['margin']:.4f}",
        "配对高于不成对组合的概率 (AUC)": f"{metrics['auc']:.4f}",
    }
    chance = ", ".join(f"Recall@{k} {metrics[f'recall_at_{k}_chance']:.4f}" for k in RECALL_AT)
    rows["随机水平"] = chance
    if metrics["suspects"] is None:
        rows["可疑配对"] = words["不成对的组合太少，无法判断"]
    else:
        rows["可疑配对"] = metrics["suspects"]
        rows |= {f"  {one_line(s['name'])}": f"{s['similarity']:.4f}" for s in metrics["lowest_suspects"]}
        if len(metrics["lowest_suspects"]) < metrics["suspects"]:
            rows["  ..."] = words["其余见 pair_scores.csv"]
    return rows


def caption_sections(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe how captions agree with sounds and with videos, and count the captions that are not used."""
    counts = metrics["counts"]
    if "text" not in counts:
        return {}

    def retrieval(ranks: dict[str, Any]) -> str:
        recalls = [f"Recall@{k} {ranks[f'recall_at_{k}']:.4f}" for k in RECALL_AT]
        return ", ".join([*recalls, words["排名"].format(ranks["mean_rank"], ranks["median_rank"])])

    sections = {}
    for modality, name in (("audio", "音频"), ("video", "视频")):
        figures = metrics.get(f"text_{modality}", {})
        if "paired_similarity_mean" not in figures:
            sections[f"文本-{name}一致性"] = {"无": words["没有文本属于它们"]}
            continue
        rows = {"有文本的数量": len(figures["paired_similarities"])}
        rows["平均值"] = mean_and_std(figures, "paired")
        if interval := figures["paired_similarity_interval"]:
            rows["95% 置信区间"] = "[{:.4f}, {:.4f}]".format(*interval)
        if "margin" in figures:
            rows["不成对组合的平均相似度"] = mean_and_std(figures, "mismatched")
            rows["配对高于不成对组合的概率 (AUC)"] = f"{figures['auc']:.4f}"
        rows[f"检索 (文本到{name})"] = retrieval(figures)
        rows[f"检索 ({name}到文本)"] = retrieval(figures[f"{modality}_to_text"])
        sections[f"文本-{name}一致性"] = rows
    labels = {
        "文本数量": "text",
        "没有文本的配对": "pairs_without_text",
        "没有对应文件": "text_unmatched",
        "无法使用的行": "text_skipped",
        "过长而被截断": "text_cut",
    }
    used = {label: counts[key] for label, key in labels.items() if counts[key] or key == "text"}
    return {**sections, "文本": used}


def other_files_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Count the files that are not among the pairs, and name the first of those that were skipped."""
    rows = {}
    if unmatched := metrics["counts"]["unmatched"]:
        kept = metrics["mode"] == "retrieval"
        rows["无配对，作为干扰项" if kept else "无配对，已忽略"] = unmatched
    if failures := metrics["failures"]:
        rows["跳过"] = len(failures)
        rows |= {f"  {f['side']} {one_line(f['path'])}": f["reason"] for f in failures[:FAILURES_SHOWN]}
    if len(failures) > FAILURES_SHOWN:
        rows["  ..."] = words["其余见 metrics.json"]
    return {"其他文件": rows} if rows else {}


def protocol_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe how the figures were computed."""

    def listed(facts: dict[str, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in facts.items())

    protocol = metrics["protocol"]
    checkpoint = protocol["checkpoint"]
    return {
        "计算方式": {
            "模式": words[metrics["mode"]],
            "配对依据": words[metrics["pairing_rule"]],
            "模型权重": f"{one_line(checkpoint['file'])} (sha256 {checkpoint['sha256'][:16]})",
            "精度与设备": f"{protocol['precision']}, {protocol['device']}",
            "音频输入": listed(protocol["audio"]),
            "视频输入": listed(protocol["video"]),
            **({"文本输入": listed(protocol["text"])} if "text" in protocol else {}),
            "软件版本": listed(protocol["versions"]),
        }
    }
