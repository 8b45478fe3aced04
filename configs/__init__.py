"""YAML choices for Hydra. Null stands for the default of the dataclass in `chatterbox.config` that a file mirrors."""
