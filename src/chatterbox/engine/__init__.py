"""Drawing speech tokens: `requests` (what is asked), `sampling` (logits to tokens), `decode` (the engine)."""
