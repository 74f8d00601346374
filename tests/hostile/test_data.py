"""Data files of people who mean harm, or whose exports went wrong: one clear line, or the right texts, at once."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from optin.errors import InputError
from optin.space.options import Task
from optin.tasks import Examples, Images, load_examples, load_images, load_scenes, rows, task_spec, text, vision
from optin.tasks.images import Unreadable
from tests.networks import build

TEXTS, TOKENS = task_spec("text-classification"), task_spec("token-classification")
IMAGES, SCENES = task_spec("image-classification"), task_spec("semantic-segmentation")


def refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def texts(path, spec=TEXTS, labelled=True, **options):
    return load_examples(spec, Task(data=str(path), **options), "evaluation", labelled=labelled)


def images(path, labelled=True, **options):
    return load_images(IMAGES, Task(data=str(path), **options), "evaluation", labelled=labelled)


DEEP = "[" * 100_000 + "]" * 100_000
FILES = {
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"text,label\n", "no data"),
    "blank.csv": (b"\n\n\n", "no data"),
    "nul.csv": (b"text,label\na\0b,1\n", "NUL"),
    "late-nul.csv": (b"text,label\n" + b"film,1\n" * 1000 + b"a\0b,1\n", "line 1002 .* NUL"),
    "utf16.csv": ("text,label\nfilm,1\n".encode("utf-16"), "UTF-16"),
    "utf16-without-mark.csv": ("text,label\nfilm,1\n".encode("utf-16-le"), "NUL"),
    "latin.csv": ("text,label\nfilm é,1\n".encode("latin-1"), "not UTF-8"),
    "mixed.tsv": ("text\tlabel\né\t1\n".encode() + b"\xe9\t0\n", "not UTF-8"),
    "zipped.csv": (gzip.compress(b"text,label\nfilm,1\n"), "NUL|UTF-8"),
    "zip.csv.gz": (gzip.compress(b"text,label\nfilm,1\n"), "expected one of"),
    "bomb.csv.gz": (gzip.compress(b"\0" * (1 << 24)), "expected one of"),
    "columns.csv": (b",".join(b"c%d" % i for i in range(200_000)) + b"\n", "200,000 columns"),
    "unclosed.csv": (b'text,label\n"film,1\nplot,0\n', "line 3 .* pairs"),
    "stray.csv": (b'text,label\n"film"s,1\n', "line 2 .* pairs"),
    "twice.csv": (b"text,text,label\nfilm,plot,1\n", "two columns 'text'"),
    "wide.tsv": (b"text\tlabel\nfilm\tplot\t1\n", "line 2 .* tabs"),
    "no-text.csv": (b"text,label\n,1\n", "no row of .* has a text"),
    "short.csv": (b"label,text\n1\n", "no row of .* has a text"),
    "no-label.csv": (b"text,label\nfilm,1\nplot,\n", "row 2"),
    "binary.csv": (bytes(range(1, 256)) * 50, "cannot read|line|unknown column"),
    "long-cell.csv": (b"text,label\n" + b"a" * ((1 << 24) + 1) + b",1\n", "field larger"),
    "deep.jsonl": (DEEP.encode(), "recursion|entry 1"),
    "deep-text.jsonl": (('{"text": ' + DEEP + "}").encode(), "recursion|row 1"),
    "digits.jsonl": (b'{"text": "film", "label": ' + b"9" * 5000 + b"}", "digits"),
    "huge.jsonl": (b'{"text": "film", "label": 1e400}', None),
    "list-of-lists.json": (b"[[1, 2], [3, 4]]", "entry 1 .* list"),
    "scalar.json": (b"5", "entry 1 .* int"),
    "null.jsonl": (b"null\n", "entry 1 .* NoneType"),
    "half.jsonl": (b'{"text": "film", "label": 1}\n{"text": "pl', "line 2"),
    "same-name.jsonl": (b'{"text": "film", "text": "plot", "label": 1}', "'text' occurs twice"),
    "number.jsonl": (b'{"text": 5, "label": 1}', "row 1 is 5"),
    "object.jsonl": (b'{"text": {"a": 1}, "label": 1}', "must hold texts"),
    "nan.jsonl": (b'{"text": "film", "label": NaN}', "row 1"),
    "surrogate.jsonl": (b'{"text": "\\ud800", "label": 1}', "must hold texts; row 1"),
    "growing.jsonl": (b"\n".join(b'{"c%d": 1}' % i for i in range(5000)), "more than 4,096 columns"),
    "latin.jsonl": (b'{"text": "\xe9", "label": 1}', "not UTF-8"),
    "not.parquet": (b"PAR1" + b"\0" * 100 + b"PAR1", "cannot read"),
    "short.parquet": (b"PAR1", "cannot read"),
    "name.pkl": (b"\x80\x04.", "expected one of"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_text(name, tmp_path):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    if message is None:  # a number after all, which no class has
        found = texts(tmp_path / name)
        refused(lambda: text.class_indices(build("bert"), TEXTS, found), "none of the model's")
    else:
        refused(lambda: texts(tmp_path / name), message)


def write_parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


PARQUETS = {
    "no rows": (
        {"text": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.int64())},
        "is empty",
    ),
    "nested": ({"text": [{"a": "film"}], "label": [1]}, "must hold texts"),
    "lists": ({"text": [["film"]], "label": [1]}, "must hold texts"),
    "bytes": ({"text": [b"film"], "label": [1]}, "must hold texts"),
    "missing": ({"text": pyarrow.array([None], pyarrow.string()), "label": [0]}, "no row of .* has a text"),
    "no label": ({"text": ["film"], "label": pyarrow.array([None], pyarrow.int64())}, "row 1"),
    "other columns": ({"opening": ["film"]}, "unknown column 'text'"),
}


@pytest.mark.parametrize("name", PARQUETS)
def test_parquet_of_text(name, tmp_path):
    columns, message = PARQUETS[name]
    refused(lambda: texts(write_parquet(tmp_path / "a.parquet", **columns)), message)


def test_a_cut_parquet_file(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=[f"film {i}" for i in range(1000)], label=[1] * 1000)
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes(200) + data[250:])
    refused(lambda: texts(path), "cannot read")


def test_a_parquet_file_of_rows_without_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROWS", 999)
    refused(lambda: texts(write_parquet(tmp_path / "a.parquet", text=["a"] * 1000, label=[1] * 1000)), "1,000 rows")


LABELS = ["²", "①", "1.0", "1e400", "--1", "-1", "3", "9" * 5000, "", "None", "0x1", "1_0", 0.5, True, None, [1], -1]
LABELS += [10**5000, float("nan"), float("inf"), 3, {"a": 1}]


@pytest.mark.parametrize("label", LABELS, ids=lambda label: f"{type(label).__name__}{LABELS.index(label)}")
def test_labels_that_are_no_class(label):
    found = Examples(["film", "plot"], None, [1, label])
    refused(lambda: text.class_indices(build("bert"), TEXTS, found), "row 2")


VALUES = [
    "²",
    "\uff11",
    "1e400",
    "9" * 5000,
    "",
    "None",
    "0x1",
    "1_0",
    "nan",
    True,
    None,
    [1],
    10**5000,
    float("inf"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}{VALUES.index(value)}")
def test_labels_that_are_no_value(value):
    found = Examples(["film", "plot"], None, [1, value])
    refused(lambda: text.class_indices(build("bert"), task_spec("text-regression"), found), "row 2")


@pytest.mark.parametrize("label", [None, "0", 0.5, True, -1, 3, float("nan"), [1]], ids=repr)
def test_labels_of_images_in_memory(label):
    found = Images(lambda index: None, 2, [0, label])
    refused(lambda: vision.class_indices(build("vit"), IMAGES, found), "row 2|4 classes")


@pytest.mark.parametrize("words", [["film"], [], "film", [1], [None], None, [["film"]]], ids=repr)
def test_words_and_tags(words, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"tokens": words, "tags": "B"}) + "\n")
    if words == ["film"]:
        found = texts(tmp_path / "a.jsonl", TOKENS)
        refused(lambda: text.class_indices(build("bert", "TokenClassification"), TOKENS, found), "list of tags")
    else:
        said = "must hold lists of words" if words else "no row of .* has a text"
        refused(lambda: texts(tmp_path / "a.jsonl", TOKENS), said)


@pytest.mark.parametrize("spec", [TEXTS, IMAGES, SCENES], ids=lambda spec: spec.kind.name)
@pytest.mark.parametrize(
    "kind", ["fifo", "device", "long", "nul", "home", "nowhere", "loop", "split", "absolute", "dots"]
)
def test_paths(kind, spec, tmp_path):
    load = {TEXTS: load_examples, IMAGES: load_images, SCENES: load_scenes}[spec]
    splits = {"split": "../x", "absolute": "/etc/passwd", "dots": ".."}
    data = {"device": "/dev/zero", "long": "a" * 300, "nul": "a\0b", "home": "~nobody-of-this-name/x"}.get(kind)
    if kind == "fifo":
        os.mkfifo(tmp_path / "pipe.csv")
        data = str(tmp_path / "pipe.csv")
    if kind == "loop":
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        data = str(tmp_path / "loop")
    task = Task(data=data or str(tmp_path / ("" if kind in splits else "x")), evaluation_split=splits.get(kind))
    refused(
        lambda: load(spec, task, "evaluation", labelled=True),
        "plain name" if kind in splits else "pipe or a device|no such file or folder|is a file",
    )


def test_pipes_in_the_place_of_parts_are_passed_over(tmp_path):
    for name in ("validation.csv", "data_batch_1.bin", "t10k-images-idx3-ubyte"):
        os.mkfifo(tmp_path / name)
    refused(lambda: texts(tmp_path), "no file for the part")
    refused(lambda: images(tmp_path), "holds no images")


def png(mode="RGB", size=(8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
BOMB += chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
TEXT_BOMB = png()[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * (1 << 26))) + png()[33:]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def damaged(data: bytes, place: int) -> bytes:
    return data[:place] + bytes(255 - byte for byte in data[place : place + 8]) + data[place + 8 :]


def tiff(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, "TIFF")
    return buffer.getvalue()


PICTURES = {
    "empty": b"",
    "text": b"no image",
    "eps": EPS,
    "bomb": BOMB,
    "text bomb": TEXT_BOMB,
    "header": png()[:30],
    "cut": png("RGB", (640, 640))[:120],
    "checksum": damaged(png(), 20),
    "no pixels": png().replace(struct.pack(">II", 8, 8), struct.pack(">II", 0, 0)),
    "float": tiff("F"),
    "32 bits": tiff("I"),
    "damaged tiff": damaged(tiff("RGB"), 4),
    "gif": b"GIF89a" + b"\xff" * 20,
    "jpeg": b"\xff\xd8\xff\xe0" + b"\0" * 50,
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "webp": b"RIFF\x10\0\0\0WEBPVP8 " + b"\0" * 10,
    "ppm": b"P6\n1000000000 1000000000\n255\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, tmp_path):
    """Unreadable by name, so that they are counted; as images and as masks."""
    for place in ("val/a/0.png", "scenes/images/0.png", "scenes/masks/0.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(PICTURES[name])
    found = images(tmp_path)
    with pytest.raises(Unreadable, match=r"0\.png"):
        found.read(0)
    scenes = load_scenes(SCENES, Task(data=str(tmp_path / "scenes")), "evaluation", labelled=True)
    if name != "32 bits":  # classes are whole numbers of any size
        with pytest.raises(InputError, match=r"0\.png"):
            scenes.mask(0)


def idx(kind: bytes, *sizes: int, data: bytes = b"") -> bytes:
    return kind + struct.pack(f">{len(sizes)}I", *sizes) + data


BYTES = bytes((0, 0, 8, 3))
BINARIES = {
    "t10k-images-idx3-ubyte": [
        (b"", "not an IDX"),
        (BYTES + b"\0\0", "not an IDX"),
        (idx(bytes((0, 0, 13, 3)), 1, 2, 2, data=bytes(16)), "not an IDX"),
        (idx(BYTES, 10**9, 28, 28), "claims to hold"),
        (idx(BYTES, 2**31, 2**31, 4), "claims to hold"),
        (idx(BYTES, 2, 28, 28, data=bytes(28 * 28)), "there are 784"),
        (idx(BYTES, 1, 2, 2, data=bytes(5)), "there are more"),
        (idx(BYTES, 1, 0, 28), "without pixels"),
        (idx(BYTES, 0, 28, 28), "holds no images"),
    ],
    "t10k-images-idx3-ubyte.gz": [
        (b"no gzip", "cannot read"),
        (gzip.compress(idx(BYTES, 1, 28, 28, data=bytes(784)))[:30], "cannot read"),
        (gzip.compress(idx(BYTES, 200, 1000, 1000, data=bytes(1 << 22))), "claims to hold"),
        (gzip.compress(idx(BYTES, 1, 28, 28, data=bytes(1 << 24))), "there are more"),
        (damaged(gzip.compress(idx(BYTES, 1, 28, 28, data=os.urandom(784))), 100), "cannot read"),
    ],
    "test_batch.bin": [(b"", "not a binary file of CIFAR"), (bytes(3074), "not a binary file of CIFAR")],
    "data_batch_1": [(b"\x80\x04.", "pickled")],
    "validation.parquet": [(b"PAR1PAR1", "cannot read")],
    "validation.csv": [(b"image,label\n/etc/passwd,1\n", "holds no images")],
}


@pytest.mark.parametrize(("name", "index"), [(name, i) for name in BINARIES for i in range(len(BINARIES[name]))])
def test_binary_sets_of_images(name, index, tmp_path):
    content, message = BINARIES[name][index]
    (tmp_path / name).write_bytes(content)
    refused(lambda: images(tmp_path), message)


def test_a_class_that_has_no_name(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(bytes([9]) + bytes(3072))
    (tmp_path / "batches.meta.txt").write_text("plane\ncar\n")
    refused(lambda: images(tmp_path), "label 9, and there are only 2 names")


COLUMNS = {
    "negative": ([1, -1], "row 2 has the label -1"),
    "half": ([0.0, 0.5], "row 1 has the label 0.0"),
    "text": (["0", "1"], "row 1 has the label '0'"),
    "truth": ([False, True], "row 1 has the label False"),
    "missing": ([0, None], "row 2 has the label None"),
    "lists": ([[0], [1]], "class numbers, not"),
    "nested": ([{"a": 0}, {"a": 1}], "class numbers, not"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_labels_of_parquet_images(name, tmp_path):
    labels, message = COLUMNS[name]
    write_parquet(tmp_path / "a.parquet", image=[{"bytes": png(), "path": None}] * 2, label=labels)
    refused(lambda: images(tmp_path / "a.parquet"), message)


@pytest.mark.parametrize(
    "place", ["secret.png", "/etc/passwd", "http://127.0.0.1:9/a.png", "zip://a.png::secret.zip"]
)
def test_paths_in_parquet_images_are_not_followed(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.png").write_bytes(png())
    rows = [{"bytes": None, "path": place}, {"bytes": png(), "path": place}]
    found = images(write_parquet(tmp_path / "a.parquet", image=rows, label=[0, 1]))
    with pytest.raises(Unreadable, match="row 1: .* not followed"):
        found.read(0)
    assert found.read(1).size == (8, 8)
    found = images(write_parquet(tmp_path / "b.parquet", image=[place, place], label=[0, 1]))
    with pytest.raises(Unreadable, match="not followed"):
        found.read(0)


def test_a_parquet_file_that_names_its_texts_images(tmp_path):
    """What a file says of its own use is not followed either."""
    features = {"text": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    table = pyarrow.table({"text": [{"bytes": None, "path": "/etc/passwd"}], "label": [1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    refused(lambda: texts(tmp_path / "a.parquet"), "must hold texts; row 1")
    refused(lambda: images(tmp_path / "a.parquet", text="label"), "holds no images|no bytes|class numbers")


CLASSES = {
    "not JSON": "{",
    "list": "[1]",
    "number": '{"sky": 3}',
    "two": '{"sky": [1, 2]}',
    "four": '{"sky": [1, 2, 3, 4]}',
    "half": '{"sky": [0.5, 1, 2]}',
    "large": '{"sky": [256, 0, 0]}',
    "negative": '{"sky": [-1, 0, 0]}',
    "infinite": '{"sky": [Infinity, 0, 0]}',
    "text": '{"sky": "abc"}',
    "twice": '{"sky": [1, 1, 1], "sky": [2, 2, 2]}',
    "alike": '{"sky": [1, 1, 1], "sea": [1, 1, 1]}',
    "deep": DEEP,
    "digits": '{"sky": [' + "9" * 5000 + ", 0, 0]}",
}


@pytest.mark.parametrize("name", CLASSES)
def test_colours_of_classes(name, tmp_path):
    for place in ("images/0.png", "masks/0.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(png())
    (tmp_path / "classes.json").write_text(CLASSES[name])
    refused(lambda: load_scenes(SCENES, Task(data=str(tmp_path)), "evaluation", labelled=True), r"classes\.json")


def test_what_archives_and_desktops_leave_is_no_data(tmp_path):
    for name in ("ant", "bee", "__MACOSX", ".cache"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.png").write_bytes(png())
        for junk in ("._0.png", ".DS_Store", "Thumbs.db"):
            (tmp_path / "val" / name / junk).write_bytes(b"junk")
    found = images(tmp_path)
    assert found.classes == ("ant", "bee") and len(found) == 2


def test_texts_stay_what_they_are(tmp_path):
    cells = ["NA", "null", "None", "nan", "N/A", "#N/A", "-", "inf", "2020-01-01", "1,5", ' "', "a\nb", "é", "True"]
    quoted = "\n".join('"{}",1'.format(cell.replace('"', '""')) for cell in cells)
    (tmp_path / "a.csv").write_text(f"\ufefftext,label\r\n{quoted}\n", encoding="utf-8")
    assert texts(tmp_path / "a.csv").texts == cells
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": cell, "label": 1}) for cell in cells))
    assert texts(tmp_path / "a.jsonl").texts == cells
    (tmp_path / "a.json").write_text(json.dumps([{"text": cell, "label": 1} for cell in cells]))
    assert texts(tmp_path / "a.json").texts == cells


@pytest.mark.parametrize("name", ["data[1].csv", "data[1].parquet", "a::b.parquet", "*.csv", "~.csv", "[bold]x.csv"])
def test_odd_names_are_names(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    if name.endswith("parquet"):
        write_parquet(tmp_path / name, text=["film"], image=[{"bytes": png(), "path": None}], label=[0])
        if "::" in name:  # to the library of image sets that is a file within a file
            refused(lambda: images(tmp_path / name), "cannot read")
        else:
            assert images(tmp_path / name).read(0).size == (8, 8)
    else:
        (tmp_path / name).write_text("text,label\nfilm,0\n")
    assert texts(f"~/{name}") == Examples(["film"], None, [0])


def test_values_of_16_bits_are_scaled_and_photographs_turned(tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(grey).save(tmp_path / "val" / "a" / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10), (9, 9, 9)).save(tmp_path / "val" / "a" / "b.jpg", exif=exif)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "val" / "a" / "c.png", transparency=0)
    for index, mode in enumerate(("CMYK", "LA", "1", "L")):
        Image.new(mode, (4, 4)).save(tmp_path / "val" / "a" / f"d{index}.{'png' if mode == 'LA' else 'tiff'}")
    found = images(tmp_path)
    for index in (0, 1):
        assert np.abs(np.asarray(found.read(index))[..., 0].astype(float) - grey / 257).max() <= 0.5
    assert found.read(2).size == (10, 20)
    assert found.read(3).getpixel((0, 0)) == (200, 100, 50)
    assert [found.read(index).mode for index in range(4, 8)] == ["RGB"] * 4


def test_masks_are_numbers_and_not_scaled(tmp_path):
    values = np.array([[0, 1], [2, 300]], np.uint16)
    for place in ("x/0", "y/0"):
        for part in ("images", "masks"):
            (tmp_path / part / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "images" / f"{place}.png")
    Image.fromarray(values).save(tmp_path / "masks" / "x" / "0.png")
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "masks" / "y" / "0.png")
    scenes = load_scenes(SCENES, Task(data=str(tmp_path)), "evaluation", labelled=True)
    assert scenes.mask(0).tolist() == values.tolist()
    assert (
        scenes.mask(1).tolist() == values.astype(np.uint8).tolist()
    )  # the one of the same place, not of the same name
    (tmp_path / "masks" / "y" / "0.gif").write_bytes(b"")
    refused(lambda: load_scenes(SCENES, Task(data=str(tmp_path)), "evaluation", labelled=True), "one name")
