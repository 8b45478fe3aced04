"""Routes of other servers for Chatterbox, so that their clients go on with another address. docs/serving.md.

Owns: their paths and the names of their fields, a module for each. Does not know: how speech is made, how voices are
kept: all that is asked for goes the way of `/v1/audio/speech` and `/v1/audio/voices`.
"""
