import pytest

from fp4scope.deploy.configs import is_published, read_config
from fp4scope.deploy.engines import CONTAINERS, DEFAULT_PALETTE, SERVING, Form, loads, loads_form
from fp4scope.deploy.published import recipe_of, without_exceptions
from fp4scope.errors import StudyError, UnitError
from fp4scope.recipes import Site, Sites
from fp4scope.treatments import Setting

NVFP4 = Form("nvfp4", "nvfp4")
FP8 = Form("fp8", "fp8")
MXFP4 = Form("mxfp4", "mxfp4")
_4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
_8 = {"num_bits": 8, "type": "float"}


def group(targets, **changes):
    return {
        "targets": targets, "format": "nvfp4-pack-quantized", "weights": dict(_4),
        "input_activations": _4 | {"dynamic": "local"},
    } | changes  # fmt: skip


def fp8_group(targets):
    weights, inputs = _8 | {"strategy": "channel"}, _8 | {"strategy": "token", "dynamic": True}
    return group(targets, format="float-quantized", weights=weights, input_activations=inputs)


def compressed(*groups, ignore=(), **more):
    named = {f"group_{i}": one for i, one in enumerate(groups)}
    own = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    return {"quantization_config": own | {"config_groups": named, "ignore": list(ignore)} | more}


def test_compressed_tensors_groups_and_ignored():
    config = read_config(compressed(group(["Linear"]), fp8_group(["re:.*v_proj$"]), ignore=["a.b"]))
    assert config.form("x.v_proj") == FP8
    assert config.form("x.q_proj") == NVFP4
    assert config.form("a.b") is None
    assert not config.troubles


def test_engines_resolve_overlaps_each_in_its_way():
    config = read_config(compressed(group(["re:.*v_proj$"]), fp8_group(["x.v_proj"])))
    assert config.form("x.v_proj", "vllm") == NVFP4  # the first in the configuration
    assert config.form("x.v_proj", "trtllm") == FP8  # exact before `re:`


def test_keys_that_compressed_tensors_refuses_are_troubles():
    config = read_config(compressed(group(["Linear"], weights=_4 | {"observers": "x"})))
    assert ["'observers'" in trouble.text for trouble in config.troubles] == [True]


@pytest.mark.parametrize("inline", [True, False])
def test_modelopt_in_both_of_its_files(inline):
    layers = {"m.q_proj": {"quant_algo": "NVFP4"}, "m.experts": {"quant_algo": "mxfp4"}}
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    data = (
        {"quantization_config": mixed | {"quant_method": "modelopt", "ignore": ["lm_head"]}}
        if inline
        else {"producer": {"name": "modelopt"}, "quantization": mixed | {"exclude_modules": ["h"]}}
    )
    config = read_config(data)
    assert config.form("m.q_proj") == NVFP4
    assert config.form("m.experts.0.up_proj") == MXFP4
    assert config.form("m.q_proj2") is None


def test_modelopt_of_one_algorithm_excludes_by_parts_of_names():
    own = {"quant_algo": "NVFP4", "exclude_modules": ["layers.1", "*gate"], "group_size": 16}
    config = read_config({"producer": {"name": "modelopt"}, "quantization": own})
    found = [config.form(f"layers.{name}") for name in ("1.q", "10.q", "2.gate", "2.q")]
    assert found == [None, None, None, NVFP4]
    assert ["kv_cache_quant_algo" in trouble.text for trouble in config.troubles] == [True]


def test_vllm_online_quark_and_auto_round():
    online = read_config({"targets": {"*.up": "mxfp4", "re:.*down$": "fp8_per_channel"}})
    assert [online.form(n) for n in ("a.up", "a.down", "a.q")] == [MXFP4, FP8, None]
    fp4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}
    quark = {"weight": fp4, "input_tensors": fp4}
    own = {"quant_method": "quark", "global_quant_config": quark, "exclude": ["lm_head"]}
    quark = read_config({"quantization_config": own})
    assert [quark.form(n) for n in ("a.q", "lm_head")] == [MXFP4, None]
    own = {"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp", "act_bits": 4}
    own |= {"group_size": 32, "extra_config": {"a.q": {"bits": 16}}}
    rounded = read_config({"quantization_config": own})
    assert [rounded.form(n) for n in ("a.q", "a.k")] == [None, MXFP4]


def test_a_recipe_is_read_too():
    edits = [{"sites": ["*.q"], "setting": None}, {"sites": "a.q", "setting": "mxfp4"}]
    config = read_config({"recipe": {"base": "nvfp4", "edits": edits}})
    assert [config.form(n) for n in ("a.q", "b.q", "a.k", "lm_head")] == [MXFP4, None, NVFP4, None]
    assert not is_published({"recipe": {}})
    assert is_published(compressed())


@pytest.mark.parametrize(
    "data", [{}, {"quantization_config": {"quant_method": "x"}}, {"quant_method": "modelopt",
             "quant_algo": "MIXED_PRECISION"}, compressed(group(7)),
             {"quantization_config": {"quant_method": "compressed-tensors"}}],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(data):
    with pytest.raises(StudyError):
        read_config(data)


def test_what_engines_load():
    assert loads("vllm", Setting.from_json("mxfp4:even")).loads
    assert not loads("sglang", Setting.from_json("mxfp4")).loads
    assert not loads("vllm", Setting.from_json("mxfp4"), "modelopt").loads
    assert loads("trtllm", None).loads
    for name in DEFAULT_PALETTE[:2]:
        assert all(loads_form(engine, Form(name, name)).loads for engine in SERVING)
    with pytest.raises(StudyError, match="vllm"):
        loads("vlm", Setting.from_json("nvfp4"))
    assert "modelopt" in CONTAINERS


def sites_of(*names):
    return Sites(
        (Site(name=f"layers.{b}.{n}", block=b, projection=n, rows=4, cols=32)
         for b in range(2) for n in names),
        blocks=2,
    )  # fmt: skip


def test_the_recipe_of_a_configuration_and_its_exceptions():
    sites = sites_of("q_proj", "up_proj", "down_proj")
    config = read_config(
        compressed(group(["Linear"]), ignore=["re:.*down_proj$", "layers.1.q_proj"])
    )
    recipe = recipe_of(config, sites)
    assert recipe.at("layers.0.q_proj") == Setting.from_json("nvfp4")
    assert recipe.at("layers.1.q_proj") is None
    without = without_exceptions(config, sites)
    assert list(without) == ["re:.*down_proj$ in bf16", "layers.1.q_proj in bf16"]
    alone = without["layers.1.q_proj in bf16"]
    assert alone.at("layers.1.q_proj") == Setting.from_json("nvfp4")
    assert alone.at("layers.0.down_proj") is None


def test_a_configuration_of_another_model_is_refused():
    with pytest.raises(UnitError, match="another model"):
        recipe_of(read_config(compressed(group(["model.x"]))), sites_of("q_proj"))


def test_a_format_that_cannot_be_measured_is_refused():
    whole = {"quant_method": "auto-round", "bits": 4, "data_type": "int"}
    with pytest.raises(StudyError, match="int4"):
        recipe_of(read_config({"quantization_config": whole}), sites_of("q_proj"))


def test_inputs_are_measured_with_the_rule_of_kernels():
    whole = {"quant_method": "auto-round", "bits": 4, "act_bits": 4, "data_type": "mx_fp"}
    recipe = recipe_of(read_config({"quantization_config": whole}), sites_of("q_proj"))
    assert recipe.at("layers.0.q_proj") == Setting.from_json("mxfp4:even")
