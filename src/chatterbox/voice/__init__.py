"""Who speaks: what the models need of a recording, made once and kept.

Owns: `Conditionals`, how they are made, which are in memory, which have a name. Must not import: `engine`,
`synthesis`, `cli`.
"""
