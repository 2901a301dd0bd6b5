"""Metrics -> consistency_report.txt, and the sections that the page shows too."""

from __future__ import annotations

from typing import Any

from imagebind.evaluation.compare.intervals import digits_of
from imagebind.evaluation.compare.metrics import RECALL_AT
from imagebind.evaluation.write.words import REPORT_WORDS
from imagebind.names import one_line

REPORT_RULE = "=" * 80
FAILURES_SHOWN = 20  # metrics.json has all
DROPPED_SHOWN = 5  # of each protocol


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
        **matrix_section(metrics),
        **pair_sections(metrics, words),
        **score_section(metrics, words),
        **kept_section(metrics, words),
        **caption_sections(metrics, words),
        **other_files_section(metrics, words),
        **protocol_section(metrics, words),
    }
    return {
        words[title]: {words.get(label, label): value for label, value in rows.items()}
        for title, rows in sections.items()
    }


def matrix_section(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe all combinations, where they were compared."""
    if "similarity_matrix_mean" not in metrics:
        return {}
    mean, std = metrics["similarity_matrix_mean"], metrics["similarity_matrix_std"]
    return {"相似度统计": {"平均相似度": f"{mean:.4f}", "标准差": f"{std:.4f}"}}


def pair_sections(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe the pairs and their ranks, or say why there are none."""
    if not metrics["counts"]["pairs"]:
        if metrics["pairing_rule"] == "none":
            why = words["两侧没有相同的文件名，不知道哪些文件成对"]
        else:
            lost = metrics["counts"]["pairs_skipped"]
            why = words["每一对都有文件被跳过" if lost else "没有能够确定的配对"]
        return {"配对一致性": {"无": why}, "检索性能": {"无": why}}

    def retrieval(ranks: dict[str, Any], direction: str = "") -> dict[str, str]:
        # The guide's labels stand once at the start of a line: scripts look for them.
        return {
            f"{direction}平均排名": f"{ranks['mean_rank']:.2f}",
            f"{direction}中位数排名": f"{ranks['median_rank']:.2f}",
            **{f"{direction} Recall@{k}".strip(): f"{ranks[f'recall_at_{k}']:.4f}" for k in RECALL_AT},
        }

    sections = {
        "配对一致性": {
            "平均配对相似度": mean_and_std(metrics, "paired", words),
            "最小值": f"{metrics['paired_similarity_min']:.4f}",
            "最大值": f"{metrics['paired_similarity_max']:.4f}",
        }
    }
    if "video_to_audio" in metrics:
        sections["检索性能"] = retrieval(metrics)
        sections["检索性能 (视频到音频)"] = retrieval(metrics["video_to_audio"], "视频到音频")
    return sections | {"与不成对的组合相比": against_mismatches(metrics, words)}


def mean_and_std(figures: dict[str, Any], which: str, words: dict[str, str]) -> str:
    """Format the mean and the standard deviation of the "paired" or the "mismatched" similarities."""
    mean, std = (figures[f"{which}_similarity_{figure}"] for figure in ("mean", "std"))
    return f"{mean:.4f} ± {std:.4f} {words['(标准差)']}"


def format_interval(interval: list[float]) -> str:
    """Format an interval in as many digits as it deserves."""
    return "[{0:.{2}f}, {1:.{2}f}]".format(*interval, digits_of(interval))


def against_mismatches(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, str]:
    """Describe the confidence interval of the pairs' mean, and how the pairs compare with mismatches."""
    interval = metrics["paired_similarity_interval"]
    too_few = words["无 (独立的配对太少，或多数相等)"]
    rows = {"配对平均值的 95% 置信区间": format_interval(interval) if interval else too_few}
    if "groups" in metrics:
        rows["分组"] = metrics["groups"]
    if "margin" not in metrics:
        return rows | chance_rows(directions_of(metrics))
    auc = f"{metrics['auc']:.4f}"
    rows |= {
        "不成对组合的平均相似度": mean_and_std(metrics, "mismatched", words),
        "差距": f"{metrics['margin']:.4f}",
        "配对高于不成对组合的概率 (AUC)": " ".join(
            [auc, *map(format_interval, filter(None, [metrics["auc_interval"]]))]
        ),
    }
    for direction, figures in directions_of(metrics).items():
        if figures["recall_at_1_interval"]:
            rows[f"召回率的 95% 置信区间 ({direction})"] = ", ".join(
                f"Recall@{k} {format_interval(figures[f'recall_at_{k}_interval'])}" for k in RECALL_AT
            )
    return rows | chance_rows(directions_of(metrics)) | suspect_rows(metrics, words)


def directions_of(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of ranks by direction; of pairs alone there are none."""
    if "video_to_audio" not in metrics:
        return {}
    return {"音频到视频": metrics, "视频到音频": metrics["video_to_audio"]}


def chance_rows(directions: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Say what Recall@K would be by chance, in each direction; 1 where nothing competes."""
    return {
        f"随机水平 ({direction})": ", ".join(
            f"Recall@{k} {figures[f'recall_at_{k}_chance']:.4f}" for k in RECALL_AT
        )
        for direction, figures in directions.items()
    }


def score_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, str]]:
    """List the public scores, where others than the released loaders' were asked for, and what each drops."""
    scores, rows = metrics["scores"], {}
    if list(scores) == ["imagebind"] or not metrics["counts"]["pairs"]:
        return {}
    for name, found in scores.items():
        label = score_label(name, metrics)
        parts = [words["没有评分"] if found["mean"] is None else f"{found['mean']:.4f}"]
        parts += [format_interval(found["interval"])] if found["interval"] else []
        text = f"{' '.join(parts)}, {words['计分'].format(found['n_scored'], found['n_pairs'])}"
        if "mean_dropped_as_zero" in found:
            text += "; " + words["未计分按 0 计"].format(found["mean_dropped_as_zero"])
        rows[label] = text
        for pair in found["dropped"][:DROPPED_SHOWN]:
            rows[f"  {name}: {one_line(pair['name'])}"] = pair["reason"]
        if len(found["dropped"]) > DROPPED_SHOWN:
            rows[f"  {name}: ..."] = words["其余见 metrics.json"]
    return {"公开评分": rows}


def score_label(name: str, metrics: dict[str, Any]) -> str:
    """Name a protocol, with the seconds that it looks at where that is an option."""
    seconds = (metrics["protocol"]["protocols"][name] or {}).get("seconds")
    return name if seconds is None else f"{name} ({seconds:g} s)"


def suspect_rows(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, Any]:
    """Count the suspects, name the first of them with what fits better, and say what they are."""
    if metrics["suspects"] is None:
        return {"可疑配对": words["配对太少，无法判断"]}

    def describe(suspect: dict[str, Any]) -> str:
        video, audio = (
            suspect[name] if suspect[name] and suspect[f"{name}_similarity"] > suspect["similarity"] else None
            for name in ("best_other_video", "best_other_audio")
        )
        better = {"更好的组合": (video, audio), "更好的视频": (video,), "更好的音频": (audio,)}
        fitting = next((key for key, names in better.items() if all(names)), None)
        text = words[fitting].format(*map(one_line, better[fitting])) if fitting else ""
        return f"{suspect['similarity']:.4f}{text}"

    listed = metrics["lowest_suspects"]
    rows = {"可疑配对": metrics["suspects"]}
    rows |= {f"  {one_line(suspect['name'])}": describe(suspect) for suspect in listed}
    if len(listed) < metrics["suspects"]:
        rows["  ..."] = words["其余见 pair_scores.csv"]
    return rows | {"可疑的含义": words["含义"]}


def kept_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Say how many pairs reach the threshold, and what share of mismatches would."""
    if (kept := metrics.get("kept")) is None:
        return {}
    rows = {
        "阈值": f"{kept['threshold']:g}",
        "达到阈值的配对": words["其中"].format(kept["pairs"], metrics["counts"]["pairs"]),
    }
    if kept["mismatches_share"] is not None:
        rows["达到阈值的不成对组合"] = f"{100 * kept['mismatches_share']:.2f} %"
    if kept["file"]:
        rows["写入"] = kept["file"]
    return {"筛选": rows}


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
        rows["平均值"] = mean_and_std(figures, "paired", words)
        if interval := figures["paired_similarity_interval"]:
            rows["95% 置信区间"] = format_interval(interval)
        if "margin" in figures:
            rows["不成对组合的平均相似度"] = mean_and_std(figures, "mismatched", words)
            rows["配对高于不成对组合的概率 (AUC)"] = f"{figures['auc']:.4f}"
        directions = {}
        if f"{modality}_to_text" in figures:
            directions = {f"文本到{name}": figures, f"{name}到文本": figures[f"{modality}_to_text"]}
        rows |= {f"检索 ({direction})": retrieval(ranks) for direction, ranks in directions.items()}
        rows |= chance_rows(directions)
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
    if rows_skipped := metrics["counts"].get("rows_skipped"):
        rows["清单中无法使用的行"] = rows_skipped
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
