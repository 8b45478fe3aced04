"""A text in a voice to audio: the main path.

Owns: requests, utterances, chunks and their order. Must not import: `checkpoints`, `integrations`, `cli`.
"""
