"""Effects on training clips, wave to wave: speed, rooms, noise, telephones, level; and noise in which nobody speaks.

Every effect is drawn from a generator that is passed in, so a seed decides it. Files of noise and of rooms are read by
`load_audio`, like all others. Rooms and noise that are simulated come from audiomentations, an optional package.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whisper_peft.data.audio import SAMPLE_RATE_HZ, AudioError, duration_s, load_audio
from whisper_peft.data.recordings import SOUND_SUFFIXES
from whisper_peft.errors import UserError
from whisper_peft.recipe_files import expand_home

# The band of a telephone line, whose sound is sampled at 8 kHz.
TELEPHONE_HZ = (300.0, 3400.0)

# Seconds of an impulse response that are used. Later echoes cannot be heard, and computing them costs time.
LONGEST_ECHO_S = 4.0

# Options of audiomentations' RoomSimulator: living rooms, their walls from bare to covered.
ROOM = {
    # Metres from the mouth to the microphone: held in the hand, or lying across the room.
    "min_mic_distance": 0.3,
    "max_mic_distance": 2.5,
    # Reflections of this order have fallen by 30 dB in 0.1 s, and take 0.07 s to compute. Up to order 14 it is 20 s.
    "max_order": 8,
    # Ray tracing has a generator that nobody can seed.
    "use_ray_tracing": False,
}

# (path, seconds) of each sound file in a folder.
SoundFiles = tuple[tuple[str, float], ...]


class Augmentation:
    """Effects on training clips, in the order in which they happen to real sound: speaker, room, noise, telephone.

    Each effect has a share: the probability that a clip gets it. An Augmentation is called with (wave float32
    (n_samples,) at 16 kHz, random generator), so it can also be the `augment` of a dataset. Only speed changes the
    length of a wave.

    Args:
        speed: Share of the clips that are played slower or faster, and lower or higher with it.
        speed_factor: Lowest and highest factor; 0.9 is slower.
        room: Share of the clips that are heard in a room.
        room_folder: Folder of recorded impulse responses; None simulates rooms.
        noise: Share of the clips with noise.
        noise_folder: Folder of sound files from which the noise is cut; None makes coloured noise.
        noise_snr_db: How many decibels the noise is below the clip, lowest and highest.
        telephone: Share of the clips in the band of a telephone, 300 to 3,400 Hz.
        gain: Share of the clips with another level.
        gain_db: Change of the level in decibels, lowest and highest.
        no_speech: Share of the clips that noise takes the place of, see `without_speech`. The dataset draws it.

    Raises:
        UserError: A folder has no sound files, a file in it cannot be read, or a package is missing.
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
        self.speed_factor = speed_factor
        self.noise_snr_db = noise_snr_db
        self.gain_db = gain_db
        self.no_speech = no_speech
        self.noises: SoundFiles = ()
        self.rooms: SoundFiles = ()
        if noise_folder and (noise or no_speech):
            self.noises = _list_sounds(noise_folder, "noise_folder")
        if room_folder and room:
            self.rooms = _list_sounds(room_folder, "room_folder")
        # Effects that are simulated need an optional package. A run without it must stop here, not at its first clip.
        simulated = {
            "room": room and not self.rooms,
            "noise": noise and not self.noises,
            "telephone": telephone,
            "no_speech": no_speech and not self.noises,
        }
        for effect, is_wanted in simulated.items():
            if is_wanted:
                _check_installed(effect)
        self.effects = (
            (self._change_speed, speed),
            (self._place_in_room, room),
            (self._add_noise, noise),
            (self._send_by_telephone, telephone),
            (self._change_level, gain),
        )

    def __call__(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw effects for a clip, and return its wave with them.

        Raises:
            AudioError: A file of noise or of a room cannot be read after all.
        """
        for effect, share in self.effects:
            if rng.random() < share:
                wave = effect(wave, rng).astype(np.float32, copy=False)
        return wave

    def without_speech(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the noise that would have been added to a wave, alone: as long, and some decibels below its level."""
        noise = self._make_noise(wave, rng)
        below_db = rng.uniform(*self.noise_snr_db)
        return (noise * (_rms(wave) / (_rms(noise) or 1.0) * 10 ** (-below_db / 20))).astype(np.float32)

    def fingerprint(self) -> str:
        """Compute the SHA-256 over names and lengths of the files that noise and rooms are taken from."""
        listed = [(Path(path).name, round(seconds, 3)) for path, seconds in (*self.noises, *self.rooms)]
        return hashlib.sha256(repr(listed).encode("utf-8", "surrogatepass")).hexdigest()

    def _change_speed(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import soxr

        changed = soxr.resample(wave, SAMPLE_RATE_HZ * rng.uniform(*self.speed_factor), SAMPLE_RATE_HZ)
        # A wave of one sample may lose it.
        if not len(changed):
            return wave
        return changed

    def _add_noise(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return wave + self.without_speech(wave, rng)

    def _make_noise(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Make noise as long as the wave, at any level."""
        if not self.noises:
            return _simulate("AddColorNoise", wave, rng, min_snr_db=0.0, max_snr_db=0.0) - wave
        # np.resize repeats noise that is too short.
        return np.resize(_cut_piece(self.noises, len(wave) / SAMPLE_RATE_HZ, rng), len(wave))

    def _place_in_room(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.rooms:
            path, seconds = self.rooms[rng.integers(len(self.rooms))]
            echo = load_audio(path, end_s=min(seconds, LONGEST_ECHO_S))
            # The echo begins with the direct sound, so that the times of the text stay right.
            echo = echo[np.abs(echo).argmax() :]
            n_samples = len(wave) + len(echo)
            heard = np.fft.irfft(np.fft.rfft(wave, n_samples) * np.fft.rfft(echo, n_samples), n_samples)[: len(wave)]
        else:
            heard = _simulate("RoomSimulator", wave, rng, leave_length_unchanged=True, **ROOM)
        # The level is left as it was: `gain` is the effect that changes it.
        return heard * (_rms(wave) / (_rms(heard) or 1.0))

    def _send_by_telephone(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import soxr

        low_hz, high_hz = TELEPHONE_HZ
        center_hz = (low_hz + high_hz) / 2
        fraction = (high_hz - low_hz) / center_hz
        band = _simulate(
            "BandPassFilter",
            wave,
            rng,
            min_center_freq=center_hz,
            max_center_freq=center_hz,
            min_bandwidth_fraction=fraction,
            max_bandwidth_fraction=fraction,
            min_rolloff=24,
            max_rolloff=24,
        )
        narrow = soxr.resample(band, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ // 2)
        wide = soxr.resample(narrow, SAMPLE_RATE_HZ // 2, SAMPLE_RATE_HZ)[: len(wave)]
        return np.pad(wide, (0, len(wave) - len(wide)))

    def _change_level(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return wave * 10 ** (rng.uniform(*self.gain_db) / 20)


def _list_sounds(folder: str, setting: str) -> SoundFiles:
    """List the sound files in a folder and its subfolders, in an order that depends on their names alone.

    Args:
        folder: The folder, as the user wrote it.
        setting: Name of the setting below `augment`, for messages.

    Raises:
        UserError: There is no such folder, it has no sound files, or the header of one cannot be read.
    """
    root = expand_home(folder)
    key = f"augment.{setting}"
    if not root.is_dir():
        raise UserError(f"{key}: no folder {folder}; name one with sound files.")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if _is_sound(path))
    if not names:
        raise UserError(f"{key}: no sound files in {folder}; what counts: {', '.join(SOUND_SUFFIXES)}.")
    files = []
    for name in names:
        path = str((root / name).absolute())
        try:
            files.append((path, duration_s(path)))
        except AudioError as error:
            raise UserError(f"{path}: {error}; mend it, or take it out of {key}.") from None
    return tuple(files)


def _is_sound(path: Path) -> bool:
    return path.suffix.lower() in SOUND_SUFFIXES and path.is_file()


def _cut_piece(files: SoundFiles, wanted_s: float, rng: np.random.Generator) -> np.ndarray:
    """Cut a piece of the wanted length from a drawn file; a file that is shorter is taken whole."""
    path, seconds = files[rng.integers(len(files))]
    start_s = rng.uniform(0.0, max(0.0, seconds - wanted_s))
    return load_audio(path, start_s=start_s, end_s=min(seconds, start_s + wanted_s))


def _rms(wave: np.ndarray) -> float:
    """Return the level of a wave: the root of its mean square."""
    return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))


def _check_installed(effect: str) -> None:
    """Refuse an effect whose package is missing."""
    try:
        # Both are imported only to see whether they can be.
        import audiomentations  # noqa: F401

        if effect == "room":
            import pyroomacoustics  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"augment.{effect}: needs {error.name or 'audiomentations'}; pip install 'whisper-peft[augment]'."
        ) from None


def _simulate(kind: str, wave: np.ndarray, rng: np.random.Generator, **options) -> np.ndarray:
    """Apply a transform of audiomentations to a wave, with one number of our generator as its seed."""
    import audiomentations

    transform = getattr(audiomentations, kind)(p=1.0, **options)
    with _seed_global_generators(int(rng.integers(2**32))):
        return transform(wave, SAMPLE_RATE_HZ)


@contextlib.contextmanager
def _seed_global_generators(seed: int) -> Iterator[None]:
    """Seed Python's and numpy's global generators, from which audiomentations draws, and restore them afterwards."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
