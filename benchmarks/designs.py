r"""How well designs, keep, only and the gradient tell what mixtures cost that none has seen.

    python benchmarks/designs.py                       # SmolLM2 as `fp4scope demo` has it, CPU
    python benchmarks/designs.py --model Qwen/Qwen2.5-0.5B --device cuda --seq-len 2048 \
        --windows 64 --held-out 24 -o designs.json

Units are the groups that engines have. Effects come from the first windows of the text, and as many
windows behind them measure random mixtures, as many of each density. Prints correlations of
predicted and measured costs within a density, so that the number of quantized groups explains
nothing, root mean square errors, and how many 95% intervals cover. An interval here is for what was
measured: it holds the error of the measurement too. Everything goes into a file as it is known.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as scipy_stats
from shared import machine

import fp4scope
from fp4scope.cli.demo import wheel_model
from fp4scope.diagnosis import Diagnosis
from fp4scope.groups import Group, fused_groups
from fp4scope.ledger import Results
from fp4scope.models import LoadedModel, load_model
from fp4scope.recipes import Recipe
from fp4scope.stats import Effects, Pairing, by_window, effects, mean, paired
from fp4scope.study import Direction
from fp4scope.treatments import Setting

DENSITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
METHODS = {
    "designed": {"method": "designed"},
    "keep": {"direction": "keep"},
    "only": {"direction": "only"},
    "gradient": {"method": "gradient", "direction": "only"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="by default the one of `fp4scope demo`")
    parser.add_argument("--text", help="a file; by default what the demo reads, or WikiText-2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--formats", default="nvfp4,mxfp4:even", help="one after the other")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--design-runs", help="by default as many as keep or only take")
    parser.add_argument("--held-out", type=int, default=20, help="mixtures of each density")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--modelopt", type=Path, help="scores of `engine/modelopt_choices.py`")
    parser.add_argument("--output", "-o", default="designs.json")
    options = parser.parse_args()
    print(machine(options.device))
    said: dict[str, Any] = vars(options) | {"machine": machine(options.device), "formats": {}}
    loaded = load_model(options.model or str(wheel_model()), device=options.device)
    for fmt in options.formats.split(","):
        said["formats"][fmt] = {}
        _of_format(loaded, options, fmt, said)


def _of_format(
    loaded: LoadedModel, options: argparse.Namespace, fmt: str, said: dict[str, Any]
) -> None:
    common: dict[str, Any] = {
        "formats": fmt, "seq_len": options.seq_len, "windows": options.windows, "jitter": 1,
        "sweep": "projections", "all_quantized": "", "tokenizer": loaded.tokenizer,
    }  # fmt: skip
    if options.text:
        common["text"] = options.text
    elif options.model is None:
        common["dataset"] = "pydoc-topics"
    model = loaded.model

    def keep(name: str, found: dict[str, Any]) -> None:
        said["formats"][fmt][name] = found
        Path(options.output).write_text(json.dumps(said, indent=1, default=str))

    few = common | {"windows": 1}
    sites = fp4scope.diagnose(model, **few, method="designed", design_runs=2).results
    groups, setting = fused_groups(sites.sites), sites.contrasts[0].family.setting
    mixtures = _mixtures(groups, setting, options.held_out)
    runs = options.design_runs or len(groups)
    found: dict[str, dict[str, Any]] = {}
    for name in options.methods.split(","):
        more = METHODS[name] | ({"design_runs": runs} if name == "designed" else {})
        if name != "designed":
            more |= {"sweep": "blocks:only", "patterns": [_pattern(group) for group in groups]}
        begun = time.perf_counter()
        found[name] = _effects(name, fp4scope.diagnose(model, **common | more), groups)
        keep(f"seconds {name}", {"seconds": round(time.perf_counter() - begun, 1)})
        print(f"{fmt}, {name}: {time.perf_counter() - begun:.0f} s", flush=True)
    if options.modelopt:
        found |= _modelopt(json.loads(options.modelopt.read_text()), fmt, groups)
    held_out = common | {"first_window": options.windows, "method": "designed", "design_runs": 2}
    recipes = {name: recipe for name, (_, recipe) in mixtures.items()}
    results = fp4scope.diagnose(model, **held_out, recipes=recipes).results
    for measure in ("kl", "nll"):
        truth = {name: _measured(results, recipe, measure) for name, recipe in recipes.items()}
        for name, by_measure in found.items():
            if measure in by_measure:
                scores = _scores(by_measure[measure], mixtures, truth, groups)
                keep(f"{measure} {name}", scores)
                print(f"{fmt} {measure} {name:9}", json.dumps(scores), flush=True)


def _pattern(group: Group) -> str:
    return f"re:(?:{'|'.join(map(re.escape, sorted(group.names)))})$"


def _mixtures(
    groups: tuple[Group, ...], setting: Setting, count: int
) -> dict[str, tuple[float, Recipe]]:
    rng, found = np.random.default_rng(7), {}
    for density in DENSITIES:
        for number in range(count):
            chosen = rng.permutation(len(groups))[: max(1, round(density * len(groups)))]
            names = frozenset().union(*(groups[g].names for g in chosen))
            recipe = Recipe(None, ((names, setting),))
            found[f"{density:.0%} {number}"] = density, recipe
    return found


def _effects(name: str, diagnosis: Diagnosis, groups: tuple[Group, ...]) -> dict[str, Any]:
    """By measure: the designed sweep's effects, or a number for each group."""
    results = diagnosis.results
    if name == "designed":
        return {measure: effects(results, measure) for measure in ("kl", "nll")}
    direction = Direction.KEEP if name == "keep" else Direction.ONLY
    units = {
        contrast.unit.sites: contrast
        for contrast in results.contrasts
        if contrast.unit is not None
        and contrast.family.level == "patterns"
        and contrast.family.direction is direction
    }
    contrasts = [units[group.names] for group in groups]
    if name == "gradient":
        series = [by_window(results.ledger, c.own, "gradient") for c in contrasts]
        return {"nll": np.array([s.values.mean() for s in series if s is not None])}
    found = {}
    for measure in ("kl", "nll"):
        pairing = Pairing.of(results, measure)
        series = [pairing.difference(contrast) for contrast in contrasts]
        found[measure] = np.array([s.values.mean() for s in series if s is not None])
    return found


def _modelopt(
    said: dict[str, Any], fmt: str, groups: tuple[Group, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """By method: its score of each group, in units of its own; only correlations mean something."""
    found = {}
    for method, of in said["methods"].items():
        by_module = {
            module: scores[fmt]
            for modules, scores in of["scores"].items()
            for module in modules.split("+")
            if fmt in scores
        }
        if by_module:
            scores = np.array([by_module[group.sites[0].name] for group in groups])
            found[f"ModelOpt {method}"] = {"kl": scores, "nll": scores}
    return found


def _measured(results: Results, recipe: Recipe, measure: str) -> tuple[float, float]:
    """What a recipe costs, and the standard error of that."""
    own = by_window(results.ledger, recipe, measure)
    plain = by_window(results.ledger, Recipe(), measure)
    assert own is not None
    assert plain is not None
    found = mean(own.values) if measure == "kl" else paired(own.values, plain.values)
    return found.mean, found.stderr or 0.0


def _scores(
    by_group: Effects | np.ndarray,
    mixtures: dict[str, tuple[float, Recipe]],
    truth: dict[str, tuple[float, float]],
    groups: tuple[Group, ...],
) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for density in DENSITIES:
        names = [name for name, (own, _) in mixtures.items() if own == density]
        seen = np.array([truth[name] for name in names])
        recipes = [mixtures[name][1] for name in names]
        if isinstance(by_group, Effects):
            spans = [by_group.predict(recipe) for recipe in recipes]
            said = np.array([span.mean for span in spans])
            errors = np.array([span.stderr or np.nan for span in spans])
            reach = scipy_stats.t.ppf(0.975, spans[0].n - 1) * np.hypot(errors, seen[:, 1])
            covered = float((np.abs(said - seen[:, 0]) <= reach).mean())
        else:
            edited = [recipe.edited for recipe in recipes]
            inside = np.array([[group.names <= names for group in groups] for names in edited])
            said, covered = inside @ by_group, None
        scores[f"{density:.0%}"] = {
            "r": round(float(np.corrcoef(said, seen[:, 0])[0, 1]), 3),
            "rmse_mnat": round(1e3 * float(np.sqrt(np.mean((said - seen[:, 0]) ** 2))), 2),
            "bias_mnat": round(1e3 * float(np.mean(said - seen[:, 0])), 2),
        } | ({} if covered is None else {"covered": covered})
    return scores


if __name__ == "__main__":
    main()
