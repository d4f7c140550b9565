"""The tables of one study, each computed when first asked for. Nothing here is rendered."""

from functools import cached_property

from fp4scope import stats
from fp4scope.deploy.bar import Bar, parse_bar, with_companions
from fp4scope.deploy.decide import Decision
from fp4scope.deploy.found import decider
from fp4scope.deploy.palette import engine_of
from fp4scope.deploy.remedies import remedies_served
from fp4scope.errors import StudyError
from fp4scope.ledger import Results, TaskResults
from fp4scope.stats import Whole
from fp4scope.table import Table


class Findings:
    """What a study found, as `Table`s: all that a report is made from."""

    def __init__(self, results: Results) -> None:
        self.results = results

    @cached_property
    def scored(self) -> TaskResults | None:
        """What recipes score on tasks, if that is known."""
        return None

    @cached_property
    def tasks(self) -> Table:
        """What recipes lose on tasks."""
        return stats.task_table(self.scored)

    @cached_property
    def all_quantized(self) -> Table:
        """The full-precision and every all-quantized model."""
        return stats.all_quantized_table(self.results)

    @cached_property
    def divergence(self) -> Table:
        """KL of every whole model over tokens: mean, 99%, maximum; and same top token."""
        return stats.divergence_table(self.results)

    @cached_property
    def tokens(self) -> Table:
        """What whole models cost by position, class, frequency and confidence of the targets."""
        return stats.token_table(self.results)

    @cached_property
    def positions(self) -> Table:
        """How what whole models cost changes along the window."""
        return stats.position_table(self.results)

    @cached_property
    def noise_shares(self) -> Table:
        """How much of the variance of all-quantized models and kept units is run-to-run noise."""
        return stats.noise_shares(self.results)

    @cached_property
    def formats(self) -> Table:
        """Whole-model costs of formats against each other."""
        return stats.format_table(self.results)

    @cached_property
    def operands(self) -> Table:
        """What quantizing weights and activations costs more than only one of them."""
        return stats.operand_table(self.results)

    @cached_property
    def projections(self) -> Table:
        return stats.unit_table(self.results, "projections")

    @cached_property
    def blocks(self) -> Table:
        return stats.unit_table(self.results, "blocks")

    @cached_property
    def layers(self) -> Table:
        return stats.unit_table(self.results, "layers")

    @cached_property
    def patterns(self) -> Table:
        return stats.unit_table(self.results, "patterns")

    @cached_property
    def experts(self) -> Table:
        return stats.unit_table(self.results, "experts")

    @cached_property
    def split(self) -> Table:
        """What weights and inputs cost, alone and together."""
        return stats.split_table(self.results)

    @cached_property
    def gains(self) -> Table:
        """Each unit against noise of the same energy, and how much noise behind it costs."""
        return stats.gain_table(self.results)

    @cached_property
    def errors(self) -> Table:
        """The error of every operand of every layer, taken apart."""
        return stats.error_table(self.results)

    @cached_property
    def predictors(self) -> Table:
        """How well statistics, errors and gains order what units cost."""
        return stats.predictor_table(self.results)

    @cached_property
    def interactions(self) -> Table:
        """Where effects do not add: what keeping each unit saves, less what it costs alone."""
        return stats.interaction_table(self.results)

    @cached_property
    def additivity(self) -> Table:
        """How far that goes in each level and format, and whether one direction tells the other."""
        return stats.additivity_table(self.results)

    @cached_property
    def lowering(self) -> Table:
        """Layers whose quantization lowers the loss: how many, and what KL says of them."""
        return stats.lowering_table(self.results)

    @cached_property
    def remedies(self) -> Table:
        """What else was done to the most costly units, what it saves, and who serves it."""
        return remedies_served(self.results)

    @cached_property
    def given(self) -> Table:
        """Recipes that were measured as wholes: what each costs and stores."""
        return stats.given_table(self.results)

    @cached_property
    def exceptions(self) -> Table:
        """Exceptions of recipes: what each saves and stores more, and whether it pays."""
        return stats.exception_table(self.results)

    @cached_property
    def wholes(self) -> list[Whole]:
        """Every whole model that was measured, with what it costs and stores."""
        found = stats.wholes(self.results)
        if self.scored is not None and self._scaled_alike(self.scored):
            for whole in found:
                whole.costs.update(stats.task_costs(self.scored, whole.recipe))
        return found

    def _scaled_alike(self, scored: TaskResults) -> bool:
        """Whether weights had the same tensor scales in both."""
        return scored.identity.get("scales") == self.results.study["numerics"].get("scales")

    @cached_property
    def bars(self) -> list[Bar]:
        """What the study was to meet, with the bars that come with these."""
        return with_companions(map(parse_bar, self.results.protocol.get("accept") or ()))

    @cached_property
    def front(self) -> list[Decision]:
        """Recipes by size, each of least predicted KL, as `fp4scope recipe` chooses them.

        None where effects of units are unknown, or no engine loads what was measured.
        """
        try:
            return decider(self.results, engine=engine_of(None, None)).front()
        except StudyError:
            return []

    @cached_property
    def savings(self) -> Table:
        """What keeping each unit that engines have saves, beside what it stores more."""
        return stats.saving_table(self.results)

    @cached_property
    def effects(self) -> Table:
        """What quantizing each group costs in a designed sweep."""
        return stats.effect_table(self.results)

    @cached_property
    def effect_sums(self) -> Table:
        """What these sum to, beside what whole models cost."""
        return stats.sum_table(self.results)

    @cached_property
    def effect_pairs(self) -> Table:
        """Pairs of groups that interact significantly."""
        return stats.pair_table(self.results)

    @cached_property
    def routing(self) -> Table:
        """What every recipe leaves of the full-precision model's routing."""
        return stats.routing_table(self.results)

    @cached_property
    def routers(self) -> Table:
        """The same of whole models, router by router."""
        return stats.router_table(self.results)

    @cached_property
    def replay(self) -> Table:
        """How much of the damage of whole models and of experts alone is routing."""
        return stats.replay_table(self.results)

    @cached_property
    def experts_seen(self) -> Table:
        """How many tokens of the calibration text experts saw: a row for each block."""
        return stats.seen_table(self.results.activations)

    @cached_property
    def agreement(self) -> Table:
        """How the gradient ranks units, against the exact sweep: a row for each family of both."""
        return stats.agreement_table(self.results)

    @cached_property
    def activations(self) -> Table:
        """Input statistics of every layer, measured on the calibration text."""
        return stats.activation_table(self.results.activations)

    @cached_property
    def projection_activations(self) -> Table:
        """The same by projection, as in table 1 of the paper."""
        return stats.projection_activation_table(self.results.activations)
