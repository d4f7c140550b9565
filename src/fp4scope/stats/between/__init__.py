"""What several results say together: changes, orders, model size."""
