"""Worker processes: their life, the channels to them, and what travels there."""
