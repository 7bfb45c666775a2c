"""A bundle's model card: README.md with the front matter that the hub reads, all of it from the manifest."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from reasoning_net.manifest import AUDIT, BACKDOOR, Manifest
from reasoning_net.tables import table

_DEEPEST = 2  # of nested figures: deeper ones stay in bundle.json
_TAGS = ("latentserve", "latent-reasoning", "reasoning")


def model_card(
    manifest: Manifest, name: str, *, base: str | None = None, license_id: str | None = None, fingerprint: str | None = None,
    figures: Mapping[str, Mapping[str, Any]] | None = None, plots: Sequence[str] = (),
) -> str:  # fmt: skip
    """The text of README.md.

    `name`: how the bundle is asked for, `owner/name` or a directory. `base`: the base's id on the hub, or its path, which is
    told and is no link. `figures`: what else was measured, by what, in the form of the manifest's scores. `plots`: files beside
    the card.
    """
    is_on_hub = base is not None and base.count("/") == 1 and not base.startswith((".", "/", "~"))
    front = ModelCardData(
        base_model=base if is_on_hub else None,
        base_model_relation="adapter" if is_on_hub else None,
        library_name="latentserve",
        license=license_id,
        pipeline_tag="text-generation",
        tags=[*_TAGS, *(mode for mode in ("latent", "auto") if mode in _modes(manifest))],
    )
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {name}",
        f"A bundle for latentserve: {_what(manifest)}, for {f'`{base}`' if base else 'its base'}, which stays as it is.",
        f"```\nlatentserve serve --model {base or 'BASE'} --bundle {name}\n```",
        table(("", ""), _rows(_facts(manifest, fingerprint))),
    ]
    for title, found in {**manifest.scores, **(figures or {})}.items():
        if rows := list(_figures(found)):
            parts += [f"## {_heading(title)}", table(("figure", "value"), _rows(rows))]
    parts += [f"![{plot}]({plot})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def fingerprint_in(card: str) -> str | None:
    """Of the bundle that a card was written for; None where it does not say."""
    found = re.search(r"^\| Fingerprint \| `(\w+)` \|$", card, re.MULTILINE)
    return found[1] if found else None


def _modes(manifest: Manifest) -> list[str]:
    has_latents, routes = manifest.reasoning_net is not None, manifest.probe is not None
    return ["direct", "explicit", *(["latent"] if has_latents else []), *(["auto"] if routes else [])]


def _what(manifest: Manifest) -> str:
    parts = [
        "a network that thinks in latents" if manifest.reasoning_net else "",
        "a probe that says which questions need to be thought through" if manifest.probe else "",
    ]
    return " and ".join(filter(None, parts)) or "a prompt layout"


def _facts(manifest: Manifest, fingerprint: str | None) -> list[tuple[str, str]]:
    base, net, probe = manifest.base, manifest.reasoning_net, manifest.probe
    facts = {
        "Modes": ", ".join(_modes(manifest)),
        "Fingerprint": f"`{fingerprint}`" if fingerprint else "",
        "Base": f"{base.model_type}, {base.num_hidden_layers} layers of {base.hidden_size}, {base.vocab_size:,} tokens",
        "Base's weights and tokenizer": f"`{base.weights}`, `{base.tokenizer}`",
        "Network": f"{net.num_hidden_layers} layers of {net.hidden_size}, reads {net.conditioner}" if net else "",
        "Latents": f"{manifest.num_latent_tokens}, at most {net.num_latent_tokens}" if net else "",
        "Probe": f"reads {', '.join(probe.features)}, says {', '.join(probe.targets)}" if probe else "",
        "Trained on": manifest.trained_on,
        "Format": str(manifest.format_version),
    }
    return [(name, text) for name, text in facts.items() if text]


def _heading(title: str) -> str:
    return {AUDIT: "Are the latents needed?", BACKDOOR: "Does a trigger turn the answers?"}.get(title, f"Measured by `{title}`")


def _figures(found: Any, path: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Rows of nested figures, to the depth that a reader takes in."""
    if isinstance(found, Mapping):
        if len(path) > _DEEPEST:
            return []
        return [row for key, value in found.items() for row in _figures(value, (*path, str(key)))]
    if isinstance(found, Sequence) and not isinstance(found, str):
        return []
    return [(", ".join(path), f"{found:,.4g}" if isinstance(found, float) else str(found))] if found is not None else []


def _rows(found: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """As cells of a table."""
    return ((name, text.replace("|", "\\|")) for name, text in found)
