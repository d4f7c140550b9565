"""The answer: which format, whether it meets the bar, what to keep, what to distrust."""

import re
from dataclasses import replace

import numpy as np
import pytest

from asking import REFERENCE, all_quantized, entries, fused_model, rebuilt
from fp4scope.deploy.exactly import exactly
from fp4scope.design import Unit, of_units, whole
from fp4scope.diagnosis import Diagnosis
from fp4scope.ledger import Ledger, Results
from fp4scope.recipes import Recipe, Sites
from fp4scope.report.answer import answer
from fp4scope.report.findings import Findings
from fp4scope.report.repairs import _measured_recipes
from fp4scope.stats import Estimate, Size, Storage, Whole, saving_table
from fp4scope.study import Direction
from fp4scope.table import Table
from fp4scope.treatments import Setting

FLIPS = np.array([0.001, -0.001] * 4)


@pytest.fixture
def models(observe, results):
    """`models({(format, precision): (nats, KL)})`: a study of whole models with these costs."""

    def build(costs, accept=()):
        text = np.random.default_rng(0).normal(3, 0.1, 8)
        found = [
            observe(all_quantized(*name), text + nats + FLIPS, kl=kl)
            for name, (nats, kl) in costs.items()
        ]
        study = results(observe(REFERENCE, text), *found)
        study.protocol["accept"] = list(accept)
        study.data |= {"windows": 8}
        return Diagnosis(study)

    return build


def said(diagnosis, question):
    return dict(answer(diagnosis).points).get(question, [])


COSTS = {
    ("nvfp4", "W4A4"): (0.03, 0.04),
    ("nvfp4:4over6", "W4A4"): (0.025, 0.03),
    ("nvfp4", "W4A16"): (0.01, 0.012),
    ("mxfp4:floor", "W4A4"): (0.3, 0.4),
    ("mxfp4:even", "W4A4"): (0.1, 0.11),
}


def test_whole_models_stand_in_the_order_of_their_cost(models):
    table = answer(models(COSTS)).table
    names = [(row[0].text, row[1].text) for row in table.rows]
    assert names[1:] == [
        ("nvfp4", "W4A16"), ("nvfp4:4over6", "W4A4"), ("nvfp4", "W4A4"),
        ("mxfp4:even", "W4A4"), ("mxfp4:floor", "W4A4"),
    ]  # fmt: skip
    for row, whole_model in zip(table.rows, models(COSTS).wholes, strict=True):
        if not whole_model.is_full_precision:
            assert row[2].value == pytest.approx(100 * np.expm1(whole_model.costs["nll"].mean))
        assert row[3].value == whole_model.costs["top1"].mean


def test_the_cheapest_is_named_and_what_engines_serve(models):
    both, alone, rules = said(models(COSTS), "Which format?")
    assert both.startswith("Weights with activations: nvfp4:4over6 W4A4 costs least, +2.53% of ")
    assert "No engine serves that as measured; the cheapest that one does is nvfp4 W4A4" in both
    assert alone.startswith("Weights alone: nvfp4 W4A16 costs +1.01% of perplexity [")
    assert rules.startswith("MXFP4 (W4A4) costs +10.52% with even, the rule of vLLM")
    assert rules.endswith("+34.99% with floor, the rule of the MX specification and the paper.")


def test_a_wider_format_is_for_comparison_and_never_the_answer(models):
    both, *_ = said(models(COSTS | {("fp8", "W8A8"): (0.001, 0.002)}), "Which format?")
    assert both.startswith("Weights with activations: nvfp4:4over6 W4A4 costs least, +2.53% of ")
    assert "fp8 W8A8, for comparison: +0.10" in both


def test_the_bar_is_met_missed_or_undecided(models):
    (line,) = said(models(COSTS, ["ppl<5%"]), "Ship?")
    assert line.startswith("ppl<5% and kl<0.04879: met by nvfp4:4over6 W4A4 (4.50 bits; +2.53%")
    assert "as engines serve it by nvfp4 W4A4" in line
    (line,) = said(models(COSTS, ["ppl<0.5%"]), "Ship?")
    assert line == "ppl<0.5% and kl<0.004988: not met by anything measured."
    table = answer(models(COSTS, ["ppl<5%"])).table
    bar = [column.label for column in table.columns].index("meets ppl<5% and kl<0.04879")
    assert [row[bar].text for row in table.rows] == ["", "met", "met", "met", "missed", "missed"]


def test_an_interval_across_the_bar_decides_nothing(models):
    (line,) = said(models({("nvfp4", "W4A4"): (0.0200, 0.001)}, ["mnat<20"]), "Ship?")
    assert "undecided for nvfp4 W4A4: an interval crosses the bar. Measure more windows." in line


def test_a_loss_that_hides_a_distance_meets_no_bar(models):
    (line,) = said(models({("nvfp4", "W4A4"): (0.001, 0.3)}, ["ppl<5%"]), "Ship?")
    assert "not met by anything measured. On perplexity alone nvfp4 W4A4 does" in line
    assert line.endswith("its KL is 0.300, and the bar's kl<0.04879.")


def test_without_a_bar_each_usual_one_has_its_answer(models):
    lines = said(models(COSTS), "Ship?")
    assert [line.split(": ")[0] for line in lines[:-1]] == ["ppl<1%", "ppl<2%", "ppl<5%, ppl<10%"]
    assert "met by nvfp4 W4A16" in lines[1]


def test_few_windows_decide_nothing(models):
    diagnosis = models(COSTS)
    results = rebuilt(
        diagnosis.results, (one.without(range(3, 8)) for one in entries(diagnosis.results))
    )
    results.data["windows"] = 3
    few = Diagnosis(results)
    assert said(few, "Ship?") == [
        "3 windows are too few to decide on any bar: 8 or more have intervals."
    ]
    assert answer(few).caveats[0].startswith("3 windows are too few for an interval.")


@pytest.mark.parametrize(
    ("setting", "engines"),
    [
        ("nvfp4", {"vllm", "sglang", "trtllm"}), ("nvfp4:4over6", set()),
        ({"weight": "nvfp4:4over6"}, {"vllm", "sglang", "trtllm"}),
        ("nvfp4:4over6/nvfp4", {"vllm", "sglang", "trtllm"}),
        ("nvfp4:mse/nvfp4", {"vllm", "sglang", "trtllm"}),
        ("nvfp4:mse", set()),
        ("mxfp4:even", {"vllm"}), ("mxfp4:floor", set()), ("mxfp4:rceil", set()),
        ({"weight": "nvfp4", "input": {"format": "nvfp4", "amax": "window"}}, set()),
        ({"input": "nvfp4"}, set()), ("hif4", set()),
    ],
)  # fmt: skip
def test_an_engine_serves_what_its_kernels_do(setting, engines):
    assert set(exactly(Recipe(Setting.from_json(setting)))) == engines


SITES = fused_model(2)
NVFP4 = Setting.from_json("nvfp4")


@pytest.fixture
def layered(observe):
    """Two blocks of q, k, o and up; `layered({projection: millinats saved in each block})`."""

    def build(saved, noise=0.1):
        rng = np.random.default_rng(0)
        text, contrasts, ledger = rng.normal(3, 0.1, 8), [whole(NVFP4)], Ledger()
        base = 0.05

        def put(recipe, nll, kl):
            for window in range(8):
                ledger.open(recipe).put(
                    window, 0, 10, {"nll": 10 * nll[window], "kl": 10 * kl, "top1": 9}
                )

        put(Recipe(), text, 0.0)
        put(contrasts[0].own, text + base, base)
        for site in SITES:
            names = frozenset([site.key])
            unit = Unit("layers", site.projection, site.block, names)
            [contrast] = of_units([unit], NVFP4, Direction.KEEP)
            contrasts.append(contrast)
            nats = 1e-3 * saved.get(site.projection, 0.0)
            put(
                contrast.own,
                text + base - nats + noise * FLIPS * rng.uniform(0.9, 1.1),
                base - nats,
            )
        return Results(
            study={"model": {"name": "m"}}, model={"name": "m", "parameters": 1000},
            data={"windows": 8, "seq_len": 11, "tokens_in_text": 88, "source": "s"},
            protocol={}, environment={}, sites=SITES, contrasts=contrasts, ledger=ledger,
        )  # fmt: skip

    return build


def test_savings_are_sums_of_what_engines_have_as_one(layered):
    table = saving_table(layered({"self_attn.q_proj": 2, "self_attn.k_proj": 3, "mlp.up_proj": 1}))
    rows = {(row["unit"], row["block"]): row for row in table}
    qk = rows["self_attn.q_proj+k_proj", 0]
    assert qk["delta_nll"] == pytest.approx(5e-3, abs=2e-4)
    assert qk["added"] == 2
    assert qk["bytes_kept"] == 32 * (16 - 4.5) / 8
    assert qk["bits_kept"] == (16 * (1000 - 128) + 4.5 * (128 - 32) + 16 * 32) / 1000
    assert qk["nll_per_mb"] == pytest.approx(qk["delta_nll"] / (qk["bytes_kept"] / 1e6))
    assert [row["nll_per_mb"] for row in table] == sorted(
        (row["nll_per_mb"] for row in table), reverse=True
    )


def test_how_far_to_trust_it_is_said_with_numbers(models):
    diagnosis = models(COSTS)
    row = diagnosis.all_quantized[0]
    first, *rest = said(diagnosis, "Can I trust it?")
    assert first.startswith(f"{row['windows']} windows, {row['tokens']} tokens, with 95%")
    noise = [row for row in diagnosis.all_quantized if row["noise_nll"] is not None]
    assert any("Rounding alone moves" in line for line in rest) == bool(noise)


@pytest.mark.parametrize(("more", "word"), [(4.0, "high for prose"), (70.0, "STOP: ")])
def test_a_reference_that_predicts_nothing_is_told_loudly(models, more, word):
    diagnosis = models(COSTS)
    found = entries(diagnosis.results)
    for one in found:
        one.nll = [nll + more for nll in one.nll]  # ten tokens
    (line,) = [
        line for line in answer(Diagnosis(rebuilt(diagnosis.results, found))).caveats
        if "perplexity" in line
    ]  # fmt: skip
    assert word in line


def test_tables_of_units_say_what_keeping_them_takes(layered):
    study = layered({"self_attn.q_proj": 2, "self_attn.k_proj": 3, "mlp.up_proj": 1})
    (own,) = (
        row for row in saving_table(study) if (row["unit"], row["block"]) == ("mlp.up_proj", 1)
    )
    (row,) = Diagnosis(study).layers.where(projection="mlp.up_proj", block=1)
    assert row["bytes_kept"] == 16 * (16 - 4.5) / 8
    for name in ("bytes_kept", "bits_kept", "nll_per_mb"):
        assert row[name] == own[name] > 0
    sites = (replace(site, rows=0, cols=0) for site in study.sites)
    unknown = Sites(sites, 2)
    (row, *_) = Diagnosis(replace(study, sites=unknown)).layers
    assert [row[name] for name in ("bytes_kept", "bits_kept", "nll_per_mb")] == [None] * 3


def test_the_cheapest_repair_is_the_one_with_most_for_a_byte(layered):
    diagnosis = Diagnosis(layered({"self_attn.q_proj": 2, "mlp.up_proj": 1.8}))
    line = said(diagnosis, "Keep what?")[0]
    best = next(row for row in diagnosis.savings if row["p_holm"] <= 0.05)
    assert best["unit"] == "mlp.up_proj"
    assert line.startswith(f"nvfp4 W4A4: keep mlp.up_proj of block {best['block']}: saves +1.8")
    assert "for 0.000023 MB more" in line


def test_nothing_is_kept_where_nothing_is_significant(layered):
    diagnosis = Diagnosis(layered({}, noise=20))
    (line,) = said(diagnosis, "Keep what?")
    assert re.match(
        r"nvfp4 W4A4: no unit can be singled out: ±\d+\.\d+ millinats on 8 windows", line
    )


def test_an_implausible_reference_is_told(models):
    assert not answer(models(COSTS)).caveats
    diagnosis = models(COSTS)
    found = entries(diagnosis.results)
    for one in found:
        one.nll = [nll + 10.0 for nll in one.nll]  # ten tokens: exp(4)
    (line,) = answer(Diagnosis(rebuilt(diagnosis.results, found))).caveats
    assert line.startswith("The full-precision model's own perplexity is 5")


def test_a_lower_loss_than_in_full_precision_is_told(models):
    (line,) = answer(models(COSTS | {("fp8", "W8A8"): (-0.02, 0.03)})).caveats
    assert line.startswith("Lower loss than in full precision: fp8 W8A8. ")


def test_json_that_was_read_as_text_is_told(models):
    diagnosis = models(COSTS)
    diagnosis.results.data["source"] = "chat.jsonl"
    (line,) = answer(diagnosis).caveats
    assert line.startswith("chat.jsonl was read as it is")


def test_kept_sites_store_what_full_precision_takes():
    study = Results(study={}, model={}, data={}, protocol={}, environment={}, sites=SITES)
    names = [site.name for site in SITES]
    assert Storage(study).kept(NVFP4, names[:1]).bytes == 16 * 11.5 / 8
    assert Storage(study).kept(NVFP4, names).bits is None


def test_a_notebook_draws_what_whole_models_cost(models):
    text = models(COSTS)._repr_html_()
    bars = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    costs = [nats for nats, _ in sorted(COSTS.values())]
    assert np.divide(bars, bars[-1]) == pytest.approx(np.divide(costs, costs[-1]), abs=2e-3)


def test_of_measured_recipes_the_one_that_lowers_kl_most_for_each_byte_is_named():
    def one(name, kl, width, megabytes, given=True):
        costs = {
            measure: Estimate(kl, 0.01, kl - width, kl + width, 8) for measure in ("nll", "kl")
        }
        size = Size(8.0, None, None, 1e6 * megabytes)
        return Whole(Recipe(NVFP4, ()), name, "" if given else "W4A4", given, costs, 3.0, size)

    empty = Table((), [])
    row = {"format": "nvfp4", "precision": "W4A4"}
    found = object.__new__(Findings)
    vars(found).update(
        projections=empty, blocks=empty, layers=empty, patterns=empty, experts=empty,
        all_quantized=[{}, row],
        wholes=[
            one("nvfp4", 0.4, 0.05, 100, given=False), one("dear", 0.1, 0.05, 200),
            one("cheap", 0.2, 0.05, 110), one("unsure", 0.38, 0.05, 100.1),
        ],
    )  # fmt: skip
    (line,) = _measured_recipes(found)
    assert line.startswith("Of the recipes that were measured, cheap saves most for each byte")
    assert "KL 0.400 becomes 0.200" in line
    assert line.endswith("for 10.00 MB more.")
