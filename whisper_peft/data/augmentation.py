"""Waveform to waveform, seeded: speed, rooms, noise, telephones, level; and noise in which nobody speaks.

Files are read by `load_audio`, as all others are. What is simulated comes from audiomentations, an extra.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whisper_peft.data.audio import AudioError, duration_s, load_audio
from whisper_peft.data.folders import SOUND_SUFFIXES
from whisper_peft.errors import UserError
from whisper_peft.recipe_files import expanded

RATE_HZ = 16_000
TELEPHONE_HZ = (300.0, 3400.0)  # the band of a telephone line, which is sampled at 8 kHz
LONGEST_ECHO_S = 4.0  # of an impulse response, more is cut
# A living room, its walls from bare to covered, the microphone at the mouth or across it. Reflections up to order 8
# fall by 30 dB in 0.1 s and take 0.07 s to compute, up to 14 20 s; ray tracing has a generator that nobody can seed.
ROOM = {"min_mic_distance": 0.3, "max_mic_distance": 2.5, "max_order": 8, "use_ray_tracing": False}

Sounds = tuple[tuple[str, float], ...]  # (path, seconds)


class Augmentation:
    """Effects on training clips, each with the share of the clips that get it, in the order of their physics.

    A function of (wave float32 (n_samples,) at 16 kHz, random generator), so it can be the `augment` of a dataset, too.
    Only speed changes how long a wave is.

    Args:
        speed: share of the clips that are played slower or faster, and lower or higher with it.
        speed_factor: lowest and highest; 0.9 is slower.
        room: share that is heard in a room.
        room_folder: of recorded impulse responses; None: rooms are simulated.
        noise: share with noise.
        noise_folder: of sound files that the noise is cut from; None: coloured noise.
        noise_snr_db: how far the noise may be below the clip, lowest and highest.
        telephone: share in the band of a telephone, 300 to 3,400 Hz.
        gain: share with another level.
        gain_db: lowest and highest.
        no_speech: share of the clips that are noise alone, see `without_speech`; the dataset draws it.

    Raises:
        UserError: a folder without sound files, a file in it that cannot be read, a package that is missing.
    """

    def __init__(
        self,
        *,
        speed: float = 0.0,
        speed_factor: tuple[float, float] = (0.9, 1.1),
        room: float = 0.0,
        room_folder: str | None = None,
        noise: float = 0.0,
        noise_folder: str | None = None,
        noise_snr_db: tuple[float, float] = (5.0, 30.0),
        telephone: float = 0.0,
        gain: float = 0.0,
        gain_db: tuple[float, float] = (-12.0, 6.0),
        no_speech: float = 0.0,
    ):
        self.speed_factor, self.noise_snr_db, self.gain_db = speed_factor, noise_snr_db, gain_db
        self.no_speech = no_speech
        self.noises = sounds_in(noise_folder, "noise_folder") if noise_folder and (noise or no_speech) else ()
        self.rooms = sounds_in(room_folder, "room_folder") if room_folder and room else ()
        simulated = {
            "room": room and not self.rooms, "noise": noise and not self.noises, "telephone": telephone,
            "no_speech": no_speech and not self.noises,
        }  # fmt: skip
        if wanted := next((name for name, share in simulated.items() if share), None):
            _check_installed(wanted)
        self.effects = (
            (self._speed, speed), (self._room, room), (self._noisy, noise), (self._telephone, telephone),
            (self._gain, gain),
        )  # fmt: skip

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The wave with the effects that were drawn for it.

        Raises:
            AudioError: a file of noise, or of a room, that cannot be read after all.
        """
        for effect, share in self.effects:
            if rng.random() < share:
                wave = effect(wave, rng).astype(np.float32, copy=False)
        return wave

    def without_speech(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The noise that would have been put under a wave, without the wave: as long, and some decibels below it."""
        noise = self._noise(wave, rng)
        below_db = rng.uniform(*self.noise_snr_db)
        return (noise * (_rms(wave) / (_rms(noise) or 1.0) * 10 ** (-below_db / 20))).astype(np.float32)

    def fingerprint(self) -> str:
        """The SHA-256 over names and lengths of the files that it takes noise and rooms from."""
        listed = [(Path(path).name, round(seconds, 3)) for path, seconds in (*self.noises, *self.rooms)]
        return hashlib.sha256(repr(listed).encode("utf-8", "surrogatepass")).hexdigest()

    def _speed(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import soxr

        changed = soxr.resample(wave, RATE_HZ * rng.uniform(*self.speed_factor), RATE_HZ)
        return changed if len(changed) else wave

    def _noisy(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return wave + self.without_speech(wave, rng)

    def _noise(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As long as the wave, at any level."""
        if not self.noises:
            return _simulated("AddColorNoise", wave, rng, min_snr_db=0.0, max_snr_db=0.0) - wave
        return np.resize(_piece(self.noises, len(wave) / RATE_HZ, rng), len(wave))  # a shorter one comes again

    def _room(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.rooms:
            path, seconds = self.rooms[rng.integers(len(self.rooms))]
            echo = load_audio(path, end_s=min(seconds, LONGEST_ECHO_S))
            echo = echo[np.abs(echo).argmax() :]  # from the direct sound on: the times of the text stay right
            n_samples = len(wave) + len(echo)
            heard = np.fft.irfft(np.fft.rfft(wave, n_samples) * np.fft.rfft(echo, n_samples), n_samples)[: len(wave)]
        else:
            heard = _simulated("RoomSimulator", wave, rng, leave_length_unchanged=True, **ROOM)
        return heard * (_rms(wave) / (_rms(heard) or 1.0))  # as loud as it was: the level is `gain`'s

    def _telephone(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import soxr

        low_hz, high_hz = TELEPHONE_HZ
        center_hz = (low_hz + high_hz) / 2
        fraction = (high_hz - low_hz) / center_hz
        band = _simulated(
            "BandPassFilter", wave, rng, min_center_freq=center_hz, max_center_freq=center_hz,
            min_bandwidth_fraction=fraction, max_bandwidth_fraction=fraction, min_rolloff=24, max_rolloff=24,
        )  # fmt: skip
        narrow = soxr.resample(soxr.resample(band, RATE_HZ, RATE_HZ // 2), RATE_HZ // 2, RATE_HZ)[: len(wave)]
        return np.pad(narrow, (0, len(wave) - len(narrow)))

    def _gain(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return wave * 10 ** (rng.uniform(*self.gain_db) / 20)


def sounds_in(folder: str, setting: str) -> Sounds:
    """The sound files in a folder and those under it, in an order that depends on their names alone.

    Raises:
        UserError: no such folder, none in it, or one whose header cannot be read.
    """
    root, key = expanded(folder), f"augment.{setting}"
    if not root.is_dir():
        raise UserError(f"{key}: no folder {folder}; name one with sound files.")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if _is_sound(path))
    if not names:
        raise UserError(f"{key}: no sound files in {folder}; what counts: {', '.join(SOUND_SUFFIXES)}.")
    found = []
    for name in names:
        path = str((root / name).absolute())
        try:
            found.append((path, duration_s(path)))
        except AudioError as error:
            raise UserError(f"{path}: {error}; mend it, or take it out of {key}.") from None
    return tuple(found)


def _is_sound(path: Path) -> bool:
    return path.suffix.lower() in SOUND_SUFFIXES and path.is_file()


def _piece(sounds: Sounds, wanted_s: float, rng: np.random.Generator) -> np.ndarray:
    path, seconds = sounds[rng.integers(len(sounds))]
    start_s = rng.uniform(0.0, max(0.0, seconds - wanted_s))
    return load_audio(path, start_s=start_s, end_s=min(seconds, start_s + wanted_s))


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def _check_installed(effect: str) -> None:
    try:
        import audiomentations  # noqa: F401 - whether it can be imported

        if effect == "room":
            import pyroomacoustics  # noqa: F401 - likewise
    except ImportError as error:
        raise UserError(
            f"augment.{effect}: needs {error.name or 'audiomentations'}; pip install 'whisper-peft[augment]'."
        ) from None


def _simulated(kind: str, wave: np.ndarray, rng: np.random.Generator, **options) -> np.ndarray:
    """What a transform of audiomentations makes of a wave, drawn by our generator."""
    import audiomentations

    transform = getattr(audiomentations, kind)(p=1.0, **options)
    with _global_generators(int(rng.integers(2**32))):
        return transform(wave, RATE_HZ)


@contextlib.contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Python's and numpy's own generators, from which audiomentations draws, seeded; and as they were afterwards."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
