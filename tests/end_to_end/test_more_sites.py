"""Sites beside the linears of the blocks, from options to tables."""

import json

import fp4scope as package


def test_a_quantized_head_to_its_tables(fp4scope, model_folder, text_file, tmp_path):
    options = (
        "run", model_folder, "--text", text_file, "--seq-len", 32, "--windows", 9, "--formats",
        "nvfp4", "-o", "out",
    )  # fmt: skip
    code, out, _ = fp4scope(*options, "--lm-head", "--method", "exact,gradient")
    assert code == 0
    assert "lm_head" in out
    results = package.load(tmp_path / "out").results
    assert [site.name for site in results.sites.behind] == ["lm_head"]
    data = json.loads((tmp_path / "out/results.json").read_text())["summary"]
    head = [row for row in data["projections"] if row["projection"] == "lm_head"]
    assert [row["direction"] for row in head] == ["keep", "only"]
    assert all(row["delta_nll"] and row["gradient_nll"] for row in head)
    assert "lm_head" not in {row["projection"] for row in data["layers"]}
    assert "beside them the head, lm_head" in (tmp_path / "out/report.md").read_text()
    # Another study in the folder, and one that says nothing of the head.
    code, _, err = fp4scope(*options)
    assert code == 2
    assert "lm_head is true there, null here" in err


def test_a_quantized_cache_to_its_tables(fp4scope, model_folder, text_file, tmp_path):
    options = (
        "run", model_folder, "--text", text_file, "--seq-len", 32, "--windows", 9, "--formats",
        "nvfp4,mxfp4", "--kv-cache", "fp8", "--jitter", 2,
    )  # fmt: skip
    code, out, _ = fp4scope(*options, "-o", "out", "--lm-head")
    assert code == 0
    assert "kv_cache" in out
    d = package.load(tmp_path / "out")
    costs = {
        (r["format"], r["direction"]): r["delta_nll"]
        for r in d.projections.rows
        if r["projection"] == "kv_cache"
    }
    assert len(costs) == 4
    assert all(costs.values())
    # Alone it is the same whatever the linears would have.
    assert costs["nvfp4", "only"] == costs["mxfp4:floor", "only"]
    layers = {r["block"] for r in d.layers.rows if r["projection"] == "kv_cache"}
    assert layers == {0, 1, 2}
    assert {a.block for a in d.results.activations if a.projection == "kv_cache"} == layers
    said = "kv_cache (key_cache and value_cache of 3 blocks) in fp8:unscaled"
    assert said in (tmp_path / "out/report.md").read_text()
    assert d.results.protocol["also_quantized"][1] == said
    again = package.load(tmp_path / "out")
    assert again.projections.rows == d.projections.rows
    code, _, err = fp4scope(*options, "--method", "gradient")
    assert code == 2
    assert "leave --kv-cache out" in err


def test_quantized_products_of_attention_to_their_tables(
    fp4scope, model_folder, text_file, tmp_path
):
    options = (
        "run", model_folder, "--text", text_file, "--seq-len", 32, "--windows", 9, "--formats",
        "nvfp4", "--attention", "nvfp4", "--sweep", "projections", "--pattern", "*.pv_values",
    )  # fmt: skip
    code, _, _ = fp4scope(*options, "-o", "out")
    assert code == 0
    d = package.load(tmp_path / "out")
    costs = {r["projection"]: r["delta_nll"] for r in d.projections.rows}
    assert costs["attention.qk"]
    assert costs["attention.pv"]
    assert d.patterns.rows[0]["delta_nll"]
    assert d.results.model["attention"] == "eager"
    said = "attention.pv (pv_probabilities and pv_values of 3 blocks) in nvfp4"
    assert said in (tmp_path / "out/report.md").read_text()
