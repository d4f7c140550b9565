"""Watching a model run: statistics of what goes into its linears."""

from fp4scope.observe.activations import InputStatistics, never_run, observe_inputs

__all__ = ["InputStatistics", "never_run", "observe_inputs"]
