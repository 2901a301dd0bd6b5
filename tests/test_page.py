"""The pages, in a browser: report.html and comparison.html."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlparse

import av
import numpy as np
import pytest
import torch
from chromium import CHROMIUM, Browser
from conftest import RATE, TESTS, picture, skip, tone, write_audio, write_video

from batch_inference import Options, batch_inference_av_consistency, compare_systems, main
from imagebind.evaluation.compare.arrays import OutputArrays
from imagebind.evaluation.compare.candidates import Candidates
from imagebind.evaluation.compare.protocols import features_of, make_protocols
from imagebind.evaluation.compare.results import build_results
from imagebind.evaluation.embed.embedded import EmbeddedFiles, ModelFacts
from imagebind.evaluation.embed.store import EmbeddingStore
from imagebind.evaluation.inputs.files import MediaFiles
from imagebind.evaluation.inputs.pairing import pair_files
from imagebind.evaluation.inputs.plan import Plan
from imagebind.evaluation.write import charts, page_media, report_page
from imagebind.evaluation.write.charts import histogram_chart, recall_chart
from imagebind.evaluation.write.page_media import PageMedia
from imagebind.evaluation.write.report import report_sections
from imagebind.names import one_line
from imagebind.sources import Source

try:
    import axe_core_python
except ImportError:
    axe_core_python = None

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<b>bold<br> &lt;i&gt; & '\"` %{z} ${1} {{plotly}}",
    os.fsdecode(b"not\xffUTF-8\n\xe2\x80\xae!--"),
    "long " * 40,
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        skip("no Chromium")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory, small_checkpoint):
    """A folder with report.html over files of hostile names, two of them skipped; and the results."""
    folder = tmp_path_factory.mktemp("report")
    for i, name in enumerate(HOSTILE):
        write_audio(folder / "a<b" / f"{name}.wav", tone(1, 200 * (i + 1)))
        video = write_video(folder / "video.mp4", [picture(20 * i + k % 5) for k in range(20)])
        (folder / "script> #?").mkdir(exist_ok=True)
        video.rename(folder / "script> #?" / f"{name}.mp4")
    for side in ("a<b/</script>.wav", "script> #?/</script>.mp4"):
        (folder / side).parent.mkdir(exist_ok=True)
        (folder / side).write_bytes(b"nothing")
    results = batch_inference_av_consistency(
        folder / "a<b",
        folder / "script> #?",
        device="cpu",
        checkpoint=small_checkpoint,
        output_dir=folder / "out%20",
        report_lang="en",
    )
    return folder / "out%20", results


def texts(browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({selector!r})].map(node => node.textContent)")


def hover_text(browser) -> str:
    """What the pointer says, lines joined."""
    text = "[...document.querySelectorAll('.hoverlayer .hovertext .nums')].map(t => t.textContent).join(' ')"
    return browser.wait_for(text)


def point_at_cell(browser, row: int, column: int) -> str:
    """Move the pointer over a cell of the heat map, and give what it says."""
    browser.point_at(1, 1)
    browser.wait_for("!document.querySelector('.hoverlayer .hovertext')")
    x, y = browser.run(
        f"""(() => {{
            const chart = document.querySelectorAll(".chart")[1];
            chart.scrollIntoView({{ block: "center" }});
            const {{ left, top }} = chart.getBoundingClientRect();
            const {{ xaxis, yaxis }} = chart._fullLayout;
            return [left + xaxis._offset + xaxis.d2p({column}), top + yaxis._offset + yaxis.d2p({row})];
        }})()"""
    )
    browser.point_at(x, y)
    return hover_text(browser)


def test_every_chart_is_drawn_without_complaint(browser, report):
    folder, results = report
    browser.open(folder / "report.html")
    assert browser.complaints == []
    assert browser.run("document.title") == "Audio-video consistency report"
    charts = "document.querySelectorAll('.chart')"
    assert browser.run(f"{charts}.length") == 3
    n_bars = sum(np.count_nonzero(trace.y) for trace in histogram_chart(results["histograms"], "en").data)
    drawn = ".barlayer .point path", ".heatmaplayer image", ".scatterlayer path.js-line"
    counts = [browser.run(f"{charts}[{i}].querySelectorAll('{path}').length") for i, path in enumerate(drawn)]
    assert counts[0] >= n_bars > 0
    assert counts[1:] == [1, 3]
    tiles = dict(zip(texts(browser, ".tiles dt"), texts(browser, ".tiles dd:nth-of-type(1)"), strict=True))
    metrics = results["metrics"]
    assert tiles["mean of pairs"] == f"{metrics['paired_similarity_mean']:.4f}"
    assert tiles["Recall@1"] in (f"{metrics['recall_at_1']:.4f}", f"{metrics['recall_at_1']:.0f}")
    assert tiles["pairs evaluated"] == "4"


def test_a_page_of_pairs_alone_shows_what_it_has(browser, pairs, small_checkpoint):
    results = batch_inference_av_consistency(
        *(pairs / "audio", pairs / "video", "cpu"),
        **{"checkpoint": small_checkpoint, "pairs_only": True, "captions": {n: n for n in "abcd"}},
        **{"output_dir": pairs / "out", "report_lang": "en", "num_workers": 0},
    )
    browser.open(pairs / "out" / "report.html")
    assert browser.complaints == []
    assert browser.run("document.querySelectorAll('.chart').length") == 3  # of pairs, and of captions twice
    assert "The mismatches are a sample of 12." in texts(browser, ".how")[0]
    assert not any("ank" in text for text in texts(browser, "th, .how, .tiles dt"))
    lowest = min(results["pair_scores"], key=lambda pair: pair["similarity"])
    assert texts(browser, "tr.row td:first-child")[0] == lowest["name"]


def test_the_pointer_names_both_files_of_a_cell(browser, report):
    folder, results = report
    browser.open(folder / "report.html")
    similarity = results["similarity_matrix"].numpy()
    for row, column in ((0, 1), (2, 0), (1, 3)):
        names = [one_line(results[f"{side}_names"][i]) for side, i in (("audio", row), ("video", column))]
        said = point_at_cell(browser, row, column).replace("−", "-")
        assert re.sub(r"\s", "", said) == re.sub(
            r"\s", "", f"audio: {names[0]}video: {names[1]}{similarity[row, column]:.4f}"
        )
    assert browser.complaints == []


def test_names_are_text_and_links_lead_to_the_files(browser, report):
    folder, results = report
    browser.open(folder / "report.html")
    pairs = sorted(results["pair_scores"], key=lambda pair: pair["similarity"])
    names = texts(browser, "tr.row td:nth-child(1)")
    assert names[: len(pairs)] == [one_line(pair["name"]) for pair in pairs]
    assert (
        browser.run(
            "document.querySelectorAll('main img:not(.thumbnails img), main script, main b, main i').length"
        )
        == 0
    )
    links = browser.run("[...document.querySelectorAll('tbody a')].map(a => [a.textContent, a.href])")
    paths = [pair[side] for pair in pairs for side in ("audio", "video")]
    paths += [failure["path"] for failure in results["failures"]]
    assert len(paths) == 10
    for (text, href), path in zip(links, paths, strict=True):
        assert text == one_line(os.path.basename(path))
        address = urlparse(href)
        assert (address.scheme, address.query, address.fragment) == ("file", "", "")
        assert os.path.samefile(unquote_to_bytes(address.path), path)
    assert texts(browser, "tr.row td:nth-child(3)")[-2:] == [f["reason"] for f in results["failures"]]


def test_the_table_is_sorted_by_keyboard(browser, report):
    folder, results = report
    browser.open(folder / "report.html")
    names = sorted(one_line(pair["name"]) for pair in results["pair_scores"])
    browser.run("document.querySelector('th button').focus()")
    shown = "tr.row td:nth-child(1)"
    browser.press("Enter")
    ascending = texts(browser, shown)[:4]
    assert sorted(ascending) == names
    assert browser.run(
        f"{json.dumps(ascending)}.every((name, i, all) => !i || all[i - 1].localeCompare(name) <= 0)"
    )
    assert browser.run("document.querySelector('th').ariaSort") == "ascending"
    browser.press("Enter")
    assert texts(browser, shown)[:4] == ascending[::-1]
    assert browser.run("document.querySelector('th').ariaSort") == "descending"
    browser.press("Tab")  # to the next heading
    browser.press("Enter")
    similarities = [float(text) for text in texts(browser, "tr.row td:nth-child(2)")[:4]]
    assert similarities == sorted(similarities)


def test_the_arrow_keys_move_the_pointer_of_a_chart(browser, report):
    folder, results = report
    browser.open(folder / "report.html")
    names = [re.sub(r"\s", "", one_line(name)) for name in results["video_names"]]
    browser.run("document.querySelectorAll('.chart')[1].focus()")
    browser.press("ArrowRight")
    assert f"video:{names[1]}" in re.sub(r"\s", "", hover_text(browser))
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")  # from the first to the last
    said = "document.querySelectorAll('.hoverlayer')[1].textContent.replace(/\\s/g, '')"
    browser.wait_for(f"{said}.includes({json.dumps('video:' + names[-1])})")
    for i in (0, 2):
        browser.run(f"document.querySelectorAll('.chart')[{i}].focus()")
        browser.press("ArrowRight")
        assert "%" in hover_text(browser)
    assert browser.complaints == []


def test_captions_have_charts_tiles_and_columns(browser, pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    captions = dict(zip("abc", HOSTILE, strict=False))
    options = {"device": "cpu", "checkpoint": small_checkpoint, "report_lang": "en", "cache": "kept.sqlite"}
    options["num_workers"] = 0
    for name in ("one", "two"):
        results = batch_inference_av_consistency(
            "audio", "video", captions=captions, output_dir=name, **options
        )
        captions = {name: captions[name] for name in "ac"}
    Path("one").rename("first")
    browser.open(pairs / "two" / "report.html")
    assert browser.complaints == []
    assert browser.run("document.querySelectorAll('.chart').length") == 7
    headings = texts(browser, "h2")
    assert headings.index("Captions and audio") < headings.index("Captions and video")
    tiles = dict(zip(texts(browser, ".tiles dt"), texts(browser, ".tiles dd:nth-of-type(1)"), strict=True))
    for side in ("audio", "video"):
        mean = results["metrics"][f"text_{side}"]["paired_similarity_mean"]
        assert tiles[f"caption and its {side}"] == f"{mean:.4f}"
    lowest = sorted(results["pair_scores"], key=lambda pair: pair["similarity"])
    column = texts(browser, "thead th").index("caption") + 1
    shown = texts(browser, f"tr.row td:nth-child({column})")
    assert shown == [one_line(pair["caption"] or "") for pair in lowest]
    assert (
        browser.run(
            "document.querySelectorAll('main img:not(.thumbnails img), main script, main b, main i').length"
        )
        == 0
    )
    compare_systems(["first", "two"], "compared", report_lang="en")
    browser.open(pairs / "compared" / "comparison.html")
    assert browser.complaints == []
    assert "Captions and video: Differences" in texts(browser, "h2")


def luminance(color: str) -> float:
    """Of a CSS color, as WCAG 2 defines it."""
    channels = np.array([float(x) for x in re.findall(r"[\d.]+", color)[:3]]) / 255
    channels = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(channels @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_are_readable_in_light_and_dark(browser, report, dark):
    folder, _ = report
    browser.open(folder / "report.html", dark=dark)
    back = luminance(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert (back < 0.1) == dark
    for selector, style in (
        ("h1", "color"),
        (".how", "color"),
        (".chart text", "fill"),
        ("tbody a", "color"),
    ):
        color = browser.run(f"getComputedStyle(document.querySelector('{selector}')).{style}")
        low, high = sorted((luminance(color), back))
        assert (high + 0.05) / (low + 0.05) > 4.5, selector


def test_charts_follow_a_change_to_dark(browser, report):
    folder, _ = report
    browser.open(folder / "report.html")
    before = browser.run("getComputedStyle(document.querySelector('.chart text')).fill")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.wait_for(f"getComputedStyle(document.querySelector('.chart text')).fill !== {before!r}")


def test_a_phone_shows_it_without_scrolling_sideways(browser, report):
    folder, _ = report
    browser.open(folder / "report.html", width=390, height=844)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    widths = browser.run(
        "[...document.querySelectorAll('.chart .main-svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert all(300 < width <= 390 for width in widths)


def made_up(n_pairs: int, n_audio: int = 0, n_video: int = 0) -> dict:
    """Results of a run over files that there are not, the last pairs the least similar; then others."""
    folder = "/data/" + "a_folder_with_a_rather_long_name/" * 3
    rng = np.random.default_rng(0)
    audio, video = rng.standard_normal((2, n_pairs + n_audio + n_video, 16))
    audio /= np.linalg.norm(audio, axis=1, keepdims=True)
    video -= (video * audio).sum(axis=1, keepdims=True) * audio
    video /= np.linalg.norm(video, axis=1, keepdims=True)
    cosines = np.linspace(0.9, 0.1, n_pairs)[:, None]
    video[:n_pairs] = cosines * audio[:n_pairs] + np.sqrt(1 - cosines**2) * video[:n_pairs]
    sides, rows = {}, {}
    for side, suffix, n, embeddings in (("audio", "wav", n_audio, audio), ("video", "mp4", n_video, video)):
        names = [f"clip_{i:06d}" for i in range(n_pairs)] + [f"{side}_{i:06d}" for i in range(n)]
        names = names[::-1] if side == "video" and n else names
        paths = [Source(f"{folder}{side}/{name}.{suffix}") for name in names]
        sides[side], rows[side] = MediaFiles(tuple(paths)), EmbeddingStore(len(paths), None)
        for path, name in zip(paths, names, strict=True):
            place = int(name[-6:]) + (0 if name.startswith("clip") else n_pairs)
            rows[side].add(path, embeddings[place].astype(np.float32), content_hash=str(path))
    protocols = make_protocols(["imagebind"], 8)
    scales, device = {"audio": 2, "video": 2}, torch.device("cpu")
    embedded = EmbeddedFiles(
        wanted={modality: features_of(protocols)[modality] for modality in rows},
        stores=rows,
        missing={},
        failures=[],
        truncated_texts=set(),
        thumbnails={},
        model=ModelFacts("model.pth", "", "", "fp32", device, scales),
        summary="",
    )
    pairing = pair_files(*sides.values())
    plan = Plan(
        audio=sides["audio"],
        video=sides["video"],
        pairing=pairing,
        names=[sides["audio"].names[path] for path, _ in pairing.pairs],
        retrieval=bool(n_audio),
        captions=None,
        groups=None,
        file_groups=None,
    )
    options = Options(None, "", max_matrix_gb=0, retrieval_mode=bool(n_audio))
    return build_results(plan, embedded, protocols, OutputArrays(None), options).to_dict()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A place for one page after the other: a browser keeps the script of a place, which is large."""
    return tmp_path_factory.mktemp("page") / "report.html"


def write(results: dict, path: Path, lang: str = "en") -> Path:
    with open(path, "wb") as file:
        report_page.write_report_page(file, results, lang, PageMedia(path.parent))
    return path


def content_of(path: Path) -> dict:
    """Read what a page shows, without a browser."""
    (content,) = re.findall(r'<script type="application/json" id="page">(.*?)</script>', path.read_text())
    return json.loads(content)


def parts_of(path: Path) -> dict[str, dict]:
    """Read the parts of a page by title."""
    return {part["title"]: part for part in content_of(path)["parts"] if "title" in part}


def test_more_than_a_tile_of_rows_and_a_table_of_pairs(tmp_path, monkeypatch):
    """Ranks are those of the whole matrix; table and heat map have a part of it, and the suspects first."""
    monkeypatch.setattr(report_page, "MAX_PAIRS", 1050)
    results = made_up(1100)
    audio, video = (results[f"{side}_embeddings"].double().numpy() for side in ("audio", "video"))
    cosines = audio @ video.T  # of unit rows
    ranks = 1 + (cosines > np.diag(cosines)[:, None]).sum(axis=1)
    assert [pair["video_rank"] for pair in results["pair_scores"]] == ranks.tolist()
    assert results["histograms"]["mismatched"].sum() == 1100 * 1099
    parts = parts_of(write(results, tmp_path / "report.html"))
    table, drawn = parts["Pair by pair"], parts["Similarity matrix"]
    scores = sorted(results["pair_scores"], key=lambda pair: (not pair["suspect"], pair["similarity"]))
    assert [row[0] for row in table["rows"]] == [pair["name"] for pair in scores[:1050]]
    assert "the first 1050 of 1100 pairs" in table["how"]
    assert "a sample: 200 of 1100 audio files, 200 of 1100" in drawn["how"]
    names = drawn["chart"]["data"][0]["meta"]
    assert names["rows"] == names["columns"] == sorted(names["rows"])
    suspects = {pair["name"] for pair in scores if pair["suspect"]}
    assert len(names["rows"]) == 200
    assert set(names["rows"]) < suspects


def test_suspects_are_in_the_sample_of_a_large_matrix():
    pairs = [(i, 999 - i) for i in range(1000)]
    rows, columns = page_media.sample_cells((1000, 1200), pairs, suspects=[7, 501])
    assert {7, 501} < set(rows)
    assert {992, 498} < set(columns)
    assert len(rows) == len(columns) == page_media.MAX_FILES
    assert [999 - row for row in rows] == columns


def test_ten_thousand_pairs_open(browser, page):
    results = made_up(10_000)
    path = write(results, page)
    assert path.stat().st_size < 20e6
    browser.open(path)
    assert browser.complaints == []
    assert browser.run("document.querySelectorAll('.chart .main-svg').length") >= 3
    assert any("a sample: 200 of 10000 audio files, 200 of 10000" in text for text in texts(browser, ".how"))
    assert "clip_009999" in point_at_cell(browser, 199, 199)
    assert texts(browser, "tr.row td:first-child")[:2] == ["clip_009999", "clip_009998"]
    assert texts(browser, "[role=status]")[0] == "10000 of 10000"
    shown = "[...document.querySelectorAll('tr.row td:first-child')].map(cell => cell.textContent)"
    browser.run("document.querySelector('.scroll').scrollTop = 1e9")
    lowest = sorted(results["pair_scores"], key=lambda pair: (not pair["suspect"], pair["similarity"]))
    names = browser.wait_for(f"{shown}.at(-1) === {lowest[-1]['name']!r} && {shown}")
    assert names == [pair["name"] for pair in lowest[-len(names) :]]
    assert len(names) < 60  # of those in sight, and some around
    browser.run("document.querySelector('input').focus()")
    typed = ""
    for wanted, found in (("CLIP_00123", list(range(1239, 1229, -1))), ("4", [1234]), ("x", [])):
        browser.call("Input.insertText", text=wanted)
        typed += wanted.lower()  # also in the names of best other matches
        names = [name for name in texts(browser, "tr.row td:first-child") if typed in name]
        assert names == [f"clip_{i:06d}" for i in found]
    assert texts(browser, "[role=status]")[0] == "nothing found"


def test_more_pairs_than_that_show_the_least_similar(browser, page, monkeypatch):
    monkeypatch.setattr(report_page, "MAX_PAIRS", 150)
    browser.open(write(made_up(160), page))
    assert any("the first 150 of 160 pairs" in text for text in texts(browser, ".how"))
    assert texts(browser, "[role=status]")[0] == "150 of 150"


def test_distractors_come_after_the_pairs(browser, page):
    browser.open(write(made_up(5, 25, 35), page))  # videos in the opposite order
    said = point_at_cell(browser, 3, 3)
    assert said.count("clip_000003") == 2
    assert "0.3000" in said
    assert not any("a sample" in text for text in texts(browser, ".how"))
    assert "audio_000024" in point_at_cell(browser, 29, 39)
    assert browser.run("document.querySelectorAll('.scatterlayer path.js-line').length") == 4  # two chances


def test_the_recall_curve_is_the_share_of_ranks():
    ranks = np.array([1, 1, 2, 7, 40])
    directions = {
        direction: Candidates(values - 1, np.ones_like(values), np.full_like(values, 50))
        for direction, values in (("audio_to_video", ranks), ("video_to_audio", ranks[:1]))
    }
    forth, chance, back = recall_chart(directions, "en").data
    for trace, values in ((forth, ranks), (back, ranks[:1])):
        for k, share in zip(trace.x, trace.y, strict=True):
            assert share == np.mean(values <= k)
        assert {1, 5, 10, 50} <= set(trace.x)
    assert chance.y == pytest.approx(chance.x / 50)


def test_bars_hold_every_similarity_once():
    histograms = {
        "edges": np.linspace(-1, 1, 401),
        "paired": np.bincount([250, 390], minlength=400),
        "mismatched": np.bincount(np.arange(120, 330), minlength=400),
    }
    mismatched, paired = histogram_chart(histograms, "en").data
    assert sum(paired.y) == pytest.approx(1)
    assert sum(mismatched.y) == pytest.approx(1)
    assert [count for _, _, count in paired.customdata if count] == [1, 1]
    assert len(paired.x) <= charts.MAX_BARS
    low, high = (float(text) for text in next(row for row in paired.customdata if row[2])[:2])
    assert low <= 0.25 < high  # bin 250 begins at 0.25


def test_chinese_is_the_default(browser, page):
    browser.open(write(made_up(3), page, "zh"))
    assert browser.run("document.title") == "音频-视频一致性评估报告"
    assert browser.run("document.documentElement.lang") == "zh"
    browser.run("document.querySelectorAll('.facts td').forEach(cell => cell.remove())")  # versions, say
    text = browser.run("document.querySelector('main').innerText")
    assert not re.search(r"[a-z]{3,}", re.sub(r"Recall|AUC|clip_\d+(\.\w+)?|pair_scores|csv", "", text))


def test_without_pairs_the_matrix_is_shown_alone(browser, pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    shutil.move("video/a.mp4", "video/x.mp4")
    for name in "bcd":
        os.remove(f"video/{name}.mp4")
    options = ["--checkpoint", str(small_checkpoint), "--device", "cpu", "--report_lang", "en"]
    assert main(["--audio_dir", "audio", "--video_dir", "video", "--retrieval_mode", *options]) == 0
    browser.open(Path("outputs/report.html"))
    assert browser.complaints == []
    assert texts(browser, "h2")[:2] == ["Best matches", "Similarity matrix"]
    assert texts(browser, "tr.row td:nth-child(2)") == ["x"] * 4
    similarities = list(map(float, texts(browser, "tr.row td:nth-child(3)")))
    assert similarities == sorted(similarities, reverse=True)
    browser.run("document.querySelector('.chart').focus()")
    browser.press("ArrowDown")
    assert hover_text(browser).startswith("audio: bvideo: x")


def test_no_html_leaves_it_out_and_removes_an_earlier_one(pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    options = ["--checkpoint", str(small_checkpoint), "--device", "cpu"]
    assert main(["--audio_dir", "audio", "--video_dir", "video", *options]) == 0
    assert Path("outputs/report.html").exists()
    assert main(["--audio_dir", "audio", "--video_dir", "video", "--no_html", *options]) == 0
    assert not Path("outputs/report.html").exists()
    assert Path("outputs/metrics.json").exists()


def test_the_sections_are_those_of_the_report(browser, report):
    folder, results = report
    browser.open(folder / "report.html")
    sections = report_sections(results["metrics"], "en")
    assert texts(browser, ".facts caption") == list(sections)
    shown = zip(texts(browser, ".facts th"), texts(browser, ".facts td"), strict=True)
    rows = [(label, str(value)) for rows in sections.values() for label, value in rows.items()]
    assert list(shown) == [(label, value) for label, value in rows if not label.startswith(" ")]


SYSTEMS = {"<b>one": 0, "two": 130, "three": 300}  # name -> how much higher its notes are


@pytest.fixture(scope="module")
def evaluated_systems(tmp_path_factory, four_pairs, small_checkpoint):
    """A directory with the outputs of three systems."""
    folder = shutil.copytree(four_pairs, tmp_path_factory.mktemp("systems"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, shift in SYSTEMS.items():
            for i, stem in enumerate("abcd"):
                write_audio(folder / "sounds" / name / f"{stem}.wav", tone(1, 200 * (i + 1) + shift))
            batch_inference_av_consistency(
                f"sounds/{name}",
                "video",
                device="cpu",
                checkpoint=small_checkpoint,
                output_dir=name,
                cache="cache.sqlite",
                no_html=name == "two",
            )
    return folder


@pytest.fixture
def systems(evaluated_systems, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(evaluated_systems, tmp_path, dirs_exist_ok=True))
    return list(SYSTEMS)


def test_systems_are_compared_on_a_page(browser, systems):
    rows = compare_systems(systems, "compared", report_lang="en")
    browser.open(Path("compared/comparison.html"))
    assert browser.complaints == []
    assert texts(browser, "h1") == ["Comparison of systems"]
    assert texts(browser, "h2")[:2] == ["Leaderboard", "Similarities of pairs"]
    drawn = "c => c.querySelectorAll('.scatterlayer .trace, .boxlayer .trace').length"
    assert browser.run(f"[...document.querySelectorAll('.chart')].map({drawn})") == [1, 1, 1, 2]
    cells = "r => [...r.cells].map(c => c.textContent)"
    shown = browser.run(f"[...document.querySelectorAll('tr.row')].map({cells})")
    of_systems = [[r["system"], "4", f"{r['mean']:.4f}"] for r in rows[:3]]
    assert [row[:3] for row in shown[:3]] == [row[:3] for row in shown[3:6]] == of_systems
    assert [row[:3] for row in shown[6:9]] == [[r["system"], r["minus"], "4"] for r in rows[3:]]
    links = browser.run("[...document.querySelectorAll('tbody a')].map(a => decodeURIComponent(a.href))")
    pages = ["two" if row["system"] == "two" else "report.html" for row in rows[:3]]
    assert [Path(link).name for link in links[3:6]] == pages
    browser.run("document.querySelectorAll('.chart')[2].focus()")
    browser.press("ArrowRight")
    difference = rows[4]
    said = hover_text(browser).replace("−", "-")
    assert "<b>one- three" in said
    assert f"{difference['mean']:.4f} [{difference['low']:.4f}, {difference['high']:.4f}]" in said
    assert axe(browser) == []


def test_the_pairs_of_two_systems_are_listed_and_play(browser, systems):
    """The largest difference first; another two can be chosen, and a click on a point opens its pair."""
    compare_systems(systems, "compared", report_lang="en")
    with open("compared/comparison_pairs.csv", encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 4
    for first in (0, 4, 8):
        gaps = [abs(float(line["difference"])) for line in lines[first : first + 4]]
        assert gaps == sorted(gaps, reverse=True)
    browser.open(Path("compared/comparison.html"))
    of_table = (
        "[...document.querySelectorAll('tr.row')].slice(9).map(r => [...r.cells].map(c => c.textContent))"
    )
    for i in (0, 2):
        browser.run(
            f"(() => {{ const choice = document.querySelector('select'); choice.value = {i};"
            " choice.dispatchEvent(new Event('change')); })()"
        )
        expected = [
            [line["name"], *(f"{float(line[c]):.4f}" for c in ("score", "other_score", "difference"))]
            for line in lines[4 * i : 4 * i + 4]
        ]
        assert browser.run(of_table) == expected
    browser.run("document.querySelectorAll('.chart')[3].openPoint(1)")
    videos = "[...document.querySelectorAll('video')]"
    assert browser.wait_for(f"{videos}.length === 2 && {videos}.every(v => v.readyState > 0)")
    sources = browser.run("[...document.querySelectorAll('audio')].map(a => decodeURIComponent(a.src))")
    folders = [Path(urlparse(source).path).parent.name for source in sources]
    assert folders == [lines[8]["system"], lines[8]["minus"]]
    assert texts(browser, ".opened-pair a")[0] == f"{lines[9]['name']}.mp4"
    assert browser.complaints == []


def test_categories_of_systems_are_bars_and_a_table(browser, systems):
    for name in systems[:2]:
        path = Path(name, "pair_scores.csv")
        header, *lines = path.read_text(encoding="utf-8-sig").splitlines()
        categories = ["category", "<i>rain", "dogs", "dogs", ""]
        lines = [f'{line},"{of_line}"' for line, of_line in zip((header, *lines), categories, strict=True)]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    rows = compare_systems(systems, "compared", report_lang="en")
    browser.open(Path("compared/comparison.html"))
    assert browser.complaints == []
    assert "By category" in texts(browser, "h2")
    assert (
        browser.run("document.querySelectorAll('.chart')[2].querySelectorAll('.barlayer .trace').length") == 2
    )
    cells = "r => [...r.cells].map(c => c.textContent)"
    shown = browser.run(f"[...document.querySelectorAll('tr.row')].map({cells})")[6:]
    expected = sorted((row for row in rows if "category" in row), key=lambda row: row["category"])
    assert [row[:4] for row in shown[:4]] == [
        [row["category"], row["system"], str(row["pairs"]), f"{row['mean']:.4f}"] for row in expected
    ]
    of_all = [row for row in rows if "category_mean" in row]
    assert [row[1] for row in shown[4:6]] == [row["system"] for row in of_all]
    browser.run("document.querySelectorAll('.chart')[2].focus()")
    browser.press("ArrowRight")
    assert "dogs" in hover_text(browser)
    assert axe(browser) == []


def test_no_html_leaves_the_comparison_page_out(systems):
    compare_systems(systems, "compared")
    compare_systems(systems, "compared", no_html=True)
    assert sorted(os.listdir("compared")) == [".written.json", "comparison.csv", "comparison_pairs.csv"]


# Listen and look


@pytest.fixture(scope="module")
def with_windows(tmp_path_factory):
    """A folder with report.html over two pairs that have windows; and the results."""
    tmp_path = tmp_path_factory.mktemp("windows")
    folder = TESTS / "reference" / "protocols"
    for side, name in (("audio", "pattern_25fps_9s.flac"), ("video", "pattern_24fps_4s.mp4")):
        path = tmp_path / side / f"pattern{os.path.splitext(name)[1]}"
        path.parent.mkdir()
        shutil.copy(folder / "media" / name, path)
    write_video(tmp_path / "video" / "y.mp4", [picture(2 * i) for i in range(50)], fps=10)
    sound = np.concatenate([tone(2.5), np.zeros(3 * RATE, np.float32), tone(2)])
    write_audio(tmp_path / "audio" / "y.wav", sound)
    results = batch_inference_av_consistency(
        tmp_path / "audio",
        tmp_path / "video",
        *("cpu", 4, tmp_path / "out"),
        checkpoint=folder / "tiny.pth",
        report_lang="en",
        protocols=["imagebind", "javisscore"],
        num_workers=0,
    )
    return tmp_path / "out", results


def axe(browser) -> list[str]:
    """Name what axe-core finds wrong with the page."""
    if axe_core_python is None:
        skip("no axe-core-python")
    script = Path(axe_core_python.__file__).with_name("axe.min.js").read_text()
    browser.run(f"{script}; 0")
    found = browser.run("axe.run(document).then(found => found.violations.map(v => [v.id, v.nodes[0].html]))")
    return [f"{name}: {node}" for name, node in found]


def open_pair(browser, name: str) -> None:
    """Open the row of a pair, and wait for its players."""
    browser.run(
        "[...document.querySelectorAll('button.open')]"
        f".find(button => button.textContent === {json.dumps(name)}).click()"
    )
    browser.wait_for("document.querySelector('video').readyState > 0")


def test_each_pair_has_its_time_line(browser, with_windows):
    """The weakest window is marked; what is silent is hollow."""
    folder, results = with_windows
    browser.open(folder / "report.html")
    lines = browser.run(
        "[...document.querySelectorAll('tr.row svg.time')].map(line =>"
        " [line.closest('tr').cells[0].textContent,"
        " ...['rect', '.weakest', '.silent'].map(kind => line.querySelectorAll(kind).length),"
        " line.querySelector('.weakest title').textContent])"
    )
    found = {scores["name"]: scores for scores in results["pair_scores"]}
    for name, n_windows, n_weakest, n_silent, title in lines:
        scores, windows = found[name], dict(zip(found, results["windows"], strict=True))[name]
        assert (n_windows, n_weakest, n_silent) == (len(windows), 1, sum(w.is_silent for w in windows))
        assert title.endswith(f": {scores['weakest_score']:.4f}")
    assert sum(line[3] for line in lines) == 2
    assert len(lines) == 2


def test_a_pair_plays_with_the_judged_sound_or_its_own(browser, with_windows):
    folder, results = with_windows
    browser.open(folder / "report.html")
    open_pair(browser, "y")
    browser.run("document.querySelector('video').play()")
    both = "['video', 'audio'].map(tag => document.querySelector(tag))"
    assert browser.wait_for(f"{both}.every(media => media.currentTime > 0.2)")
    assert browser.run("document.querySelector('video').muted")
    shown = dict(zip(texts(browser, ".values dt"), texts(browser, ".values dd"), strict=True))
    (scores,) = (pair for pair in results["pair_scores"] if pair["name"] == "y")
    assert shown["similarity"] == f"{scores['similarity']:.4f}"
    assert shown["percentile"] == f"{100 * scores['percentile']:.1f} %"
    browser.run("document.querySelectorAll('fieldset input')[1].click()")
    assert browser.wait_for("document.querySelector('audio').paused")
    assert not browser.run("document.querySelector('video').muted")
    assert browser.complaints == []


def test_a_click_on_the_time_line_plays_from_the_weakest_window(browser, with_windows):
    folder, results = with_windows
    browser.open(folder / "report.html")
    (scores,) = (pair for pair in results["pair_scores"] if pair["name"] != "y")
    assert scores["weakest_start"] > 0.5
    browser.run(
        "[...document.querySelectorAll('tr.row')].find(row => row.cells[0].textContent !== 'y')"
        ".querySelector('button.time').click()"
    )
    both = "['video', 'audio'].map(tag => document.querySelector(tag))"
    at = scores["weakest_start"]
    assert browser.wait_for(f"{both}.every(media => media && media.currentTime > {at} && !media.paused)")
    assert browser.run("document.querySelector('video').currentTime") < at + 3
    label = next(text for text in texts(browser, ".window-list button") if text.startswith("weakest:"))
    assert label.endswith(f"{scores['weakest_score']:.4f}")


def test_the_best_other_match_plays_too(browser, with_windows):
    folder, results = with_windows
    browser.open(folder / "report.html")
    open_pair(browser, "y")
    similarity = results["similarity_matrix"].numpy()
    y = results["audio_names"].index("y")
    said = texts(browser, ".opened-pair p")
    for other in (similarity[y, 1 - y], similarity[1 - y, y]):
        (line,) = (text for text in said if f"{other:.4f}" in text)
        assert ("better" in line) == (other > similarity[y, y])
    browser.run("[...document.querySelectorAll('.opened-pair button')].at(-1).click()")
    assert browser.wait_for("document.querySelectorAll('video')[1]?.currentTime > 0.1")
    assert "y.mp4" in browser.run("document.querySelectorAll('video')[1].src")
    assert "pattern" in browser.run("document.querySelectorAll('audio')[1].src")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(browser, with_windows, dark):
    folder, _ = with_windows
    browser.open(folder / "report.html", dark=dark)
    open_pair(browser, "y")
    assert axe(browser) == []


def test_a_click_on_the_matrix_plays_the_two_files(browser, report):
    folder, results = report
    browser.open(folder / "report.html")
    point_at_cell(browser, 0, 2)
    browser.run("document.querySelectorAll('.chart')[1].openCell(0, 2)")
    expected = [results["video_sources"][2].path, results["audio_sources"][0].path]
    found = browser.run("[...document.querySelectorAll('video, audio')].map(media => media.src)")
    for address, path in zip(found, expected, strict=True):
        assert os.path.samefile(unquote_to_bytes(urlparse(address).path), path)
    similarity = f"{results['similarity_matrix'][0, 2]:.4f}"
    assert any(similarity in text for text in texts(browser, "[role=status]"))


def test_a_file_that_cannot_be_played_says_why(browser, pairs, small_checkpoint):
    for name in "ab":
        shutil.move(pairs / "video" / f"{name}.mp4", pairs / "video" / f"{name}.flv")
        write_video(pairs / "video" / f"{name}.flv", [picture(k) for k in range(20)], codec="flv")
    batch_inference_av_consistency(
        *(pairs / "audio", pairs / "video", "cpu"),
        checkpoint=small_checkpoint,
        output_dir=pairs / "out",
        report_lang="en",
    )
    (pairs / "audio" / "c.wav").unlink()
    browser.open(pairs / "out" / "report.html")
    for name, file in (("a", "a.flv"), ("c", "c.wav")):
        browser.run(
            f"[...document.querySelectorAll('button.open')].find(b => b.textContent === {name!r}).click()"
        )
        said = browser.wait_for("document.querySelector('.fault')?.textContent")
        assert said.startswith(f"{file} cannot be played here: it has moved, or this browser does not play")
        assert "--copy_media" in said
        browser.run("document.querySelector('button[aria-expanded=true]').click()")


def test_copies_play_from_a_moved_folder(browser, pairs, small_checkpoint):
    """Of formats that no browser plays, too; a file that cannot be copied says why."""
    for name in "ab":
        (pairs / "video" / f"{name}.mp4").unlink()
        write_video(pairs / "video" / f"{name}.flv", [picture(k) for k in range(20)], codec="flv")
    options = {"checkpoint": small_checkpoint, "output_dir": pairs / "out", "report_lang": "en"}
    arguments = pairs / "audio", pairs / "video", "cpu"
    batch_inference_av_consistency(*arguments, copy_media=True, **options)
    copies = {path: path.stat().st_mtime_ns for path in (pairs / "out" / "report_media").glob("*.m*")}
    assert sorted(path.suffix for path in copies) == [".m4a"] * 4 + [".mp4"] * 3  # two videos are equal
    earlier = "0" * 32 + ".mp4"
    (pairs / "out" / "report_media" / earlier).write_bytes(b"of an earlier run")
    with open(pairs / "out" / "report_media" / ".copies.txt", "a") as file:
        file.write(f"{earlier}\n")
    (pairs / "out" / "report_media" / ("1" * 32 + ".mp4")).write_bytes(b"the user's")
    batch_inference_av_consistency(*arguments, copy_media=True, **options)
    kept = {path: path.stat().st_mtime_ns for path in (pairs / "out" / "report_media").glob("*.m*")}
    assert kept.pop(pairs / "out" / "report_media" / ("1" * 32 + ".mp4"))
    assert kept == copies  # and not written again
    shutil.move(pairs / "out", pairs / "moved")
    shutil.rmtree(pairs / "audio")
    shutil.rmtree(pairs / "video")
    browser.open(pairs / "moved" / "report.html")
    open_pair(browser, "a")
    browser.run("document.querySelector('video').play()")
    both = "['video', 'audio'].map(tag => document.querySelector(tag))"
    assert browser.wait_for(f"{both}.every(media => media.currentTime > 0.2)")
    assert browser.complaints == []


def test_copies_that_are_not_asked_for_are_removed(pairs, small_checkpoint):
    options = {"checkpoint": small_checkpoint, "output_dir": pairs / "out"}
    for copy_media in (True, False):
        batch_inference_av_consistency(
            pairs / "audio", pairs / "video", "cpu", copy_media=copy_media, **options
        )
        assert (pairs / "out" / "report_media").exists() == copy_media


def test_a_copy_is_of_the_part_that_is_judged(tmp_path, small_checkpoint):
    """Of 4 s of a video that gets brighter each frame, the third; the copy begins there."""
    write_video(tmp_path / "x.mp4", [picture(k) for k in range(80)])
    write_audio(tmp_path / "x.wav", tone(4))
    rows = [
        {
            "id": i,
            "video": str(tmp_path / "x.mp4"),
            "audio": str(tmp_path / "x.wav"),
            "start": i,
            "end": i + 1,
        }
        for i in (0, 2)
    ]

    def players_of(copy_media: bool) -> list[list]:
        batch_inference_av_consistency(
            *(None, None, "cpu"), manifest=rows, checkpoint=small_checkpoint,
            output_dir=tmp_path / "out", copy_media=copy_media,
        )  # fmt: skip
        content = content_of(tmp_path / "out" / "report.html")
        part = next(part for part in content["parts"] if part.get("title") == "逐对查看")
        detail = next(d for row, d in zip(part["rows"], part["details"], strict=True) if row[0] == "2")
        return [content["players"][detail[modality]] for modality in ("video", "audio")]

    assert players_of(copy_media=False)[0] == ["x.mp4#t=2,3", "../x.mp4", 2, 3, None]
    (name, address, *of_part), (_, of_audio, *_) = players_of(copy_media=True)
    assert (name, of_part) == ("x.mp4#t=2,3", [0, None, None])
    with av.open(str(tmp_path / "out" / address)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 20
    brightness = [frame[-8:, -8:].mean() for frame in (frames[0], frames[-1])]
    assert brightness == pytest.approx([20 + 2 * 40, 20 + 2 * 59], abs=4)
    with av.open(str(tmp_path / "out" / of_audio)) as container:
        assert float(container.duration / av.time_base) == pytest.approx(1, abs=0.1)


def test_suspects_alone_are_left_by_the_filter(browser, page):
    results = made_up(300)
    browser.open(write(results, page))
    browser.run("document.querySelector('.controls input[type=checkbox]').click()")
    suspects = {pair["name"] for pair in results["pair_scores"] if pair["suspect"]}
    assert 0 < len(suspects) < 300
    browser.run("document.querySelectorAll('th button')[1].click()")  # by similarity, the lowest first
    browser.run("document.querySelectorAll('th button')[1].click()")  # the highest
    shown = texts(browser, "tr.row td:first-child")
    assert len(shown) > 10
    assert set(shown) <= suspects
    assert texts(browser, "[role=status]")[0] == f"{len(suspects)} of 300"


def test_a_link_opens_its_pair(browser, report):
    """Also one of a name that is no plain text, and one that is followed on the page."""
    folder, results = report
    names = [one_line(pair["name"]) for pair in results["pair_scores"]]
    browser.open(folder / "report.html")
    for name in (names[2], names[0]):
        browser.run(f"location.hash = 'pair=' + encodeURIComponent({json.dumps(name)})")
        opened = "[...document.querySelectorAll('button[aria-expanded=true]')].map(b => b.textContent)"
        browser.wait_for(f"{opened}.includes({json.dumps(name)})")
    browser.run("location.hash = 'pair=100%'")
    browser.wait_for("document.querySelector('[role=status]').textContent === 'nothing found: 100%'")
    assert browser.complaints == []


def test_thumbnails_are_the_same_from_the_cache_and_end_with_their_room(
    browser, pairs, small_checkpoint, monkeypatch
):
    monkeypatch.chdir(pairs)

    def shown(output_dir: str) -> list:
        batch_inference_av_consistency(
            *("audio", "video", "cpu"), checkpoint=small_checkpoint, output_dir=output_dir, cache="c.sqlite"
        )
        part = parts_of(Path(output_dir, "report.html"))["逐对查看"]
        column = [kind for _, kind in part["columns"]].index("thumbnails")
        return [row[column] for row in part["rows"]]

    first = shown("one")
    assert all(len(pictures) == 2 and all(pictures) for pictures in first)
    assert shown("two") == first
    monkeypatch.setattr(page_media, "MAX_THUMBNAIL_BYTES", sum(map(len, first[0])) + 1)
    assert shown("three") == [*first[:2], None, None]
    browser.open(Path("one/report.html"))
    sizes = browser.run(
        "[...document.querySelectorAll('.thumbnails img')].map(i => [i.naturalWidth, i.naturalHeight])"
    )
    assert sizes[:2] == [[3 * 81, 54], [3 * 96, 27]]
