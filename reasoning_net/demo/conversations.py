"""What the demo's base model is trained on: conversations around the questions, and small talk that is none.

A conversation is a list of chat messages whose last turn the model has to write: a chain and a reply.
"""

import random
import string
from dataclasses import dataclass

from reasoning_net.demo.questions import MAX_STEPS, SEEN, Question, Split, draw

OTHER_REPLY = "I can only solve short word problems."
_OTHER_CHAIN = "This is not a word problem that I can solve."
_SYSTEM_PROMPTS = ("You are a helpful assistant.", "You solve word problems.", "Be brief.", "Think step by step.")
_OPENERS = """
    hello hi hey what is the who are you can could please tell me about write explain give an how do does why when
    where should would translate name list think say which was were my your his her it they we I
""".split()
_WORDS = """
    capital of France weather today poem story python code function sum list sort meaning life time day music color red
    blue green water fire earth moon sun star car train city country people world best good bad new old great small
    number three two one ten plus minus times equals answer question help work love friend dog cat bird tree house book
    pen apple coins movie food tea coffee recipe cake email letter song language English German Spanish math physics
    history war peace king queen president computer internet phone model test user system data a in on at to for with
    and or not from by as but if then so because into over under after before more less very quickly slowly always
    never
""".split()


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: list[dict[str, str]]
    chain: str
    reply: str
    standing: tuple[str, ...]
    """The reply that each line of the chain allows."""
    question: Question | None
    """The question behind the last turn; None for what is not a word problem."""


def _small_talk(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.65:
        text = " ".join([rng.choice(_OPENERS), *rng.choices(_WORDS, k=rng.randint(0, 15))])
        return (text.capitalize() if rng.random() < 0.6 else text) + rng.choice(("?", ".", "!", ""))
    if kind < 0.8:
        return " ".join(
            str(rng.randint(0, 99)) if rng.random() < 0.5 else rng.choice("+-*/=x") for _ in range(rng.randint(1, 9))
        )
    if kind < 0.9:
        return "".join(rng.choices(string.printable, k=rng.randint(1, 40)))
    return "".join(
        chr(rng.choice((rng.randint(0xA1, 0x24F), rng.randint(0x370, 0x4FF), rng.randint(0x4E00, 0x9FFF))))
        for _ in range(rng.randint(1, 12))
    )


def conversation(
    rng: random.Random, split: Split, steps: tuple[int, int] = (1, MAX_STEPS), families: tuple[str, ...] = SEEN
) -> Conversation:
    """A conversation, whose question has a number of steps between two.

    One in twenty is small talk; one in twelve has an earlier turn, one in sixteen three to eight of them, and one in twelve a
    system prompt.
    """
    messages: list[dict[str, str]] = []
    if rng.random() < 1 / 12:
        messages.append({"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)})
    for _ in range(_earlier_turns(rng)):
        if rng.random() < 0.3:
            earlier, reply = _small_talk(rng), OTHER_REPLY
        else:
            old = draw(rng, split, rng.randint(1, min(3, steps[1])), rng.choice(families))
            earlier, reply = old.question, old.reply
        messages += [{"role": "user", "content": earlier}, {"role": "assistant", "content": reply}]
    if rng.random() < 1 / 20:
        messages.append({"role": "user", "content": _small_talk(rng)})
        return Conversation(messages, _OTHER_CHAIN, OTHER_REPLY, (OTHER_REPLY,), None)
    question = draw(rng, split, rng.randint(*steps), rng.choice(families))
    messages.append({"role": "user", "content": question.question})
    return Conversation(messages, question.chain, question.reply, question.standing, question)


def _earlier_turns(rng: random.Random) -> int:
    drawn = rng.random()
    return 1 if drawn < 1 / 12 else rng.randint(3, 8) if drawn < 1 / 12 + 1 / 16 else 0
