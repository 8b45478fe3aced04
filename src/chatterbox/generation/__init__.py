"""Drawing speech tokens: `sampling` (logits to probabilities) and `decode` (prefill, step, loop)."""
