class InputError(ValueError):
    """
    Bad input from the user. The message is one line that names the argument, the value received and the way out; the
    command line prints it and exits with code 2.
    """
