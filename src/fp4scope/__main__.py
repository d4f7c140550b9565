"""`python -m fp4scope` is the command `fp4scope`."""

from fp4scope.cli import main

if __name__ == "__main__":
    main()
