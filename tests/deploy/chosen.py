"""Recipes with every scheme that export knows, for tiny models."""

from fp4scope.deploy.written import RecipeModel, WrittenRecipe
from fp4scope.recipes import Recipe
from fp4scope.treatments import Setting

# Of blocks and projections: all schemes, with and without inputs, and full precision.
MIXED = {
    ".0.self_attn.": Setting.from_json("nvfp4"),
    ".1.self_attn.": Setting.from_json({"weight": "nvfp4:4over6", "input": "nvfp4"}),
    ".0.mlp.gate_up": Setting.from_json("mxfp4:even"),
    ".0.mlp.down": Setting.from_json({"weight": "mxfp4:rceil"}),
    ".1.mlp.gate_up": Setting.from_json("mxfp8"),
    ".1.mlp.down": Setting.from_json("fp8"),
    ".0.mlp.experts": Setting.from_json("nvfp4:mse/nvfp4"),
    ".1.mlp.experts": Setting.from_json("mxfp8"),
}


def setting_for(name):
    key = name.replace("gate_proj", "gate_up").replace("up_proj", "gate_up")
    key = key.replace("gate_gate_up", "gate_up")
    return next((setting for part, setting in MIXED.items() if part in key), None)


def written_for(source, choose=setting_for, scales="served", **changes):
    """A recipe by site, and an amax for each site."""
    edits = tuple(
        (frozenset({site.name}), setting)
        for site in source.sites
        if (setting := choose(site.name)) is not None
    )
    amax = {site.name: 3.0 + place / 7 for place, site in enumerate(source.sites)}
    found = {"scales": scales, "input_amax": amax, "numbers": {"average_bits": 6.5}} | changes
    return WrittenRecipe(Recipe(None, edits), RecipeModel(source.name), **found)
