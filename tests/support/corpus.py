"""Files as they are met in the wild, made by the tests that read them."""

import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from fastequi.data.sources.encoded import has_avif

PIXELS = np.random.default_rng(7).integers(0, 256, (40, 60, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)


def saved(image=PHOTO, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _turned(kind="JPEG", image=PHOTO, **options):
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, kind, exif=exif.tobytes(), **options)


def _turned_webp(odd):
    """An extended WebP whose EXIF stands behind a chunk of odd or of even length."""
    for side in range(8, 40):
        data = _turned("WEBP", PHOTO.crop((0, 0, 60, side)), lossless=True)
        if (int.from_bytes(data[data.index(b"VP8L") + 4 :][:4], "little") % 2 == 1) == odd:
            return data, (60, side)
    raise AssertionError("no such WebP")


def _animated(kind, **options):
    others = [Image.fromarray(PIXELS // k) for k in (2, 4)]
    return saved(kind=kind, save_all=True, append_images=others, **options)


def _chunk(name, data):
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def _bomb_png():
    """60,000 × 60,000 in 10 kB: 3.6 gigapixels if anyone believed it."""
    size = (60_000).to_bytes(4, "big")
    head = _chunk(b"IHDR", size + size + b"\x08\x02\0\0\0")
    data = _chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    return b"\x89PNG\r\n\x1a\n" + head + data + _chunk(b"IEND", b"")


def _bomb_jpeg():
    data = bytearray(saved(kind="JPEG"))
    at = data.index(b"\xff\xc0") + 5  # the frame's height and width
    data[at : at + 4] = (60_000).to_bytes(2, "big") * 2
    return bytes(data)


_DEEP = Image.fromarray((PIXELS[..., 0].astype(np.uint16) << 8) + 3)
_JPEG = saved(kind="JPEG", quality=95)
_BOMB = "refused undecoded: Image size .3600000000 pixels. exceeds limit"

# name -> bytes, and (height, width) as decoded or a pattern of the reason why not
CORPUS = {
    "grey.jpg": (saved(PHOTO.convert("L"), "JPEG"), (40, 60)),
    "cmyk.jpg": (saved(PHOTO.convert("CMYK"), "JPEG"), (40, 60)),
    "progressive.jpg": (saved(kind="JPEG", progressive=True), (40, 60)),
    "exif turned.jpg": (_turned(), (60, 40)),
    "palette.png": (saved(PHOTO.quantize(16)), (40, 60)),
    "bilevel.png": (saved(PHOTO.convert("1")), (40, 60)),
    "alpha.png": (saved(PHOTO.convert("RGBA")), (40, 60)),
    "deep.png": (saved(_DEEP), (40, 60)),
    "animated.png": (_animated("PNG"), (40, 60)),
    "animated.webp": (_animated("WEBP", lossless=True), (40, 60)),
    "really a png.jpg": (saved(), (40, 60)),
    "really a webp.bmp": (saved(kind="WEBP"), (40, 60)),
    "1x1.png": (saved(Image.new("RGB", (1, 1))), (1, 1)),
    "1x1.jpg": (saved(Image.new("L", (1, 1)), "JPEG"), (1, 1)),
    "20000x10.png": (saved(Image.new("RGB", (20_000, 10))), (10, 20_000)),
    "10x20000.jpg": (saved(Image.new("RGB", (10, 20_000)), "JPEG"), (20_000, 10)),
    "with spaces, ünïcödé 写真 🙂.jpg": (_JPEG, (40, 60)),
    "new\nline.png": (saved(), (40, 60)),
    "animated.gif": (_animated("GIF"), (40, 60)),
    "really a gif.jpg": (_animated("GIF"), (40, 60)),
    "exif behind padding.webp": _turned_webp(odd=True),
    "exif.webp": _turned_webp(odd=False),
    "photo.jfif": (_JPEG, (40, 60)),
    "photo.JPE": (_JPEG, (40, 60)),
    "deflated.tif": (saved(kind="TIFF", compression="tiff_adobe_deflate"), (40, 60)),
    "exif turned.TIFF": (_turned("TIFF"), (60, 40)),
    "bilevel.tiff": (saved(PHOTO.convert("1"), "TIFF"), (40, 60)),  # DALI knows no such TIFF
    "wavelets.jp2": (saved(kind="JPEG2000"), (40, 60)),
    "plain.ppm": (saved(kind="PPM"), (40, 60)),
    "grey.pgm": (saved(PHOTO.convert("L"), "PPM"), (40, 60)),
    "bits.pbm": (saved(PHOTO.convert("1"), "PPM"), (40, 60)),
    "headless.dib": (saved(kind="DIB"), (40, 60)),
    "cut in the data.gif": (_animated("GIF")[:900], "."),
    "empty.jpg": (b"", "empty file"),
    "text.png": (b"this is no image", "no image in a format that is read"),
    "garbage.jpg": (b"\xff\xd8\xff\xe0" + PIXELS.tobytes(), "."),
    "zeros.webp": (bytes(4096), "no image in a format that is read"),
    "cut in the header.jpg": (_JPEG[:100], "."),
    "cut in the data.jpg": (_JPEG[: len(_JPEG) // 2], "."),
    "cut in the data.png": (saved()[:-1000], "."),
    "cut in the data.webp": (saved(kind="WEBP")[:-300], "."),
    "cut in the data.bmp": (saved(kind="BMP")[:-100], "."),
    "flipped bits.png": (saved()[:2000] + b"\xaa" * 8 + saved()[2008:], "."),
    "bomb.png": (_bomb_png(), _BOMB),
    "bomb.jpg": (_bomb_jpeg(), _BOMB),
}
if has_avif():
    CORPUS["turned.avif"] = (_turned("AVIF"), (60, 40))
