"""What training minimises: the protocol (``base``) and the loss of the right answers (``answers``)."""
