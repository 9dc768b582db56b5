class InputError(ValueError):
    """What the user gave cannot be used: one sentence with the name, the rule and the remedy.

    The command `unet` prints it and ends with status 2; anything else it lets through is a bug.
    """
