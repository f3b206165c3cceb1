"""Model folders with the vocabularies of OpenAI's checkpoints hold what converters of other projects read from them."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest
from openai_vocabulary import byte_symbols, openai_tokenizer, save_checkpoint

from whisper_peft.delivery import merging
from whisper_peft.model.configs import load_processor
from whisper_peft.model.loading import load_base
from whisper_peft.training.converter_files import complete_config, write_tokenizer_tables

TABLES = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
TEXTS = (
    "<|startoftranscript|><|hi|><|transcribe|><|0.00|> नमस्ते दुनिया<|1.00|><|endoftext|>",
    "Two  spaces, it's <|notimestamps|> here",
    "\ttab and\nnewline <|29.98|>",
)
KINDS = ["base", pytest.param("base.en", marks=pytest.mark.slow), pytest.param("large-v3", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory) -> tuple[str, Path]:
    """The kind of a checkpoint, and its folder as `merge` writes it."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = str(save_checkpoint(request.param, folder / "checkpoint"))
    (folder / "merged").mkdir()
    merging.write(load_base(checkpoint, dtype="auto"), load_processor(checkpoint), folder / "merged")
    return request.param, folder / "merged"


def test_whisper_cpp_reads_the_tokens_and_sizes(written):
    """Its script convert-h5-to-ggml.py opens these files, with these keys, and writes each token as bytes."""
    kind, folder = written
    vocabulary, added, config = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("vocab.json", "added_tokens.json", "config.json")
    )
    bytes_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    encoding = openai_tokenizer(kind).encoding
    for place, (token, number) in enumerate(sorted(vocabulary.items(), key=lambda item: item[1])):
        # The runtime takes the place in the list for the number of the token.
        assert number == place
        assert bytes(bytes_of[symbol] for symbol in token) == encoding.decode_single_token_bytes(number)
    assert sorted(added.values()) == list(range(len(vocabulary), config["vocab_size"]))
    sizes = {
        "max_source_positions": 1500,
        "max_length": 448,
        "num_mel_bins": 128 if kind == "large-v3" else 80,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
    }
    assert {name: config[name] for name in sizes} == sizes
    for name in ("vocab_size", "d_model", "decoder_layers", "decoder_attention_heads"):
        assert isinstance(config[name], int)


def test_rust_programs_read_lists_and_not_null(written):
    """The struct in candle has a list of numbers under this name, and serde refuses null."""
    config = json.loads((written[1] / "config.json").read_text(encoding="utf-8"))
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        assert isinstance(config[name], list)


def test_the_files_change_nothing_in_transformers(written, tmp_path):
    from transformers import AutoConfig, AutoTokenizer, WhisperForConditionalGeneration

    folder = written[1]
    bare = shutil.copytree(folder, tmp_path / "bare")
    for name in TABLES:
        (bare / name).unlink()
    config = json.loads((bare / "config.json").read_text(encoding="utf-8"))
    del config["max_length"]
    (bare / "config.json").write_text(json.dumps({**config, "suppress_tokens": None}), encoding="utf-8")

    said = _Said()
    logging.getLogger("transformers").addHandler(said)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with_files, without_files = (AutoTokenizer.from_pretrained(str(path)) for path in (folder, bare))
            model, bare_model = (WhisperForConditionalGeneration.from_pretrained(str(path)) for path in (folder, bare))
            AutoConfig.from_pretrained(str(folder))
    finally:
        logging.getLogger("transformers").removeHandler(said)
    assert said.lines == []
    assert with_files.get_vocab() == without_files.get_vocab()
    assert with_files.all_special_ids == without_files.all_special_ids
    for text in TEXTS:
        ids = with_files(text).input_ids
        assert ids == without_files(text).input_ids
        for skip in (False, True):
            assert with_files.decode(ids, skip_special_tokens=skip) == without_files.decode(
                ids, skip_special_tokens=skip
            )
    assert model.generation_config.to_dict() == bare_model.generation_config.to_dict()


class _Said(logging.Handler):
    """Collects the lines of a logger."""

    def __init__(self):
        super().__init__(level=logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_a_normalizer_goes_on_and_files_that_are_there_stay(written, tmp_path):
    folder = shutil.copytree(written[1], tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "normalizer.json").write_text('{"colour": "color"}', encoding="utf-8")
    tokenizer = load_processor(str(folder)).tokenizer
    (folder / "normalizer.json").unlink()
    (folder / "vocab.json").write_text("mine", encoding="utf-8")
    write_tokenizer_tables(tokenizer, folder)
    assert json.loads((folder / "normalizer.json").read_text(encoding="utf-8")) == {"colour": "color"}
    assert (folder / "vocab.json").read_text(encoding="utf-8") == "mine"


def test_the_config_takes_its_lists_from_the_generation_config(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"max_target_positions": 64, "suppress_tokens": None, "begin_suppress_tokens": [7]}),
        encoding="utf-8",
    )
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"suppress_tokens": [1, 2], "begin_suppress_tokens": [8]}), encoding="utf-8"
    )
    complete_config(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {
        "max_length": 64,
        "max_target_positions": 64,
        "suppress_tokens": [1, 2],
        "begin_suppress_tokens": [7],
    }
