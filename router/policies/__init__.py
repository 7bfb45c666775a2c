"""One policy a file; `named` makes them from their names."""
