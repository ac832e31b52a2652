"""A pretrained encoder with a new head: timm's own model of that architecture, at any resolution and patch grid.  Tensors in, tensors out.

Position embeddings follow the patch grid.  Learned and sine-cosine ones are resampled (bicubic, antialiased), relative biases by BEiT's rule
(finer near, coarser far), the coordinates of relative MLPs and of rotary ones are computed anew; a patch embedding of another size is resampled
by FlexiViT's pseudo-inverse.  All of that is timm's `set_input_size`, checked against known answers in tests/model/test_classifier.py.
"""

import inspect
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpp.base.errors import ConfigError
from mpp.config.sections import ClassifierConfig
from mpp.model.backbone import Backbone
from mpp.model.tokens import class_feature, class_tokens_of, note_class_tokens

NORMS = ("norm.", "fc_norm.")  # timm's names of the final norm, before and behind pooling


def classifier_arguments(net: nn.Module, arguments: dict[str, Any], config: ClassifierConfig, size: tuple[int, int]) -> dict[str, Any]:
    """What `timm.create_model(arch, num_classes=K, **arguments)` needs beyond the encoder's own `arguments`.  Raises ConfigError."""
    backbone = Backbone(net)
    wanted = {key: value for key, value in arguments.items() if key not in ("num_classes", "drop_path_rate")}
    if hasattr(net, "set_input_size"):
        patch = (config.patch_size,) * 2 if config.patch_size else backbone.patch_size
        if any(side % step for side, step in zip(size, patch, strict=True)):
            near = [max(step, round(side / step) * step) for side, step in zip(size, patch, strict=True)]
            raise ConfigError(
                f"model.resolution={list(size)} must be whole multiples of the patch size {list(patch)}; the nearest is {near}"
            )
        wanted["img_size"] = list(size)
        if config.patch_size:
            wanted["patch_size"] = config.patch_size
    elif config.patch_size:
        raise ConfigError(f"model.patch_size={config.patch_size}: a {type(net).__name__} has no patch embedding to resample; leave it out")
    if config.drop_path:
        wanted["drop_path_rate"] = config.drop_path
    if config.pooling == "cls" and not backbone.class_tokens:
        raise ConfigError("model.pooling=cls: the encoder has no class token; use model.pooling=mean")
    if backbone.is_transformer:
        # timm pools one class token or none: with several it leaves the tokens as they are, and `build_classifier` averages.
        wanted["global_pool"] = "avg" if config.pooling == "mean" else "token" if backbone.class_tokens == 1 else ""
    known = inspect.signature(type(net).__init__).parameters
    behind = next((word for word in ("fc_norm", "use_fc_norm") if word in known), None)  # timm's words for a norm behind the pooling
    if config.norm == "pooled" and behind is None:
        raise ConfigError(f"model.norm=pooled: a {type(net).__name__} has no place for a norm behind its pooling; use model.norm=tokens")
    if behind:
        # timm would move the final norm behind a mean unless told not to: it stays where it was trained.
        wanted[behind] = config.norm == "pooled" or isinstance(net.norm, nn.Identity)
    return wanted


def build_classifier(
    net: nn.Module,
    arch: str,
    arguments: dict[str, Any],
    classes: int,
    config: ClassifierConfig,
    size: tuple[int, int],
    seed: int,
    random: bool = False,
) -> nn.Module:
    """timm's model of this architecture with `classes` outputs and the weights of `net`, its headless encoder, which is changed on the way.

    arguments: as `classifier_arguments` gives them.  size: (height, width) of its images in pixels.  seed: of the head, and of new norms.
    random: the encoder is freshly initialised, and so are learned positions of another grid.  Raises ConfigError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            classifier = timm.create_model(arch, pretrained=False, num_classes=classes, **arguments)
        except (TypeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"the model section does not fit timm's {arch} ({' '.join(str(error).split())}); try another resolution, pooling or norm"
            ) from error
        if random and any(isinstance(module, _BatchNorm) for module in classifier.modules()):
            raise ConfigError(
                f"init=random: {arch} has batch norms, whose statistics mpp keeps as pretrained; choose an encoder without them"
            )
        resize_positions(net, size, config.patch_size, fresh=random)
        head = classifier.get_classifier()  # type: ignore[operator]
        if not isinstance(head, nn.Linear):
            raise ConfigError(f"the head of timm's {arch} is a {type(head).__name__}, not one linear layer; choose another encoder")
        carry_over(net, classifier, new_norm=config.norm == "pooled")
        with torch.no_grad():
            head.weight.normal_(std=config.head_std) if config.head_std else head.weight.zero_()
            if head.bias is not None:
                head.bias.zero_()
    keep_batch_statistics(classifier)
    if config.pooling == "cls" and class_tokens_of(net) > 1:
        classifier.fc_norm.register_forward_pre_hook(_AverageOfFirst(class_tokens_of(net)))  # type: ignore[union-attr]
    return note_class_tokens(classifier, class_tokens_of(net))


class _AverageOfFirst:
    """What comes between timm's pooling, which here leaves the tokens as they are, and its head: [B, P + N, D] -> the mean of the class tokens."""

    def __init__(self, class_tokens: int):
        self.class_tokens = class_tokens

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return class_feature(inputs[0], self.class_tokens)


def resize_positions(net: Any, size: tuple[int, int], patch_size: int | None = None, fresh: bool = False) -> None:
    """Fit an encoder to images of this (height, width) and patch size, in place.  fresh: learned positions of a new grid are drawn anew."""
    embed = getattr(net, "patch_embed", None)
    if not hasattr(net, "set_input_size") or embed is None:
        return
    grid = embed.grid_size
    if tuple(embed.img_size) != size or (patch_size and tuple(embed.patch_size) != (patch_size, patch_size)):
        net.set_input_size(img_size=size, patch_size=(patch_size, patch_size) if patch_size else None)
    positions = getattr(net, "pos_embed", None)
    if fresh and positions is not None and positions.requires_grad and tuple(embed.grid_size) != tuple(grid):
        nn.init.normal_(positions, std=0.02)


@torch.no_grad()
def carry_over(net: nn.Module, classifier: nn.Module, new_norm: bool) -> None:
    """Copy every weight and buffer of the encoder; all but the head, and a new norm behind the pooling, must come from it."""
    theirs, ours = net.state_dict(), classifier.state_dict()
    fixed = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    head = {id(parameter) for parameter in classifier.get_classifier().parameters()}  # type: ignore[operator]
    news = {name for name, parameter in classifier.named_parameters() if id(parameter) in head}
    for name, tensor in ours.items():
        if name in news or (new_norm and name.startswith("fc_norm.")):
            continue
        source = name
        if source not in theirs:  # timm has the final norm behind the pooling where it averages
            source = next((a + name.removeprefix(b) for a, b in (NORMS, NORMS[::-1]) if name.startswith(b)), name)
        if source not in theirs or theirs[source].shape != tensor.shape:
            found = tuple(theirs[source].shape) if source in theirs else "absent"
            raise ConfigError(f"the encoder does not fill timm's model: {name} is {tuple(tensor.shape)}, in the encoder {found}")
        tensor.copy_(theirs[source])
    for name, parameter in classifier.named_parameters():
        if name in fixed:
            parameter.requires_grad_(False)  # fixed sine-cosine positions


def keep_batch_statistics(net: nn.Module) -> None:
    """Batch norms keep their pretrained statistics: a batch's own would make a step depend on how it is shared among processes."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]


def soft_targets(labels: Tensor, classes: int, smoothing: float, share: Tensor | None = None) -> Tensor:
    """int64 [B] -> float32 [B, K]: label smoothing spreads `smoothing` over all classes; `share` [B] mixes each row with its partner's.

    Partners are rows 2j and 2j + 1.
    """
    targets = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / classes)
    if share is None:
        return targets
    return targets * share[:, None] + partners(targets) * (1 - share[:, None])


def partners(rows: Tensor) -> Tensor:
    """[B, ...] -> the same with rows 2j and 2j + 1 exchanged."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
