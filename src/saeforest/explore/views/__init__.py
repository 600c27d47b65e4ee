"""Cards in the terminal and in notebooks."""
