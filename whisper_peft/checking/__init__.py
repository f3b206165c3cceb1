"""What is wrong with a data set: kinds of findings, what looks for them, and a cleaned manifest."""
