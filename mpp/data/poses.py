"""The eight ways in which a square can lie, which a view is drawn in and the device brings its crop to.

A pose is the number of EXIF's orientation less one, so `crop.turned(planes, pose + 1)` is the same of one image:
    0 as it was cut   1 mirrored, left to right   2 by 180 degrees   3 upside down (mirrored)
    4 transposed      5 by 270 degrees            6 transposed along the other diagonal   7 by 90 degrees (counter-clockwise)
"""

import torch
from torch import Tensor

LEFT_RIGHT, UPSIDE_DOWN = 1, 3
QUARTERS = (0, 7, 2, 5)  # the poses that are no mirror images, by quarter turns counter-clockwise


def pose_of(flip: bool, vertical_flip: bool, quarters: int) -> int:
    """A crop turned counter-clockwise by so many quarters, then mirrored left to right, then upside down."""
    return QUARTERS[quarters] ^ (LEFT_RIGHT if flip else 0) ^ (UPSIDE_DOWN if vertical_flip else 0)


def posed(images: Tensor, pose: Tensor) -> Tensor:
    """[B, C, H, W] as they were cut -> each in its pose; pose: int64 [B], on the CPU.  H = W where a pose needs that (4 to 7)."""
    there, here = pose.to(images.device, non_blocking=True)[:, None, None, None], pose.numpy()
    # Each of the eight is made of three moves, in this order; those that none of the batch makes cost nothing.
    if (here & 4).any():
        images = torch.where((there & 4) > 0, images.transpose(2, 3), images)
    if ((here + 1) & 2).any():
        images = torch.where(((there + 1) & 2) > 0, images.flip(3), images)
    if (here & 2).any():
        images = torch.where((there & 2) > 0, images.flip(2), images)
    return images
