"""The study: what a user asks, in sections, parsed once. Pure Python."""

from fp4scope.study.files import in_sections, is_run, read_options
from fp4scope.study.given import Given
from fp4scope.study.goals import BestGoal, Goal, TimeGoal, WidthGoal
from fp4scope.study.places import Place
from fp4scope.study.sections import Data
from fp4scope.study.study import PLACES, PRESETS, SECTIONS, Study, flatten
from fp4scope.study.values import Swept, parse_memory
from fp4scope.study.words import (
    ActivationScale,
    Causes,
    Choice,
    Dataset,
    Direction,
    Dtype,
    Experts,
    Level,
    Method,
    More,
    Offload,
    Operands,
    Parts,
    Scales,
    Switch,
)
