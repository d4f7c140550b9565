"""The colours of figures, which are those of the page, on a light or a dark ground."""

from dataclasses import dataclass
from typing import Any

from matplotlib.colors import Colormap, LinearSegmentedColormap


@dataclass(frozen=True)
class Theme:
    """Colours by what they stand for, as the page's style sheet has them.

    Attributes:
        name: Of the ground.
        paper: The ground itself, which only images without transparency have.
        ink: Text.
        soft: Text beside it, and axes.
        line: Grids.
        zero: Of a map, where nothing is significant.
        hot: Of a map, where quantizing costs.
        cold: Of a map, where quantizing lowers the loss.
        series: One for each format.
    """

    name: str
    paper: str
    ink: str
    soft: str
    line: str
    zero: str
    hot: str
    cold: str
    series: tuple[str, ...]

    def of(self, place: int) -> str:
        """The colour of the series at a place."""
        return self.series[place % len(self.series)]

    @property
    def map(self) -> Colormap:
        """From `cold` through `zero` to `hot`; what has no value is as `zero`."""
        found = LinearSegmentedColormap.from_list("fp4scope", [self.cold, self.zero, self.hot])
        return found.with_extremes(bad=self.zero)

    @property
    def style(self) -> dict[Any, Any]:
        """Settings of matplotlib under which a figure is drawn and saved."""
        return {
            "svg.hashsalt": "fp4scope",
            "svg.fonttype": "none",
            "pdf.fonttype": 42,
            "font.family": ["sans-serif"],
            "font.sans-serif": ["Arial", "Liberation Sans", "Helvetica", "DejaVu Sans"],
            "font.size": 9,
            "text.color": self.ink,
            "text.parse_math": False,
            "axes.edgecolor": self.soft,
            "axes.labelcolor": self.soft,
            "axes.facecolor": "none",
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "grid.color": self.line,
            "grid.linewidth": 0.7,
            "xtick.color": self.soft,
            "ytick.color": self.soft,
            "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink,
            "figure.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "legend.frameon": False,
        }


LIGHT = Theme(
    "light", "#ffffff", "#1b2027", "#57606b", "#d5dbe2", "#f0f1f3", "#b93a12", "#1d63ad",
    ("#0072b2", "#c14a00", "#007d58", "#a8407c", "#7d6400", "#454c55"),
)  # fmt: skip
DARK = Theme(
    "dark", "#10151b", "#e5e9ee", "#a1acb8", "#303a45", "#252e38", "#ff8552", "#58aaff",
    ("#56b4e9", "#ff9a4d", "#3ecb9c", "#ea92c6", "#dcc557", "#c2cad3"),
)  # fmt: skip
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}
