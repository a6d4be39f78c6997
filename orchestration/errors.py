"""Errors a person can act on."""


class UserError(Exception):
    """Bad input or a refusal: one sentence with what, why and what to do. The command exits with 2."""


class CheckFailed(Exception):
    """A check did not hold or differences were found. The command exits with 1."""
