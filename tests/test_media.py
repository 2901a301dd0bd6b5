"""Odd and broken files: each gives an input or a reason, and costs no other file."""

from __future__ import annotations

import os
import re
import shutil
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from conftest import (
    RATE,
    Program,
    failures,
    n_cached,
    picture,
    reason,
    silence,
    tone,
    write_audio,
    write_video,
)

from batch_inference import Evaluator, batch_inference_av_consistency
from imagebind import data
from imagebind.data.audio import decode_audio
from imagebind.data.frames import packet_timeline, read_frames, to_rgb
from imagebind.data.media import TELLS_SIDEDATA, open_stream

RNG = np.random.default_rng(0)


BAD_DATA = "Invalid data found when processing input"
ENDS_EARLY = "it ends before its sound or video begins: it was not written, or downloaded, to its end"
NO_INDEX = r"an MP4 file without its index \(moov\): it was not written, or downloaded, to its end"


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    return RNG.standard_normal((channels, round(seconds * rate))).astype(np.float32) * 0.1


def pictures(n: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [picture(i % 100, height, width) for i in range(n)]


def cut(path, whole, keep: float | int):
    """Keep a share of a file, or all but -keep bytes."""
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep > 0 else keep])


def patch(path, whole, mark: bytes, offset: int, value: bytes):
    """Overwrite bytes at an offset from the first place of a mark."""
    content = bytearray(whole.read_bytes())
    at = content.index(mark) + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)


def remux(path, whole, drop: int = 0, times=None, extra: int = 0, **options):
    """Copy the packets of a video: without the first, with other times, and with streams beside it."""
    with av.open(str(whole)) as source, av.open(str(path), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for _ in range(extra):
            target.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for i, packet in enumerate([p for p in source.demux(video=0) if p.size][drop:]):
            if times is not None:
                packet.pts = packet.dts = times(i)
                packet.time_base = Fraction(1, 1000)
            packet.stream = stream
            target.mux(packet)
        target.start_encoding()  # also where there is no packet


def cover(path):
    """A song with a cover, as .mp3 files have it."""
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        art = container.add_stream("png")
        art.width, art.height, art.pix_fmt = 96, 64, "rgb24"
        art.disposition = Disposition.attached_pic.value
        container.mux(art.encode(av.VideoFrame.from_ndarray(picture(0), "rgb24")))
        frame = av.AudioFrame.from_ndarray(tone(1)[None], "fltp", "mono")
        frame.sample_rate = RATE
        container.mux([*audio.encode(frame), *audio.encode(None)])


def two_rates(path):
    """Two MP3 streams, one after the other, of other rates."""
    parts = [
        write_audio(path.with_name("part.mp3"), tone(1, rate=rate), rate, "libmp3lame").read_bytes()
        for rate in (16000, 44100)
    ]
    path.write_bytes(b"".join(parts))


def samples(**values) -> np.ndarray:
    """Noise with some samples of other values."""
    sound = noise(2)
    for i, value in enumerate(values.values()):
        sound[0, 1000 + i] = value
    return sound


def damage(path, whole, n: int):
    """Copy the packets of a sound, n of them overwritten."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for i, packet in enumerate(p for p in source.demux(audio=0) if p.size):
            copy = av.Packet(b"\xff" * packet.size if 3 <= i < 3 + n else bytes(packet))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.stream = stream
            target.mux(copy)


class Sources:
    """Whole files that others are made from."""

    def __init__(self, folder):
        self.wav = write_audio(folder / "whole.wav", noise(5), codec="pcm_s16le")
        self.flac = write_audio(folder / "whole.flac", noise(5), codec="flac")
        self.mka = write_audio(folder / "whole.mka", noise(5.7), codec="flac")
        self.mp3 = write_audio(folder / "whole.mp3", noise(5), codec="libmp3lame")
        self.m4a = write_audio(folder / "whole.m4a", noise(5), codec="aac")
        self.mp4 = write_video(folder / "whole.mp4", pictures(60), options={"bf": "0"})
        self.mkv = write_video(folder / "whole.mkv", pictures(60), options={"bf": "0"})
        self.avi = write_video(folder / "whole.avi", pictures(60), "mpeg4")
        self.faststart = folder / "faststart.mp4"
        remux(self.faststart, self.mp4, movflags="faststart")


SOUNDS = {
    "empty.wav": (lambda p, s: p.touch(), "the file is empty"),
    "text.wav": (lambda p, s: p.write_text("not a sound\n" * 50), BAD_DATA),
    "zeros.mp3": (
        lambda p, s: p.write_bytes(bytes(5000)),
        "it begins with zeros, where there should be media",
    ),
    "folder.wav": (lambda p, s: p.mkdir(), "Is a directory; --audio_dir and --video_dir search one"),
    "pipe.wav": (lambda p, s: os.mkfifo(p), "not a regular file"),
    "loop.wav": (lambda p, s: p.symlink_to(p), "Too many levels of symbolic links"),
    "unreadable.wav": (lambda p, s: p.symlink_to("/proc/self/mem"), "Input/output error"),
    "header.wav": (lambda p, s: p.write_bytes(s.wav.read_bytes()[:20]), BAD_DATA),
    "header.flac": (lambda p, s: p.write_bytes(s.flac.read_bytes()[:20]), BAD_DATA),
    "header.m4a": (lambda p, s: p.write_bytes(s.m4a.read_bytes()[:20]), NO_INDEX),
    "middle.wav": (lambda p, s: cut(p, s.wav, 0.5), None),
    "middle.flac": (lambda p, s: cut(p, s.flac, 0.5), None),
    "middle.mp3": (lambda p, s: cut(p, s.mp3, 0.5), None),
    "middle.m4a": (lambda p, s: cut(p, s.m4a, 0.5), NO_INDEX),
    "last.wav": (lambda p, s: cut(p, s.wav, -1), None),
    "last.flac": (lambda p, s: cut(p, s.flac, -1), None),
    "last.mp3": (lambda p, s: cut(p, s.mp3, -1), None),
    "7_of_80_packets.mka": (lambda p, s: damage(p, s.mka, 7), None),
    "8_of_80_packets.mka": (
        lambda p, s: damage(p, s.mka, 8),
        r"damaged: 0\.576 of 5\.7 s cannot be decoded",
    ),
    "no_samples.wav": (lambda p, s: write_audio(p, noise(0)), "no audio samples"),
    "silent_video.wav": (lambda p, s: shutil.copy(s.mp4, p), "no audio stream"),
    "one_sample.wav": (lambda p, s: write_audio(p, noise(1 / RATE)), None),
    "24ms.wav": (lambda p, s: write_audio(p, noise(0.024)), None),
    "silence.wav": (lambda p, s: write_audio(p, noise(2) * 0), None),
    "nan.wav": (lambda p, s: write_audio(p, samples(a=np.nan)), "NaN or infinite samples"),
    "infinite.wav": (lambda p, s: write_audio(p, samples(a=np.inf, b=-np.inf)), "NaN or infinite samples"),
    "huge.wav": (lambda p, s: write_audio(p, samples(a=1e30)), "samples too large to compute with"),
    "says_endless.wav": (lambda p, s: patch(p, s.wav, b"data", 4, b"\xff" * 4), None),
    "says_empty.wav": (lambda p, s: patch(p, s.wav, b"data", 4, bytes(4)), None),
    "says_0_hz.wav": (lambda p, s: patch(p, s.wav, b"fmt ", 12, bytes(4)), r".+"),
    "says_2_ghz.wav": (
        lambda p, s: patch(p, s.wav, b"fmt ", 12, struct.pack("<I", 2**31 - 1)),
        "a sample rate of 2147483647 Hz",
    ),
    "says_65535_channels.wav": (lambda p, s: patch(p, s.wav, b"fmt ", 10, b"\xff\xff"), r".+"),
    "two_rates.mp3": (lambda p, s: two_rates(p), "its sample rate or number of channels changes"),
    "cover.mp3": (lambda p, s: cover(p), None),
    **{
        f"{rate}_hz.wav": (lambda p, s, rate=rate: write_audio(p, noise(3, rate), rate), None)
        for rate in (8000, 11025, 44056, 47952, 48000, 96000, 192000)
    },
    "44101_hz.wav": (
        lambda p, s: write_audio(p, noise(3, 44101), 44101),
        "a sample rate of 44101 Hz, which has no simple ratio to 16000 Hz",
    ),
    **{
        f"{n}_channels.wav": (lambda p, s, n=n: write_audio(p, noise(2, channels=n)), None)
        for n in (1, 2, 3, 6, 8, 16)
    },
    **{
        f"{codec}.wav": (lambda p, s, codec=codec: write_audio(p, noise(2), codec=codec), None)
        for codec in ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_mulaw")
    },
}


ONLY_START = {"x264-params": "keyint=infinite:scenecut=0", "bf": "0"}


LOSSLESS = {"codec": "png", "pix_fmt": "rgb24"}


VIDEOS = {
    "empty.mp4": (lambda p, s: p.touch(), "the file is empty"),
    "text.mp4": (lambda p, s: p.write_text("not a video\n" * 50), BAD_DATA),
    "folder.mp4": (lambda p, s: p.mkdir(), "Is a directory; --audio_dir and --video_dir search one"),
    "header.mp4": (lambda p, s: p.write_bytes(s.mp4.read_bytes()[:20]), NO_INDEX),
    "header.mkv": (lambda p, s: p.write_bytes(s.mkv.read_bytes()[:20]), BAD_DATA),
    "middle.mp4": (lambda p, s: cut(p, s.mp4, 0.5), NO_INDEX),  # its index is at the end
    "middle_of_faststart.mp4": (lambda p, s: cut(p, s.faststart, 0.7), None),
    "middle.mkv": (lambda p, s: cut(p, s.mkv, 0.5), None),
    "middle.avi": (lambda p, s: cut(p, s.avi, 0.8), None),
    "last.mp4": (lambda p, s: cut(p, s.mp4, -1), None),
    "last_of_faststart.mp4": (lambda p, s: cut(p, s.faststart, -1), None),
    "last.mkv": (lambda p, s: cut(p, s.mkv, -1), None),
    "last.avi": (lambda p, s: cut(p, s.avi, -1), None),
    "no_frames.mkv": (lambda p, s: remux(p, s.mkv, drop=60), ENDS_EARLY),
    "sound.mp4": (lambda p, s: shutil.copy(s.m4a, p), "no video stream"),
    "cover.mp3": (lambda p, s: cover(p), "no video stream"),
    "one_frame.mp4": (lambda p, s: write_video(p, pictures(1)), None),
    "1x1.mov": (lambda p, s: write_video(p, pictures(5, 1, 1), **LOSSLESS), None),
    "1x2.mov": (lambda p, s: write_video(p, pictures(5, 1, 2), **LOSSLESS), None),
    "8k.mp4": (lambda p, s: write_video(p, pictures(2, 4320, 7680), "mpeg4"), None),
    "8000x1.mov": (
        lambda p, s: write_video(p, pictures(3, 1, 8000), **LOSSLESS),
        "a picture of 8000 x 1 pixels: longer than 30 : 1",
    ),
    "1x8000.mov": (
        lambda p, s: write_video(p, pictures(3, 8000, 1), **LOSSLESS),
        "a picture of 1 x 8000 pixels: longer than 30 : 1",
    ),
    "30x1.mov": (lambda p, s: write_video(p, pictures(3, 8, 240), **LOSSLESS), None),
    "variable_rate.mkv": (
        lambda p, s: write_video(p, pictures(40), pts=[40 * i + (i > 20) * 900 for i in range(40)]),
        None,
    ),
    "starts_late.mkv": (
        lambda p, s: write_video(p, pictures(40), pts=[50 * i + 90000 for i in range(40)]),
        None,
    ),
    "starts_late.mp4": (
        lambda p, s: write_video(p, pictures(40), pts=[50 * i + 90000 for i in range(40)]),
        None,
    ),
    "repeated_times.mkv": (lambda p, s: remux(p, s.mkv, times=lambda i: i // 3 * 150), None),
    "times_backwards.avi": (lambda p, s: remux(p, s.avi, times=lambda i: 50 * i), None),
    "without_times.h264": (lambda p, s: write_video(p, pictures(40), options={"bf": "0"}), None),
    "edit_list.mp4": (lambda p, s: remux(p, s.mp4, times=lambda i: 50 * (i - 20)), None),
    "empty_streams_beside.mkv": (lambda p, s: remux(p, s.mkv, extra=3), None),
    "rotated.mp4": (lambda p, s: write_video(p, pictures(20), rotation=90), None),
    "10_bit.mkv": (lambda p, s: write_video(p, pictures(20), "libx265", pix_fmt="yuv420p10le"), None),
    "10_bit.mp4": (lambda p, s: write_video(p, pictures(20), "libsvtav1", pix_fmt="yuv420p10le"), None),
    "gray.mkv": (lambda p, s: write_video(p, pictures(20), "ffv1", pix_fmt="gray"), None),
    "transparent.mov": (lambda p, s: write_video(p, pictures(20), "png", pix_fmt="rgba"), None),
    "interlaced.mp4": (
        lambda p, s: write_video(p, pictures(40), options={"x264-params": "interlaced=1"}),
        None,
    ),
    "av1.mp4": (lambda p, s: write_video(p, pictures(20), "libsvtav1"), None),
    "hevc.mp4": (lambda p, s: write_video(p, pictures(20), "libx265"), None),
    "gif.gif": (lambda p, s: write_video(p, pictures(20), "gif", pix_fmt="rgb8"), None),
    "key_at_start_only.mp4": (lambda p, s: write_video(p, pictures(200), options=ONLY_START), None),
    "no_key_frame.mkv": (
        lambda p, s: remux(p, write_video(p.with_name("k.mkv"), pictures(60), options=ONLY_START), drop=1),
        r"no video frames",
    ),
    "says_1_hour.mp4": (lambda p, s: patch(p, s.mp4, b"mdhd", 16, struct.pack(">I", 10**9)), None),
    "says_no_time.mp4": (lambda p, s: patch(p, s.mp4, b"stts", 16, struct.pack(">I", 0)), None),
    "says_a_year_a_frame.mp4": (
        lambda p, s: patch(p, s.mp4, b"stts", 16, struct.pack(">I", 2**31 - 1)),
        None,
    ),
    "says_a_million_fps.avi": (lambda p, s: patch(p, s.avi, b"strh", 28, struct.pack("<II", 1, 10**6)), None),
    "says_a_billion_frames.avi": (lambda p, s: patch(p, s.avi, b"avih", 24, struct.pack("<I", 10**9)), None),
    "says_a_billion_frames.mp4": (lambda p, s: patch(p, s.mp4, b"stsz", 12, struct.pack(">I", 10**9)), r".+"),
    "says_1_wide.mkv": (lambda p, s: patch(p, s.mkv, b"\xb0\x81\x60", 0, b"\xb0\x81\x01"), None),
}


SIDES = {"audio": SOUNDS, "video": VIDEOS}


CASES = [(side, name) for side, table in SIDES.items() for name in table]


@pytest.fixture(scope="module")
def evening(tmp_path_factory, small_checkpoint):
    """Evaluate all of them, and one good pair, in one run; give the results and the warnings."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "sources").mkdir()
    sources = Sources(folder / "sources")
    paths = {side: [str(folder / "missing.file")] for side in SIDES}
    for side, table in SIDES.items():
        (folder / side).mkdir()
        for name, (make, _) in table.items():
            make(folder / side / name, sources)
            paths[side].append(str(folder / side / name))
    good = write_audio(folder / "good.wav", tone(1)), write_video(folder / "good.mp4", pictures(20))
    for side, path in zip(SIDES, good, strict=True):
        paths[side].append(str(path))
    results = batch_inference_av_consistency(
        paths["audio"],
        paths["video"],
        device="cpu",
        retrieval_mode=True,
        checkpoint=small_checkpoint,
        num_workers=2,
        timeout=30,
        worker_memory_gb=1,
        cache=folder / "cache.sqlite",
    )
    reasons = {(f["side"], os.path.basename(f["path"])): f["reason"] for f in results["failures"]}
    return results, reasons


@pytest.mark.parametrize(("side", "name"), CASES)
def test_a_file_gives_a_row_or_a_reason(evening, side, name):
    _, reasons = evening
    _, expected = SIDES[side][name]
    if expected is None:
        assert (side, name) not in reasons
    else:
        assert re.fullmatch(expected, reasons[side, name])


def test_an_edit_list_hides_frames(tmp_path):
    path = tmp_path / "edited.mp4"
    remux(path, Sources(tmp_path).mp4, times=lambda i: 50 * (i - 20))  # 20 of 60 are before the start
    with open_stream(path, "video") as stream:
        timeline = packet_timeline(stream)
        frames = {n: to_rgb(frame) for n, frame in read_frames(stream, timeline, {0, 39})}
    assert (len(timeline.packets), timeline.n_frames) == (60, 40)
    for number, shown in ((0, 20), (39, 59)):
        brightness = frames[number][:, -10:, -10:].float().mean().item()
        assert brightness == pytest.approx(20 + 2 * shown, abs=1)


def test_what_is_missing_of_a_file_is_said(tmp_path, caplog):
    """A file that is cut off gives the row of what is there, and a warning that says how much that is."""
    sources = Sources(tmp_path)
    cut(tmp_path / "cut.flac", sources.flac, 0.5)
    cut(tmp_path / "cut.mp4", sources.faststart, 0.7)
    data.load_audio(tmp_path / "cut.flac")
    data.load_video(tmp_path / "cut.mp4")
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert re.search(r"cut\.flac: ends early: 2\.\d+ of 5 seconds of sound are there", messages)
    assert re.search(r"cut\.flac: ends early: the last 0\.\d+ of \d\.\d+ s cannot be decoded", messages)
    assert re.search(r"cut\.mp4: ends early: \d+ of 60 frames are there", messages)


def test_a_file_that_is_mostly_damaged_gives_a_reason(tmp_path):
    path = tmp_path / "x.avi"
    cut(path, Sources(tmp_path).avi, 0.5)  # in the middle of its only key frame
    with pytest.raises(data.MediaError, match="damaged: 1 of 1 packets cannot be decoded"):
        data.load_video(path)


def test_no_file_costs_another(evening):
    results, reasons = evening
    assert reasons["audio", "missing.file"] == reasons["video", "missing.file"] == "No such file or directory"
    failed = {key for key, reason in reasons.items()}
    expected = {(side, name) for side, name in CASES if SIDES[side][name][1] is not None}
    assert failed == expected | {("audio", "missing.file"), ("video", "missing.file")}
    assert results["metrics"]["counts"]["audio"] == 1 + sum(r is None for _, r in SOUNDS.values())
    assert results["metrics"]["counts"]["video"] == 1 + sum(r is None for _, r in VIDEOS.values())
    assert results["audio_embeddings"].isfinite().all()
    assert results["video_embeddings"].isfinite().all()
    assert not any("crashed" in reason or "killed" in reason for reason in reasons.values())


@pytest.mark.parametrize("load", [data.load_audio, data.load_video])
def test_a_file_that_is_no_media_gives_a_reason(tmp_path, load):
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    assert reason(load, tmp_path / "missing.mp4") == "No such file or directory"
    assert reason(load, tmp_path / "folder.mp4").startswith("Is a directory; ")
    assert reason(load, tmp_path / "text.mp4") == "Invalid data found when processing input"
    assert reason(load, tmp_path / "empty.mp4") == "the file is empty"


def test_a_missing_stream_gives_a_reason(tmp_path):
    assert reason(data.load_video, write_audio(tmp_path / "x.wav", tone(1))) == "no video stream"
    assert reason(data.load_audio, write_video(tmp_path / "x.mp4", [picture(0)])) == "no audio stream"


def test_a_playlist_opens_no_other_file(tmp_path):
    """A text that FFmpeg takes for a list of files must not make it read them."""
    secret = write_audio(tmp_path / "secret.wav", tone(1))
    (tmp_path / "list.wav").write_text(f"ffconcat version 1.0\nfile '{secret.name}'\n")
    (tmp_path / "list.ogg").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    assert reason(data.load_audio, tmp_path / "list.wav")
    assert reason(data.load_audio, tmp_path / "list.ogg")


def test_an_address_is_a_file_name(tmp_path, monkeypatch):
    write_audio(tmp_path / "x.wav", tone(1))
    monkeypatch.chdir(tmp_path)
    assert reason(data.load_audio, "concat:x.wav") == "No such file or directory"


# What is hashed is what is decoded


def test_a_path_through_a_link_leads_where_the_kernel_says(pairs, small_checkpoint, monkeypatch):
    """link/../video is beside what the link leads to, and not the directory `video` here."""
    monkeypatch.chdir(pairs)
    (pairs / "there" / "below").mkdir(parents=True)
    for side in ("audio", "video"):
        shutil.copytree(pairs / side, pairs / "there" / side)
        suffix = "wav" if side == "audio" else "mp4"
        shutil.copy(pairs / side / f"b.{suffix}", pairs / "there" / side / f"a.{suffix}")
    (pairs / "link").symlink_to("there/below")
    options = {"device": "cpu", "checkpoint": small_checkpoint, "num_workers": 0}
    direct = batch_inference_av_consistency("there/audio", "there/video", **options)
    linked = batch_inference_av_consistency("link/../audio", "link/../video", cache="c.sqlite", **options)
    for side in ("audio", "video"):
        assert torch.equal(linked[f"{side}_embeddings"], direct[f"{side}_embeddings"])
        assert not torch.equal(
            direct[f"{side}_embeddings"],
            batch_inference_av_consistency("audio", "video", **options)[f"{side}_embeddings"],
        )


@pytest.fixture
def with_hour(pairs):
    """`pairs`, and a fifth whose sound takes seconds to read."""
    silence(pairs / "audio" / "long.wav", 1)
    write_video(pairs / "video" / "long.mp4", pictures(20))
    return pairs


@pytest.mark.parametrize("how", ["replaced", "overwritten"])
def test_a_file_that_changes_while_it_is_read_is_read_again(with_hour, how):
    """Its row is that of the new content, and the old content has none."""
    path = with_hour / "audio" / "long.wav"
    write_audio(with_hour / "new.wav", tone(1, 700))
    program = Program(with_hour, "--num_workers", "1")
    program.reader_of(path)
    if how == "replaced":
        os.replace(with_hour / "new.wav", path)
    else:
        with open(path, "r+b") as file:  # never empty, as a file that cannot be read would be
            file.write((with_hour / "new.wav").read_bytes())
            file.truncate()
    status, out, _ = program.wait()
    assert (status, out[-1]) == (0, "evaluated 5 pairs, skipped 0 files, unmatched 0 files")
    changed = np.load(with_hour / "outputs" / "audio_embeddings.npy")
    assert Program(with_hour, "--no_cache", "--output_dir", "again").wait()[0] == 0
    np.testing.assert_array_equal(np.load(with_hour / "again" / "audio_embeddings.npy"), changed)
    assert n_cached(with_hour) == 10


def test_a_link_that_is_changed_while_it_is_read_leads_where_it_led(with_hour):
    """The file itself is as it was: hashed and decoded is what was opened."""
    path = with_hour / "audio" / "long.wav"
    path.rename(with_hour / "hour.wav")
    write_audio(with_hour / "new.wav", tone(1, 700))
    path.symlink_to(with_hour / "hour.wav")
    program = Program(with_hour, "--num_workers", "1")
    program.reader_of(with_hour / "hour.wav")
    (with_hour / "link").symlink_to(with_hour / "new.wav")
    os.replace(with_hour / "link", path)
    assert program.wait()[0] == 0
    read = np.load(with_hour / "outputs" / "audio_embeddings.npy")
    path.unlink()
    (with_hour / "hour.wav").rename(path)
    assert Program(with_hour, "--no_cache", "--output_dir", "again").wait()[0] == 0
    np.testing.assert_array_equal(np.load(with_hour / "again" / "audio_embeddings.npy"), read)


def test_a_file_that_never_stays_the_same_is_skipped(with_hour):
    """Something writes to it all the time: it has no content that a row could belong to."""
    path = with_hour / "audio" / "long.wav"
    program = Program(with_hour, "--num_workers", "1")
    program.reader_of(path)
    while program.process.is_alive():
        os.utime(path)
        program.process.join(0.2)
    assert failures(with_hour) == {"audio/long.wav": "it changed while it was read"}
    assert n_cached(with_hour) == 9


def test_equal_bytes_that_their_names_make_other_sounds_are_no_copies(tmp_path, small_checkpoint):
    """In one run, and through a cache."""
    noise = np.random.default_rng(0).bytes(40_000)
    names = ["x.al", "x.ul", "x.g722", "x.sb", "x.sw", "x.AL"]
    for name in names:
        (tmp_path / name).write_bytes(noise)
    video = write_video(tmp_path / "x.mp4", [picture(i) for i in range(20)])
    evaluator = Evaluator(checkpoint=small_checkpoint, device="cpu")

    def rows(names) -> list:
        manifest = [{"audio": str(tmp_path / name), "video": str(video)} for name in names]
        return list(evaluator.evaluate(manifest=manifest, output_dir=tmp_path / "out")["audio_embeddings"])

    alone = [rows([name])[0] for name in names]
    assert torch.equal(alone[0], alone[-1])
    assert len({tuple(row.tolist()) for row in alone}) == 5
    (tmp_path / "out" / "embeddings.sqlite").unlink()
    assert torch.equal(torch.stack(rows(names)), torch.stack(alone))


# What ends early, and what is no media

SOUND = 0.3 * np.stack([tone(5, 440, 44100), tone(5, 880, 44100)])


def test_what_comes_behind_a_sound_costs_nothing_of_it(tmp_path, caplog):
    """An APE tag behind WavPack, at which FFmpeg fails."""
    plain = write_audio(tmp_path / "x.wv", SOUND, 44100, "wavpack")
    expected = data.load_audio(plain)
    tagged = tmp_path / "tagged.wv"
    tagged.write_bytes(plain.read_bytes() + b"APETAGEX" + bytes(200))
    assert torch.equal(data.load_audio(tagged), expected)
    assert "cannot be read on" in caplog.text


@pytest.mark.parametrize("share", [0.35, 0.7, 0.97])
def test_a_sound_that_is_cut_is_read_up_to_there(tmp_path, caplog, share):
    plain = write_audio(tmp_path / "x.wv", SOUND, 44100, "wavpack").read_bytes()
    cut = tmp_path / "cut.wv"
    cut.write_bytes(plain[: int(share * len(plain))])
    n_samples = sum(piece.shape[1] for piece, _ in decode_audio(cut))
    assert share - 0.15 < n_samples / SOUND.shape[1] < share + 0.05
    assert caplog.messages


def test_a_cut_end_of_a_few_packets_is_no_damage(tmp_path, caplog):
    whole = write_audio(tmp_path / "x.flac", SOUND[:, :22050], 44100, "flac").read_bytes()
    cut = tmp_path / "cut.flac"
    cut.write_bytes(whole[:-300])
    assert sum(piece.shape[1] for piece, _ in decode_audio(cut)) >= 16_000
    assert any("ends early" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("sizes", "damaged", "expected"),
    [
        ([100, *[1000] * 7], 0, "0.006 of 0.443 s are damaged and left out"),
        ([*[100] * 9, 1000, 100], 9, None),
    ],
    ids=["short", "long"],
)
def test_damage_is_measured_in_seconds(tmp_path, caplog, sizes, damaged, expected):
    """One packet of eight, which lasts a moment, or one of eleven, which is most of the sound."""
    path, written = tmp_path / "x.mka", 0
    with av.open(str(path), "w") as target, av.open(str(Sources(tmp_path).flac)) as source:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for i, size in enumerate(sizes):
            one = write_audio(tmp_path / "one.mka", noise(size / RATE), codec="flac")
            with av.open(str(one)) as container:
                (packet,) = (p for p in container.demux(audio=0) if p.size)
                packet = av.Packet(b"\xff" * packet.size if i == damaged else bytes(packet))
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, RATE), size
            packet.pts = packet.dts = written
            target.mux(packet)
            written += size
    if expected is None:
        with pytest.raises(data.MediaError, match=r"damaged: 0\.063 of 0\.125 s cannot be decoded"):
            list(decode_audio(path))
    else:
        assert sum(piece.shape[1] for piece, _ in decode_audio(path)) == sum(sizes) - sizes[damaged]
        assert caplog.messages == [f"{path}: {expected}"]


def test_24_valid_bits_of_32_are_whole_numbers(tmp_path):
    """In WAVE_FORMAT_EXTENSIBLE, which FFmpeg takes for floats."""
    samples = (tone(0.5) * 0.6 * 2**31).astype("<i4") & ~255
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 4 * RATE, 4, 32, 22, 24, 4) + guid
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", samples.nbytes) + samples.tobytes()
    (tmp_path / "x.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    (found,) = (piece for piece, _ in decode_audio(tmp_path / "x.wav"))
    assert torch.equal(found[0], torch.from_numpy(samples.astype(np.float32) / 2**31))


def test_a_gap_in_a_sound_is_no_damage(tmp_path, caplog):
    """The packet before it is lost, which lasts no longer than the others."""
    path = tmp_path / "x.mka"
    with av.open(str(path), "w") as target, av.open(str(Sources(tmp_path).mka)) as source:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for i, packet in enumerate(p for p in source.demux(audio=0) if p.size):
            copy = av.Packet(b"\xff" * packet.size if i == 9 else bytes(packet))
            copy.pts = copy.dts = packet.pts + (600_000 if i > 9 else 0)
            copy.time_base, copy.stream = packet.time_base, stream
            target.mux(copy)
    list(decode_audio(path))
    assert caplog.messages == [f"{path}: 0.072 of 5.7 s are damaged and left out"]


@pytest.mark.skipif(not TELLS_SIDEDATA, reason="this PyAV does not tell")
def test_encrypted_media_say_so(tmp_path):
    key = {"encryption_key": "76a6c65c5ea762046bd749a2e632ccbb", "encryption_kid": "a7" * 16}
    options = {"encryption_scheme": "cenc-aes-ctr"} | key
    for kind, source, load in (
        ("video", write_video(tmp_path / "whole.mp4", pictures(12)), data.load_video),
        ("audio", write_audio(tmp_path / "whole.m4a", noise(1), codec="aac"), data.load_audio),
    ):
        path = tmp_path / f"x{source.suffix}"
        with av.open(str(source)) as whole, av.open(str(path), "w", options=options) as target:
            stream = target.add_stream_from_template(whole.streams.best(kind))
            for packet in whole.demux(whole.streams.best(kind)):
                packet.stream = stream
                if packet.size:
                    target.mux(packet)
        assert reason(load, path) == "encrypted"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.wav",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "a Git LFS pointer, not the file",
        ),
        ("x.mp4", b"<!DOCTYPE html>\n<html></html>", "an HTML page, not media"),
        ("x.mp4", bytes(100_000), "it begins with zeros, where there should be media"),
        ("x.mp4", b"\0\0\0\x18ftypisom" + bytes(12) + b"\0\0\0\1mdat" + b"\xff" * 8, "an MP4 file without"),
        ("x.mkv", b"\x1aE\xdf\xa3\x8bB\x82\x88matroska\x18S\x80g\x01\0\0\0\0\0\x10\0", ENDS_EARLY),
        ("x.ogg", b"OggS", ENDS_EARLY),
        (
            "x.mp4",
            b"\0\0\0\x18ftypisom" + bytes(12) + b"\0\0\x10\0mdat" + bytes(50),
            "an MP4 file without its index",
        ),
    ],
    ids=["lfs", "html", "zeros", "endless", "mkv", "ogg", "moov"],
)
def test_what_is_no_media_says_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    load = data.load_audio if name in ("x.wav", "x.ogg") else data.load_video
    assert reason(load, tmp_path / name).startswith(message)
