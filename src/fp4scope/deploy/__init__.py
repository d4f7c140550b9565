"""From findings to what is served: recipes chosen, written, read, linted and verified."""
