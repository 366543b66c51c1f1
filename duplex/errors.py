"""The error an edge raises for the person at the keyboard."""


class UserError(Exception):
    """Bad input: one sentence with what was given, what is allowed and what to do. The CLI exits with 2."""
