"""What goes wrong in an offline stage, as one sentence for whoever started it."""


class StageError(RuntimeError):
    """A stage that cannot go on: its message says what was wrong and what to do."""
