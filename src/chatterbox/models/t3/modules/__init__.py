"""Parts of T3, under upstream's import paths."""
