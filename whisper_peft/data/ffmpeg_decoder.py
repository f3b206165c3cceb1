"""Decode with FFmpeg's libraries: webm, m4a, mp4 and the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from whisper_peft.data.decoded_clip import (
    DECODER_ERRORS,
    NO_SAMPLES,
    AudioError,
    Clip,
    check_rate,
    describe_failure,
    measure_file,
    refuse_endless,
)
from whisper_peft.data.frames import is_part_of_a_frame
from whisper_peft.data.mixing import Levels, Mixer
from whisper_peft.data.structure import Marks

if TYPE_CHECKING:
    import av

# A file with more packets is damaged, or was made to keep us busy.
MOST_PACKETS = 4_000_000
# The largest number of packets in a row that hold no sound.
_MOST_IDLE_PACKETS = 10_000
# Codecs whose packets are frames that state their own size.
_CODECS_OF_FRAMES = ("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "ac3", "ac3_fixed", "eac3")


def decode_pyav(file: BinaryIO, start_s: float, end_s: float | None, marks: Marks | None = None, mark: int = 0) -> Clip:
    """Decode with FFmpeg's libraries: webm, m4a, mp4 and the rest.

    Args:
        file: The file, open for reading.
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
        marks: Time stamps at which decoding can begin; None to decode from the start of the file.
        mark: Number of the mark at which decoding begins.

    Returns:
        The decoded samples. The clip has a failure if no packet has the time stamp of the mark.
    """
    import av

    piece = _Piece(start_s, end_s, marks, mark, measure_file(file))
    stated_s = None
    failure = None
    cut_off = False
    try:
        with open_container(file) as container:
            if not container.streams.audio:
                return Clip(NO_SAMPLES, 1, 0.0, failure="no sound in it")
            stated_s = _read_stated_s(container)
            if container.streams.audio[0].codec_context is None:
                return Clip(NO_SAMPLES, 1, 0.0, failure="its codec cannot be decoded")
            codec = container.streams.audio[0].codec_context.name
            # The float samples of other codecs have a scale of their own.
            piece.is_float = codec.startswith("pcm_f") or codec == "wavpack"
            last_packet: list[bytes] = []
            first_stamp = None if marks is None else marks.places[mark]
            for n_packets, frame in _decode_frames(container, last_packet, first_stamp):
                if not piece.add(n_packets, frame):
                    break
            failure = piece.failure
            cut_off = codec in _CODECS_OF_FRAMES and any(map(is_part_of_a_frame, last_packet))
    except (av.FFmpegError, *DECODER_ERRORS) as error:
        failure = describe_failure(error)
    if piece.mixer is None:
        return Clip(NO_SAMPLES, 1, 0.0, stated_s, failure)
    wave, cancelled_s = piece.mixer.take_wave()
    return Clip(
        wave,
        piece.mixer.rate_hz,
        piece.n_read / piece.mixer.rate_hz,
        stated_s=stated_s,
        failure=failure,
        full_scale=piece.levels.full_scale,
        peak=piece.levels.peak,
        cancelled_s=cancelled_s,
        cut_off=cut_off,
    )


class _Piece:
    """The samples of a piece, cut out of the frames that are decoded around it.

    Args:
        start_s: Start of the piece, in seconds.
        end_s: End of the piece, in seconds; None for the end of the file.
        marks: Places at which decoding can begin; None if it begins at the start of the file.
        mark: Number of the mark at which decoding begins.
        n_bytes: Size of the file.
    """

    def __init__(self, start_s: float, end_s: float | None, marks: Marks | None, mark: int, n_bytes: int):
        # None until the first frame states the sampling rate.
        self.mixer: Mixer | None = None
        self.levels = Levels()
        # Whether the samples are floats that may be on another scale; then the whole file is read for it.
        self.is_float = False
        # Number of the sample of the file behind the last one that was decoded.
        self.n_read = 0
        self.failure: str | None = None
        self._start_s = start_s
        self._end_s = end_s
        self._marks = marks
        self._mark = mark
        self._n_bytes = n_bytes

    def add(self, n_packets: int, frame: av.AudioFrame) -> bool:
        """Take the next frame.

        Args:
            n_packets: Number of packets that were decoded so far.
            frame: A frame of the last of these packets.

        Returns:
            Whether the next frame is needed, too.

        Raises:
            AudioError: The file unpacks to far more sound than speech would.
            ValueError: The packets are not like those at the beginning of the file, or the sampling rate is broken.
        """
        if self.mixer is None:
            self.mixer = Mixer(check_rate(frame.sample_rate))
            if self._marks is not None:
                self.n_read = self._count_samples_before(self._marks, n_packets, frame)
        elif frame.sample_rate != self.mixer.rate_hz:
            self.failure = f"the sampling rate changes from {self.mixer.rate_hz} to {frame.sample_rate} Hz in the file"
            return False
        frame_start = self.n_read
        self.n_read += frame.samples
        refuse_endless(self._n_bytes, self.n_read, self.mixer.rate_hz)
        # The samples of the frame that belong to the piece.
        first = max(0, round(self._start_s * self.mixer.rate_hz) - frame_start)
        last = frame.samples
        if self._end_s is not None:
            last = min(last, round(self._end_s * self.mixer.rate_hz) - frame_start)
        if first < last or self.is_float:
            block = _read_samples(frame)
            if self.is_float:
                self.levels.add(block)
            if first < last:
                self.mixer.add(block[first:last])
        # The scale of float samples is that of the whole file.
        return last >= frame.samples or self.is_float

    def _count_samples_before(self, marks: Marks, n_packets: int, frame: av.AudioFrame) -> int:
        """Count the samples of the file before the first frame that is decoded from a mark on."""
        if frame.sample_rate != marks.rate_hz or frame.samples > marks.packet_samples:
            raise ValueError("packets that hold less, or more, than those at the beginning of the file")
        # A decoder may drop its first samples wherever it begins, so the count goes by the end of the frame.
        packets_end = marks.samples_before(self._mark) + n_packets * marks.packet_samples
        return packets_end - marks.n_dropped - frame.samples


def _decode_frames(
    container: av.container.InputContainer, last_packet: list[bytes], first_stamp: int | None
) -> Iterator[tuple[int, av.AudioFrame]]:
    """Yield the decoded frames of the first stream of sound.

    Args:
        container: The file, open in FFmpeg's libraries.
        last_packet: A list that takes the last packet of the file, once the file was read to its end.
        first_stamp: Time stamp of the packet at which decoding begins; None for the first packet of the file.

    Yields:
        The number of packets that were decoded so far, and a frame of the last one of them.

    Raises:
        AudioError: Thousands of packets hold nothing.
        ValueError: No packet has that time stamp.
    """
    stream = container.streams.audio[0]
    if first_stamp is not None:
        container.seek(first_stamp, stream=stream)
    n_packets = 0
    n_idle = 0
    last = None
    for packet in container.demux(stream):
        if first_stamp is not None and n_packets == 0 and packet.pts != first_stamp:
            if packet.pts is None or packet.pts > first_stamp:
                raise ValueError(f"no packet with the time stamp {first_stamp}")
            # A container leads to a place up to some seconds before the time stamp.
            continue
        n_packets += 1
        n_idle += 1
        if packet.size:
            last = packet
        elif last is not None:
            # An empty packet ends the stream.
            last_packet.append(bytes(last))
        for frame in packet.decode():
            n_idle = 0
            yield n_packets, frame
        if n_idle > _MOST_IDLE_PACKETS:
            raise AudioError(f"damaged: {_MOST_IDLE_PACKETS:,} packets one after the other hold no sound")


def _read_samples(frame: av.AudioFrame) -> np.ndarray:
    """Return the samples of a decoded frame as float32 (n_samples, n_channels), integers with full scale 1."""
    if frame.format.name == "fltp" and len(frame.planes) == 1:
        # An hour of mp3 has 140,000 such frames, and to_ndarray takes half as long as decoding them. The samples are
        # copied, so that the frame can be freed.
        samples = np.frombuffer(frame.planes[0], np.float32, frame.samples)
        return samples.copy()[:, np.newaxis]
    array = frame.to_ndarray()
    # A planar frame comes as (n_channels, n_samples), a packed one as (1, n_samples * n_channels).
    array = array.T if frame.format.is_planar else array.reshape(frame.samples, -1)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind == "i":
        return array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    return array.astype(np.float32, copy=False)


# Containers whose duration libav reads from a header. For others it estimates the duration from a bit rate.
_FORMATS_THAT_STATE_DURATION = ("mov", "matroska", "flac", "wv", "tta", "ape", "mpc", "mpc8", "tak")


def _read_stated_s(container: av.container.InputContainer) -> float | None:
    """Return the seconds that the header of an open container states; None where libav would only be guessing."""
    if container.duration and container.format.name.split(",")[0] in _FORMATS_THAT_STATE_DURATION:
        # The unit is av.time_base: a microsecond.
        return container.duration / 1_000_000
    return None


# FFmpeg 7 looks for frames in the first megabyte, and takes many seconds where each word could begin a frame. A frame
# has 4 kB at most, so 100 kB are enough.
_AC3_SYNC_WORD = b"\x0b\x77"
_AC3_PROBED_BYTES = "100000"
# The formats that FFmpeg's libraries may take a file for. Play lists and session descriptions are not among them: they
# name other files and addresses, which would be opened. Nor are pictures and subtitles.
_DEMUXERS = (
    "aa,aac,ac3,ac4,act,adx,aea,aiff,aix,amr,amrnb,amrwb,ape,apm,aptx,asf,asf_o,ast,au,avi,avr,bonk,brstm,bfstm,caf,"
    "codec2,dsf,dss,dts,dtshd,dv,eac3,epaf,flac,flv,fsb,g722,g723_1,g726,g726le,g729,gsm,gxf,hca,iamf,iff,ilbc,ircam,"
    "iss,ivf,kvag,laf,lc3,loas,matroska,mlp,mmf,mov,mp3,mpc,mpc8,mpeg,mpegts,msf,mtaf,mxf,nistsphere,nsv,nut,ogg,oma,"
    "osq,paf,pva,pvf,qcp,qoa,rm,rso,sbc,sds,shn,siff,sln,sol,sox,spdif,swf,tak,truehd,tta,vag,voc,vqf,w64,wav,wavarc,"
    "wsd,wtv,wv,wve,xa,xvag,xwma"
)


def open_container(file: BinaryIO) -> av.container.InputContainer:
    """Open a file with FFmpeg's libraries, as sound and nothing else.

    A tag that is not UTF-8 is no reason to refuse the sound. PyAV thinks so, too, from version 19 on.
    """
    import av

    is_strict = int(av.__version__.split(".")[0]) < 19
    tolerant = {"metadata_errors": "replace"} if is_strict else {}
    # A playlist (.m3u8) or session description (.sdp) in place of sound names addresses that libav would open.
    limits = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
    file.seek(0)
    if file.read(2) == _AC3_SYNC_WORD:
        limits["formatprobesize"] = _AC3_PROBED_BYTES
    file.seek(0)
    return av.open(file, container_options=limits, **tolerant)


def read_container_s(file: BinaryIO) -> float | None:
    """Read the seconds that a container's header states, or else add up its packets, which are not decoded.

    Returns:
        None if neither tells.

    Raises:
        AudioError: The file has millions of packets.
    """
    import av

    file.seek(0)
    try:
        with open_container(file) as container:
            if not container.streams.audio:
                return None
            stated_s = _read_stated_s(container)
            if stated_s is not None:
                return stated_s
            stream = container.streams.audio[0]
            # In units of the stream's time base.
            total = 0
            for number, packet in enumerate(container.demux(stream)):
                if number >= MOST_PACKETS:
                    raise AudioError(f"damaged: more than {MOST_PACKETS:,} packets")
                total += packet.duration or 0
            return float(total * stream.time_base)
    except (av.FFmpegError, *DECODER_ERRORS):
        return None
