"""`python -m fp4scope` is the command."""

import subprocess
import sys

import fp4scope


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "fp4scope", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert fp4scope.__version__ in done.stdout
