"""Reading everything to say what is there and what is wrong."""
