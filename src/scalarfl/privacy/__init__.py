"""Differential privacy for scalars: exact noise, the mechanism, the accountant, and a client's budget."""
