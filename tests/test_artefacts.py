"""The models of a run load in plain peft and plain transformers, where whisper_peft cannot be imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import transformers
from transformers import WhisperProcessor

from whisper_peft import load_model, load_source, merge, runs
from whisper_peft.data.collator import SpeechCollator
from whisper_peft.data.dataset import SpeechDataset
from whisper_peft.evaluation.generation import generate

# The script of a user who has not installed whisper_peft.
STRANGER = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "whisper_peft":
            raise ImportError("whisper_peft is not installed here")

sys.meta_path.insert(0, Blocker())
import numpy as np, soundfile, torch
from transformers import AutoModelForSpeechSeq2Seq, WhisperForConditionalGeneration, WhisperProcessor

job = json.loads(sys.argv[1])
found = {}
for name, folder in job["models"].items():
    if name == "adapter":
        from peft import AutoPeftModel, PeftModel
        config = json.load(open(f"{folder}/adapter_config.json"))
        base = WhisperForConditionalGeneration.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32)
        models = {"PeftModel": PeftModel.from_pretrained(base, folder).get_base_model(),
                  "AutoPeftModel": AutoPeftModel.from_pretrained(folder, dtype=torch.float32).get_base_model()}
    else:
        models = {"WhisperForConditionalGeneration": WhisperForConditionalGeneration.from_pretrained(folder),
                  "AutoModel": AutoModelForSpeechSeq2Seq.from_pretrained(folder)}
    processor = WhisperProcessor.from_pretrained(folder)
    for kind, model in models.items():
        ids = []
        for file in job["audio"]:
            wave, rate = soundfile.read(file, dtype="float32")
            features = processor(wave, sampling_rate=rate, return_tensors="pt").input_features
            ids.append(model.eval().generate(
                features.to(model.dtype), language="hi", task="transcribe", max_new_tokens=30,
                force_unique_generate_call=True,  # a random model may say timestamps: no looking for more audio then
            )[0].tolist())
        found[f"{name}/{kind}"] = [ids, processor.batch_decode(ids, skip_special_tokens=True)]
assert "whisper_peft" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def artefacts(lora_run, full_run, tmp_path_factory) -> dict[str, Path]:
    """An adapter, a full model and a merged model, each moved away from the folder that it was made in."""
    folder = tmp_path_factory.mktemp("moved")
    merge(lora_run, folder / "merged", dtype="float32")
    shutil.copytree(lora_run / "adapter", folder / "adapter")
    shutil.copytree(full_run / "model", folder / "full")
    return {name: folder / name for name in ("adapter", "full", "merged")}


def test_plain_peft_and_transformers_give_the_same_transcripts(artefacts, speech):
    files = [row.audio for row in load_source(str(speech / "test"))][:3]
    # The extractor and our collator both pad a clip with silence, so their features are the same.
    job = {"models": {name: str(folder) for name, folder in artefacts.items()}, "audio": files}
    answer = subprocess.run(
        [sys.executable, "-c", STRANGER, json.dumps(job)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd="/",
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    transcripts = json.loads(answer.stdout.splitlines()[-1])
    assert set(transcripts) == {
        "adapter/PeftModel",
        "adapter/AutoPeftModel",
        "full/WhisperForConditionalGeneration",
        "full/AutoModel",
        "merged/WhisperForConditionalGeneration",
        "merged/AutoModel",
    }
    for name, folder in artefacts.items():
        ours = transcript_ids(folder, files)
        for kind, (ids, _) in transcripts.items():
            if kind.startswith(name):
                assert [plain(tokens) for tokens in ids] == [plain(tokens) for tokens in ours], kind
    assert transcripts["merged/AutoModel"] == transcripts["adapter/PeftModel"]
    assert transcripts["full/AutoModel"] != transcripts["merged/AutoModel"]


def transcript_ids(folder: Path, files: list[str]) -> list[list[int]]:
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    from whisper_peft import Row
    from whisper_peft.model.build import whisper_of

    model, preparation, _ = load_model(folder)
    dataset = SpeechDataset([Row(file, "", "hi", no_speech=True) for file in files], preparation)
    ids = []
    for number in range(len(files)):
        features = SpeechCollator(preparation)([dataset[number]])["input_features"]
        with torch.no_grad():
            whisper = whisper_of(model)
            encoded = BaseModelOutput(last_hidden_state=whisper.get_encoder()(features).last_hidden_state)
            options = {"language": "hi", "task": "transcribe", "max_new_tokens": 30}
            ids += generate(whisper, preparation, encoded, **options)
    return ids


def plain(ids: list[int]) -> list[int]:
    """Drop prefix, end and time tokens, which some versions of transformers' generate keep and others drop."""
    return [number for number in ids if number < 386]


def test_each_model_folder_holds_all_that_loading_needs(artefacts):
    for name, folder in artefacts.items():
        files = {path.name for path in folder.iterdir()}
        # transformers 5 reads processor_config.json, transformers 4 preprocessor_config.json.
        assert {"preprocessor_config.json", "tokenizer.json", "generation_config.json"} <= files
        # transformers 4 does not know processor_config.json.
        assert "processor_config.json" in files or transformers.__version__ < "5"
        assert ("adapter_model.safetensors" if name == "adapter" else "model.safetensors") in files
        generation = runs.read_json(folder / "generation_config.json")
        assert generation["language"] == "hi" and generation["task"] == "transcribe"
        assert generation["is_multilingual"] is True and generation["lang_to_id"] and generation["task_to_id"]
        assert generation["suppress_tokens"] and generation["alignment_heads"] == [[0, 0]]
        assert generation["no_timestamps_token_id"] and not generation.get("forced_decoder_ids")
        assert not generation.get("_from_model_config")
        for page in folder.glob("*.json"):
            assert "whisper_peft" not in page.read_text(encoding="utf-8"), page


def test_each_model_folder_holds_the_files_that_converters_ask_for(artefacts):
    for name, folder in artefacts.items():
        vocabulary, added = (runs.read_json(folder / file) for file in ("vocab.json", "added_tokens.json"))
        tokenizer = WhisperProcessor.from_pretrained(str(folder)).tokenizer
        assert {**vocabulary, **added} == tokenizer.get_vocab()
        assert list(vocabulary.values()) == list(range(len(vocabulary)))
        merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        assert merges[0].startswith("#version") and all(line.count(" ") == 1 for line in merges[1:])
        # transformers 4 writes each special token with its flags.
        assert "<|endoftext|>" in str(runs.read_json(folder / "special_tokens_map.json")["eos_token"])
        if name == "adapter":
            continue
        config, generation = (runs.read_json(folder / file) for file in ("config.json", "generation_config.json"))
        assert config["max_length"] == config["max_target_positions"] == 64
        assert config["suppress_tokens"] == generation["suppress_tokens"] != []
        assert config["begin_suppress_tokens"] == [220, 386]
        assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]


def test_the_adapter_config_names_the_transformers_class(artefacts):
    config = runs.read_json(artefacts["adapter"] / "adapter_config.json")
    assert config["task_type"] is None
    mapping = config["auto_mapping"]
    assert mapping["base_model_class"] == "WhisperForConditionalGeneration"
    assert mapping["parent_library"].startswith("transformers.models.whisper")
    base = runs.read_json(artefacts["adapter"] / "base.json")
    assert len(base["sha256"]) == 64 and base["path"] == config["base_model_name_or_path"]


def test_no_model_folder_holds_a_pickle(artefacts, lora_run, full_run):
    for folder in (*artefacts.values(), lora_run / "adapter", full_run / "model"):
        for path in folder.rglob("*"):
            assert path.suffix in (".json", ".safetensors", ".txt", ".jinja", ""), path
            content = path.read_bytes()[:4]
            assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")), path


def test_both_processor_layouts_describe_the_same_extractor(artefacts):
    for folder in artefacts.values():
        old = runs.read_json(folder / "preprocessor_config.json")
        assert old["feature_size"] == 80 and old["chunk_length"] == 3 and old["n_fft"] == 400
        if (folder / "processor_config.json").is_file():
            new = runs.read_json(folder / "processor_config.json")
            nested = new.get("feature_extractor", old)
            assert all(nested[key] == old[key] for key in ("feature_size", "chunk_length", "n_fft", "hop_length"))


def test_silence_after_a_clip_does_not_change_its_transcript(artefacts, speech, tmp_path):
    """The collator pads a clip with silence, so silence at the end of the file changes nothing."""
    row = load_source(str(speech / "test"))[0]
    wave, rate = soundfile.read(row.audio, dtype="float32")
    padded = tmp_path / "padded.wav"
    soundfile.write(padded, np.append(wave, np.zeros(rate, np.float32)), rate)
    clip_ids, padded_ids = transcript_ids(artefacts["full"], [row.audio, str(padded)])
    assert clip_ids == padded_ids
