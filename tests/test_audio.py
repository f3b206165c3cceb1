"""In every format, whole files are read, and truncated or damaged files and false headers are refused."""

from __future__ import annotations

import io
import resource
import struct
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from whisper_peft.data.audio import AudioError, duration_s, load_audio
from whisper_peft.data.structure import falls_short

RATE_HZ = 16_000
SECONDS = 6.0


def speech_like(seconds: float = SECONDS, rate_hz: int = RATE_HZ, *, quiet_s: float = 2.0) -> np.ndarray:
    """Make silence, then a rising tone in noise, so that the bit rate of a VBR file varies a lot."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    wave = 0.3 * np.sin(2 * np.pi * (200 + 100 * time_s) * time_s) + 0.05 * noise
    return (wave * (time_s > quiet_s)).astype(np.float32)


def by_soundfile(wave: np.ndarray, file_format: str, subtype: str | None = None, rate_hz: int = RATE_HZ) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wave, rate_hz, format=file_format, subtype=subtype)
    return file.getvalue()


def by_pyav(
    wave: np.ndarray,
    file_format: str,
    codec: str,
    *,
    rate_hz: int = RATE_HZ,
    seekable: bool = True,
    codec_options: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """Encode with FFmpeg's libraries, which write into a pipe if `seekable` is False."""
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with open(path, "wb") as file:
            target = str(path) if seekable else Pipe(file)
            with av.open(target, "w", format=file_format, options=options) as container:
                stream = container.add_stream(codec, rate=rate_hz, options=codec_options or {})
                stream.layout = "mono"
                fifo = av.AudioFifo()
                frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="flt", layout="mono")
                frame.sample_rate = rate_hz
                fifo.write(frame)
                while (piece := fifo.read(960, partial=True)) is not None:
                    container.mux(stream.encode(piece))
                container.mux(stream.encode(None))
        return path.read_bytes()


class Pipe:
    """A file that can only be written, as a pipe can."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        return self.file.write(data)


FORMATS = {
    "wav": lambda wave: by_soundfile(wave, "WAV"),
    "wav_float": lambda wave: by_soundfile(wave, "WAV", "FLOAT"),
    "aiff": lambda wave: by_soundfile(wave, "AIFF"),
    "au": lambda wave: by_soundfile(wave, "AU"),
    "caf": lambda wave: by_soundfile(wave, "CAF"),
    "flac": lambda wave: by_soundfile(wave, "FLAC"),
    "ogg_vorbis": lambda wave: by_soundfile(wave, "OGG", "VORBIS"),
    "ogg_opus": lambda wave: by_soundfile(wave, "OGG", "OPUS"),
    "mp3": lambda wave: by_soundfile(wave, "MP3"),
    "mp3_no_count": lambda wave: by_pyav(wave, "mp3", "libmp3lame", write_xing="0"),
    "mp3_vbr_no_count": lambda wave: by_pyav(
        wave, "mp3", "libmp3lame", write_xing="0", codec_options={"flags": "+qscale", "global_quality": "236"}
    ),
    "m4a": lambda wave: by_pyav(wave, "mp4", "aac"),
    "m4a_index_first": lambda wave: by_pyav(wave, "mp4", "aac", movflags="faststart"),
    "mp4_fragments": lambda wave: by_pyav(
        wave, "mp4", "aac", movflags="frag_keyframe+empty_moov", frag_duration="500000"
    ),
    "webm": lambda wave: by_pyav(wave, "webm", "libopus"),
    "webm_of_a_browser": lambda wave: by_pyav(wave, "webm", "libopus", seekable=False, live="1"),
    "flac_without_length": lambda wave: by_pyav(wave, "flac", "flac", seekable=False),
}


@pytest.fixture(scope="module")
def encoded() -> dict[str, bytes]:
    wave = speech_like()
    return {name: encode(wave) for name, encode in FORMATS.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_whole(encoded, name):
    wave = load_audio(encoded[name])
    assert wave.dtype == np.float32 and wave.ndim == 1
    # Encoders pad by up to two frames.
    assert len(wave) / RATE_HZ == pytest.approx(SECONDS, abs=0.15)
    original = speech_like()
    delay = np.argmax(np.correlate(wave[40_000:60_000], original[41_000:59_000], "valid")) - 1000
    assert abs(delay) < 0.12 * RATE_HZ
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(np.sqrt(np.mean(original**2)), rel=0.1)
    assert duration_s(encoded[name]) == pytest.approx(len(wave) / RATE_HZ, abs=0.08)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.83])
@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_refused(encoded, name, share):
    data = encoded[name]
    with pytest.raises(AudioError) as refused:
        # A cut exactly between two frames or pages cannot be detected; the second cut is 7 bytes later.
        load_audio(data[: int(len(data) * share)])
        load_audio(data[: int(len(data) * share) + 7])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["wav", "aiff", "flac", "mp3", "ogg_vorbis", "ogg_opus", "webm", "m4a_index_first"])
def test_the_reason_says_truncated_and_how_many_seconds_were_decoded(encoded, name):
    data = encoded[name]
    with pytest.raises(AudioError, match=r"decoded [\d.]+ s.*truncated"):
        load_audio(data[: len(data) * 51 // 100])


# An m4a file has its index at the end, so a cut file has none.
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "m4a"])
def test_the_intact_part_of_a_truncated_file_can_be_read(encoded, name):
    data = encoded[name]
    assert len(load_audio(data[: len(data) * 2 // 3], start_s=0.25, end_s=1.0)) == 12_000


def test_a_file_that_lacks_a_few_bytes_is_read(encoded):
    assert len(load_audio(encoded["wav"][:-3000])) > 5.8 * RATE_HZ


def test_falls_short_needs_both_half_a_second_and_five_percent():
    assert not falls_short(9.6, 10.0) and not falls_short(3.6, 4.0) and not falls_short(96.0, 100.0)
    assert falls_short(9.4, 10.0) and falls_short(94.0, 100.0) and not falls_short(12.0, 10.0)


def test_a_vbr_mp3_without_a_frame_count_is_read_whole_despite_a_wrong_estimated_length():
    import soundfile

    loud_first = speech_like()[::-1].copy()
    data = by_pyav(
        loud_first, "mp3", "libmp3lame", write_xing="0", codec_options={"flags": "+qscale", "global_quality": "236"}
    )
    guess_s = soundfile.info(io.BytesIO(data)).duration
    assert abs(guess_s - SECONDS) > 0.5, "the case is not made any more"
    assert len(load_audio(data)) / RATE_HZ == pytest.approx(SECONDS, abs=0.15)
    assert duration_s(data) == pytest.approx(SECONDS, abs=0.15)


def test_an_mp3_that_holds_more_frames_than_it_counts_is_read_to_the_end(encoded):
    two = encoded["mp3"] + encoded["mp3"]
    assert len(load_audio(two)) / RATE_HZ == pytest.approx(2 * SECONDS, abs=0.3)


@pytest.mark.parametrize("tail", [b"TAG" + b"\0" * 125, b"APETAGEX" + b"x" * 200, b"\0" * 5000])
def test_an_mp3_with_tags_at_its_end_is_read_whole(encoded, tail):
    for name in ("mp3", "mp3_no_count"):
        assert len(load_audio(encoded[name] + tail)) / RATE_HZ == pytest.approx(SECONDS, abs=0.15)


@pytest.mark.parametrize("name", FORMATS)
def test_a_piece_of_a_recording_equals_a_slice_of_the_whole(encoded, name):
    whole = load_audio(encoded[name])
    # Opus is resampled from 48 kHz, and the resampler has no neighbouring samples at a cut.
    edge = 100
    piece = load_audio(encoded[name], start_s=2.5, end_s=4.0)
    assert len(piece) == 24_000
    np.testing.assert_allclose(piece[edge:-edge], whole[40_000 + edge : 64_000 - edge], atol=1e-4)
    np.testing.assert_allclose(load_audio(encoded[name], start_s=5.0)[edge:], whole[80_000 + edge :], atol=1e-4)


@pytest.mark.parametrize("name", ["wav", "mp3", "mp3_no_count", "webm_of_a_browser", "flac_without_length", "m4a"])
def test_a_piece_outside_the_recording_is_refused(encoded, name):
    with pytest.raises(AudioError, match=r"starts at 7 s, but the recording has only [56]"):
        load_audio(encoded[name], start_s=7.0)
    with pytest.raises(AudioError, match=r"ends at 9 s, but the recording has only [56]"):
        load_audio(encoded[name], start_s=3.0, end_s=9.0)
    # An end time that was rounded up may lie a little past the end of the recording.
    assert len(load_audio(encoded[name], start_s=4.0, end_s=6.3)) > 30_000


@pytest.mark.parametrize(("start_s", "end_s"), [(-1.0, None), (2.0, 2.0), (3.0, 1.0), (float("nan"), None)])
def test_an_impossible_piece_is_refused(encoded, start_s, end_s):
    with pytest.raises(AudioError, match="no such piece"):
        load_audio(encoded["wav"], start_s=start_s, end_s=end_s)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_every_sampling_rate_is_resampled_to_the_same_seconds_and_pitch(rate_hz):
    wave = load_audio(by_soundfile(speech_like(3.0, rate_hz), "WAV", rate_hz=rate_hz))
    assert len(wave) == 48_000
    tone = np.fft.rfft(
        load_audio(by_soundfile(np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz), "WAV", rate_hz=rate_hz))
    )
    assert np.argmax(np.abs(tone)) == 440


def test_a_clip_of_thirty_seconds_has_480_000_samples_at_every_rate():
    for rate_hz in (16_000, 22_050, 44_100, 48_000):
        assert len(load_audio(by_soundfile(np.zeros(30 * rate_hz), "FLAC", rate_hz=rate_hz))) == 480_000


@pytest.mark.parametrize("n_channels", [1, 2, 3, 6])
def test_channels_are_averaged(n_channels):
    channels = np.random.default_rng(1).uniform(-0.5, 0.5, (4000, n_channels)).astype(np.float32)
    for data in (by_soundfile(channels, "WAV", "FLOAT"), by_soundfile(channels, "CAF", "FLOAT")):
        np.testing.assert_allclose(load_audio(data), channels.mean(axis=1), atol=1e-6)


def test_both_decoders_scale_integer_samples_to_one():
    from whisper_peft.data.ffmpeg_decoder import decode_pyav

    wave = speech_like(1.0, quiet_s=0.2)
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"):
        data = by_soundfile(wave, "WAV", subtype)
        by_av = decode_pyav(io.BytesIO(data), 0.0, None)
        assert by_av.failure is None
        np.testing.assert_allclose(by_av.wave, load_audio(data), atol=1e-6, err_msg=subtype)


def test_a_path_and_the_bytes_of_its_file_give_the_same_sound(tmp_path, encoded):
    path = tmp_path / "ആദ്യം 1.ogg"
    path.write_bytes(encoded["ogg_vorbis"])
    np.testing.assert_array_equal(load_audio(path), load_audio(encoded["ogg_vorbis"]))
    np.testing.assert_array_equal(load_audio(str(path)), load_audio(path))
    assert duration_s(str(path)) == duration_s(encoded["ogg_vorbis"])


def test_the_suffix_does_not_matter(tmp_path, encoded):
    for suffix in (".raw", ".txt", ".wav", ""):
        path = tmp_path / f"clip{suffix}"
        path.write_bytes(encoded["webm"] if suffix == ".wav" else encoded["flac"])
        assert len(load_audio(path)) / RATE_HZ == pytest.approx(SECONDS, abs=0.05)
        assert duration_s(path) == pytest.approx(SECONDS, abs=0.05)


@pytest.mark.parametrize("call", [load_audio, duration_s])
def test_a_file_that_is_no_recording_is_refused_with_a_reason(tmp_path, call, encoded):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("this is not audio\n" * 50)
    (tmp_path / "zeros.ogg").write_bytes(b"\0" * 9000)
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(3).bytes(20_000))
    for audio, reason in [
        (tmp_path / "absent.wav", "no such file"),
        (tmp_path / "text.mp3" / "x.wav", "no such file"),
        (tmp_path, "a folder, not a file"),
        ("nul\0.wav", "null"),
        (tmp_path / "empty.wav", "empty"),
        (b"", "empty"),
        (tmp_path / "text.mp3", "cannot be read"),
        (tmp_path / "zeros.ogg", "cannot be read"),
        (tmp_path / "noise.mp3", "."),
        (by_soundfile(np.zeros(0), "WAV"), "."),
        (encoded["wav"][:30], "."),
        (encoded["ogg_vorbis"][:40], "."),
        (b"\x1a", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"ID3", "cannot be read"),
    ]:
        with pytest.raises(AudioError, match=reason):
            call(audio)


def test_samples_that_are_not_finite_are_refused():
    for bad in (np.nan, np.inf, -np.inf):
        wave = speech_like(1.0)
        wave[500] = bad
        with pytest.raises(AudioError, match="no numbers"):
            load_audio(by_soundfile(wave, "WAV", "FLOAT"))


def test_a_header_that_claims_ten_hours_allocates_no_memory_for_them(encoded):
    ten_hours = 36_000 * RATE_HZ
    wav = bytearray(encoded["wav"])
    at = wav.index(b"data") + 4
    wav[at : at + 4] = struct.pack("<I", ten_hours * 2)
    flac = bytearray(encoded["flac"])
    # The last 36 bits of these fields of STREAMINFO are the number of samples.
    fields = int.from_bytes(flac[18:26], "big")
    flac[18:26] = ((fields >> 36 << 36) | ten_hours).to_bytes(8, "big")
    mp3 = bytearray(encoded["mp3"])
    at = max(mp3.find(b"Xing"), mp3.find(b"Info")) + 8
    mp3[at : at + 4] = struct.pack(">I", ten_hours // 576)
    scale = 1024 if sys.platform != "darwin" else 1
    for data in (wav, flac, mp3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        assert duration_s(bytes(data)) == pytest.approx(36_000, rel=0.01)
        with pytest.raises(AudioError, match=r"decoded \d\.\d\d s of 360\d\d\.\d\d s: truncated"):
            load_audio(bytes(data))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale - before < 100 << 20


def test_a_wav_without_a_size_is_read_whole(encoded):
    wav = bytearray(encoded["wav"])
    at = wav.index(b"data") + 4
    # ffmpeg, sox and arecord write these sizes into a pipe.
    for size in (0xFFFFFFFF, 0x7FFFF000, 0x80000000):
        wav[at : at + 4] = struct.pack("<I", size)
        assert len(load_audio(bytes(wav))) == SECONDS * RATE_HZ


def test_an_absurd_sampling_rate_is_refused(encoded):
    wav = bytearray(encoded["wav"])
    wav[24:28] = struct.pack("<I", 1)
    with pytest.raises(AudioError, match="1 Hz"):
        load_audio(bytes(wav))


def test_a_damaged_file_gives_finite_samples_or_a_reason(encoded):
    chance = np.random.default_rng(4)
    for data in encoded.values():
        for _ in range(6):
            damaged = bytearray(data)
            for at in chance.integers(0, len(data), 5):
                damaged[at] = chance.integers(256)
            for call in (load_audio, duration_s):
                try:
                    assert np.all(np.isfinite(call(bytes(damaged))))
                except AudioError as error:
                    assert "\n" not in str(error)


def test_an_mp3_without_a_frame_count_is_refused_when_truncated_at_any_byte(encoded):
    data = encoded["mp3_no_count"]
    whole = []
    for n_bytes in range(len(data) // 2, len(data) // 2 + 240):
        try:
            load_audio(data[:n_bytes])
            whole.append(n_bytes)
        except AudioError as error:
            assert "truncated" in str(error)
    # A cut exactly between two frames cannot be detected.
    assert len(whole) <= 3


def test_a_file_with_a_tag_before_the_sound_is_read(encoded):
    tag = b"ID3\4\0\0\0\0\2\0" + b"\0" * 256
    assert len(load_audio(tag + encoded["flac"])) == SECONDS * RATE_HZ
    assert len(load_audio(tag + encoded["mp3_no_count"])) / RATE_HZ == pytest.approx(SECONDS, abs=0.15)


def test_real_recordings_from_browsers_and_common_voice_are_read_and_refused_when_truncated(shared):
    browser = sorted((shared / "data/webm").glob("*.webm"))
    common_voice = sorted((shared / "data/common_voice_te/te/clips").glob("*.mp3"))[:20]
    longform = sorted((shared / "data/longform").glob("*.mp3"))
    assert browser and common_voice and longform
    for path in browser + common_voice:
        wave = load_audio(path)
        assert duration_s(path) == pytest.approx(len(wave) / RATE_HZ, abs=0.1)
        assert np.abs(wave).max() > 0.01
        data = path.read_bytes()
        for share in (0.31, 0.57, 0.9):
            with pytest.raises(AudioError, match="truncated"):
                load_audio(data[: int(len(data) * share)])
    assert len(load_audio(longform[0], start_s=100.0, end_s=104.0)) == 64_000
    assert duration_s(longform[0]) == pytest.approx(195.0, abs=0.1)
