"""The `vabal` command."""
