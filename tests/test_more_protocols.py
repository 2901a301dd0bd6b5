"""The public scores mova, reward and t2av: recorded inputs and numbers, and plain ways to the same inputs."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchaudio
from conftest import RATE, TESTS, picture, skip, tone, write_audio, write_movie, write_video
from test_protocols import CHECKPOINT, MEDIA, SUFFIXES, by_filter
from torchvision.transforms import v2

from batch_inference import OptionError, batch_inference_av_consistency, main
from imagebind import data
from imagebind.data.features import (
    AUDIO,
    AUDIO_EXTRACTED,
    AUDIO_REWARD,
    AUDIO_WINDOWS,
    VIDEO_REWARD,
    mova_audio,
    mova_video,
)
from imagebind.data.sounds import EXTRACTED, RELEASED, REWARD, mova_sound, read_sounds
from imagebind.data.video import DroppedError, crop_clips, read_clips
from imagebind.reading.loader import Reading, read_file
from imagebind.sources import Source

FOLDER = TESTS / "reference" / "protocols"
INPUTS = np.load(FOLDER / "protocol_inputs_2.npz")
SCORES = json.loads((FOLDER / "protocol_scores_2.json").read_text())
ALONE = [name for name in SCORES if "+" not in name]
SECONDS = (7.9, 4.9, 3.9)
RECIPES = (RELEASED, mova_sound(0.001), REWARD, EXTRACTED)
TEXTS = ("reward_text_audio", "reward_text_video", "reward_all")
RAW = {"codec": "ffv1", "pix_fmt": "bgr0"}  # decodes to what was given


def files_of(name: str) -> tuple[Path, Path]:
    """Return the sound and the video of a record."""
    record = SCORES[name]
    stems = {"audio": record.get("audio", name), "video": record.get("video", name)}
    if name.endswith("+own"):
        return (find(stems["video"], "video"),) * 2
    return tuple(find(stems[modality], modality) for modality in ("audio", "video"))


def find(stem: str, modality: str) -> Path:
    return next(path for path in MEDIA.iterdir() if path.stem == stem and path.suffix in SUFFIXES[modality])


# Recorded inputs


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("name", SCORES)
def test_movas_inputs_are_the_recorded_ones(name, seconds):
    sound, video = files_of(name)
    (heard,) = read_sounds(sound, [mova_sound(seconds)])
    (seen,) = read_clips(video, [mova_video(seconds).clips])
    if SCORES[name][f"mova_{seconds}"] is None:
        assert SCORES[name][f"mova_{seconds}_error"].endswith("Audio is too short")
        assert isinstance(heard, DroppedError)
        return
    clips = crop_clips(seen.frames, seen.crops).unflatten(0, (-1, 3))  # (clips, crops, 3, 2, 224, 224)
    frames = torch.cat([clips[:, :, :, 0], clips[-1:, :, :, 1]]).transpose(0, 1)
    key = f"{name}:mova_{seconds}"
    frames = frames[:, : INPUTS[key].shape[1]]  # a single frame is taken twice
    np.testing.assert_array_equal(frames[..., ::8, ::8], INPUTS[key])
    np.testing.assert_allclose(frames.mean((2, 3, 4)), INPUTS[f"{key}:mean"], atol=3e-7)
    check_mels(heard, f"{name}:mova_audio")


@pytest.mark.parametrize("name", ALONE)
def test_the_rewards_inputs_are_the_recorded_ones(name):
    sound, video = files_of(name)
    (heard,), (seen,) = read_sounds(sound, [REWARD]), read_clips(video, [VIDEO_REWARD.clips])
    clips = crop_clips(seen.frames, seen.crops)
    # Torch interpolates with another rounding in one thread than in several, of which the record is, and in
    # other versions than that of the record.
    atol = 5e-7 if torch.__version__.startswith("2.11.") else 1e-4
    np.testing.assert_allclose(clips[..., ::8, ::8], INPUTS[f"{name}:rl"], rtol=0, atol=atol)
    np.testing.assert_allclose(clips.mean((1, 3, 4)), INPUTS[f"{name}:rl:mean"], atol=1e-6)
    check_mels(heard, f"{name}:rl_audio")
    tokens = data.load_and_transform_text([SCORES[name]["caption"]], "cpu")
    np.testing.assert_array_equal(tokens[0], INPUTS[f"{name}:text"])


def check_mels(heard: data.AudioInput, key: str) -> None:
    """But for bins with almost no energy, which are the rounding of this processor's Fourier transform."""
    np.testing.assert_allclose(heard.mels[..., ::8, ::8], INPUTS[key], atol=1e-3)
    np.testing.assert_allclose(heard.mels.mean((1, 2, 3)), INPUTS[f"{key}:mean"].reshape(-1), atol=1e-6)


# Recorded scores


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A manifest of all pairs of the record: with captions, and in two categories."""
    path = tmp_path_factory.mktemp("recorded") / "pairs.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "audio", "video", "caption", "category"])
        for i, name in enumerate(SCORES):
            sound, video = files_of(name)
            own = sound == video
            caption = SCORES[name].get("caption", "")
            rows.writerow([name, "" if own else sound, video, caption, "ab"[i % 3 == 0]])
    return path


def evaluate(manifest: Path, out: Path, *argv: str) -> tuple[dict, dict[str, dict[str, str]]]:
    """Run the command line; return the scores of metrics.json, and the lines of pair_scores.csv by name."""
    options = ("--device", "cpu", "--checkpoint", str(CHECKPOINT), "--num_workers", "0", "--no_html")
    assert main(["--manifest", str(manifest), "--output_dir", str(out), *options, *argv]) == 0
    with open(out / "pair_scores.csv", encoding="utf-8-sig", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    return json.loads((out / "metrics.json").read_text())["scores"], rows


def score_of(row: dict[str, str], column: str) -> float | None:
    return float(row[column]) if row[column] else None


@pytest.fixture(scope="module")
def ran(recorded, tmp_path_factory) -> Path:
    """The outputs of a run of all that are of clips alone."""
    out = tmp_path_factory.mktemp("ran") / "outputs"
    evaluate(recorded, out, "--protocol", "imagebind", "mova", "reward", "t2av")
    return out


@pytest.mark.parametrize("seconds", SECONDS)
def test_scores_are_the_recorded_ones(recorded, ran, tmp_path, capsys, seconds):
    shutil.copy(ran / "embeddings.sqlite", tmp_path / "known.sqlite")
    argv = ["--cache", str(tmp_path / "known.sqlite"), "--protocol", "imagebind", "mova", "reward", "t2av"]
    argv += [] if seconds == 7.9 else ["--protocol_seconds", str(seconds)]
    scores, rows = evaluate(recorded, tmp_path / "outputs", *argv)
    err, found = capsys.readouterr().err, scores["mova"]
    values = {}
    for name, record in SCORES.items():
        values[name] = record[f"mova_{seconds}"]
        assert score_of(rows[name], "mova") == pytest.approx(values[name], abs=1e-6)
        if name in ALONE:
            assert score_of(rows[name], "reward") == pytest.approx(record["rl"], abs=1e-6)
            for column, key in zip(TEXTS, ("rl_text_audio", "rl_text_video", "rl_all"), strict=True):
                expected = pytest.approx(record[key], abs=1e-6) if record["caption"] else None
                assert score_of(rows[name], column) == expected
    dropped = {pair["name"]: pair["reason"] for pair in found["dropped"]}
    assert dropped == {
        name: f"mova needs {seconds} s of sound, it has {length} s"
        for name, length in (("pattern_24fps_4s", 4), ("short_10fps_1.5s", 1.5))
        if values[name] is None
    }
    means = [
        np.mean([v for i, v in enumerate(values.values()) if (i % 3 == 0) is first and v is not None])
        for first in (True, False)
    ]
    assert found["mean_of_categories"] == pytest.approx(np.mean(means), abs=1e-6)
    assert found["mean"] == pytest.approx(np.mean([v for v in values.values() if v is not None]), abs=1e-6)
    padded = {7.9: ["pattern_24fps_4s+zoom_2997_10s", "short_10fps_1.5s+pattern_25fps_9s"], 3.9: []}
    padded = padded.get(seconds, ["short_10fps_1.5s+pattern_25fps_9s"])
    assert found["padded"] == len(padded)
    assert not padded or f"with their last sampled frame: {', '.join(padded)}" in err
    assert scores["reward"]["with_text"]["reward_all"]["n_scored"] == 4
    assert "padded" not in scores["reward"]


def test_what_a_video_is_padded_with_is_known_from_the_cache_and_said_in_the_report(ran, recorded, tmp_path):
    first = json.loads((ran / "metrics.json").read_text())["scores"]
    scores, _ = evaluate(recorded, ran, "--protocol", "mova", "imagebind", "reward", "t2av")
    assert {name: score["mean"] for name, score in scores.items()} == pytest.approx(
        {name: score["mean"] for name, score in first.items()}, abs=1e-12
    )
    assert scores["mova"]["padded"] == first["mova"]["padded"] == 2
    report = (ran / "consistency_report.txt").read_text()
    assert "补帧的视频 2 个" in report
    assert "mova (7.9 s)" in report
    with open(ran / "pair_scores.csv", encoding="utf-8-sig", newline="") as file:
        flags = {row["video_flags"] for row in csv.DictReader(file)}
    assert flags == {"", "still"}  # it samples a single frame of the shortest


# The same by plain ways


def plain_mels(clips: list[torch.Tensor], is_in_place: bool) -> torch.Tensor:
    mels = []
    for clip in clips:
        if is_in_place:
            clip -= clip.mean()
        else:
            clip = clip - clip.mean()
        mel = torchaudio.compliance.kaldi.fbank(
            clip,
            htk_compat=True,
            sample_frequency=RATE,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_length=25,
            frame_shift=10,
        ).T[None, :, :204]
        mels.append((F.pad(mel, (0, 204 - mel.shape[2])) + 4.268) / 9.138)
    return torch.stack(mels)


def plain_released(waveform: torch.Tensor) -> torch.Tensor:
    last = max(Fraction(waveform.shape[1] / RATE) - 2, Fraction(0))
    starts = [int(last * i / 2 * RATE) for i in range(3)]
    return plain_mels([waveform[:, start : start + 2 * RATE] for start in starts], is_in_place=True)


def plain_reward(samples: torch.Tensor, rate: int) -> torch.Tensor:
    mono = samples.mean(0, keepdim=True)
    waveform = torchaudio.functional.resample(mono, rate, RATE)
    seconds = max(waveform.shape[1] / RATE, 2.0)
    clips = [waveform[:, int(i * (seconds - 2) / 2 * RATE) :][:, : 2 * RATE] for i in range(3)]
    return plain_mels([F.pad(clip, (0, 2 * RATE - clip.shape[1])) for clip in clips], is_in_place=False)


@pytest.mark.parametrize("seconds", [0.7, 1.9999, 3.1, 7.93])
@pytest.mark.parametrize(("rate", "n_channels"), [(8000, 1), (11025, 2), (16000, 3), (22050, 6), (48000, 2)])
def test_sounds_are_those_of_a_plain_reading(tmp_path, rate, n_channels, seconds):
    rng = np.random.default_rng(rate)
    samples = rng.standard_normal((n_channels, int(seconds * rate))).astype(np.float32) * 0.1
    path = write_audio(tmp_path / "x.wav", samples, rate)
    released, mova, reward, extracted = (sound.mels for sound in read_sounds(path, RECIPES))
    samples = torch.from_numpy(samples)
    for found, expected in (
        (released, plain_released(torchaudio.functional.resample(samples.clone(), rate, RATE))),
        (mova, plain_released(torchaudio.transforms.Resample(rate, RATE)(samples.clone()))),
        (reward, plain_reward(samples, rate)),
        (extracted, data.load_audio(extract(path, tmp_path / "extracted.wav"))),
    ):
        torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)
    assert torch.equal(extracted, data.load_audio(tmp_path / "extracted.wav"))
    assert torch.equal(mova, released) == (rate == RATE)
    (alone,) = read_file(Reading(), ("audio", Source(str(path)), FEATURES))
    *_, beside_windows = read_file(Reading(), ("audio", Source(str(path)), (AUDIO_WINDOWS, *FEATURES)))
    for name, loaded in alone.features.items():
        assert loaded.input.equals(beside_windows.features[name].input)


FEATURES = (AUDIO, mova_audio(0.001), AUDIO_REWARD, AUDIO_EXTRACTED)


def extract(path: Path, to: Path) -> Path:
    """Extract a sound into a file as T2AV-Compass does."""
    resampler, found = av.AudioResampler(format="s16", layout="mono", rate=RATE), []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            found += resampler.resample(frame)
        found += resampler.resample(None)
    with wave.open(str(to), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(b"".join(frame.to_ndarray().astype("<i2").tobytes() for frame in found))
    return to


@pytest.mark.parametrize("name", ["pattern_25fps_9s.mp4", "zoom_2997_10s.flac", "short_10fps_1.5s.wav"])
def test_the_extraction_is_that_of_ffmpeg(tmp_path, name):
    """Of several versions, which end an MP4's sound, dither and round in their own ways."""
    ends = 64  # samples that the resampler's filter makes of what is after the end
    if shutil.which("ffmpeg") is None:
        skip("no ffmpeg")
    command = ["ffmpeg", "-i", MEDIA / name, "-ac", "1", "-ar", "16000", tmp_path / "x.wav"]
    subprocess.run(command, check=True, capture_output=True)
    by_ffmpeg, ours = map(read_samples, (tmp_path / "x.wav", extract(MEDIA / name, tmp_path / "y.wav")))
    assert abs(len(by_ffmpeg) - len(ours)) <= 1024  # of AAC a frame
    n = min(len(by_ffmpeg), len(ours)) - ends
    assert np.abs(by_ffmpeg[:n].astype(int) - ours[:n]).max() <= 8


def read_samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


@pytest.mark.parametrize("size", [(65, 97), (97, 64), (101, 66), (64, 64)])
@pytest.mark.parametrize("n_frames", [1, 7, 93])
def test_videos_are_those_of_a_plain_reading(tmp_path, size, n_frames):
    images = [np.roll(picture(i, *size), 3 * i, axis=1) for i in range(n_frames)]
    path = write_video(tmp_path / "x.mkv", images, fps=12, **RAW)
    mova, reward = read_clips(path, [mova_video(7.9).clips, VIDEO_REWARD.clips])
    frames = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    pairs = []
    for i in range(5):
        center = int((i + 0.5) * n_frames / 5)
        pairs.append([max(center - 1, 0), min(center, n_frames - 1)])
    short, long = sorted(size)
    long = int(long / short * 224)
    shape = (224, long) if size[0] <= size[1] else (long, 224)
    scaled = F.interpolate(frames.float() / 255, size=shape, mode="bilinear")
    expected = plain_clips(scaled, pairs, [0, (long - 224) // 2, long - 224])
    torch.testing.assert_close(crop_clips(reward.frames, reward.crops), expected, atol=1e-5, rtol=0)
    sampled = by_filter(path, Fraction(1, 2))[:3]
    if not sampled:
        assert str(mova) == "mova needs a frame at 0.5 fps, which a video of under 1 s does not have"
        return
    sampled += sampled[-1:] * (3 - len(sampled))
    frames = torch.from_numpy(np.stack(sampled)).permute(0, 3, 1, 2)
    scaled = v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC)(frames).float() / 255
    long = max(scaled.shape[2:])
    expected = plain_clips(scaled, [[0, 1], [1, 2]], [0, math.ceil((long - 224) / 2), long - 224])
    torch.testing.assert_close(crop_clips(mova.frames, mova.crops), expected, atol=1e-5, rtol=0)


def plain_clips(frames: torch.Tensor, pairs: list[list[int]], offsets: list[int]) -> torch.Tensor:
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    frames, clips = (frames - mean) / std, []
    for pair in pairs:
        clip = frames[pair].transpose(0, 1)
        for offset in offsets:
            is_upright = clip.shape[2] > clip.shape[3]
            end = offset + 224
            clips.append(clip[:, :, offset:end] if is_upright else clip[..., offset:end])
    return torch.stack(clips)


def test_a_long_sound_has_the_same_inputs(tmp_path, monkeypatch):
    """It is decoded a second time for its clips."""
    samples = np.random.default_rng(0).standard_normal((2, 9 * 22050)).astype(np.float32) * 0.1
    path = write_audio(tmp_path / "x.wav", samples, 22050)
    expected = read_sounds(path, RECIPES)
    monkeypatch.setattr("imagebind.data.audio.BUFFERED_SECONDS", 5)
    for found, whole in zip(read_sounds(path, RECIPES), expected, strict=True):
        torch.testing.assert_close(found.mels, whole.mels, atol=1e-4, rtol=0)
        assert found.flags == whole.flags


def test_a_part_of_a_sound_has_the_inputs_of_its_samples(tmp_path):
    samples = np.random.default_rng(0).standard_normal((2, 9 * 22050)).astype(np.float32) * 0.1
    whole = write_audio(tmp_path / "x.wav", samples, 22050)
    part = write_audio(tmp_path / "part.wav", samples[:, 22050 : 5 * 22050], 22050)
    for found, expected in zip(
        read_sounds(Source(str(whole), 1.0, 5.0), RECIPES), read_sounds(part, RECIPES), strict=True
    ):
        assert torch.equal(found.mels, expected.mels)


def test_what_is_heard_is_flagged(tmp_path):
    """The first channel is silent, the mean of both is not."""
    path = write_audio(tmp_path / "x.wav", np.stack([np.zeros(3 * RATE, np.float32), tone(3)]))
    assert [sound.flags for sound in read_sounds(path, RECIPES)] == ["silent", "silent", "", ""]


def test_equal_inputs_are_embedded_once(tmp_path):
    """A sound that was extracted so is the same for all but the reward, whose windows are no views."""
    path = extract(MEDIA / "pattern_25fps_9s.mp4", tmp_path / "x.wav")
    (file,) = read_file(Reading(), ("audio", Source(str(path)), FEATURES))
    same = {name: loaded.same_as for name, loaded in file.features.items()}
    assert same.pop("audio") is None
    assert same["audio_mova_16"] == same["audio_t2av"] == "audio"
    (alone,) = read_file(Reading(), ("audio", Source(str(path)), FEATURES[1:2]))
    assert alone.features["audio_mova_16"].same_as is None


def test_an_extracted_sound_has_the_score_of_imagebind(tmp_path):
    video = str(write_video(tmp_path / "x.mp4", [picture(i % 90) for i in range(160)]))
    stereo = write_audio(tmp_path / "s.wav", np.stack([tone(8, 440, 44100), tone(8, 700, 44100)]), 44100)
    rows = [{"video": video, "audio": str(path)} for path in (extract(stereo, tmp_path / "x.wav"), stereo)]

    def pairs(*protocols: str) -> list[dict]:
        results = batch_inference_av_consistency(
            device="cpu",
            manifest=rows,
            checkpoint=CHECKPOINT,
            protocols=protocols,
            output_dir=tmp_path / "outputs",
            num_workers=0,
        )
        return list(results["pair_scores"])

    extracted, original = pairs("imagebind", "mova", "t2av")
    assert extracted["t2av"] == extracted["imagebind"] == original["t2av"]
    assert original["imagebind"] != original["t2av"]
    for leading in ("mova", "t2av", "reward"):  # from the cache too
        found, _ = pairs(leading, "imagebind")
        assert found["similarity"] == found[leading]
        assert found["imagebind"] == pytest.approx(extracted["imagebind"], abs=1e-12)
        if leading != "reward":
            assert found[leading] == pytest.approx(extracted[leading], abs=1e-12)


def test_what_one_way_cannot_take_is_no_matter_of_the_others(tmp_path):
    path = write_audio(tmp_path / "x.wav", np.full(100, np.nan, np.float32))
    released, _, reward, extracted = read_sounds(path, RECIPES)
    assert isinstance(released, data.MediaError)
    assert isinstance(reward, data.MediaError)
    assert isinstance(extracted, data.AudioInput)  # 16 bits hold no NaN
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:  # nine channels that have no place
        file.setnchannels(9)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(b"\1\2" * 9 * RATE)
    *others, extracted = read_sounds(tmp_path / "x.wav", RECIPES)
    assert str(extracted) == "FFmpeg cannot extract it as t2av wants it: Invalid argument"
    assert all(isinstance(other, data.AudioInput) for other in others)


def test_a_movies_own_sound_has_all_scores(tmp_path):
    results = batch_inference_av_consistency(
        None,
        [write_movie(tmp_path / "x.mkv", 300)],
        "cpu",
        **{"checkpoint": CHECKPOINT, "protocols": ["imagebind", "reward", "t2av"], "num_workers": 0},
    )
    assert [results["metrics"]["scores"][name]["n_scored"] for name in ("reward", "t2av")] == [1, 1]


@pytest.mark.parametrize(
    ("protocols", "seconds", "said"),
    [
        (["imagebind", "reward"], 8, "protocol_seconds is for the protocols mmaudio and mova"),
        (["imagebind", "mova", "mmaudio"], 3.9, "protocol_seconds must be at least 4 for mmaudio"),
    ],
)
def test_seconds_are_those_that_a_protocol_can_take(protocols, seconds, said):
    with pytest.raises(OptionError, match=f"^{said}"):
        batch_inference_av_consistency(None, "x.mp4", "cpu", protocols=protocols, protocol_seconds=seconds)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("protocol", "video", "sound", "published"),
    [
        ("imagebind", "ltx2.mp4", "ltx2.wav", 0.33291810750961304),  # FastVideo, fastvideo/tests/eval/asset
        ("t2av", "sample_video_2.mp4", None, 0.11945830285549164),  # T2AV-Compass, its sample's metrics.json
    ],
)
def test_a_published_clip_has_its_published_score(protocol, video, sound, published):
    root = TESTS.parent / ".checkpoints"
    files = [root / name for name in ("imagebind_huge.pth", video, sound) if name]
    if missing := [path for path in files if not path.exists()]:
        pytest.skip(f"{missing[0]} is not there")
    results = batch_inference_av_consistency(
        None if sound is None else [root / sound], [root / video], "cpu", protocols=[protocol]
    )
    (pair,) = results["pair_scores"]
    print(f"{video}: {protocol} {pair['similarity']:.6f}, published {published:.6f}")
    assert pair["similarity"] == pytest.approx(published, abs=0.01)
