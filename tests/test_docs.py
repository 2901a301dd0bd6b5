"""The documentation: options, commands, shown output and links are those of the program."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TESTS, picture, tone, write_audio, write_movie, write_video
from PIL import Image
from test_model import TINY, released_state_dict

from batch_inference import build_parser, main
from imagebind.models import download, imagebind_model

ROOT = TESTS.parent
PAGES = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")))
TWINS = {Path("README.md"): Path("README.zh-CN.md")} | {
    Path("docs", path.name): Path("docs", "zh", path.name)
    for path in PAGES
    if path.parent == Path("docs", "zh")
}
READMES = {"en": "README.md", "zh": "README.zh-CN.md"}
ENGLISH_ONLY = {Path("docs/changes.md"), Path("docs/development.md")}


def text_of(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str | Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text_of(page), re.M | re.S)


def commands(page: str | Path) -> list[list[str]]:
    """List what follows `batch_inference.py` in the commands of a page."""
    lines = [line for block in blocks(page) for line in block.splitlines()]
    found = [re.search(r"(?:python\S*|torchrun .*) batch_inference\.py (-.*)", line) for line in lines]
    return [shlex.split(match[1].replace("$SLURM_ARRAY_TASK_ID", "1")) for match in found if match]


def assert_same_figures(shown: str, printed: str) -> None:
    """Numbers may differ in the last digit between machines."""
    number = re.compile(r"\d+\.\d+")
    assert number.sub("#", shown) == number.sub("#", printed)
    values = [[float(x) for x in number.findall(text)] for text in (shown, printed)]
    assert values[0] == pytest.approx(values[1], abs=0.001)


def test_every_page_has_its_twin():
    assert {page for page in PAGES if "zh" not in str(page)} == {*TWINS} | ENGLISH_ONLY


@pytest.mark.parametrize("page", ["docs/options.md", "docs/zh/options.md"])
def test_every_option_is_listed_with_its_default(page):
    rows = re.findall(r"^\| `(--\w+)` \|.*\| (.+) \|$", text_of(page), re.M)
    options = {
        action.option_strings[0]: action.default
        for action in build_parser()._actions
        if not isinstance(action, argparse._HelpAction | argparse._VersionAction)
    }
    assert [option for option, _ in rows] == list(options)
    for option, default in rows:
        if options[option] not in (None, False):
            value = options[option]
            assert default == f"`{' '.join(value) if isinstance(value, tuple) else value}`"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_shown_command_parses(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("audios", "videos", "shards", "tests/demo/audio", "tests/demo/video"):
        (tmp_path / name).mkdir(parents=True)
    names = ["audio_list.txt", "video_list.txt", "captions.csv", "tests/demo/captions.csv"]
    names += ["shard-000.tar", "shard-001.tar", *(f"shards/shard-{i:03d}.tar" for i in range(128))]
    names += ["imagebind_video.pth", "outputs_of_reference"]
    for name in [*names, "pairs.csv", "clips.parquet"]:
        (tmp_path / name).touch()
    for argv in commands(page):
        build_parser().parse_args(argv)
    if page.name.startswith("README"):
        assert len(commands(page)) >= 12


def test_the_examples_of_help_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("audios", "videos", "tests/demo/audio", "tests/demo/video"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("audio_list.txt", "video_list.txt", "captions.csv", "pairs.csv"):
        (tmp_path / name).touch()
    help = build_parser().format_help()
    lines = [
        line for line in help.splitlines() if re.match(r" +(python|torchrun .*) batch_inference.py -", line)
    ]
    assert len(lines) == 10
    for line in lines:
        build_parser().parse_args(shlex.split(line.split("batch_inference.py")[1]))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Where the demo's embeddings are kept from one run to the next."""
    return tmp_path_factory.mktemp("cache") / "embeddings.sqlite"


@pytest.fixture
def demo_output(cache, tmp_path, monkeypatch, capsys):
    """Run the command of a page that runs the demo, and give what it prints."""
    monkeypatch.chdir(ROOT)

    def demo_output(page: str) -> str:
        (argv,) = (argv for argv in commands(page) if "tests/demo/imagebind_demo.pth" in argv)
        here = ("--output_dir", str(tmp_path), "--cache", str(cache), "--num_workers", "0")
        assert main([*argv, *here]) == 0
        return capsys.readouterr().out

    return demo_output


@pytest.mark.parametrize("lang", READMES)
def test_the_shown_report_is_what_the_demo_prints(lang, demo_output):
    printed = demo_output(READMES[lang])
    (shown,) = (block for block in blocks(READMES[lang]) if block.startswith("=" * 80))
    assert_same_figures(shown, printed[: len(shown)])


@pytest.mark.parametrize(
    ("page", "start"),
    [("docs/inputs.md", "Similarity of captions and audio:"), ("docs/zh/inputs.md", "文本-音频一致性:")],
)
def test_what_captions_add_to_it_is_what_it_prints(page, start, demo_output):
    printed = demo_output(page)
    (shown,) = (block for block in blocks(page) if block.startswith(start))
    begin = printed.index(start)
    assert_same_figures(shown, printed[begin : begin + len(shown)])


@pytest.mark.parametrize(("english", "chinese"), TWINS.items(), ids=lambda page: str(page))
def test_both_languages_have_the_same_parts(english, chinese):
    def outline(page: Path) -> list[str]:
        return re.findall(r"^(#+ |```\w*$|\| `[^`]+`)", text_of(page), re.M)

    assert outline(english) == outline(chinese)
    shown = [[re.sub(" --report_lang .*", "", " ".join(a)) for a in commands(p)] for p in (english, chinese)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if target.startswith(("http", "../../actions/")):  # the second are pages of the place that hosts it
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target


@pytest.fixture
def named_files(tmp_path, monkeypatch):
    """The files that the examples of Python name, and released weights in a tiny size, where they run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagebind_model, "IMAGEBIND_HUGE", TINY)
    monkeypatch.setattr(download, "RELEASED_PATH", tmp_path / "none" / "imagebind_huge.pth")
    Path(".checkpoints").mkdir()
    torch.save(released_state_dict("tiny"), ".checkpoints/imagebind_huge.pth")
    for i, name in enumerate(("dog", "car", "bird")):
        Image.fromarray(picture(20 * i)).save(f"{name}_image.jpg")
        write_audio(Path(f"{name}_audio.wav"), tone(1, 200 * (i + 1)))
    write_audio(Path("audio1.wav"), tone(1))
    write_video(Path("video1.mp4"), [picture(i) for i in range(20)])
    for i in (1, 2):
        write_movie(Path(f"movie{i}.mp4"), 300 * i)
    with wave.open("generated.wav", "wb") as file:
        file.setparams((2, 2, 22050, 0, "NONE", None))
        file.writeframes((tone(3, rate=22050).repeat(2) * 32767).astype(np.int16).tobytes())


EXAMPLES = 4


@pytest.mark.parametrize("number", range(EXAMPLES))
def test_code_that_uses_the_released_names_runs(number, named_files, capsys):
    section = text_of("docs/python.md").split("### Code that uses these names")[1].split("\n###")[0]
    examples = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    assert len(examples) == EXAMPLES
    Path("example.py").write_text(examples[number], encoding="utf-8")
    names = runpy.run_path("example.py", run_name="__main__")
    printed = capsys.readouterr().out
    if number == 0:
        for one, other in (("vision", "text"), ("audio", "text"), ("vision", "audio")):
            products = names["rows"][one] @ names["rows"][other].T
            assert f"{one} {other} {products.softmax(-1)}" in printed
    elif number == 1:
        up = names["model"].modality_trunks.vision.blocks[0].attn.up.weight
        assert up.any()  # a step was made
        assert float(printed) == names["results"]["metrics"]["paired_similarity_mean"]
    elif number == 2:
        features = torch.load("features.pth")
        assert set(features) == {"./movie1.mp4", "./movie2.mp4"}
        assert {row.shape for rows in features.values() for row in rows.values()} == {(32,)}
    else:
        assert printed == "torch.Size([1, 32])\n"


def test_both_languages_have_the_same_examples():
    english, chinese = (
        re.findall(r"^```python\n(.*?)^```$", text_of(page), re.M | re.S)[-EXAMPLES - 1 :]
        for page in ("docs/python.md", "docs/zh/python.md")
    )
    assert english == chinese


def test_the_way_from_clips_to_a_kept_list_runs(named_files, capsys):
    """Every block of the page but the shard, one after the other."""
    for i, name in enumerate("abcd"):
        write_audio(Path("audios", f"{name}.wav"), tone(1, 200 * (i + 1)))
        write_video(Path("videos", f"{name}.mp4"), [picture(20 * i + k % 5) for k in range(20)])
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text_of("docs/filtering.md"), re.M | re.S)
    assert [kind for kind, _ in found] == ["python", "bash", "bash", "python", "bash", "python"]
    for kind, block in found:
        if kind == "python":
            Path("example.py").write_text(block, encoding="utf-8")
            runpy.run_path("example.py", run_name="__main__")
        elif "--shard" not in block:
            (argv,) = (shlex.split(line.split("batch_inference.py")[1]) for line in block.splitlines())
            assert main([*argv, "--device", "cpu", "--no_html"]) == 0
    printed = capsys.readouterr().out
    assert "threshold" in printed
    assert "wrong at most" in printed
    assert "ok    4" in printed
    assert Path("outputs/kept.parquet").is_file()


@pytest.mark.parametrize("page", ["docs/outputs.md", "docs/zh/outputs.md"])
def test_what_pandas_makes_of_outputs_is_printed(page, named_files, capsys):
    rows = [f"video/{name}.mp4,audio/{name}.wav,{i}\n" for i, name in enumerate("abcd")]
    for i, name in enumerate("abcd"):
        write_audio(Path("audio", f"{name}.wav"), tone(1, 200 * (i + 1)))
        write_video(Path("video", f"{name}.mp4"), [picture(20 * i + k % 5) for k in range(20)])
    Path("pairs.csv").write_text("video,audio,rating\n" + "".join(rows))
    for folder in ("outputs", "outputs_b"):
        assert main(["--manifest", "pairs.csv", "--output_dir", folder, "--device", "cpu", "--no_html"]) == 0
    assert main(["--compare", "outputs", "outputs_b", "--output_dir", "comparison", "--no_html"]) == 0
    capsys.readouterr()
    section = re.split(r"^## .*pandas.*$", text_of(page), flags=re.M)[1]
    for block in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S):
        Path("example.py").write_text(block, encoding="utf-8")
        runpy.run_path("example.py", run_name="__main__")
    printed = capsys.readouterr().out
    assert re.match(r"Spearman -?\d\.\d{3} \[.*\] of 4 pairs\n", printed)
    assert re.search(r"^outputs\\_b & \d\.\d{3} \[.*\] & \d\.\d{3} \\\\$", printed, re.M)
