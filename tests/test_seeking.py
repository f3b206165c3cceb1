"""A piece of a long recording is decoded from near its start, and equals that slice of the whole recording."""

from __future__ import annotations

import dataclasses
import io
from array import array

import numpy as np
import pytest
from test_audio import by_pyav, by_soundfile, speech_like

from whisper_peft.data import audio, seeking
from whisper_peft.data.audio import AudioError, load_audio
from whisper_peft.data.ffmpeg_decoder import decode_pyav
from whisper_peft.data.xing import count_down_header, is_counted_alike

SECONDS = 20.0
# The head of a file with one channel says that the decoder drops 312 samples.
OPUS_HEAD = b"OpusHead\x01\x01" + (312).to_bytes(2, "little")
VBR = {"flags": "+qscale", "global_quality": "236"}
# This switches off the bands that the decoder fills with noise of its own. That noise would differ with the place
# where decoding begins.
NO_NOISE = {"aac_pns": "0"}


def loud_and_quiet(rate_hz: int) -> np.ndarray:
    """Make tones and noise that come and go, so that the bit rate of a VBR file varies a lot."""
    return speech_like(SECONDS, rate_hz, quiet_s=3.0) * np.repeat([1.0, 0.02, 0.3, 1.0], round(5 * rate_hz))


def encode(file_format: str, codec: str, rate_hz: int, **options) -> tuple[bytes, int]:
    return by_pyav(loud_and_quiet(rate_hz), file_format, codec, rate_hz=rate_hz, **options), rate_hz


def rewritten(recordings: list[bytes], file_format: str, stamp_s, **options: str) -> bytes:
    """Write the packets of several recordings to one file; stamp_s maps the number and the old time to the new time."""
    import av

    target = io.BytesIO()
    number = 0
    stream = None
    with av.open(target, "w", format=file_format, options=options) as container:
        for recording in recordings:
            with av.open(io.BytesIO(recording)) as source:
                if stream is None:
                    stream = container.add_stream_from_template(source.streams.audio[0])
                for packet in source.demux(source.streams.audio[0]):
                    if packet.size:
                        stamp = round(stamp_s(number, float(packet.pts * packet.time_base)) / packet.time_base)
                        packet.pts = stamp
                        packet.dts = stamp
                        packet.stream = stream
                        container.mux(packet)
                        number += 1
    return target.getvalue()


def jitter(number: int, stamp_s: float) -> float:
    """Return a time stamp as a browser writes it: some milliseconds off, and with a pause of 3 s in the middle."""
    return 1.0 + stamp_s + 0.004 * (number % 3) + (3.0 if stamp_s > SECONDS / 2 else 0.0)


MP3 = {
    "mp3": lambda: encode("mp3", "libmp3lame", 44_100, codec_options=VBR),
    "mp3_no_count": lambda: encode("mp3", "libmp3lame", 44_100, codec_options=VBR, write_xing="0"),
    "mp3_16_khz": lambda: encode("mp3", "libmp3lame", 16_000, codec_options=VBR, write_xing="0"),
    "mp3_low_rate": lambda: encode("mp3", "libmp3lame", 48_000, codec_options={"b": "32000"}, write_xing="0"),
}
PACKETS = {
    "m4a": lambda: encode("mp4", "aac", 44_100, codec_options=NO_NOISE),
    "m4a_edit_list": lambda: (
        rewritten(
            [encode("mp4", "aac", 48_000, codec_options=NO_NOISE)[0]], "mp4", lambda _, at_s: at_s - 1024 / 48_000
        ),
        48_000,
    ),
    "mp4_fragments": lambda: encode(
        "mp4", "aac", 48_000, codec_options=NO_NOISE, movflags="frag_keyframe+empty_moov", frag_duration="500000"
    ),
    "mkv": lambda: encode("matroska", "aac", 44_100, codec_options=NO_NOISE),
    "webm": lambda: encode("webm", "libopus", 48_000),
    "webm_60_ms": lambda: encode("webm", "libopus", 48_000, codec_options={"frame_duration": "60"}),
    "webm_that_drops_four_packets": lambda: (
        encode("webm", "libopus", 48_000)[0].replace(OPUS_HEAD, OPUS_HEAD[:10] + (3840).to_bytes(2, "little")),
        48_000,
    ),
    "webm_without_cues": lambda: encode("webm", "libopus", 48_000, seekable=False, live="1"),
    "webm_of_a_browser": lambda: (
        rewritten([encode("webm", "libopus", 48_000)[0]], "webm", jitter, live="1"),
        48_000,
    ),
}
# A piece of AAC is decoded from two places, of which the first lies about 10 s before it.
AAC = ("m4a", "m4a_edit_list", "mp4_fragments", "mkv")
OGG = {"ogg_opus": lambda: (by_soundfile(loud_and_quiet(48_000), "OGG", "OPUS", 48_000), 48_000)}


@pytest.fixture(scope="module")
def encoded() -> dict[str, tuple[bytes, int]]:
    """Make every file; return its contents and its sampling rate by name."""
    return {name: make() for name, make in {**MP3, **PACKETS, **OGG}.items()}


@pytest.fixture
def from_start(monkeypatch) -> list[float]:
    """Collect the start of each piece that is decoded from the start of its file."""
    starts = []

    def counted(file, structure, start_s, end_s):
        starts.append(start_s)
        return decode(file, structure, start_s, end_s)

    decode = seeking.decode
    monkeypatch.setattr(seeking, "decode", counted)
    return starts


def level_db(wave: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(wave)) + 1e-20)


def pieces(n_pieces: int, seed: int = 0) -> list[tuple[float, float]]:
    chance = np.random.default_rng(seed)
    starts_s = chance.uniform(3.0, SECONDS - 1.0, n_pieces)
    return [(start_s, min(SECONDS - 0.2, start_s + chance.uniform(0.3, 4.0))) for start_s in starts_s]


@pytest.mark.parametrize("name", [*MP3, *PACKETS, *OGG])
def test_a_piece_equals_its_slice_of_the_whole_recording(encoded, from_start, name):
    data, rate_hz = encoded[name]
    whole = load_audio(data, sample_rate_hz=rate_hz)
    for start_s, end_s in pieces(15):
        piece = load_audio(data, start_s=start_s, end_s=end_s, sample_rate_hz=rate_hz)
        first = round(start_s * rate_hz)
        assert abs(len(piece) - (end_s - start_s) * rate_hz) <= 1
        # One sample is 0.02 ms to 0.06 ms.
        gaps_db = [level_db(piece - whole[first + lag : first + lag + len(piece)]) for lag in (-1, 0, 1)]
        assert min(gaps_db) < -60, (start_s, end_s, gaps_db)
    tail = load_audio(data, start_s=SECONDS - 4.0, sample_rate_hz=rate_hz)
    assert len(tail) == len(whole) - round((SECONDS - 4.0) * rate_hz)
    assert level_db(tail - whole[-len(tail) :]) < -60
    # libsndfile seeks in these files itself.
    if name not in OGG:
        assert all(name in AAC and start_s < 12.0 for start_s in from_start)


@pytest.mark.parametrize("name", [*MP3, *PACKETS])
@pytest.mark.parametrize("share", [0.45, 0.8])
def test_a_cut_file_gives_the_same_errors_as_decoding_from_its_start(encoded, monkeypatch, name, share):
    data, rate_hz = encoded[name]
    cut = data[: int(len(data) * share) + 5]

    def outcomes() -> list[str | int]:
        results = []
        for start_s, end_s in [*pieces(6, seed=1), (SECONDS - 3.0, None), (SECONDS + 3.0, None), (4.0, SECONDS + 9.0)]:
            try:
                results.append(len(load_audio(cut, start_s=start_s, end_s=end_s, sample_rate_hz=rate_hz)))
            except AudioError as error:
                results.append(str(error))
        return results

    sought = outcomes()
    monkeypatch.setattr(audio, "decode_piece", seeking.decode)
    assert sought == outcomes()
    assert any(isinstance(outcome, str) for outcome in sought)


def test_damage_is_found_in_the_pieces_that_hold_it(encoded):
    data = encoded["m4a"][0]
    middle = data.index(b"mdat") + len(data) // 2
    damaged = data[:middle] + b"\xff" * 3000 + data[middle + 3000 :]
    with pytest.raises(AudioError):
        load_audio(damaged)
    outcomes = []
    for start_s in np.arange(3.0, 19.0):
        try:
            piece = load_audio(damaged, start_s=start_s, end_s=start_s + 0.9)
            np.testing.assert_array_equal(piece, load_audio(data, start_s=start_s, end_s=start_s + 0.9))
            outcomes.append("right")
        except AudioError:
            outcomes.append("refused")
    # The damage lies at about 10 s. A piece of AAC is also refused if the damage lies in the 10 s before the piece.
    assert outcomes[:3] == ["right"] * 3
    assert outcomes.count("refused") >= 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[:60_000] + b"\0" * 500 + data[60_000:], id="a gap"),
        pytest.param(lambda data: data.replace(b"Lavc", b"GOGO").replace(b"Lavf", b"GOGO"), id="another encoder"),
        pytest.param(lambda data: data + data, id="two files in one"),
    ],
)
def test_an_mp3_whose_frames_do_not_tell_the_time_is_decoded_from_its_start(encoded, from_start, change):
    data = change(encoded["mp3"][0])
    piece = load_audio(data, start_s=4.0, end_s=6.0, sample_rate_hz=44_100)
    assert from_start == [4.0]
    assert level_db(piece - load_audio(data, end_s=6.0, sample_rate_hz=44_100)[-len(piece) :]) < -60


def test_a_codec_with_noise_of_its_own_is_decoded_from_its_start(from_start):
    data, rate_hz = encode("matroska", "ac3", 48_000)
    whole = load_audio(data, sample_rate_hz=rate_hz)
    piece = load_audio(data, start_s=12.0, end_s=14.0, sample_rate_hz=rate_hz)
    assert from_start == [12.0]
    np.testing.assert_array_equal(piece, whole[12 * rate_hz : 14 * rate_hz])


def test_a_file_with_packets_of_two_sizes_is_decoded_from_its_start(from_start):
    recordings = [encode("webm", "libopus", 48_000, codec_options={"frame_duration": ms})[0] for ms in ("20", "60")]
    n_short = round(SECONDS / 0.02) + 1

    def stamp_s(number: int, _: float) -> float:
        return 0.02 * min(number, n_short) + 0.06 * max(0, number - n_short)

    data = rewritten(recordings, "webm", stamp_s)
    whole = load_audio(data, sample_rate_hz=48_000)
    assert len(whole) > 1.9 * SECONDS * 48_000
    piece = load_audio(data, start_s=25.0, end_s=27.0, sample_rate_hz=48_000)
    assert from_start == [25.0]
    np.testing.assert_array_equal(piece, whole[25 * 48_000 : 27 * 48_000])


def test_an_aac_file_with_noise_that_the_decoder_makes_is_decoded_from_its_start(from_start):
    data, rate_hz = encode("mp4", "aac", 44_100, codec_options={"b": "48000"})
    whole = load_audio(data, sample_rate_hz=rate_hz)
    for start_s in (16.0, 14.0, 3.5, 18.5):
        piece = load_audio(data, start_s=start_s, end_s=start_s + 1.0, sample_rate_hz=rate_hz)
        first = round(start_s * rate_hz)
        assert level_db(piece - whole[first : first + len(piece)]) < -60
    assert from_start == [16.0, 14.0, 3.5, 18.5]


def test_a_piece_fails_if_its_packets_differ_from_those_at_the_beginning(encoded):
    data, rate_hz = encoded["m4a"]
    marks = seeking._read_packet_marks(io.BytesIO(data))
    assert (marks.packet_samples, marks.rate_hz) == (1024, rate_hz)
    assert decode_pyav(io.BytesIO(data), 9.0, 10.0, marks, 7).failure is None
    for other in ({"rate_hz": 2 * rate_hz, "packet_samples": 2048}, {"packet_samples": 960}):
        assert decode_pyav(io.BytesIO(data), 9.0, 10.0, dataclasses.replace(marks, **other), 7).failure
    moved = dataclasses.replace(marks, places=array("q", [stamp + 5 for stamp in marks.places]))
    assert "no packet" in decode_pyav(io.BytesIO(data), 9.0, 10.0, moved, 7).failure


def test_the_packets_of_a_file_are_read_once_and_again_if_it_changes(tmp_path, encoded, monkeypatch):
    expected = load_audio(encoded["mp3"][0], start_s=12.0, end_s=14.0)
    looked = []
    for name in ("read_structure", "_read_packet_marks"):
        read = getattr(seeking, name)
        monkeypatch.setattr(seeking, name, lambda file, read=read, name=name: looked.append(name) or read(file))
    path = tmp_path / "talk"
    path.write_bytes(encoded["webm"][0])
    for start_s, end_s in pieces(5):
        load_audio(path, start_s=start_s, end_s=end_s)
    assert looked == ["read_structure", "_read_packet_marks"]
    path.write_bytes(encoded["mp3"][0])
    np.testing.assert_array_equal(load_audio(path, start_s=12.0, end_s=14.0), expected)
    assert looked[2:] == ["read_structure"]


def test_a_piece_is_decoded_from_a_few_seconds_before_it(encoded, monkeypatch):
    from whisper_peft.data import ffmpeg_decoder

    n_decoded = []
    frames = ffmpeg_decoder._decode_frames

    def counted(*arguments):
        for n_packets, frame in frames(*arguments):
            n_decoded.append(frame.samples)
            yield n_packets, frame

    monkeypatch.setattr(ffmpeg_decoder, "_decode_frames", counted)
    for name in (*MP3, *PACKETS):
        data, rate_hz = encoded[name]
        n_decoded.clear()
        load_audio(data, start_s=15.0, end_s=16.0)
        most_s = 14.5 if name in AAC else 3.5
        assert 1.9 < sum(n_decoded) / rate_hz < most_s, name


def test_the_count_down_header_of_an_mp3_states_the_remaining_frames(encoded):
    data = encoded["mp3"][0]
    name = max(data.find(b"Xing"), data.find(b"Info"))
    frame = data[name - 36 : name + 200]
    n_frames = int.from_bytes(data[name + 8 : name + 12], "big")
    rest = count_down_header(frame, 100, 5000)
    at = name - (name - 36)
    assert int.from_bytes(rest[at + 8 : at + 12], "big") == n_frames - 100
    assert len(rest) == len(frame) and rest[at + 16 :] == frame[at + 16 :]
    assert count_down_header(b"", 100, 5000) == b""
    assert is_counted_alike(frame, frame, n_frames, n_frames)
    assert not is_counted_alike(frame, frame, n_frames - 9, n_frames)
    assert not is_counted_alike(b"\xff\xfb\x90\x64" + b"\0" * 32 + b"VBRI", b"", n_frames, 0)


def test_pieces_of_real_browser_recordings_are_not_decoded_from_the_start(shared, from_start):
    n_sought = 0
    for path in sorted((shared / "data/webm").glob("*.webm"))[:8]:
        whole = load_audio(path, sample_rate_hz=48_000)
        start_s = len(whole) / 48_000 - 1.0
        if start_s > 2.5:
            piece = load_audio(path, start_s=start_s, sample_rate_hz=48_000)
            assert level_db(piece - whole[-len(piece) :]) < -60
            n_sought += 1
    assert n_sought and from_start == []
