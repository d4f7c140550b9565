"""Why a study's numbers can be relied on, and how far, in sentences."""

from collections.abc import Iterator

from fp4scope.report.findings import Findings
from fp4scope.report.labels import so_many_windows
from fp4scope.report.numbers import number, spread
from fp4scope.report.selection import swept
from fp4scope.report.stopping import windows_measured
from fp4scope.stats import MIN_WINDOWS


def trust(found: Findings) -> Iterator[str]:
    """How much was measured, what rounding alone does, and whether the sweep is the model."""
    results = found.results
    windows = windows_measured(results)
    tokens = next((row["tokens"] for row in found.all_quantized), 0)
    intervals = "with 95% intervals" if windows >= MIN_WINDOWS else "too few for intervals"
    yield (
        f"{so_many_windows([windows])}, {tokens:,} tokens, {intervals}. Every difference is taken "
        "window by window."
    )
    for row in swept(found)[:1]:
        if row["noise_nll"] is not None and row["delta_nll"] is not None:
            yield (
                f"Rounding alone moves {row['format']} {row['precision']} by "
                f"{spread(1e3 * row['noise_nll'])} millinats from run to run, of "
                f"{number(1e3 * row['delta_nll'])} that it costs."
            )
    check = results.protocol.get("self_check")
    if check and not check.get("reason"):
        apart = check["difference"]
        yield "Run block by block, the full-precision model " + (
            f"differs from its own forward by {apart:.1e} of its logits; rounding explains "
            f"{check['allowed']:.1e}."
            if apart
            else "gives the logits of its own forward, bit for bit."
        )
