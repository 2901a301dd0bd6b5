"""Audio files to inputs."""

from __future__ import annotations

import subprocess
import sys
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import MEDIA, RATE, TESTS, load_waveform, picture, reason, silence, tone, write_audio
from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler
from test_media import noise
from torchaudio.compliance import kaldi

from imagebind import data
from imagebind.data.audio import clip_ranges, load_clips, log_mel
from imagebind.data.clips import clip_spans, get_clip_timepoints
from imagebind.data.media import DTS_SYNC_WORDS, has_dts, open_stream

AUDIO_INPUTS = np.load(TESTS / "reference" / "audio_inputs.npz")


@pytest.mark.parametrize("name", AUDIO_INPUTS.files)
def test_audio_input_is_the_released_loaders(name):
    inputs = data.load_and_transform_audio_data([MEDIA / name], "cpu")
    assert inputs.shape == (1, data.AUDIO_CLIPS, 1, data.MEL_BINS, data.MEL_FRAMES)
    lossy_otherwise = name.endswith((".ogg", ".m4a"))  # another decoder made the recorded numbers
    # Below a millionth of the frame's loudest bin is but the rounding of its Fourier transform, which is
    # another on another processor.
    expected = AUDIO_INPUTS[name]
    level = (expected - expected.max(axis=-2, keepdims=True)) * data.MEL_STD  # (3, 1, 128, 204), ln of energy
    tolerance = np.where((level < np.log(1e-6)) | lossy_otherwise, 1e-3, 1e-5)
    assert (np.abs(inputs[0].numpy() - expected) <= tolerance).all()


class EvenClipSampler(ConstantClipsPerVideoSampler):
    """The sampler behind the published numbers, of which two versions call themselves 0.1.5.

    It spaces the starts by (duration - clip) / (n - 1). The one on PyPI divides by n, and so never reaches
    the end of the file.
    """

    def __call__(self, last_clip_time, video_duration, annotation):
        clip = super().__call__(last_clip_time, video_duration, annotation)
        last_start = Fraction(max(video_duration - self._clip_duration, 0))
        start = last_start * clip.clip_index / max(self._clips_per_video - 1, 1)
        return clip._replace(clip_start_sec=start, clip_end_sec=start + self._clip_duration)


@pytest.mark.parametrize(("duration", "n_clips"), [(10.0, 3), (10.01, 5), (2.0, 3), (0.3, 5), (7.5, 1)])
def test_clips_spread_evenly_from_start_to_end(duration, n_clips):
    spans = clip_spans(duration, n_clips)
    free = max(Fraction(duration) - 2, 0)
    assert spans == [
        (free * k / max(n_clips - 1, 1), free * k / max(n_clips - 1, 1) + 2) for k in range(n_clips)
    ]
    assert spans == get_clip_timepoints(EvenClipSampler(2, n_clips), duration)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_every_sample_format_gives_the_same_waveform(tmp_path, codec):
    samples = np.stack([tone(0.5, 300), tone(0.5, 700)])
    waveform = load_waveform(write_audio(tmp_path / "x.wav", samples, codec=codec))
    assert waveform.shape == samples.shape
    np.testing.assert_allclose(waveform, samples, atol=1.01 / 128 if codec == "pcm_u8" else 1.01 / 32768)


def test_the_first_channel_counts(tmp_path):
    samples = np.stack([tone(1, 300), tone(1, 3000)])
    both = data.load_audio(write_audio(tmp_path / "both.wav", samples))
    first = data.load_audio(write_audio(tmp_path / "first.wav", samples[0]))
    other = data.load_audio(write_audio(tmp_path / "other.wav", samples[1]))
    assert (both - first).abs().mean() < 0.01 < 0.2 < (both - other).abs().mean()


def test_a_sound_under_one_frame_is_padded_and_named(tmp_path, caplog):
    path = write_audio(tmp_path / "click.wav", tone(0.01))
    inputs = data.load_audio(path)
    assert inputs.shape == (3, 1, 128, 204)
    assert inputs.isfinite().all()
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: 10.0 ms of sound, padded with silence to 25"
    ]


def test_a_sound_of_one_frame_is_not_padded(tmp_path, caplog):
    data.load_audio(write_audio(tmp_path / "x.wav", tone(0.025)))
    assert not caplog.records


def test_the_sound_of_a_video_file_is_read(tmp_path):
    with av.open(str(tmp_path / "both.mkv"), "w") as container:
        video = container.add_stream("mpeg4", rate=20)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for i in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(i), "rgb24")))
        frame = av.AudioFrame.from_ndarray((tone(1)[None] * 32767).astype(np.int16), "s16", "mono")
        frame.sample_rate = RATE
        container.mux(audio.encode(frame))
        container.mux([*video.encode(None), *audio.encode(None)])
    alone = write_audio(tmp_path / "alone.wav", tone(1), codec="pcm_s16le")
    waveform, expected = load_waveform(tmp_path / "both.mkv"), load_waveform(alone)
    np.testing.assert_allclose(waveform, expected, atol=1.01 / 32768)
    assert data.load_video(tmp_path / "both.mkv").shape == (15, 3, 2, 224, 224)


@pytest.mark.parametrize(("seconds", "distinct"), [(1, 1), (0.3, 1), (3, 3)])
def test_equal_clips_of_a_sound_are_kept_once(tmp_path, seconds, distinct):
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(int(seconds * RATE)) * 0.1 + 0.2).astype(np.float32)
    audio = data.read_audio(write_audio(tmp_path / "x.wav", noise))
    assert len(audio.clips()) == len(audio.counts) == distinct
    assert sum(audio.counts.values()) == 3


def test_clips_that_differ_by_more_than_rounding_are_several(tmp_path):
    """The second of three is louder by a ten thousandth."""
    block = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32) * 0.1
    sound = np.concatenate([block, block * np.float32(1.0001), block])
    counts = data.read_audio(write_audio(tmp_path / "x.wav", sound)).counts
    assert counts == {0: 2, 1: 1}


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_windows_of_a_long_sound_are_those_of_the_whole(tmp_path, monkeypatch, rate):
    monkeypatch.setattr("imagebind.data.audio.BUFFERED_SECONDS", 5)
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((2, int(7.3 * rate) + 1)).astype(np.float32) * 0.1
    path = write_audio(tmp_path / "x.wav", samples, rate)
    windows = load_clips(path)
    monkeypatch.setattr("imagebind.data.audio.BUFFERED_SECONDS", 60)
    expected = load_clips(path)
    assert len(windows) == len(expected) == 3
    for window, whole in zip(windows, expected, strict=True):
        assert window.shape == whole.shape == (2, 2 * RATE)
        np.testing.assert_allclose(window, whole, atol=1e-6)


def test_clips_of_a_short_sound_are_those_of_the_whole(tmp_path):
    samples = noise(6.9, 44100, channels=2)
    whole = load_waveform(write_audio(tmp_path / "x.wav", samples, 44100))
    clips = load_clips(tmp_path / "x.wav")
    spans = clip_ranges(whole.shape[1])
    assert spans[0][1] < spans[1][0]  # they do not overlap, and only they are resampled
    for clip, (start, end) in zip(clips, spans, strict=True):
        np.testing.assert_allclose(clip, whole[:, start:end], atol=1e-7)


def test_log_mel_is_kaldis(tmp_path):
    for seconds, rate in ((0.025, 16000), (0.7, 22050), (2, 16000)):
        clip = torch.from_numpy(noise(seconds, rate, channels=2)) * 0.1
        clip[:, : clip.shape[1] // 3] = 0
        expected = kaldi.fbank(
            clip, htk_compat=True, sample_frequency=rate, use_energy=False, window_type="hanning",
            num_mel_bins=data.MEL_BINS, dither=0.0, frame_length=25, frame_shift=10, channel=0,
        ).T  # fmt: skip
        assert torch.equal(log_mel(clip, n_frames=expected.shape[1], sample_rate=rate), expected)


def dts_frames(n: int) -> bytes:
    """Make frames that FFmpeg takes for DTS: its header, and noise."""
    fields = ((0x7FFE8001, 32), (1, 1), (31, 5), (0, 1), (15, 7), (2047, 14), (2, 6), (8, 4), (24, 5))
    header = "".join(f"{value:0{n_bits}b}" for value, n_bits in fields).ljust(120, "0")
    frame = int(header, 2).to_bytes(15, "big") + np.random.default_rng(0).bytes(2048 - 15)
    return np.frombuffer(frame * n, ">u2").astype("<u2").tobytes()


@pytest.mark.parametrize("silence", [0, 100_000, 400_000])
def test_dts_in_a_wav_file_is_not_taken_for_samples(tmp_path, silence):
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes(bytes(silence) + dts_frames(30))
    with open_stream(tmp_path / "x.wav", "audio") as stream:
        assert stream.codec_context.name == "dca"


@pytest.mark.parametrize("silence", [0, 20_000, 100_000])
def test_mpeg_audio_in_a_wav_file_is_not_taken_for_samples(tmp_path, silence):
    """FFmpeg looks at the samples of a WAV file, further where they begin with silence."""
    stream = write_audio(tmp_path / "x.mp2", tone(2, 440, 48000), 48000, "mp2").read_bytes()
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((2, 2, 48000, 0, "NONE", ""))
        file.writeframes(bytes(silence) + stream[: len(stream) // 4 * 4])
    with av.open(str(tmp_path / "x.wav")) as plain, open_stream(tmp_path / "x.wav", "audio") as stream:
        assert stream.codec_context.name == plain.streams.audio[0].codec_context.name == "mp2"


def test_every_sync_word_of_dts_is_found():
    words = np.random.default_rng(0).integers(0, 1 << 15, 1000).astype("<u2")
    assert not has_dts(words)
    for word in DTS_SYNC_WORDS:
        for place in (0, 500, 998):
            assert has_dts(np.concatenate([words[:place], word, words[place + 2 :]]))
    assert not has_dts(np.array([5, DTS_SYNC_WORDS[0][0]], "<u2"))


@pytest.mark.slow
def test_hours_of_sound_are_read_in_under_a_gigabyte(tmp_path):
    """An hour and a half, over a gigabyte as it is decoded: silence but for three notes."""
    seconds, rate = 5400, 48000
    path = silence(tmp_path / "hours.wav", seconds / 3600)
    size = path.stat().st_size
    note = (tone(2, 440, rate) * 32767).astype("<i2").tobytes()
    with open(path, "r+b") as file:
        for start in (0, (seconds - 2) // 2, seconds - 2):
            file.seek(size - (seconds - start) * rate * 2)
            file.write(note)
    code = (
        "import sys; from imagebind.data.audio import load_clips\n"
        "windows = load_clips(sys.argv[1])\n"
        "(peak,) = (line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(peak, *(w.std().item() for w in windows))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, path], cwd=TESTS.parent, capture_output=True, text=True
    )
    path.unlink()
    kilobytes, *deviations = map(float, result.stdout.split())
    assert kilobytes < 1e6
    assert deviations == pytest.approx([0.5 / 2**0.5] * 3, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_give_a_reason(tmp_path, bad):
    samples = tone(1)
    samples[5000] = bad
    assert reason(data.load_audio, write_audio(tmp_path / "x.wav", samples)) == "NaN or infinite samples"


def test_a_sound_without_samples_gives_a_reason(tmp_path):
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
    assert reason(data.load_audio, tmp_path / "x.wav") == "no audio samples"


def test_more_channels_than_a_frame_has_pointers_are_read(tmp_path):
    """FFmpeg's frames point to 8 planes; the samples of further channels lie elsewhere."""
    sound = noise(1, channels=16)
    waveform = load_waveform(write_audio(tmp_path / "x.wav", sound))
    np.testing.assert_allclose(waveform, sound)
