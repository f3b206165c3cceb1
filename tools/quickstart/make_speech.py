"""Make the quickstart's Hindi data set: sentences of a small grammar, spoken by espeak-ng.

    python tools/quickstart/make_speech.py OUT

writes OUT/train, OUT/validation and OUT/test, each with metadata.csv and one ogg/opus file a clip. It takes about a
minute and needs espeak-ng (1.51 was used) on the PATH. No two splits share a sentence or a voice. Words that Marathi
spells alike are left out of the grammar, because the miniature model has been pretrained on Marathi.
"""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

sample_rate_hz = 16_000
longest_clip_s = 2.9  # the miniature model's window is 3 s
clips_per_split = {"test": 60, "validation": 40, "train": 600}

# espeak-ng's voice variants; each split has its own, and the pretraining has none of validation and test.
voices_of = {
    "train": "f1 f2 f4 m1 m2 m3 m5 m7 Alex Alicia Andrea Andy antonio david Denis ed edward Hugo steph Marco",
    "validation": "f5 m6 belinda pablo",
    "test": "f3 m4 Annie Michael linda victor",
}

slots = {
    "place": "रसोई कमरे आँगन गलियारे बरामदे पिछवाड़े तहख़ाने गुसलख़ाने सीढ़ियों",
    "which": "पहली दूसरी तीसरी पिछली अगली दाहिनी बायीं ऊपरी निचली",
    "colour": "नीली पीली सफ़ेद धीमी तेज़",
    "light": "रोशनी बिजली लालटेन",
    "switch": "जलाओ बुझाओ जलाइए बुझाइए बदलो",
    "opening": "खिड़की दराज़ टोंटी",
    "open": "खोलो खोलिए जाँचो",
    "machine": "चूल्हा गीज़र फ़व्वारा",
    "run": "चलाओ रोको चलाइए रोकिए",
    "curtain": "परदे दरवाज़े ताले",
    "draw": "हटाओ लगाओ गिराओ बदलिए",
    "level": "दो पाँच छह नौ दस बीस चालीस पचास अस्सी",
    "hour": "दो पाँच छह नौ दस ग्यारह बारह",
    "daytime": "सुबह दोपहर शाम परसों इतवार",
    "now": "अभी ज़रा फ़ौरन पहले",
    "person": "दादी बहन मौसी माँ बेटी बच्चों मेहमानों पड़ोसी",
    "play": "गाना ख़बरें कहानी",
    "tell": "सुनाओ सुनाइए बजाओ",
    "thing": "चाबी रज़ाई तकिया गाड़ी कुर्सी बर्तन संदूक झाड़ू चश्मा घड़ी",
    "fetch": "लाओ उठाओ हटाओ ढूँढो",
    "give": "दीजिए दिखाओ भेजो भेजिए",
    "beside": "नीचे ऊपर पीछे भीतर",
    "piece": "मेज़ कुर्सी बिस्तर खिड़की संदूक",
    "how_much": "थोड़ा ज़्यादा गर्म ठंडा",
    "drink": "पानी खाना",
    "asker": "मुझे|हमें|दादी को|माँ को|बच्चों को|मेहमानों को|बहन को|बेटी को",
    "what_tea": "थोड़ी ठंडी मीठी गर्म",
    "weather": "मौसम कैसा होगा|बारिश कितनी होगी|धुंध कितनी होगी",
    "volume": "बढ़ाओ घटाओ बढ़ाइए",
    "i_will": "उठूँगा लौटूँगा निकलूँगा सोऊँगा",
    "they_will": "आएँगे पहुँचेंगे लौटेंगे",
    "guest": "बच्चे मेहमान पड़ोसी",
    "whose": "मेरी हमारी तुम्हारी",
    "mine": "चाबी गाड़ी घड़ी कुर्सी",
    "several": "कुर्सियाँ चटाइयाँ मोमबत्तियाँ",
}
patterns = [
    "{place} में {colour} {light} {switch}",
    "{now} {colour} {light} {switch}",
    "{which} {opening} {open}",
    "{now} {which} {opening} {open}",
    "{daytime} {hour} बजे {machine} {run}",
    "{daytime} {hour} बजे {curtain} {draw}",
    "{place} के {curtain} {draw}",
    "{now} आवाज़ {level} तक {volume}",
    "{person} को {play} {tell}",
    "{person} को {thing} {give}",
    "{place} से {thing} {fetch}",
    "{thing} {piece} के {beside} रखो",
    "क्या {place} में {thing} है",
    "{whose} {mine} कहाँ है",
    "{whose} {mine} {piece} के {beside} है",
    "{asker} {how_much} {drink} चाहिए",
    "{asker} {what_tea} चाय चाहिए",
    "{daytime} पौधों को {how_much} पानी दीजिए",
    "बाहर {daytime} {weather}",
    "{daytime} {hour} बजे {weather}",
    "मैं {daytime} {hour} बजे {i_will}",
    "{guest} {daytime} {hour} बजे {they_will}",
    "{place} के {beside} कौन है",
    "यहाँ {level} {several} रखो",
]


def write_sentence(rng: random.Random) -> str:
    """One sentence of the grammar, NFC."""
    pattern = rng.choice(patterns)
    words = {name: rng.choice(choices.split("|" if "|" in choices else None)) for name, choices in slots.items()}
    return unicodedata.normalize("NFC", pattern.format(**words))


def vocabulary() -> set[str]:
    """Every word that the grammar can say."""
    text = " ".join([*slots.values(), *patterns]).replace("|", " ")
    return {unicodedata.normalize("NFC", word) for word in text.split() if not word.startswith("{")}


def speak(text: str, voice: str, *, words_per_minute: int, pitch: int) -> np.ndarray:
    """Let espeak-ng say a text; returns float32 (n_samples,) at 16 kHz with 0.05 s of silence at either end.

    Args:
        text: what to say.
        voice: language and variant as espeak-ng names them, `hi+f3`.
        words_per_minute: speed, 80 to 450.
        pitch: 0 to 99; 50 is the variant's own.
    """
    import soxr

    command = ["espeak-ng", "-b", "1", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "--stdout"]
    wav = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout
    # espeak-ng leaves the length in the header unset, so the samples are read from behind its 44 bytes.
    rate_hz = int.from_bytes(wav[24:28], "little")
    samples = np.frombuffer(wav[44:], dtype="<i2").astype(np.float32) / 32768  # (n_samples,)
    wave = soxr.resample(samples, rate_hz, sample_rate_hz)
    loud = np.flatnonzero(np.abs(wave) > 0.004)
    margin = sample_rate_hz // 20
    wave = wave[loud[0] : loud[-1] + 1] if len(loud) else wave[:0]
    return np.pad(wave, (margin, margin)).astype(np.float32)


def make_speech(out: Path, *, seed: int = 3) -> None:
    """Write the three splits below `out`; the same seed gives the same sentences and the same speech."""
    import soundfile

    rng = random.Random(seed)
    used: set[str] = set()
    for split, n_clips in clips_per_split.items():
        folder = out / split
        folder.mkdir(parents=True)
        voices = voices_of[split].split()
        heard: Counter[str] = Counter()
        rows = []
        while len(rows) < n_clips:
            # Of a few candidates the one with the rarest word, so that each word is heard several times.
            candidates = [text for text in (write_sentence(rng) for _ in range(60)) if text not in used]
            text = min(candidates, key=lambda text: min(heard[word] for word in text.split()))
            voice = voices[len(rows) % len(voices)]
            wave = speak(text, f"hi+{voice}", words_per_minute=rng.randint(150, 190), pitch=rng.randint(35, 65))
            duration_s = len(wave) / sample_rate_hz
            if not 0.5 < duration_s < longest_clip_s:
                continue
            used.add(text)
            heard.update(text.split())
            name = f"{len(rows):03d}.ogg"
            # 0.95 is small and still clear; 1.0 spoils the speech.
            soundfile.write(folder / name, wave, sample_rate_hz, format="OGG", subtype="OPUS", compression_level=0.95)
            rows.append([name, text, voice, f"{duration_s:.3f}"])
        with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([["file_name", "transcription", "speaker_id", "duration"], *rows])
        seconds = sum(float(row[3]) for row in rows)
        print(
            f"{split}: {len(rows)} clips, {seconds / len(rows):.2f} s on average, {len(heard)} words,"
            f" the rarest {min(heard.values())} times"
        )


if __name__ == "__main__":
    make_speech(Path(sys.argv[1]))
