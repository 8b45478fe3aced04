"""The published networks: one package per checkpoint file or part of one.

Owns: layers, their names and sizes, tokenizers. A request's state is passed in. Must not import: `engine`, `voice`,
`checkpoints`, `synthesis`, `cli`; but for `T3.inference`, which imports `engine` when it is called.
"""
