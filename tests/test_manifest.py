"""A manifest of pairs: what is read of it, what each row gives, what is kept, and pairs without a matrix."""

from __future__ import annotations

import csv
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import write_movie

from batch_inference import EvaluationError, Evaluator, OptionError, batch_inference_av_consistency, main
from imagebind.evaluation.compare.comparison import Comparison, Matrix
from imagebind.evaluation.inputs.manifest import Manifest, read_manifest

COLUMNS = ("video", "audio", "id", "caption", "audio_caption", "group", "start", "end", "note")
ROWS = [
    ("video/a.mp4", "audio/a.wav", "1", "a note", "", "x", "", "", "first"),
    ("video/a.mp4", "audio/b.wav", "2", "a note", "another note", "x", "", "", ""),
    ("video/b.mp4", "audio/b.wav", "3", "", "", "y", "0.25", "0.75", "a,b"),
    ("video/none.mp4", "audio/c.wav", "4", "", "", "y", "", "", ""),
    ("", "audio/c.wav", "5", "", "", "y", "", "", ""),
    ("video/c.mp4", "audio/c.wav", "6", "", "", "y", "2", "1", ""),
    ("video/c.mp4", "audio/c.wav", "7", "", "", "z", "soon", "", ""),
    ("video/c.mp4", "", "8", "", "", "z", "", "", "no sound in it"),
    ("video/d.mp4", "audio/d.wav", "9", "", "", "z", "", "", "last"),
]
OK, SKIPPED = ["1", "2", "3", "9"], ["4", "5", "6", "7", "8"]


def write_manifest(path: Path, rows=ROWS, columns=COLUMNS) -> Path:
    """Write a manifest in the form of its suffix; empty cells are nulls where there are such."""
    numbers = {"start", "end"}
    typed = [
        {
            name: None if value == "" else float(value) if name in numbers and value != "soon" else value
            for name, value in zip(columns, row, strict=True)
        }
        for row in rows
    ]
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in typed))
    elif path.suffix == ".parquet":
        typed = [row | {"start": None if row["start"] == "soon" else row["start"]} for row in typed]
        table = pyarrow.table({name: [row[name] for row in typed] for name in columns})
        table = table.set_column(2, "id", pyarrow.array([int(row["id"]) for row in typed], pyarrow.int16()))
        pyarrow.parquet.write_table(table, path)
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file, "excel-tab" if path.suffix == ".tsv" else "excel").writerows([columns, *rows])
    return path


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(pairs, small_checkpoint, monkeypatch, capsys):
    """Run the command line in `pairs` and give its status, and what it says."""
    monkeypatch.chdir(pairs)

    def run(*argv: str, status: int = 0) -> tuple[str, str]:
        options = ("--checkpoint", str(small_checkpoint), "--device", "cpu", "--no_html")
        assert main([*argv, "--num_workers", "0", *options]) == status
        out = capsys.readouterr()
        return out.out, out.err

    return run


@pytest.fixture
def evaluate(pairs, small_checkpoint, monkeypatch):
    """Evaluate in `pairs`, without processes that read."""
    monkeypatch.chdir(pairs)
    return partial(Evaluator(checkpoint=small_checkpoint, device="cpu").evaluate, num_workers=0)


def cosine(results, i: int, j: int) -> float:
    pair = (
        torch.nn.functional.normalize(results["audio_embeddings"].double())
        @ torch.nn.functional.normalize(results["video_embeddings"].double()).T
    )
    return pair[i, j].item()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_row_has_its_line_with_a_score_or_the_reason(run, pairs, small_checkpoint, suffix):
    os.mkdir("lists")
    rows = [("../" + row[0] if row[0] else "", "../" + row[1] if row[1] else "", *row[2:]) for row in ROWS]
    write_manifest(Path("lists") / f"pairs{suffix}", rows)
    out, err = run("--manifest", f"lists/pairs{suffix}")
    rows = table(pairs / "outputs" / "pair_scores.csv")
    line = 1 if suffix in (".jsonl", ".parquet") else 2
    soon = suffix == ".parquet"  # whose column of numbers cannot hold it
    ok = [*OK[:3], "7", "9"] if soon else OK
    skipped = [name for name in SKIPPED if name not in ok]
    assert [row["id"] for row in rows] == [*ok, *skipped]
    assert [int(row["line"]) for row in rows] == [int(row["id"]) - 1 + line for row in rows]
    assert {row["status"] for row in rows[: len(ok)]} == {"ok"}
    status = {row["id"]: row["status"] for row in rows[len(ok) :]}
    assert status.pop("8") == "skipped: audio file: no audio stream"
    assert status.pop("4") == "skipped: video file: No such file or directory"
    assert status.pop("5") == "skipped: no video"
    assert status.pop("6") == "skipped: an end that is not after its start"
    assert status == ({} if soon else {"7": "skipped: a start or an end that is no time in seconds"})
    assert [row["note"] for row in rows if row["id"] in "138"] == ["first", "a,b", "no sound in it"]
    reference = batch_inference_av_consistency(
        "audio", "video", "cpu", checkpoint=small_checkpoint, retrieval_mode=True
    )
    found = {row["id"]: float(row["similarity"]) for row in rows[: len(ok)]}
    assert found["1"] == pytest.approx(cosine(reference, 0, 0), abs=1e-6)
    assert found["2"] == pytest.approx(cosine(reference, 1, 0), abs=1e-6)
    assert found["9"] == pytest.approx(cosine(reference, 3, 3), abs=1e-6)
    assert f"{len(skipped) - 2} rows of the manifest skipped" in out
    assert f"lists/pairs{suffix}: no video: skipped row {4 + line}" in err
    metrics = json.loads((pairs / "outputs" / "metrics.json").read_text())
    assert metrics["working_directory"] == str(pairs)
    assert metrics["groups"] == 3
    assert metrics["pairing_rule"] == "manifest"


def test_sounds_under_another_name_and_paths_from_elsewhere_are_warned_of(run, pairs):
    for i in range(3):
        write_movie(pairs / f"{i}.mkv", 200 * (i + 1))
    write_manifest(Path("own.csv"), [(f"{i}.mkv", "audio/a.wav") for i in range(3)], ["video", "audio_file"])
    _, err = run("--manifest", "own.csv")
    assert (
        "warning: own.csv: names no audio: each video's own sound is judged; columns without a meaning here: "
        "audio_file" in err
    )
    os.mkdir("lists")
    write_manifest(Path("lists/x.csv"), ROWS[:2])
    _, err = run("--manifest", "lists/x.csv", status=1)
    assert "warning: lists/x.csv: its paths start at its own directory, and lead nowhere from there" in err


def test_strict_counts_rows_that_cannot_be_used(run):
    write_manifest(Path("pairs.csv"), [ROWS[0], ROWS[5]])
    run("--manifest", "pairs.csv", "--strict", status=3)


def test_a_parquet_table_keeps_the_types_of_the_manifest(run):
    write_manifest(Path("pairs.parquet"))
    run("--manifest", "pairs.parquet")
    typed = pyarrow.parquet.read_table("outputs/pair_scores.parquet")
    rows = table(Path("outputs/pair_scores.csv"))
    assert typed.column_names == list(rows[0])
    assert typed.schema.field("id").type == pyarrow.int16()
    assert typed.schema.field("start").type == pyarrow.float64()
    assert typed.schema.field("similarity").type == pyarrow.float32()
    assert typed.schema.field("suspect").type == pyarrow.bool_()
    for row, line in zip(typed.to_pylist(), rows, strict=True):
        assert str(row["id"]) == line["id"]
        assert row["status"] == line["status"]
        assert line["similarity"] == ("" if row["similarity"] is None else str(np.float32(row["similarity"])))
    write_manifest(Path("pairs.csv"))
    run("--manifest", "pairs.csv")
    assert not Path("outputs/pair_scores.parquet").exists()


def test_captions_of_sounds_and_of_pairs(run, small_checkpoint):
    write_manifest(Path("pairs.csv"))
    run("--manifest", "pairs.csv")
    rows = {row["id"]: row for row in table(Path("outputs/pair_scores.csv"))}
    assert [rows[i]["caption"] for i in OK] == ["a note", "a note", "", ""]
    assert [rows[i]["audio_caption"] for i in OK] == ["a note", "another note", "", ""]
    texts = {"a": "a note", "b": "another note"}
    expected = batch_inference_av_consistency(
        "audio", "video", "cpu", checkpoint=small_checkpoint, captions=texts, retrieval_mode=True
    )
    with_texts = {pair["name"]: pair for pair in expected["pair_scores"]}
    for row, name, column in (("1", "a", "text_audio"), ("1", "a", "text_video"), ("2", "b", "text_audio")):
        similarity = np.float32(with_texts[name][f"{column}_similarity"])
        assert rows[row][f"{column}_similarity"] == str(similarity)
    assert rows["2"]["text_video_similarity"] == rows["1"]["text_video_similarity"]
    names = Path("outputs/text_names.txt").read_text().splitlines()
    assert names == ["1", "2", "1", "2 (audio_caption)"]


def test_several_captions_of_one_pair_are_pairs_of_their_own(evaluate):
    rows = [
        {"video": f"video/{name}.mp4", "audio": f"audio/{name}.wav", "caption": f"{k} of {name}"}
        for name in "abcd"
        for k in range(3)
    ]
    for retrieval in (False, True):
        results = evaluate(manifest=rows, retrieval_mode=retrieval)
        assert [pair["caption"] for pair in results["pair_scores"]] == [row["caption"] for row in rows]
        text, video = (
            torch.nn.functional.normalize(results[f"{m}_embeddings"].double()) for m in ("text", "video")
        )
        assert len(video) == (4 if retrieval else 12)
        for i, pair in enumerate(results["pair_scores"]):
            similarity = (text[i] @ video[i // 3 if retrieval else i]).item()
            assert pair["text_video_similarity"] == pytest.approx(similarity, abs=1e-6)
        assert (
            results["metrics"]["text_video"]["recall_at_10"] == 1
        )  # of four videos, copies are no competitors


def test_javisbench_names_and_other_columns(run):
    columns = ("Path", "audio_path", "text", "audio_text", "similarity", "status")
    write_manifest(Path("pairs.csv"), [("video/a.mp4", "audio/a.wav", "a dog", "a bark", 7, "new")], columns)
    run("--manifest", "pairs.csv")
    (row,) = table(Path("outputs/pair_scores.csv"))
    assert (row["caption"], row["audio_caption"]) == ("a dog", "a bark")
    assert (row["manifest_similarity"], row["manifest_status"], row["status"]) == ("7", "new", "ok")


def test_own_sound(run, pairs):
    for i in range(3):
        write_movie(pairs / f"{i}.mkv", 200 * (i + 1))
    write_manifest(Path("own.jsonl"), [(f"{i}.mkv",) for i in range(3)], ["video"])
    run("--manifest", "own.jsonl")
    rows = table(Path("outputs/pair_scores.csv"))
    assert [(row["name"], row["audio"], row["video"]) for row in rows] == [
        (f"{i}", f"{i}.mkv", f"{i}.mkv") for i in range(3)
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "audio\na.wav\n", "x.csv: no column video; its first line has to name the columns"),
        ("x.csv", "video,video\na,b\n", "x.csv: several columns video"),
        ("x.csv", 'video\n"a', "x.csv: line 2: unexpected end of data"),
        ("x.csv", "video\n", "x.csv: has no row that can be used"),
        ("x.jsonl", '{"audio": "a.wav"}\n', "x.jsonl: has no row that can be used"),
        ("x.parquet", "no", "x.parquet: no Parquet file that can be read"),
        ("x.tsv", b"video\n\xff\n", "x.tsv: line 2 is not UTF-8"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(run, name, content, message):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    _, err = run("--manifest", name, status=1)
    assert f"error: {message}" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--manifest", "x.txt"], "argument --manifest: must be a .csv, .tsv, .jsonl or .parquet file"),
        (["--manifest", "none.csv"], "argument --manifest: none.csv: no such file"),
        (["--manifest", "x.csv", "--video_dir", "."], "--video_dir: is not for a run with a manifest"),
        (["--manifest", "x.csv", "--captions", "x.csv"], "--captions: is not for a run with a manifest"),
        (["--manifest", "x.csv", "--output_dir", "."], None),
        (["--manifest", "kept.csv", "--output_dir", "."], "argument --output_dir: kept.csv is an input"),
        (["--video_dir", ".", "--retrieval_mode", "--pairs_only"], "--pairs_only: is not for retrieval_mode"),
        (["--video_dir", ".", "--keep_above", "2"], "argument --keep_above: must be a number from -1 to 1"),
    ],
)  # fmt: skip
def test_wrong_usage_is_said_in_one_line(pairs, monkeypatch, capsys, small_checkpoint, argv, message):
    monkeypatch.chdir(pairs)
    for name in ("x.csv", "kept.csv"):
        write_manifest(Path(name), ROWS[:1])
    try:
        status = main([*argv, "--checkpoint", str(small_checkpoint), "--device", "cpu"])
    except SystemExit as e:
        status = e.code
    assert status == (0 if message is None else 2)
    assert message is None or message in capsys.readouterr().err.splitlines()[-1]


def test_rows_from_python(evaluate, caplog):
    frame = pd.DataFrame(
        {"video": ["video/a.mp4", "video/b.mp4"], "audio": ["audio/a.wav", None], "n": [1, None]}
    )
    results = evaluate(manifest=frame.to_dict("records"))
    (row,) = results["pair_scores"]
    assert (row["name"], row["line"], row["n"], row["status"]) == ("a", 1, 1.0, "ok")
    assert "manifest: no audio, so the video's own sound is judged: row 2" in caplog.messages
    (skipped,) = results["skipped_pairs"]
    assert (skipped["line"], skipped["n"]) == (2, None)
    assert skipped["status"] == "skipped: audio file: no audio stream"
    assert len(pd.DataFrame([*results["pair_scores"], *results["skipped_pairs"]])) == 2
    with pytest.raises(OptionError, match=r"^video_paths is not for a run with a manifest"):
        evaluate(video_paths="video", manifest=[{"video": "video/a.mp4"}])
    with pytest.raises(OptionError, match=r"^manifest must be a"):
        evaluate(manifest={"video": "video/a.mp4"})
    with pytest.raises(EvaluationError, match=r"^manifest: has no row that can be used$"):
        evaluate(manifest=[{"video": 7}])
    assert "manifest: video, of the type int, is neither a path nor bytes: skipped row 1" in caplog.messages


def test_captions_belong_to_rows_whatever_the_ids(evaluate):
    texts = ["a dog barks", "rain", "a car", "wind"]
    ids = ["a", "a", "a (row 1)", "a (audio_caption)"]
    rows = [
        {"video": f"video/{name}.mp4", "audio": f"audio/{name}.wav", "id": i, "caption": text}
        for name, i, text in zip("abcd", ids, texts, strict=True)
    ]
    rows[0]["audio_caption"] = "a bark"
    results = evaluate(manifest=rows)
    assert [pair["caption"] for pair in results["pair_scores"]] == texts
    assert [pair["audio_caption"] for pair in results["pair_scores"]] == ["a bark", *texts[1:]]


@pytest.mark.parametrize("retrieval", [False, True])
def test_a_row_without_a_caption_has_none(evaluate, retrieval):
    row = {"video": "video/a.mp4", "audio": "audio/a.wav"}
    rows = [row | {"caption": "a dog"}, row, row | {"caption": "  "}, row | {"caption": "a cat"}]
    results = evaluate(manifest=rows, retrieval_mode=retrieval)
    assert [pair["caption"] for pair in results["pair_scores"]] == ["a dog", None, None, "a cat"]
    assert [pair["text_audio_similarity"] is None for pair in results["pair_scores"]] == [0, 1, 1, 0]
    assert results["metrics"]["counts"]["pairs_without_text"] == 2


def test_groups_of_captions_are_those_of_the_pairs(run):
    """One sound in pairs of several groups; pairs alone have the intervals of the whole."""
    rows = [
        (f"video/{'abcd'[i % 4]}.mp4", "audio/a.wav", f"{i}", f"text {i % 3}", "", f"{i % 6}", "", "", "")
        for i in range(12)
    ]
    write_manifest(Path("pairs.csv"), rows)
    run("--manifest", "pairs.csv", "--output_dir", "whole")
    run("--manifest", "pairs.csv", "--output_dir", "alone", "--pairs_only")
    whole, alone = (json.loads(Path(folder, "metrics.json").read_text()) for folder in ("whole", "alone"))
    for key in ("text_audio", "text_video"):
        assert alone[key]["groups"] == whole[key]["groups"]
        assert alone[key]["paired_similarity_interval"] == whole[key]["paired_similarity_interval"]
    assert alone["counts"]["pairs_without_text"] == whole["counts"]["pairs_without_text"] == 0


def paths_of(manifest: Manifest) -> list[tuple[str, str]]:
    """The pairs of a manifest of whole files."""
    return [(str(sound), str(video)) for sound, video in manifest.pairs]


def test_names_of_keys_are_found_in_any_case_and_by_row(pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    Path("pairs.jsonl").write_text(
        '{"Video": "video/a.mp4", "AUDIO": "audio/b.wav"}\n'
        '{"path": "video/c.mp4", "audio_path": "audio/d.wav"}\n'
        '{"video": "video/a.mp4", "Video": "video/b.mp4"}\n'
    )
    manifest = read_manifest("pairs.jsonl")
    assert paths_of(manifest) == [("audio/b.wav", "video/a.mp4"), ("audio/d.wav", "video/c.mp4")]
    assert manifest.faults == {2: "a column twice"}
    one = read_manifest([{"VIDEO": Path("x.mp4"), "Start": np.float32("nan")}])
    assert paths_of(one) == [("x.mp4", "x.mp4")]


def test_columns_of_the_user_are_written_as_they_are(run):
    columns = ("id", "video", "audio", "similarity", "manifest_similarity", "", "")
    rows = [
        ("-Bu7Yas", "video/a.mp4", "audio/a.wav", "0.123456789", "=1", "x", "y"),
        ("=1+1", "video/b.mp4", "audio/b.wav", "1234.56789012", "tab\there", "", "-3.5"),
    ]
    write_manifest(Path("pairs.csv"), rows, columns)
    run("--manifest", "pairs.csv", "--keep_above=-1")
    found = table(Path("outputs/pair_scores.csv"))
    names = ("id", "manifest_manifest_similarity", "manifest_similarity", "Unnamed: 5", "Unnamed: 6")
    assert [tuple(row[name] for name in names) for row in found] == [
        (row[0], row[3], *row[4:]) for row in rows
    ]
    kept = table(Path("outputs/kept.csv"))
    assert [[row[n] for n in ("id", "similarity", "Unnamed: 5", "Unnamed: 6")] for row in kept] == [
        [row[0], row[3], *row[5:]] for row in rows
    ]


def test_an_input_is_never_an_output(evaluate):
    Path("outputs").mkdir()
    write_manifest(Path("outputs/kept.csv"), [("../video/a.mp4", "../audio/a.wav")], ("video", "audio"))
    Path("outputs/pair_scores.parquet").write_text("of the user")
    for options in ({}, {"keep_above": 0.5}):
        with pytest.raises(OptionError, match=r"^output_dir outputs/kept\.csv is an input"):
            evaluate(manifest="outputs/kept.csv", output_dir="outputs", **options)
    evaluate("audio", "video", output_dir="outputs", keep_above=np.float32(0.5))
    assert Path("outputs/pair_scores.parquet").read_text() == "of the user"
    assert Path("outputs/kept.csv").exists()
    assert json.loads(Path("outputs/metrics.json").read_text())["kept"]["threshold"] == 0.5


def test_values_of_a_data_frame(evaluate):
    frame = pd.DataFrame(
        {
            "video": ["video/a.mp4", "video/b.mp4"],
            "audio": ["audio/a.wav", "audio/b.wav"],
            "start": pd.array([None, 0.25], dtype="Float64"),
            "n": pd.array([1, None], dtype="Int64"),
            "rows": [np.zeros((2, 1)), np.zeros((2, 2))],
        }
    )
    results = evaluate(manifest=frame)
    first, second = results["pair_scores"]
    assert (first["start"], second["start"], first["n"], second["n"]) == (None, 0.25, 1, None)
    assert second["rows"].shape == (2, 2)


FRAMES = {
    "pandas": pd.DataFrame,
    "pandas NA": lambda values: pd.DataFrame(values).convert_dtypes(),
    "polars": polars.DataFrame,
    "Arrow": pyarrow.table,
    "rows": lambda values: pd.DataFrame(values).to_dict("records"),
}


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_what_a_data_frame_lacks_is_missing_in_and_out(evaluate, caplog, make):
    frame = make(
        {
            "video": [f"video/{name}.mp4" for name in "abcd"],
            "audio": [*(f"audio/{name}.wav" for name in "abc"), None],
            "caption": ["a dog", None, None, None],
            "group": ["x", None, None, "x"],
            "start": [None, 0.25, None, None],
            "n": [1.5, None, 2.5, None],
        }
    )
    results = evaluate(manifest=frame, keep_above=-1, output_dir="out")
    assert [failure["path"] for failure in results["failures"]] == ["video/d.mp4"]
    assert results["metrics"]["groups"] == 3
    assert [pair["caption"] for pair in results["pair_scores"]] == ["a dog", None, None]
    assert "nan" not in Path("out/pair_scores.csv").read_text().lower()
    kept = table(Path("out/kept.csv"))
    assert [[row[name] for name in ("caption", "group", "start", "n")] for row in kept] == [
        ["a dog", "x", "", "1.5"], ["", "", "0.25", ""], ["", "", "", "2.5"],
    ]  # fmt: skip
    again = evaluate(manifest="out/kept.csv")
    for name in ("caption", "group", "similarity", "text_video_similarity"):
        assert [p[name] for p in again["pair_scores"]] == [p[name] for p in results["pair_scores"]]


def test_a_column_twice_and_no_table_are_refused(pairs):
    twice = pd.DataFrame([["video/a.mp4", "video/b.mp4"]], columns=["video", "video"])
    with pytest.raises(EvaluationError, match=r"^manifest: several columns video$"):
        read_manifest(twice)
    with pytest.raises(EvaluationError, match=r"^manifest: row 1 is a str, not a mapping"):
        batch_inference_av_consistency(None, None, manifest=pd.Series(["video/a.mp4"], name="video"))


def test_rows_with_either_name_of_a_column_are_kept_alike(evaluate):
    rows = [
        {"video": "video/a.mp4", "audio": "audio/b.wav", "path": "no video"},
        {"path": "video/c.mp4", "audio_path": "audio/d.wav", "audio": None},
    ]
    expected = evaluate(manifest=rows)["pair_scores"]
    assert len(expected) == 2
    assert [pair["path"] for pair in evaluate(manifest=rows[:1])["pair_scores"]] == ["no video"]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    evaluate(manifest="rows.jsonl", keep_above=-1, output_dir="deep/out")
    again = evaluate(manifest="deep/out/kept.jsonl")["pair_scores"]
    assert [pair["similarity"] for pair in again] == [pair["similarity"] for pair in expected]


@pytest.mark.parametrize("path", ["a\0.mp4", "a\ud800.mp4", "no\0/a.mp4", "\ud801/a.mp4"], ids=ascii)
def test_paths_that_no_file_can_have_cost_their_rows(evaluate, caplog, path):
    caplog.set_level("CRITICAL", "imagebind")  # reports of pytest-xdist are UTF-8
    rows = [{"video": "video/a.mp4", "audio": "audio/a.wav"}, {"video": "video/b.mp4", "audio": path}]
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for manifest in (rows, "pairs.jsonl"):
        results = evaluate(manifest=manifest, output_dir="out")
        assert [row["line"] for row in results["skipped_pairs"]] == [2]
        assert results["skipped_pairs"][0]["status"] == "skipped: a path that no file can have"
    results = evaluate(["audio/a.wav", path], ["video/a.mp4", path], retrieval_mode=True)
    assert {failure["reason"] for failure in results["failures"]} == {"a path that no file can have"}
    for option in ("output_dir", "cache"):
        with pytest.raises(OptionError, match=f"^{option} must be a path that a file can have"):
            evaluate("audio", "video", **{option: path})


def test_odd_names_of_columns_and_odd_values_are_written(evaluate, caplog):
    caplog.set_level("CRITICAL", "imagebind")
    names = ["of the \ud800 user", "n\0", "=x", "line\nend"]
    values = ["a \ud800 value", "v\0", "=1", "x\ny"]
    row = {"video": "video/a.mp4", "audio": "audio/a.wav"} | dict(zip(names, values, strict=True))
    Path("pairs.jsonl").write_text(json.dumps(row))
    for manifest, kept in (([row], "kept.csv"), ("pairs.jsonl", "kept.jsonl")):
        evaluate(manifest=manifest, output_dir="out", keep_above=-1)
        written = Path("out/pair_scores.csv").read_bytes() + Path("out", kept).read_bytes()
        assert written.count(rb"of the \ud800 user") == written.count(rb"a \ud800 value") == 2
    assert json.loads(Path("out/kept.jsonl").read_text())["n\0"] == "v\0"


@pytest.mark.parametrize("time", ["0_1", "1" * 401, 10**400, "nan", "1e400", "\u0661", True, np.True_, "-1"])
def test_what_is_no_time_costs_its_row(caplog, time):
    rows = [{"video": "a.mp4"}, {"video": "b.mp4", "start": time}, {"video": "c.mp4", "end": time}]
    assert paths_of(read_manifest(rows)) == [("a.mp4", "a.mp4")]
    assert "manifest: a start or an end that is no time in seconds: skipped row 2, 3" in caplog.messages


def test_times_in_the_usual_forms():
    rows = [{"video": "a.mp4", "start": start} for start in ("1", " 1.0 ", "1.", "+1e0", 1, np.float32(1))]
    assert {video.start for _, video in read_manifest(rows).pairs} == {1.0}


def test_parquet_columns_of_extension_types_are_handed_on(run):
    tensor, flag = pyarrow.fixed_shape_tensor(pyarrow.int8(), [2, 2], permutation=[1, 0]), pyarrow.bool8()
    storage = pyarrow.array([[1, 2, 3, 4], [5, 6, 7, 8]], pyarrow.list_(pyarrow.int8(), 4))
    columns = {
        "tensor": pyarrow.ExtensionArray.from_storage(tensor, storage),
        "flag": pyarrow.ExtensionArray.from_storage(flag, pyarrow.array([1, None], pyarrow.int8())),
        "uuid": pyarrow.ExtensionArray.from_storage(
            pyarrow.uuid(), pyarrow.array([bytes(16)] * 2, pyarrow.binary(16))
        ),
    }
    paths = {"video": ["video/a.mp4", "video/b.mp4"], "audio": ["audio/a.wav", "audio/b.wav"]}
    given = pyarrow.table(paths | columns)
    pyarrow.parquet.write_table(given, "pairs.parquet")
    run("--manifest", "pairs.parquet", "--keep_above=-1")
    for name in ("pair_scores.parquet", "kept.parquet"):
        written = pyarrow.parquet.read_table(f"outputs/{name}")
        for column in columns:
            assert written[column].type == given[column].type
            assert written[column].to_pylist() == given[column].to_pylist()


def test_one_for_true_passes_no_check(pairs):
    with pytest.raises(OptionError, match=r"^pairs_only is not for retrieval_mode"):
        batch_inference_av_consistency(pairs / "audio", pairs / "video", retrieval_mode=1, pairs_only=1)


def test_repeated_pairs_of_systems_match_by_their_captions(run, capsys):
    row = ("video/a.mp4", "audio/a.wav")
    rows = [(*row, "a dog"), (*row, "a cat"), ("video/b.mp4", "audio/b.wav", "rain")]
    write_manifest(Path("pairs.csv"), rows, ("video", "audio", "caption"))
    write_manifest(Path("again.csv"), rows[::-1], ("video", "audio", "caption"))
    for name in ("pairs", "again"):
        run("--manifest", f"{name}.csv", "--output_dir", name)
    capsys.readouterr()
    assert main(["--compare", "pairs", "again", "--output_dir", "compared", "--no_html"]) == 0
    assert "in one alone" not in capsys.readouterr().err
    rows = table(Path("compared/comparison.csv"))
    assert {row["pairs"] for row in rows} == {"3"}
    assert {row["mean"] for row in rows if row["minus"]} == {"0"}


def test_a_file_with_the_name_of_a_part_is_refused(pairs, monkeypatch):
    monkeypatch.chdir(pairs)
    rows = [{"video": "a.mp4", "start": 1, "end": 2}, {"video": "a.mp4#t=1,2"}]
    with pytest.raises(EvaluationError, match=r"^a\.mp4#t=1,2: is a file and a part of another one"):
        read_manifest(rows)


# Pairs that are kept


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_kept_pairs_are_a_manifest_of_the_same_form(run, suffix):
    os.mkdir("lists")
    rows = [("../" + row[0] if row[0] else "", "../" + row[1] if row[1] else "", *row[2:]) for row in ROWS]
    write_manifest(Path("lists") / f"pairs{suffix}", rows)
    run("--manifest", f"lists/pairs{suffix}")
    scores = [row for row in table(Path("outputs/pair_scores.csv")) if row["status"] == "ok"]
    threshold = sorted((row["similarity"] for row in scores), key=float)[2]  # as it is printed
    out, _ = run("--manifest", f"lists/pairs{suffix}", f"--keep_above={threshold}", "--report_lang", "en")
    kept = [row for row in scores if float(row["similarity"]) >= float(threshold)]
    assert f"Pairs that reach it: {len(kept)} of {len(scores)}" in out
    assert "Mismatches that would reach it: " in out
    again = read_manifest(f"outputs/kept{suffix}")
    assert [str(again.get("id", row)) for row in again.rows] == [row["id"] for row in kept]
    assert set(again.columns) == set(COLUMNS) or suffix == ".jsonl"  # an object has no empty columns
    run("--manifest", f"outputs/kept{suffix}", "--output_dir", "again")
    found = {row["id"]: row["similarity"] for row in table(Path("again/pair_scores.csv"))}
    assert found == {row["id"]: row["similarity"] for row in kept}
    run("--manifest", f"lists/pairs{suffix}")
    assert not Path(f"outputs/kept{suffix}").exists()


def test_kept_pairs_without_a_manifest_are_as_pairs_txt(run):
    Path("outputs").mkdir()
    Path("outputs/kept.csv").write_text("of the user\n")
    run("--audio_dir", "audio", "--video_dir", "video", "--keep_above", "-1")
    assert Path("outputs/kept.txt").read_bytes() == Path("outputs/pairs.txt").read_bytes()
    metrics = json.loads(Path("outputs/metrics.json").read_text())["kept"]
    assert metrics == {
        **{"threshold": -1.0, "pairs": 4, "mismatches": 12, "of_mismatches": 12, "mismatches_share": 1.0},
        **{"mismatches_share_at_most": 1.0, "file": "kept.txt"},
    }
    assert Path("outputs/kept.csv").read_text() == "of the user\n"


# Pairs alone


def same(one: dict, other: dict, path: str = "") -> None:
    """All figures of `other` are in `one`, but for the rounding of sums."""
    for key, value in other.items():
        if isinstance(value, dict):
            same(one[key], value, f"{path}/{key}")
        elif key not in ("mode", "lowest_suspects", "counts"):
            is_number = isinstance(value, float)
            assert one[key] == (pytest.approx(value, abs=1e-12) if is_number else value), f"{path}/{key}"


def test_pairs_alone_have_the_figures_of_the_matrix(run):
    write_manifest(Path("pairs.csv"), [row for row in ROWS for _ in range(2)])
    run("--manifest", "pairs.csv", "--output_dir", "whole")
    run("--manifest", "pairs.csv", "--output_dir", "alone")  # an earlier run, with a matrix and ranks
    run("--manifest", "pairs.csv", "--output_dir", "alone", "--pairs_only")
    whole, alone = (json.loads(Path(folder, "metrics.json").read_text()) for folder in ("whole", "alone"))
    counts = [metrics.pop("counts") for metrics in (whole, alone)]
    assert (counts[0]["audio"], counts[1]["audio"], counts[1]["video"]) == (8, 4, 3)
    same(whole, alone)
    assert "recall_at_1" not in alone
    assert {"margin", "auc"} <= set(alone)
    assert not {"similarity_matrix.npy", "top_matches.csv"} & set(os.listdir("alone"))
    rows = [table(Path(folder, "pair_scores.csv")) for folder in ("whole", "alone")]
    assert "video_rank" not in rows[1][0]
    for one, other in zip(*rows, strict=True):
        assert {name: one[name] for name in other} == other
    assert np.load("alone/audio_embeddings.npy").shape[0] == len(
        {row["audio"] + row["start"] for row in rows[1] if row["status"] == "ok"}
    )


def made_up(n: int, noise: float, seed: int = 0) -> tuple[Comparison, Matrix]:
    """Pairs of made-up embeddings with hubs; the first tenth of the pairs are wrong ones."""
    rng = np.random.default_rng(seed)
    audio = rng.standard_normal((n, 32))
    video = audio + noise * rng.standard_normal((n, 32)) + rng.exponential(1, (n, 1))
    wrong = n // 10
    video[:wrong] = video[:wrong][np.roll(np.arange(wrong), 1)]
    embeddings = {"audio": audio.astype(np.float32), "video": video.astype(np.float32)}
    contents = {modality: list(range(n)) for modality in embeddings}
    comparison = Comparison(contents, embeddings, torch.device("cpu"), 0)
    return comparison, diagonal(comparison, n)


def diagonal(comparison: Comparison, n: int) -> Matrix:
    """The matrix in which pair i is row i and column i."""
    return comparison.matrix(("audio", "video"), np.stack([np.arange(n)] * 2, axis=1))


def test_of_more_pairs_than_a_tile_has_rows_the_shares_are_those_of_the_matrix():
    """Where all cells can be listed, none of them is estimated."""
    comparison, matrix = made_up(1100, 1.0)
    alone = comparison.compare_drawn(matrix)
    whole = comparison.compare_all(matrix)
    for column in ("similarity", "percentile", "p_value", "suspect"):
        np.testing.assert_array_equal(alone.columns[column], whole.columns[column], err_msg=column)


def test_of_equal_similarities_pairs_alone_win_half():
    rows, contents = np.ones((30, 4), np.float32), list(range(30))
    comparison = Comparison(
        {"audio": contents, "video": contents}, {"audio": rows, "video": rows}, torch.device("cpu"), 0
    )
    alone = comparison.compare_drawn(diagonal(comparison, 30))
    assert alone.metrics["auc"] == 0.5
    assert set(alone.columns["percentile"]) == {0.5}
    assert set(alone.columns["p_value"]) == {1}


def test_of_many_pairs_the_figures_are_close_to_those_of_the_matrix():
    comparison, matrix = made_up(4000, 1.0)
    alone = comparison.compare_drawn(matrix)
    whole = comparison.compare_all(matrix)
    for figure in ("auc", "margin", "mismatched_similarity_std"):
        assert alone.metrics[figure] == pytest.approx(whole.metrics[figure], abs=0.01)
    assert np.array_equal(alone.columns["similarity"], whole.columns["similarity"])
    assert np.abs(alone.columns["percentile"] - whole.columns["percentile"]).max() < 0.12
    suspects = [compared.columns["suspect"] for compared in (alone, whole)]
    assert np.mean(suspects[0] == suspects[1]) > 0.98
    assert suspects[0][:400].mean() > 0.9
    again = comparison.compare_drawn(matrix)
    assert np.array_equal(again.columns["p_value"], alone.columns["p_value"])


def test_a_wrong_pair_alone_has_a_p_value_as_a_mismatch_has():
    """Wrong pairs alone: their p-values are uniform, so at most 5 % fall below 0.05."""
    rng = np.random.default_rng(0)
    embeddings = {m: rng.standard_normal((3000, 16)).astype(np.float32) for m in ("audio", "video")}
    embeddings["video"] += rng.exponential(1, (3000, 1)).astype(np.float32)  # hubs
    contents = {m: list(range(3000)) for m in embeddings}
    comparison = Comparison(contents, embeddings, torch.device("cpu"), 0)
    compared = comparison.compare_drawn(diagonal(comparison, 3000))
    p_values = compared.columns["p_value"]
    assert 0.03 < (p_values <= 0.05).mean() < 0.07
    assert 0.45 < p_values.mean() < 0.55
