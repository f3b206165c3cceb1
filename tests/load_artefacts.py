"""Load a merged model and an adapter in transformers alone: python tests/load_artefacts.py MERGED ADAPTER SOUND

This is a script and not a test. `.ci/run` runs it with the oldest transformers on artefacts of the newest, and
with the newest on artefacts of the oldest.
"""

import sys

import soundfile
from transformers import WhisperForConditionalGeneration, WhisperProcessor, __version__

merged, adapter, sound = sys.argv[1:]
processor = WhisperProcessor.from_pretrained(merged)
assert WhisperProcessor.from_pretrained(adapter).tokenizer.get_vocab() == processor.tokenizer.get_vocab()
model = WhisperForConditionalGeneration.from_pretrained(merged).float()
assert model.generation_config.language == "hi" and model.generation_config.lang_to_id["<|hi|>"]
wave, rate = soundfile.read(sound, dtype="float32")
features = processor(wave, sampling_rate=rate, return_tensors="pt").input_features
text = processor.batch_decode(model.generate(features), skip_special_tokens=True)[0].strip()
assert text, "nothing was heard"
print(f"transformers {__version__} hears: {text}")
