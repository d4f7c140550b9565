"""What one study found: its tables, its noise, and the paper's hypotheses."""
