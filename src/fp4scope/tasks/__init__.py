"""Tasks that users feel: lm-eval drives the model, and recipes are put into it."""

from fp4scope.tasks.harness import Harness
from fp4scope.tasks.opening import Wish, open_tasks
from fp4scope.tasks.recipes import FULL, Asked, parse_recipes
from fp4scope.tasks.sandbox import cuts_network
