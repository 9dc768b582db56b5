"""What a person sees of a run: progress, scores, curves, pictures, the page."""
