"""Measured on the model: its sizes, what its encoder and decoder are given, what the loss covers, where it begins."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpp.claims.subject import Subject, replaced, shaken
from mpp.model.tokens import gather_tokens
from mpp.recipe.places import KEPT, MASKED, SWAPPED, VISIBLE
from mpp.recipe.targets.base import everywhere


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def encoder_size(subject: Subject) -> list[int]:
    """Blocks, width, heads."""
    vit: Any = subject.whole.encoder.vit
    return [len(vit.blocks), vit.embed_dim, vit.blocks[0].attn.num_heads]


def decoder_size(subject: Subject) -> list[int]:
    """Blocks, width, heads of a decoder that has blocks."""
    decoder: Any = subject.whole.decoder
    if not hasattr(decoder, "blocks"):
        return [0, 0, 0]
    block = decoder.blocks[0]
    attention = getattr(block, "attn", None) or block.attention
    return [len(decoder.blocks), decoder.norm.normalized_shape[0], getattr(attention, "num_heads", None) or attention.heads]


def encoder_parameters(subject: Subject) -> int:
    return sum(parameter.numel() for parameter in subject.whole.encoder.parameters())


def parameters(subject: Subject) -> int:
    return sum(parameter.numel() for parameter in subject.whole.parameters())


def gigaflop(subject: Subject) -> float:
    """Of a training step, an image, in 1e9: two for each multiply-add, forward and backward, a teacher's pass included."""
    return subject.flop / 1e9


def prefix(subject: Subject) -> list[int]:
    """Class tokens and registers."""
    tokens = subject.config.model.class_tokens
    return [tokens, subject.whole.encoder.prefix - tokens]


def position(subject: Subject) -> str:
    """Of the encoder: learned, or fixed and then which."""
    vit: Any = subject.small.encoder.vit
    if getattr(vit, "rope", None) is not None:
        return "rotary" if vit.pos_embed is None else "rotary, and added"
    if vit.pos_embed is None:
        return "none"
    if vit.pos_embed.requires_grad:
        return "learned"
    patches = vit.pos_embed[0, -int(np.prod(subject.config.model.grid)) :]
    fits = torch.allclose(patches, torch.from_numpy(mae_positions(vit.embed_dim, subject.config.model.grid)).float(), atol=1e-5)
    return "fixed 2-D sine-cosine" if fits else "fixed, and another than MAE's"


def mae_positions(width: int, grid: tuple[int, int]) -> np.ndarray:
    """MAE's util/pos_embed.py in other words: half of the width for the column, half for the row, each sines and then cosines."""
    omega = 10_000.0 ** -(np.arange(width // 4) / (width / 4))
    rows = [
        [np.concatenate([f(place * omega) for place in (x, y) for f in (np.sin, np.cos)]) for x in range(grid[1])] for y in range(grid[0])
    ]
    return np.array(rows).reshape(-1, width)


def drop_path(subject: Subject) -> list[float]:
    """Rates of the first and of the last block of the encoder."""
    vit: Any = subject.whole.encoder.vit
    rates = [float(getattr(block.drop_path1, "drop_prob", None) or 0.0) for block in vit.blocks]
    return [rates[0], rates[-1]]


def layer_scale(subject: Subject) -> float | str:
    """Where the encoder's layer scales begin."""
    vit: Any = subject.small.encoder.vit
    found = [p for name, p in vit.named_parameters() if name.rsplit(".", 1)[-1] in ("gamma", "gamma_1", "gamma_2") and p.requires_grad]
    return float(found[0].detach().mean()) if found else "none"


def norm_kind(subject: Subject) -> str:
    return type(subject.small.encoder.vit.blocks[0].norm1).__name__.removesuffix("Fp32")


def head_deviation(subject: Subject) -> float:
    """Of the weights of the last layer, as they begin."""
    head: Any = subject.small.decoder.head
    return float(head.weight.detach().std())


def input_range(subject: Subject) -> list[float]:
    """What black and white pixels are when they reach the patch embedding, in red."""
    model, seen = subject.small, list[Tensor]()
    side = subject.config.model.image_size
    handle = model.encoder.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for level in (0.0, 255.0):
            masks = subject.few_masks(1)
            model(torch.full((1, 3, side, side), level), *masks._replace(kind=torch.full_like(masks.kind, VISIBLE)))
    handle.remove()
    return [float(images[0, 0, 0, 0]) for images in seen]


def mask_token_enters(subject: Subject) -> str:
    """Where a hidden patch becomes another, told by what the first block is given and what the patch embedding gave."""
    encoder, masks, passed = subject.small.encoder, subject.few_masks(), subject.passed
    vit: Any = encoder.vit
    prefix, count = encoder.prefix, passed.clean.shape[1]
    positions = torch.zeros(count, 1) if vit.pos_embed is None else vit.pos_embed[0, -count:]
    entering = passed.entering[:, prefix:]
    if entering.shape[1] < count:
        seen = same(entering, gather_tokens(passed.clean + positions, masks.visible))
        return (
            "nowhere: the encoder sees the visible patches alone"
            if seen
            else "nowhere, and the encoder sees other patches than the visible ones"
        )
    token = subject.small.mask_token
    shown = passed.clean.gather(1, masks.source.unsqueeze(-1).expand_as(passed.clean))
    masked = (masks.kind == MASKED).unsqueeze(-1)
    if token is None or token.ndim != 1:
        return "elsewhere than in the embeddings"
    if same(entering, torch.where(masked, token, shown) + positions):
        return "in place of embeddings, before positions are added"
    if same(entering, torch.where(masked, token, shown + positions)):
        return "in place of embeddings, after positions are added"
    return "in other places, or with other embeddings, than the masks say"


def encoder_sees(subject: Subject) -> str:
    """What reaches the patch embedding of two images: they, or what has become of them."""
    seen, images = subject.unnormed(subject.passed.pixels), subject.images
    if torch.allclose(seen, images, atol=0.1):
        return "the image"
    if torch.allclose(seen, seen[:, :1].expand_as(seen), atol=0.1):
        return "the image without its colour"
    turned = [
        any(torch.allclose(one, torch.rot90(image, quarters, (1, 2)), atol=0.1) for quarters in range(4))
        for one, image in zip(seen, images, strict=True)
    ]
    return "the image turned by quarters" if all(turned) else "another image"


def encoder_tokens(subject: Subject) -> int:
    """Patches that the encoder's first block is given."""
    return subject.passed.entering.shape[1] - subject.small.encoder.prefix


def decoder_tokens(subject: Subject) -> int:
    """Tokens that the decoder's first block is given."""
    return subject.passed.decoder_tokens


def loss_covers(subject: Subject) -> str:
    """Which patches the loss is about: predictions that are known by place give losses that are known by place."""
    model, masks = subject.small, subject.few_masks()
    table = torch.randn(*masks.kind.shape, model.target.outputs, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_place = model.target.loss(table, model.target(subject.images, everywhere(masks), model.teacher))
        with replaced(model, "decoder", _FromTable(table)):
            _, loss, *_ = model(subject.images, *masks)
    near = (loss[:, :, None] - by_place[:, None]).abs() <= 1e-5 + 1e-4 * by_place[:, None].abs()  # [B, M, N]
    if not near.any(-1).all():
        return "losses that are of no patch"
    own = loss.shape == masks.predicted.shape and near.gather(2, masks.predicted.unsqueeze(-1)).all()
    places = masks.predicted if own else near.long().argmax(-1)
    kind = masks.kind.gather(1, places)
    words = {MASKED: "masked", SWAPPED: "swapped", KEPT: "kept", VISIBLE: "visible"}
    if subject.passed.entering.shape[1] - model.encoder.prefix < masks.kind.shape[1]:
        words[MASKED] = "dropped"
    counts = [(int((kind[0] == number).sum()), word) for number, word in words.items()]
    return ", ".join(f"{count} {word}" for count, word in counts if count)


class _FromTable(nn.Module):
    """A decoder that predicts what a table says of each place."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = table

    def forward(self, tokens: Any, places: Tensor | None, predicted: Tensor) -> Tensor:
        return gather_tokens(self.table, predicted)


def predicted_from(subject: Subject) -> str:
    """Which of the decoder's tokens a prediction depends on."""
    decoder, masks, encoder = shaken(subject.small.decoder), subject.few_masks(1), subject.small.encoder
    seen = subject.passed.entering.shape[1] - encoder.prefix
    places = masks.visible if seen < masks.kind.shape[1] else None
    maps = encoder.depth + 1 if subject.small.reads_blocks else 1
    tokens = [
        torch.randn(1, encoder.prefix + seen, encoder.width, generator=torch.Generator().manual_seed(i)).requires_grad_()
        for i in range(maps)
    ]
    decoder(tokens if subject.small.reads_blocks else tokens[0], places, masks.predicted)[0, 0].sum().backward()
    used = torch.stack([token.grad[0].abs().sum(-1) > 0 for token in tokens if token.grad is not None]).any(0)
    own = torch.zeros_like(used)
    own[encoder.prefix + int(masks.predicted[0, 0])] = places is None
    if torch.equal(used, own):
        return "the patch's own token"
    if used[encoder.prefix :].all():
        return "all tokens of the encoder" if used.all() else "all patches' tokens"
    return "some of the encoder's tokens"


def initial_loss(subject: Subject) -> float:
    return float(subject.passed.loss.mean())


def initial_over_zero(subject: Subject) -> float:
    """The first loss, in that of predictions that are all zero."""
    model, masks = subject.small, subject.few_masks()
    with torch.no_grad():
        zeros = torch.zeros(*masks.predicted.shape, model.target.outputs)
        return initial_loss(subject) / float(model.target.loss(zeros, model.target(subject.images, masks, model.teacher)).mean())


def memory(subject: Subject) -> str:
    """What the blocks of a cross-attention predictor read."""
    mixture: Any = getattr(subject.whole.decoder, "mixture", None)
    return f"learned sums of {mixture.weights.in_features} maps" if mixture else "the encoder's last tokens"
