"""The shared pieces of our HTML pages: text, templates, charts and the player.

A page is one file. Nothing is loaded from elsewhere, no script runs, and the page's policy forbids both. What comes
from data (file names, transcripts) goes through `text`, and stays text whatever it holds.
"""
