"""The two ways in which a run ends because of something a person can mend."""


class UsageError(Exception):
    """BadImages config, flag, path or file. One line: the thing, what is wrong, the remedy. Exit code 2."""


class RunError(Exception):
    """A run that cannot go on (too many undecodable images, say). One line or a list. Exit code 1."""
