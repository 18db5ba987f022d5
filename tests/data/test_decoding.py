import io

import numpy as np
import pytest
from _image_files import encoded, picture
from PIL import Image, ImageOps

from torchstone.data.decoding import UnreadableImage, decode, image_size, verify


def pixels(image, kind="PNG", **options):
    decoded = decode(encoded(image, kind, **options))
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_stands_upright_whatever_its_exif_orientation(kind, orientation):
    stored = Image.new("RGB", (16, 8), "black")
    stored.paste("white", (0, 0, 8, 8))  # the left half of what is stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    tagged = Image.open(io.BytesIO(encoded(stored, kind, exif=exif)))
    expected = np.asarray(ImageOps.exif_transpose(tagged))
    decoded = pixels(stored, kind, exif=exif)
    np.testing.assert_array_equal(decoded, expected)
    assert decoded.shape == ((8, 16, 3) if orientation <= 4 else (16, 8, 3))
    white_half = {1: np.s_[:, :7], 2: np.s_[:, 9:], 3: np.s_[:, 9:], 4: np.s_[:, :7]}
    white_half |= {5: np.s_[:7], 6: np.s_[:7], 7: np.s_[9:], 8: np.s_[9:]}
    assert decoded[white_half[orientation]].min() > 240


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_orientation_tag_does_not_cost_the_image():
    image = picture(0)
    broken = pixels(image, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(broken, np.asarray(image))


def test_rgb_pixels_arrive_unchanged():
    np.testing.assert_array_equal(pixels(picture(3)), np.asarray(picture(3)))


def test_grey_and_bilevel_become_equal_channels():
    grey = picture(0).convert("L")
    np.testing.assert_array_equal(pixels(grey), np.asarray(grey)[..., None].repeat(3, -1))
    bilevel = picture(0).convert("1")
    np.testing.assert_array_equal(pixels(bilevel), 255 * np.asarray(bilevel)[..., None].repeat(3, -1).astype(np.uint8))


def test_a_palette_is_looked_up():
    palette = picture(0).quantize(16)
    np.testing.assert_array_equal(pixels(palette), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(pixels(palette, "GIF"), np.asarray(palette.convert("RGB")))


def test_transparency_lies_over_white():
    red = np.array([200, 0, 0, 0], dtype=np.uint8)
    for alpha, expected in ((255, (200, 0, 0)), (0, (255, 255, 255)), (51, (244, 204, 204))):
        image = Image.fromarray(np.tile(red + np.array([0, 0, 0, alpha], dtype=np.uint8), (4, 4, 1)))
        assert tuple(pixels(image)[0, 0]) == expected
    half_clear = Image.merge("LA", [Image.new("L", (2, 2), 100), Image.new("L", (2, 2), 0)])
    assert pixels(half_clear).min() == 255


def test_a_transparent_palette_entry_is_white():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert tuple(pixels(palette)[0, 0]) == (10, 20, 30)
    assert tuple(pixels(palette, transparency=1)[0, 0]) == (255, 255, 255)


def test_a_transparent_colour_is_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert pixels(image, transparency=(1, 2, 3))[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert pixels(Image.fromarray(values), kind)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(image, "JPEG")[8, 8].astype(int) - (255, 0, 0)).max() < 6


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert tuple(pixels(frames[0], "GIF", save_all=True, append_images=frames[1:])[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize("array", [np.ones((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_without_a_defined_white_are_refused(array):
    content = encoded(Image.fromarray(array), "TIFF")
    for look in (decode, verify):
        with pytest.raises(UnreadableImage, match="no defined range"):
            look(content)


WHOLE = {
    kind: encoded(picture(0, 40, 40), kind, **({"lossless": True} if kind == "WEBP" else {}))
    for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_truncated_image_is_unreadable(kind):
    content = WHOLE[kind]
    for look in (decode, verify):
        look(content)
        with pytest.raises(UnreadableImage):
            look(content[: len(content) * 2 // 3])


def test_a_flipped_bit_in_a_png_is_found_without_decoding():
    content = bytearray(WHOLE["PNG"])
    content[len(content) // 2] ^= 1
    with pytest.raises(UnreadableImage):
        verify(bytes(content))


def test_a_jpeg_with_padding_or_other_data_behind_it_is_whole():
    for appended in (b"\0" * 5000, b"a video follows" * 500):
        verify(WHOLE["JPEG"] + appended)


def test_the_reason_says_what_is_wrong(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not pixels")
    for content, reason in ((b"", "empty"), (b"not pixels", "not an image")):
        with pytest.raises(UnreadableImage, match=f"^{reason}$"):
            decode(content)
    for look in (decode, verify, image_size):
        with pytest.raises(UnreadableImage, match=r"^empty$"):
            look(tmp_path / "empty.jpg")
        with pytest.raises(UnreadableImage, match=r"^not an image$"):
            look(tmp_path / "text.jpg")


def test_size_is_read_from_the_header():
    assert image_size(WHOLE["JPEG"][:640]) == (40, 40)
    assert image_size(encoded(picture(0, 7, 9))) == (7, 9)
