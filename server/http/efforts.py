"""Efforts, as OpenAI's protocols name them: the mode that each implies, and the thinking tokens that an operator gives it."""

from collections.abc import Mapping

from router.policy import Mode

MODE_OF: Mapping[str, Mode] = {
    "none": Mode.DIRECT, "minimal": Mode.LATENT, "low": Mode.LATENT, "medium": Mode.AUTO,
    "high": Mode.EXPLICIT, "xhigh": Mode.EXPLICIT, "max": Mode.EXPLICIT,
}  # fmt: skip


def parse_budgets(text: str | None) -> dict[str, int]:
    """Thinking tokens by effort, from `low=256,medium=1024`. Raises `ValueError`."""
    budgets = dict[str, int]()
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        effort, _, tokens = part.partition("=")
        if effort not in MODE_OF or MODE_OF[effort] is Mode.DIRECT or effort in budgets:
            thinking = ", ".join(name for name, mode in MODE_OF.items() if mode is not Mode.DIRECT)
            raise ValueError(f"must name each effort at most once, of {thinking}, such as low=256,medium=1024")
        if not (tokens.isascii() and tokens.isdecimal() and 0 < int(tokens) < 2**31):
            raise ValueError(f"must give {effort} a number of tokens above 0, such as {effort}=256")
        budgets[effort] = int(tokens)
    return budgets
