"""A conversation, and one turn of it."""
