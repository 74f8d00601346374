"""Closed-form refit of what stays."""
