"""The published models: one package per checkpoint file or part of one."""
