"""Metrics -> consistency_report.txt, and the sections that the page shows too."""

from __future__ import annotations

from typing import Any

from imagebind.evaluation.compare.candidates import RECALL_AT
from imagebind.evaluation.compare.intervals import digits_of
from imagebind.evaluation.write.reasons import in_language
from imagebind.evaluation.write.report_words import REPORT_WORDS
from imagebind.names import one_line

REPORT_RULE = "=" * 80
FAILURES_SHOWN = 20  # metrics.json has all
DROPPED_SHOWN = 5  # of each protocol
CATEGORIES_SHOWN = 30
ROUGH_GROUPS = 5  # fewer, counted as equal ones, give an interval that is rough


def format_report(metrics: dict[str, Any], lang: str = "zh") -> str:
    """Format metrics as a text report, in Chinese ("zh") or English ("en")."""
    words = REPORT_WORDS[lang]
    counts, note = metrics["counts"], metrics["protocol"]["checkpoint"]["note"]
    lines = [REPORT_RULE, words["report"], REPORT_RULE, ""]
    lines += [f"{words['note']}: {one_line(in_language(note, lang))}", ""] if note else []
    for label, key in (("audio files", "audio"), ("video files", "video"), ("pairs", "pairs")):
        lines.append(f"{words[label]}: {counts[key]}")
    for title, rows in report_sections(metrics, lang).items():
        lines += ["", f"{title}:"]
        lines += [f"  {label}: {value}" for label, value in rows.items()]
    return "\n".join(lines) + "\n"


def summary(counts: dict[str, int]) -> str:
    """Return the last line of a run."""
    line = "evaluated {pairs} pairs, skipped {failed} files, unmatched {unmatched} files"
    if counts.get("rows_skipped"):
        line += "; {rows_skipped} rows of the manifest skipped"
    if "text" in counts:
        line += "; {text} captions, {text_unmatched} unmatched, {pairs_without_text} pairs without one"
    return line.format_map(counts)


def report_sections(metrics: dict[str, Any], lang: str) -> dict[str, dict[str, Any]]:
    """Return the sections of the report: title -> label -> value; the labels of files are indented."""
    words = REPORT_WORDS[lang]
    sections = {
        **score_section(metrics, words, lang),  # first, where they were asked for
        **matrix_section(metrics),
        **pair_sections(metrics, words),
        **category_section(metrics, words),
        **flag_section(metrics, words),
        **kept_section(metrics, words),
        **caption_sections(metrics, words),
        **other_files_section(metrics, words, lang),
        **protocol_section(metrics, words),
    }
    return {
        words[title]: {words.get(label, label): value for label, value in rows.items()}
        for title, rows in sections.items()
    }


def matrix_section(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe all combinations, where they were compared."""
    if "similarity_matrix_mean" not in metrics or is_one_pair(metrics):
        return {}
    mean, std = metrics["similarity_matrix_mean"], metrics["similarity_matrix_std"]
    return {"all combinations": {"mean similarity": f"{mean:.4f}", "standard deviation": f"{std:.4f}"}}


def is_one_pair(metrics: dict[str, Any]) -> bool:
    """Whether there is nothing but a pair, so that nothing competes with anything."""
    return all(metrics["counts"][key] == 1 for key in ("audio", "video", "pairs"))


def pair_sections(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe the pairs and their ranks, or say why there are none."""
    if not metrics["counts"]["pairs"]:
        if metrics["pairing_rule"] == "none":
            why = words["no common names"]
        else:
            lost = metrics["counts"]["pairs_skipped"]
            why = words["all pairs skipped" if lost else "no sure pairs"]
        return {"pair similarity": {"none": why}, "retrieval": {"none": why}}

    if is_one_pair(metrics):
        return {"pair similarity": {"mean of pairs": f"{metrics['paired_similarity_mean']:.4f}"}}

    def retrieval(ranks: dict[str, Any], direction: str = "") -> dict[str, str]:
        # The guide's labels stand once at the start of a line: scripts look for them.
        return {
            f"{direction}mean rank": f"{ranks['mean_rank']:.2f}",
            f"{direction}median rank": f"{ranks['median_rank']:.2f}",
            **{f"{direction}Recall@{k}": f"{ranks[f'recall_at_{k}']:.4f}" for k in RECALL_AT},
        }

    sections = {
        "pair similarity": {
            "mean of pairs": mean_and_std(metrics, "paired", words),
            "minimum": f"{metrics['paired_similarity_min']:.4f}",
            "maximum": f"{metrics['paired_similarity_max']:.4f}",
        }
    }
    if "video_to_audio" in metrics:
        sections["retrieval"] = retrieval(metrics)
        sections["video to audio retrieval"] = retrieval(metrics["video_to_audio"], "video to audio ")
    return sections | {"against mismatches": against_mismatches(metrics, words)}


def mean_and_std(figures: dict[str, Any], which: str, words: dict[str, str]) -> str:
    """Format the mean and the standard deviation of the "paired" or the "mismatched" similarities."""
    mean, std = (figures[f"{which}_similarity_{figure}"] for figure in ("mean", "std"))
    return f"{mean:.4f} ± {std:.4f} {words['(standard deviation)']}"


def format_interval(interval: list[float]) -> str:
    """Format an interval in as many digits as it deserves."""
    return "[{0:.{2}f}, {1:.{2}f}]".format(*interval, digits_of(interval))


def with_interval(figure: float, interval: list[float] | None) -> str:
    """Format a figure, with its interval if it has any."""
    return f"{figure:.4f} {format_interval(interval)}" if interval else f"{figure:.4f}"


def against_mismatches(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, str]:
    """Describe the confidence interval of the pairs' mean, and how the pairs compare with mismatches."""
    interval = metrics["paired_similarity_interval"]
    rows = {"interval of pairs": format_interval(interval) if interval else words["no interval"]}
    rows |= group_rows(metrics, words)
    if "margin" not in metrics:
        return rows | chance_rows(directions_of(metrics))
    rows |= {
        "mean of mismatches": mean_and_std(metrics, "mismatched", words),
        "margin": f"{metrics['margin']:.4f}",
        "auc": with_interval(metrics["auc"], metrics["auc_interval"]),
    }
    directions = directions_of(metrics)
    return rows | interval_rows(directions) | chance_rows(directions) | suspect_rows(metrics, words)


def group_rows(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, Any]:
    """Count groups and copies, and say how much they count for where that is less."""
    rows = {}
    if "groups" in metrics:
        n, counted = metrics["groups"], metrics["groups_effective"]
        rows["groups"] = n if counted > 0.95 * n else words["unequal groups"].format(n, counted)
        if counted < ROUGH_GROUPS:
            rows["groups"] = f"{rows['groups']}; {words['rough']}"
    if copies := metrics["counts"]["copies"]:
        rows["copies"] = words["of all"].format(copies, metrics["counts"]["pairs"])
    return rows


def category_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Give the mean of each category, the largest categories where there are many."""
    categories = metrics.get("categories")
    if not categories:
        return {}
    rows = {"mean of category means": f"{metrics['category_mean']:.4f}"}
    n_without = metrics["counts"]["pairs"] - sum(figures["pairs"] for figures in categories.values())
    if n_without:
        rows["without a category"] = words["n pairs"].format(n_without)
    largest = sorted(categories, key=lambda name: -categories[name]["pairs"])[:CATEGORIES_SHOWN]
    for name in filter(set(largest).__contains__, categories):
        figures = categories[name]
        mean, n_pairs = with_interval(figures["mean"], figures["interval"]), figures["pairs"]
        rows[f"  {one_line(name)}"] = f"{mean}, {words['n pairs'].format(n_pairs)}"
    if len(categories) > len(largest):
        rows["  ..."] = words["others in metrics.json"]
    return {"categories": rows}


def directions_of(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of ranks by direction; of pairs alone there are none."""
    if "video_to_audio" not in metrics:
        return {}
    return {"audio to video": metrics, "video to audio": metrics["video_to_audio"]}


def interval_rows(directions: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Give the intervals of Recall@K, in each direction."""
    return {
        f"interval, {direction}": ", ".join(
            f"Recall@{k} {format_interval(figures[f'recall_at_{k}_interval'])}" for k in RECALL_AT
        )
        for direction, figures in directions.items()
        if figures["recall_at_1_interval"]
    }


def chance_rows(directions: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Say what Recall@K would be by chance, in each direction; 1 where nothing competes."""
    return {
        f"chance, {direction}": ", ".join(
            f"Recall@{k} {figures[f'recall_at_{k}_chance']:.4f}" for k in RECALL_AT
        )
        for direction, figures in directions.items()
    }


def dropped_by_protocol(score: dict[str, Any], metrics: dict[str, Any]) -> list[dict[str, str]]:
    """List the pairs that a protocol drops, but those whose files are listed as skipped."""
    skipped = {f"{failure['side']} file: {failure['reason']}" for failure in metrics["failures"]}
    return [pair for pair in score["dropped"] if not set(pair["reason"].split("; ")) & skipped]


def score_section(metrics: dict[str, Any], words: dict[str, str], lang: str) -> dict[str, dict[str, str]]:
    """List the public scores, where others than the released loaders' were asked for, and what each drops."""
    scores, rows = metrics["scores"], {}
    if list(scores) == ["imagebind"] or not metrics["counts"]["pairs"]:
        return {}
    for name, score in scores.items():
        mean = score["mean"]
        text = words["no score"] if mean is None else with_interval(mean, score["interval"])
        text += f", {words['scored'].format(score['n_scored'], score['n_pairs'])}"
        if score.get("mean_of_categories") is not None:
            text += f"; {words['mean of categories'].format(score['mean_of_categories'])}"
        if score.get("padded"):
            text += f"; {words['padded'].format(score['padded'])}"
        if "mean_dropped_as_zero" in score:
            text += "; " + words["dropped as 0"].format(score["mean_dropped_as_zero"])
        rows[score_label(name, metrics)] = text
        dropped = dropped_by_protocol(score, metrics)
        for pair in dropped[:DROPPED_SHOWN]:
            rows[f"  {name}: {one_line(pair['name'])}"] = in_language(pair["reason"], lang)
        if len(dropped) > DROPPED_SHOWN:
            rows[f"  {name}: ..."] = words["others in metrics.json"]
        for column, of_text in score.get("with_text", {}).items():
            if of_text["mean"] is not None:
                scored = words["scored"].format(of_text["n_scored"], of_text["n_pairs"])
                rows[f"  {column}"] = f"{with_interval(of_text['mean'], of_text['interval'])}, {scored}"
    return {"public scores": rows}


def score_label(name: str, metrics: dict[str, Any]) -> str:
    """Name a protocol, with the seconds that it looks at where that is an option."""
    seconds = (metrics["protocol"]["protocols"][name] or {}).get("seconds")
    return name if seconds is None else f"{name} ({seconds:g} s)"


def suspect_rows(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, Any]:
    """Count the suspects, name the first of them with what fits better, and say what they are."""
    if metrics["suspects"] is None:
        return {"suspects": words["too few"]}

    def describe(suspect: dict[str, Any]) -> str:
        video, audio = (
            suspect[name] if suspect[name] and suspect[f"{name}_similarity"] > suspect["similarity"] else None
            for name in ("best_other_video", "best_other_audio")
        )
        better = {"both better": (video, audio), "better video": (video,), "better audio": (audio,)}
        fitting = next((key for key, names in better.items() if all(names)), None)
        text = words[fitting].format(*map(one_line, better[fitting])) if fitting else ""
        return f"{suspect['similarity']:.4f}{text}"

    listed = metrics["lowest_suspects"]
    rows = {"suspects": metrics["suspects"]}
    rows |= {f"  {one_line(suspect['name'])}": describe(suspect) for suspect in listed}
    if len(listed) < metrics["suspects"]:
        rows["  ..."] = words["others in pair_scores.csv"]
    return rows | {"what suspect means": words["suspects are"]}


def flag_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Count the files that are flagged, and those of which it is not known; nothing where there are none."""
    flags, n_pairs = metrics["flags"], metrics["counts"]["pairs"]
    rows = {
        f"{modality} {what}": n
        for modality in ("video", "audio")
        for what, n in flags[modality].items()
        if n and what != "unknown"
    }
    if flags["pairs"]:
        rows["flagged pairs"] = words["of all"].format(flags["pairs"], n_pairs)
        if flags["mean_without"] is not None:
            rows["mean without"] = f"{flags['mean_without']:.4f}"
    read = [m for m in ("video", "audio") if m not in metrics["protocol"].get("embeddings", {})]
    if n_unknown := sum(flags[modality]["unknown"] for modality in read):
        rows["unknown flags"] = words["why unknown"].format(n_unknown)
    return {"flags": rows} if rows else {}


def kept_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Say how many pairs reach the threshold, and what share of mismatches would."""
    if (kept := metrics.get("kept")) is None:
        return {}
    rows = {
        "threshold": f"{kept['threshold']:g}",
        "pairs kept": words["of all"].format(kept["pairs"], metrics["counts"]["pairs"]),
    }
    if kept["of_mismatches"]:
        share, most = (100 * kept[f"mismatches_share{which}"] for which in ("", "_at_most"))
        counts = kept["mismatches"], kept["of_mismatches"]
        rows["mismatches kept"] = words["k of n"].format(*counts, share, float(f"{most:.2g}"))
    if kept["file"]:
        rows["written to"] = kept["file"]
    return {"kept": rows}


def caption_sections(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe how captions agree with sounds and with videos, and count the captions that are not used."""
    counts = metrics["counts"]
    if "text" not in counts:
        return {}

    def retrieval(ranks: dict[str, Any]) -> str:
        recalls = [f"Recall@{k} {ranks[f'recall_at_{k}']:.4f}" for k in RECALL_AT]
        if "mean_average_precision_at_10" in ranks:
            recalls.append(f"mAP@10 {ranks['mean_average_precision_at_10']:.4f}")
        return ", ".join([*recalls, words["ranks"].format(ranks["mean_rank"], ranks["median_rank"])])

    sections = {}
    for modality in ("audio", "video"):
        figures = metrics.get(f"text_{modality}", {})
        if "paired_similarity_mean" not in figures:
            sections[f"captions and {modality}"] = {"none": words["no caption"]}
            continue
        rows = {"with a caption": len(figures["paired_similarities"])}
        rows["mean"] = mean_and_std(figures, "paired", words)
        if interval := figures["paired_similarity_interval"]:
            rows["interval"] = format_interval(interval)
        if "margin" in figures:
            rows["mean of mismatches"] = mean_and_std(figures, "mismatched", words)
            rows["auc"] = f"{figures['auc']:.4f}"
        directions = {}
        if f"{modality}_to_text" in figures:
            directions = {
                f"caption to {modality}": figures,
                f"{modality} to caption": figures[f"{modality}_to_text"],
            }
        rows |= {f"retrieval, {direction}": retrieval(ranks) for direction, ranks in directions.items()}
        rows |= interval_rows(directions) | chance_rows(directions)
        sections[f"captions and {modality}"] = rows
    labels = {
        "caption rows": "text",
        "pairs without caption": "pairs_without_text",
        "captions unmatched": "text_unmatched",
        "caption rows skipped": "text_skipped",
        "captions cut": "text_cut",
    }
    used = {label: counts[key] for label, key in labels.items() if counts[key] or key == "text"}
    return {**sections, "captions": used}


def other_files_section(
    metrics: dict[str, Any], words: dict[str, str], lang: str
) -> dict[str, dict[str, Any]]:
    """Count the files that are not among the pairs, and name the first of those that were skipped."""
    rows = {}
    if unmatched := metrics["counts"]["unmatched"]:
        kept = metrics["mode"] == "retrieval"
        rows["unmatched, distractors" if kept else "unmatched, ignored"] = unmatched
    if rows_skipped := metrics["counts"].get("rows_skipped"):
        rows["manifest rows skipped"] = rows_skipped
    if failures := metrics["failures"]:
        rows["skipped"] = len(failures)
        rows |= {
            f"  {in_language(f['side'], lang)} {one_line(f['path'])}": in_language(f["reason"], lang)
            for f in failures[:FAILURES_SHOWN]
        }
    if len(failures) > FAILURES_SHOWN:
        rows["  ..."] = words["others in metrics.json"]
    return {"other files": rows} if rows else {}


def protocol_section(metrics: dict[str, Any], words: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Describe how the figures were computed."""

    def listed(facts: dict[str, Any]) -> str:
        return ", ".join(f"{key} {value}" for key, value in facts.items())

    protocol = metrics["protocol"]
    return {
        "how computed": {
            "mode": words[f"mode {metrics['mode']}"],
            "protocol": score_label(next(iter(metrics["scores"])), metrics),
            "pairs by": words[f"by {metrics['pairing_rule']}"],
            "checkpoint": format_checkpoint(protocol["checkpoint"], words),
            "precision and device": f"{protocol['precision'] or words['not known']}, {protocol['device']}",
            **given_rows(protocol.get("embeddings", {}), words),
            "audio input": listed(protocol["audio"]),
            "video input": listed(protocol["video"]),
            **({"text input": listed(protocol["text"])} if "text" in protocol else {}),
            "versions": listed(protocol["versions"]),
        }
    }


def format_checkpoint(checkpoint: dict[str, Any] | None, words: dict[str, str]) -> str:
    """Name a checkpoint, if it is known."""
    if checkpoint is None or checkpoint["sha256"] is None:
        return words["not known"]
    return f"{one_line(checkpoint['file'])} (sha256 {checkpoint['sha256'][:16]})"


def given_rows(given: dict[str, dict[str, Any]], words: dict[str, str]) -> dict[str, str]:
    """Say of each modality whose embeddings were given where they are from, and how they were made."""
    rows = {}
    for modality, of in given.items():
        recipe = of["protocol"] if of["seconds"] is None else f"{of['protocol']} ({of['seconds']:g} s)"
        checkpoint, precision = format_checkpoint(of["checkpoint"], words), of["precision"]
        how = words[f"from {of['origin']}"].format(one_line(of["source"]), recipe)
        rows[f"{modality} embeddings"] = words["embeddings how"].format(
            how, checkpoint, precision or words["not known"]
        )
    return rows
