"""Speech over HTTP, as OpenAI's clients ask for it (extra `serve`). docs/serving.md.

Owns: what a server may be told, models by name, what a request means, who may call, answers while they are made.
Must not import: `cli`, `integrations`.
"""
