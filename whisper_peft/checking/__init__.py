"""Checks of a data set: the kinds of findings, the code that looks for them, and the cleaned manifest."""
