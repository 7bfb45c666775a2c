"""What keeps the engine from starting, or ends it."""


class ConfigurationError(ValueError):
    """Flags, or versions, that cannot work together, with what to change."""


class EngineDiedError(RuntimeError):
    """The engine's process ended while the server ran."""
