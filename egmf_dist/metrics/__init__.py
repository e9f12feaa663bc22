"""What is computed of predictions, task by task, and what a run is selected by."""
