"""Decoding: `request` (what is asked), `scheduler` (for whom), `engine` (steps), `sampler` (one token)."""
