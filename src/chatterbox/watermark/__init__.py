"""The inaudible watermark of the published models, on audio in one piece or in pieces.

Owns: marking and reading. Must not import: `engine`, `synthesis`, `cli`.
"""
