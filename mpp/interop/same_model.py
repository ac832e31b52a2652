"""Whether an encoder is one that the model section builds, and if not, the words that make it so."""

from typing import Any

import torch
from torch import nn

from mpp.base.errors import ConfigError
from mpp.config.sections import ModelConfig
from mpp.interop.loaded_encoder import NO_FUNCTION
from mpp.model.encoder import build_encoder
from mpp.model.tokens import class_tokens_of

# Keys of the model section by which encoders differ, in the order in which they are found to be needless: what people turn most comes last.
TRAITS = ("rotary_frequencies", "qk_norm", "layer_scale", "position", "registers", "class_tokens", "heads", "depth", "width")
SCALE = 1e-5  # layer scale at its start, where weights bring their own


def refuse_another(theirs: Any, arch: str, ours: nn.Module, model: ModelConfig, source: str) -> None:
    """theirs: a timm VisionTransformer or Eva at the image and patch size of ours; arch: timm's name for it.  ours: what `model` builds.

    Raises ConfigError with all the words that would build theirs, where weights do not fit or would compute something else.
    """
    difference = first_difference(theirs, ours)
    if difference is None:
        return
    words = fitting_words(theirs, arch, model)
    if words is None:
        raise ConfigError(
            f"{source} is of another model, a {type(theirs).__name__} that no words of the model section build ({difference}); give weights of "
            "a plain Vision Transformer"
        )
    there, here = _traits(theirs, model), _traits(ours, model)
    other = [key for key in reversed(TRAITS) if there[key] != here[key] and key not in ("layer_scale", "rotary_frequencies")]
    by_trait = ", ".join(f"{key} {_word(there[key])} and here {_word(here[key])}" for key in other)
    raise ConfigError(f"{source} is of another model (there {by_trait or difference}); to begin from it give {' '.join(words)}")


def first_difference(theirs: Any, ours: Any) -> str | None:
    """In what one's weights do not fit the other, or make another function; None: in nothing.  Fixed parameters are each one's own."""
    fixed = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    there, here = ({n: tuple(t.shape) for n, t in net.state_dict().items() if n not in fixed} for net in (theirs, ours))
    for name in [*here, *(name for name in there if name not in here)]:
        if there.get(name) != here.get(name):
            return f"{name} is {there.get(name, 'absent')} and here {here.get(name, 'absent')}"
    if (a := _heads(theirs)) != (b := _heads(ours)):  # weights alone would fit
        return f"attention has {a} heads and here {b}"
    kinds, own = _kinds(theirs), _kinds(ours)
    return next((f"{name} is {kinds[name]} and here {own[name]}" for name in own if kinds.get(name, own[name]) != own[name]), None)


def fitting_words(theirs: Any, arch: str, model: ModelConfig) -> list[str] | None:
    """The fewest `model.KEY=VALUE` that turn `model` into one that builds this encoder, each tried by building it without weights; None: none do."""
    found: list[list[str]] = []
    for name in dict.fromkeys((model.arch, arch)):
        changes = _traits(theirs, model)
        if not _builds(theirs, model, {"arch": name, **changes}):
            continue
        for key in TRAITS:
            fewer = {other: value for other, value in changes.items() if other != key}
            if _builds(theirs, model, {"arch": name, **fewer}):
                changes = fewer
        named = [] if name == model.arch else [f"model.arch={name}"]
        found.append(named + [f"model.{key}={_word(changes[key])}" for key in reversed(TRAITS) if key in changes])
    return min(found, key=len, default=None)


def _builds(theirs: Any, model: ModelConfig, changes: dict[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            ours = build_encoder(ModelConfig.model_validate(model.model_dump() | changes), seed=0).vit
    except (ConfigError, ValueError, RuntimeError, TypeError, AssertionError):  # sizes that do not go together
        return False
    return first_difference(theirs, ours) is None


def _traits(net: Any, model: ModelConfig) -> dict[str, Any]:
    """What of a timm VisionTransformer or Eva the keys of `TRAITS` say; of those that its weights do not fix, as `model` has them."""
    block = net.blocks[0]
    scaled = any(name.rsplit(".", 1)[-1].startswith("gamma") and part.requires_grad for name, part in block.named_parameters())
    rotary, fixed = getattr(net, "rope", None) is not None, model.position == "sincos2d"
    class_tokens = class_tokens_of(net)
    return {
        "rotary_frequencies": model.rotary_frequencies if rotary else None,
        "qk_norm": not isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity),
        "layer_scale": (model.layer_scale or SCALE) if scaled else 0.0,
        "position": "rotary" if rotary else "none" if net.pos_embed is None else "sincos2d" if fixed else "learned",
        "registers": int(net.num_prefix_tokens) - class_tokens,
        "class_tokens": class_tokens,
        "heads": _heads(net),
        "depth": len(net.blocks),
        "width": int(net.embed_dim),
    }


def _heads(net: Any) -> int | None:
    return getattr(getattr(net.blocks[0], "attn", None), "num_heads", None)


def _kinds(net: nn.Module) -> dict[str, str]:
    """Of the layers behind the patch embedding that a state dict does not tell apart, such as activations."""
    return {
        name: f"{type(module).__name__}{' (tanh)' if getattr(module, 'approximate', 'none') == 'tanh' else ''}"
        for name, module in net.named_modules()
        if not any(True for _ in module.children()) and type(module).__name__ not in NO_FUNCTION and not name.startswith("patch_embed.")
    }


def _word(value: Any) -> str:
    return (
        "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
