"""What a tool has written, for comparing outputs: images, bytes, sizes in pixels, JPEG quality tables and chroma sampling."""

import io
from collections import Counter
from collections.abc import Iterable

from PIL import Image
from PIL.JpegImagePlugin import get_sampling

SAMPLING = {-1: "other", 0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


def describe(images: Iterable[bytes]) -> dict:
    """luma_tables: sum of the first quantisation table -> images (quality 95 gives one value); only of images no larger than 256."""
    count = total = 0
    sizes: Counter = Counter()
    sampling: Counter = Counter()
    tables: Counter = Counter()
    for data in images:
        image = Image.open(io.BytesIO(data))
        count, total = count + 1, total + len(data)
        sizes["x".join(map(str, image.size))] += 1
        if min(image.size) == 256:
            tables[str(sum(image.quantization[0]))] += 1
            sampling["grey" if image.mode == "L" else SAMPLING[get_sampling(image)]] += 1
    return {"images": count, "bytes": total, "sizes": sizes, "sampling": sampling, "luma_tables": tables}
