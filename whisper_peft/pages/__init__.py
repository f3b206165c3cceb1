"""The shared pieces of our HTML pages: templates, text, charts, the player and the frame."""
