"""Export checkpoints to the formats of inference engines (`python -m flap export`)."""
