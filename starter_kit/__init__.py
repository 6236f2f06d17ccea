"""How the bundled face model and weights were made: reproducible scripts, and the card."""
