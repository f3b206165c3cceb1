"""Exports: one module a format that writes it, and the proof that its runtime says what transformers says."""
