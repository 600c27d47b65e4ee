"""The forest, and statistics by which parents and children are found: pairs of features, directions of concepts."""
