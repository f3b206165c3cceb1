"""The miniature Whisper and the small Hindi data set that ship with the wheel."""
