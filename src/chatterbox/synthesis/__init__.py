"""A text in a voice to audio: the main path."""
