"""vLLM's front end, as far as the application needs it: its FastAPI app on our engine, its keys, its sockets, its registry."""

import os
import socket
from argparse import Namespace

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, SecretStr
from vllm import envs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import setup_server
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.logger import configure_logging_from_args
from vllm.renderers.hf import _get_hf_base_chat_template_params, _resolve_chat_template_kwargs
from vllm.v1.metrics.prometheus import get_prometheus_registry

from server.engine.parsers import routed_parsers
from server.engine.seam import HybridEngine

_OF_EVERY_TEMPLATE = {"messages", "tools", "raise_exception", "strftime_now"}


async def build_vllm_app(engine: HybridEngine, args: Namespace) -> FastAPI:
    """vLLM's application on our engine, without its check of keys, which covers some paths only."""
    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    app.user_middleware = [m for m in app.user_middleware if m.cls is not AuthenticationMiddleware]
    with routed_parsers():
        await init_app_state(engine, app.state, args, tasks)
    return app


def api_keys(args: Namespace, operator_key: SecretStr | None) -> list[str]:
    """Clients' keys, and the operator's, who is a client, too; none where vLLM asks for none."""
    keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    return [*keys, operator_key.get_secret_value()] if keys and operator_key else keys


def request_fields(app: FastAPI) -> dict[str, frozenset[str]]:
    """By path of a POST: the fields that vLLM reads of its body."""
    fields = {}
    for route in app.routes:
        if isinstance(route, APIRoute) and route.dependant.body_params:
            body = route.dependant.body_params[0].field_info.annotation
            if isinstance(body, type) and issubclass(body, BaseModel):
                aliases = (info.alias for info in body.model_fields.values() if info.alias)
                fields[route.path] = frozenset((*body.model_fields, *aliases))
    return fields


def template_kwargs(engine: HybridEngine, args: Namespace) -> frozenset[str] | None:
    """Names that the chat template reads beside the conversation; None where there is no one template to look into."""
    template = args.chat_template or getattr(engine.get_tokenizer(), "chat_template", None)
    if not isinstance(template, str) or os.path.isfile(template):
        return None
    names = _resolve_chat_template_kwargs(template) - _get_hf_base_chat_template_params() - _OF_EVERY_TEMPLATE
    return frozenset(names | {"enable_thinking"})


def metrics_registry() -> CollectorRegistry:
    return get_prometheus_registry()


def listen(args: Namespace) -> tuple[str, socket.socket]:
    """(address, socket), before the engine takes its time to start."""
    configure_logging_from_args(args)
    return setup_server(args, reuse_port=False)
