"""What other libraries ask of this one, in their terms.

Owns: adapters to their interfaces. Nothing else of the package imports it. Must not import: `cli`.
"""
