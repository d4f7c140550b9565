"""Watching a model run: statistics of what goes into its linears."""

from fp4scope.observe.activations import InputStatistics, observe_inputs

__all__ = ["InputStatistics", "observe_inputs"]
