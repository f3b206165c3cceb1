"""From a name to a model: where MODEL leads, the processor, the base, the adapter. The only fork on mode."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_peft import runs
from whisper_peft.data.features import Preparation
from whisper_peft.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, WhisperForConditionalGeneration, WhisperProcessor

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("fc1", "fc2")
TARGET_WORDS = ("attention", "mlp", "encoder", "decoder")
HUB_PREFIX = "hf:"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
BASE_FACTS = "base.json"  # beside an adapter of ours: which weights it was trained on


@dataclass(frozen=True)
class Located:
    """What a MODEL argument leads to: a base, an adapter on one, or either one from a run."""

    name: str  # as the user wrote it
    base: str  # folder or Hub id of the full weights
    adapter: Path | None = None
    run: Path | None = None
    from_hub: bool = False
    commit: str | None = None  # of a Hub base that an adapter of ours was trained on


def locate(name: str | Path) -> Located:
    """Finds what MODEL means: a local model, a run, an adapter folder, or a Hub id; an existing path wins.

    Raises:
        UserError: a folder that holds none of these, or an adapter whose base has gone.
    """
    text = str(name)
    path = Path(text).expanduser()
    if text.startswith(HUB_PREFIX):
        name = text.removeprefix(HUB_PREFIX)
        if Path(name).exists():  # transformers would take the folder
            raise UserError(f"{text}: a local {name} is in the way of the Hub's; run this from another folder.")
        return Located(text, name, from_hub=True)
    if path.is_dir():
        if runs.is_run(path):
            return _locate_run(text, path.resolve())
        if (path / "adapter_config.json").is_file():
            return _locate_adapter(text, path.resolve(), run=None)
        if (path / "config.json").is_file():
            return Located(text, str(path.resolve()))
        raise UserError(f"{path}: holds no model (config.json), adapter (adapter_config.json) or run (run.json).")
    if path.exists():
        raise UserError(f"{path}: a file; MODEL is a folder with a model, an adapter or a run, or a Hub id.")
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise UserError(f"{text}: no such folder, and not a Hub id (owner/name) either.")
    return Located(text, text, from_hub=True)


def _locate_run(name: str, run: Path) -> Located:
    if (run / runs.ADAPTER).is_dir():
        return _locate_adapter(name, run / runs.ADAPTER, run)
    if (run / runs.MODEL).is_dir():
        return Located(name, str(run / runs.MODEL), run=run)
    raise UserError(f"{run}: not finished yet, no model in it; whisper-peft train --resume {run} goes on.")


def _locate_adapter(name: str, adapter: Path, run: Path | None) -> Located:
    base = runs.read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise UserError(f"{adapter}/adapter_config.json: names no base model (base_model_name_or_path).")
    return Located(name, base, adapter, run, from_hub=not Path(base).is_dir(), commit=known_commit(adapter, base))


@contextlib.contextmanager
def without_bars():
    """No bar for what takes a second: stderr is for what the user should read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(load, source: str, what: str, **options: object):
    """Calls a from_pretrained, and turns what a user can cause into one clear line."""
    from safetensors import SafetensorError

    try:
        with without_bars():
            return load(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        first = " ".join(str(error).split())
        if Path(source).is_dir():
            raise UserError(f"{source}: {what} cannot be loaded ({first[:300]}).") from None
        raise UserError(
            f"{source}: {what} is neither a local folder nor reachable on the Hub ({first[:200]}). Check the name, "
            "the network and, for a gated model, 'hf auth login'."
        ) from None


def load_config(source: str, *, revision: str | None = None):
    """The WhisperConfig of a base.

    Args:
        source: local folder or Hub id.
        revision: commit on the Hub; None is the newest.

    Raises:
        UserError: not found, or not a Whisper.
    """
    from transformers import AutoConfig

    config = _load(AutoConfig.from_pretrained, source, "the model's config", revision=revision or "main")
    if config.model_type != "whisper":
        raise UserError(f"{source}: a {config.model_type} model; this tool trains Whisper only.")
    return config


def load_processor(source: str, *, revision: str | None = None) -> WhisperProcessor:
    """The processor (feature extractor and tokenizer) that lies beside a model."""
    from transformers import WhisperProcessor

    load, commit = WhisperProcessor.from_pretrained, revision or "main"
    try:
        return _load(load, source, "the processor", revision=commit)
    except AttributeError:  # transformers 4 cannot read the list that 5 writes; the tokens are in tokenizer.json anyway
        return _load(load, source, "the processor", revision=commit, extra_special_tokens={})


def load_preparation(source: str, *, revision: str | None = None) -> Preparation:
    """Processor and limits of a checkpoint as the data path needs them; reads no weights."""
    config, processor = load_config(source, revision=revision), load_processor(source, revision=revision)
    multilingual = getattr(load_generation_config(source, revision=revision), "is_multilingual", None)
    if multilingual is None:  # checkpoints without a generation config: openai's own rule
        multilingual = config.vocab_size >= 51865
    return Preparation(processor, config, multilingual=bool(multilingual))


def load_generation_config(source: str | Path, *, revision: str | None = None) -> GenerationConfig | None:
    """The generation config of a checkpoint with all of Whisper's fields; None where there is none.

    transformers drops `lang_to_id` and the like from a file that is marked as derived from the model's config.
    """
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(source), revision=revision or "main", _from_model_config=False)
    except OSError:
        return None


def load_base(
    source: str, *, dtype: torch.dtype | str | None = None, revision: str | None = None
) -> WhisperForConditionalGeneration:
    """The full weights, from safetensors only, with an encoder that takes shorter windows, too.

    Args:
        source: local folder or Hub id.
        dtype: of the weights; "auto" keeps the checkpoint's own; None is float32.
        revision: commit on the Hub; None is the newest.

    Raises:
        UserError: not found, not a Whisper, or weights that come as pickle only.
    """
    import torch
    from transformers import WhisperForConditionalGeneration

    from whisper_peft.model.windows import window_encoder

    load_config(source, revision=revision)
    folder = Path(source)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        pickles = [file.name for file in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.h5"))]
        found = f"only {pickles[0]}, and pickled weights can run code" if pickles else "no weights"
        raise UserError(
            f"{source}: {found}; needs model.safetensors. Convert on a machine where you trust the file: load it with "
            "transformers and save_pretrained(OUT)."
        )
    model = _load(
        WhisperForConditionalGeneration.from_pretrained, source, "the weights (safetensors)",
        dtype=torch.float32 if dtype is None else dtype, use_safetensors=True,
        revision=revision or "main",
    )  # fmt: skip
    model.generation_config = load_generation_config(source, revision=revision) or model.generation_config
    repair_generation_config(model)
    window_encoder(model)
    return model


def whisper_of(model) -> WhisperForConditionalGeneration:
    """The Whisper inside: peft's layers sit in its modules, so it speaks with the adapter's voice."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def condense_silence(model, window: str) -> None:
    """Sets what stands behind a window shorter than 30 s: see `windows.condense`.

    Args:
        model: a Whisper as `load_base` gives it, or an adapter on one.
        window: "condensed": positions that speak for the silence; "tight" or "full": nothing.
    """
    from whisper_peft.model.windows import condense

    condense(whisper_of(model), window == "condensed")


def repair_generation_config(model: WhisperForConditionalGeneration) -> None:
    """Keeps Whisper's generation fields across save and load.

    A config marked as derived from the model is rebuilt on reload and loses `lang_to_id` and the like, and
    `forced_decoder_ids` left in it make saving fail (transformers 5).
    """
    config = model.generation_config
    config._from_model_config = False
    if getattr(config, "forced_decoder_ids", None) is not None:
        config.forced_decoder_ids = None
    if getattr(model.config, "forced_decoder_ids", None) is not None:
        model.config.forced_decoder_ids = None


def target_pattern(targets: str) -> str:
    """Plain words to the regular expression of peft's `target_modules`.

    Args:
        targets: words joined by +: attention, mlp (which layers), encoder, decoder (which half); without a word of
            one kind, all of that kind.

    Raises:
        UserError: an unknown word.
    """
    words = [word.strip() for word in targets.split("+")]
    unknown = [word for word in words if word not in TARGET_WORDS]
    if unknown:
        raise UserError(f"lora.targets: unknown word '{unknown[0]}'; join with +: {', '.join(TARGET_WORDS)}.")
    layers = (ATTENTION if "attention" in words else ()) + (MLP if "mlp" in words else ())
    halves = [word for word in words if word in ("encoder", "decoder")]
    return rf".*({'|'.join(halves or ('encoder', 'decoder'))})\.layers\..*\.({'|'.join(layers or ATTENTION + MLP)})"


def add_adapter(
    model: PreTrainedModel,
    *,
    rank: int = 32,
    alpha: int | None = None,
    dropout: float = 0.05,
    targets: str = "attention+mlp",
    rslora: bool = False,
    dora: bool = False,
    modules_to_save: Sequence[str] = (),
) -> PeftModel:
    """Puts a fresh LoRA adapter on a base; the base's weights are frozen.

    Args:
        model: the base.
        rank: of the two factors.
        alpha: the update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank)); None: twice the rank.
        dropout: on the adapter's input.
        targets: see `target_pattern`.
        rslora: rank-stabilised scaling (Kalajdzievski 2023).
        dora: weight-decomposed adapters (Liu et al. 2024).
        modules_to_save: further modules trained in full and stored with the adapter.
    """
    from peft import LoraConfig, get_peft_model

    # No task_type: SEQ_2_SEQ_LM would pass input_ids, which Whisper does not know, here and to whoever loads it.
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout,
        target_modules=target_pattern(targets), use_rslora=rslora, use_dora=dora,
        modules_to_save=list(modules_to_save) or None,
    )  # fmt: skip
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in modules_to_save:
        if name.rpartition(".")[2] not in names:
            raise UserError(
                f"lora.modules_to_save: the model has no module '{name}' (for example layer_norm, proj_out)."
            )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora: {' '.join(str(error).split())[:300]}") from None


def load_adapter(model: PreTrainedModel, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """Puts a saved adapter on its base."""
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter}: no adapter_model.safetensors; adapters are read from safetensors only.")
    return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable, use_safetensors=True)


def build_model(
    located: Located,
    mode: str,
    *,
    lora: dict | None = None,
    freeze: str | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> WhisperForConditionalGeneration | PeftModel:
    """The model that is trained; the one place where full and LoRA part.

    Args:
        located: see `locate`; an adapter is gone on with in LoRA mode.
        mode: full or lora.
        lora: arguments of `add_adapter`.
        freeze: "encoder", or None.
        autocast_dtype: what the model will be run in. An adapter's base is then held in it: autocast would make the
            same of it in every forward, and at twice the memory.

    Raises:
        UserError: full fine-tuning of an adapter.
    """
    model = load_base(located.base, revision=located.commit)
    if mode == "full":
        if located.adapter:
            raise UserError(
                f"{located.name}: an adapter; full fine-tuning needs stand-alone weights: "
                f"whisper-peft merge {located.name} OUT, then train --model OUT."
            )
        # Sinusoids, fixed in Whisper; transformers 5 loads them as trainable.
        model.get_encoder().embed_positions.requires_grad_(False)
        if freeze == "encoder":
            model.get_encoder().requires_grad_(False)
        return model
    model = load_adapter(model, located.adapter, trainable=True) if located.adapter else add_adapter(
        model, **(lora or {})
    )  # fmt: skip
    if freeze == "encoder":
        model.get_base_model().get_encoder().requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("train.freeze: leaves nothing to train with these lora.targets.")
    if autocast_dtype is not None:
        hold_frozen(model, autocast_dtype)
    return model


def hold_frozen(model, dtype: torch.dtype) -> None:
    """Casts the linear and convolution layers that are not trained; what autocast keeps in float32 stays so."""
    from torch.nn import Conv1d, Linear

    for module in model.modules():
        if type(module) in (Conv1d, Linear) and not any(p.requires_grad for p in module.parameters()):
            module.to(dtype)


def load_model(name: str | Path, *, dtype: torch.dtype | str | None = None, base: str | None = None):
    """Any MODEL ready to transcribe: (model in eval mode, preparation, located).

    Raises:
        UserError: see `locate` and `load_base`; or the base is not the one the adapter was trained on.
    """
    located = locate(name)
    if located.adapter:
        located = with_base(located, base)
        model = load_adapter(load_base(located.base, dtype=dtype, revision=located.commit), located.adapter)
        if (located.adapter / "generation_config.json").is_file():  # the language it was trained for
            model.get_base_model().generation_config = load_generation_config(located.adapter)
    else:
        model = load_base(located.base, dtype=dtype)
    preparation = load_preparation(located.base, revision=located.commit)
    return model.eval(), preparation, located


def with_base(located: Located, base: str | Path | None = None) -> Located:
    """An adapter with the base it was trained on, which is looked for at `base` if it has moved.

    Raises:
        UserError: no such base, an adapter instead of one, or other weights.
    """
    if base is not None:
        other = locate(base)
        if other.adapter:
            raise UserError(f"--base {base}: an adapter; the base is a stand-alone model.")
        commit = known_commit(located.adapter, other.base)
        located = dataclasses.replace(located, base=other.base, from_hub=other.from_hub, commit=commit)
    elif not Path(located.base).is_dir() and Path(located.base).is_absolute():
        raise UserError(
            f"{located.base}: the adapter's base has moved; evaluate, transcribe and merge find it with --base MODEL."
        )
    facts = located.adapter / BASE_FACTS
    if not facts.is_file():
        return located  # an adapter of somebody else's: nothing is known about its base
    known, found = runs.read_json(facts), base_identity(located.base, revision=located.commit)
    word = "sha256" if "sha256" in known else "hub_id"
    if word in known and known[word] != found.get(word):
        raise UserError(
            f"{located.base}: not the weights this adapter was trained on (another "
            f"{'SHA-256' if word == 'sha256' else 'Hub id'}); name the right base with --base MODEL."
        )
    return located


def base_identity(source: str, *, revision: str | None = None) -> dict:
    """Which weights these are: a path, or a Hub id and commit, and the SHA-256 of the safetensors.

    A Hub base is downloaded for it, if it has not been yet.
    """
    folder = Path(source)
    if folder.is_dir():
        return {"path": str(folder.resolve()), "sha256": weights_sha256(folder)}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def download(name: str) -> Path:
        return Path(_load(hf_hub_download, source, "the weights (safetensors)", filename=name, revision=revision))

    folder = Path(_load(hf_hub_download, source, "the model", filename="config.json", revision=revision)).parent
    commit = folder.name  # the Hub's cache has a folder for each commit
    try:
        folder = Path(hf_hub_download(source, WEIGHTS, revision=revision)).parent
    except (EntryNotFoundError, OSError):
        index = download(WEIGHTS_INDEX)
        for shard in _shards(index):
            download(shard)
        folder = index.parent
    return {"hub_id": source, "commit": commit, "sha256": weights_sha256(folder)}


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the safetensors that transformers loads from a folder, in the order of their names."""
    index = folder / WEIGHTS_INDEX
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else _shards(index) if index.is_file() else []
    digest = hashlib.sha256()
    for name in names or sorted(file.name for file in folder.glob("*.safetensors")):
        with (folder / name).open("rb") as handle:
            while chunk := handle.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _shards(index: Path) -> list[str]:
    return sorted(set(runs.read_json(index)["weight_map"].values()))


def known_commit(adapter: Path, source: str) -> str | None:
    """The commit of a Hub base that an adapter of ours was trained on."""
    facts = adapter / BASE_FACTS
    known = runs.read_json(facts) if facts.is_file() else {}
    return known.get("commit") if known.get("hub_id") == source else None
