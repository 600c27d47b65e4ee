"""The forest, and what tells which features belong together: their pairs, and directions of concepts."""
