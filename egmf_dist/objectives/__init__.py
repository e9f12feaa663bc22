"""What training minimises: the protocol (``base``), the loss of the right answers (``answers``), and what a number's
distance from the truth costs (``numbers``)."""
