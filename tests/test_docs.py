"""The READMEs: options, commands and shown output are those of the program."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest
from conftest import TESTS

from batch_inference import build_parser, main

ROOT = TESTS.parent
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}


def blocks(lang: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", READMES[lang].read_text(encoding="utf-8"), re.M | re.S)


def demo_argv(lang: str, captions: bool = False) -> list[str]:
    commands = (
        block for block in blocks(lang) if "imagebind_demo.pth" in block and "batch_inference.py" in block
    )
    command = next(command for command in commands if ("--captions" in command) == captions)
    return shlex.split(command.split("batch_inference.py")[1])


def assert_same_figures(shown: str, printed: str) -> None:
    """Numbers may differ in the last digit between machines."""
    number = re.compile(r"\d+\.\d+")
    assert number.sub("#", shown) == number.sub("#", printed)
    values = [[float(x) for x in number.findall(text)] for text in (shown, printed)]
    assert values[0] == pytest.approx(values[1], abs=0.001)


@pytest.mark.parametrize("lang", READMES)
def test_every_option_is_listed_with_its_default(lang):
    rows = re.findall(r"^\| `(--\w+)` \|.*\| (.+) \|$", READMES[lang].read_text(encoding="utf-8"), re.M)
    options = {
        action.option_strings[0]: action.default
        for action in build_parser()._actions
        if not isinstance(action, argparse._HelpAction)
    }
    assert [option for option, _ in rows] == list(options)
    for option, default in rows:
        if options[option] not in (None, False):
            assert default == f"`{options[option]}`"


@pytest.mark.parametrize("lang", READMES)
def test_every_shown_command_parses(lang, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("audios", "videos"):
        (tmp_path / name).mkdir()
    for name in ("audio_list.txt", "video_list.txt", "captions.csv"):
        (tmp_path / name).touch()
    commands = [block for block in blocks(lang) if block.startswith("python batch_inference.py")]
    assert len(commands) == 8
    for command in commands:
        build_parser().parse_args(shlex.split(command)[2:])


@pytest.mark.parametrize("lang", READMES)
def test_the_shown_demo_output_is_what_it_prints(lang, tmp_path, monkeypatch, capsys):
    """Line by line up to how it was computed."""
    monkeypatch.chdir(ROOT)
    assert main([*demo_argv(lang), "--output_dir", str(tmp_path)]) == 0
    end = {"en": "How it was computed", "zh": "计算方式"}[lang]
    printed = capsys.readouterr().out.split(end)[0]
    (shown,) = (block for block in blocks(lang) if end in block)
    assert_same_figures("=" * 80 + shown.split(end)[0].split("=" * 80, 1)[1], printed)


@pytest.mark.parametrize("lang", READMES)
def test_what_captions_add_to_it_is_what_it_prints(lang, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main([*demo_argv(lang, captions=True), "--output_dir", str(tmp_path)]) == 0
    start = {"en": "Similarity of captions and audio:", "zh": "文本-音频一致性:"}[lang]
    (shown,) = (block for block in blocks(lang) if block.startswith(start))
    printed = capsys.readouterr().out
    place = printed.index(start)
    assert_same_figures(shown, printed[place : place + len(shown)])


def test_both_readmes_have_the_same_parts():
    def outline(lang: str) -> list[str]:
        text = READMES[lang].read_text(encoding="utf-8")
        return re.findall(r"^(#+ |```\w*$|\| `[^`]+`|- \*\*|\d\. )", text, re.M)

    assert outline("en") == outline("zh")
    plain = [[block for block in blocks(lang) if block.startswith("python ")] for lang in READMES]
    assert plain[0] == plain[1]
