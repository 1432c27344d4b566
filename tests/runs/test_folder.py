"Tests of cfvae.runs.folder: what a run folder says of itself, and what it refuses."

import pytest

from cfvae.core import CfvaeError, config_to_dict
from cfvae.runs.presets import preset
from cfvae.recipes import recipe_from_dict
from cfvae.runs.folder import load_model, load_recipe


def test_unknown_fields_in_a_file(tmp_path):
    fields = config_to_dict(preset("shapes-demo"))
    with pytest.raises(CfvaeError, match="Recipe has no field 'colour'"):
        recipe_from_dict({**fields, "colour": "red"})
    with pytest.raises(CfvaeError, match="HierarchicalVAEConfig has no field 'depth'"):
        recipe_from_dict({**fields, "vae": {**fields["vae"], "depth": 3}})
    with pytest.raises(CfvaeError, match="not a run folder"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"name": ')
    with pytest.raises(CfvaeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_load_model_says_what_is_missing(tmp_path):
    with pytest.raises(CfvaeError, match="there is nothing at"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CfvaeError, match="neither a run folder"):
        load_model(tmp_path)
