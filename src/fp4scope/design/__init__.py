"""From what a study asks to what has to be run: units, recipes, contrasts of them. Pure data."""

from fp4scope.design.asked import design, like_remedied, remedied
from fp4scope.design.contrasts import (
    CAUSES,
    GIVEN,
    MIXED,
    NOTHING,
    REMEDIES,
    ROUTING,
    Contrast,
    Family,
    Unit,
    of_units,
    whole,
)
from fp4scope.design.runs import Design, Run, keys_of
