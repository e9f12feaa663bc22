"""What is asked and how answers are judged: prompts in each language, answer prefix trees, metrics."""
