"""What requests share: prefixes that T3 has computed, in a radix tree, on the device, in host memory and on disk.

Owns: the tree, its tiers and budgets, who leaves first, what it did. Must not import: `models`, `engine`, `text`.
"""
