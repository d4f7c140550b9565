r"""Our recipes beside those of rules of thumb, gradients, chance and ModelOpt, size by size.

    python benchmarks/fronts.py prepare MODEL DIR --text wikitext.txt --device cuda
    python benchmarks/engine/modelopt_choices.py DIR        # where ModelOpt is; may be left out
    python benchmarks/fronts.py compare MODEL DIR --text wikitext.txt --device cuda
    python benchmarks/fronts.py draw docs/results/checks/fronts docs/pictures/fronts.svg

Everybody has the same palette (NVFP4, FP8, full precision), the same units (what engines have as
one), the same windows to choose on, and the same sizes, in average bits of the linears. Every
choice is measured as a whole on windows that nobody has seen. `fronts.json` gets all numbers.

A rival's choice is worse, as good or better by the difference of KL on the same windows. Ours is
"not inferior" where the rival is not better by more than a margin, 5% of what uniform NVFP4 costs,
and "better" where the difference is above zero. Both are one-sided paired t tests with Holm's
correction over all sizes and rivals.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_1samp
from shared import machine

import fp4scope
from fp4scope.data import evaluation_text, evaluation_windows
from fp4scope.deploy.allocate import least_cost
from fp4scope.deploy.decide import Decider
from fp4scope.deploy.found import decider, written
from fp4scope.groups import Group
from fp4scope.ledger import Results
from fp4scope.models import LoadedModel, load_model
from fp4scope.recipes import Recipe
from fp4scope.stats import Pairing, by_window, holm
from fp4scope.study import Study

FORMATS = "nvfp4,fp8"
SIZES = (4.75, 5.0, 5.5, 6.0, 7.0)
MARGIN = 0.05
RANDOM = 3
SHARE = 0.8
"""Of the text that is evaluated; scales are calibrated on what is behind it."""

Floats = NDArray[np.float64]
Options = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("prepare", "compare", "draw"))
    parser.add_argument("model", help="of `draw`: a folder with files of `compare`")
    parser.add_argument("folder", type=Path, help="of `draw`: the figure")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=32, help="to choose on")
    parser.add_argument("--held-out", type=int, default=64, help="to measure on")
    parser.add_argument("--seq-len", type=int, default=2048)
    options = parser.parse_args()
    if options.step == "draw":
        draw(Path(options.model), options.folder)
        return
    print(machine(options.device))
    options.folder.mkdir(exist_ok=True)
    text = options.text.read_text(encoding="utf-8")
    cut = text.index("\n", int(SHARE * len(text)))
    for name, part in ("evaluated.txt", text[:cut]), ("calibration.txt", text[cut:]):
        (options.folder / name).write_text(part, encoding="utf-8")
    loaded = load_model(options.model, device=options.device)
    (prepare if options.step == "prepare" else compare)(loaded, options)


def common(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "text": str(options.folder / "evaluated.txt"),
        "calibration_text": str(options.folder / "calibration.txt"),
        "windows": options.windows,
        "seq_len": options.seq_len,
        "formats": FORMATS,
        "all_quantized": "",
    }


def prepare(loaded: LoadedModel, options: argparse.Namespace) -> None:
    """The model as a folder, the ids of the windows to choose on, and the sizes."""
    study = Study.build(model=options.model, **common(options))
    windows = evaluation_windows(
        study.data, evaluation_text(study.data), loaded.tokenizer, loaded.config.model_type
    )
    loaded.model.save_pretrained(options.folder / "model")
    asked = {"ids": windows.ids.tolist(), "bits": SIZES}
    (options.folder / "asked.json").write_text(json.dumps(asked))


def compare(loaded: LoadedModel, options: argparse.Namespace) -> None:
    """Choose, measure as wholes, and say who is better."""
    rivals = Rivals(loaded, options)
    recipes = {"nvfp4": rivals.found.of(rivals.all_of("nvfp4")).recipe}
    recipes["fp8"] = rivals.found.of(rivals.all_of("fp8")).recipe
    for size in SIZES:
        for name, chosen in rivals.choices(size):
            recipes[f"{size} {name}"] = rivals.found.of(chosen).recipe
    for size in SIZES:
        recipe = written(rivals.found.results, rivals.found, rivals.found.under(size))
        recipe.write(options.folder / f"{size}.yaml")
    asked = common(options) | {"windows": options.held_out, "first_window": options.windows}
    results = rivals.diagnose("measure", **asked, sweep=(), recipes=recipes)
    costs = {name: _cost(results, recipe) for name, recipe in recipes.items() if recipe.settings}
    said = {
        "machine": machine(options.device),
        "model": options.model,
        "windows": [options.windows, options.held_out],
        "seq_len": options.seq_len,
        "seconds": rivals.seconds,
        "rows": [
            {
                "name": name,
                "bits": recipes[name].average_bits(list(results.sites)),
                "kl_mnat": 1e3 * float(cost.mean()),
                "kl_stderr": 1e3 * float(cost.std(ddof=1) / len(cost) ** 0.5),
            }
            for name, cost in costs.items()
        ],
        "against": list(_against(costs)),
    }
    (options.folder / "fronts.json").write_text(json.dumps(said, indent=1))
    print(_printed(said))


@dataclass
class Rivals:
    """Who chooses, each from the windows that all have.

    Attributes:
        loaded: The model.
        options: Of the command.
    """

    loaded: LoadedModel
    options: argparse.Namespace

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        results = self.diagnose("designed sweep", **common(self.options), method="designed")
        self.found: Decider = decider(results, f"{FORMATS},bf16")
        self.names = [choice.name for choice in self.found.choices]
        self.singles = {
            "gradient": self._singles("gradient", method="gradient", direction="only"),
            "only": self._singles("only", direction="only"),
            "keep": self._singles("keep", direction="keep"),
        }
        self.outliers = self._outliers(results)
        said = self.options.folder / "modelopt.json"
        methods = json.loads(said.read_text())["methods"] if said.is_file() else {}
        self.seconds |= {f"ModelOpt {name}": of["seconds"] for name, of in methods.items()}
        self.modelopt = {name: of["choices"] for name, of in methods.items()}

    def diagnose(self, what: str, **asked: Any) -> Results:  # noqa: ANN401
        """A study, timed."""
        begun = time.perf_counter()
        found = fp4scope.diagnose(self.loaded.model, tokenizer=self.loaded.tokenizer, **asked)
        self.seconds[what] = round(time.perf_counter() - begun, 1)
        print(f"{what}: {self.seconds[what]} s", flush=True)
        return found.results

    def choices(self, size: float) -> Iterator[tuple[str, Options]]:
        """What each chooses under a size: the option of every group."""
        groups, most = self.found.kl.groups, size * self.found.parameters
        yield "fp4scope", self.found.under(size).options
        for name, costs in self.singles.items():
            yield name, least_cost(costs, self.found.bits, most)
        yield "outliers first", self._upgraded(np.argsort(-self.outliers, kind="stable"), most)
        last = max(group.block or 0 for group in groups)
        ends = [min(group.block or 0, last - (group.block or 0)) for group in groups]
        yield "first and last blocks", self._upgraded(np.argsort(ends, kind="stable"), most)
        attention = ["attn" in group.name for group in groups]
        yield "MLP first", self._upgraded(np.argsort(attention, kind="stable"), most)
        for seed in range(RANDOM):
            order = np.random.default_rng(seed).permutation(len(groups))
            yield f"random {seed}", self._upgraded(order, most)
        for method, by_size in self.modelopt.items():
            by_module = by_size[str(size)]
            yield f"ModelOpt {method}", np.array([self._as_said(g, by_module) for g in groups])

    def all_of(self, name: str) -> Options:
        return np.full(len(self.found.kl.groups), self.names.index(name))

    def _as_said(self, group: Group, by_module: dict[str, str]) -> int:
        said = {by_module.get(site.name, self.names[0]) for site in group.sites}
        assert len(said) == 1, f"{group.name} of block {group.block} is split: {said}"
        return self.names.index(said.pop())

    def _upgraded(self, order: Options, most: float) -> Options:
        """All NVFP4, then FP8, then full precision, in this order as far as it fits."""
        chosen = self.all_of("nvfp4")
        rows = np.arange(len(chosen))
        for better in (self.names.index("fp8"), 0):
            for place in order:
                before = chosen[place]
                chosen[place] = better
                if self.found.bits[rows, chosen].sum() > most:
                    chosen[place] = before
        return chosen

    def _singles(self, what: str, **asked: Any) -> Floats:  # noqa: ANN401
        """Groups by options: what one group at a time says; of gradients the mean square."""
        groups = self.found.kl.groups
        patterns = [_pattern(group) for group in groups]
        results = self.diagnose(what, **common(self.options), **asked, sweep=(), patterns=patterns)
        found = np.zeros((len(groups), len(self.names)))
        place = {group.names: g for g, group in enumerate(groups)}
        pairing = Pairing.of(results, "kl")
        for contrast in results.contrasts:
            if contrast.unit is None or contrast.family.level != "patterns":
                continue
            if what == "gradient":
                series = by_window(results.ledger, contrast.own, "gradient")
            else:
                series = pairing.difference(contrast)
            assert series is not None
            values = np.square(series.values) if what == "gradient" else series.values
            option = self.names.index(contrast.family.setting.name)
            found[place[contrast.unit.sites], option] = values.mean()
        return found

    def _outliers(self, results: Results) -> Floats:
        """The largest max/P99.9 of what enters each group."""
        ratio = {(a.block, a.projection): a.ratio or 0.0 for a in results.activations}
        return np.array(
            [max(ratio[s.block, s.projection] for s in g.sites) for g in self.found.kl.groups]
        )


def _pattern(group: Group) -> str:
    return f"re:(?:{'|'.join(name.replace('.', '[.]') for name in sorted(group.names))})$"


def _cost(results: Results, recipe: Recipe) -> Floats:
    series = by_window(results.ledger, recipe, "kl")
    assert series is not None
    return series.values


def _against(costs: dict[str, Floats]) -> Iterator[dict[str, Any]]:
    """Each rival at each size, less ours on the same windows; random choices are one rival."""
    margin = MARGIN * float(costs["nvfp4"].mean())
    rows = []
    for size in SIZES:
        own = costs[f"{size} fp4scope"]
        rivals: dict[str, list[Floats]] = {}
        for name, cost in costs.items():
            if name.startswith(f"{size} ") and not name.endswith(" fp4scope"):
                rival = name.removeprefix(f"{size} ")
                rivals.setdefault("random" if rival.startswith("random") else rival, []).append(
                    cost
                )
        for rival, found in rivals.items():
            more = np.mean(found, axis=0) - own
            error = more.std(ddof=1) / len(more) ** 0.5
            same = not more.any()
            p = [1.0 if same else _p(more, 0.0), 0.0 if same else _p(more, -margin)]
            rows.append(
                {"size": size, "rival": rival, "more_mnat": 1e3 * float(more.mean()),
                 "stderr": 1e3 * float(error), "p_better": p[0], "p_not_inferior": p[1]}
            )  # fmt: skip
    for name in ("p_better", "p_not_inferior"):
        for row, adjusted in zip(rows, holm([row[name] for row in rows]), strict=True):
            row[name] = adjusted
    for row in rows:
        yield row | {"margin_mnat": 1e3 * margin}


def _p(values: Floats, least: float) -> float:
    return float(ttest_1samp(values, least, alternative="greater").pvalue)


def _printed(said: dict[str, Any]) -> str:
    lines = [f"{row['name']:32} {row['bits']:.2f} bits  KL {row['kl_mnat']:8.2f} +- "
             f"{row['kl_stderr']:.2f} mnat" for row in said["rows"]]  # fmt: skip
    for row in said["against"]:
        verdict = (
            "better" if row["p_better"] < 0.05
            else "not inferior" if row["p_not_inferior"] < 0.05 else "not told"
        )  # fmt: skip
        lines.append(
            f"{row['size']:5} {row['rival']:24} {row['more_mnat']:+8.2f} +- {row['stderr']:.2f} "
            f"mnat more than ours: ours is {verdict}"
        )
    return "\n".join([*lines, json.dumps(said["seconds"])])


LINES = {
    "fp4scope": ("#0b6e4f", "o", 2.4),
    "ModelOpt gradient": ("#c26a00", "s", 1.4),
    "ModelOpt kl_div": ("#c26a00", "^", 1.4),
    "first and last blocks": ("#5b6ee1", "v", 1.0),
    "MLP first": ("#8a8a8a", "x", 1.0),
    "outliers first": ("#b0489b", "+", 1.0),
}


def draw(folder: Path, target: Path) -> None:
    """KL on windows that nobody has seen against bits, a panel for each model."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    files = sorted(folder.glob("*.json"))
    figure = Figure(figsize=(4.2 * len(files), 3.6), layout="constrained")
    for axes, path in zip(figure.subplots(1, len(files)), files, strict=True):
        said = json.loads(path.read_text())
        for rival, (color, marker, width) in LINES.items():
            rows = [row for row in said["rows"] if row["name"].endswith(f" {rival}")]
            bits, kl = zip(*((row["bits"], row["kl_mnat"]) for row in rows), strict=True)
            axes.plot(bits, kl, color=color, marker=marker, lw=width, ms=5, label=rival)
        for row in said["rows"][:2]:
            axes.plot(row["bits"], row["kl_mnat"], "D", color="#444444", ms=5)
            at = (row["bits"], row["kl_mnat"])
            axes.annotate(f"all {row['name']}", at, (6, 4), textcoords="offset points", fontsize=8)
        axes.set(title=said["model"], xlabel="bits of a weight", ylim=(0, None), xlim=(4.3, 8.9))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("KL, millinats per token")
    figure.axes[-1].legend(frameon=False, fontsize=8)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fronts"}):
        figure.savefig(target, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
