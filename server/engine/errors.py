"""What keeps the engine from starting."""


class ConfigurationError(ValueError):
    """Flags, or versions, that cannot work together, with what to change."""
