"""Export checkpoints to the formats of other inference engines (`python -m flap export`)."""
