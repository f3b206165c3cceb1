"""Every shipped recipe trains two steps, and the spelled-out recipe trains like its YAML twin."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from whisper_peft import load_recipe, override, train
from whisper_peft.data.sources import load_source
from whisper_peft.recipe_dicts import as_dict
from whisper_peft.recipe_files import PACKAGE, shipped_recipes
from whisper_peft.training.trainer import SpeechTrainer

RECIPES = ROOT / "recipes"
PAGES = sorted(RECIPES.glob("*.yaml"))


def stand_ins(model: Path, speech: Path) -> dict[str, object]:
    """Return the changes that make any recipe run here: another model, other sources, two steps, no GPU."""
    return {
        "model.name": str(model),
        "model.language": "hindi",
        "data.train": [str(speech / "train")],
        "data.eval": str(speech / "eval"),
        "data.test": str(speech / "test"),
        "train.steps": 2,
        "train.epochs": None,
        "train.precision": "fp32",
        "train.workers": 0,
    }


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_yaml_files_of_the_folder_are_the_shipped_recipes():
    assert [page.stem for page in PAGES] == [path.stem for path in shipped_recipes()]
    assert {"quickstart", "small-hindi-full", "small-hindi-lora"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_recipe_begins_with_a_line_that_describes_it(page):
    line = page.read_text(encoding="utf-8").splitlines()[0]
    assert line.startswith("# ") and 20 < len(line) <= 120


def with_large_ones_slow(pages: list[Path]) -> list:
    """Mark the recipes for larger models as slow; they differ from the small ones in little but the model's name."""
    return [
        pytest.param(page, marks=pytest.mark.slow) if page.stem.startswith(("large", "medium")) else page
        for page in pages
    ]


@pytest.mark.parametrize("page", with_large_ones_slow(PAGES), ids=lambda page: page.stem)
def test_every_recipe_trains_two_steps(page, tiny_model, speech, tmp_path):
    recipe = override(load_recipe(page), stand_ins(tiny_model, speech))
    result = train(recipe, output=tmp_path / "run")
    assert result.facts["steps"] == 2
    assert result.facts["after"]["clips"] == 4
    assert result.model.name == ("model" if recipe.train.mode == "full" else "adapter")
    assert (tmp_path / "run" / "tensorboard").is_dir() == ("tensorboard" in recipe.train.report_to)
    assert load_recipe(tmp_path / "run").train.learning_rate == (recipe.train.learning_rate or pytest.approx(4e-3))


def test_the_quickstart_needs_nothing_but_the_package():
    recipe = load_recipe("quickstart")
    assert Path(recipe.model.name) == PACKAGE / "quickstart" / "model"
    splits = {name: load_source(name) for name in (*recipe.data.train, recipe.data.eval, recipe.data.test)}
    texts = [{row.text for row in rows} for rows in splits.values()]
    assert all(Path(name).is_relative_to(PACKAGE) for name in splits)
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_the_full_recipe_has_the_values_of_the_notebook():
    page = as_dict(load_recipe("small-hindi-full"))
    notebook = {
        "mode": "full",
        "steps": 4000,
        "batch_size": 20,
        "learning_rate": 1e-5,
        "warmup_steps": 500,
        "precision": "fp16",
        "gradient_checkpointing": True,
        "logging_steps": 25,
        "report_to": ["tensorboard"],
        "schedule": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    assert page["train"] | notebook == page["train"]
    assert page["evaluate"]["every_steps"] == 1000 and page["evaluate"]["best_metric"] == "wer"
    assert page["model"]["name"] == "openai/whisper-small" and page["model"]["language"] == "hindi"
    splits = [
        source.rpartition(":")[2] for source in (*page["data"]["train"], page["data"]["eval"], page["data"]["test"])
    ]
    # The notebook used train+validation, test and test.
    assert splits == ["train", "dev", "test"]


def test_the_spelled_out_recipe_has_the_values_of_its_twin():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(load_script("lora_spelled_out").main).parameters.items()
    }
    twin = load_recipe("small-hindi-lora")
    assert defaults["model_name"] == twin.model.name
    assert ((defaults["train"],), defaults["eval"], defaults["test"]) == (
        twin.data.train,
        twin.data.eval,
        twin.data.test,
    )
    for name in ("steps", "batch_size", "learning_rate", "warmup_steps", "seed"):
        assert defaults[name] == getattr(twin.train, name), name
    assert defaults["every_steps"] == twin.evaluate.every_steps
    assert (twin.lora.rank, twin.lora.alpha, twin.lora.dropout) == (32, 64, 0.05)


def test_the_spelled_out_recipe_trains_like_its_twin(tiny_model, speech, tmp_path, monkeypatch, capsys):
    """Both have the same batches, bit by bit, and the same losses with dropout, also beyond the first epoch."""
    ours, twins = [], []
    step = SpeechTrainer.training_step

    def recorded_step(self, model, inputs, *rest):
        loss = step(self, model, inputs, *rest)
        twins.append((inputs, loss.item()))
        return loss

    monkeypatch.setattr(SpeechTrainer, "training_step", recorded_step)
    sizes = {"train.steps": 5, "train.batch_size": 4, "train.micro_batch_size": 3, "train.warmup_steps": 1}
    train(override(load_recipe("small-hindi-lora"), stand_ins(tiny_model, speech) | sizes), output=tmp_path / "twin")
    rates = load_script("lora_spelled_out").main(
        str(tiny_model),
        *(str(speech / split) for split in ("train", "eval", "test")),
        str(tmp_path / "adapter"),
        steps=5,
        batch_size=4,
        micro_batch_size=3,
        warmup_steps=1,
        workers=0,
        watch=lambda number, batch, loss: ours.append((batch, loss)),
    )
    assert len(ours) == len(twins) == 5
    for (batch, loss), (twin_batch, twin_loss) in zip(ours, twins, strict=True):
        assert batch["rows"] == twin_batch["rows"]
        for key in ("input_features", "decoder_input_ids", "labels"):
            assert torch.equal(batch[key], twin_batch[key].cpu()), key
        assert loss == pytest.approx(twin_loss, rel=1e-5)
    # The loss differs in each step, so the weights change.
    assert len({round(loss, 4) for _, loss in ours}) == 5
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    final = json.loads((tmp_path / "twin" / "run.json").read_text())["final"]
    assert rates["clips"] == final["clips"] == 4
    assert "After: WER" in capsys.readouterr().out


def test_the_custom_recipe_is_short_and_trains(tiny_model, speech, tmp_path, capsys):
    script = RECIPES / "custom_recipe.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 40
    custom = load_script("custom_recipe")
    result = custom.main(str(tmp_path / "run"), stand_ins(tiny_model, speech) | {"train.batch_size": 4})
    assert result.facts["steps"] == 2
    # The callback prints this.
    assert "step 2: WER" in capsys.readouterr().out
    wave = np.ones(100, dtype=np.float32)
    changed = custom.louder_and_noisier(wave, np.random.default_rng(0))
    assert changed.dtype == np.float32 and not np.array_equal(changed, wave)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [3, -100, -100]])
    assert custom.smoothed_loss(logits, labels) > 0


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """The code cells run in order in a new process, with fewer steps and no other change."""
    import nbformat

    notebook = nbformat.read(RECIPES / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    # The notebook is stored without outputs, because none of them was made here.
    assert not any(cell.get("outputs") for cell in notebook.cells)
    page = "\n\n".join(cells)
    assert "steps = 200" in page
    page = page.replace("steps = 200", "steps = 2")
    done = subprocess.run(
        [sys.executable, "-c", page],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WER" in done.stdout
