"""What a training costs before it is paid for: memory, messages and time on machines that need not be here."""
