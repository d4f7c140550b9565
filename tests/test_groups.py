"""Groups are facts of engines, found by names alone."""

from fp4scope.groups import fused_groups, tensor_groups
from fp4scope.recipes import Site, Sites


def site(name, block, projection=None, **more):
    return Site(name=name, block=block, projection=projection or name, rows=8, cols=4, **more)


def names(sites, blocks=1):
    return [(g.name, g.block, len(g.sites)) for g in fused_groups(Sites(sites, blocks=blocks))]


def test_a_llama_block_has_four():
    own = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    mlp = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    sites = [site(f"model.layers.{b}.{n}", b) for b in range(2) for n in (*own, *mlp)]
    sites.append(site("lm_head", None))
    block = [
        ("self_attn.q_proj+k_proj+v_proj", 3),
        ("self_attn.o_proj", 1),
        ("mlp.gate_proj+up_proj", 2),
        ("mlp.down_proj", 1),
    ]
    expected = [(name, b, count) for b in range(2) for name, count in block]
    assert names(sites, 2) == [*expected, ("lm_head", None, 1)]


def test_names_are_fused_inside_one_module_only():
    sites = [site("layers.0.a.gate_proj", 0), site("layers.0.b.up_proj", 0)]
    assert names(sites) == [("a.gate_proj", 0, 1), ("b.up_proj", 0, 1)]


def test_experts_of_a_block_are_one_and_shared_ones_are_not_of_them():
    stacked = [
        site("layers.0.mlp.experts.gate_up_proj", 0, experts=4),
        site("layers.0.mlp.experts.down_proj", 0, experts=4),
        site("layers.0.mlp.shared_expert.gate_proj", 0),
        site("layers.0.mlp.shared_expert.up_proj", 0),
    ]
    assert names(stacked) == [("experts", 0, 2), ("mlp.shared_expert.gate_proj+up_proj", 0, 2)]
    modules = [
        site(f"layers.0.moe.experts.{e}.{leaf}", 0, f"experts.*.{leaf}")
        for e in range(2)
        for leaf in ("w1", "w2", "w3")
    ]
    (group,) = fused_groups(Sites(modules, blocks=1))
    assert group.name == "experts"
    shared = [[s.name.rpartition(".experts.")[2] for s in own] for own in tensor_groups(group)]
    assert shared == [["0.w1", "0.w3"], ["0.w2"], ["1.w1", "1.w3"], ["1.w2"]]


def test_experts_of_a_stack_that_are_a_site_each_share_no_scale():
    single = [
        Site(
            name=f"layers.0.mlp.experts.{e}.{leaf}",
            block=0,
            projection=f"experts.{leaf}",
            rows=4,
            cols=4,
            expert=e,
        )
        for e in range(2)
        for leaf in ("gate_up_proj", "down_proj")
    ]
    (group,) = fused_groups(Sites(single, blocks=1))
    assert [len(own) for own in tensor_groups(group)] == [1, 1, 1, 1]


def test_what_has_no_weight_is_in_no_group():
    keys = Site(name="layers.0.self_attn.keys", block=0, projection="keys", rows=0, cols=4)
    assert names([keys, site("layers.0.mlp.fc1", 0)]) == [("mlp.fc1", 0, 1)]
