r"""Log-probabilities of every token of some windows, as vLLM serves them: a served file.

    fp4scope verify CHECKPOINT --ids ids.json --text wikitext.txt
    python benchmarks/engine/served.py CHECKPOINT ids.json served.json --linear-backend marlin
    fp4scope verify CHECKPOINT --served served.json

Only vLLM is needed. Prompts are token ids, so no tokenizer is loaded; prefix caching is off, so
that every window is computed whole. `--linear-backend emulation` runs 4-bit inputs where the GPU
has no 4-bit arithmetic. The original model is served in the same way for `verify --reference`.
`--top N` keeps the N likeliest tokens of each place, from which `verify --original` bounds KL.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("ids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--linear-backend", help="vLLM chooses one by default")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--top", type=int, default=0, help="Likeliest tokens that are kept")
    parser.add_argument("--memory", type=float, default=0.5, help="Share of the GPU's memory")
    options = parser.parse_args()
    windows: list[list[int]] = json.loads(options.ids.read_text())

    import vllm

    chosen = {"linear_backend": options.linear_backend} if options.linear_backend else {}
    engine = vllm.LLM(
        model=options.checkpoint,
        dtype=options.dtype,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        enforce_eager=True,
        max_model_len=max(map(len, windows)) + 1,
        gpu_memory_utilization=options.memory,
        **chosen,
    )
    asked = vllm.SamplingParams(
        temperature=0, max_tokens=1, prompt_logprobs=options.top, detokenize=False
    )
    answers = engine.generate([{"prompt_token_ids": window} for window in windows], asked)
    content = {
        "version": 1,
        "engine": f"vllm {vllm.__version__}, {options.linear_backend or 'its own backend'}",
        "checkpoint": options.checkpoint,
        "ids": windows,
        "logprobs": [
            _of_prompt(window, answer.prompt_logprobs)
            for window, answer in zip(windows, answers, strict=True)
        ],
    }
    if options.top:
        best = [_likeliest(answer.prompt_logprobs, options.top) for answer in answers]
        content["top_ids"] = [[[token for token, _ in tops] for tops in row] for row in best]
        content["top_logprobs"] = [[[value for _, value in tops] for tops in row] for row in best]
    options.out.write_text(json.dumps(content))
    every = [value for row in content["logprobs"] for value in row]
    print(f"{len(windows)} windows, mean loss {-sum(every) / len(every):.4f} nats per token")


def _of_prompt(window: list[int], found: list[dict[int, Any] | None]) -> list[float]:
    """Of the tokens after the first: an entry has its own token, and others if they were asked."""
    pairs = zip(window[1:], found[1:], strict=True)
    return [float(entry[token].logprob) for token, entry in pairs if entry is not None]


def _likeliest(found: list[dict[int, Any] | None], most: int) -> list[list[tuple[int, float]]]:
    """Of each place after the first so many tokens, the likeliest first."""
    places = [{token: float(e.logprob) for token, e in each.items()} for each in found[1:] if each]
    return [sorted(each.items(), key=lambda item: -item[1])[:most] for each in places]


if __name__ == "__main__":
    main()
