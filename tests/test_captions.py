"""Captions: files that are read or refused, what they belong to, and what a run says of them."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TESTS, tone, write_audio, write_movie

from batch_inference import EvaluationError, batch_inference_av_consistency, main
from imagebind import data
from imagebind.evaluation.inputs.captions import match_captions, match_names, read_captions
from imagebind.evaluation.inputs.files import gather_files
from imagebind.evaluation.inputs.pairing import pair_files
from imagebind.models import imagebind_model
from imagebind.models.imagebind_model import IMAGEBIND_HUGE, ImageBindModel, load_model, save_model


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "name,caption\na,a dog\nb,a cat\n"),
        ("x.csv", "\ufeffCaption , id, Name\r\na dog,1,a\r\na cat,2,b\r\n"),  # as Excel saves it
        ("x.TSV", "name\tcaption\na\ta dog\nb\ta cat"),
        ("x.jsonl", '{"name": "a", "caption": "a dog"}\n\n{"caption": "a cat", "name": "b", "id": 2}\n'),
    ],
)
def test_each_kind_of_file_gives_its_texts(tmp_path, name, content, caplog):
    captions = read_captions(write(tmp_path / name, content))
    assert captions.texts == {"a": "a dog", "b": "a cat"}
    assert captions.n_skipped == 0
    assert caplog.messages == []


def test_quotes_and_line_ends_in_fields_stay(tmp_path):
    path = tmp_path / "x.csv"
    texts = {"a": 'she says "hi", twice', "b": "two\nlines", "c, d": " spaces "}
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "caption"), *texts.items()])
    assert read_captions(path).texts == texts
    path = write(
        tmp_path / "x.jsonl", "\n".join(json.dumps({"name": n, "caption": c}) for n, c in texts.items())
    )
    assert read_captions(path).texts == texts


def test_rows_that_cannot_be_used_are_skipped_by_their_line(tmp_path, caplog):
    rows = ["name,caption", "a,a dog", "b,", "", 'c,"two', 'lines"', "d,barks, loudly", "a,a cat", " ,x", "e"]
    captions = read_captions(write(tmp_path / "x.csv", "\n".join([*rows, *["f,"] * 9])))
    assert captions.texts == {"a": "a dog", "c": "two\nlines"}
    assert captions.n_skipped == 14
    assert caplog.messages == [
        f"{tmp_path}/x.csv: an empty caption: skipped row 3, 11, 12, 13, 14 and 5 more",
        f"{tmp_path}/x.csv: another number of columns than in the first line: skipped row 7, 10",
        f"{tmp_path}/x.csv: a name that has a caption already: skipped row 8",
        f"{tmp_path}/x.csv: no name: skipped row 9",
    ]
    caplog.clear()
    lines = [
        "{",
        '{"name": "a"}',
        "[1]",
        "7",
        '{"name": 1, "caption": "x"}',
        '{"name": "a", "caption": "a dog"}',
    ]
    captions = read_captions(write(tmp_path / "x.jsonl", "\n".join(lines)))
    assert captions.texts == {"a": "a dog"}
    assert caplog.messages == [
        f"{tmp_path}/x.jsonl: no JSON: skipped row 1",
        f"{tmp_path}/x.jsonl: no object with name and caption: skipped row 2, 3, 4",
        f"{tmp_path}/x.jsonl: a name or a caption that is no text: skipped row 5",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.csv",
            "id,text\na,a dog\n",
            "no column name and caption; its first line has to name the columns, separated by comma",
        ),
        ("x.csv", "a,a dog\n", "no column name and"),
        ("x.csv", "", "no column name and"),
        ("x.csv", "name;caption\na;a dog\n", "no column name and"),
        ("x.csv", 'name,caption\na,"a dog\nb,a cat\n', "line 2: unexpected end of data"),
        ("x.csv", "name,caption\n" + "a," + "x" * 200_000, "has no captions"),
        ("x.csv", "name,caption,caption\na,b,c\n", "several columns caption"),
        (
            "x.csv",
            "name,caption\na,a dog\nb,caf\u00e9\n".encode("latin-1"),
            "line 3 is not UTF-8; save it as that",
        ),
        ("x.tsv", "name\tcaption\na\ta dog\n".encode("utf-16"), "line 1 is not UTF-8"),
        ("x.csv", "name,caption\na,\n", "has no captions"),
        ("x.jsonl", "name,caption\na,b\n", "has no captions"),
    ],
)
def test_what_is_no_table_of_captions_is_refused_in_one_line(tmp_path, name, content, message):
    with pytest.raises(EvaluationError) as caught:
        read_captions(write(tmp_path / name, content))
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
    assert "\n" not in str(caught.value)


def test_a_caption_has_a_bound(tmp_path, caplog):
    texts = {"a": "x" * 10_000, "b": "x" * 10_001}
    rows = "".join(f"{name},{text}\n" for name, text in texts.items())
    assert list(read_captions(write(tmp_path / "x.csv", f"name,caption\n{rows}")).texts) == ["a"]
    assert caplog.messages == [f"{tmp_path}/x.csv: a caption of over 10000 characters: skipped row 3"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"none\.csv: No such file"):
        read_captions(tmp_path / "none.csv")


def test_a_mapping_is_held_to_the_same_rules(caplog):
    captions = read_captions({"a": "a dog", "b": " ", "cafe\u0301": "x", 7: "y"})
    assert captions.texts == {"a": "a dog", "cafe\u0301": "x"}
    assert caplog.messages == [
        "captions: an empty caption: skipped row 'b'",
        "captions: a name or a caption that is no text: skipped row 7",
    ]


def listed(side: str, *paths: str):
    return gather_files(side, list(paths))


@pytest.mark.parametrize(
    ("paths", "names", "expected"),
    [
        (["v/a.mp4", "v/b.mp4"], ["b", "a.wav", "c"], {"v/b.mp4": "b", "v/a.mp4": "a.wav"}),
        (["v/a.1.mp4"], ["a.1"], {"v/a.1.mp4": "a.1"}),
        (["v/x/1.mp4", "v/y/1.mp4"], ["x/1", "y/1.mp4", "1"], {"v/x/1.mp4": "x/1", "v/y/1.mp4": "y/1.mp4"}),
        (["v/a.mp4"], ["videos/a.mp4"], {"v/a.mp4": "videos/a.mp4"}),  # a folder that is not needed
        (["v/a.mp4"], ["x/a", "y/a"], {}),  # which one?
        (["v/a.mp4"], ["x/a", "a"], {"v/a.mp4": "a"}),
        (["v/cafe\u0301.mp4"], ["caf\u00e9"], {"v/cafe\u0301.mp4": "caf\u00e9"}),
        (["v/a.mp4", "v/a.mkv"], ["a", "a.mkv"], {"v/a.mkv": "a.mkv"}),
    ],
)
def test_captions_belong_to_files_by_name(paths, names, expected):
    matched = match_names(names, listed("video", *paths))
    assert {source.path: name for source, name in matched.items()} == expected


def test_what_is_said_of_a_file_is_said_of_its_pair(caplog):
    """Lists that pair by position, captions by the name of either."""
    audio, video = (
        listed("audio", "a/1.wav", "a/2.wav", "a/3.wav"),
        listed("video", "v/x.mp4", "v/y.mp4", "v/z.mp4"),
    )
    pairs = pair_files(audio, video).pairs
    captions = {"x": "of x", "2": "of 2", "other": "of none"}
    for retrieval in (False, True):
        caplog.clear()
        captioned = match_captions(captions, audio, video, pairs, retrieval)
        assert captioned.of_pairs == {key: ["x", "2", None] for key in ("audio", "video")}
        assert {
            modality: {source.path: name for source, name in links}
            for modality, links in captioned.of_files.items()
        } == {
            "audio": {"a/1.wav": "x", "a/2.wav": "2"},
            "video": {"v/x.mp4": "x", "v/y.mp4": "2"},
        }
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert said == ["1 captions belong to nothing: other", "1 pairs without a caption: z"]
    with pytest.raises(EvaluationError, match=r"captions are for k, l, and pairs are x, y, z$"):
        match_captions({"k": "x", "l": "y"}, audio, video, pairs, False)


CAPTIONS = {"a": "a low note", "b": "a higher note", "d": "the highest note of all", "x": "of nothing"}


@pytest.fixture
def options(small_checkpoint):
    return {"device": "cpu", "checkpoint": small_checkpoint, "num_workers": 0}


@pytest.fixture
def run(pairs, options, monkeypatch):
    monkeypatch.chdir(pairs)

    def run(**more):
        return batch_inference_av_consistency("audio", "video", **{**options, "captions": CAPTIONS, **more})

    return run


def cosines(a, b) -> np.ndarray:
    return (torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T).numpy()


def plain_rank(scores: np.ndarray, own: int) -> float:
    return 1 + (scores > scores[own]).sum() + ((scores == scores[own]).sum() - 1) / 2


def test_rows_of_texts_are_the_towers_own(run, small_checkpoint):
    results = run()
    assert results["text_names"] == ["a", "b", "d"]
    model = load_model(small_checkpoint)
    with torch.inference_mode():
        tokens = data.load_and_transform_text([CAPTIONS[name] for name in "abd"], "cpu")
        expected = model({"text": tokens})["text"]
    torch.testing.assert_close(results["text_embeddings"], expected)


@pytest.mark.parametrize("retrieval", [False, True])
def test_agreements_are_those_of_the_rows(run, pairs, retrieval):
    """c has no caption and x no pair; in retrieval mode e has a sound alone, and its caption a row."""
    write_audio(pairs / "audio" / "e.wav", tone(1, 900))
    captions = {"e": "a note without a picture", **CAPTIONS}
    results = run(captions=captions, retrieval_mode=retrieval, output_dir="out")
    names = ["e", "a", "b", "d"] if retrieval else ["a", "b", "d"]
    assert results["text_names"] == names
    assert Path("out/text_names.txt").read_text().splitlines() == names
    np.testing.assert_array_equal(np.load("out/text_embeddings.npy"), results["text_embeddings"])
    metrics = json.loads(Path("out/metrics.json").read_text())
    for side in ("audio", "video"):
        of_side = results[f"{side}_names"]
        scores = cosines(results["text_embeddings"], results[f"{side}_embeddings"])
        truth = [(i, of_side.index(name)) for i, name in enumerate(names) if name in of_side]
        found, figures = results[f"text_{side}"], metrics[f"text_{side}"]
        assert sorted(map(tuple, found["pair_rows"].tolist())) == sorted(truth)
        paired = [scores[cell] for cell in truth]
        mismatched = [s for cell, s in np.ndenumerate(scores) if cell not in truth]
        assert figures["paired_similarity_mean"] == pytest.approx(np.mean(paired), abs=1e-6)
        assert figures["paired_similarity_std"] == pytest.approx(np.std(paired), abs=1e-6)
        assert figures["mismatched_similarity_mean"] == pytest.approx(np.mean(mismatched), abs=1e-6)
        ranks = [plain_rank(scores[i], j) for i, j in truth]
        assert figures["mean_rank"] == np.mean(ranks)
        assert figures["recall_at_1"] == np.mean(np.array(ranks) <= 1)
        back = [plain_rank(scores[:, j], i) for i, j in truth]
        assert figures[f"{side}_to_text"]["mean_rank"] == np.mean(back)
        with open("out/pair_scores.csv", encoding="utf-8-sig", newline="") as file:
            rows = {row["name"]: row for row in csv.DictReader(file)}
        assert rows["c"]["caption"] == rows["c"][f"text_{side}_similarity"] == ""
        for (i, j), rank in zip(truth, ranks, strict=True):
            if names[i] != "e":
                row = rows[names[i]]
                assert row["caption"] == captions[names[i]]
                assert float(row[f"text_{side}_similarity"]) == pytest.approx(scores[i, j], abs=1e-5)
                assert float(row[f"text_{side}_rank"]) == rank
    counts = {key: n for key, n in metrics["counts"].items() if "text" in key}
    assert counts == {
        "text": len(names),
        "text_unmatched": 1 if retrieval else 2,
        "text_skipped": 0,
        "text_cut": 0,
        "pairs_without_text": 1,
    }


def test_captions_change_no_other_figure(run):
    alone, both = run(captions=None), run()
    for key, value in alone["metrics"].items():
        if key not in ("counts", "protocol"):
            assert both["metrics"][key] == value
    assert both["metrics"]["counts"].items() >= alone["metrics"]["counts"].items()
    assert "text" not in json.dumps(alone["metrics"])
    assert not any("text" in key for key in alone)


def test_equal_captions_are_right_alike(run, caplog):
    """Two files of one caption: neither is the other's mismatch, and it is embedded once."""
    caplog.set_level(logging.INFO)
    results = run(captions={"a": "a note", "b": "a note", "c": "another"})
    assert any(message.startswith("8 files and 2 captions in") for message in caplog.messages)
    np.testing.assert_array_equal(results["text_embeddings"][0], results["text_embeddings"][1])
    scores = cosines(results["text_embeddings"], results["audio_embeddings"])
    others = [scores[cell] for cell in ((0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3))]
    figures = results["metrics"]["text_audio"]
    assert figures["mismatched_similarity_mean"] == pytest.approx(np.mean(others), abs=1e-6)


def test_an_earlier_runs_texts_leave_with_its_captions(run):
    run(output_dir="out")
    assert Path("out/text_embeddings.npy").exists()
    run(output_dir="out", captions=None)
    assert not {path.name for path in Path("out").iterdir()} & {"text_embeddings.npy", "text_names.txt"}
    assert "caption" not in Path("out/pair_scores.csv").read_text(encoding="utf-8-sig")


def test_texts_are_found_in_the_cache_and_still_counted_when_cut(run, caplog):
    caplog.set_level(logging.INFO)
    captions = CAPTIONS | {"c": "word " * 100}
    first = run(captions=captions, output_dir="out")
    caplog.clear()
    again = run(captions=captions, output_dir="out")
    assert any(
        message.startswith("8 files and 4 captions in") and " 12 from the cache" in message
        for message in caplog.messages
    )
    assert "1 captions are too long, and truncated: c" in caplog.messages
    assert first["metrics"]["counts"]["text_cut"] == again["metrics"]["counts"]["text_cut"] == 1
    assert torch.equal(first["text_embeddings"], again["text_embeddings"])


def test_a_skipped_file_leaves_with_its_caption(run, pairs):
    (pairs / "audio" / "b.wav").write_text("not a sound")
    results = run()
    assert results["text_names"] == ["a", "d"]
    assert results["metrics"]["counts"]["pairs"] == 3


def test_a_videos_own_sound_can_have_captions(pairs, options, monkeypatch):
    monkeypatch.chdir(pairs)
    movies = [write_movie(pairs / f"{name}.mkv", hz) for name, hz in (("a", 300), ("b", 900))]
    results = batch_inference_av_consistency(None, movies, captions=CAPTIONS, **options)
    assert results["text_names"] == ["a", "b"]
    assert [pair["caption"] for pair in results["pair_scores"]] == [CAPTIONS["a"], CAPTIONS["b"]]


def test_a_model_without_a_text_tower_is_refused(pairs, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(pairs)
    towers = {
        m: dataclasses.replace(IMAGEBIND_HUGE[m], width=8, n_blocks=1, n_heads=1) for m in ("vision", "audio")
    }
    save_model(ImageBindModel(towers), "two.pth")
    write(pairs / "x.csv", "name,caption\na,a dog\n")
    argv = ["--audio_dir", "audio", "--video_dir", "video", "--captions", "x.csv", "--checkpoint", "two.pth"]
    assert main([*argv, "--device", "cpu"]) == 1
    assert "error: two.pth: has no text tower" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--captions", "none.csv"], "argument --captions: none.csv: no such file"),
        (["--captions", "x.txt"], "argument --captions: must be a .csv, .tsv or .jsonl file, not 'x.txt'"),
    ],
)
def test_wrong_usage_is_said_at_once(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["--video_paths", "a.mp4", *argv])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_both_reports_and_the_last_line_tell_of_captions(pairs, small_checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(pairs)
    write(pairs / "x.csv", "name,caption\na,a low note\nb,a high one\nb,again\nz,of nothing\n")
    argv = ["--audio_dir", "audio", "--video_dir", "video", "--captions", "x.csv", "--num_workers", "0"]
    argv += ["--checkpoint", str(small_checkpoint), "--device", "cpu"]
    assert main([*argv, "--report_lang", "en"]) == 0
    captured = capsys.readouterr()
    out = captured.out.splitlines()
    assert out[-1] == (
        "evaluated 4 pairs, skipped 0 files, unmatched 0 files; 2 captions, 1 unmatched, 2 pairs without one"
    )
    start = out.index("Similarity of captions and audio:")
    assert out[start + 1] == "  With a caption: 2"
    assert any(line.startswith("  Retrieval, caption to audio: Recall@1 ") for line in out)
    assert any(line.startswith("  Retrieval, video to caption: Recall@1 ") for line in out)
    assert out[out.index("Captions:") + 1 :][:4] == [
        "  With a row: 2",
        "  Pairs without a caption: 2",
        "  Belonging to nothing: 1",
        "  Rows that could not be used: 1",
    ]
    assert "warning: x.csv: a name that has a caption already: skipped row 4" in captured.err.splitlines()
    assert main(argv) == 0
    report = Path("outputs/consistency_report.txt").read_text(encoding="utf-8")
    assert "文本-音频一致性:\n  有文本的数量: 2\n  平均值: " in report
    assert "  检索 (文本到视频): Recall@1 " in report
    assert "文本:\n  文本数量: 2\n  没有文本的配对: 2\n" in report


def test_systems_are_compared_by_their_captions_too(run, pairs, capsys):
    for i, name in enumerate("abcd"):
        write_audio(pairs / "audio2" / f"{name}.wav", tone(1, 500 + 170 * i))
    run(output_dir="one")
    shutil.move("audio2", "audio3")
    shutil.rmtree("audio")
    shutil.move("audio3", "audio")
    run(output_dir="two", captions={"a": CAPTIONS["a"], "d": CAPTIONS["d"]})
    run(output_dir="none", captions=None)
    assert main(["--compare", "one", "two", "none", "--output_dir", "compared", "--report_lang", "en"]) == 0
    out = capsys.readouterr().out
    with open("compared/comparison.csv", encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["agreement"] == "text_audio"]
    assert [(row["system"], row["minus"], row["pairs"]) for row in rows] == [
        ("one", "", "3"),
        ("two", "", "2"),
        ("one", "two", "2"),
    ]
    metrics = [json.loads(Path(name, "metrics.json").read_text())["text_audio"] for name in ("one", "two")]
    for row, figures in zip(rows, metrics, strict=False):
        assert float(row["mean"]) == pytest.approx(figures["paired_similarity_mean"], abs=1e-5)
        assert float(row["recall_at_1"]) == pytest.approx(figures["recall_at_1"], abs=1e-5)
    one, two = (figures["paired_similarities"] for figures in metrics)
    assert float(rows[2]["mean"]) == pytest.approx(np.mean([one[0] - two[0], one[2] - two[1]]), abs=1e-5)
    lines = out.splitlines()
    assert lines[lines.index("Captions and audio:") + 2].split()[:2] == ["one", "3"]


def test_50_000_captions_are_read_in_little_memory(tmp_path):
    with open(tmp_path / "x.csv", "w", encoding="utf-8") as file:
        file.write("name,caption\n")
        file.writelines(f"clip_{i:07d},a sound with the number {i}\n" for i in range(50_000))
    code = f"""
from imagebind.evaluation.inputs.captions import match_captions
from imagebind.evaluation.inputs.files import gather_files
from imagebind.evaluation.inputs.pairing import pair_files
names = [f"clip_{{i:07d}}.x" for i in range(0, 100_000, 4)]
sides = [gather_files(side, [f"{{side}}/{{name}}" for name in names]) for side in ("audio", "video")]
captioned = match_captions({str(tmp_path / "x.csv")!r}, *sides, pair_files(*sides).pairs, False)
assert len(captioned.texts) == 50_000 and sum(map(bool, captioned.of_pairs["video"])) == 12_500
(peak,) = (line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(peak)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 100_000  # kilobytes


@pytest.mark.weights
def test_the_released_example_gives_the_published_figures():
    """Texts, images and sounds of a dog, a car and a bird, with the released weights."""
    root = TESTS.parent / ".checkpoints"
    names = ("dog", "car", "bird")
    images, sounds = [root / f"{n}_image.jpg" for n in names], [root / f"{n}_audio.wav" for n in names]
    if missing := [path for path in (root / "imagebind_huge.pth", *images, *sounds) if not path.exists()]:
        pytest.skip(f"{missing[0]} is not there")
    model = imagebind_model.imagebind_huge(pretrained=True)
    with torch.inference_mode():
        rows = model(
            {
                "text": data.load_and_transform_text(["A dog.", "A car", "A bird"], "cpu"),
                "vision": data.load_and_transform_vision_data(images, "cpu"),
                "audio": data.load_and_transform_audio_data(sounds, "cpu"),
            }
        )
    for side, other, expected in (
        ("vision", "text", [0.9976, 0.99994, 0.98646]),
        ("audio", "text", [1, 1, 1]),
        ("vision", "audio", [0.8070, 0.7884, 0.9960]),
    ):
        shares = torch.softmax(rows[side] @ rows[other].T, dim=-1)
        assert shares.diag().tolist() == pytest.approx(expected, abs=5e-3), (side, other)


@pytest.mark.parametrize("with_both", [False, True])
def test_names_that_differ_in_spelling_alone_all_have_their_caption(pairs, small_checkpoint, with_both):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for name, letter in ((composed, "a"), (decomposed, "b")):
        shutil.copy(pairs / "audio" / f"{letter}.wav", pairs / "audio" / f"{name}.wav")
        shutil.copy(pairs / "video" / f"{letter}.mp4", pairs / "video" / f"{name}.mp4")
    captions = {decomposed: "a car", composed: "a horn"} if with_both else {composed: "a horn"}
    results = batch_inference_av_consistency(
        pairs / "audio", pairs / "video", "cpu", retrieval_mode=True, checkpoint=small_checkpoint,
        captions=captions, num_workers=int(with_both),
    )  # fmt: skip
    assert len(results["text_names"]) == len(captions)
    for modality in ("audio", "video"):
        rows = {
            results[f"{modality}_names"][j]: results["text_names"][i]
            for i, j in results[f"text_{modality}"]["pair_rows"].tolist()
        }
        assert rows == {composed: composed, decomposed: decomposed if with_both else composed}
