r"""Whether compressed-tensors in transformers serves an export as fp4scope predicts, on a CPU.

    python benchmarks/interop.py prepare model.gguf --text wikitext.txt DIR
    python benchmarks/interop.py check DIR --text wikitext.txt

`prepare` exports a mixed recipe: every scheme that compressed-tensors has, with and without inputs.
`check` runs in any environment with transformers, compressed-tensors and fp4scope: every weight
against our own reader and against `fake_quantize` of the original, the output of each linear on
the same input, and the NLL of a few windows. Beside the last: what the dtype alone changes.
"""

import argparse
import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from shared import calibrated
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM

from fp4scope.data import evaluation_text, evaluation_windows
from fp4scope.deploy.checkpoint import RECIPE, write_checkpoint
from fp4scope.deploy.plan import Packed, plan_export
from fp4scope.deploy.schemes import SERVED_RULE
from fp4scope.deploy.written import RecipeModel, WrittenRecipe
from fp4scope.kernels import fake_quantize
from fp4scope.models import LoadedModel, Source, load_model, open_source
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.study import Study
from fp4scope.treatments import Setting, Treatment

ATTENTION = ("nvfp4", {"weight": "nvfp4:4over6", "input": "nvfp4"}, "mxfp8:e4m3:even", "fp8")
MLP = ("nvfp4", "mxfp4:even", {"weight": "mxfp4:rceil"}, {"weight": "nvfp4"}, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare")
    prepare.add_argument("model")
    commands.add_parser("check")
    for command in commands.choices.values():
        command.add_argument("folder", type=Path)
        command.add_argument("--text", required=True)
        command.add_argument("--windows", type=int, default=8)
        command.add_argument("--seq-len", type=int, default=128)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.command == "prepare":
        export_mixture(options)
    else:
        check(options)


def windows_of(model: str, options: argparse.Namespace, loaded: LoadedModel) -> torch.Tensor:
    study = Study.build(
        model=model, text=options.text, windows=options.windows + 8, seq_len=options.seq_len
    )
    text = evaluation_text(study.data)
    return evaluation_windows(study.data, text, loaded.tokenizer, loaded.config.model_type).ids


def export_mixture(options: argparse.Namespace) -> None:
    loaded = load_model(options.model, device="cpu")
    amax = calibrated(loaded, windows_of(options.model, options, loaded)[-8:])
    edits = []
    for site in loaded.layout.sites:
        kinds = ATTENTION if ".self_attn." in site.name else MLP
        setting = kinds[(site.block or 0) % len(kinds)]
        if setting is not None:
            edits.append((frozenset({site.name}), Setting.from_json(setting)))
    name = RecipeModel(loaded.name, fingerprint=loaded.fingerprint)
    written = WrittenRecipe(Recipe(None, tuple(edits)), name, "served", amax)
    source = open_source(options.model)
    options.folder.mkdir()
    write_checkpoint(plan_export(written, source), source, options.folder / "packed")
    (options.folder / "model.json").write_text(json.dumps(options.model))


def check(options: argparse.Namespace) -> None:
    packed = options.folder / "packed"
    model = json.loads((options.folder / "model.json").read_text())
    theirs = AutoModelForCausalLM.from_pretrained(packed)
    ours = load_model(str(packed), device="cpu", dtype="bfloat16")
    ids = windows_of(model, options, ours)[: options.windows]
    theirs(ids[:1])
    versions = [f"{name} {version(name)}" for name in ("transformers", "compressed-tensors")]
    print(", ".join(versions))
    source = open_source(model)
    export = plan_export(WrittenRecipe.read(packed / RECIPE), source)
    compare_weights(theirs, export.packed, packed, source)
    compare_outputs(theirs, export.packed, ids)
    compare_nll(theirs, ours, export.packed, packed, ids)


def compare_weights(
    theirs: nn.Module, layers: tuple[Packed, ...], packed: Path, source: Source
) -> None:
    counts = defaultdict(lambda: np.zeros(4, dtype=np.int64))
    with open_source(str(packed)).opened() as read, source.opened() as original:
        amaxes: dict = {}
        for each in layers:
            own = original[each.key].abs().amax()
            amaxes[each.scale] = max(own, amaxes.get(each.scale, own))
        for each in layers:
            found = theirs.get_submodule(each.module).weight
            decoded = read[each.key].to(found.dtype)
            amax = amaxes[each.scale] if each.format.uses_tensor_amax else None
            measured = fake_quantize(original[each.key], each.format, amax=amax).to(found.dtype)
            counts[each.scheme.label, each.format.name] += [
                1,
                found.numel(),
                int((found != decoded).sum()),
                int((found != measured).sum()),
            ]
    for (scheme, fmt), (linears, numbers, read, measured) in counts.items():
        print(
            f"weights, {scheme} ({fmt}): {linears} linears, {numbers:,} weights; "
            f"{read} differ from our reader, {measured} from fake_quantize"
        )


def compare_outputs(theirs: nn.Module, layers: tuple[Packed, ...], ids: torch.Tensor) -> None:
    seen = defaultdict(list)

    def hook(each: Packed) -> RemovableHandle:
        def compare(
            module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> None:
            x = args[0]
            if each.scheme.inputs:
                amax = each.input_amax
                x = fake_quantize(x, SERVED_RULE[each.scheme.kind], amax=amax)
            own = torch.nn.functional.linear(x, module.weight, module.bias).float()
            moved = (output.float() - own).norm() / own.norm()
            seen[each.scheme.label].append(float(moved))

        return theirs.get_submodule(each.module).register_forward_hook(compare)

    handles = [hook(each) for each in layers]
    theirs(ids[:1])
    for handle in handles:
        handle.remove()
    for scheme, moved in seen.items():
        print(
            f"outputs, {scheme}: {sum(m == 0 for m in moved)} of {len(moved)} equal; relative "
            f"difference median {np.median(moved):.1e}, largest {max(moved):.1e}"
        )


def compare_nll(
    theirs: nn.Module,
    ours: LoadedModel,
    layers: tuple[Packed, ...],
    packed: Path,
    ids: torch.Tensor,
) -> None:
    served = np.array([nll(theirs(row[None]).logits[0], row) for row in ids])
    settings = {
        each.site: Setting(input=Treatment(SERVED_FORMATS[each.scheme.kind]))
        for each in layers
        if each.scheme.inputs
    }
    amax = {each.site: each.input_amax for each in layers if each.input_amax is not None}
    found = {}
    for dtype in ("bfloat16", "float32"):
        loaded = ours if dtype == "bfloat16" else load_model(str(packed), device="cpu", dtype=dtype)
        with Injector(loaded.model, amax).applied(settings):
            found[dtype] = np.array([nll(loaded.logits(row), row) for row in ids])
    for name, difference in [
        ("served less predicted", served - found["bfloat16"]),
        ("BF16 less FP32, ours", found["bfloat16"] - found["float32"]),
    ]:
        mnat = 1e3 * difference
        error = mnat.std(ddof=1) / len(mnat) ** 0.5
        print(f"NLL, {name}: {mnat.mean():+.2f} +- {error:.2f} millinats (standard error)")


def nll(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:]))


SERVED_FORMATS = {kind: Setting.from_json(name).weight.format for kind, name in SERVED_RULE.items()}

if __name__ == "__main__":
    main()
