"""Pairs that are not all different: copies, groups of one content, several captions of a file, categories."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tone, write_audio
from test_metrics import check_mismatches, check_ranks, check_suspects, measure

from batch_inference import EvaluationError, Evaluator, batch_inference_av_consistency, main
from imagebind.evaluation.compare.candidates import RECALL_AT, BestCandidates, Candidates
from imagebind.evaluation.compare.comparison import Comparison
from imagebind.evaluation.compare.intervals import estimate_mean
from imagebind.evaluation.compare.suspects import SAMPLE_SIZE


@pytest.fixture
def run(pairs, small_checkpoint, monkeypatch, capsys):
    """Run the command line in `pairs`, and give figures, rows and what it says."""
    monkeypatch.chdir(pairs)

    def run(*argv: str, inputs=("--audio_dir", "audio", "--video_dir", "video")):
        model = ("--checkpoint", str(small_checkpoint), "--device", "cpu", "--num_workers", "0")
        assert main([*inputs, *model, "--no_html", "--report_lang", "en", *argv]) == 0
        with open("outputs/pair_scores.csv", encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        return json.loads(Path("outputs/metrics.json").read_text()), rows, capsys.readouterr()

    return run


def copy(name: str, *others: str) -> None:
    for other in others:
        shutil.copy(f"audio/{name}.wav", f"audio/{other}.wav")
        shutil.copy(f"video/{name}.mp4", f"video/{other}.mp4")


# Copies


def test_copies_are_counted_named_and_a_group(run):
    copy("a", "a2", "a3")
    copy("b", "c2")
    metrics, rows, said = run()
    assert metrics["counts"]["copies"] == 3
    assert {row["name"]: (row["copy_of"], row["group"]) for row in rows} == {
        "a": ("", "a"), "a2": ("a", "a"), "a3": ("a", "a"), "b": ("", "b"), "c2": ("b", "b"),
        "c": ("", ""), "d": ("", ""),
    }  # fmt: skip
    assert "Pairs that are copies of another: 3 of 7" in said.out
    assert metrics["groups"] == 4


def test_without_copies_nothing_is_said_of_them(run):
    metrics, rows, said = run()
    assert metrics["counts"]["copies"] == 0
    assert not {"copy_of", "group"} & rows[0].keys()
    assert "copies" not in said.out


def test_copies_in_groups_of_the_user_stay_there(run):
    copy("a", "x_1", "y_1")
    rows = run("--group_by", r"(.)_")[1]
    assert {row["name"]: row["group"] for row in rows} == {
        **{"a": "x", "b": "", "c": "", "d": "", "x_1": "x", "y_1": "y"}
    }
    assert {row["name"]: row["copy_of"] for row in rows if row["copy_of"]} == {"x_1": "a", "y_1": "a"}


# Groups of one content


@pytest.mark.parametrize("seed", range(12))
def test_what_shows_the_same_is_no_mismatch_by_plain_loops(seed):
    """Rows and columns with and without a label, contents under several names, pairs anywhere."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(4, 30, 2)
    audio, video = (rng.standard_normal((size, 5)).astype(np.float32) for size in (n, m))
    alike = tuple(  # of some lines several things
        [(int(i), "xyz"[k]) for i, k in rng.integers(0, (size, 3), (2 * size // 3, 2))] for size in (n, m)
    )
    pairs = [(int(rng.integers(n)), int(rng.integers(m))) for _ in range(n)]
    case = measure(audio, video, pairs, alike=alike)
    assert case.is_true.sum() > len(set(pairs))
    check_ranks(case)
    check_mismatches(case)
    check_suspects(case)


def test_pairs_alone_leave_the_same_cells_out():
    rng, n = np.random.default_rng(0), 60
    embeddings = {m: rng.standard_normal((n, 8)).astype(np.float32) for m in ("audio", "video")}
    comparison = Comparison({m: range(n) for m in embeddings}, embeddings, torch.device("cpu"), 0)
    pairs, labels = np.stack([np.arange(n)] * 2, 1), [(i, f"{i // 3}") for i in range(n)]
    lines = np.arange(n), np.arange(n)
    whole = comparison.compare_all(
        comparison.matrix(("audio", "video"), pairs, alike=(labels, labels)), None, 0
    )
    matrix = comparison.matrix(("audio", "video"), pairs, None, lines, (labels, labels))
    alone = comparison.compare_drawn(matrix, 0)
    assert alone.reaching == whole.reaching
    assert alone.reaching[1] == n * (n - 3)
    for key in ("margin", "auc", "suspects", "mismatches_like_pairs"):
        assert alone.metrics[key] == pytest.approx(whole.metrics[key], abs=1e-12)


WAYS = {  # of saying that a_1 and a_2 show the same, and that b_1 and b_2 do
    "expression": ((), ("--group_by", r"(?P<content_group>.+)_\d")),
    "captions": (None, ("--captions", "captions.csv")),
    "manifest": (("--manifest", "pairs.csv"), ()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("more", [(), ("--pairs_only",), ("--retrieval_mode",)], ids=" ".join)
def test_a_content_group_is_named_in_three_ways(run, way, more):
    for folder, suffix in (("audio", "wav"), ("video", "mp4")):
        for i, name in enumerate("abcd"):
            Path(folder, f"{name}.{suffix}").rename(Path(folder, f"{'aabb'[i]}_{1 + i % 2}.{suffix}"))
    names = ["a_1", "a_2", "b_1", "b_2"]
    Path("captions.csv").write_text(
        "name,caption,content_group\n" + "".join(f"{name},text {name},{name[0]}\n" for name in names)
    )
    Path("pairs.csv").write_text(
        "video,audio,content_group\n"
        + "".join(f"video/{name}.mp4,audio/{name}.wav,{name[0]}\n" for name in names)
    )
    inputs, argv = WAYS[way]
    inputs = inputs or ("--audio_dir", "audio", "--video_dir", "video")
    metrics, rows, _ = run(*argv, *more, inputs=inputs)
    embeddings = [np.load(f"outputs/{m}_embeddings.npy").astype(np.float64) for m in ("audio", "video")]
    audio, video = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in embeddings)
    cosines = audio @ video.T
    others = [cosines[i, j] for i, j in itertools.product(range(4), range(4)) if i // 2 != j // 2]
    assert metrics["mismatched_similarity_mean"] == pytest.approx(np.mean(others), abs=1e-6)
    assert metrics["groups"] == 2
    assert [row["group"] for row in rows] == ["a", "a", "b", "b"]
    assert metrics["protocol"]["suspects"]["mismatches_within_groups"] is False
    if way == "captions":
        texts = np.load("outputs/text_embeddings.npy").astype(np.float64)
        of_texts = texts / np.linalg.norm(texts, axis=1, keepdims=True) @ audio.T
        others = [of_texts[i, j] for i, j in itertools.product(range(4), range(4)) if i // 2 != j // 2]
        assert metrics["text_audio"]["mismatched_similarity_mean"] == pytest.approx(np.mean(others), abs=1e-6)


def test_a_file_of_several_pairs_shows_what_all_of_them_do(pairs, small_checkpoint, monkeypatch):
    """In retrieval mode, where it has one row: as with a row for each pair, by plain loops."""
    monkeypatch.chdir(pairs)
    named = [("a", "a", "x"), ("a", "b", "y"), ("c", "c", "y"), ("d", "d", "")]
    rows = [
        {"video": f"video/{video}.mp4", "audio": f"audio/{audio}.wav", "content_group": label}
        for video, audio, label in named
    ]
    model = Evaluator(checkpoint=small_checkpoint, device="cpu")
    found = model.evaluate(manifest=rows, retrieval_mode=True, num_workers=0)
    cosines = found["similarity_matrix"].numpy().astype(np.float64)
    shown = {"audio": {"a": "x", "b": "y", "c": "y"}, "video": {"a": "xy", "c": "y"}}
    others = [
        cosines[i, j]
        for i, audio in enumerate(found["audio_names"])
        for j, video in enumerate(found["video_names"])
        if not set(shown["audio"].get(audio, "")) & set(shown["video"].get(video, "")) and audio != video
    ]
    assert len(others) == 12 - 4 - 2
    assert found["metrics"]["mismatched_similarity_mean"] == pytest.approx(np.mean(others), abs=1e-6)


CAPTIONED = [("a", "a", "g", "A"), ("a", "a", "", "B"), ("b", "b", "g", "C"), ("b", "a", "h", "D")]


@pytest.mark.parametrize("mode", ["pairing", "pairs_only", "retrieval_mode"])
def test_a_caption_shows_what_its_own_pairs_do(pairs, small_checkpoint, monkeypatch, mode):
    """Copies are in the group of the first; a caption of a file in two groups is in that of its pair."""
    monkeypatch.chdir(pairs)
    rows = [
        {"video": f"video/{v}.mp4", "audio": f"audio/{a}.wav", "content_group": group, "caption": text}
        for v, a, group, text in CAPTIONED
    ]
    more = {} if mode == "pairing" else {mode: True}
    found = Evaluator(checkpoint=small_checkpoint, device="cpu").evaluate(
        manifest=rows, num_workers=0, **more
    )
    texts, audio = (
        torch.nn.functional.normalize(found[f"{m}_embeddings"].double()).numpy() for m in ("text", "audio")
    )
    text_of, sound_of = dict(zip("ABCD", texts, strict=True)), {}
    for row, name in zip(audio, found["audio_names"], strict=True):
        sound_of[name] = row
    shown = {"a": {"g", "h"}, "b": {"g"}}  # by sounds; of pairs alone and in pairing mode rows are pairs
    groups = {"A": "g", "B": "g", "C": "g", "D": "h"}
    own = {(text, a) for _, a, _, text in CAPTIONED}
    lines = [(a, {"g", "h"} if mode == "retrieval_mode" else {groups[text]}) for _, a, _, text in CAPTIONED]
    if mode == "retrieval_mode":
        lines = [(a, shown[a]) for a in "ab"]
    alike = {(text, a) for text in "ABCD" for a, of in lines if groups[text] in of} | own
    others = [text_of[text] @ sound_of[a] for text in "ABCD" for a, _ in lines if (text, a) not in alike]
    metrics = found["metrics"]["text_audio"]
    expected = np.mean(others) if others else None
    assert metrics.get("mismatched_similarity_mean") == (
        None if expected is None else pytest.approx(expected, abs=1e-6)
    )


def test_a_kind_is_no_content():
    rows = np.random.default_rng(0).standard_normal((2100, 4)).astype(np.float32)
    pairs, labels = [(i, i) for i in range(2100)], [(i, "dog") for i in range(2100)]
    with pytest.raises(EvaluationError, match="content_group dog: 2100 files show a kind"):
        measure(rows, rows, pairs, alike=(labels, labels))


def test_an_option_in_the_place_of_a_column_keeps_the_column(run):
    Path("pairs.csv").write_text(
        "video,audio,category,group\nvideo/a.mp4,audio/a.wav,dog,g\nvideo/b.mp4,audio/b.wav,cat,h\n"
    )
    options = ("--category_by", "(a|b)", "--group_by", "(.)")
    rows = run(*options, inputs=("--manifest", "pairs.csv"))[1]
    found = [
        [row[f"{of}{name}"] for of in ("", "manifest_") for name in ("category", "group")] for row in rows
    ]
    assert found == [["a", "a", "dog", "g"], ["b", "b", "cat", "h"]]


def test_an_expression_does_not_undo_a_content_group(pairs):
    rows = [{"video": "video/a.mp4", "content_group": "y"}]
    with pytest.raises(EvaluationError, match="has content_group, in whose place group_by= comes"):
        batch_inference_av_consistency(None, None, manifest=rows, device="cpu", group_by="(.)")


def test_a_group_and_a_content_group_are_one_too_many(pairs):
    rows = [{"video": "video/a.mp4", "group": "x", "content_group": "y"}]
    with pytest.raises(EvaluationError, match="has group and content_group; leave one out"):
        batch_inference_av_consistency(None, None, manifest=rows, device="cpu")
    (pairs / "c.csv").write_text("name,caption,group,content_group\na,text,x,y\n")
    with pytest.raises(EvaluationError, match="has group and content_group; leave one out"):
        batch_inference_av_consistency(pairs / "audio", pairs / "video", "cpu", captions=pairs / "c.csv")


def test_content_that_is_there_several_times_hides_every_pair_until_it_is_named():
    rng = np.random.default_rng(0)
    same = np.repeat(np.arange(8), 3)
    audio, video = (
        (np.eye(8)[same] + 0.01 * rng.standard_normal((24, 8))).astype(np.float32) for _ in range(2)
    )
    pairs, alike = [(i, i) for i in range(24)], [(i, f"{of}") for i, of in enumerate(same)]
    hidden, named = (measure(audio, video, pairs, alike=of).metrics for of in (((), ()), (alike, alike)))
    assert hidden["mismatches_like_pairs"] > 0.03 > named["mismatches_like_pairs"] == 0
    assert (hidden["suspects"], named["suspects"]) == (24, 0)


def test_mismatches_that_are_like_pairs_are_warned_of(pairs, small_checkpoint, caplog):
    """Two pictures under eleven bytes each."""
    for i in range(22):
        write_audio(pairs / "sounds" / f"{i}.wav", tone(1, 500 + i))
        path = pairs / "pictures" / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((pairs / "video" / f"{'ab'[i % 2]}.mp4").read_bytes() + bytes(i))
    model = Evaluator(checkpoint=small_checkpoint, device="cpu")
    found = model.evaluate(pairs / "sounds", pairs / "pictures", num_workers=0)["metrics"]
    assert found["suspects"] is not None
    (warning,) = [message for message in caplog.messages if "content_group" in message]
    assert warning.startswith(f"{100 * found['mismatches_like_pairs']:.0f} % of the combinations")


# Captions


def orders_of(n_better: int, n_others: int, n_own: int) -> list[int]:
    """The rank of the first of one's own, over all orders in which equals can be."""
    return [1 + n_better + min(places) for places in itertools.combinations(range(n_others + n_own), n_own)]


def test_the_best_caption_of_a_file_counts_by_all_orders_of_equals():
    better, others, own = [0, 3, 2, 9], [2, 0, 4, 3], [1, 2, 3, 2]
    total = [8, 9, 11, 20]
    captions = [
        (b, e + 1, n, file) for file, (b, e, n) in enumerate(zip(better, others, total, strict=True))
        for _ in range(own[file])
    ]  # fmt: skip
    captions += [(7, 1, 9, 1), (9, 2, 11, 2)]  # worse ones of two files
    n_better, n_equal, n, files = map(np.array, zip(*captions, strict=True))
    found = BestCandidates.of(Candidates(n_better, n_equal, n), files)
    ranks = [orders_of(*of) for of in zip(better, others, own, strict=True)]
    assert found.ranks == pytest.approx([np.mean(of) for of in ranks])
    reciprocal = np.mean([np.mean(1 / np.array(of)) for of in ranks])
    assert found.mean_reciprocal_rank() == pytest.approx(reciprocal)
    by_chance = [orders_of(0, n - 1, k) for n, k in zip(total, [1, 3, 4, 2], strict=True)]
    for k in RECALL_AT:
        assert found.hits(k) == pytest.approx([np.mean(np.array(of) <= k) for of in ranks])
        assert found.recall_chance(k) == pytest.approx(
            np.mean([np.mean(np.array(of) <= k) for of in by_chance])
        )


def test_files_with_several_captions_are_found_by_any_of_them(pairs, small_checkpoint, monkeypatch):
    """As evaluators of captions do it: over sounds, the best of its captions; by plain loops."""
    monkeypatch.chdir(pairs)
    rows = [
        {"video": f"video/{name}.mp4", "audio": f"audio/{name}.wav", "caption": f"text {i} of {name}"}
        for name in "abcd"
        for i in range(3)
    ]
    results = Evaluator(checkpoint=small_checkpoint, device="cpu").evaluate(
        manifest=rows, retrieval_mode=True, num_workers=0
    )
    texts, audio = (
        torch.nn.functional.normalize(results[f"{m}_embeddings"].double()).numpy() for m in ("text", "audio")
    )
    scores = (texts @ audio.T).astype(np.float32)
    owners = (
        np.array([results["audio_names"].index(name.split()[-1]) for name in results["text_names"]])
        if (" " in results["text_names"][0])
        else np.repeat(np.arange(4), 3)
    )
    figures = results["metrics"]["text_audio"]["audio_to_text"]
    ranks, precisions = [], []
    for file in range(4):
        order = np.argsort(-scores[:, file], kind="stable")
        places = 1 + np.flatnonzero(owners[order] == file)
        ranks.append(places[0])
        precisions.append(sum((i + 1) / place for i, place in enumerate(places) if place <= 10) / 3)
    assert figures["files"] == 4
    assert figures["mean_rank"] == np.mean(ranks)
    for k in RECALL_AT:
        assert figures[f"recall_at_{k}"] == np.mean(np.array(ranks) <= k)
    assert figures["mean_average_precision_at_10"] == pytest.approx(np.mean(precisions))
    of_texts = results["metrics"]["text_audio"]
    assert of_texts["groups"] == 4  # the captions of a file
    assert of_texts["recall_at_1_interval"] is not None


# Thresholds


def test_the_share_of_mismatches_above_a_threshold_is_that_of_all():
    n = 300
    assert n * n - n > SAMPLE_SIZE
    audio, video = np.random.default_rng(0).standard_normal((2, n, 8)).astype(np.float32)
    comparison = Comparison(
        {"audio": range(n), "video": range(n)}, {"audio": audio, "video": video}, torch.device("cpu"), 0
    )
    pairs = np.stack([np.arange(n)] * 2, 1)
    out = np.empty((n, n), np.float32)
    comparison.compare_all(comparison.matrix(("audio", "video"), pairs), out)
    printed = [float(x) for x in out[0, 1:4]]
    for threshold in (-1.0, 0.123456, 1.0, *printed, *np.nextafter(np.float32(printed), np.float32(2))):
        compared = comparison.compare_all(comparison.matrix(("audio", "video"), pairs), out, float(threshold))
        is_above = out >= np.float32(threshold)
        assert compared.reaching == (int(is_above.sum() - np.trace(is_above)), n * n - n, n)


def test_what_is_kept_says_of_how_many_mismatches(run):
    metrics, _, said = run("--keep_above", "1")
    assert metrics["kept"]["mismatches"] == 0
    assert metrics["kept"]["of_mismatches"] == 12
    most = metrics["kept"]["mismatches_share_at_most"]  # of four independent ones
    assert most == pytest.approx(1 - 0.05 ** (1 / 4), rel=0.5)
    assert f"Mismatches that would reach it: 0 of 12 (0.00 %, at most {100 * most:.2g} %)" in said.out


# Categories


def test_means_are_told_apart_by_category(run):
    copy("a", "a_1")
    Path("pairs.csv").write_text(
        "video,audio,category,group\n"
        "video/a.mp4,audio/a.wav,dog,g\nvideo/b.mp4,audio/b.wav,dog,\nvideo/c.mp4,audio/c.wav,7,\n"
        "video/d.mp4,audio/d.wav,,\nvideo/none.mp4,audio/d.wav,cat,\nvideo/a_1.mp4,audio/a_1.wav,dog,g\n"
    )
    metrics, rows, said = run(inputs=("--manifest", "pairs.csv"))
    values = {row["video"]: float(row["similarity"]) for row in rows if row["similarity"]}
    dog = [values[f"video/{name}.mp4"] for name in ("a", "b", "a_1")]
    assert metrics["categories"]["dog"]["mean"] == pytest.approx(np.mean(dog), abs=1e-6)
    assert metrics["categories"]["dog"]["pairs"] == 3
    assert metrics["categories"]["7"] == {
        "pairs": 1, "mean": pytest.approx(values["video/c.mp4"], abs=1e-6), "interval": None,
    }  # fmt: skip
    assert set(metrics["categories"]) == {"dog", "7"}  # the cat has no video
    means = [np.mean(dog), values["video/c.mp4"]]
    assert metrics["category_mean"] == pytest.approx(np.mean(means), abs=1e-6)
    assert [row["category"] for row in rows] == ["dog", "dog", "7", "", "dog", "cat"]
    assert "Mean of the categories' means" in said.out
    assert f"    dog: {np.mean(dog):.4f}, n = 3" in said.out


def test_a_category_has_the_interval_of_its_groups(pairs, small_checkpoint):
    for i in range(20):
        name = f"k{i % 2}_{'uvwxy'[i // 4]}{i}"
        write_audio(pairs / "audio" / f"{name}.wav", tone(1, 200 + 70 * i))
        shutil.copy(pairs / "video" / f"{'abcd'[i % 4]}.mp4", pairs / "video" / f"{name}.mp4")
    results = batch_inference_av_consistency(
        pairs / "audio",
        pairs / "video",
        "cpu",
        checkpoint=small_checkpoint,
        num_workers=0,
        category_by="(k.)_",
        group_by="_([u-y])",
    )
    scores = [pair["similarity"] for pair in results["pair_scores"] if pair["category"] == "k0"]
    expected = estimate_mean(np.array(scores), 0, np.repeat(np.arange(5), 2), most=1).interval
    assert results["metrics"]["categories"]["k0"]["interval"] == pytest.approx(expected)
