"""Exit codes of commands that judge: a build goes on only where the answer is yes.

0 is yes, 1 is no, and 3 is that it cannot be told with so many windows. Bad input and a command
that was stopped or failed have 2, which is no answer.
"""

import sys
from typing import NoReturn

from fp4scope.deploy.bar import Verdict

CODES = {Verdict.MET: 0, Verdict.MISSED: 1, Verdict.UNDECIDED: 3}


def leave(found: Verdict) -> NoReturn:
    """End the command with the code of a verdict."""
    sys.exit(CODES[found])
