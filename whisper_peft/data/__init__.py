"""Speech in, batches out: sources, audio, text, features and what a step is made of."""
