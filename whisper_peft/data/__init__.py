"""Speech in, batches out: sources, sound, text, features, and the clips of each step."""
