"""Three commands: `flap doctor`, `flap reproduce` and `flap study`."""
