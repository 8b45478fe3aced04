"""Recordings in: read, resampled, made as loud as wanted.

Owns: what every model that hears a recording needs. Must not import: `models`, `engine`, `voice`, `synthesis`, `cli`.
"""
