"""What may not enter the engine, by whatever route it came. Each guard raises `VLLMValidationError`: a 400."""

from typing import TYPE_CHECKING, Any

import msgspec
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput

from reasoning_net.layout import NO_THINKING
from router.exits import ExitRule
from router.policy import RouterError
from server.engine import modes
from server.engine.work import WORK_KEY
from server.observe.record import Ask

if TYPE_CHECKING:
    from server.engine.seam import Hybrid

_LISTS = ("stop", "stop_token_ids", "bad_words", "logit_bias")
_MAX_LIST, _MAX_STOP = 1024, 1024
_OF_CONNECTORS = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode")


def guard_prompt(prompt: Any, placeholder: int | None) -> list[int]:
    """The token ids of a rendered prompt. Embeddings, and the token that is reserved for latents, are refused."""
    if not isinstance(prompt, dict) or "prompt_token_ids" not in prompt or prompt.get("prompt_embeds") is not None:
        raise VLLMValidationError(
            "Only prompts of text or tokens are accepted: only this server writes embeddings.", parameter="prompt"
        )
    token_ids = list(prompt["prompt_token_ids"])
    if placeholder is not None and placeholder in token_ids:
        raise VLLMValidationError(
            f"The prompt contains the token {placeholder}, which is reserved for latents. Remove it.", parameter="prompt"
        )
    return token_ids


def guard_params(params: SamplingParams, placeholder: int | None) -> None:
    """What reaches past the sampling: work for our worker, the state of vLLM's connectors, the reserved token. And lists that
    are looked through at every token, without end."""
    if params.logprob_token_ids is not None:
        raise VLLMValidationError(
            "logprob_token_ids is not accepted: vLLM 0.32 gives its columns to all requests of a step. Use top_logprobs.",
            parameter="logprob_token_ids",
        )
    for name in _LISTS:
        if len(given := getattr(params, name) or ()) > _MAX_LIST:
            raise VLLMValidationError(f"{name} has {len(given)} entries, of at most {_MAX_LIST}.", parameter=name)
    if any(len(text) > _MAX_STOP for text in params.stop or ()):
        raise VLLMValidationError(f"A stop string has more than {_MAX_STOP} characters.", parameter="stop")
    for name in (WORK_KEY, *_OF_CONNECTORS):
        if name in (params.extra_args or {}):
            raise VLLMValidationError(f"{name} is not accepted here: this server sets it.", parameter="vllm_xargs")
    for name in ("allowed_token_ids", "logit_bias"):
        if placeholder is not None and placeholder in (getattr(params, name) or ()):
            raise VLLMValidationError(f"The token {placeholder} is reserved for latents.", parameter=name)


def guard_encodable(prompt: dict[str, Any], params: SamplingParams, options: dict[str, Any]) -> None:
    """What cannot be sent to the engine's process: numbers of 80 bits, halves of surrogate pairs, endless nesting."""
    given = {"priority": options.get("priority"), "cache_salt": prompt.get("cache_salt")}
    given |= {name: getattr(params, name) for name in params.__struct_fields__}
    for name, value in given.items():
        try:
            msgspec.msgpack.encode(value)
        except (OverflowError, UnicodeEncodeError, RecursionError) as error:
            raise VLLMValidationError(f"{name} cannot be read: {error}.", parameter=name) from None
        except TypeError:
            continue  # vLLM's encoder knows more types


def guard_only_text(ask: Ask) -> None:
    """Of prompts with images or sound: latents were trained on text."""
    if ask.mode not in ("auto", "explicit"):
        raise VLLMValidationError(f"mode={ask.mode} takes text only. Use mode=explicit or auto.", parameter="mode")


def guard_output(output: RequestOutput, params: SamplingParams) -> None:
    """A grammar that nothing can be written under ends as an error of the engine, and is the client's."""
    if params.structured_outputs is not None and any(choice.finish_reason == "error" for choice in output.outputs):
        raise VLLMValidationError(
            "Nothing can be written under this schema or grammar: at some point it allows no token.",
            parameter="structured_outputs",
        )


def _guard_chain(ask: Ask, hybrid: "Hybrid", params: SamplingParams, *, needs_text: bool) -> None:
    """What would do nothing where nobody can see a chain's end in one token."""
    if hybrid.ends_chains:
        return
    asked = {
        "thinking.budget_tokens": ask.thinking_budget is not None,
        "thinking_token_budget": params.thinking_token_budget is not None,
        "exit": bool(ask.exit),
        "reasoning in brief": ask.brief,
    }
    if named := next((name for name, is_asked in asked.items() if is_asked), None):
        raise VLLMValidationError(
            f"{named} is for bases that open and close their thinking with one token each, and this one does not: leave it "
            "out. max_tokens bounds a chain and its answer.",
            parameter=named.split()[0],
        )
    if needs_text and hybrid.hides_ends and params.structured_outputs is not None:
        raise VLLMValidationError(
            f"mode={ask.mode} cannot keep to a schema on this base: where its chain ends is not one token. Use mode=direct.",
            parameter="response_format",
        )


def guard_ask(ask: Ask, hybrid: "Hybrid", token_ids: list[int], params: SamplingParams, max_model_len: int) -> None:
    """Refuse what cannot be answered in the mode asked for, before any work is done."""
    mode = modes.registered().get(ask.mode)
    if mode is None:
        raise VLLMValidationError(f"mode must be one of {', '.join(modes.registered())}, not {ask.mode!r}.", parameter="mode")
    if mode.needs_latents and not hybrid.can_think_latent:
        raise VLLMValidationError(
            f"This server has no reasoning network, so it cannot answer in {ask.mode} mode. Start it with --bundle and a "
            "bundle that has one (train it with `latentserve train sft`), or use mode=auto, explicit or direct.",
            parameter="mode",
        )
    if mode.needs_thinking_on and not hybrid.can_think_on:
        raise VLLMValidationError(
            f"The reasoning network of this server was not trained for {ask.mode}: train one with `latentserve train sft "
            "--rest-share 0.2`, or use mode=auto, latent or explicit.",
            parameter="mode",
        )
    if mode.needs_text and not hybrid.can_think_in_text:
        raise VLLMValidationError(f"This server cannot answer in {ask.mode} mode. {NO_THINKING}", parameter="mode")
    _guard_chain(ask, hybrid, params, needs_text=mode.needs_text)
    if mode.needs_mixtures and not hybrid.can_mix:
        raise VLLMValidationError(
            f"mode={ask.mode} is experimental, and this server was started without --soft-thinking. Use mode=explicit.",
            parameter="mode",
        )
    if ask.soft is not None and ask.soft.ends_thinking and hybrid.tags[1] is None:
        raise VLLMValidationError(
            "This base closes its thinking with several tokens, so nobody can close it in its place: leave switch and "
            "cold_steps out.",
            parameter="soft",
        )
    if isinstance(ask.exit, ExitRule) and ask.exit.closes and not hybrid.can_close:
        raise VLLMValidationError(
            "exit.closes is for bases that close their thinking with one token, on servers without --speculative-config: leave "
            "it out.",
            parameter="exit",
        )
    if ask.help and hybrid.help is None:
        raise VLLMValidationError(
            "This server has no helper: start it with --helper URL, or leave helper out.", parameter="helper"
        )
    if ask.explains and not hybrid.can_think_latent:
        raise VLLMValidationError(
            "This server has no reasoning network, so there are no latents to explain. Start it with --bundle and a bundle "
            "that has one (train it with `latentserve train sft`), or leave explain out.",
            parameter="explain",
        )
    if ask.explains and not hybrid.can_read_latents:
        raise VLLMValidationError(
            "No token of this base is a whole number, and latents are read by nothing else. Leave explain out.",
            parameter="explain",
        )
    try:
        hybrid.router.policy_for(ask.options)
    except RouterError as error:
        raise VLLMValidationError(str(error), parameter="router") from None
    if ask.num_latents == "auto" and not hybrid.ladder:
        raise VLLMValidationError(
            "num_latent_tokens=auto needs a probe that knows how many latents suffice, and the bundle has none: fit one with "
            "`latentserve router fit --ladder 4,8`, or name a number.",
            parameter="num_latent_tokens",
        )
    if isinstance(ask.num_latents, int) and not 0 < ask.num_latents <= hybrid.max_latents:
        raise VLLMValidationError(
            f"num_latent_tokens must be between 1 and {hybrid.max_latents}, not {ask.num_latents}.",
            parameter="num_latent_tokens",
        )
    if params.prompt_logprobs is not None and ask.mode != "explicit":
        raise VLLMValidationError(
            "prompt_logprobs needs mode=explicit: in the other modes the prompt is not all the client's.",
            parameter="prompt_logprobs",
        )
    longest = hybrid.longest_layout(ask.num_latents, may_be_latent=ask.mode not in ("direct", "explicit", "soft"))
    if len(token_ids) + longest >= max_model_len:
        raise VLLMValidationError(
            f"The prompt has {len(token_ids)} tokens and mode={ask.mode} adds up to {longest}: more than the "
            f"model's {max_model_len} with room for an answer. Shorten the prompt, or ask for fewer latents.",
            parameter="messages",
        )
