class InputError(ValueError):
    """An `InputError` is raised where what the user gave cannot be used.

    Its text is one sentence with the name, the rule and the remedy.

    The command `unet` prints it and ends with status 2; anything else it lets through is a bug.
    """
