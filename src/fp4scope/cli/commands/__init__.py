"""The commands, by what one has and what one wants. Heavy modules are imported inside them."""
