"""One self-contained page to try the models."""
