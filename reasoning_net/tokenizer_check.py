"""Do a base's text and token ids say the same, wherever we go from one to the other?

    latentserve check --tokenizer --model runs/base

After 2601.14658, where several sequences of ids are the same text, and a model takes one for an edit of another. Here layouts
are put together from pieces, chains are kept as text, and dropped tokens are written as text: each is right only if encoding
gives back the ids that were meant. Its probe of a model (words that are to be replaced, and phantom edits) is not here.
"""

import itertools
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reasoning_net.bundle import Bundle, checkpoint_directory
from reasoning_net.demo import DEMO_MODEL
from reasoning_net.errors import StageError
from reasoning_net.layout import Layout, check_chat_template, default_layout
from reasoning_net.lens import whole_numbers
from reasoning_net.options import Model, Questions, Seed
from reasoning_net.tables import table
from reasoning_net.tasks import Example, TaskSpec

_DROPPED = 0.3
_SAID = 100  # numbers below it are what hints and explanations are about
_NUMBERS = range(1000)
_TEXT = "A price: 12  x 3 = 36.\n\n\tSo it 's 36, isn't it ? [PAD] “Naïve” – 数 🙂 .\n"
"""What tokenizers that tidy up, or normalise, change."""
_CHAIN, _REPLY = "12 x 3 = 36.", "It is 36."


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    model: Model = str(DEMO_MODEL)
    bundle: Path | None = None
    """Whose layout is checked; that of the base by default."""
    task: Annotated[TaskSpec, Questions] = field(default_factory=TaskSpec)
    n: PositiveInt = 300
    """Questions, chains and replies."""
    output: Path | None = None
    """Directory of tokenizer.json and tokenizer.md."""
    seed: Seed = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried, and how often text or ids came back as others."""

    name: str
    tried: int
    differ: int
    found: str = ""
    wrong: str = ""
    """Which feature of ours would be wrong; empty where none is."""


def main(config: TokenizerConfig) -> str:
    """Writes `tokenizer.json` and `tokenizer.md` where there is an output; returns the table."""
    tokenizer = load_tokenizer(config.model)
    if config.bundle:
        bundle = Bundle.load(config.bundle)
        bundle.check_base(config.model)
        layout = bundle.manifest.layout
    else:
        config_file = checkpoint_directory(config.model) / "config.json"
        config_ = json.loads(config_file.read_text())
        layout = default_layout(tokenizer, (config_.get("text_config", {}) | config_)["vocab_size"])
    examples = list(itertools.islice(config.task.load().examples(config.seed, "test"), config.n))
    checks = run(tokenizer, layout, examples, random.Random(config.seed))
    text = markdown(checks)
    if config.output:
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "tokenizer.json").write_text(json.dumps([asdict(check) for check in checks], indent=2) + "\n")
        (config.output / "tokenizer.md").write_text(text + "\n")
    return text


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Raises `StageError` where there is none."""
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise StageError(f"The tokenizer of {model} cannot be loaded: {error}") from error


def run(tokenizer: PreTrainedTokenizerBase, layout: Layout, examples: Sequence[Example], rng: random.Random) -> list[Check]:
    """Every check, on all tokens and on these examples."""
    chains = [example.chain for example in examples if example.chain]
    texts = [*chains, *(example.reply for example in examples if example.reply)]
    return [
        single_tokens(tokenizer),
        same_text(tokenizer, texts),
        *joints(tokenizer, layout, examples),
        *([dropped(tokenizer, chains, rng)] if chains else []),
        *numbers(tokenizer),
    ]


def warning(tokenizer: PreTrainedTokenizerBase, layout: Layout, *, has_latents: bool) -> str | None:
    """What is wrong with serving this base, in one sentence; None where nothing is.

    It looks at a handful of texts, and raises nothing: a server starts with a base that cannot be checked, too.
    """
    try:
        example = Example([{"role": "user", "content": _TEXT}], _REPLY, "", 0, "", chain=_CHAIN)
        checks = [same_text(tokenizer, [_TEXT]), *joints(tokenizer, layout, [example])[: 2 if has_latents else 1]]
        if has_latents:
            checks += numbers(tokenizer, range(_SAID))
    except Exception as error:  # whatever a template or a tokenizer of others raises
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        return f"The tokenizer could not be checked ({reason}). `latentserve check --tokenizer` tries all of it."
    wrong = list(dict.fromkeys(check.wrong for check in checks if check.wrong))
    return f"The tokenizer is at odds with {'; '.join(wrong)}. See `latentserve check --tokenizer`." if wrong else None


def single_tokens(tokenizer: PreTrainedTokenizerBase) -> Check:
    """Tokens that are others, or several, once they are text. Bytes that are parts of characters are no text of their own."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    parts = sum("\ufffd" in text for text in texts)
    whole = [(token, text) for token, text in enumerate(texts) if text and "\ufffd" not in text]
    differ = [text for token, text in whole if _encode(tokenizer, text) != [token]]
    found = f"{parts} are parts of characters" + (f"; such as {differ[0]!r}" if differ else "")
    return Check("each token: decoded, encoded", len(whole), len(differ), found)


def same_text(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Check:
    """Chains and replies that are other texts after they were ids."""
    known = list(texts)
    differ = [text for text in known if tokenizer.decode(_encode(tokenizer, text)) != text]
    wrong = "texts that are read again: traces, SFT, explanations, shadows" if differ else ""
    return Check("chains and replies: encoded, decoded", len(known), len(differ), _quoted(differ), wrong)


def joints(tokenizer: PreTrainedTokenizerBase, layout: Layout, examples: Sequence[Example]) -> list[Check]:
    """Where pieces that are encoded one by one meet: their ids beside those of the joined text, which bases are trained on.

    A reply may differ: it is written, or learnt, after these very ids. (The demo's base was trained on pieces.)
    """
    check_chat_template(tokenizer)
    asked = [
        str(tokenizer.apply_chat_template(example.messages, add_generation_prompt=True, tokenize=False)) for example in examples
    ]
    before, after, ids = layout.before_latents, layout.after_latents, layout.token_ids(tokenizer)
    thought = [(e.chain, e.reply) for e in examples if e.chain]
    meetings: tuple[tuple[str, list[tuple[str, str]], Sequence[int] | None, str], ...] = (
        ("question + direct layout", [(text, layout.direct) for text in asked], ids.direct, "mode direct"),
        ("question + before latents", [(text, before) for text in asked], ids.before_latents, "mode latent"),
        ("before latents + chain", [(before, chain) for chain, _ in thought], None, "train sft --distill-share"),
        (
            "chain + after latents", [(chain, after) for chain, _ in thought], ids.after_latents,
            "early exits, analyse exits, trajectory",
        ),
        ("after latents + reply", [(after, reply) for _, reply in thought if reply], None, ""),
    )  # fmt: skip
    return [_joint(tokenizer, name, pairs, piece, feature) for name, pairs, piece, feature in meetings if pairs]


def _joint(
    tokenizer: PreTrainedTokenizerBase, name: str, pairs: Sequence[tuple[str, str]], piece: Sequence[int] | None, feature: str
) -> Check:
    """`piece`: the ids of all that stands on the right, where the layout says them."""
    differ = [
        f"{left[-12:]}|{right[:12]}"
        for left, right in pairs
        if [*_encode(tokenizer, left), *(_encode(tokenizer, right) if piece is None else piece)]
        != _encode(tokenizer, left + right)
    ]
    return Check(f"pieces and joined text: {name}", len(pairs), len(differ), _quoted(differ), feature if differ else "")


def dropped(tokenizer: PreTrainedTokenizerBase, chains: Sequence[str], rng: random.Random) -> Check:
    """Chains without a share of their tokens, as text and as ids again, as `analyse trajectory` writes them."""
    more = []
    for chain in chains:
        kept = [token for token in _encode(tokenizer, chain) if rng.random() >= _DROPPED]
        again = _encode(tokenizer, str(tokenizer.decode(kept)))
        if again != kept:
            more.append(len(again) - len(kept))
    found = f"{statistics.fmean(more):+.1f} tokens on average" if more else ""
    wrong = "analyse trajectory: tokens that were dropped come back as others" if more else ""
    return Check(f"chains without {_DROPPED:.0%} of their tokens", len(chains), len(more), found, wrong)


def numbers(tokenizer: PreTrainedTokenizerBase, asked: Sequence[int] = _NUMBERS) -> list[Check]:
    """How many tokens whole numbers are, with a blank in front of them, and without."""
    spaced, plain = ({n: len(_encode(tokenizer, f"{blank}{n}")) for n in asked} for blank in (" ", ""))
    read = set(whole_numbers(tokenizer).values())
    hints = sum(spaced[n] > 1 for n in asked if n < _SAID)
    unread = sum(n not in read for n in asked if n < _SAID)
    said = f"of the numbers below {_SAID}"
    return [
        _lengths("with a blank", spaced, f"train sft --milestones ({hints} {said} are no hints)" if hints else ""),
        _lengths("without", plain, f"explain ({unread} {said} are read off no latent)" if unread else ""),
    ]


def _lengths(name: str, lengths: dict[int, int], wrong: str) -> Check:
    counts = sorted(Counter(lengths.values()).items())
    found = ", ".join(f"{count} of {tokens} token{'s' * (tokens > 1)}" for tokens, count in counts)
    several = sum(length > 1 for length in lengths.values())
    return Check(f"numbers of several tokens, {name}", len(lengths), several, found, wrong)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _quoted(differ: Sequence[str]) -> str:
    return f"such as {differ[0][:40]!r}".replace("|", "¦") if differ else ""


def markdown(checks: Sequence[Check]) -> str:
    rows = (
        (check.name, check.tried, check.differ, check.found, f"**{check.wrong}**" if check.wrong else "") for check in checks
    )
    wrong = sum(bool(check.wrong) for check in checks)
    end = f"Tokenizer: {wrong} of {len(checks)} checks find features that would be wrong." if wrong else "Tokenizer: passed."
    return f"{end}\n\n{table(['check', 'tried', 'differ', '', 'would be wrong'], rows)}"
