"""Intervals, p-values of differences, and groups."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from conftest import picture, tone, write_audio, write_video
from scipy import stats
from test_metrics import measure

from batch_inference import batch_inference_av_consistency, main
from imagebind.evaluation.compare.auc import MIN_PAIRS
from imagebind.evaluation.compare.intervals import (
    digits_of,
    estimate_mean,
    holm,
    share_at_most,
    share_interval,
    t_quantile,
    t_tail,
    wilson_interval,
)
from imagebind.evaluation.inputs.groups import (
    find_groups,
    group_names,
    hint_at_groups,
    name_copies,
    number_groups,
)


def test_from_30_values_on_the_interval_is_that_of_the_percentiles():
    values = np.random.default_rng(0).gamma(2, size=60)
    interval = estimate_mean(values, seed=1).interval
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(5))
    assert interval == pytest.approx(list(expected.confidence_interval), rel=0.02)
    assert estimate_mean(values, seed=1).interval == interval != estimate_mean(values, seed=2).interval


def test_below_it_is_the_bootstrap_t():
    values = np.random.default_rng(0).gamma(2, size=12)
    rng, n = np.random.default_rng(7), len(values)
    t = []
    for _ in range(20_000):
        drawn = rng.choice(values, n)
        t.append((drawn.mean() - values.mean()) / (drawn.std(ddof=1) / n**0.5))
    error = values.std(ddof=1) / n**0.5
    expected = values.mean() - np.quantile(t, [0.975, 0.025]) * error
    assert estimate_mean(values, 0).interval == pytest.approx(expected.tolist(), rel=0.02)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_four_values_have_no_interval(n):
    found = estimate_mean(np.arange(n) / 10, 0)
    assert (found.interval, found.p_value) == (None, None)
    assert found.mean == pytest.approx((n - 1) / 20)


def test_values_that_are_all_equal_are_sure_and_one_other_among_them_is_not():
    assert estimate_mean(np.full(8, 0.5), 0).interval == [0.5, 0.5]
    assert estimate_mean(np.zeros(8), 0).p_value == 1
    assert estimate_mean(np.full(8, 0.5), 0).p_value < 0.001
    assert estimate_mean(np.array([0, 0, 0, 0, 1.0]), 0).interval is None


@pytest.mark.parametrize("n", [6, 12, 40])
def test_a_p_value_is_below_5_percent_where_the_interval_has_no_zero(n):
    rng = np.random.default_rng(n)
    for _ in range(60):
        found = estimate_mean(rng.standard_normal(n) + 0.5, 0)
        if abs(found.p_value - 0.05) > 0.002:
            low, high = found.interval
            assert (found.p_value < 0.05) == (not low <= 0 <= high)


def test_groups_are_resampled_whole():
    """Twenty prompts of five clips that are all alike say no more than twenty clips."""
    prompts = np.random.default_rng(0).standard_normal(20)
    groups = np.repeat(np.arange(20), 5)
    assert estimate_mean(np.repeat(prompts, 5), 0, groups).interval == pytest.approx(
        estimate_mean(prompts, 0).interval, rel=0.05
    )
    alone = estimate_mean(np.repeat(prompts, 5), 0).interval
    assert alone[1] - alone[0] < np.ptp(estimate_mean(prompts, 0).interval) * 0.6
    three = estimate_mean(np.arange(12.0), 0, np.arange(12) // 4)
    assert three.interval is None


SIZES = np.array([80, 80, 40, 30, *[5] * 30])  # of unequal groups


def test_unequal_groups_are_left_out_one_by_one():
    groups, n = np.repeat(np.arange(len(SIZES)), SIZES), len(SIZES)
    values = np.random.default_rng(0).standard_normal(n)[groups] + 0.3
    without = [values[groups != group].mean() for group in range(n)]
    weights = SIZES / SIZES.sum()
    error = np.sqrt(np.square(np.array(without) - values.mean()).sum())
    df = SIZES.sum() ** 2 / np.square(SIZES).sum() - 2
    found = estimate_mean(values, 0, groups)
    half = stats.t.ppf(0.975, df) * error
    assert found.interval == pytest.approx([values.mean() - half, values.mean() + half], rel=1e-9)
    assert found.p_value == pytest.approx(2 * stats.t.sf(values.mean() / error, df), rel=1e-6)
    assert max(weights) > 0.2


def test_the_t_distribution_is_that_of_scipy():
    for df in (3, 3.7, 12.5, 100, 1e5):
        assert t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)
        for t in (0, 0.3, 2, 9, 40):
            assert t_tail(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-6, abs=1e-300)


def test_a_share_is_at_most_what_a_binomial_says():
    for k, n in ((0, 552), (1, 552), (7, 1000), (100, 20_000), (3000, 20_000)):
        assert share_at_most(k, n) == pytest.approx(stats.beta.ppf(0.95, k + 1, n - k), rel=0.01)
    assert share_at_most(4, 4) == 1


def test_p_values_are_no_smaller_than_the_resamples_tell():
    values = np.random.default_rng(0).standard_normal(50_000) + 1
    assert estimate_mean(values, 0).p_value == pytest.approx(2 / 2001)


def test_names_of_copies_are_told_apart_from_groups():
    assert name_copies(["a", None, None, None], [None, None, 1, None], ["b", "a", "a", "c"]) == [
        *("a", "a (2)", "a (2)", None)
    ]


def test_the_interval_of_the_auc_is_that_of_resampled_pairs():
    """Pairs are drawn with their rows and columns; a mismatch of two counts as often as both are drawn."""
    rng, n = np.random.default_rng(0), 150
    meaning = 0.2 * rng.standard_normal((n, 16))
    audio, video = (  # files that resemble everything, on both sides
        (meaning + rng.standard_normal((n, 16)) + rng.exponential(1, (n, 1))).astype(np.float32)
        for _ in range(2)
    )
    case = measure(audio, video, [(i, i) for i in range(n)])
    cosines, aucs = case.cosines, []
    for _ in range(400):
        drawn = rng.integers(0, n, n)
        others = cosines[np.ix_(drawn, drawn)][drawn[:, None] != drawn]
        u = stats.mannwhitneyu(cosines[drawn, drawn], others).statistic
        aucs.append(u / (n * len(others)))
    low, high = case.metrics["auc_interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.std(aucs), rel=0.15)
    assert low < case.metrics["auc"] < high


def test_wilson_is_that_of_scipy():
    for hits, n in ((0, 4), (3, 7), (24, 24), (50, 1000)):
        expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson_interval(hits / n, n) == pytest.approx([expected.low, expected.high], abs=1e-6)
        assert share_interval(np.arange(n) < hits) == wilson_interval(hits / n, n)


def test_a_share_over_groups_counts_them():
    hits = np.repeat([1.0, 0, 1, 1, 0, 1], 10)  # ten clips of each of six prompts
    groups = np.repeat(np.arange(6), 10)
    expected = wilson_interval(4 / 6, 5)  # the variance over groups is that of five or six
    assert share_interval(hits, groups) == pytest.approx(expected, abs=0.04)
    assert share_interval(np.ones(60), groups) == pytest.approx(wilson_interval(1, 6), abs=0.05)
    assert share_interval(hits[:30], groups[:30]) is None  # of three groups


def test_one_hit_more_makes_no_interval_jump():
    """Where all groups are alike their variance is 0, and says nothing of how alike pairs of a group are."""
    groups = np.repeat(np.arange(20), 5)
    low = [share_interval(np.arange(100) < n, groups)[0] for n in range(95, 101)]
    assert np.diff(low).min() > -0.01


def test_an_interval_ends_where_a_cosine_does():
    values = np.array([0.5, 0.95, 0.99, 1.0])
    assert estimate_mean(values, 0).interval[1] > 1
    assert estimate_mean(values, 0, most=1).interval[1] == 1


def test_few_groups_give_the_auc_no_interval():
    audio, video = np.random.default_rng(0).standard_normal((2, 120, 8))
    pairs = [(i, i) for i in range(120)]
    of_few, of_many = (measure(audio, video, pairs, groups=np.arange(120) % n).metrics for n in (9, 10))
    assert of_few["auc_interval"] is None
    assert of_many["auc_interval"] is not None


def test_the_auc_has_an_interval_from_100_pairs_on():
    rng = np.random.default_rng(0)
    for n in (MIN_PAIRS - 1, MIN_PAIRS):
        audio = rng.standard_normal((n, 32)).astype(np.float32)
        video = (audio + 2 * rng.standard_normal((n, 32))).astype(np.float32)
        metrics = measure(audio, video, [(i, i) for i in range(n)]).metrics
        assert (metrics["auc_interval"] is None) == (n < MIN_PAIRS)
    low, high = metrics["auc_interval"]
    assert low < metrics["auc"] < high
    assert 0.01 < high - low < 0.2
    groups = np.arange(n) // 10
    grouped = measure(audio, video, [(i, i) for i in range(n)], groups=groups).metrics
    assert grouped["auc"] == metrics["auc"]
    assert grouped["auc_interval"] != metrics["auc_interval"]
    assert grouped["groups"] == 10


def test_holm_is_that_of_a_plain_count():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.random(rng.integers(1, 7)).round(2).tolist()
        corrected = holm(p_values)
        for alpha in (0.01, 0.05, 0.2, 0.5):
            order, told = sorted(range(len(p_values)), key=p_values.__getitem__), set()
            for step, i in enumerate(order):
                if p_values[i] > alpha / (len(p_values) - step):
                    break
                told.add(i)
            assert {i for i, p in enumerate(corrected) if p <= alpha} == told


def test_an_interval_is_shown_in_the_digits_it_deserves():
    assert [digits_of([0, width]) for width in (2, 0.2, 0.19, 0.002, 1e-9, 0)] == [2, 2, 3, 4, 6, 4]


# Groups


def test_names_are_grouped_by_what_the_first_parentheses_match(caplog):
    assert group_names(["dog_0", "dog_1", "cat_0", "x"], r"(.+)_\d") == ["dog", "dog", "cat", None]
    assert "group_by= does not fit 1 names; each is its own group: x" in caplog.text
    assert number_groups(["a", None, "a", None, "b"]) == [0, 1, 0, 3, 4]


@pytest.mark.parametrize("expression", ["(", "x", "(?:x)", "*"])
def test_what_is_no_grouping_is_refused_in_one_line(expression, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--video_paths", "x.mp4", f"--group_by={expression}"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: argument --group_by: {expression}: ")


@pytest.mark.parametrize(
    ("names", "is_hinted"),
    [
        (["dog_0", "dog_1", "cat_0", "cat_1"], True),
        (["clip_0", "clip_1", "clip_2", "clip_3"], False),
        (["0001", "0002", "0003"], False),
        (["a", "b", "c_1", "c_2", "d", "e"], False),
        (["dog_0", "cat_1", "bird_7"], False),
    ],
)
def test_names_that_look_grouped_are_hinted_at(names, is_hinted, caplog):
    caplog.set_level("INFO")
    hint_at_groups(names)
    assert ("names look grouped" in caplog.text) == is_hinted
    if is_hinted:
        expression = re.search("group_by='(.*?)'", caplog.text)[1]
        assert None not in group_names(names, expression)


def test_captions_name_groups_and_an_expression_wins(caplog):
    assert find_groups(["a_0", "b_0"], None, ["g", None]) == ["g", None]
    assert find_groups(["a_0", "b_0"], r"(.)_", ["g", None]) == ["a", "b"]
    assert find_groups(["a", "b"], None, [None, None]) is None


def test_a_group_column_makes_intervals_over_groups(tmp_path, small_checkpoint):
    for i in range(6):
        write_audio(tmp_path / "audio" / f"{i}.wav", tone(1, 300 + 100 * i))
        write_video(tmp_path / "video" / f"{i}.mp4", [picture(k + 5 * i) for k in range(8)])
    lines = [f"{i},text {i},{'dog' if i < 3 else ''}\n" for i in range(6)]
    (tmp_path / "c.csv").write_text("name,caption,group\n" + "".join(lines))
    results = batch_inference_av_consistency(
        tmp_path / "audio",
        tmp_path / "video",
        "cpu",
        output_dir=tmp_path / "out",
        checkpoint=small_checkpoint,
        captions=tmp_path / "c.csv",
        num_workers=0,
    )
    values = np.array(results["metrics"]["paired_similarities"])
    expected = estimate_mean(values, 0, np.array([0, 0, 0, 1, 2, 3])).interval
    assert results["metrics"]["paired_similarity_interval"] == expected
    assert results["metrics"]["groups"] == 4
    assert results["metrics"]["text_audio"]["groups"] == 4
    assert [pair["group"] for pair in results["pair_scores"]] == ["dog"] * 3 + [None] * 3
    assert '"dog"' in (tmp_path / "out" / "pair_scores.csv").read_text(encoding="utf-8-sig")
    assert "分组: 4" in (tmp_path / "out" / "consistency_report.txt").read_text()


def test_one_large_group_among_small_ones_gives_no_interval():
    groups = np.repeat(np.arange(4), (40, 5, 3, 2))
    values = np.random.default_rng(0).standard_normal(50)
    assert estimate_mean(values, 0, groups).interval is None
    assert share_interval((values > 0).astype(float), groups) is None


def test_copies_of_a_pair_are_one_group(pairs, small_checkpoint, monkeypatch):
    monkeypatch.chdir(pairs)
    for name in "ab":
        for i in range(3):
            shutil.copy(pairs / "audio" / f"{name}.wav", pairs / "audio" / f"{name}{i}.wav")
            shutil.copy(pairs / "video" / f"{name}.mp4", pairs / "video" / f"{name}{i}.mp4")
    options = {"device": "cpu", "checkpoint": small_checkpoint, "num_workers": 0}
    metrics = batch_inference_av_consistency("audio", "video", **options)["metrics"]
    assert (metrics["counts"]["pairs"], metrics["groups"]) == (10, 4)
    assert metrics["paired_similarity_interval"] is None  # 4, 4, 1 and 1 say no more than three
