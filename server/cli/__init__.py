"""`latentserve …`: one command a file. Options, defaults, help and bounds come from the configuration classes.

A command is named by where it lives and imported when it is asked for: help and mistakes cost no torch.
"""

import asyncio
import inspect
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from cyclopts import App, CycloptsError

from server.cli.errors import explain, usage_error

COMMANDS = {
    "": "OpenAI-compatible serving with a hybrid latent/explicit router.",
    "serve": "Serve a model in direct, latent, explicit and auto mode. Any flag that is not listed is vLLM's.\n\n"
    "Each flag may be set as LATENTSERVE_NAME in the environment, or in a YAML file of flags, ours and vLLM's: --config FILE. "
    "Flags come before the environment, that before the file.",
    "doctor": "What this machine has, what a server would take of it, and what is missing. No engine is started.",
    "ask": "Ask a running server: the answer on standard output, thinking (dimmed) and one line of figures on standard error.",
    "top": "Watch a running server by mode: rates, latencies, tokens, and what the engine and the router do.",
    "eval": "Measure accuracy, tokens and seconds per mode on held-out questions, over HTTP.",
    "bench": "Measure latency and throughput per mode, over HTTP: closed and open loops, percentiles, ratios.",
    "adapt": "Your own model: look at a base, say what can be gained, then fit a probe (--probe) or train latents (--latents).",
    "bundle": "Pack a network and its layout, check it against the engine, and print what a server will need.",
    "bundle push": "Sign a bundle, and push it to the hub or into a directory, with a model card.",
    "bundle pull": "Copy a bundle from the hub or a directory, if it is what was signed, to a directory of your own.",
    "check": "Look for faults before anybody meets them: a tokenizer that is at odds with us, a bundle with a backdoor.",
    "demo": "The embedded demo: its questions, and how its model is made.",
    "demo questions": "Print demo questions as JSON lines with the keys question, answer, steps, family.",
    "demo smollm2": "Write SmolLM2-135M-Instruct, a real base that comes with a package, as a checkpoint.",
    "demo train-base": "Train the demo's base model; with --coconut one learns to think in its own hidden states.",
    "train": "Train a reasoning network: traces, SFT, GRPO, sweeps. Every stage resumes.",
    "train traces": "Explicit answers of the base: X, R, Y, whether Y is right, tokens, and the final hidden state of X.",
    "train sft": "Stage 1: train the reasoning network on the frozen base (SFT). `accelerate launch` for several GPUs.",
    "train grpo": "Stage 2: reinforce the latents whose answers are right (GRPO), rollouts on the vLLM engine.",
    "train pear": "Shorter chains: an adapter on the base, rewarded for right answers after little entropy (PEAR, GRPO).",
    "train sweep": "The paper's ablations: numbers of latents, conditioners, SFT against SFT + GRPO. One table at the end.",
    "train compare": "Options of GRPO against plain GRPO: one network, as many rollouts, several seeds. One table at the end.",
    "analyse": "Look inside: what latents carry, and what a chain does.",
    "analyse attention": "How sure is an explicit answer? Follow it back through attention (UQAC).",
    "analyse kv": "How much of its KV cache does a chain need? Cached tokens are dropped while it is written.",
    "analyse latents": "Put something else in the latents' place: are they needed, and do they carry the answer?",
    "analyse complexity": "How many tokens does a question need, and how much of what could be saved is saved?",
    "analyse exits": "Force an answer at the end of each step of a chain: where could it have ended?",
    "analyse explain": "Read a reason for an answer off its latents, and put it to the test.",
    "analyse importance": "Which steps of a chain does its answer need, and does the model know while it writes them?",
    "analyse prompt": "Can tokens of a question be left out?",
    "analyse trajectory": "Drop tokens, or whole steps, of the chain, and see what answers are left (section 2 of the paper).",
    "analyse why": "Follow an answer back to the lines, the latents and the words of the question that it rests on.",
    "router": "Fit and calibrate the router.",
    "router fit": "Fit the probe, calibrate the router, and write both into the bundle.",
    "router calibrate": "Set what auto is to reach: one target, for which the price of a token is found.",
    "router replay": "What another policy, or another setting, would have decided on logged traffic.",
    "router eval": "Accuracy against cost of every policy, beside single modes, random mixes and an oracle.",
}


def create_app() -> App:
    """`train sft` is the function `sft` of `server.cli.train`; `serve` is the function `serve` of `server.cli.serve`."""
    app = App("latentserve", help=COMMANDS[""], version=lambda: version("latentserve"), help_format="plaintext")
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    for place, (name, text) in enumerate(COMMANDS.items()):
        group, _, command = name.rpartition(" ")
        if "bundle" in (name, group):
            if name == "bundle":  # a command with others under it: they come with it
                app.command("server.cli.bundle:app", name=name, help=text, sort_key=place)
        elif name in groups:
            app.command(App(name, help=text, sort_key=place))
        elif name:
            function = {"eval": "evaluate"}.get(command, command.replace("-", "_"))
            module = group or function
            path = f"server.cli.{module}:{function}"
            (app[group] if group else app).command(path, name=command, help=text, sort_key=place)
    app.register_install_completion_command(help="Complete commands and options in your shell from now on.")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. What its user can mend ends in one sentence and status 1, or 2 where the command cannot be understood."""
    bound = None
    try:
        command, bound, _ = create_app().parse_args(
            sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False
        )
        result = command(*bound.args, **bound.kwargs)
        _print(asyncio.run(result) if inspect.iscoroutine(result) else result)
    except KeyboardInterrupt:
        sys.exit(130)
    except CycloptsError as error:
        _fail(usage_error(error), 2)
    except Exception as error:
        message = explain(error, bound.arguments if bound else {})
        if message is None:
            raise
        _fail(message, 1)


def _print(result: Any) -> None:
    """Tables as they are, figures as JSON."""
    if result is not None:
        print(result if isinstance(result, str) else json.dumps(result, indent=2))


def _fail(message: str, status: int) -> None:
    print(f"latentserve: {message}", file=sys.stderr)
    sys.exit(status)
