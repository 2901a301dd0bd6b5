"""Which files are taken, and their names."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import Program

from batch_inference import EvaluationError, batch_inference_av_consistency, main
from imagebind.evaluation.inputs.files import MediaFiles, gather_files, read_list_file
from imagebind.sources import Source


def found(side: str, *keys: str) -> MediaFiles:
    return MediaFiles(tuple(Source(f"{side}s/{key}") for key in keys), f"{side}s")


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_directories_are_searched_below_sorted_and_without_hidden_files(tmp_path):
    make(tmp_path, "b.WAV", "a.wav", "sub/deep/c.Mp3", "sub/d.flac", "notes.txt", "x.mp4", "wav")
    make(tmp_path, ".hidden.wav", ".cache/e.wav", "sub/._d.flac")
    paths = [os.path.relpath(x.path, tmp_path) for x in gather_files("audio", tmp_path).listed]
    assert paths == ["a.wav", "b.WAV", "sub/d.flac", "sub/deep/c.Mp3"]


def test_links_to_directories_are_followed_once(tmp_path):
    make(tmp_path, "data/a.wav", "data/sub/b.wav", "elsewhere/c.wav")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "sub" / "loop").symlink_to(tmp_path / "data")
    paths = [os.path.relpath(x.path, tmp_path) for x in gather_files("audio", tmp_path / "data").listed]
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
    assert {os.path.splitext(x.path)[1] for x in gather_files(side, tmp_path).listed} == set(suffixes)


def test_videos_lend_their_sound_where_a_directory_has_no_audio(tmp_path, caplog):
    make(tmp_path, "a.mp4", "b.webm")
    assert len(gather_files("audio", tmp_path).listed) == 2
    assert f"{tmp_path}: no audio files; the sound of its 2 video files is used" in caplog.text


def test_an_empty_directory_is_an_error_that_names_it(tmp_path):
    message = rf"^{tmp_path}: no video files \(\.mp4 .*\) in this directory; it "
    with pytest.raises(EvaluationError, match=rf"{message}is empty$"):
        gather_files("video", tmp_path)
    make(tmp_path, "a.m4v", "b.M4V", "c.txt", "LICENSE")
    with pytest.raises(EvaluationError, match=rf"{message}has 2 \.m4v, 1 \.txt, 1 without suffix$"):
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
    assert report.count("    音频 audio/") == len(names)
    for line in (*report.split("\n"), *out, *err):
        assert not re.search("[\x00-\x1f\u202e]", line)


@contextmanager
def more_memory(n_bytes: int) -> Iterator[None]:
    """Let this process have as much more than it has now."""
    kilobytes = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_DATA, (kilobytes * 1024 + n_bytes,) * 2)
    yield


def test_a_list_of_100_000_lines_is_read_in_100_megabytes(pairs):
    with open(pairs / "list.txt", "w") as file:
        file.writelines(f"folder{i % 1000}/file{i}.wav\n" for i in range(100_000))
        file.write("audio/a.wav\n")
    inputs = ["--audio_file", "list.txt", "--video_dir", "video"]
    more = partial(more_memory, 200_000_000)  # half of it for what any run takes
    status, out, err = Program(pairs, inputs=inputs, inside=more).wait()
    assert status == 0
    assert out[-1] == "evaluated 1 pairs, skipped 0 files, unmatched 100003 files"
    assert "100001 audio files, 4 video files, 1 pairs" in err
    assert sum(map(len, err)) < 2000


def test_a_tree_of_10_000_files_and_loops_is_walked_once(pairs):
    for i in range(100):
        folder = pairs / "video" / f"{i}"
        folder.mkdir()
        for k in range(100):
            os.mknod(folder / f"{i}_{k}.mp4")
        (folder / "up").symlink_to(pairs / "video")
    status, out, _ = Program(pairs).wait()
    assert status == 0
    assert out[-1] == "evaluated 4 pairs, skipped 0 files, unmatched 10000 files"


def test_formats_that_are_left_out_are_counted_with_a_way_to_take_them(tmp_path, caplog):
    make(tmp_path, "a.mp4", "b.m4v", "c.TS", "d.ts", "e.wav", "notes.txt")
    assert len(gather_files("video", tmp_path).listed) == 1
    (message,) = caplog.messages
    start, command = message.split("a list file takes any format: ")
    assert start == f"{tmp_path}: left out 2 .ts, 1 .m4v; "
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    listed = read_list_file(tmp_path / "list.txt")
    assert sorted(map(os.path.basename, listed)) == ["a.mp4", "b.m4v", "c.TS", "d.ts"]


def test_one_file_in_two_spellings_is_one_file():
    files = gather_files("audio", ["a.wav", "./a.wav", "x//b.wav", "x/./b.wav", "/a.wav", "../a.wav"])
    assert tuple(x.path for x in files.distinct) == ("a.wav", "x//b.wav", "/a.wav", "../a.wav")
    assert len(files.listed) == 6


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_lists_with_a_mark_are_read(tmp_path, encoding):
    (tmp_path / "list.txt").write_bytes("\ufeff/a/eins.wav\r\n/b/\u56db.wav\r\n".encode(encoding))
    assert read_list_file(tmp_path / "list.txt") == ["/a/eins.wav", "/b/\u56db.wav"]


def test_blanks_and_quotes_around_a_path_are_left_out_where_it_is_a_file_without_them(tmp_path, caplog):
    make(tmp_path, "a.wav", "b.wav", " c.wav")
    lines = [f" {tmp_path}/a.wav  ", f'"{tmp_path}/b.wav"', f"{tmp_path}/ c.wav", "'nowhere.wav'"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    paths = [f"{tmp_path}/a.wav", f"{tmp_path}/b.wav", f"{tmp_path}/ c.wav", "'nowhere.wav'"]
    assert read_list_file(tmp_path / "list.txt") == paths
    assert f"blanks or quotes around a path are left out: {tmp_path}/a.wav, {tmp_path}/b.wav" in caplog.text


def test_what_is_no_list_is_refused_in_one_line(pairs, capsys, monkeypatch):
    monkeypatch.chdir(pairs)
    os.mkfifo("pipe")
    for path, reason in (
        ("audio/a.wav", "is no text"),
        ("pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("audio", "not a regular file"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["--audio_file", path, "--video_dir", "video"])
        assert caught.value.code == 2
        assert (
            capsys.readouterr()
            .err.splitlines()[-1]
            .endswith(f"argument --audio_file: {path}: {reason}; a text file with one path a line is wanted")
        )


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("audio", "Is a directory; --audio_dir and --video_dir search one"),
        ("~/x.wav", "No such file or directory; ~ is taken as it stands here"),
        ("sounds/*.wav", "No such file or directory; * and ? are taken as they stand here"),
    ],
)
def test_paths_that_the_shell_left_alone_are_named(pairs, small_checkpoint, monkeypatch, path, reason):
    monkeypatch.chdir(pairs)
    videos = ["video/a.mp4", "video/b.mp4"]
    results = batch_inference_av_consistency(
        ["audio/a.wav", path], videos, "cpu", 4, None, True, checkpoint=small_checkpoint
    )
    assert [(f["path"], f["reason"]) for f in results["failures"]] == [(path, reason)]
