"""What a person, a judge or the tokens themselves say about features and edges."""
