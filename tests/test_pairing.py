"""Which sound belongs to which video."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from batch_inference import main
from imagebind.evaluation.inputs.files import MediaFiles
from imagebind.evaluation.inputs.pairing import Pairing, pair_files, pair_with_own_sound, report_pairing
from imagebind.sources import Source


def listed(side: str, *paths: str) -> MediaFiles:
    return MediaFiles(tuple(map(Source, paths)))


def found(side: str, *keys: str) -> MediaFiles:
    return MediaFiles(tuple(Source(f"{side}s/{key}") for key in keys), f"{side}s")


def expected(rule: str, pairs: Sequence[tuple[str, str]], *unmatched: Sequence[str]) -> Pairing:
    """A pairing of whole files, by their paths."""
    of_pairs = tuple((Source(sound), Source(video)) for sound, video in pairs)
    return Pairing(rule, of_pairs, *(tuple(map(Source, paths)) for paths in unmatched))


def paths_of(pairs: Sequence[tuple[Source, Source]]) -> tuple[tuple[str, str], ...]:
    return tuple((sound.path, video.path) for sound, video in pairs)


def test_files_pair_by_stem_in_the_order_of_the_sounds():
    audio = listed("audio", "x/b.wav", "x/a.mp3", "x/only.wav")
    video = listed("video", "y/a.mp4", "y/other.mp4", "z/b.mkv")
    assert pair_files(audio, video) == expected(
        "stem", (("x/b.wav", "z/b.mkv"), ("x/a.mp3", "y/a.mp4")), ("x/only.wav",), ("y/other.mp4",)
    )


def test_a_stem_keeps_inner_dots():
    pairing = pair_files(listed("audio", "clip.v1.wav", "clip.v2.wav"), listed("video", "clip.v2.mp4"))
    assert paths_of(pairing.pairs) == (("clip.v2.wav", "clip.v2.mp4"),)


def test_stems_that_occur_twice_pair_by_the_path_below_the_directory():
    audio = found("audio", "cat/1.wav", "dog/1.wav", "dog/2.wav", "fox/1.wav")
    video = found("video", "dog/1.mp4", "cat/1.mp4", "else/2.mp4")
    pairing = pair_files(audio, video)
    assert paths_of(pairing.pairs) == (
        ("audios/cat/1.wav", "videos/cat/1.mp4"),
        ("audios/dog/1.wav", "videos/dog/1.mp4"),
        ("audios/dog/2.wav", "videos/else/2.mp4"),
    )
    assert pairing.unmatched_audio == (Source("audios/fox/1.wav"),)
    assert pairing.ambiguous == ()


def test_what_stays_ambiguous_is_not_paired_and_named():
    audio = found("audio", "a.mp3", "a.wav", "b.wav", "p/c.wav", "q/c.wav")
    video = found("video", "a.mp4", "b.mp4", "r/c.mp4")
    pairing = pair_files(audio, video)
    assert paths_of(pairing.pairs) == (("audios/b.wav", "videos/b.mp4"),)
    assert {source.path for source in pairing.ambiguous} == {
        "audios/a.mp3",
        "audios/a.wav",
        "videos/a.mp4",
        "audios/p/c.wav",
        "audios/q/c.wav",
        "videos/r/c.mp4",
    }
    assert set(pairing.unmatched_audio + pairing.unmatched_video) == set(pairing.ambiguous)


def test_lists_pair_by_the_path_below_their_common_directory():
    audio = listed("audio", "/x/cat/audio.wav", "/x/dog/audio.wav")
    video = listed("video", "/y/z/dog/audio.mp4", "/y/z/cat/audio.mp4")
    assert paths_of(pair_files(audio, video).pairs) == (
        ("/x/cat/audio.wav", "/y/z/cat/audio.mp4"),
        ("/x/dog/audio.wav", "/y/z/dog/audio.mp4"),
    )


@pytest.mark.parametrize(
    ("audio", "video", "bases"),
    [
        ("dog_0 dog_1 cat_0 cat_1", "dog cat", "dog dog cat cat"),  # seeds
        ("dog-seed1 dog-seed12 cat-seed1", "dog cat", "dog dog cat"),
        ("dog.0 cat.0", "dog cat", "dog cat"),
        ("1_0 1_1 2_0", "1 2", "1 1 2"),
        ("dog_1_0 dog_1_1 dog_0", "dog dog_1", "dog_1 dog_1 dog"),  # the longest
        ("dog_gen cat_gen", "dog cat", "dog cat"),  # one text
        ("x/dog_0 y/dog_0", "x/dog y/dog", "x/dog y/dog"),
        ("dog_0 dog_1", "dog cat", "dog dog"),
        (" ".join(f"dog_{i}" for i in range(19)) + " bird_0", "dog", "dog " * 19),  # one has no partner
        ("dog_bark cat_meow", "dog cat", ""),  # words
        ("dog_a1 cat_b1", "dog cat", ""),
        ("dog1 cat1", "dog cat", ""),  # nothing before it
        ("dog_0 dog_1 bird_0 bird_1", "dog cat", ""),  # of others
        ("0_dog 0_cat", "dog cat", ""),
        ("dog_0 dog_1 cat", "dog cat", "  cat"),  # a name that both have
    ],
)
@pytest.mark.parametrize("suffixed", ["audio", "video"])
def test_names_with_a_suffix_pair_with_those_without(audio, video, bases, suffixed):
    files = {suffixed: audio.split(), ({"audio", "video"} - {suffixed}).pop(): video.split()}
    given = [
        found(modality, *(f"{name}{suffix}" for name in files[modality]))
        for modality, suffix in (("audio", ".wav"), ("video", ".mp4"))
    ]
    pairing = pair_files(*given)
    keys = [[given[side].key(pair[side]) for side in pairing.sides] for pair in pairing.pairs]
    if bases.strip() == "cat":
        assert pairing.rule == "stem"
        assert keys == [["cat", "cat"]]
        return
    expected = dict(zip(audio.split(), bases.split(), strict=False))
    assert dict(keys) == expected
    assert pairing.rule == ("suffix" if bases else "none")
    n_unmatched = len(pairing.unmatched_audio) + len(pairing.unmatched_video)
    assert n_unmatched == len(set(audio.split()) - set(expected)) + len(
        set(video.split()) - set(expected.values())
    )


def test_lists_without_a_common_stem_pair_by_position():
    audio, video = listed("audio", "audio1.wav", "audio2.wav"), listed("video", "video1.mp4", "video2.mp4")
    assert pair_files(audio, video) == expected(
        "position", (("audio1.wav", "video1.mp4"), ("audio2.wav", "video2.mp4"))
    )


def test_names_that_repeat_on_one_side_alone_do_not_rule_out_positions():
    audio = listed("audio", "x/a.wav", "y/a.wav", "z/a.wav")
    video = listed("video", "1.mp4", "2.mp4", "3.mp4")
    in_order = tuple(zip(audio.listed, video.listed, strict=True))
    assert pair_files(audio, video) == Pairing("position", in_order)


def test_a_sound_listed_twice_keeps_its_places_by_position():
    audio, video = listed("audio", "s.wav", "s.wav"), listed("video", "v.mp4", "w.mp4")
    assert paths_of(pair_files(audio, video).pairs) == (("s.wav", "v.mp4"), ("s.wav", "w.mp4"))


def test_a_pair_listed_twice_is_one_pair():
    pairing = pair_files(listed("audio", "a.wav", "a.wav"), listed("video", "a.mp4", "a.mp4"))
    assert pairing == expected("stem", (("a.wav", "a.mp4"),))


@pytest.mark.parametrize(
    ("audio", "video"),
    [
        (listed("audio", "a1.wav", "a2.wav"), listed("video", "v1.mp4")),
        (found("audio", "a1.wav"), listed("video", "v1.mp4")),
        (found("audio", "a1.wav"), found("video", "v1.mp4")),
    ],
)
def test_without_a_common_stem_other_inputs_do_not_pair(audio, video):
    assert pair_files(audio, video) == Pairing("none", (), audio.listed, video.listed)


def test_one_common_stem_rules_out_positions():
    pairing = pair_files(listed("audio", "a.wav", "b.wav"), listed("video", "c.mp4", "a.mp4"))
    assert pairing == expected("stem", (("a.wav", "a.mp4"),), ("b.wav",), ("c.mp4",))


def test_one_name_in_two_spellings_of_unicode_pairs():
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    pairing = pair_files(found("audio", f"{composed}.wav"), found("video", f"{decomposed}.mp4"))
    assert len(pairing.pairs) == 1


def test_a_video_can_stand_on_both_sides():
    pairing = pair_files(listed("audio", "a.mp4", "b.mp4"), listed("video", "a.mp4", "b.mp4"))
    assert pairing == expected("stem", (("a.mp4", "a.mp4"), ("b.mp4", "b.mp4")))


def test_a_videos_own_sound_is_its_partner():
    video = listed("video", "a.mp4", "b.mp4", "a.mp4")
    assert pair_with_own_sound(video) == expected("file", (("a.mp4", "a.mp4"), ("b.mp4", "b.mp4")))


@pytest.mark.parametrize(
    ("audio", "video", "said"),
    [
        (
            found("audio", "a.mp3", "a.wav", "b.wav", "x.wav"),
            found("video", "a.mp4", "b.mp4", "y.mp4", "z.mp4"),
            [
                "not paired, as several files share the name: audios/a.mp3, audios/a.wav, videos/a.mp4",
                "1 audio files without a partner: audios/x.wav",
                "2 video files without a partner: videos/y.mp4, videos/z.mp4",
                "4 audio files, 4 video files, 1 pairs",
            ],
        ),
        (
            listed("audio", "a.wav", "b.wav"),
            listed("video", "b.mp4", "a.mp4"),
            ["2 audio files, 2 video files, 2 pairs"],
        ),
        (
            listed("audio", "a.wav", "b.wav"),
            listed("video", "1.mp4", "2.mp4"),
            [
                "no file name is on both sides; the two lists are paired by position",
                "2 audio files, 2 video files, 2 pairs",
            ],
        ),
        (
            listed("audio", "a.wav"),
            listed("video", "1.mp4", "2.mp4"),
            [
                "no file name is on both sides; all files are compared, without knowing the pairs",
                "1 audio files, 2 video files, 0 pairs",
            ],
        ),
    ],
    ids=["stem", "all", "position", "none"],
)
def test_how_files_were_paired_is_said_and_counted(audio, video, said, caplog):
    caplog.set_level("INFO")
    report_pairing(audio, video, pair_files(audio, video))
    assert caplog.messages == said


# No pair at all


@pytest.mark.parametrize(
    ("audio", "video", "said"),
    [
        (
            ["A", "b2"],
            ["a", "c"],
            "(A, b2 and a, c); A and a differ in upper and lower case alone; name the pairs",
        ),
        (["x1", "x2"], ["x1_gen", "x2_old"], "; x1 and x1_gen differ by the suffix _gen; name the pairs"),
        (["audio-1", "audio-2"], ["1", "2"], "; audio-1 and 1 differ by the prefix audio-; name the pairs"),
        (["1", "2", "3", "4"], ["10", "20"], "(1, 2, 3, ... and 10, 20); name the pairs"),
        (["a_b", "2", "3"], ["x"], "(2, 3, a_b and x); name the pairs"),
    ],
)
def test_names_that_match_nowhere_end_the_run_with_a_hint(pairs, capsys, monkeypatch, audio, video, said):
    """Before the model runs; two directories do not pair by position."""
    monkeypatch.chdir(pairs)
    for side, names, suffix in (("a", audio, "wav"), ("v", video, "mp4")):
        for name in names:
            (pairs / side).mkdir(exist_ok=True)
            (pairs / side / f"{name}.{suffix}").touch()
    for more in ([], ["--strict"]):
        assert main(["--audio_dir", "a", "--video_dir", "v", "--checkpoint", "none", *more]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: no file name is on both sides (")
        assert said in line
        assert line.endswith("or compare all with --retrieval_mode")


def test_seeds_of_a_video_are_pairs_of_one_group(pairs, small_checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(pairs)
    for name in "abcd":
        sound = Path(f"audio/{name}.wav")
        shutil.copy(sound, f"audio/{name}_seed1.wav")
        sound.rename(f"audio/{name}_seed0.wav")
    argv = ["--checkpoint", str(small_checkpoint), "--device", "cpu", "--num_workers", "0", "--no_html"]
    assert main(["--audio_dir", "audio", "--video_dir", "video", "--report_lang", "en", *argv]) == 0
    out, err = capsys.readouterr()
    line = (
        "8 audio files are named as 4 video files with a suffix (_seed0, _seed1), 2 each, and are paired so"
    )
    assert f"{line}; those of one are a group" in err.splitlines()
    assert "Pairs by: file name and suffix" in out
    metrics = json.loads(Path("outputs/metrics.json").read_text())
    assert (metrics["pairing_rule"], metrics["groups"]) == ("suffix", 4)
    Path("captions.csv").write_text("name,caption\n" + "".join(f"{name},note {name}\n" for name in "abcd"))
    assert main(["--audio_dir", "audio", "--video_dir", "video", "--captions", "captions.csv", *argv]) == 0
    found = json.loads(Path("outputs/metrics.json").read_text())
    assert found["groups"] == 4
    assert found["text_video"]["groups"] == 4
