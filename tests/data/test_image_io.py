"""Every file becomes the pixels that plain Pillow sees, or an error with its name."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mela_jax.data.image_io import (
    MASK_FILES,
    MASK_FOLDERS,
    BadImageError,
    list_pictures,
    load_square,
    read_image,
    to_square,
)


@pytest.fixture
def picture():
    """Return uint8[30, 40, 3]: smooth, so that JPEG keeps it, and with no symmetry."""
    y, x = np.mgrid[:30, :40]
    return np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8)


def test_real_image_as_plain_pillow(ham10000_small):
    """A real JPEG, cut and resized by hand, gives the same square."""
    path = ham10000_small / "HAM10000_images_part_1" / "ISIC_0024306.jpg"
    plain = Image.open(path).convert("RGB")
    np.testing.assert_array_equal(read_image(path), np.asarray(plain))
    left = (plain.width - plain.height) // 2
    square = plain.crop((left, 0, left + plain.height, plain.height))
    expected = square.resize((128, 128), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(
        load_square(path, size=128, crop="center"), np.asarray(expected)
    )


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".PNG"])
def test_lossless_formats(tmp_path, picture, suffix):
    """What was saved is read."""
    path = tmp_path / f"image{suffix}"
    Image.fromarray(picture).save(path)
    np.testing.assert_array_equal(read_image(path), picture)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA", "I;16"])
def test_modes(tmp_path, picture, mode):
    """Grey, palette, CMYK and 16-bit grey become RGB."""
    grey = Image.fromarray(picture).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 7)
    else:
        image = (grey if mode == "LA" else Image.fromarray(picture)).convert(mode)
    suffix = {"CMYK": ".tif", "YCbCr": ".tif"}.get(mode, ".png")
    path = tmp_path / f"image{suffix}"
    image.save(path)
    expected = grey if mode in ("I;16", "LA") else Image.open(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(expected.convert("RGB")))


def test_16_bit_colour_keeps_the_upper_byte(tmp_path, picture):
    """A 16-bit RGB PNG, which Pillow cannot write, is written by hand and read."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width = picture.shape[:2]
    rows = (picture.astype(">u2") * 256 + 99).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read_image(path), picture)


def test_transparency_is_laid_over_white(tmp_path, picture):
    """Clear pixels are white, half-clear ones half-way to white."""
    alpha = np.full((30, 40, 1), 255, np.uint8)
    alpha[:10], alpha[10:20] = 0, 128
    path = tmp_path / "image.png"
    Image.fromarray(np.concatenate([picture, alpha], axis=-1)).save(path)
    image = read_image(path)
    assert (image[:10] == 255).all()
    half = picture[10:20] * (128 / 255) + 255 * (127 / 255)
    np.testing.assert_allclose(image[10:20], half, atol=1)
    np.testing.assert_array_equal(image[20:], picture[20:])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation(tmp_path, picture, orientation, turned, suffix):
    """The picture is turned as its EXIF block says."""
    path = tmp_path / f"image.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif, quality=95)
    stored = np.asarray(Image.open(path))
    np.testing.assert_array_equal(read_image(path), turned(stored))


def test_damaged_exif_keeps_the_pixels(tmp_path, picture):
    """An EXIF block of rubbish does not cost the picture."""
    path = tmp_path / "image.jpg"
    Image.fromarray(picture).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_image(path).shape == picture.shape


def test_phone_mpo_gives_its_photograph(tmp_path, picture):
    """The first picture of an MPO file is read, although there are two."""
    path = tmp_path / "phone.jpg"
    second = Image.fromarray(picture[::-1].copy())
    Image.fromarray(picture).save(
        path, format="MPO", save_all=True, append_images=[second], quality=95
    )
    assert Image.open(path).n_frames == 2
    assert np.abs(read_image(path).astype(int) - picture).mean() < 3


def test_bad_files_are_named(tmp_path, picture):
    """Truncated, empty, foreign, animated, absent: each says which file it is."""
    whole = tmp_path / "whole.jpg"
    Image.fromarray(picture).save(whole)
    content = whole.read_bytes()
    png = tmp_path / "whole.png"
    Image.fromarray(picture).save(png)
    files = {
        "truncated.jpg": content[: len(content) * 2 // 3],
        "head.jpg": content[:20],
        "truncated.png": png.read_bytes()[:60],
        "text.jpg": b"this is no picture\n" * 50,
        "empty.jpg": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    frames = [Image.fromarray(np.roll(picture, i, axis=0)) for i in range(3)]
    for name in ("animated.gif", "animated.webp", "stack.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        files[name] = b""
    floats = Image.fromarray(picture[..., 0].astype(np.float32))
    floats.save(tmp_path / "floats.tif")
    (tmp_path / "folder.jpg").mkdir()
    for name in [*files, "floats.tif", "folder.jpg", "absent.jpg"]:
        with pytest.raises(BadImageError, match=name) as info:
            read_image(tmp_path / name)
        assert "\n" not in str(info.value)


@pytest.mark.parametrize("side", [12_000, 30_000])
def test_decompression_bomb(tmp_path, side):
    """A small file that declares too many pixels is refused before it is decoded."""
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body
        + struct.pack(">I", zlib.crc32(body)) + struct.pack(">I", 0) + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip
    with pytest.raises(BadImageError, match=r"bomb.png.*pixels"):
        read_image(path)


def test_squares_keep_proportions():
    """The centre is cut, or black is added; a disc stays a disc."""
    image = np.full((60, 100, 3), 200, np.uint8)
    image[:, :20] = 0
    image[:, 80:] = 0
    assert (to_square(image, size=60, crop="center") == 200).all()
    padded = to_square(image, size=100, crop="pad")
    np.testing.assert_array_equal(padded[20:80], image)
    assert (padded[:20] == 0).all() and (padded[80:] == 0).all()
    assert to_square(image.swapaxes(0, 1), size=50, crop="pad").shape == (50, 50, 3)
    assert to_square(image[:1, :1], size=8, crop="center").min() == 0
    y, x = np.mgrid[:60, :100] - np.array([29.5, 49.5])[:, None, None]
    disc = np.repeat((np.hypot(x, y) < 20).astype(np.uint8)[..., None] * 255, 3, -1)
    for crop, expected in (("center", 20 * 24 / 60), ("pad", 20 * 24 / 100)):
        small = to_square(disc, size=24, crop=crop)[..., 0] / 255
        np.testing.assert_allclose(small, small.T, atol=0.02)
        assert np.sqrt(small.sum() / np.pi) == pytest.approx(expected, rel=0.02)
    with pytest.raises(ValueError, match="squash"):
        to_square(image, size=10, crop="squash")


def test_reduction_covers_the_whole_source():
    """A fine chequerboard becomes grey: no pixel of the source is left out."""
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = to_square(np.repeat(board[..., None], 3, -1), size=16, crop="center")
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_pictures_are_listed_through_links_and_without_masks(tmp_path, picture):
    for name in ("b.JPG", "a/c.jfif", "a/d.jpe", "masks/m.png", "x_segmentation.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name, "JPEG")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.jpg").touch()
    (tmp_path / "gone.png").symlink_to("../.git/annex/objects/gone.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = list_pictures(tmp_path, skip_folders=MASK_FOLDERS, skip_files=MASK_FILES)
    names = ["IMG_1.HEIC", "a/c.jfif", "a/d.jpe", "b.JPG", "gone.png"]
    assert found.pictures == [str(tmp_path / name) for name in names]
    assert found.others == [str(tmp_path / "notes.txt")]
    assert len(list_pictures(tmp_path).pictures) == 7
    for name in ("a/c.jfif", "a/d.jpe"):
        assert read_image(tmp_path / name).shape == (30, 40, 3)


def test_what_to_do_with_a_phones_photograph_or_a_broken_link_is_said(tmp_path):
    photograph, link = tmp_path / "IMG_1.HEIC", tmp_path / "x.jpg"
    photograph.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    link.symlink_to("../.git/annex/objects/absent.jpg")
    with pytest.raises(BadImageError, match="IMG_1.HEIC"):
        read_image(photograph)
    with pytest.raises(BadImageError, match="annex/objects/absent.jpg, .* not there"):
        read_image(link)
