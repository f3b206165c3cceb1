"""Recipes: how they are read, changed, refused and saved, how paths are resolved, and the shipped recipes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import yaml

from whisper_peft import recipe_files as recipes
from whisper_peft import train
from whisper_peft.errors import UserError
from whisper_peft.recipe import Recipe
from whisper_peft.recipe_dicts import SETTINGS, as_dict, override, parse_settings
from whisper_peft.recipe_files import (
    PACKAGE,
    copy_recipe,
    find_recipe,
    load_recipe,
    make_paths_absolute,
    refuse_sources_elsewhere,
    save_recipe,
    shipped_recipes,
)
from whisper_peft.settings import allowed_types


def written(folder: Path, page: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(page, encoding="utf-8")
    return path


def keys(page: dict, prefix: str = "") -> list[str]:
    dotted_keys = []
    for key, value in page.items():
        dotted_keys += keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return dotted_keys


def value_of(recipe: Recipe, key: str) -> object:
    for name in key.split("."):
        recipe = getattr(recipe, name)
    return recipe


# Recipes that are refused


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("train: {learning_rat: 1}", "train.learning_rat: unknown key. Did you mean 'learning_rate'?"),
        ("trian: {steps: 1}", "trian: unknown key. Did you mean 'train'?"),
        ("data: {text: {lowercas: true}}", "data.text.lowercas: unknown key. Did you mean 'lowercase'?"),
        ("lora: {qqqqqq: 1}", "lora.qqqqqq: unknown key."),
        ("1: {steps: 1}", "1: unknown key."),
        ("train: 5", "train: expected the keys mode, "),
        ("data: {text: NFC}", "data.text: expected the keys normal_form, "),
        ("- train", "expected the parts model, data, "),
        ("just words", "expected the parts model, data, "),
        ("train: {steps: ", "not a YAML page"),
        ("train: {steps: 'ten'}", "train.steps: expected int or null, found 'ten'."),
        ("train: {steps: 2.5}", "train.steps: expected int or null, found 2.5."),
        ("train: {steps: true}", "train.steps: expected int or null, found True."),
        ("train: {learning_rate: fast}", "train.learning_rate: expected float or null, found 'fast'."),
        ("train: {learning_rate: true}", "train.learning_rate: expected float or null, found True."),
        ("train: {learning_rate: .nan}", "train.learning_rate: expected a finite number"),
        ("train: {learning_rate: .inf}", "train.learning_rate: expected a finite number"),
        ("train: {gradient_checkpointing: 1}", "train.gradient_checkpointing: expected bool, found 1."),
        ("train: {seed: null}", "train.seed: expected int, found None."),
        ("train: {micro_batch_size: some}", "train.micro_batch_size: expected a number of clips or auto"),
        ("model: {name: 5}", "model.name: expected str, found 5."),
        ("model: {name: null}", "model.name: expected str, found None."),
        ("data: {train: 5}", "data.train: expected a list of names, found 5."),
        ("data: {train: [1]}", "data.train[0]: expected a source, or one as {source: SRC"),
        ("data: {train: {a: b}}", "data.train[0]: expected a source, or one as "),
        ("data: {train: [{source: a, weihgt: 2}]}", "data.train[0].weihgt: unknown key. Did you mean 'weight'?"),
        ("data: {train: [{source: a, weight: 0}]}", "data.train[0].weight: expected more than 0, found 0"),
        ("data: {max_left_out: 2}", "data.max_left_out: expected a share between 0 and 1"),
        ("lora: {dropout: 1.0}", "lora.dropout: expected less than 1"),
        ("lora: {dropout: -0.1}", "lora.dropout: expected 0 or more"),
        ("train: {mode: qlora}", "train.mode: 'qlora' is not among full, lora."),
        ("features: {window: wide}", "features.window: 'wide' is not among full, condensed, tight."),
        ("augment: {nois: 0.5}", "augment.nois: unknown key. Did you mean 'noise'?"),
        ("augment: {gain: 2}", "augment.gain: expected a share between 0 and 1"),
        ("augment: {speed_factor: [1.1, 0.9]}", "augment.speed_factor: expected two numbers, the lower one first"),
        ("augment: {speed_factor: 0.9}", "augment.speed_factor: expected two numbers, the lower one first"),
        ("augment: {speed_factor: [0, 1]}", "augment.speed_factor: expected factors between 0.5 and 2"),
        ("augment: {gain_db: [a, 1]}", "augment.gain_db: expected two numbers, the lower one first"),
        ("augment: {gain_db: [.nan, 1]}", "augment.gain_db: expected two numbers, the lower one first"),
        ("augment: {spec_augment: 1}", "augment.spec_augment: expected bool, found 1"),
        ("features: {timestamps: 1.5}", "features.timestamps: expected a share"),
        ("train: {batch_size: 0}", "train.batch_size: expected more than 0, found 0."),
    ],
)
def test_a_wrong_recipe_is_refused_with_key_and_remedy(tmp_path, page, message):
    path = written(tmp_path, page)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", sorted(key for key, setting in SETTINGS.items() if setting.rule.choices))
def test_a_key_with_choices_takes_each_choice_and_no_other_word(key):
    choices = SETTINGS[key].rule.choices
    assert value_of(Recipe(), key) in choices
    for choice in choices:
        assert value_of(override(Recipe(), {key: choice}), key) == choice
    with pytest.raises(UserError, match=f"^{key}: 'nonsense' is not among "):
        override(Recipe(), {key: "nonsense"})


@pytest.mark.parametrize("key", sorted(key for key, setting in SETTINGS.items() if setting.rule.above == 0))
def test_numbers_that_must_be_positive_are_refused_at_zero_and_below(key):
    assert value_of(override(Recipe(), {key: 1}), key) == 1
    for value in (0, -1):
        with pytest.raises(UserError, match=f"^{key}: expected more than 0"):
            override(Recipe(), {key: value})


def test_every_key_has_a_rule_that_its_default_keeps():
    assert list(SETTINGS) == keys(as_dict(Recipe()))
    for key, setting in SETTINGS.items():
        assert setting.rule.help[0].isupper(), key
        assert setting.rule.help.endswith("."), key
        may_be_null = type(None) in allowed_types(setting.kind)
        assert may_be_null == (setting.rule.null is not None), f"{key}: say what null stands for"
        assert value_of(override(Recipe(), {key: setting.default}), key) == setting.default


@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_every_number_beyond_its_bounds_is_refused(key):
    rule = SETTINGS[key].rule
    beyond = {
        "more than": rule.above,
        "or more": None if rule.at_least is None else rule.at_least - 1,
        "less than": rule.below,
        "at most": None if rule.at_most is None else rule.at_most + 1,
        "a share between 0 and 1": 1.1 if rule.is_share else None,
    }
    if isinstance(SETTINGS[key].default, tuple):
        return
    for message, value in beyond.items():
        if value is not None:
            with pytest.raises(UserError, match=f"^{key}: expected .*{message}"):
                override(Recipe(), {key: value})


# Recipes that are read


def test_an_empty_recipe_has_the_defaults(tmp_path):
    assert load_recipe(written(tmp_path, "")) == Recipe()
    assert load_recipe(written(tmp_path, "train: {}\ndata:\n")) == Recipe()


def test_numbers_are_read_as_people_write_them(tmp_path):
    page = "train: {learning_rate: 1e-3, epochs: 3, weight_decay: 1e-2, steps: 100.0, micro_batch_size: 4}"
    train = load_recipe(written(tmp_path, page)).train
    # YAML 1.1 reads 1e-3 as text.
    assert (train.learning_rate, train.epochs, train.weight_decay) == (0.001, 3.0, 0.01)
    assert (train.steps, train.micro_batch_size) == (100, 4)
    assert [type(value) for value in (train.learning_rate, train.epochs, train.steps)] == [float, float, int]


def test_data_train_takes_one_source_or_a_list_of_sources(tmp_path):
    assert load_recipe(written(tmp_path, "data: {train: cv}")).data.train == ("cv",)
    assert load_recipe(written(tmp_path, "data: {train: [cv, more]}")).data.train == ("cv", "more")
    assert load_recipe(written(tmp_path, "data: {train: null}")).data.train == ()


def test_the_example_recipe_of_the_design_loads(tmp_path):
    page = """
        model:    {name: openai/whisper-small, language: hindi, task: transcribe}
        data:     {train: [cv/hi:train], eval: cv/hi:dev, test: cv/hi:test}
        features: {window: full, timestamps: 0.0}
        lora:     {rank: 32, alpha: 64, dropout: 0.05, targets: attention+mlp}
        train:    {mode: lora, quantize: null, steps: 4000, batch_size: 20, micro_batch_size: auto,
                   learning_rate: 1.0e-3, warmup_steps: 50}
        evaluate: {every_steps: 1000, best_metric: wer}
    """
    recipe = load_recipe(written(tmp_path, page))
    assert (recipe.model.language, recipe.lora.alpha, recipe.train.steps) == ("hindi", 64, 4000)
    assert (recipe.data.train, recipe.evaluate.every_steps) == (("cv/hi:train",), 1000)


def test_recipes_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().train.steps = 5


def test_a_saved_recipe_loads_with_the_same_values(tmp_path):
    recipe = override(
        Recipe(),
        {
            "data.train": [str(tmp_path), "/none/ हिन्दी:train+dev"],
            "train.learning_rate": 1e-5,
            "train.steps": 7,
            "data.text.normal_form": None,
            "lora.modules_to_save": ["proj_out"],
            "train.micro_batch_size": 2,
            "model.language": "no",
            "train.report_to": ["tensorboard"],
            "data.eval": "1e-3",
        },
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    # A run folder stands for the recipe in it.
    assert load_recipe(tmp_path) == recipe
    assert "हिन्दी" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert list(yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))) == list(as_dict(Recipe()))


# Changes


def test_override_changes_only_the_named_keys():
    before = Recipe()
    after = override(before, {"train.steps": 5, "data.text.lowercase": True, "data.train": "a"})
    assert (after.train.steps, after.data.text.lowercase, after.data.train) == (5, True, ("a",))
    assert before == Recipe()
    changed = {key for key in keys(as_dict(before)) if value_of(before, key) != value_of(after, key)}
    assert changed == {"train.steps", "data.text.lowercase", "data.train"}
    assert override(before, {}) == before


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.stesp", "train.stesp: unknown key. Did you mean 'steps'?"),
        ("steps", "steps: unknown key. Did you mean 'train.steps'?"),
        ("train", "train: unknown key."),
        ("train.steps.more", "train.steps.more: unknown key."),
        ("data.text", "data.text: unknown key."),
        ("", ": unknown key."),
    ],
)
def test_override_refuses_unknown_keys(key, message):
    with pytest.raises(UserError) as caught:
        override(Recipe(), {key: 5}, place="--set ")
    assert str(caught.value).startswith(f"--set {message}")


def test_the_command_line_sets_values_by_key():
    settings = [
        "train.steps=5",
        "train.learning_rate=1e-3",
        " model.language =hindi",
        "data.train=[a, b]",
        "data.eval=c:dev",
        "data.text.normal_form=null",
        "lora.rslora=true",
        "model.name=a=b",
    ]
    recipe = override(Recipe(), parse_settings(Recipe(), settings))
    assert (recipe.train.steps, recipe.train.learning_rate, recipe.lora.rslora) == (5, 0.001, True)
    assert (recipe.model.language, recipe.model.name) == ("hindi", "a=b")
    assert (recipe.data.train, recipe.data.eval, recipe.data.text.normal_form) == (("a", "b"), "c:dev", None)
    assert parse_settings(Recipe(), []) == {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.steps", "train.steps: expected key=value, for example train.steps=100."),
        ("train.stesp=5", "train.stesp: unknown key. Did you mean 'steps'?"),
        ("train.steps=many", "train.steps: expected int or null, found 'many'."),
        ("train.mode=all", "train.mode: 'all' is not among full, lora."),
    ],
)
def test_wrong_settings_of_the_command_line_are_refused(setting, message):
    with pytest.raises(UserError) as caught:
        override(Recipe(), parse_settings(Recipe(), [setting], place="--set "), place="--set ")
    assert str(caught.value).startswith(f"--set {message}")


# Paths


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Make a folder with a recipe, data and a model, and go to another folder."""
    for name in ("data/hi", "model", "elsewhere", "owner/name", "hf"):
        (tmp_path / "project" / name).mkdir(parents=True)
    (tmp_path / "project" / "my.csv").touch()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "project" / "elsewhere")
    return tmp_path / "project"


def test_relative_paths_start_at_the_recipe(project):
    page = (
        "model: {name: model}\ndata: {train: [data/hi:train+dev, my.csv, ../data], eval: data/hi, test: data/hi:test}\n"
        "augment: {noise_folder: ../data, room_folder: data/hi}"
    )
    path = written(project, page)
    for name in (path, os.path.relpath(path)):
        recipe = load_recipe(name)
        assert recipe.model.name == str(project / "model")
        assert recipe.data.train == (f"{project}/data/hi:train+dev", f"{project}/my.csv", f"{project.parent}/data")
        assert (recipe.data.eval, recipe.data.test) == (f"{project}/data/hi", f"{project}/data/hi:test")
        assert recipe.augment.noise_folder == f"{project.parent}/data"
        assert recipe.augment.room_folder == f"{project}/data/hi"


def test_a_source_that_is_not_a_path_stays_as_written(project):
    page = "model: {name: 'hf:owner/name'}\ndata: {train: [no/such], eval: 'owner/data:hi:test', test: 'hf:owner/name'}"
    recipe = load_recipe(written(project, page))
    # The prefix hf: wins although a folder of this name exists.
    assert recipe.model.name == "hf:owner/name"
    assert (recipe.data.train, recipe.data.eval) == (("no/such",), "owner/data:hi:test")
    assert recipe.data.test == "hf:owner/name"
    assert load_recipe(written(project, "model: {name: owner/name}")).model.name == str(project / "owner" / "name")


def test_a_relative_path_of_a_recipe_is_looked_for_only_beside_the_recipe(project, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "clips").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    for name in ("clips", "clips:train"):
        page = written(project, f"data: {{train: ['{name}']}}")
        with pytest.raises(UserError, match=rf"data.train: no {name} beside the recipe.*pass --train"):
            train(page, output=tmp_path / "run")
        refuse_sources_elsewhere(load_recipe(page), page, {"data.train": ["other"]})
    page = written(project, "augment: {noise_folder: clips}")
    with pytest.raises(UserError, match=r"augment.noise_folder: no clips beside .* --set augment.noise_folder=clips"):
        train(page, output=tmp_path / "run")


def test_package_paths_lead_into_the_package(project):
    page = """
        model: {name: 'package:quickstart/model'}
        data: {train: ['package:quickstart/speech/train'], eval: 'package:quickstart/speech:validation'}
    """
    recipe = load_recipe(written(project, page))
    assert recipe.model.name == str(PACKAGE / "quickstart" / "model")
    assert recipe.data.train == (str(PACKAGE / "quickstart" / "speech" / "train"),)
    assert recipe.data.eval == str(PACKAGE / "quickstart" / "speech") + ":validation"


def test_making_paths_absolute_twice_changes_nothing_more(project):
    recipe = make_paths_absolute(override(Recipe(), {"data.train": ["data/hi:train"], "model.name": "model"}), project)
    assert make_paths_absolute(recipe, Path("/")) == recipe


# Shipped recipes


def test_the_error_for_an_unknown_recipe_names_the_shipped_ones():
    shipped = [path.stem for path in shipped_recipes()]
    with pytest.raises(UserError, match=r"^nonsense: no such recipe\. .*whisper-peft recipes list") as caught:
        load_recipe("nonsense")
    assert all(name in str(caught.value) for name in shipped)
    if "quickstart" in shipped:
        with pytest.raises(UserError, match="Did you mean 'quickstart'"):
            find_recipe("quickstrat")


def test_shipped_recipes_load():
    for path in shipped_recipes():
        recipe = load_recipe(path.stem)
        assert load_recipe(path) == recipe
        # The recipes for a size of GPU memory name no data, because they need --train.
        assert recipe.data.train or path.stem.endswith("gb"), path.stem
        assert find_recipe(path.stem) == path.resolve()


def test_a_copied_recipe_belongs_to_the_user_and_is_never_overwritten(tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "one.yaml").write_text("train: {steps: 3}  # why\n", encoding="utf-8")
    monkeypatch.setattr(recipes, "shipped_recipes", lambda: [shipped / "one.yaml"])
    copy = copy_recipe("one", tmp_path / "mine.yaml")
    assert copy.read_text(encoding="utf-8") == "train: {steps: 3}  # why\n"
    assert load_recipe(copy) == load_recipe("one")
    with pytest.raises(UserError, match="exists already"):
        copy_recipe("one", tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").write_text("train: {steps: 4}", encoding="utf-8")
    # A path that exists wins over a shipped recipe of the same name.
    assert load_recipe("one").train.steps == 4
