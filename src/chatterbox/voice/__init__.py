"""Who speaks: what the models need of a recording, made once and kept.

Owns: `Conditionals`, how they are made, and which are in memory. Must not import: the engine, synthesis, the command
line.
"""
