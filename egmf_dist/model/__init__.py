"""EGMF: encoders, three experts, hierarchical gate, pseudo tokens, and the LLM with its adapter."""
