"""Model: the Whisper that is trained."""
