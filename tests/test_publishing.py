"""publish and train --push work with the real huggingface_hub client and a small Hub on this machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_wave, tiny_recipe
from hub_server import READER, TOKEN, Hub

from whisper_peft import UserError, load_source, merge, publish, runs
from whisper_peft.delivery.card import CardWords, Subject, is_untouched, write_card
from whisper_peft.delivery.provenance import provenance
from whisper_peft.delivery.pushing import Push
from whisper_peft.evaluation.metrics import bootstrap_interval
from whisper_peft.recipe_files import load_recipe, save_recipe

BASE = "openai/whisper-tiny-test"
BLOCKER = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "whisper_peft":
            raise ImportError("whisper_peft is not installed here")
sys.meta_path.insert(0, Blocker())
"""
# This is the code that strangers write. The first logits of the adapter and of the merged model must be the same.
STRANGER = """
import json, soundfile, torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
base_name, adapter, merged, sound, language = sys.argv[1:]
from peft import PeftModel
base = WhisperForConditionalGeneration.from_pretrained(base_name, dtype=torch.float32)
models = [PeftModel.from_pretrained(base, adapter).get_base_model(),
          WhisperForConditionalGeneration.from_pretrained(merged, dtype=torch.float32)]
wave, rate = soundfile.read(sound, dtype="float32")
found = []
for model, name in zip(models, (adapter, merged)):
    processor = WhisperProcessor.from_pretrained(name)
    features = processor(wave, sampling_rate=rate, return_tensors="pt").input_features
    with torch.no_grad():
        start = torch.tensor([[model.config.decoder_start_token_id]])
        found.append(model.eval()(input_features=features, decoder_input_ids=start).logits[0, 0].tolist())
print(json.dumps(found))
"""


@pytest.fixture
def hub(tiny_model):
    running = Hub()
    running.add_folder(BASE, tiny_model)
    yield running
    running.close()
    assert running.unknown == running.refused_uploads == []


@pytest.fixture
def ask(hub, tmp_path):
    """Return a function that runs Python or the command line with this Hub: (arguments) -> CompletedProcess."""

    def run(*arguments: object, token: str | None = TOKEN, cwd: Path = tmp_path, **env: str):
        environment = {**hub.environment(tmp_path / "hf", token), **env}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
            cwd=cwd,
        )
        assert TOKEN not in done.stdout + done.stderr
        # The token is not written to any file either.
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
        return done

    return run


@pytest.fixture(scope="module")
def merged(lora_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "merged"
    merge(lora_run, folder, dtype="float32")
    return folder


def command(*arguments: object) -> tuple:
    return ("-m", "whisper_peft", *arguments)


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def rates(card: str) -> dict[str, float]:
    """Return the metrics of the model-index by name."""
    (model,) = metadata(card)["model-index"]
    return {metric["name"]: metric["value"] for metric in model["results"][0]["metrics"]}


def test_a_published_run_and_its_merge_load_with_plain_peft_and_transformers(hub, ask, lora_run, merged, speech):
    done = ask(*command("publish", lora_run, "me/adapter", "--base", BASE, "--license", "mit", "--json"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["url"] == f"{hub.endpoint}/me/adapter" and report["kind"] == "adapter"
    done = ask(*command("publish", merged, "me/merged", "--private", "--base", BASE))
    assert done.returncode == 0, done.stderr
    assert f"Published {hub.endpoint}/me/merged" in done.stdout and hub.repos["me/merged"].private
    adapter, whole = hub.repos["me/adapter"].head.files, hub.repos["me/merged"].head.files
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == BASE
    for files, weights in ((adapter, "adapter_model.safetensors"), (whole, "model.safetensors")):
        assert {
            weights,
            "README.md",
            "run/recipe.yaml",
            "run/run.json",
            "tokenizer.json",
            "vocab.json",
            "merges.txt",
            "added_tokens.json",
            "special_tokens_map.json",
            "generation_config.json",
            "preprocessor_config.json",
        } <= files.keys()
        assert not [
            name for name in files if name.endswith((".bin", ".pt", ".pth", ".jsonl")) and "metrics" not in name
        ]
    assert "run/metrics.jsonl" in adapter and "optimizer.pt" not in adapter

    sound = load_source(str(speech / "test"))[0].audio
    done = ask("-c", BLOCKER + STRANGER, BASE, "me/adapter", "me/merged", sound, "hi", cwd=Path("/"), PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]
    by_adapter, by_merged = json.loads(done.stdout.splitlines()[-1])
    assert max(abs(a - b) for a, b in zip(by_adapter, by_merged, strict=True)) < 1e-3
    assert max(by_adapter) > min(by_adapter)


# Slow, because it starts several processes one after the other.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_code_on_the_card_runs(kind, hub, ask, lora_run, merged, tmp_path):
    import soundfile

    model = {"adapter": lora_run, "merged": merged}[kind]
    assert ask(*command("publish", model, "me/it", "--base", BASE)).returncode == 0
    soundfile.write(tmp_path / "recording.wav", make_wave(1.0), 16000)
    (code,) = re.findall(r"```python\n(.*?)```", hub.repos["me/it"].head.files["README.md"].decode(), re.DOTALL)
    assert "me/it" in code
    done = ask("-c", BLOCKER + code, cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_card_has_the_scores_and_facts_of_its_run(lora_run, full_run, merged):
    for model, base, kind, relation in (
        (lora_run, BASE, "adapter", "adapter"),
        (lora_run / "adapter", BASE, "adapter", "adapter"),
        (full_run, BASE, "model", "finetune"),
        (merged, BASE, "model", "finetune"),
    ):
        run = full_run if model == full_run else lora_run
        facts, recipe = runs.read_json(run / "run.json"), load_recipe(run / "recipe.yaml")
        report = publish(model, "me/it", base=base, dry_run=True)
        page, final = metadata(report.card), facts["final"]
        assert report.kind == kind and page["base_model"] == BASE and page["base_model_relation"] == relation
        assert page["language"] == "hi" and page["pipeline_tag"] == "automatic-speech-recognition"
        assert page["library_name"] == ("peft" if kind == "adapter" else "transformers")
        expected = {
            "WER in %, as written": final["wer"],
            "CER in %, as written": final["cer"],
            f"WER in %, normalised ({final['normalizer']})": final["wer_normalized"],
            f"CER in %, normalised ({final['normalizer']})": final["cer_normalized"],
        }
        assert rates(report.card) == {name: round(100 * rate, 2) for name, rate in expected.items()}
        scored = runs.read_jsonl(run / "transcripts.jsonl")
        texts = ([record[key] for record in scored] for key in ("reference", "prediction"))
        low, high = bootstrap_interval(*texts, metric="wer")
        assert f"| WER, as written | {final['wer']:.1%} | {low:.1%} to {high:.1%} |" in report.card
        assert facts["device"] in report.card and f"{facts['train_hours']:g} hours" in report.card
        (shown,) = re.findall(r"```yaml\n(.*?)```", report.card, re.DOTALL)
        assert yaml.safe_load(shown)["train"]["steps"] == recipe.train.steps
        assert "license" not in page and "No licence is named" in report.card


def test_odd_names_stay_text_in_the_card(lora_run):
    """The name of a source, a device or a data set breaks neither the Markdown nor the YAML of the card."""
    odd = "a|b\n# c\n---\n| <img src=x> `d` [e](f) \\ {{ title }} {% raw %}"
    known = provenance(lora_run)
    plain = Subject("adapter", "me/it", BASE, known)
    known = {
        **known,
        "facts": {**known["facts"], "device": odd},
        "recipe": {**known["recipe"], "data": {**known["recipe"]["data"], "train": [odd], "test": odd}},
    }
    card = write_card(Subject("adapter", "me/it", BASE, known), CardWords(model_name=odd, finetuned_from=odd))
    assert is_untouched(card)
    page = yaml.safe_load(card.partition("\n---\n")[0])
    (model,) = page["model-index"]
    assert model["name"] == odd and page["base_model"] == odd and model["results"][0]["dataset"]["name"] == odd
    (shown,) = re.findall(r"```yaml\n(.*?)\n```", card, re.DOTALL)
    assert yaml.safe_load(shown)["data"]["test"] == odd
    ours, theirs = (
        write.partition("\n---\n\n")[2].partition("```yaml")[0].splitlines()
        for write in (
            write_card(plain, CardWords()),
            card,
        )
    )
    cells, headings = (lambda line: len(re.findall(r"(?<!\\)\|", line))), (lambda line: line.startswith("#"))
    assert list(map(cells, theirs)) == list(map(cells, ours))
    assert list(map(headings, theirs)) == list(map(headings, ours))
    assert not re.search(r"(?<!\\)<img", "\n".join(theirs))


def test_the_card_calls_scores_on_the_selection_split_optimistic(lora_run, tmp_path):
    run = shutil.copytree(lora_run, tmp_path / "run")
    facts = runs.read_json(run / "run.json")
    runs.update_facts(run, final={**facts["final"], "split": "eval"})
    assert "Optimistic" in publish(run, "me/it", base=BASE, dry_run=True).card
    assert "Optimistic" not in publish(lora_run, "me/it", base=BASE, dry_run=True).card


def test_the_card_takes_the_arguments_that_the_notebook_passes(lora_run):
    report = publish(
        lora_run,
        "me/it",
        base=BASE,
        dry_run=True,
        dataset_tags=["mozilla-foundation/common_voice_11_0"],
        dataset="Common Voice 11.0",
        dataset_args="config: hi, split: test",
        language="mr",
        model_name="Whisper Hi",
        finetuned_from="openai/whisper-small",
        tasks="automatic-speech-recognition",
        tags=["mine"],
        license="mit",
    )
    page = metadata(report.card)
    assert page["datasets"] == ["mozilla-foundation/common_voice_11_0"] and page["language"] == "mr"
    assert page["base_model"] == "openai/whisper-small" and page["license"] == "mit" and "mine" in page["tags"]
    (model,) = page["model-index"]
    data = model["results"][0]["dataset"]
    assert model["name"] == "Whisper Hi" and data["name"] == "Common Voice 11.0"
    assert data["args"] == "config: hi, split: test" and "# Whisper Hi" in report.card


# Slow, because it starts several processes one after the other.
@pytest.mark.slow
def test_no_published_file_has_a_path_of_this_machine(hub, ask, lora_run, merged, speech, tiny_model):
    for number, model in enumerate((lora_run, merged)):
        assert ask(*command("publish", model, f"me/it{number}", "--base", BASE)).returncode == 0
        for name, content in hub.repos[f"me/it{number}"].head.files.items():
            for path in (lora_run, speech, tiny_model, Path.home(), ROOT, Path(sys.prefix)):
                assert str(path).encode() not in content, (name, path)


def test_a_dry_run_needs_no_network_and_no_login(hub, ask, lora_run):
    hub.status = 500
    done = ask(*command("publish", lora_run, "me/it", "--base", BASE, "--dry-run"), token=None, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in done.stdout and "model-index" in done.stdout
    size = (lora_run / "adapter" / "adapter_model.safetensors").stat().st_size
    assert f"{size:,}  adapter_model.safetensors" in done.stdout
    assert list(hub.repos) == [BASE]


# Slow, because it starts several processes one after the other.
@pytest.mark.slow
def test_publishing_keeps_the_files_of_the_repository_and_refuses_the_other_kind(hub, ask, lora_run, merged):
    """Pitfall 30: a repository that holds an adapter is never overwritten by a model, nor a model by an adapter."""
    assert ask(*command("publish", lora_run, "me/it", "--base", BASE)).returncode == 0
    assert is_untouched(hub.repos["me/it"].head.files["README.md"].decode())
    hub.repos["me/it"].head.files["notes.txt"] = b"mine"
    assert ask(*command("publish", lora_run, "me/it", "--base", BASE, "--license", "mit")).returncode == 0
    assert hub.repos["me/it"].head.files["notes.txt"] == b"mine" and len(hub.repos["me/it"].commits) == 2
    # A card that nobody edited is written again.
    assert b"license: mit" in hub.repos["me/it"].head.files["README.md"]
    hub.repos["me/it"].head.files["README.md"] += b"\nMy own words.\n"
    edited = hub.repos["me/it"].head.files["README.md"]
    done = ask(*command("publish", lora_run, "me/it", "--base", BASE, "--json"))
    assert done.returncode == 0 and json.loads(done.stdout)["card_kept"]
    assert hub.repos["me/it"].head.files["README.md"] == edited

    before = dict(hub.repos["me/it"].head.files)
    done = ask(*command("publish", merged, "me/it", "--base", BASE))
    assert done.returncode == 1 and "name another REPO" in one_line(done)
    assert hub.repos["me/it"].head.files == before
    assert ask(*command("publish", merged, "me/other", "--base", BASE)).returncode == 0
    done = ask(*command("publish", lora_run, "me/other", "--base", BASE))
    assert done.returncode == 1 and "holds a stand-alone model" in one_line(done)


def one_line(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("Note:", "Warning:", "Uploading"))]
    assert len(lines) == 1 and lines[0].startswith("Error: "), done.stderr
    return lines[0]


# Slow, because it starts several processes one after the other.
@pytest.mark.slow
def test_each_mistake_in_publishing_gives_one_clear_line(hub, ask, lora_run):
    publishing = command("publish", lora_run, "me/it", "--base", BASE)
    for token, env, words in (
        (None, {}, "no login"),
        ("hf_wrong", {}, "does not accept the login"),
        (READER, {}, "may only read"),
        (TOKEN, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        (TOKEN, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ):
        done = ask(*publishing, token=token, **env)
        assert done.returncode == 1 and words in one_line(done), done.stderr
    done = ask(*command("publish", lora_run, "somebody/it", "--base", BASE))
    assert done.returncode == 1 and "may not write there" in one_line(done)
    done = ask(*command("publish", lora_run, "me/it", "--base", "openai/not-there"))
    assert done.returncode == 1 and "not on the Hub" in one_line(done)
    assert list(hub.repos) == [BASE]


def test_wrong_names_and_unsafe_folders_are_refused(lora_run, merged, tmp_path):
    for name in ("alone", "a/b/c", "me/so--not", "me/ä", "me/" + "x" * 97):
        with pytest.raises(UserError, match="not the name of a repository"):
            publish(lora_run, name, dry_run=True)
    # The base of this run is a folder.
    with pytest.raises(UserError, match=r"--base HUB_ID"):
        publish(lora_run, "me/it", dry_run=True)
    pickled = shutil.copytree(merged, tmp_path / "pickled")
    (pickled / "training_args.bin").write_bytes(b"\x80\x04.")
    (pickled / "secrets.json").write_text("{}")
    files = {file.name for file in publish(pickled, "me/it", dry_run=True).files}
    assert not files & {"training_args.bin", "secrets.json", "merge_report.json", "whisper_peft.json"}
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="only safetensors are published"):
        publish(pickled, "me/it", dry_run=True)


def push(ask, page: Path, output: Path, *more: object, **env: str) -> subprocess.CompletedProcess:
    return ask(*command("train", page, "--output", output, "--push", "me/pushed", *more), **env)


@pytest.fixture
def page(hub, speech, tiny_model, tmp_path) -> Path:
    """Write a recipe with two checkpoints, whose base is on the Hub."""
    path = tmp_path / "tiny.yaml"
    save_recipe(tiny_recipe(f"hf:{BASE}", speech), path)
    return path


def test_a_checkpoint_of_a_whole_model_goes_up_with_the_files_for_converters(full_run, monkeypatch, tmp_path):
    monkeypatch.setattr(Push, "_check_hub", lambda self, located: None)
    run = shutil.copytree(full_run, tmp_path / "run")
    checkpoint = runs.complete_checkpoints(run)[0]
    before = (checkpoint / "config.json").read_bytes()
    staged = Push("me/it", load_recipe(run / runs.RECIPE))._stage(checkpoint)
    config = runs.read_json(staged.folder / "config.json")
    assert config["max_length"] == 64 and config["suppress_tokens"]
    assert {"config.json", "vocab.json", "added_tokens.json"} <= {file.name for file in staged.package.files}
    # The staged files are hard links, and the checkpoint keeps its own.
    assert (checkpoint / "config.json").read_bytes() == before


# Slow, because it starts several processes one after the other.
@pytest.mark.slow
def test_train_pushes_each_checkpoint_and_the_result(hub, ask, page, tmp_path):
    done = push(ask, page, tmp_path / "run", "--json", "--private")
    assert done.returncode == 0, done.stderr
    published = json.loads(done.stdout)["published"]
    assert published["url"] == f"{hub.endpoint}/me/pushed" and hub.repos["me/pushed"].private
    commits = [commit.message for commit in hub.repos["me/pushed"].commits]
    assert len(commits) >= 2 and any(commit.startswith("Step ") for commit in commits)
    # The first commit is a checkpoint, which also loads alone.
    first = hub.repos["me/pushed"].commits[0].files
    assert "**Not finished:**" in first["README.md"].decode() and "model-index" not in first["README.md"].decode()
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "run/recipe.yaml"} <= first.keys()
    assert json.loads(first["generation_config.json"])["language"] == "hi"
    assert not [name for name in first if name.endswith((".pt", ".bin", ".pth"))]
    files = hub.repos["me/pushed"].head.files
    weights = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == weights
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert "Not finished" not in files["README.md"].decode() and metadata(files["README.md"].decode())["model-index"]
    assert not [name for name in files if name.endswith((".pt", ".bin", ".pth"))]
    assert not list((tmp_path / "run").glob(".push-*"))

    done = ask(*command("train", "--resume", tmp_path / "run", "--steps", 6, "--push", "me/pushed"))
    assert done.returncode == 0, done.stderr
    assert len(hub.repos["me/pushed"].commits) > len(commits)
    files = hub.repos["me/pushed"].head.files
    assert json.loads(files["run/run.json"])["steps"] == 6
    weights = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == weights


# Slow, because it starts several processes one after the other.
@pytest.mark.slow
def test_a_run_continues_without_the_hub_and_publish_uploads_it_later(hub, ask, tiny_model, speech, tmp_path):
    page = tmp_path / "local.yaml"
    save_recipe(tiny_recipe(tiny_model, speech), page)
    done = push(ask, page, tmp_path / "run", "--base", BASE, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Training begins") == 1 and done.stderr.count("Not pushed") <= 1
    later = f"whisper-peft publish {tmp_path / 'run'} me/pushed --base {BASE}"
    assert later in done.stderr
    assert "me/pushed" not in hub.repos
    done = ask(*command(*later.split()[1:]))
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in hub.repos["me/pushed"].head.files


def test_a_push_that_cannot_work_is_refused_before_training(hub, ask, page, tmp_path, merged):
    hub.add_folder("me/pushed", merged)
    done = push(ask, page, tmp_path / "run")
    assert done.returncode == 1 and "holds a stand-alone model" in done.stderr
    done = push(ask, page, tmp_path / "run", token="hf_wrong")
    assert done.returncode == 1 and "does not accept the login" in done.stderr
    done = ask(*command("train", page, "--output", tmp_path / "run", "--private"))
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_hindi_run_on_whisper_base_is_published_and_loads(shared, hub, ask, tmp_path):
    """An adapter of Whisper base and its merge are published, and load with plain peft and transformers."""
    model, data = shared / "models" / "whisper-base", shared / "data" / "hindi_tts"
    base = "openai/whisper-base"
    hub.add_folder(base, model)
    # The whole sets would take minutes.
    for name, split, clips in (("train", "train", 8), ("eval", "validation", 2)):
        rows = sorted(load_source(str(data / split))[:40], key=lambda row: len(row.text))[:clips]
        lines = [json.dumps({"audio": row.audio, "text": row.text}, ensure_ascii=False) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = ask(
        *command(
            "train",
            "--model",
            model,
            "--language",
            "hindi",
            "--train",
            tmp_path / "train.jsonl",
            "--eval",
            tmp_path / "eval.jsonl",
            "--steps",
            2,
            "--batch-size",
            4,
            "--output",
            tmp_path / "run",
            "--set",
            "train.workers=0",
            "--set",
            "evaluate.max_clips=2",
            "--set",
            "evaluate.compare_clips=0",
            "--set",
            "train.warmup_steps=0",
        )
    )
    assert done.returncode == 0, done.stderr
    done = ask(*command("merge", tmp_path / "run", tmp_path / "merged", "--dtype", "float32"))
    assert done.returncode == 0, done.stderr
    for folder, repo in (("run", "me/adapter"), ("merged", "me/merged")):
        done = ask(*command("publish", tmp_path / folder, repo, "--base", base))
        assert done.returncode == 0, done.stderr
    sound = load_source(str(data / "test"))[0].audio
    names = (base, "me/adapter", "me/merged", sound, "hi")
    done = ask("-c", BLOCKER + STRANGER, *names, cwd=Path("/"), PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]
    by_adapter, by_merged = json.loads(done.stdout.splitlines()[-1])
    assert max(abs(a - b) for a, b in zip(by_adapter, by_merged, strict=True)) < 1e-3
