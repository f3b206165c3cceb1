"""From speech to figures: transcribing, normalising text for scoring, error rates and reports."""
