"""Images as patches, row by row.  Letters: B batch, H, W pixels, N patches, M of them, P patch side in pixels."""

from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """images [B, 3, H, W] -> patches [B, N, 3, P, P]."""
    batch, channels, height, width = images.shape
    p = patch_size
    return images.view(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, p, p)


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """patches [B, N, 3, P, P] of a grid of rows x columns -> images [B, 3, H, W]."""
    batch, _, channels, p, _ = patches.shape
    rows, columns = grid
    return patches.view(batch, rows, columns, channels, p, p).permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * p, columns * p)


def gather_patches(patches: Tensor, index: Tensor) -> Tensor:
    """patches [B, N, 3, P, P], index [B, M] -> [B, M, 3, P, P]."""
    return patches.gather(1, index[:, :, None, None, None].expand(-1, -1, *patches.shape[2:]))
