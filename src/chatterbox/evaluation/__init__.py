"""How well speech came out, measured on its samples.

Owns: measures and their reports. Must not import: `models`, `engine`, `synthesis`, `cli`.
"""
