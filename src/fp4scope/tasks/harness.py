"""lm-eval drives a model whose operands are treated as recipes say.

Its own model class makes the batches and the answers, its tasks the prompts and the scores. What is
quantized is put into the model around all of that.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fp4scope.errors import StudyError, shown
from fp4scope.ledger import Documents, TaskResults
from fp4scope.models import LoadedModel
from fp4scope.operands import Injector
from fp4scope.recipes import Recipe
from fp4scope.sweep import Listener, Progress, entering, perturbation, perturbed
from fp4scope.tasks.opening import Wish, silent

_FEWSHOT_SEED = 1234
"""lm-eval's own default."""


class Harness:
    """Scores a model on tasks, however its operands are treated meanwhile.

    Args:
        loaded: The model.
        tasks: Of lm-eval, by name.
        wish: What is asked.
        injector: Of the same model.
        seed: Of answers that are sampled, and of perturbations.

    Raises:
        StudyError: It is to be asked through a chat template that it lacks.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        tasks: Mapping[str, Any],
        wish: Wish,
        injector: Injector,
        seed: int,
    ) -> None:
        if wish.chat and not getattr(loaded.tokenizer, "chat_template", None):
            raise StudyError(f"{loaded.name} has no chat template; leave out --chat")
        self._loaded, self._tasks, self._wish = loaded, tasks, wish
        self._injector, self._seed = injector, seed
        self._ticked: Callable[[int], None] = lambda requests: None
        with silent():
            self._model = _model_class(lambda requests: self._ticked(requests))(
                pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=wish.batch_size
            )

    def score(
        self, results: TaskResults, recipes: Mapping[str, Recipe], tell: Listener
    ) -> Iterator[None]:
        """Score recipes on all tasks; stops after each, when `results` has it.

        Args:
            results: Where scores go; what is there is not measured again.
            recipes: By name.
            tell: Hears how the work goes on.

        Raises:
            StudyError: A task gives no document a score between 0 and 1.
            NonFiniteError: NaN or Inf in a quantized operand.
        """
        replicas = range(self._wish.replicas + 1)
        jobs = [
            (name, replica, task)
            for name, replica, task in product(recipes, replicas, self._tasks)
            if (task, name, replica) not in results.scores
        ]
        for done, (name, replica, task) in enumerate(jobs):
            said = f"{task}, {name}{', perturbed' if replica else ''}"
            self._ticked = _Counter(tell, done, len(jobs), said)
            self._ticked(0)
            results.add(task, name, replica, self._scored(task, recipes[name], replica))
            yield
        tell(Progress("scoring", len(jobs), len(jobs), f"{len(jobs)} runs of tasks"))

    def _scored(self, name: str, recipe: Recipe, replica: int) -> Documents:
        settings = dict(recipe.in_block(self._loaded.layout.sites.everywhere))
        needed = {(site, setting.weight) for site, setting in settings.items()}
        self._injector.forget(self._injector.held - needed)
        with self._injector.applied(settings), self._jittered(replica):
            return self._run(name)

    def _run(self, name: str) -> Documents:
        from lm_eval.evaluator import evaluate

        task = self._tasks[name]
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        random.seed(self._seed)
        torch.manual_seed(self._seed)
        with silent():
            results: Any = evaluate(
                self._model,
                {"tasks": {name: task}, "groups": {}, "group_map": {}},
                limit=self._wish.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self._wish.chat,
                confirm_run_unsafe_code=self._wish.run_code,
            )
        return documents(name, task, results["samples"][name], self._wish.problem)

    def _jittered(self, replica: int) -> AbstractContextManager[None]:
        """Perturb what enters every block in every forward."""
        if not replica:
            return nullcontext()
        forwards = 0

        def move(block: int, hidden: Tensor) -> Tensor:
            nonlocal forwards
            forwards += block == 0
            key = {"replica": replica, "window": forwards, "block": block}
            device = hidden.device
            steps = perturbation(hidden.shape, seed=self._seed, device=device, **key)
            return perturbed(hidden, steps)

        return entering(self._loaded, move)


class _Counter:
    """Tells how far one task has come.

    Args:
        tell: Hears it.
        done: Tasks before it.
        total: All tasks.
        said: Which it is.
    """

    def __init__(self, tell: Listener, done: int, total: int, said: str) -> None:
        self._tell, self._done, self._total, self._said = tell, done, total, said
        self._requests = 0

    def __call__(self, requests: int) -> None:
        self._requests += requests
        detail = f"{self._said}: {self._requests} requests"
        self._tell(Progress("scoring", self._done, self._total, detail))


def _model_class(ticked: Callable[[int], None]) -> Callable[..., Any]:
    """lm-eval's model class, without its bars, that tells how it goes on."""
    from lm_eval.models import huggingface

    base: Any = huggingface.HFLM

    class Model(base):
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:  # noqa: ANN401
            return super().loglikelihood(requests, True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:  # noqa: ANN401
            return super().generate_until(requests, True)

        def _model_call(self, inps: Any, *rest: Any, **more: Any) -> Any:  # noqa: ANN401
            found = super()._model_call(inps, *rest, **more)
            ticked(len(inps))
            return found

        def _model_generate(self, context: Any, *rest: Any, **more: Any) -> Any:  # noqa: ANN401
            found = super()._model_generate(context, *rest, **more)
            ticked(len(context))
            return found

    return Model


def documents(
    name: str,
    task: Any,  # noqa: ANN401
    samples: Sequence[Mapping[str, Any]],
    problem: str | None,
) -> Documents:
    """What lm-eval has logged of a task's documents, as far as it can be compared.

    Args:
        name: The task's.
        task: It.
        samples: What was logged: a sample for each document and filter.
        problem: A field of documents; those that have it in common are one problem.

    Raises:
        StudyError: No score lies between 0 and 1, or documents lack that field.
    """
    better = task.higher_is_better()
    scores: dict[str, dict[int, float]] = {}
    prompts: dict[int, str] = {}
    problems: dict[int, str] = {}
    for sample in samples:
        number = sample["doc_id"]
        # What is asked and what is right: both may change in a file.
        whole = "".join(sample[f"{part}_hash"] for part in ("prompt", "doc", "target"))
        prompts[number] = sha256(whole.encode()).hexdigest()
        problems[number] = sample["prompt_hash"]
        if problem is not None:
            if problem not in sample["doc"]:
                raise StudyError(
                    f"documents of the task {shown(name)} have no field {shown(problem)}; they "
                    f"have {', '.join(map(str, sample['doc']))}"
                )
            problems[number] = str(sample["doc"][problem])
        for metric in sample["metrics"]:
            value = sample[metric]
            fits = isinstance(value, bool | int | float) and 0 <= value <= 1
            if fits and better.get(metric, True):
                own = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                scores.setdefault(own, {})[number] = float(value)
    numbers = sorted(prompts)
    known = {
        metric: [found[n] for n in numbers]
        for metric, found in scores.items()
        if len(found) == len(numbers)
    }
    if not known:
        raise StudyError(
            f"the task {shown(name)} gives no document a score between 0 and 1 where more is "
            "better, so nothing is compared; leave it out"
        )
    places = {own: i for i, own in enumerate(dict.fromkeys(problems[n] for n in numbers))}
    return Documents(
        prompts=[prompts[n][:16] for n in numbers],
        problems=[places[problems[n]] for n in numbers],
        scores=known,
    )
