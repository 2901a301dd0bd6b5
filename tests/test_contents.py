"""What is in no file of its own: bytes in a table, and members of tars."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import DEMO, failures, write_movie

from batch_inference import EvaluationError, OptionError, batch_inference_av_consistency, main

MODEL = {"checkpoint": DEMO / "imagebind_demo.pth", "device": "cpu", "num_workers": 0}
ARGV = (
    "--checkpoint",
    str(DEMO / "imagebind_demo.pth"),
    "--device",
    "cpu",
    "--no_html",
    "--report_lang",
    "en",
)
NAMES = "abcd"


def score(manifest, **options) -> dict[str, float]:
    results = batch_inference_av_consistency(manifest=manifest, **MODEL | options)
    return {pair["name"]: pair["similarity"] for pair in results["pair_scores"]}


def scores(folder: str) -> dict[str, str]:
    with open(Path(folder, "pair_scores.csv"), encoding="utf-8-sig", newline="") as file:
        return {row["name"]: row["similarity"] or row["status"] for row in csv.DictReader(file)}


@pytest.fixture
def rows(pairs, monkeypatch) -> list[dict[str, str]]:
    monkeypatch.chdir(pairs)
    return [{"id": name, "video": f"video/{name}.mp4", "audio": f"audio/{name}.wav"} for name in NAMES]


def read(row: dict[str, str]) -> dict[str, object]:
    """Put the bytes of its files into a row, once as they are and once as Hugging Face has them."""
    audio = {"bytes": Path(row["audio"]).read_bytes(), "path": row["audio"]}
    return row | {"video": Path(row["video"]).read_bytes(), "audio": audio}


@pytest.fixture
def tars(rows) -> list[str]:
    """Two tars of two samples each."""
    for number in range(2):
        with tarfile.open(f"shard-{number:03d}.tar", "w") as tar:
            for row in rows[2 * number :][:2]:
                name = row["id"]
                tar.add(row["video"], f"./x/{name}.mp4")
                add(tar, f"./x/{name}.json", json.dumps({"category": "beep", "video": "none.mp4"}).encode())
                tar.add(row["audio"], f"./x/{name}.WAV")
                add(tar, f"./x/{name}.txt", f"a note {name}\n".encode())
    return ["shard-000.tar", "shard-001.tar"]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


# Tables


def test_bytes_are_scored_as_their_files(rows):
    expected = score(rows)
    with_bytes = list(map(read, rows))
    assert score(with_bytes) == expected
    assert score(iter(with_bytes)) == expected
    assert score(pd.DataFrame(with_bytes)) == expected
    assert score(pl.DataFrame(with_bytes)) == expected
    assert score(pa.Table.from_pylist(with_bytes)) == expected
    assert score(datasets.Dataset.from_list(with_bytes)) == expected
    assert score(with_bytes, num_workers=2) == expected


def test_a_part_of_bytes_is_scored_as_that_of_its_file(rows):
    parts = [row | {"start": 0.5, "end": 1.5} for row in rows]
    assert score(list(map(read, parts))) == score(parts)


def test_an_empty_sound_stands_for_the_video_s_own(tmp_path, caplog):
    content = write_movie(tmp_path / "a.mp4", 300).read_bytes()
    expected = score([{"id": "own", "video": tmp_path / "a.mp4"}])
    for empty in (None, {"bytes": None, "path": None}, ""):
        assert score([{"id": "own", "video": content, "audio": empty}]) == expected


def test_addresses_of_files_are_paths_and_others_are_not_read(rows, pairs):
    expected = score(rows)
    addressed = [row | {"video": (pairs / row["video"]).as_uri()} for row in rows]
    assert score(addressed) == expected
    listed = [addressed[0]["video"], "https://example.org/b.mp4"]
    results = batch_inference_av_consistency("audio", listed, retrieval_mode=True, **MODEL)
    ((failure),) = results["failures"]
    assert failure["path"] == "https://example.org/b.mp4"
    assert failure["reason"] == "an address, from which nothing is read; download the file"


@pytest.mark.parametrize("manifest", [5, b"abc", {"video": ["a.mp4"]}, ["a.mp4"], "pairs.xlsx"])
def test_what_is_no_table_is_refused_by_its_type(manifest):
    with pytest.raises(
        OptionError, match=r"manifest must be a .csv, .tsv, .jsonl or .parquet file, or tars, not "
    ):
        score(manifest)


def test_rows_that_are_no_mappings_are_refused(rows):
    with pytest.raises(
        EvaluationError, match=r"manifest: row 2 is a str, not a mapping of columns to values"
    ):
        score(x for x in (rows[0], "a.mp4"))


def test_a_cell_of_another_type_costs_its_row(rows, caplog):
    assert set(score([*rows, {"id": "e", "video": [1, 2]}])) == set(NAMES)
    assert "manifest: video, of the type list, is neither a path nor bytes: skipped row 5" in caplog.messages


def test_bytes_in_parquet_are_kept_as_they_were(rows):
    pa.parquet.write_table(pa.Table.from_pylist(list(map(read, rows))), "pairs.parquet")
    assert main(["--manifest", "pairs.parquet", "--keep_above", "-1", *ARGV]) == 0
    assert pa.parquet.read_table("outputs/kept.parquet").to_pylist() == list(map(read, rows))


# Tars


def test_samples_of_tars_are_scored_as_their_files(rows, tars, capsys):
    expected = score([row | {"id": f"x/{row['id']}"} for row in rows])
    for number, given in enumerate((tars, ["shard-{000..001}.tar"])):
        out = f"out{number}"
        assert main(["--manifest", *given, *ARGV, "--output_dir", out, "--keep_above", "-1"]) == 0
        assert {name: float(x) for name, x in scores(out).items()} == pytest.approx(expected, abs=1e-7)
        kept = Path(out, "kept.csv").read_text().splitlines()
        assert kept[1] == "x/a,shard-000.tar/x/a.mp4,beep,shard-000.tar/x/a.WAV,a note a"
    metrics = json.loads(Path(out, "metrics.json").read_text())
    assert list(metrics["categories"]) == ["beep"]
    assert "With a caption: 4" in capsys.readouterr().out


def test_shares_are_whole_tars(rows, tars, capsys):
    for number, names in ((1, "ab"), (2, "cd")):
        assert main(["--manifest", *tars, *ARGV, "--shard", f"{number}/2"]) == 0
        assert "embedded, 0 found" in capsys.readouterr().out
        files = [Path(row[side]) for row in rows if row["id"] in names for side in ("audio", "video")]
        of_tar = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        with closing(sqlite3.connect(f"outputs/embeddings.{number}-of-2.sqlite")) as part:
            kept = {content for (content,) in part.execute("SELECT content FROM rows WHERE side != 'text'")}
        assert kept == of_tar
    assert main(["--manifest", *tars, *ARGV]) == 0
    assert "0 from the cache" not in capsys.readouterr().err


def test_the_page_says_that_a_member_has_no_file_and_copies_play(tars):
    argv = [argument for argument in ARGV if argument != "--no_html"]
    assert main(["--manifest", *tars, *argv]) == 0
    assert "it is in no file of its own; --copy_media makes copies" in Path("outputs/report.html").read_text()
    assert main(["--manifest", *tars, *argv, "--copy_media"]) == 0
    assert "it is in no file of its own" not in Path("outputs/report.html").read_text()
    assert len(list(Path("outputs/report_media").glob("*.mp4"))) == 4


def test_a_cut_tar_costs_the_samples_behind_the_cut(tars, capsys):
    whole = Path(tars[0]).read_bytes()
    with tarfile.open(tars[0]) as tar:
        place = tar.getmember("./x/b.WAV").offset_data + 100
    Path(tars[0]).write_bytes(whole[:place])
    assert main(["--manifest", *tars, *ARGV]) == 0
    err = capsys.readouterr().err
    assert (
        f"warning: {tars[0]}: is damaged, or cut, in or after ./x/b.WAV; samples may be missing there" in err
    )
    assert "its tar ends within its audio: skipped row x/b" in err
    found = scores("outputs")
    assert found.pop("x/b") == "skipped: its tar ends within its audio"
    assert set(found) == {"x/a", "x/c", "x/d"}


def test_a_damaged_header_costs_its_sample(tars, capsys):
    content = bytearray(Path(tars[0]).read_bytes())
    with tarfile.open(tars[0]) as tar:
        member = tar.getmember("./x/a.mp4")
    content[member.offset : member.offset_data] = b"\xff" * (member.offset_data - member.offset)
    Path(tars[0]).write_bytes(content)
    assert main(["--manifest", *tars, *ARGV]) == 0
    err = capsys.readouterr().err
    assert f"warning: {tars[0]}: is damaged, or cut, at its start; samples may be missing there" in err
    assert scores("outputs")["x/a"] == "skipped: no video"
    assert len(scores("outputs")) == 4


def test_damaged_content_costs_its_file(tars, pairs):
    content = bytearray(Path(tars[0]).read_bytes())
    with tarfile.open(tars[0]) as tar:
        member = tar.getmember("./x/a.mp4")
    content[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    Path(tars[0]).write_bytes(content)
    assert main(["--manifest", *tars, *ARGV]) == 0
    reason = "it begins with zeros, where there should be media"
    assert failures(pairs) == {f"{tars[0]}/x/a.mp4": reason}


def test_tars_in_one_and_headers_for_all_are_no_damage(rows, capsys):
    with tarfile.open("one.tar", "w", pax_headers={"comment": "of all"}) as tar:
        tar.add("video/a.mp4", "a.mp4")
    with tarfile.open("two.tar", "w") as tar:
        tar.add("video/b.mp4", "b" * 120 + ".mp4")
    Path("both.tar").write_bytes(Path("one.tar").read_bytes() + Path("two.tar").read_bytes())
    with tarfile.open("two.tar", "w") as tar:
        for name in "cd":
            tar.add(f"video/{name}.mp4", f"x/{name}.mp4")
            tar.add(f"audio/{name}.wav", f"x/{name}.wav")
    main(["--manifest", "both.tar", "two.tar", *ARGV])
    assert "damaged" not in capsys.readouterr().err
    assert len(scores("outputs")) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(b"a" * 9000, mtime=0), "is compressed, and is read in place; decompress it"),
        (b"no tar at all" * 100, "has no row that can be used"),
    ],
    ids=["compressed", "text"],
)
def test_what_is_no_tar_is_refused(content, says, pairs, monkeypatch, capsys):
    monkeypatch.chdir(pairs)
    Path("x.tar").write_bytes(content)
    assert main(["--manifest", "x.tar", *ARGV]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: x.tar: {says}"
    with pytest.raises(SystemExit):
        main(["--manifest", "none-{0..3}.tar", *ARGV])
    assert capsys.readouterr().err == "error: argument --manifest: none-0.tar: no such file\n"
