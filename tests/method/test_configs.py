"Every field of every config, made in Python: what no field can hold is refused in words."

import dataclasses
import importlib
import inspect
import math
import pkgutil

import pytest

import cfvae
from cfvae.autoencoder import AutoencoderConfig
from cfvae.baselines import Quantiser
from cfvae.core import CfvaeError
from cfvae.evaluation import ClassifierConfig, PhotoClassifierConfig
from cfvae.recipes import Recipe
from cfvae.training import TrainingConfig


def configs() -> list[type]:
    "All of the method, by their names."
    found = {Recipe, Quantiser}
    for module in pkgutil.iter_modules(cfvae.__path__):
        if not module.ispkg and module.name != "__main__":
            members = inspect.getmembers(importlib.import_module(f"cfvae.{module.name}"), inspect.isclass)
            found |= {
                kind for name, kind in members if name.endswith("Config") and dataclasses.is_dataclass(kind)
            }
    return sorted(found, key=lambda kind: kind.__name__)


FIELDS = [(kind, field.name) for kind in configs() for field in dataclasses.fields(kind)]
NEVER = [object(), b"x", {"a": 1}, [None], math.nan, -math.inf, 2**70, 1j]


def test_all_configs_are_found():
    assert {TrainingConfig, AutoencoderConfig, PhotoClassifierConfig} < set(configs()) and len(configs()) > 10


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_what_no_field_can_hold(kind, name):
    required = {"name": "mine"} if kind is Recipe else {}
    for value in NEVER:
        with pytest.raises(CfvaeError, match=f"{name} is|has no field") as caught:
            kind(**required | {name: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (TrainingConfig, "betas", 0.9),
        (TrainingConfig, "learning_rate", "x"),
        (TrainingConfig, "ema_decay", None),
        (TrainingConfig, "skip_norm", None),
        (TrainingConfig, "seed", 1.5),
        (TrainingConfig, "seed", "0"),
        (TrainingConfig, "warmup", 2.5),
        (TrainingConfig, "skip_from", "a"),
        (TrainingConfig, "learning_rate", math.inf),
        (TrainingConfig, "steps", True),
        (AutoencoderConfig, "size", 0),
        (AutoencoderConfig, "size", -32),
        (AutoencoderConfig, "size", 32.0),
        (AutoencoderConfig, "size", "32"),
        (ClassifierConfig, "size", 0),
        (PhotoClassifierConfig, "size", -32),
    ],
)
def test_values_that_look_almost_right(kind, field, value):
    with pytest.raises(CfvaeError, match=field):
        kind(**{field: value})


def test_one_number_stands_for_a_list_of_one():
    assert AutoencoderConfig(widths=8).widths == (8,)
    assert Recipe("mine", vae={"layers": [1, 1, 2]}).vae.layers == (1, 1, 2)  # as JSON has it
