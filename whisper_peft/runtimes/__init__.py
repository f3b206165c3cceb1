"""Exported models, and the programs that run them: one module a runtime, all with the same two methods."""
