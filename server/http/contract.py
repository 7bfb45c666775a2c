"""What a body asks for: the contract between clients and modes, as pure functions of a JSON object.

Precedence of the mode: body field `mode` > model alias `name:latent` > header `X-Reasoning-Mode` > what `reasoning_effort`,
`enable_thinking` or `thinking` imply > the server's default. Where an alias or the header says `auto`, an effort narrows it.
The prompt X is rendered the same in every mode, so the fields that would change it are taken out of the body.
"""

import difflib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from router.exits import ExitRule
from router.helper import HelpRule
from router.policy import Mode
from router.router import Options
from router.soft import SoftThinking
from server.engine import modes
from server.http.efforts import MODE_OF
from server.http.errors import BadRequestError
from server.observe.record import Ask

MODE_HEADER, SCORE_HEADER = "X-Reasoning-Mode", "X-Reasoning-Score"
EXPECTED_HEADER = "X-Reasoning-Expected-Tokens"
"""Of `/v1/route`: what an endpoint picker weighs a request by."""
SESSION_HEADER = "X-Session-ID"
"""As vLLM, vllm-router and Ray Serve call it: balancers keep a session on one server by it."""
CHAT_PATH, COMPLETIONS_PATH = "/v1/chat/completions", "/v1/completions"
ROUTE_PATH, EXPLAIN_PATH = "/v1/route", "/v1/explain"
AS_CHAT = (ROUTE_PATH, EXPLAIN_PATH)
"""What takes a chat completion's body, and answers something else."""
CHAT_PATHS = (CHAT_PATH, "/v1/responses", "/v1/messages", *AS_CHAT)
GENERATING_PATHS = (*CHAT_PATHS, COMPLETIONS_PATH)
_OWN_FIELDS = ("mode", "num_latent_tokens", "router", "exit", "helper", "soft", "explain", "timeout_seconds")
_MAX_ANSWERS = 128  # of one request, as OpenAI's
_MAX_ID = 128
_ALIKE = 0.7  # of a field's name to one of ours
_OF_THE_ANSWER = ("stream", "stream_options", "n", "logprobs", "top_logprobs", "prompt_logprobs", "response_format")
_NO_QUESTION = (("add_generation_prompt", False), ("continue_final_message", True), ("use_beam_search", True))
Body = dict[str, Any]
M = TypeVar("M", bound=BaseModel)
O = TypeVar("O", bound=Options)  # noqa: E741


@dataclass(frozen=True, slots=True)
class Terms:
    """What the server offers."""

    default: str = Mode.AUTO
    latent_available: bool = True
    template_kwargs: Collection[str] | None = None
    """Names that the chat template reads; None: any are taken."""
    known_fields: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By path: the fields that vLLM reads."""
    reasoning_content: bool = False
    """Thinking text is repeated as `reasoning_content`."""
    effort_budgets: Mapping[str, int] = field(default_factory=dict)
    """Thinking tokens by effort."""
    explicit_available: bool = True
    adapters: Collection[str] = ()
    """Models that are an adapter on the base: they think in text alone."""


def parse(raw: bytes) -> Any:
    """The body as JSON; None where it is none, which vLLM's error says best."""
    try:
        return json.loads(raw, parse_constant=_refuse_number, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise BadRequestError("The body is nested too deeply.") from None
    except ValueError:
        return None


def encode(body: Any) -> bytes:
    """What is sent on, once our fields are taken out."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except RecursionError:
        raise BadRequestError("The body is nested too deeply.") from None
    except UnicodeEncodeError:
        raise BadRequestError("The body has half of a surrogate pair in a string: no text contains that.") from None


def _unique(pairs: list[tuple[str, Any]]) -> Body:
    """An object. One that says something twice is read in two ways by two readers."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name in found if sum(name == other for other, _ in pairs) > 1)
        raise BadRequestError(f"The body says {twice[:80]!r} twice in one object.", twice[:80])
    return found


def _refuse_number(text: str) -> NoReturn:
    raise BadRequestError(f"{text} is not accepted: numbers in JSON are finite.")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def read_ask(path: str, body: Body, header: str | None, terms: Terms) -> Ask:
    """What the request wants; its fields are taken out of the body. `Ask.plain()` where there is nothing to choose: a raw
    completion, a message that is continued. Raises `BadRequestError`."""
    refuse_unsupported(body, terms.template_kwargs)
    _refuse_near_misses(body, terms.known_fields.get(CHAT_PATH if path in AS_CHAT else path))
    wish = take_wish(body, header)
    if (model := body.get("model")) in terms.adapters:
        wish = wish.of_adapter(str(model), terms)
    num_latents = body.pop("num_latent_tokens", None)
    if num_latents not in (None, "auto") and (not isinstance(num_latents, int) or isinstance(num_latents, bool)):
        raise BadRequestError('num_latent_tokens must be a whole number, or "auto".', "num_latent_tokens")
    explains = take_explain(body)
    if path == COMPLETIONS_PATH and wish.named is None:
        others = (*((name, body.get(name)) for name in ("router", "exit", "helper", "soft")), ("explain", explains or None))
        for name, value in (("num_latent_tokens", num_latents), *others):
            if value is not None:
                raise BadRequestError(f"{name} needs a mode here: a raw completion has none.", name)
        return Ask.plain()
    for name, value in _NO_QUESTION:
        given = body.get(name)
        if isinstance(given, int | bool) and bool(given) is value:
            if wish.named in (None, Mode.EXPLICIT) and "router" not in body and path not in AS_CHAT and not explains:
                return Ask.plain()
            what = f"mode={wish.named}" if wish.named else "explain" if explains or path == EXPLAIN_PATH else "routing"
            raise BadRequestError(f"{name}={str(value).lower()} cannot be combined with {what}.", name)
    mode = wish.mode(terms) if path != EXPLAIN_PATH else wish.latent_mode()
    options, may_exit, soft = take_options(body, mode), take_exit(body, mode), take_soft(body, mode)
    may_help, brief = take_help(body, mode, exits=bool(may_exit)), take_brief(body)
    if options.early and not (path == CHAT_PATH and body.get("stream")):
        raise BadRequestError("router.early is for streamed chat completions.", "router")
    if path in AS_CHAT:
        for name in _OF_THE_ANSWER:
            body.pop(name, None)
    only_route, verifies = path == ROUTE_PATH, path == EXPLAIN_PATH
    budget = wish.thinking_budget
    if budget is None and body.get("thinking_token_budget") is None:  # a number says more than an effort
        budget = terms.effort_budgets.get(wish.effort or "")
    return Ask(
        mode, num_latents, options, budget, names_temperature=body.get("temperature") is not None,
        exit=may_exit, help=may_help, soft=soft, brief=brief,
        only_route=only_route, explains=verifies or (explains and not only_route), verifies=verifies,
    )  # fmt: skip


def take_explain(body: Body) -> bool:
    """The field `explain`, taken out of the body."""
    given = body.pop("explain", None)
    if given is not None and not isinstance(given, bool):
        raise BadRequestError("explain must be true or false.", "explain")
    return bool(given)


def take_seconds(body: Body, most: float) -> float:
    """What the answer may take: the field `timeout_seconds`, taken out of the body, within what the server allows."""
    given = body.pop("timeout_seconds", None)
    if given is None:
        return most
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < math.inf:
        raise BadRequestError("timeout_seconds must be a number above 0.", "timeout_seconds")
    return min(float(given), most)


def count_answers(body: Body) -> int:
    """How many answers a request is for: `n` of each of its prompts. What is no number is vLLM's to refuse."""
    prompts = body.get("prompt")
    answers = len(prompts) if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) else 1
    n = given if isinstance(given := body.get("n"), int) and given > 0 else 1
    if answers * n > _MAX_ANSWERS:
        what = f"n={n}" if answers == 1 else f"{answers} prompts with n={n}"
        raise BadRequestError(f"A request may ask for at most {_MAX_ANSWERS} answers, not {what}.", "n" if n > 1 else "prompt")
    return answers * n


def given_limit(body: Body) -> int | None:
    """Tokens that the request allows an answer, as far as it says so."""
    given = (body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"))
    return next((limit for limit in given if isinstance(limit, int) and limit > 0), None)


def check_id(value: object, name: str) -> str | None:
    """A client's id of its request, which is repeated in answers and logs."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _MAX_ID or not (value.isascii() and value.isprintable()):
        raise BadRequestError(f"{name} must be a string of at most {_MAX_ID} printable ASCII characters.", name)
    return value or None


def take_session(body: Body, header: str | None) -> str | None:
    """The session that a request belongs to: the header, which balancers see, or vLLM's field, which is taken out of the body.

    OpenAI's `prompt_cache_key` is none: sessions share it.
    """
    of_body = check_id(body.pop("session_id", None), "session_id")
    return check_id(header, SESSION_HEADER) or of_body


@dataclass(frozen=True, slots=True)
class Wish:
    """What the fields of a body, and the header, say about the mode."""

    named: str | None
    """By the field `mode`, the alias or the header."""
    implied: Mode | None
    """By an effort, or by thinking that is switched on or off."""
    may_narrow: bool = False
    """`auto` was named by an alias or the header: an effort says more."""
    thinking_budget: int | None = None
    effort: str | None = None

    def mode(self, terms: Terms) -> str:
        implied = self.implied
        if implied is Mode.LATENT and not terms.latent_available:
            implied = Mode.AUTO  # a low effort is no demand for latents
        if implied is Mode.EXPLICIT and self.effort and not terms.explicit_available:
            implied = Mode.AUTO  # nor a high one for a chain
        if self.named is None or (self.may_narrow and implied is not None):
            return implied or terms.default
        return self.named

    def of_adapter(self, model: str, terms: Terms) -> "Wish":
        """An adapter's hidden states are not those that network, probe and calibration were made for."""
        thinks = self.implied is not Mode.DIRECT and terms.explicit_available
        mode = self.named or (Mode.EXPLICIT if thinks else Mode.DIRECT)
        if mode not in (Mode.EXPLICIT, Mode.DIRECT):
            raise BadRequestError(
                f"mode={mode} cannot be combined with the model {model}: it is an adapter, and latents and routing are "
                "the base's. Leave the mode out, or send explicit or direct.",
                "mode",
            )
        return replace(self, named=mode, may_narrow=False)

    def latent_mode(self) -> str:
        """Of what explains a latent answer."""
        mode = self.named or self.implied or Mode.LATENT
        if mode not in (Mode.LATENT, Mode.LATENT_EXPLICIT):
            raise BadRequestError(f"{EXPLAIN_PATH} explains latent answers, and mode is {mode}. Leave it out.", "mode")
        return mode


def take_wish(body: Body, header: str | None) -> Wish:
    """Takes `mode`, `reasoning_effort`, `reasoning.effort`, `enable_thinking` and `thinking` out of the body."""
    alias = str(body.get("model") or "").rpartition(":")[2]
    field_ = body.pop("mode", None)
    sources = ((field_, "mode"), (alias if alias in modes.registered() else None, "model"), (header, MODE_HEADER))
    named = next((_mode(value, param) for value, param in sources if value is not None), None)
    effort, said = _effort(body)
    implied = MODE_OF[effort] if effort else None
    thinking, budget, param = _thinking(body)
    if implied is None and thinking is not None:
        implied, said = (Mode.EXPLICIT if thinking else Mode.DIRECT), f"{param}={str(thinking).lower()}"
    if {named, implied} == {Mode.EXPLICIT, Mode.DIRECT}:
        raise BadRequestError(f"mode={named} contradicts {said}. Send one of the two.", "mode")
    return Wish(named, implied, may_narrow=named == Mode.AUTO and field_ is None, thinking_budget=budget, effort=effort)


def _effort(body: Body) -> tuple[str | None, str]:
    """(the effort, how it was said)."""
    effort, param = body.pop("reasoning_effort", None), "reasoning_effort"
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict) and "effort" in reasoning:  # the responses API
        of_responses = reasoning.pop("effort")
        effort, param = (effort, param) if effort is not None else (of_responses, "reasoning.effort")
    if effort is None:
        return None, ""
    if not isinstance(effort, str) or effort not in MODE_OF:
        raise BadRequestError(f"{param} must be one of {', '.join(MODE_OF)}, not {effort!r}.", param)
    return effort, f"{param}={effort}"


def _thinking(body: Body) -> tuple[bool | None, int | None, str]:
    """(whether thinking is switched on, its budget in tokens, the field that says so)."""
    kwargs = body.get("chat_template_kwargs")
    on = kwargs.pop("enable_thinking", None) if isinstance(kwargs, dict) else None
    if on is not None and not isinstance(on, bool):
        raise BadRequestError(f"enable_thinking must be true or false, not {on!r}.", "chat_template_kwargs.enable_thinking")
    given = body.pop("thinking", None)  # the messages API
    if given is None:
        return on, None, "enable_thinking"
    kind, budget = (given.get("type"), given.get("budget_tokens")) if isinstance(given, dict) else (None, None)
    if kind not in ("enabled", "disabled", "adaptive"):
        raise BadRequestError(f"thinking.type must be enabled, disabled or adaptive, not {kind!r}.", "thinking")
    if budget is not None and (not isinstance(budget, int) or isinstance(budget, bool) or budget < 1):
        raise BadRequestError("thinking.budget_tokens must be a whole number of at least 1.", "thinking.budget_tokens")
    return (None if kind == "adaptive" else kind == "enabled"), budget, "thinking.type"


def take_options(body: Body, mode: str) -> Options:
    """The `router` field, taken out of the body."""
    given = body.pop("router", None)
    if given is None:
        return Options()
    if mode != Mode.AUTO:
        raise BadRequestError(f"router is for mode=auto, not {mode}: a named mode is never overruled.", "router")
    return parse_options(given, Options)


def parse_options(given: object, kind: type[O]) -> O:
    """Raises `BadRequestError` with what is wrong."""
    options = _validated(kind, given, "router")
    try:
        _ = options.target
    except ValidationError as error:
        raise _problems(error, "router") from None
    return options


def take_exit(body: Body, mode: str) -> ExitRule | bool | None:
    """The `exit` field, taken out of the body: a rule, whether chains may end early by the server's, or nothing."""
    given = body.pop("exit", None)
    if given is None or given is False:
        return given
    if mode not in (Mode.AUTO, Mode.EXPLICIT):
        raise BadRequestError(f"exit is for chains in text: mode=explicit or auto, not {mode}.", "exit")
    if isinstance(body.get("n"), int) and body["n"] > 1:
        raise BadRequestError("exit is for one answer a request, not n above 1: each has a chain of its own.", "exit")
    if body.get("logprobs"):
        raise BadRequestError("exit cannot be combined with log-probabilities: nobody sampled the end of thinking.", "exit")
    if given is True or given == "auto":
        return True
    if not isinstance(given, dict):
        raise BadRequestError('exit must be true, false, "auto", or a rule such as {"confidence": 0.95}.', "exit")
    return _validated(ExitRule, given, "exit")


def take_help(body: Body, mode: str, *, exits: bool) -> HelpRule | bool | None:
    """The `helper` field, taken out of the body: a rule, whether a helper may write steps by the server's, or nothing."""
    given = body.pop("helper", None)
    if given is None or given is False:
        return given
    if mode not in (Mode.AUTO, Mode.EXPLICIT):
        raise BadRequestError(f"helper is for chains in text: mode=explicit or auto, not {mode}.", "helper")
    if exits:
        raise BadRequestError("helper cannot be combined with exit: trials are of one model's chain.", "helper")
    if isinstance(body.get("n"), int) and body["n"] > 1:
        raise BadRequestError("helper is for one answer a request, not n above 1: each has a chain of its own.", "helper")
    if body.get("logprobs"):
        raise BadRequestError("helper cannot be combined with log-probabilities: the helper's are not known.", "helper")
    if given is True:
        return True
    if not isinstance(given, dict):
        raise BadRequestError('helper must be true, false, or a rule such as {"policy": "glimp", "share": 0.2}.', "helper")
    return _validated(HelpRule, given, "helper")


def take_brief(body: Body) -> bool:
    """Whether the chain is shown in brief: `reasoning` is a word, which is taken out, or (the responses API) has a summary."""
    given = body.get("reasoning")
    if isinstance(given, str):
        if given not in ("brief", "full"):
            raise BadRequestError(f"reasoning must be brief or full, not {given[:40]!r}.", "reasoning")
        del body["reasoning"]
    is_brief = given == "brief" or (isinstance(given, dict) and given.get("summary") == "concise")
    if is_brief and isinstance(body.get("n"), int) and body["n"] > 1:
        raise BadRequestError("reasoning in brief is for one answer a request, not n above 1.", "n")
    if is_brief and body.get("logprobs"):
        raise BadRequestError("reasoning in brief has no log-probabilities: text is left out.", "logprobs")
    return is_brief


def take_soft(body: Body, mode: str) -> SoftThinking | None:
    """The `soft` field, taken out of the body: how mode soft thinks."""
    given = body.pop("soft", None)
    if not modes.registered()[mode].needs_mixtures:
        if given is not None:
            raise BadRequestError(f"soft is for mode=soft, not {mode}.", "soft")
        return None
    if isinstance(body.get("n"), int) and body["n"] > 1:
        raise BadRequestError(f"mode={mode} gives one answer a request, not n above 1.", "n")
    if body.get("logprobs"):
        raise BadRequestError(f"mode={mode} has no log-probabilities: what is written was not sampled.", "logprobs")
    return _validated(SoftThinking, {} if given is None else given, "soft")


def _validated(kind: type[M], given: object, param: str) -> M:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _problems(error, param) from None


def _problems(error: ValidationError, param: str) -> BadRequestError:
    return BadRequestError("; ".join(".".join(map(str, (param, *e["loc"]))) + ": " + e["msg"] for e in error.errors()), param)


def _mode(value: object, param: str) -> str:
    if not isinstance(value, str) or value not in modes.registered():
        raise BadRequestError(f"{param} must be one of {', '.join(modes.registered())}, not {value!r}.", param)
    return value


def refuse_unsupported(body: Body, template_kwargs: Collection[str] | None = None) -> None:
    """Clients can send neither embeddings nor templates, nor what a template does not read (tokenizers take more from there),
    nor name a conversation that would have to be remembered."""
    if body.get("prompt_embeds"):
        raise BadRequestError("prompt_embeds is not accepted: only this server writes embeddings.", "prompt_embeds")
    if body.get("conversation") is not None:
        raise BadRequestError(
            f"conversation is not accepted: nothing is kept of one. Send its turns, and {SESSION_HEADER}.", "conversation"
        )
    if body.get("chat_template") is not None:
        raise BadRequestError("chat_template is not accepted per request. Set it with --chat-template.", "chat_template")
    kwargs = body.get("chat_template_kwargs")
    if template_kwargs is not None and isinstance(kwargs, dict):
        for name in kwargs:
            if name not in template_kwargs:
                known = ", ".join(sorted({"enable_thinking", *template_kwargs}))
                raise BadRequestError(
                    f"The chat template does not read {name!r}. It reads: {known}.", f"chat_template_kwargs.{name}"
                )
    messages = body.get("messages") or body.get("input") or ()
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and (part.get("type") == "prompt_embeds" or "prompt_embeds" in part):
                raise BadRequestError("prompt_embeds is not accepted: only this server writes embeddings.", "messages")


def _refuse_near_misses(body: Body, known: Collection[str] | None) -> None:
    """vLLM takes fields that it does not know and ignores them; one that was to be ours would be ignored in silence."""
    for name in body if known is not None else ():
        if name in _OWN_FIELDS or name in (known or ()):
            continue
        if alike := difflib.get_close_matches(name.lower(), _OWN_FIELDS, 1, _ALIKE):
            raise BadRequestError(f"There is no field {name!r}. Did you mean {alike[0]!r}?", name)
