"""The command line: parse, call the library, print, exit. Only here `print` and `sys.exit`."""

from fp4scope.cli.app import main
