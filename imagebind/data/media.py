"""Open media files, demux and decode them, and say what is wrong with them."""

from __future__ import annotations

import errno
import io
import itertools
import logging
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np

from imagebind.names import can_be_path
from imagebind.packages import PackageError
from imagebind.sources import Content, Member, Source

MAX_DAMAGED_SHARE = 0.1  # of a stream's length
MAX_TYPICAL_PACKETS = 20  # as long as these a packet of sound can be; from one to the next is a gap otherwise
MIN_FOUND_SHARE = 0.95  # of what a file says it holds; with less a warning says that it ends early
ENDS_EARLY = "it ends before its sound or video begins: it was not written, or downloaded, to its end"
OUT_OF_MEMORY = "needs more memory than it may have"
MAX_FORM_OFFSET = 1 << 16  # in a WAV file, of its chunk that says what the samples are
MAX_SILENT_BYTES = 1 << 13  # at the start of samples that are plain
PROBED_BYTES = 1 << 19  # in which FFmpeg looks for DTS in the samples of a WAV file
DTS_SYNC_WORDS = (  # each as two words of 16 bits, the lower byte first
    *((0xFE7F, 0x0180), (0x7FFE, 0x8001)),  # of 16 bits a word, either byte first
    *((0xFF1F, 0x00E8), (0x1FFF, 0xE800)),  # of 14
    (0x5864, 0x2520),  # of an extension
)
SEEN_BYTES, MAX_BOXES = 1 << 12, 10_000  # of a file that is no media: at its start, and in an MP4
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # what FFmpeg calls that format
PLAIN_WAV = {"max_size": "32768", "max_probe_packets": "1"}  # bytes of a packet; packets to probe
# Extensions by which FFmpeg decodes any bytes, each in its way, as there is nothing in them to tell
NAMED_FORMATS = {
    *("al", "ub", "ul", "uw", "sb", "sln", "sw"),
    *("g722", "722", "g723_1", "rco", "tco", "g728", "g729", "gsm"),
    *("302", "daud", "afc", "aptx", "aptxhd", "bit", "dfpwm", "dtk", "msbc", "sbc"),
    *("ans", "art", "asc", "cdg", "diz", "ice", "idf", "nfo", "vt", "yop"),  # pictures
}
PYAV = int(av.__version__.split(".")[0])
# Text in a file that is not UTF-8 is no fault of its sound and picture; later PyAV knows that by itself.
ANY_METADATA = {"metadata_errors": "replace"} if PYAV < 19 else {}
# Later PyAV starts threads for each picture, which takes longer than to convert it, and hangs in a fork.
ONE_THREAD = {"threads": 1} if PYAV >= 17 else {}
# Where an edit list ends a sound within a packet, FFmpeg 9 ends it there. Before, and so in published scores,
# it ended with the packet.
ENDS_WITHIN_PACKETS = av.library_versions["libavformat"][0] >= 63
TELLS_SIDEDATA = hasattr(av.Packet, "has_sidedata")  # so of an encrypted packet that it is; not PyAV 14
FAULTS = (NameError, AttributeError, TypeError, AssertionError)  # of a program, and not of a file
PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

AnyPath = str | os.PathLike | Source

log = logging.getLogger(__name__)


class MediaError(Exception):
    """A file that cannot be read: its `path`, and the `reason` in one line."""

    def __init__(self, path: AnyPath, reason: str):
        super().__init__(path, reason)
        self.path = str(Source.of(path))
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UnsupportedError(ValueError):
    """Media that could be decoded but are of a kind that is not supported; the message says which."""


@contextmanager
def media_errors(path: AnyPath) -> Iterator[None]:
    """Turn any exception inside into a MediaError that names the file; but not a fault of this program."""
    try:
        yield
    except (MediaError, PackageError):
        raise
    except UnsupportedError as e:
        raise MediaError(path, str(e)) from e
    except MemoryError as e:
        raise MediaError(path, OUT_OF_MEMORY) from e
    except (OSError, av.FFmpegError) as e:
        no_memory = e.errno == errno.EAGAIN  # for a thread
        raise MediaError(path, OUT_OF_MEMORY if no_memory else e.strerror or str(e)) from e
    except Exception as e:  # a decoder can raise anything, and that must cost one file only
        if isinstance(e, FAULTS) and is_of_this_package(e):
            raise
        no_memory = "can't allocate memory" in str(e)  # as torch puts it
        raise MediaError(path, OUT_OF_MEMORY if no_memory else f"{type(e).__name__}: {e}") from e


def is_of_this_package(error: Exception) -> bool:
    """Whether an error was raised by a line of this package, or in what that called of compiled code."""
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    return last.tb_frame.f_code.co_filename.startswith(PACKAGE_FOLDER)


@contextmanager
def hold_open(source: Source) -> Iterator[tuple[Source, BinaryIO]]:
    """Open a file once: what reads the given source reads this very file, whatever its name then leads to.

    Raises:
        OSError: it cannot be opened.
    """
    if source.file is None:
        yield source, open_file(source)
        return
    with open(source.file, "rb") as file:
        held = replace(source, descriptor=file.fileno())
        yield held, file if source.content is None else open_file(held)


class View(io.RawIOBase):
    """What is in no file of its own, as a file: bytes, or a stretch of a file that is open."""

    def __init__(self, name: str, content: Content, descriptor: int | None = None):
        self.name, self._content, self._descriptor, self._place = name, content, descriptor, 0
        self._size = content.size if isinstance(content, Member) else len(content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if place < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._place = place
        return place

    def readinto(self, buffer: memoryview) -> int:
        n = max(0, min(len(buffer), self._size - self._place))
        if isinstance(self._content, Member):
            found = os.pread(self._descriptor, n, self._content.offset + self._place)
        else:
            found = self._content[self._place : self._place + n]
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)


class File(io.BufferedReader):
    """A file for PyAV. A header with a false size can have FFmpeg seek where no file can be."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek, or return what FFmpeg takes for a failure, and goes on: minus the number of the error."""
        try:
            return super().seek(offset, whence)
        except OSError as e:
            return -e.errno


def open_file(path: AnyPath) -> File:
    """Open a file, or the one that is held open, at its start.

    Its name is that of the file, by whose extension FFmpeg knows some formats.
    """
    source = Source.of(path)
    if source.content is not None:
        return File(View(source.path, source.content, source.descriptor))
    if source.descriptor is not None and sys.platform == "linux":  # elsewhere its position would be shared
        held = f"/proc/self/fd/{source.descriptor}"
    else:
        held = source.path
    return File(io.FileIO(source.path, "rb", opener=lambda _, flags: os.open(held, flags)))


def named_format(path: AnyPath) -> str:
    """Return what of a file's name decides how it is decoded, as "#al"; "" where its content does."""
    suffix = os.path.splitext(Source.of(path).path)[1][1:].lower()
    return f"#{suffix}" if suffix in NAMED_FORMATS else ""


def check_is_file(path: AnyPath) -> None:
    """Raise a MediaError for what is no file, or one that could block or never end: a pipe, a device."""
    file = Source.of(path).file
    if file is None:
        return
    if not can_be_path(file):
        raise MediaError(path, "a path that no file can have")
    if os.path.isdir(file):
        raise MediaError(path, "Is a directory; --audio_dir and --video_dir search one")
    if os.path.exists(file) and not os.path.isfile(file):
        raise MediaError(path, "not a regular file")
    if not os.path.lexists(file) and file.startswith("~"):
        raise MediaError(path, "No such file or directory; ~ is taken as it stands here")
    if not os.path.lexists(file) and "://" in file:
        raise MediaError(path, "an address, from which nothing is read; download the file")
    if not os.path.lexists(file) and any(mark in file for mark in "*?"):
        raise MediaError(path, "No such file or directory; * and ? are taken as they stand here")


@contextmanager
def open_stream(path: AnyPath, kind: str) -> Iterator[av.stream.Stream]:
    """Open the best stream of a kind ("audio" or "video") of a media file; best as ffmpeg ranks streams.

    Raises:
        MediaError: the file cannot be opened, or has no such stream.
    """
    # FFmpeg gets an open file, not a name: it would take a name for an address ("concat:...", "http:...").
    # It may use no protocol by itself either, so that a playlist cannot open other files.
    options = {"protocol_whitelist": "none"}
    check_is_file(path)
    with media_errors(path), open_file(path) as file:
        if not file.read(1):
            raise MediaError(path, "the file is empty")
        file.seek(0)
        options |= PLAIN_WAV if is_plain_wav(file) else {}
        try:
            opened = av.open(file, container_options=options, **ANY_METADATA)
        except av.FFmpegError as e:
            # EIO is FFmpeg's own here, of a header that is cut: that of a disk is Python's, raised by read().
            ends = isinstance(e, av.EOFError) or e.errno == errno.EIO
            if not ends and not isinstance(e, av.InvalidDataError):
                raise
            file.seek(0)
            raise MediaError(path, describe_no_media(file) or (ENDS_EARLY if ends else e.strerror)) from e
        with opened as container:
            stream = container.streams.best(kind)
            if stream is None or is_cover(stream):
                raise MediaError(path, f"no {kind} stream")
            if stream.codec_context is None:
                raise MediaError(path, f"no decoder for its {kind}")
            yield stream


def describe_no_media(file: BinaryIO) -> str | None:
    """Say what a file is that FFmpeg cannot open, by its first bytes; None where they do not tell."""
    head = file.read(SEEN_BYTES)
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file: git lfs pull"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not media"
    if not head.strip(b"\0"):
        return "it begins with zeros, where there should be media"
    if head[4:8] == b"ftyp" and not any(kind == b"moov" for kind in box_kinds(file)):
        return "an MP4 file without its index (moov): it was not written, or downloaded, to its end"
    return None


def box_kinds(file: BinaryIO) -> Iterator[bytes]:
    """Yield the kinds of the outer boxes of an MP4 file."""
    place, end = 0, file.seek(0, os.SEEK_END)
    for _ in range(MAX_BOXES):
        if place >= end:
            return
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            return
        yield head[4:8]
        size = int.from_bytes(head[:4], "big")
        place += int.from_bytes(head[8:16], "big") if size == 1 else size or end
        if size != 1 and size < 8:
            return


def is_cover(stream: av.stream.Stream) -> bool:
    """Whether a stream is a picture that comes with a sound, and so no video."""
    return type(stream.disposition).attached_pic in stream.disposition


def is_plain_wav(file: BinaryIO) -> bool:
    """Whether a file is a WAV file of 16-bit samples, and they are the sound itself; it is left at its start.

    FFmpeg takes 20 ms to look whether such samples are something else. It finds that in the first packet,
    unless silence comes first or it is DTS, whose sync words are looked for here.
    """
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        head += file.read(PROBED_BYTES)
    file.seek(0)
    form = head.find(b"fmt ", 12, MAX_FORM_OFFSET)
    (bits,) = struct.unpack("<H", head[form + 22 : form + 24]) if 0 < form < len(head) - 24 else (0,)
    if bits != 16:
        return False
    samples = head.find(b"data", form) + 8
    is_heard = samples > 8 and bool(head[samples : samples + MAX_SILENT_BYTES].strip(b"\0"))
    return is_heard and not has_dts(np.frombuffer(head, "<u2", len(head) // 2))


def has_dts(words: np.ndarray) -> bool:
    """Whether one of DTS's sync words is among words of 16 bits."""
    for first, second in DTS_SYNC_WORDS:
        places = np.flatnonzero(words[:-1] == first)
        if (words[places + 1] == second).any():
            return True
    return False


def demux(stream: av.stream.Stream) -> Iterator[av.Packet]:
    """Yield a stream's packets from the current position on; the last, empty one flushes the decoder.

    Where the file cannot be read on, they end there, with a warning.

    Raises:
        av.FFmpegError: it cannot be read at all.
        MediaError: it is encrypted.
    """
    n_packets = 0
    while True:
        try:
            for packet in stream.container.demux(stream):
                if TELLS_SIDEDATA and packet.has_sidedata("encryption_info"):
                    raise MediaError(stream.container.name, "encrypted")
                n_packets += packet.size > 0
                yield packet
            return
        except IndexError:  # PyAV raises it for a stream that appears in mid-file: skip that packet
            continue
        except av.FFmpegError as e:
            if not n_packets or isinstance(e, MemoryError):
                raise
            log.warning(
                "%s: cannot be read on (%s); what comes before is used", stream.container.name, e.strerror
            )
            flush = av.Packet()
            flush.stream = stream
            yield flush
            return


def never() -> bool:
    return False


def decode(stream: av.stream.Stream, is_enough: Callable[[], bool] = never) -> Iterator[av.frame.Frame]:
    """Decode a stream; packets that cannot be decoded are left out, as ffmpeg does.

    Args:
        is_enough: tells before each packet whether to end; by default the stream is decoded to its end.

    Raises:
        MediaError: more than MAX_DAMAGED_SHARE of its length, or all, cannot be decoded. What is lost at the
            end, behind which nothing can be decoded, is no damage but a file that ends early.
    """
    stream.codec_context.thread_count = 1
    times, lost, end = [], [], 0  # of each packet; numbers of packets; behind the last good one
    is_cut = ENDS_WITHIN_PACKETS and stream.type == "audio" and stream.container.format.name == MP4
    for packet in demux(stream):
        if is_enough():
            break
        if is_cut and packet.has_sidedata("skip_samples"):
            keep_end(packet)
        if packet.size:
            times.append(packet.pts)
            duration = packet.duration
        try:
            frames = packet.decode()
        except av.FFmpegError as e:
            if isinstance(e, MemoryError):
                raise
            if packet.size:
                lost.append(len(times) - 1)
            continue
        if frames and packet.size:
            end = len(times)
        yield from frames
    if lost:
        length, unit = measure(stream, times, duration)
        report_loss(stream.container.name, length, unit, lost, end)


def measure(
    stream: av.stream.Stream, times: Sequence[int | None], duration: int | None
) -> tuple[list[Fraction | int], str]:
    """Return the length of each packet of a stream: of a sound in seconds, if its packets have times.

    Args:
        times: of the packets.
        duration: of the last one.
    """
    if stream.type == "audio" and None not in times:
        lengths = [b - a for a, b in itertools.pairwise(times)]
        lengths.append(duration or max(lengths, default=0))
        typical = sorted(lengths)[len(lengths) // 2]
        if min(lengths) > 0:  # a much longer one is a gap in the sound
            lengths = [x if x <= MAX_TYPICAL_PACKETS * typical else typical for x in lengths]
            return [length * stream.time_base for length in lengths], "s"
    return [1] * len(times), "packets"


def report_loss(
    path: str, length: Sequence[Fraction | int], unit: str, lost: Sequence[int], end: int
) -> None:
    """Warn of the packets of a stream that cannot be decoded.

    Args:
        length, unit: of each packet.
        lost: numbers of the packets.
        end: behind the last one that can be decoded.

    Raises:
        MediaError: as decode.
    """
    damaged, at_end = [n for n in lost if n < end], [n for n in lost if n >= end]
    total, n_damaged, n_at_end = (
        sum(length[n] for n in some) for some in (range(len(length)), damaged, at_end)
    )

    def of_all(amount: Fraction | int) -> str:
        amounts = (f"{float(x):.3f}".rstrip("0").rstrip(".") for x in (amount, total))
        return f"{' of '.join(amounts)} {unit}"

    if n_damaged > MAX_DAMAGED_SHARE * total or n_at_end == total:
        raise MediaError(path, f"damaged: {of_all(n_damaged + n_at_end)} cannot be decoded")
    if n_damaged:
        log.warning("%s: %s are damaged and left out", path, of_all(n_damaged))
    if n_at_end:
        log.warning("%s: ends early: the last %s cannot be decoded", path, of_all(n_at_end))


def keep_end(packet: av.Packet) -> None:
    """Have a packet decoded to its end; what is to be skipped at its start still is."""
    skipped = packet.get_sidedata("skip_samples")
    start, why = bytes(skipped)[:4], bytes(skipped)[8:]
    skipped.update(start + bytes(4) + why)  # between them the number of samples at the end
    packet.set_sidedata(skipped)


def warn_if_truncated(path: AnyPath, found: float, stated: float, unit: str) -> None:
    """Warn where a file ends long before the length that it states."""
    if found < MIN_FOUND_SHARE * stated:
        log.warning("%s: ends early: %.6g of %.6g %s are there", path, found, stated, unit)
