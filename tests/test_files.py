"""Which files are taken, and their names."""

from __future__ import annotations

import os
import re
import resource
import shutil
import unicodedata

import pytest
from conftest import Program

from batch_inference import EvaluationError
from imagebind.evaluation.files import SUFFIXES, MediaFiles, find_files, gather_files, read_list_file


def found(side: str, *keys: str) -> MediaFiles:
    return MediaFiles(tuple(f"{side}s/{key}" for key in keys), f"{side}s")


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_directories_are_searched_below_sorted_and_without_hidden_files(tmp_path):
    make(tmp_path, "b.WAV", "a.wav", "sub/deep/c.Mp3", "sub/d.flac", "notes.txt", "x.mp4", "wav")
    make(tmp_path, ".hidden.wav", ".cache/e.wav", "sub/._d.flac")
    paths = [os.path.relpath(path, tmp_path) for path in find_files(str(tmp_path), SUFFIXES["audio"])]
    assert paths == ["a.wav", "b.WAV", "sub/d.flac", "sub/deep/c.Mp3"]


def test_links_to_directories_are_followed_once(tmp_path):
    make(tmp_path, "data/a.wav", "data/sub/b.wav", "elsewhere/c.wav")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "sub" / "loop").symlink_to(tmp_path / "data")
    paths = [
        os.path.relpath(path, tmp_path) for path in find_files(str(tmp_path / "data"), SUFFIXES["audio"])
    ]
    assert paths == ["data/a.wav", "data/link/c.wav", "data/sub/b.wav"]


@pytest.mark.parametrize(
    ("side", "suffixes"),
    [
        ("audio", (".wav", ".mp3", ".flac", ".m4a", ".ogg")),
        ("video", (".mp4", ".avi", ".mov", ".mkv", ".flv", ".webm")),
    ],
)
def test_every_format_of_the_guide_is_found(tmp_path, side, suffixes):
    make(tmp_path, *(f"x{suffix}" for suffix in suffixes), "x.txt", "x.jpg")
    assert {os.path.splitext(path)[1] for path in gather_files(side, tmp_path).paths} == set(suffixes)


def test_videos_lend_their_sound_where_a_directory_has_no_audio(tmp_path, caplog):
    make(tmp_path, "a.mp4", "b.webm")
    assert len(gather_files("audio", tmp_path).paths) == 2
    assert f"{tmp_path}: no audio files; the sound of its 2 video files is used" in caplog.text


def test_an_empty_directory_is_an_error_that_names_it(tmp_path):
    with pytest.raises(
        EvaluationError, match=rf"^{tmp_path}: no video files \(\.mp4 .*\) in this directory$"
    ):
        gather_files("video", tmp_path)
    with pytest.raises(EvaluationError, match="no audio files given"):
        gather_files("audio", [])


def test_list_files_take_bom_crlf_blank_lines_and_comments(tmp_path):
    content = (
        "\ufeff/a/one.wav\r\n\r\n# a comment\r\n  \r\n/b/zwei drei.wav\n/c/四.wav\n /d/ five .wav \n/e/last"
    )
    (tmp_path / "list.txt").write_bytes(content.encode())
    assert read_list_file(tmp_path / "list.txt") == [
        "/a/one.wav",
        "/b/zwei drei.wav",
        "/c/四.wav",
        " /d/ five .wav ",
        "/e/last",
    ]


def test_list_files_keep_bytes_that_are_not_utf8(tmp_path):
    name = b"/a/caf\xe9.wav"
    (tmp_path / "list.txt").write_bytes(name + b"\n")
    assert [os.fsencode(path) for path in read_list_file(tmp_path / "list.txt")] == [name]


def test_names_are_stems_as_far_as_they_tell_files_apart():
    files = found("audio", "a.wav", "cat/b.wav", "cat/c.wav", "dog/c.wav", "e.mp3", "e.wav")
    assert list(files.names.values()) == ["a", "b", "cat/c", "dog/c", "e.mp3", "e.wav"]


def test_names_of_all_kinds(pairs):
    """They stay in their line and field, can be read back, and no terminal is told what to do."""
    names = [
        "two  spaces",
        "-leading",
        "--help",
        "quotes'\"`$(true)",
        "caf\u00e9",
        "cafe\u0301 apart",
        "\u05e9\u05dc\u05d5\u05dd",
        "turned\u202etxt",
        "new\nline",
        "tab\there",
        "back\\slash",
        "\x1b[31mred",
        "<img src=x onerror=alert(1)>",
        "=1+1",
        "x" * 251,
        os.fsdecode(b"\xff\xfe"),
        "\u540d\u5b57",
        "# not a comment",
    ]
    spelt = {"audio": "NFC", "video": "NFD"}
    for side, suffix in (("audio", ".wav"), ("video", ".mp4")):
        for name in names:
            path = pairs / side / f"{unicodedata.normalize(spelt[side], name)}{suffix}"
            shutil.copy(pairs / side / f"a{suffix}", path)
    status, out, err = Program(pairs).wait()
    assert status == 0
    assert out[-1] == f"evaluated {4 + len(names)} pairs, skipped 0 files, unmatched 0 files"

    def decode(field: str) -> str:  # as the README says
        return field.encode("latin-1", "backslashreplace").decode("unicode_escape")

    def read(name: str) -> list[list[str]]:
        lines = (pairs / "outputs" / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return [[decode(field) for field in line.split("\t")] for line in lines]

    assert all(os.path.exists(pairs / path) for pair in read("pairs.txt") for path in pair)
    stems = [os.path.splitext(os.path.basename(sound))[0] for sound, _ in read("pairs.txt")]
    assert set(stems) == {*"abcd", *(unicodedata.normalize("NFC", name) for name in names)}
    assert [name for (name,) in read("audio_names.txt")] == stems

    for name in names:  # as skipped files, in the report
        (pairs / "audio" / f"{unicodedata.normalize('NFC', name)}.wav").write_text("not a sound")
    status, out, err = Program(pairs).wait()
    assert status == 0
    report = (pairs / "outputs" / "consistency_report.txt").read_text(encoding="utf-8")
    assert report.count("    audio audio/") == len(names)
    for line in (*report.split("\n"), *out, *err):
        assert not re.search("[\x00-\x1f\u202e]", line)


def test_a_list_of_a_million_lines_is_read_in_a_gigabyte(pairs):
    with open(pairs / "list.txt", "w") as file:
        file.writelines(f"folder{i % 1000}/file{i}.wav\n" for i in range(1_000_000))
        file.write("audio/a.wav\n")
    argv = ["--audio_file", "list.txt", "--video_dir", "video"]
    limits = {resource.RLIMIT_DATA: 2_000_000_000}
    status, out, err = Program(pairs, limits=limits, inputs=argv).wait()
    assert status == 0
    assert out[-1] == "evaluated 1 pairs, skipped 0 files, unmatched 1000003 files"
    assert "1000001 audio files, 4 video files, 1 pairs" in err
    assert sum(map(len, err)) < 2000


def test_a_tree_of_200_000_files_and_a_loop_is_walked_once(pairs):
    for i in range(200):
        folder = pairs / "video" / f"{i}"
        folder.mkdir()
        for k in range(1000):
            os.mknod(folder / f"{i}_{k}.mp4")
        (folder / "up").symlink_to(pairs / "video")
    limits = {resource.RLIMIT_DATA: 2_000_000_000}
    status, out, _ = Program(pairs, limits=limits).wait()
    assert status == 0
    assert out[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 200000 files"
