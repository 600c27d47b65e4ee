"""Questions to an index, answered by cards: plain data that the terminal, notebooks and figures show."""
