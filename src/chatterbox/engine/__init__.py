"""Decoding: `request` (what is asked), `scheduler` (for whom), `engine` (steps), `sampler` (one token).

Owns: rows, steps and sampling, for all requests of a model together. Must not import: `text`, `audio`, `voice`,
`checkpoints`, `synthesis`, `cli`.
"""
