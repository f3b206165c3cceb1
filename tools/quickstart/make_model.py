"""Make the quickstart's miniature Whisper: pretrained on synthetic Marathi and English, so that it can learn Hindi.

    python tools/quickstart/make_model.py OUT

writes OUT (model, generation config, tokenizer and processor, as transformers 4.5x and 5 read them). It speaks random
word sequences with espeak-ng (about 5 minutes on 2 cores) and trains on them (about 25 minutes); OUT is rewritten every
three minutes, so that an interrupted run leaves a usable model. The architecture is Whisper's own, only small, with a
window of 3 s: 1,500 encoder positions would make a training step thirty times as slow.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from make_speech import sample_rate_hz, speak, vocabulary

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

window_s = 3
max_label_tokens = 64
marathi_clips, english_clips = 15_500, 3_000
steps, batch_size, warmup_steps, peak_learning_rate = 3600, 32, 150, 1.5e-3
ctc_share, noisy_share, random_language_share = 0.3, 0.6, 0.15

# None of these is a validation or test voice of the Hindi set.
voices = """
adam aunty benjamin boris caleb Diogo Gene Gene2 Gustave Henrique iven iven2 iven3 Jacky john kaukovalta Lee
marcelo Mario max michel miguel mike Nguyen paul pedro quincy rob robert sandro shelby steph2 steph3 Storm
travis zac anika m8 m1 m3 m7 Alex david ed f1 f2 f4 Alicia Andrea steph
"""

# Marathi nouns as base/oblique; the case endings make several forms of each.
nouns = """
घर/घरा शाळा/शाळे गाव/गावा झाड/झाडा नदी/नदी डोंगर/डोंगरा आकाश/आकाशा माणूस/माणसा मुलगा/मुला मुलगी/मुली आई/आई
वडील/वडिलां भाऊ/भावा बहीण/बहिणी आजी/आजी आजोबा/आजोबां मित्र/मित्रा शेजारी/शेजाऱ्या शेत/शेता पीक/पिका बैल/बैला
गाय/गाई कुत्रा/कुत्र्या मांजर/मांजरी पक्षी/पक्ष्या चिमणी/चिमणी कावळा/कावळ्या घोडा/घोड्या हत्ती/हत्ती वाघ/वाघा
ससा/सशा मासा/माशा साप/सापा उंदीर/उंदरा पाऊस/पावसा वारा/वाऱ्या ऊन/उन्हा ढग/ढगा सूर्य/सूर्या चंद्र/चंद्रा
तारा/ताऱ्या समुद्र/समुद्रा किनारा/किनाऱ्या रस्ता/रस्त्या पूल/पुला बाजार/बाजारा दुकान/दुकाना भाजी/भाजी फळ/फळा
आंबा/आंब्या केळ/केळ्या पेरू/पेरू भात/भाता पोळी/पोळी डाळ/डाळी साखर/साखरे मीठ/मिठा तेल/तेला लोणी/लोण्या ताक/ताका
चहा/चहा पाणी/पाण्या दगड/दगडा माती/माती वाळू/वाळू लाकूड/लाकडा लोखंड/लोखंडा सोने/सोन्या चांदी/चांदी कागद/कागदा
पुस्तक/पुस्तका वही/वही लेखणी/लेखणी पाटी/पाटी खडू/खडू शिक्षक/शिक्षका विद्यार्थी/विद्यार्थ्या वर्ग/वर्गा खेळ/खेळा
चेंडू/चेंडू दोरी/दोरी सुई/सुई कापड/कापडा सदरा/सदऱ्या टोपी/टोपी जोडा/जोड्या पिशवी/पिशवी डबा/डब्या भांडे/भांड्या
ताट/ताटा वाटी/वाटी चमचा/चमच्या सुरी/सुरी विळी/विळी चूल/चुली दिवा/दिव्या खिडकी/खिडकी दार/दारा भिंत/भिंती
छप्पर/छपरा अंगण/अंगणा विहीर/विहिरी बाग/बागे फूल/फुला पान/पाना फांदी/फांदी मूळ/मुळा बी/बी डोळा/डोळ्या कान/काना
नाक/नाका तोंड/तोंडा दात/दाता जीभ/जिभे हात/हाता बोट/बोटा पाय/पाया गुडघा/गुडघ्या डोके/डोक्या केस/केसा मान/माने
पोट/पोटा पाठ/पाठी हाड/हाडा रक्त/रक्ता कपाळ/कपाळा गाल/गाला राजा/राजा राणी/राणी सैनिक/सैनिका किल्ला/किल्ल्या
तलवार/तलवारी ढाल/ढाली गोष्ट/गोष्टी गाणे/गाण्या नाटक/नाटका चित्र/चित्रा रंग/रंगा सुतार/सुतारा लोहार/लोहारा
कुंभार/कुंभारा शिंपी/शिंप्या गाडी/गाडी चाक/चाका बोट/बोटी विमान/विमाना आगगाडी/आगगाडी तिकीट/तिकिटा प्रवास/प्रवासा
पाहुणा/पाहुण्या लग्न/लग्ना सण/सणा दिवाळी/दिवाळी वर्ष/वर्षा महिना/महिन्या आठवडा/आठवड्या दिवस/दिवसा रात्र/रात्री
सकाळ/सकाळी दुपार/दुपारी संध्याकाळ/संध्याकाळी वेळ/वेळे काम/कामा पैसा/पैशा
"""
case_endings = "ला ने त चा ची चे हून साठी वर कडे पासून जवळ शी पुढे मागे"
verb_roots = """
कर बस उठ चाल धाव बोल वाच लिह शिक हस रड खेळ पळ उड पोह मार धर सोड उघड लाव काढ ठेव पाठव आण भेट समज विचार सांग ऐक बघ
शोध मिळ वळ थांब चढ उतर पड तुट फुट जाग झोप नाच रंग शिव जोड मोज निवड वाढ घट उकळ तळ भाज चिर पुस झटक ढकल ओढ फेक झेल
पेर कोर गुंड बांध खरेद विक
"""
verb_endings = "तो ते तात णार ून ताना ायला ले ली तील ावे"
other_marathi = """
मी तू तो ती ते आम्ही तुम्ही आपण माझा माझी माझे तुझा तुझी तुझे त्याचा तिचा आमचा तुमचा त्यांचा हा ही हे जो कोण काय
कुठे केव्हा कसा कशी कसे किती आणि पण किंवा म्हणून कारण जर तर आता नंतर लवकर उशिरा नेहमी कधी इथे तिथे आत वरती खालती
दूर जवळ पुढे मागे मध्ये आहे आहेत नाही होता होती होते असेल नको हवे पाहिजे मोठा मोठी मोठे लहान उंच ठेंगणा जाड
बारीक गोड आंबट तिखट कडू खारट काळा पांढरा तांबडा पिवळा हिरवा निळा जुना नवा चांगला वाईट सुंदर हुशार मूर्ख शूर
भित्रा श्रीमंत गरीब थंड गरम ओला कोरडा जड हलका रिकामा भरलेला एक दोन तीन चार पाच सहा सात आठ नऊ दहा अकरा बारा तेरा
चौदा पंधरा सोळा सतरा अठरा एकोणीस वीस तीस चाळीस पन्नास साठ सत्तर ऐंशी नव्वद शंभर हजार लाख पहिला दुसरा तिसरा चौथा
पाचवा सगळे काही थोडे फार खूप अगदी फक्त सुद्धा पुन्हा हळूहळू झटपट उद्या काल परवा रोज सोमवार मंगळवार बुधवार
गुरुवार शुक्रवार शनिवार रविवार गाऊ जाऊ येऊ घेऊ देऊ खाऊ पिऊ गेला आला दिला घेतला खाल्ला प्याला झाला पाहिला केला
म्हणाला गेली आली दिली घेतली झाली जाईल येईल देईल घेईल खाईल होईल
"""
english_words = """
the a this that one two three four five six seven eight nine ten red green blue white black brown small large
old new good bad hot cold warm dry wet fast slow high low long short dark bright man woman child boy girl mother
father sister brother friend house door window wall floor roof garden tree leaf flower grass river lake sea hill
road bridge field farm city town village dog cat horse cow sheep goat bird fish snake mouse lion bear apple
orange bread butter milk water tea coffee sugar salt rice egg meat soup table chair bed lamp clock book paper
pen pencil letter word story song music school class teacher student lesson question answer game ball team king
queen soldier doctor nurse farmer driver worker summer winter spring morning evening night day week month year
hour minute time sun moon star sky cloud rain snow wind fire stone sand iron gold silver wood glass cloth shirt
coat hat shoe bag box key knife spoon plate cup hand foot head eye ear nose mouth tooth hair arm leg heart back
run walk jump sit stand sleep wake eat drink cook wash clean open close push pull give take bring carry hold
find lose buy sell pay read write speak listen hear see look watch think know learn forget remember begin end
stop wait help ask tell play work laugh cry sing dance swim climb fall break build cut draw paint turn come go
leave arrive here there near far under over before after again always never often early late now soon today
yesterday tomorrow and but or because if when
"""


@functools.cache
def marathi_words() -> list[str]:
    """Marathi word forms, without any word of the Hindi set."""
    words = set(other_marathi.split())
    for pair in nouns.split():
        base, oblique = pair.split("/")
        words |= {base, *(oblique + ending for ending in case_endings.split())}
    # An ending that begins with a vowel sign joins the root as it stands.
    words |= {root + ending for root in verb_roots.split() for ending in verb_endings.split()}
    words = {unicodedata.normalize("NFC", word) for word in words}
    return sorted(words - vocabulary())


def write_tokenizer(out: Path) -> dict[str, int]:
    """Write a byte-level BPE whose merges stop at single Devanagari characters; returns the ids of its tokens."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    # GPT-2's printable stand-ins for the 256 bytes, in its order (byte 32, the space, becomes token 220).
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(printable)))
    vocabulary_ = {symbol: number for number, symbol in enumerate(symbols.values())}
    merges = [(symbols[0xE0], symbols[0xA4]), (symbols[0xE0], symbols[0xA5])]
    for point in range(0x900, 0x980):
        first, second, third = (symbols[byte] for byte in chr(point).encode())
        merges.append((first + second, third))
    vocabulary_ |= {first + second: len(vocabulary_) + number for number, (first, second) in enumerate(merges)}

    languages = [f"<|{code}|>" for code in LANGUAGES if code != "yue"]  # the 99 of the multilingual checkpoints
    tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    special = ["<|endoftext|>", "<|startoftranscript|>", *languages, *(f"<|{name}|>" for name in tasks)]
    times = [f"<|{0.02 * number:.2f}|>" for number in range(50 * window_s + 1)]
    ids = dict(vocabulary_)
    added = []
    for token in special + times:
        ids[token] = len(ids)
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added.append({"id": ids[token], "content": token, **plain, "special": token in special})
    vocabulary_["<|endoftext|>"] = ids["<|endoftext|>"]  # as in OpenAI's file

    def piece(token: str) -> dict[str, object]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    prefix = ["<|startoftranscript|>", "<|notimestamps|>"]
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*map(piece, prefix), *text, piece("<|endoftext|>")],
            "pair": [*map(piece, prefix), *text, {"Sequence": {"id": "B", "type_id": 1}}, piece("<|endoftext|>")],
            "special_tokens": {
                token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in [*prefix, "<|endoftext|>"]
            },
        },
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary_,
            "merges": merges,
        },
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        "additional_special_tokens": special,
        "bos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": max_label_tokens,
        "pad_token": "<|endoftext|>",
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        "tokenizer_class": "WhisperTokenizer",
        "unk_token": "<|endoftext|>",
    }
    write_json(out / "tokenizer.json", tokenizer)
    write_json(out / "tokenizer_config.json", config)
    # The slow tokenizer of transformers 4 reads these two.
    write_json(out / "vocab.json", vocabulary_)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ids


def write_json(path: Path, content: object) -> None:
    """Write JSON as transformers does, Unicode left readable."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def build(ids: dict[str, int]) -> WhisperForConditionalGeneration:
    """Make the untrained miniature with its generation config."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    common = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(ids),
            num_mel_bins=80,
            d_model=128,
            encoder_layers=4,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=512,
            decoder_ffn_dim=512,
            max_source_positions=50 * window_s,
            max_target_positions=max_label_tokens,
            dropout=0.0,
            begin_suppress_tokens=[ids["Ġ"], end],
            **common,
        )
    )
    suppressed = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech")
    tasks = {name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")}
    model.generation_config = GenerationConfig(
        alignment_heads=[[1, 0], [1, 1]],
        begin_suppress_tokens=[ids["Ġ"], end],
        is_multilingual=True,
        lang_to_id={token: number for token, number in ids.items() if start < number < tasks["translate"]},
        max_initial_timestamp_index=50,
        max_length=max_label_tokens,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        return_timestamps=False,
        suppress_tokens=[ids[f"<|{name}|>"] for name in suppressed],
        task_to_id=tasks,
        **common,
    )
    return model


def save(model: WhisperForConditionalGeneration, out: Path) -> None:
    """Write the whole model folder beside its place, then rename it."""
    import torch
    from transformers import WhisperFeatureExtractor

    fresh = out.with_name(out.name + ".fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    ids = write_tokenizer(fresh)
    half = build(ids)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    # transformers 5 reads processor_config.json, transformers 4 preprocessor_config.json.
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=window_s).to_dict()
    for name in ("mel_filters", "processor_class"):
        extractor.pop(name, None)
    write_json(fresh / "preprocessor_config.json", extractor | {"processor_class": "WhisperProcessor"})
    write_json(fresh / "processor_config.json", {"feature_extractor": extractor, "processor_class": "WhisperProcessor"})
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


def speak_random(seed: int) -> tuple[np.ndarray, str, str]:
    """Make a random word sequence: return its log-mel, float16 (80, 300), its text and its language.

    Most clips get white noise of 10 to 40 dB below the speech. The extractor pads the waveform with zeros, so that the
    frames after the clip are its log-mel floor, as in training.
    """
    import torch
    from transformers import WhisperFeatureExtractor

    torch.set_num_threads(1)
    rng = random.Random(seed)
    language = "mr" if seed < marathi_clips else "en"
    words = marathi_words() if language == "mr" else english_words.split()
    while True:
        text = " ".join(rng.choice(words) for _ in range(rng.choice([1, 2, 3, 3, 4, 4, 5])))
        voice = f"{'en-us' if language == 'en' else 'mr'}+{rng.choice(voices.split())}"
        wave = speak(text, voice, words_per_minute=rng.randint(140, 210), pitch=rng.randint(25, 75))
        if 0.3 < len(wave) / sample_rate_hz < window_s - 0.1 and len(text) < max_label_tokens - 6:
            break
    if rng.random() < noisy_share:
        level = np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(10, 40) / 20)
        wave = wave + level * np.random.default_rng(seed).standard_normal(len(wave), dtype=np.float32)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=window_s)
    features = extractor(wave, sampling_rate=sample_rate_hz, return_tensors="np").input_features[0]
    return features.astype(np.float16), text, language


def make_model(out: Path, *, seed: int = 5) -> None:
    """Speak the training clips, pretrain the miniature on them and write it to `out`."""
    import torch
    from torch.nn.functional import cross_entropy, ctc_loss
    from transformers import WhisperProcessor

    started = time.monotonic()
    with multiprocessing.Pool(2) as pool:
        clips = pool.map(speak_random, range(marathi_clips + english_clips), chunksize=50)
    print(f"{len(clips)} clips, {len(marathi_words())} Marathi words, {time.monotonic() - started:.0f} s", flush=True)

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        ids = write_tokenizer(Path(folder))
    model = build(ids)
    save(model, out)
    tokenizer = WhisperProcessor.from_pretrained(out).tokenizer
    end = ids["<|endoftext|>"]
    languages = [number for number in ids.values() if ids["<|startoftranscript|>"] < number < ids["<|translate|>"]]
    ctc_head = torch.nn.Linear(model.config.d_model, end + 1)  # thrown away afterwards; <|endoftext|> is its blank
    parameters = [p for p in [*model.parameters(), *ctc_head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak_learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup_steps, (steps - step) / (steps - warmup_steps))
    )

    order: list[int] = []
    running = saved_at = time.monotonic()
    for step in range(steps):
        if len(order) < batch_size:
            order = rng.permutation(len(clips)).tolist()
        batch = [clips[order.pop()] for _ in range(batch_size)]
        features = torch.from_numpy(np.stack([mel for mel, _, _ in batch])).float()  # (batch_size, 80, 300)
        texts = [tokenizer(text, add_special_tokens=False).input_ids for _, text, _ in batch]
        longest = max(map(len, texts))
        decoder_input_ids = torch.full((batch_size, 4 + longest), end)
        labels = torch.full((batch_size, 4 + longest), -100)
        for row, ((_, _, language), text) in enumerate(zip(batch, texts, strict=True)):
            # A random language now and then leaves no language token, Hindi's among them, untrained.
            spoken = ids[f"<|{language}|>"] if rng.random() >= random_language_share else int(rng.choice(languages))
            prefix = [ids["<|startoftranscript|>"], spoken, ids["<|transcribe|>"], ids["<|notimestamps|>"]]
            decoder_input_ids[row, : 4 + len(text)] = torch.tensor(prefix + text)
            labels[row, 3 : 4 + len(text)] = torch.tensor([*text, end])

        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(input_features=features, decoder_input_ids=decoder_input_ids)
        loss = cross_entropy(output.logits.float().flatten(0, 1), labels.flatten())
        log_probs = ctc_head(output.encoder_last_hidden_state.float()).log_softmax(-1).transpose(0, 1)
        frames = torch.full((batch_size,), log_probs.shape[0])
        lengths = torch.tensor([len(text) for text in texts])
        targets = torch.tensor([token for text in texts for token in text])
        ctc = ctc_loss(log_probs, targets, frames, lengths, blank=end, zero_infinity=True)
        ((1 - ctc_share) * loss + ctc_share * ctc).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 49:
            pace_s = (time.monotonic() - running) / 50
            running = time.monotonic()
            print(f"step {step + 1}: loss {loss.item():.3f}, CTC {ctc.item():.3f}, {pace_s:.2f} s a step", flush=True)
        if time.monotonic() - saved_at > 180 or step == steps - 1:
            save(model, out)
            saved_at = time.monotonic()


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
