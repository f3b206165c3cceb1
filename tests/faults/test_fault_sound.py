"""Sound on a wrong scale or with opposite channels, truncated files, and files that make a reader hang or crash."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_speech, make_wave
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_peft import Recipe, check, load_preparation, override
from whisper_peft.checking.findings import SourceRows
from whisper_peft.checking.sound import find_mended_sounds
from whisper_peft.data.audio import AudioError, duration_s, load_audio, read_sound
from whisper_peft.data.mixing import Levels
from whisper_peft.data.rows import Row
from whisper_peft.training.first_look import first_look
from whisper_peft.training.splits import load_rows
from whisper_peft.training.splits import make_speech as make_speech_of

RATE_HZ = 16_000
SECONDS = 6.0


def tone_in_noise(rate_hz: int = RATE_HZ, *, seconds: float = SECONDS) -> np.ndarray:
    """Make a rising tone in noise, with a peak of about 0.5."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    return (0.3 * np.sin(2 * np.pi * (200 + 100 * time_s) * time_s) + 0.05 * noise).astype(np.float32)


def by_soundfile(wave: np.ndarray, file_format: str, subtype: str | None = None, rate_hz: int = RATE_HZ) -> bytes:
    file = io.BytesIO()
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    with soundfile.SoundFile(file, "w", rate_hz, channels, format=file_format, subtype=subtype) as sound:
        # libsndfile's Opus encoder overflows its stack on more than a second at once.
        for start in range(0, len(wave), rate_hz):
            sound.write(wave[start : start + rate_hz])
    return file.getvalue()


def by_pyav(
    wave: np.ndarray, file_format: str, codec: str, *, rate_hz: int, seekable: bool = True, n_channels: int = 1
) -> bytes:
    """Encode with FFmpeg's libraries, into a file or, if not seekable, into something like a pipe."""
    import av

    layout = {1: "mono", 2: "stereo"}[n_channels]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with open(path, "wb") as file:
            target = str(path) if seekable else type("Pipe", (), {"write": lambda self, data: file.write(data)})()
            with av.open(target, "w", format=file_format) as container:
                stream = container.add_stream(codec, rate=rate_hz)
                stream.layout = layout
                if codec == "wavpack":
                    stream.format = "fltp"
                stream.bit_rate = 12_200 if "amr" in codec else 64_000
                planes = np.broadcast_to(np.atleast_2d(wave.T), (n_channels, len(wave)))
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format="fltp", layout=layout)
                frame.sample_rate = rate_hz
                fifo = av.AudioFifo()
                fifo.write(frame)
                n_samples = stream.codec_context.frame_size or 960
                while (piece := fifo.read(n_samples, partial=True)) is not None:
                    container.mux(stream.encode(piece))
                container.mux(stream.encode(None))
        return path.read_bytes()


# Row 7: the scale of float samples.

FLOAT_FILES = [("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("W64", "FLOAT"), ("RF64", "DOUBLE"), ("AIFF", "FLOAT")]
FLOAT_FILES += [("CAF", "DOUBLE"), ("AU", "FLOAT"), ("AU", "DOUBLE"), ("WAVEX", "FLOAT")]


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize(("file_format", "subtype"), FLOAT_FILES)
def test_row_07_float_samples_on_the_scale_of_integers_are_scaled_to_full_scale(file_format, subtype, bits, rounded):
    wave = tone_in_noise()
    scaled = wave.astype(np.float64) * 2 ** (bits - 1)
    sound = read_sound(by_soundfile(np.rint(scaled) if rounded else scaled, file_format, subtype))
    assert sound.full_scale == 2 ** (bits - 1)
    np.testing.assert_allclose(sound.wave, wave, atol=0.6 / 2 ** (bits - 1) + 1e-6)


@pytest.mark.parametrize("container", ["matroska", "mov", "avi", "wv"])
def test_row_07_the_scale_of_integers_is_found_in_files_that_only_pyav_reads(container):
    codec = "wavpack" if container == "wv" else "pcm_f32le"
    sound = read_sound(by_pyav(tone_in_noise() * 32768, container, codec, rate_hz=RATE_HZ))
    assert sound.full_scale == 32768
    assert np.abs(sound.wave).max() == pytest.approx(np.abs(tone_in_noise()).max(), abs=1e-3)


@pytest.mark.parametrize("loudest", [1e-4, 0.5, 1.0, 1.5, 3.9, 12.0])
def test_float_samples_that_are_only_loud_or_quiet_are_not_scaled(loudest):
    wave = tone_in_noise() * (loudest / np.abs(tone_in_noise()).max())
    sound = read_sound(by_soundfile(wave, "WAV", "FLOAT"))
    assert sound.full_scale == 1.0
    np.testing.assert_array_equal(sound.wave, wave)


def test_integer_files_are_never_scaled():
    square = np.sign(np.sin(np.arange(16_000))).astype(np.float32)
    for subtype in ("PCM_16", "PCM_U8", "PCM_32"):
        assert read_sound(by_soundfile(square, "WAV", subtype)).full_scale == 1.0


def test_a_piece_of_a_file_is_scaled_like_the_whole_file(tmp_path):
    """A quiet piece alone would look like an ordinary recording."""
    wave = tone_in_noise()
    # The first two seconds stay below 1 on the scale of 16 bits.
    wave[: 2 * RATE_HZ] *= 2e-5
    path = tmp_path / "clip.wav"
    path.write_bytes(by_soundfile(wave * 32768, "WAV", "FLOAT"))
    for audio in (path, path.read_bytes(), by_pyav(wave * 32768, "matroska", "pcm_f32le", rate_hz=RATE_HZ)):
        whole = read_sound(audio)
        for start_s, end_s in ((0.0, 1.0), (0.5, 1.5), (1.0, 4.0), (5.0, None)):
            piece = read_sound(audio, start_s=start_s, end_s=end_s)
            assert piece.full_scale == whole.full_scale == 32768
            stop = None if end_s is None else round(end_s * RATE_HZ)
            np.testing.assert_array_equal(piece.wave, whole.wave[round(start_s * RATE_HZ) : stop])


def test_the_scale_of_a_changed_file_is_measured_again(tmp_path):
    path = tmp_path / "clip.wav"
    for number, scale in enumerate((1.0, 32768.0, 1.0)):
        path.write_bytes(by_soundfile(tone_in_noise() * scale, "WAV", "FLOAT"))
        os.utime(path, ns=(0, number))
        assert read_sound(path, end_s=1.0).full_scale == scale


def test_a_file_with_single_samples_far_over_full_scale_is_refused():
    wave = tone_in_noise()
    wave[[5, 900]] = 1e6
    with pytest.raises(AudioError, match=r"single samples are far over full scale \(up to 1e\+06\): damaged"):
        load_audio(by_soundfile(wave, "WAV", "FLOAT"))
    with pytest.raises(AudioError, match=r"up to 1e\+06"):
        load_audio(by_soundfile(wave, "WAV", "FLOAT"), start_s=2.0, end_s=3.0)


@pytest.mark.parametrize(
    ("samples", "full_scale"),
    [
        ([0.0], 1.0),
        ([1.0, -1.0, 0.0], 1.0),
        ([2.0, -3.0], 1.0),
        ([5.0, -3.0], 32768.0),
        ([100.0, -3.0], 128.0),
        ([190.0, -3.5, 2.5], 128.0),
        ([40_000.5, 3.5], 32768.0),
        ([1e30, 3.5], None),
        ([float("nan"), 0.5], 1.0),
    ],
)
def test_the_loudest_samples_decide_about_the_scale(samples, full_scale):
    levels = Levels()
    levels.add(np.array(samples, np.float32))
    assert levels.full_scale == full_scale


def manifest(folder: Path, names: list[str]) -> str:
    path = folder / "clips.jsonl"
    rows = [json.dumps({"audio": name, "text": f"पानी लाओ {number}"}) for number, name in enumerate(names)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


def test_row_07_check_and_the_first_look_report_samples_on_the_scale_of_integers(tmp_path):
    soundfile.write(tmp_path / "plain.wav", make_wave(1.0, 1), RATE_HZ)
    soundfile.write(tmp_path / "scaled.wav", make_wave(1.0, 2) * 32768, RATE_HZ, subtype="FLOAT")
    report = check(manifest(tmp_path, ["plain.wav", "scaled.wav"]), language="hi")
    [scale_finding] = [finding for finding in report.findings if finding.kind == "integer-scale"]
    assert scale_finding.severity == "warning"
    assert [Path(clip.name).name for clip in scale_finding.clips] == ["scaled.wav"]
    assert "divided by 32768" in scale_finding.clips[0].detail
    rows = [Row(str(tmp_path / name), "x") for name in ("plain.wav", "scaled.wav", "absent.wav")]
    seen = find_mended_sounds(SourceRows("clips", rows, "train"), n_clips=16, longest_s=30.0)
    assert list(seen) == ["integer-scale"]
    assert seen["integer-scale"][0] == 1
    assert "scaled.wav: its samples reach" in seen["integer-scale"][1]


def test_row_07_train_reports_the_scale_of_integers_before_the_first_step(tmp_path, tiny_model):
    folder = make_speech(tmp_path / "train", 12)
    for path in folder.glob("*.wav"):
        wave, rate_hz = soundfile.read(path)
        soundfile.write(path, wave * 32768, rate_hz, subtype="FLOAT")
    recipe = override(Recipe(), {"data.train": [str(folder)], "model.language": "hi"})
    rows = load_rows(recipe)
    preparation = load_preparation(str(tiny_model))
    lines = first_look(rows, make_speech_of(rows, recipe, preparation), recipe, preparation)
    [line] = [line for line in lines if "integer-scale" in line]
    assert line.startswith("Data, warning: integer-scale, 12 of 12 clips heard of ")


# Channels that cancel each other.


def stereo(left: np.ndarray, right: np.ndarray, subtype: str = "PCM_16") -> bytes:
    return by_soundfile(np.stack([left, right], axis=1), "WAV", subtype)


@pytest.mark.parametrize("level", [1.0, 0.8, 0.6])
def test_opposite_channels_are_inverted_and_reported(tmp_path, level):
    wave = tone_in_noise()
    sound = read_sound(stereo(wave, -level * wave))
    assert sound.cancelled_s == pytest.approx(SECONDS)
    assert np.corrcoef(sound.wave, wave)[0, 1] == pytest.approx(1.0, abs=1e-3)
    assert np.abs(sound.wave).max() == pytest.approx((1 + level) / 2 * np.abs(wave).max(), rel=0.01)
    (tmp_path / "wrong.wav").write_bytes(stereo(wave, -level * wave))
    (tmp_path / "right.wav").write_bytes(stereo(wave[:-900], wave[:-900]))
    report = check(manifest(tmp_path, ["right.wav", "wrong.wav"]), language="hi")
    kinds = {finding.kind: finding for finding in report.findings}
    assert [Path(clip.name).name for clip in kinds["opposite-channels"].clips] == ["wrong.wav"]
    assert "6.0 of 6.0 s" in kinds["opposite-channels"].clips[0].detail
    assert "silence" not in kinds


@pytest.mark.parametrize("container", ["matroska", "mov"])
def test_opposite_channels_are_found_in_files_that_only_pyav_reads(container):
    wave = tone_in_noise()
    data = by_pyav(np.stack([wave, -wave], axis=1), container, "pcm_s16le", rate_hz=RATE_HZ, n_channels=2)
    assert read_sound(data).cancelled_s == pytest.approx(SECONDS)
    assert np.abs(load_audio(data)).max() > 0.3


def test_channels_that_are_opposite_in_one_part_are_inverted_only_there():
    wave = tone_in_noise()
    sign = np.where(np.arange(len(wave)) < 3 * RATE_HZ, 1, -1).astype(np.float32)
    sound = read_sound(stereo(wave, sign * wave))
    assert sound.cancelled_s == pytest.approx(3.0, abs=0.3)
    fade = round(0.02 * RATE_HZ)
    np.testing.assert_allclose(sound.wave[: 3 * RATE_HZ - fade], wave[: 3 * RATE_HZ - fade], atol=1e-3)
    np.testing.assert_allclose(sound.wave[3 * RATE_HZ + fade :], wave[3 * RATE_HZ + fade :], atol=1e-3)
    assert np.abs(np.diff(sound.wave)).max() < 1.3 * np.abs(np.diff(wave)).max(), "a click where it changes"


@pytest.mark.parametrize(
    "right",
    [
        lambda wave: wave,
        lambda wave: 0 * wave,
        lambda wave: np.roll(wave, 20),
        lambda wave: np.random.default_rng(1).standard_normal(len(wave)).astype(np.float32) * 0.1,
        lambda wave: -0.3 * wave,
    ],
)
def test_other_stereo_recordings_are_the_mean_of_their_channels(right):
    wave = make_wave(SECONDS)
    sound = read_sound(stereo(wave, right(wave), "FLOAT"))
    assert sound.cancelled_s == 0
    np.testing.assert_allclose(sound.wave, (wave + right(wave)) / 2, atol=1e-6)


def test_silence_in_two_channels_is_not_called_opposite():
    noise = np.random.default_rng(2).standard_normal(RATE_HZ).astype(np.float32) * 1e-6
    assert read_sound(stereo(noise, -noise, "FLOAT")).cancelled_s == 0


# Row 13: truncated files.

STATE_A_LENGTH = {
    **{f"soundfile_{name}": ("soundfile", name) for name in ("W64", "RF64", "WAVEX", "NIST", "VOC", "SVX", "AU")},
    "wma": ("asf", "wmav2", 44_100),
    "wma_1": ("asf", "wmav1", 44_100),
    "avi_mp3": ("avi", "mp3", 44_100),
    "avi_pcm": ("avi", "pcm_s16le", RATE_HZ),
    "avi_ac3": ("avi", "ac3", 48_000),
    "mp2": ("mp2", "mp2", 44_100),
    "ts_aac": ("mpegts", "aac", 48_000),
    "ts_mp2": ("mpegts", "mp2", 48_000),
    "ts_ac3": ("mpegts", "ac3", 48_000),
    "ts_opus": ("mpegts", "libopus", 48_000),
    "ps_mp2": ("mpeg", "mp2", 48_000),
    "vob_ac3": ("vob", "ac3", 48_000),
    "aac": ("adts", "aac", 48_000),
    "ac3": ("ac3", "ac3", 48_000),
    "eac3": ("eac3", "eac3", 48_000),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "3gp_amr": ("3gp", "libopencore_amrnb", 8_000),
    "3gp_aac": ("3gp", "aac", RATE_HZ),
    "mov": ("mov", "aac", RATE_HZ),
    "mov_pcm": ("mov", "pcm_s16le", RATE_HZ),
    "mkv_aac": ("matroska", "aac", RATE_HZ),
    "mkv_pcm": ("matroska", "pcm_s16le", RATE_HZ),
    "caf": ("caf", "pcm_s16be", RATE_HZ),
    "caf_alac": ("caf", "alac", RATE_HZ),
    "flac": ("flac", "flac", RATE_HZ),
    "wavpack": ("wv", "wavpack", RATE_HZ),
    "tta": ("tta", "tta", RATE_HZ),
    "flv": ("flv", "mp3", 44_100),
    "rm": ("rm", "ac3", 44_100),
    "wav_adpcm": ("wav", "adpcm_ms", RATE_HZ),
    "wav_mp3": ("wav", "mp3", 44_100),
    "sox": ("sox", "pcm_s32le", RATE_HZ),
}
# Prefixes of the formats that state no length if they are written into a pipe.
STATE_NONE = ("soundfile_", "3gp", "mov", "caf", "flac", "rm", "wav", "au", "sox")


def encoded(name: str, *, seekable: bool = True) -> bytes:
    made = STATE_A_LENGTH[name]
    if made[0] == "soundfile":
        return by_soundfile(tone_in_noise(), made[1])
    file_format, codec, rate_hz = made
    return by_pyav(tone_in_noise(rate_hz), file_format, codec, rate_hz=rate_hz, seekable=seekable)


def cut_at(data: bytes, share: float) -> list[bytes]:
    """Cut a file at a share of its bytes, and 7 bytes later, as the first cut may fall exactly between two frames."""
    return [data[: int(len(data) * share) + more] for more in (0, 7)]


def reason_of(data: bytes) -> str | None:
    try:
        load_audio(data)
    except AudioError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", STATE_A_LENGTH)
def test_row_13_a_cut_file_is_called_truncated_and_a_whole_file_is_read(name):
    data = encoded(name)
    assert len(load_audio(data)) / RATE_HZ == pytest.approx(SECONDS, abs=0.15)
    assert duration_s(data) == pytest.approx(SECONDS, abs=0.2)
    # A FLAC file with large blocks lacks less than 0.5 s if it is cut at 90 %.
    for share in (0.5, 0.9 if name != "flac" else 0.85):
        reasons = [reason_of(cut) for cut in cut_at(data, share)]
        assert any(reasons), (share, reasons)
        assert all(reason is None or "truncated" in reason for reason in reasons), reasons


@pytest.mark.parametrize("name", [name for name in STATE_A_LENGTH if not name.startswith(STATE_NONE)])
def test_a_file_that_was_written_into_a_pipe_counts_as_whole(name):
    data = encoded(name, seekable=False)
    assert len(load_audio(data)) / RATE_HZ == pytest.approx(SECONDS, abs=0.15)
    # A live WMA stream states no length.
    if "wma" not in name:
        assert any(map(reason_of, cut_at(data, 0.5)))


@pytest.mark.parametrize("name", ["wavpack", "tta", "aac", "ac3", "mp2", "wma", "avi_pcm", "soundfile_W64"])
@pytest.mark.parametrize("tail", [b"TAG" + b"\0" * 125, b"\0" * 40])
def test_tags_after_the_sound_do_not_count_as_truncation(name, tail):
    assert len(load_audio(encoded(name) + tail)) / RATE_HZ == pytest.approx(SECONDS, abs=0.15)


def test_the_frames_of_an_mp2_after_an_id3_tag_are_counted():
    for name in ("mp2",):
        data = encoded(name)
        assert duration_s(b"ID3\4\0\0\0\0\2\0" + b"\0" * 256 + data) == pytest.approx(SECONDS, abs=0.1)


# Rows 22, 28, 29 and 34: files that hold no sound, or that cannot be opened.


@pytest.mark.parametrize("suffix", [".mp3", ".wav", ".flac", ".m4a", ".webm"])
@pytest.mark.parametrize("read", [load_audio, duration_s])
def test_row_22_a_pointer_or_a_web_page_in_place_of_a_recording_is_named(tmp_path, suffix, read):
    path = tmp_path / f"clip{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for audio in (path, path.read_bytes()):
        with pytest.raises(AudioError, match=r"a Git LFS pointer.*git lfs pull"):
            read(audio)
    for page in ("<!DOCTYPE html>\n<html><body>Sign in</body></html>", "\n <html lang=en>404</html>"):
        path.write_text(page)
        with pytest.raises(AudioError, match=r"an HTML page.*download it again"):
            read(path)


@pytest.mark.parametrize("read", [load_audio, duration_s])
def test_row_28_a_recording_without_read_permission_is_refused_with_the_reason(tmp_path, monkeypatch, read):
    path = tmp_path / "secret.wav"
    path.write_bytes(by_soundfile(tone_in_noise(), "WAV"))

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AudioError, match=r"^no permission to read it$"):
        read(path)


@pytest.mark.parametrize("read", [load_audio, duration_s])
def test_row_34_pipes_devices_and_folders_are_refused_before_they_are_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to("pipe.wav")
    (tmp_path / "itself.wav").symlink_to("itself.wav")
    for path, reason in [
        (tmp_path / "pipe.wav", "a pipe"),
        (tmp_path / "link.wav", "a pipe"),
        (tmp_path / "itself.wav", "a link that leads to itself"),
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "a device"),
        (Path("/proc/self/mem"), "empty|permission|cannot be read"),
    ]:
        with pytest.raises(AudioError, match=reason):
            read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("made", ["WAV", "webm"])
def test_row_29_a_recording_whose_name_is_not_utf_8_is_read(tmp_path, made):
    data = by_soundfile(tone_in_noise(), "WAV")
    if made == "webm":
        data = by_pyav(tone_in_noise(48_000), "webm", "libopus", rate_hz=48_000)
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff.bin")
    Path(path).write_bytes(data)
    assert len(load_audio(path)) / RATE_HZ == pytest.approx(SECONDS, abs=0.1)
    assert duration_s(path) == pytest.approx(SECONDS, abs=0.1)


# Play lists and descriptions that name other files and addresses.


@pytest.mark.parametrize("suffix", [".m3u8", ".mp3", ".wav", ".sdp", ".mpd"])
def test_the_files_and_addresses_that_a_play_list_names_are_never_opened(tmp_path, suffix, monkeypatch):
    import socket

    (tmp_path / "other.wav").write_bytes(by_soundfile(tone_in_noise(), "WAV"))
    (tmp_path / "other.ts").write_bytes(by_pyav(tone_in_noise(48_000), "mpegts", "aac", rate_hz=48_000))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        port = server.getsockname()[1]
        places = [f"http://127.0.0.1:{port}/x.ts", f"{tmp_path}/other.ts", "other.ts"]
        hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:6\n#EXT-X-MEDIA-SEQUENCE:0\n"
        pages = [f"{hls}#EXTINF:6.0,\n{place}\n#EXT-X-ENDLIST\n" for place in places]
        pages.append(f"ffconcat version 1.0\nfile '{tmp_path}/other.wav'\n")
        pages.append(
            f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n"
        )
        pages.append(
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            f'<Representation id="1"><BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation>'
            "</AdaptationSet></Period></MPD>"
        )
        path = tmp_path / f"clip{suffix}"
        monkeypatch.chdir(tmp_path)
        for page in pages:
            path.write_text(page)
            for read in (load_audio, duration_s):
                with pytest.raises(AudioError, match="cannot be read as audio"):
                    read(path)
        with pytest.raises(BlockingIOError):
            server.accept()


# Rows 30 and 35: files that make a reader crash, hang or fill the memory.

EBML = bytes.fromhex(
    "1a45dfa39f4286810142f7810142f2810442f381084282847765626d42878104428581021853806701ffffffffffffff1549a966872ad7b1830f4240"
)
TRACK = b"\xd7\x81\x01\x73\xc5\x81\x01\x83\x81\x02\x86\x86A_OPUS\x63\xa2\x93OpusHead\x01\x01\0\0\x80\xbb\0\0\0\0\0"
TRACKS = b"\x16\x54\xae\x6b" + bytes([0x82 + len(TRACK)]) + b"\xae" + bytes([0x80 + len(TRACK)]) + TRACK
CLUSTER = b"\x1f\x43\xb6\x75\x01\xff\xff\xff\xff\xff\xff\xff\xe7\x81\x00"
FRAME = b"\xff\xfb\x90\x00" + b"\0" * 413
MANY = 300_000


def endless() -> dict[str, bytes]:
    """Return files of some megabytes each that hold very many parts and next to no sound."""
    wav = by_soundfile(tone_in_noise(), "WAV")
    flac = by_soundfile(tone_in_noise(), "FLAC")
    w64 = by_soundfile(tone_in_noise(), "W64")
    return {
        "webm of void elements": EBML + TRACKS + CLUSTER + b"\xec\x80" * MANY,
        "webm of void elements before all": EBML[:36] + b"\xec\x80" * MANY,
        "webm of clusters": EBML + TRACKS + b"\x1f\x43\xb6\x75\x83\xe7\x81\x00" * MANY,
        "mp3 of sync words": b"\xff\xfb" * 2 * MANY,
        "mp3 of headers": b"\xff\xfb\x90\x00" * MANY,
        "mp3 of ones": b"\xff" * 4 * MANY,
        "mp3 and false sync words": FRAME * 10 + b"\xff\xfb\x90\x44\xff" * MANY,
        "mp3 and small frames": FRAME * 10 + b"\xff\xfb\x10\x44" * MANY,
        "mp4 of boxes": b"\0\0\0\x14ftypisom\0\0\0\0isom" + b"\0\0\0\x08free" * MANY,
        "wav of chunks": wav[:36] + b"abcd\0\0\0\0" * MANY + wav[36:],
        "wav of zeros": b"RIFF\0\0\0\0WAVE" + b"\0" * 8 * MANY,
        "w64 of chunks": w64[:40] + (b"abcd" + b"\0" * 12 + struct.pack("<Q", 24)) * MANY,
        "aiff of chunks": b"FORM\x7f\xff\xff\xffAIFF" + b"abcd\0\0\0\0" * MANY,
        "caf of chunks": b"caff\0\1\0\0" + b"abcd\0\0\0\0\0\0\0\0" * MANY,
        "avi of chunks": b"RIFF\xff\xff\xff\x7fAVI " + b"JUNK\0\0\0\0" * MANY,
        "ogg of pages": b"OggS" + b"\0" * 23 * 3 + b"OggS\0\0" + (b"\0" * 20 + b"\0OggS\0\0") * (MANY // 4),
        "id3 in id3": b"ID3\4\0\0\0\0\0\0" * MANY,
        "id3 without end": b"ID3\4\0\0\x7f\x7f\x7f\x7f" + b"\0" * 1000,
        "flac of metadata": flac[:4] + b"\0" + flac[5:42] + b"\1\0\0\0" * MANY + flac[42:],
        "aac of headers": b"\xff\xf1\x60\x40\x00\xff\xfc" * MANY,
        "ac3 of sync words": b"\x0b\x77" * 2 * MANY,
        "amr of nothing": b"#!AMR\n" + b"\x7c" * MANY,
        "voc of blocks": b"Creative Voice File\x1a\x1a\0\x0a\x01\x29\x11" + b"\5\0\0\0" * MANY,
        "program stream of nothing": b"\0\0\1\xba" + b"\x44\0\4\0\4\1\1\x89\xc3\xf8" + b"\0\0\1\xbe\0\0" * MANY,
        "asf of objects": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
        + struct.pack("<QIBB", 30 + 24 * MANY, MANY, 1, 2)
        + (b"\1" * 16 + struct.pack("<Q", 24)) * MANY,
        "a list of songs": b"#EXTM3U\n" + b"#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n" * (MANY // 10),
        "subtitles": b"[00:00.00]a\n" * MANY,
        "zeros": b"\0" * 8 * MANY,
    }


def used_s() -> float:
    """Return the CPU time of all threads of this process, in seconds."""
    return time.process_time()


@pytest.mark.parametrize("name", endless())
def test_row_35_a_file_of_a_million_parts_is_read_or_refused_within_seconds(name):
    data = endless()[name]
    for read in (duration_s, load_audio):
        began = used_s()
        try:
            read(data)
        except AudioError as error:
            assert "\n" not in str(error)
        assert used_s() - began < 4.0, name


@pytest.mark.parametrize("states_length", [True, False])
def test_hours_of_silence_in_a_small_file_do_not_fill_the_memory(states_length):
    data = by_soundfile(np.zeros(2 * 3600 * RATE_HZ, np.float32), "FLAC")
    if not states_length:
        # The last 36 bits of these fields of STREAMINFO are the number of samples.
        fields = int.from_bytes(data[18:26], "big")
        data = data[:18] + (fields >> 36 << 36).to_bytes(8, "big") + data[26:]
    assert len(data) < 600_000
    code = (
        "import resource, sys\n"
        "from whisper_peft.data.audio import AudioError, load_audio, read_sound\n"
        "data = sys.stdin.buffer.read()\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        # This call makes all imports, so that their memory does not count.
        "try: load_audio(data[:20000])\n"
        "except AudioError: pass\n"
        "before = peak()\n"
        "try: read_sound(data, longest_s=30.0)\n"
        "except AudioError as error: print(error)\n"
        "print(peak() - before)\n"
        "try: load_audio(data)\n"
        "except AudioError as error: print(error)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=300)
    window_reason, window_mb, whole_reason, whole_mb = done.stdout.decode().splitlines()
    assert "of audio; the model takes 30 s" in window_reason
    assert "next to nothing but silence" in whole_reason
    assert int(window_mb) < 60
    assert int(whole_mb) < 260


@pytest.mark.parametrize("size", [b"\x80" + b"\0" * 7, b"\x7f" + b"\xff" * 7, b"\xff" * 8, b"\x40" + b"\0" * 7])
@pytest.mark.parametrize("read", [load_audio, duration_s])
def test_row_30_a_caf_with_a_chunk_of_2_to_the_63_bytes_is_called_unreadable(size, read, capfd):
    caf = by_soundfile(tone_in_noise(), "CAF")
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read(caf[:8] + b"info" + size + caf[8:])
    assert not capfd.readouterr().err


HEADERS = {name: by_soundfile(tone_in_noise(seconds=0.3), name) for name in ("WAV", "AIFF", "AU", "CAF", "W64", "RF64")}
HEADERS |= {name: by_soundfile(tone_in_noise(seconds=0.3), name) for name in ("FLAC", "OGG", "MP3", "NIST", "VOC")}
MAGICS = [
    b"RIFF\0\0\0\0WAVEfmt ",
    b"RIFF\0\0\0\0AVI LIST",
    b"RF64\xff\xff\xff\xffWAVEds64",
    b"RIFX\0\0\0\0WAVE",
    b"FORM\0\0\0\0AIFFCOMM",
    b"FORM\0\0\0\0AIFCFVER",
    b"caff\0\1\0\0desc",
    b".snd\0\0\0\x18",
    b"OggS\0\2",
    b"fLaC\0\0\0\x22",
    b"ID3\4\0\0",
    b"\xff\xfb\x90",
    b"\xff\xf1\x60\x40",
    b"\x0b\x77",
    b"\x1a\x45\xdf\xa3",
    b"\0\0\0\x18ftypM4A ",
    b"\0\0\0\x08moov",
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    bytes.fromhex("726966662e91cf11a5d628db04c10000"),
    b"#!AMR\n",
    b"#!AMR-WB\n",
    b"wvpk",
    b"TTA1",
    b"MAC ",
    b"MPCK",
    b"tBaK",
    b"\0\0\1\xba",
    b"G" + b"\0" * 187 + b"G",
    b"FLV\1\4\0\0\0\x09\0\0\0\0",
    b".RMF\0\0\0\x12",
    b"Creative Voice File\x1a",
    b"NIST_1A\n   1024\n",
    b"",
]


def reads_or_refuses(data: bytes) -> None:
    for read in (load_audio, duration_s):
        began = used_s()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            value = read(data)
        except AudioError as error:
            assert str(error)
            assert "\n" not in str(error)
        else:
            assert np.all(np.isfinite(value))
        assert used_s() - began < 1.0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=600))
def test_row_30_any_bytes_after_the_signature_of_a_format_are_read_or_refused(magic, rest):
    reads_or_refuses(magic + rest)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(HEADERS)),
    at=st.integers(0, 80),
    value=st.sampled_from([b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\x80\0\0\0\0\0\0\0", b"\0" * 8]),
    n_bytes=st.integers(1, 100_000),
)
def test_row_30_a_file_with_absurd_numbers_in_its_header_is_read_or_refused(name, at, value, n_bytes):
    data = HEADERS[name]
    reads_or_refuses((data[:at] + value + data[at + len(value) :])[:n_bytes])
