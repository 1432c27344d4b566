"Constants, defaults, limits and options are as they were pinned: tests/pins.py says what to do if not."

from pins import differences, pin_commands, pin_limits, pin_recipes, pin_values, all_commands


def test_constants_and_defaults_are_as_they_were():
    assert differences("values", pin_values()) == []


def test_fields_take_the_numbers_that_they_took():
    assert differences("limits", pin_limits()) == []


def test_options_of_commands_are_as_they_were():
    assert differences("commands", pin_commands()) == []


def test_every_option_says_what_it_is_for():
    silent = [
        f"{name} {option.name}"
        for name, command in all_commands().items()
        for option in command.params
        if not (getattr(option, "help", None) or "").strip()
    ]
    assert silent == []


def test_named_recipes_are_as_they_were():
    assert differences("recipes", pin_recipes()) == []
