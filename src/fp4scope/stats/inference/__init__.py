"""Numbers in, numbers out: intervals, tests, ranks and decisions over windows."""
