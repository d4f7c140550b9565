"""A decider whose effects are known."""

import numpy as np

import fp4scope
from fp4scope.deploy.decide import Decider
from fp4scope.deploy.palette import Choice
from fp4scope.ledger import Results
from fp4scope.recipes import Site, Sites
from fp4scope.stats import SingleEffects
from fp4scope.treatments import Setting

NVFP4, MXFP8 = (Setting.from_json(name) for name in ("nvfp4", "mxfp8"))
LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
WINDOWS = 16


def known(costs, noise=0.0):
    """A decider over two blocks whose groups cost so much in NVFP4, and a tenth in MXFP8."""
    sites = Sites(
        [
            Site(name=f"model.layers.{b}.{leaf}", block=b, projection=leaf, rows=32, cols=32)
            for b in range(2)
            for leaf in LEAVES
        ],
        2,
    )
    groups = fp4scope.groups.fused_groups(sites)
    assert len(groups) == 6 == len(costs)
    effects = np.stack([np.array(costs), 0.1 * np.array(costs)], axis=1)
    by_window = np.repeat(effects[None], WINDOWS, axis=0)
    by_window += np.random.default_rng(0).normal(0, noise, by_window.shape) if noise else 0
    of = [SingleEffects(groups, (NVFP4, MXFP8), by_window, m) for m in ("kl", "nll")]
    names = ("study", "data", "protocol", "environment")
    results = Results(
        **{name: {} for name in names}, model={"parameters": 8 * 1024 + 1024}, sites=sites
    )
    full, small, large = (
        Choice(n, s) for n, s in (("bf16", None), ("nvfp4", NVFP4), ("mxfp8", MXFP8))
    )
    return Decider(results, *of, (full, small, large))
