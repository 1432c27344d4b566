"""Every field of a recipe, with values of every wrong kind: refused in words, or accepted because right."""

import dataclasses
import itertools
import math
import typing

import pytest

from cfvae.core import CfvaeError, config_to_dict
from cfvae.recipes import Recipe, change, check_models, recipe_from_dict
from cfvae.runs.presets import preset

RECIPE = preset("shapes-demo")
PLAIN = config_to_dict(RECIPE)
PARTS = [name for name, value in PLAIN.items() if isinstance(value, dict)]
FIELDS = [name for name in PLAIN if name not in PARTS] + [
    f"{part}.{name}" for part in PARTS for name in PLAIN[part]
]
HUGE_TEXT = "1" + 5000 * "0"  # more digits than Python turns into a number

SCALARS = [None, True, False, "", "x", "null", "no", [], {}, {"a": 1}]
NUMBERS = [-1, 0, 1, 5, 10**9, 2**62, 2**63, -(10**30), 10**400, -2.5, 1e-300, 0.5, 1.5, 1e30, 1e300]
ENDLESS = [math.nan, math.inf, -math.inf]
ENTRIES = [*NUMBERS, *ENDLESS, None, True, "x", [1]]
LISTS = [[entry] * count for entry in ENTRIES for count in (1, 3)] + [[1, 2, 4], [1, 2, 4, 8]]
TEXTS = ["NaN", "1e400", "[1, 2", "1,two", 500 * "[", HUGE_TEXT]  # as a command line might have them
VALUES = [*SCALARS, *NUMBERS, *ENDLESS, *LISTS, *TEXTS]

# What is right, by the type of a field: everything else has to be refused.
RIGHT: dict[typing.Any, typing.Callable[[typing.Any], bool]] = {
    str: lambda value: type(value) is str,
    bool: lambda value: type(value) is bool,
    int: lambda value: type(value) is int and abs(value) < 2**63,
    float: lambda value: type(value) in (int, float) and abs(value) < 3.5e38 and abs(value) != 10**400,
}
MAY_BE_INFINITE = ("autoencoder_training.skip_norm", "vae_training.skip_norm")
MAY_BE_NULL = ("autoencoder_training.final_learning_rate", "vae_training.final_learning_rate")

# Errors of fields that only have to fit another one name that one, or what both are about.
TOGETHER = {
    "autoencoder.size": "the autoencoder's code is",
    "autoencoder.widths": "the autoencoder's code is|groups",
    "autoencoder.patch": "the autoencoder's code is",
    "autoencoder.latent_channels": "the autoencoder's code is",
    "vae.data_channels": "the VAE models",
    "vae.resolutions": "the VAE models|one per resolution",
    "autoencoder_training.accumulate": "equal parts",
    "vae_training.accumulate": "equal parts",
}


def with_change(key: str, value: typing.Any) -> Recipe:
    return change(RECIPE, {key: value})


def with_json(key: str, value: typing.Any) -> Recipe:
    fields = config_to_dict(RECIPE)
    part, _, name = key.rpartition(".")
    owner = fields[part] if part else fields
    owner[name] = value
    return recipe_from_dict(fields)


def field_of(recipe: Recipe, key: str) -> typing.Any:
    part, _, name = key.rpartition(".")
    return getattr(getattr(recipe, part) if part else recipe, name)


def kind_of(key: str) -> typing.Any:
    "The type of a field, or of its entries."
    part, _, name = key.rpartition(".")
    owner = type(getattr(RECIPE, part)) if part else Recipe
    kind = typing.get_type_hints(owner)[name]
    return kind if kind in RIGHT else typing.get_args(kind)[0]


def is_right(key: str, value: typing.Any) -> bool:
    "Whether a value that was accepted is what its field may hold."
    if value is None:
        return key in MAY_BE_NULL
    entries = value if isinstance(field_of(RECIPE, key), tuple) else [value]
    fits = RIGHT[kind_of(key)]
    return all(fits(entry) or (entry == math.inf and key in MAY_BE_INFINITE) for entry in entries)


def refusal(action: typing.Callable, *arguments: typing.Any) -> str | None:
    try:
        action(*arguments)
    except CfvaeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", FIELDS)
@pytest.mark.parametrize("read", [with_change, with_json])
def test_every_value_is_refused_in_words_or_right(read, key):
    name = key.rpartition(".")[2]
    for value in VALUES:
        try:
            recipe = read(key, value)
        except CfvaeError as error:
            message = str(error)
            named = [name, *TOGETHER.get(key, name).split("|")]
            assert any(word in message for word in named), (value, message)
            assert message.count("\n") < 2, (value, message)
        else:
            assert is_right(key, field_of(recipe, key)), (key, value)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_an_object(part):
    for value in (None, True, 5, 1.5, "x", [], [1]):
        message = refusal(recipe_from_dict, {**PLAIN, part: value})
        assert message is not None and f"Recipe.{part} is" in message
    for value in (None, True, 5, "x", [], {}):
        assert f"'{part}' is a whole part" in str(refusal(with_change, part, value))


@pytest.mark.parametrize("value", [None, True, 5, "x", [], [1], {}])
def test_a_recipe_is_an_object_with_a_name(value):
    assert refusal(recipe_from_dict, value) is not None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", "null", "TrainingConfig.learning_rate is null: a number is needed"),
        ("learning_rate", '"fast"', 'TrainingConfig.learning_rate is "fast": a number is needed'),
        ("ema_decay", "null", "TrainingConfig.ema_decay is null: a number is needed"),
        ("warmup", "1e400", "TrainingConfig.warmup is Infinity: a whole number is needed"),
        ("sigma_q", "Infinity", "ObjectiveConfig.sigma_q is Infinity: a finite number"),
        ("betas", "5", "TrainingConfig.betas is 5: a list of 2 numbers is needed"),
        ("vae_training.skip_norm", "NaN", "TrainingConfig.skip_norm is NaN: a finite number"),
        ("vae_training.skip_norm", "null", "TrainingConfig.skip_norm is null: a number is needed"),
        ("autoencoder.groups", "0", "groups is 0, but must divide"),
        ("autoencoder.groups", "-8", "groups is -8, but must divide"),
        ("held_out", "1.5", "Recipe.held_out is 1.5: a whole number is needed"),
        ("flip", "5", "Recipe.flip is 5: true or false is needed"),
        ("conditional", '"no"', 'Recipe.conditional is "no": true or false is needed'),
        ("batch_size", "true", "TrainingConfig.batch_size is true: a whole number is needed"),
        ("seed", str(2**63), "TrainingConfig.seed is 9223372036854775808: a finite number of ordinary size"),
        ("final_learning_rate", "[]", "is []: a number or null is needed"),
        ("vae.num_classes", "3", "vae.num_classes cannot be set"),
        ("num_classes", "3", "vae.num_classes cannot be set"),
        ("vae.layers", "1000000000", "vae.layers: 3000000000 in all, but at most 1000"),
        ("disc_layers", "1000000000", "disc_layers: 1000000000 in all, but at most 1000"),
        ("values", "3e38,3e38,3e38", "every entry must be above 0, and at most 1e30"),
    ],
)
def test_what_each_message_says(key, value, message):
    assert message in str(refusal(with_change, key, value))


def test_what_stays_right():
    assert change(RECIPE, {"vae.num_classes": "10"}) == RECIPE  # what it is already
    assert change(RECIPE, {"vae.widths": 32}).vae.widths == (32, 32, 32)
    assert change(RECIPE, {"learning_rate": 1}).vae_training.learning_rate == 1
    assert change(RECIPE, {"betas": [0, 0.5]}).vae_training.betas == (0, 0.5)
    assert change(RECIPE, {"skip_norm": math.inf}).vae_training.skip_norm == math.inf
    assert change(RECIPE, {"final_learning_rate": None}).vae_training.final_learning_rate is None
    classes = {**PLAIN, "vae": {**PLAIN["vae"], "num_classes": 3}}  # as a run's recipe.json has it
    assert recipe_from_dict(classes).vae.num_classes == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vae.attention": 1, "vae.heads": 7}, "vae: attention heads are 7, but must divide"),
        ({"vae.widths": 10**9}, "vae: a model of these sizes"),
        ({"vae.widths": 10**6}, "vae: a model of these sizes"),
        ({"vae.encoder_widths": 2**62}, "vae: a model of these sizes"),
        ({"vae.multipliers": 2**62}, "vae: a model of these sizes"),
        ({"vae.latent_channels": 2**62}, "vae: a model of these sizes"),
        ({"autoencoder.widths": [8 * 10**8, 8 * 10**8]}, "autoencoder: a model of these sizes"),
        ({"disc_weight": 1, "disc_start": 1, "disc_width": 4 * 10**9}, "autoencoder: a model of these sizes"),
        ({"disc_weight": 1, "disc_start": 1, "disc_layers": 900}, "autoencoder: disc_layers is 900"),
    ],
)
def test_models_that_cannot_be_built(settings, message):
    recipe = change(RECIPE, settings)
    assert message in str(refusal(check_models, recipe))


def test_every_accepted_size_is_built_or_refused():
    sizes = [key for key in FIELDS if kind_of(key) is int and key.startswith(("vae.", "autoencoder."))]
    for key, value in itertools.product(sizes, (1, 5, 10**9, 2**62)):
        try:
            recipe = change(RECIPE, {key: value})
        except CfvaeError:
            continue
        message = refusal(check_models, recipe)
        assert message is None or message.startswith(("vae: ", "autoencoder: "))


def test_good_recipes_are_built():
    check_models(RECIPE)
    check_models(preset("imagenet-256-small"))
    check_models(dataclasses.replace(preset("tiny-imagenet-64"), flip=False))
