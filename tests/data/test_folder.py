from pathlib import Path

import pytest
from PIL import Image

from vitdeploy.data import scan_images
from vitdeploy.errors import DataError


@pytest.fixture
def make(tmp_path):
    def write(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() in (".txt", ".csv", ".md"):
                path.write_text("x")
            else:
                Image.new("RGB", (4, 4)).save(path, "PNG")
        return tmp_path

    return write


def names(image_set, root):
    return [path.relative_to(root).as_posix() for path in image_set.paths]


def test_flat_folder_is_unlabelled_and_sorted(make):
    root = make("b.PNG", "a.jpg", "c.webp", "notes.txt", ".hidden.png", "d.JPEG", "e.tif")
    found = scan_images(root)
    assert names(found, root) == ["a.jpg", "b.PNG", "c.webp", "d.JPEG", "e.tif"]
    assert found.labels is None
    assert found.label_names == ()
    assert found.origin == "user"
    assert found.name == root.name


def test_flat_folder_may_have_other_folders_without_images(make):
    root = make("a.png", "docs/readme.md")
    assert len(scan_images(root)) == 1


def test_class_folders_in_sorted_order_where_the_model_has_no_names(make):
    root = make("dog/2.png", "dog/1.png", "cat/deep/3.png", "readme.md", "__MACOSX/x.png")
    found = scan_images(root)
    assert names(found, root) == ["cat/deep/3.png", "dog/1.png", "dog/2.png"]
    assert found.labels == (0, 1, 1)
    assert found.label_names == ("cat", "dog")


def test_class_folders_take_the_models_indices(make):
    root = make("dog/1.png", "cat/3.png")
    found = scan_images(root, ["zebra", "dog", "bird", "cat"])
    assert found.labels == (3, 1)
    assert found.label_names == ("zebra", "dog", "bird", "cat")


def test_the_first_of_two_equal_label_names_counts(make):
    # ImageNet has two classes "crane"
    assert scan_images(make("crane/1.png"), ["dog", "crane", "crane"]).labels == (1,)


def test_integer_class_folders_are_indices(make):
    root = make("7/1.png", "10/3.png")
    assert scan_images(root).labels == (10, 7)
    assert scan_images(root, num_classes=11).labels == (10, 7)
    assert scan_images(root, [f"name{i}" for i in range(11)]).labels == (10, 7)


def test_integer_names_of_the_model_go_before_indices(make):
    assert scan_images(make("7/1.png"), ["5", "6", "7"]).labels == (2,)


def test_imagenet_synsets_get_their_own_indices(make):
    root = make("n01440764/1.png", "n02099601/2.png")
    found = scan_images(root, num_classes=1000)
    assert found.labels == (0, 207)  # tench and golden retriever in ImageNet-1k
    assert found.label_names[207] == "n02099601"
    with pytest.raises(DataError, match="1 classes that the model does not have: 'n99999999'"):
        scan_images(make("n99999999/1.png"), num_classes=1000)


def test_unknown_classes_are_refused_with_a_suggestion(make):
    root = make("cats/1.png", "dog/2.png", "xyz/3.png")
    with pytest.raises(
        DataError, match=r"2 classes .*'cats' Did you mean 'cat'\?; 'xyz'"
    ) as caught:
        scan_images(root, ["cat", "dog"])
    assert "Allowed: cat, dog. Rename them, or use class indices" in str(caught.value)


def test_index_beyond_the_model_is_refused(make):
    with pytest.raises(DataError, match=r"class 10 but the model has 10 classes: .*0 to 9.*at 0"):
        scan_images(make("1/1.png", "10/1.png"), num_classes=10)


def test_class_count_that_cannot_be_matched_is_refused(make):
    with pytest.raises(DataError, match="2 classes but the model has 1000, without names"):
        scan_images(make("cat/1.png", "dog/1.png"), num_classes=1000)


def test_images_beside_class_folders_are_refused(make):
    with pytest.raises(DataError, match=r"both images \(a.png, ...\) and folders .*\(cat, ...\)"):
        scan_images(make("a.png", "cat/1.png"))


def test_empty_class_folder_is_refused(make):
    root = make("cat/1.png", "dog/readme.md")
    with pytest.raises(DataError, match=r"class folders without images: dog. Fill or remove"):
        scan_images(root)


@pytest.mark.parametrize("content", [(), ("readme.md",), ("sub/readme.md",)])
def test_folder_without_images_is_refused(make, content):
    with pytest.raises(DataError, match=r"no images in .*looked for .jpg.*Give a folder"):
        scan_images(make(*content))


def test_missing_path_is_refused_with_a_suggestion(make):
    root = make("images/1.png")
    with pytest.raises(DataError, match=r"does not exist. Did you mean 'images'\?"):
        scan_images(root / "imagse")
    with pytest.raises(DataError, match="does not exist"):
        scan_images(root / "no" / "such" / "folder")


def test_single_image_is_refused(make):
    with pytest.raises(DataError, match=r"neither a folder nor a list.*Give a folder of images"):
        scan_images(make("a.png") / "a.png")


# --- list files


def write_list(root: Path, text: str, name: str = "list.txt") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def test_list_of_paths_is_unlabelled_and_keeps_its_order(make):
    root = make("x/b c.png", "a,1.png")
    found = scan_images(write_list(root, "# mine\nx/b c.png\n\na,1.png\n"))
    assert names(found, root) == ["x/b c.png", "a,1.png"]
    assert found.labels is None
    assert found.name == "list.txt"


@pytest.mark.parametrize("separator", [",", " ", "\t", ", ", ";"])
def test_list_with_labels(make, separator):
    root = make("a.png", "b.png")
    file = write_list(root, f"a.png{separator}dog\nb.png{separator}cat\n")
    assert scan_images(file).labels == (1, 0)
    assert scan_images(file, ["dog", "cat"]).labels == (0, 1)


def test_list_with_indices_and_long_names(make):
    root = make("a.png", "b.png")
    assert scan_images(write_list(root, "a.png 3\nb.png 1\n")).labels == (3, 1)
    long = write_list(root, '"a.png","tench, Tinca tinca"\nb.png,great white shark\n')
    assert scan_images(long, ["tench, Tinca tinca", "great white shark"]).labels == (0, 1)


@pytest.mark.parametrize("header", ["path,label", "image", "Filename;class"])
def test_list_header_and_byte_order_mark_are_skipped(make, header):
    root = make("a.png")
    assert len(scan_images(write_list(root, f"\ufeff{header}\na.png,0\n", "list.csv"))) == 1


def test_list_paths_may_be_absolute_and_in_folders_that_look_like_images(make):
    root = make("odd.png/a.png", "b.png")
    found = scan_images(write_list(root, f"odd.png/a.png\n{root / 'b.png'}\n"))
    assert names(found, root) == ["odd.png/a.png", "b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images. Give a folder"),
        ("# nothing\n", "lists no images"),
        ("a.png\nreadme.md\n", "line 2: 'readme.md' names no image; expected 'path'"),
        ("a.png 0\nb.png\n", r"1 of 2 lines have a label \(b.png has none\)"),
        ("a.png\nlost.png\ngone.png\n", "2 of 3 images do not exist: .*lost.png, .*relative to"),
        ("a.png cow\n", "1 classes that the model does not have: 'cow'"),
        ("a.png 2\n", "class 2 but the model has 2 classes"),
    ],
)
def test_list_refuses(make, text, message):
    root = make("a.png", "b.png")
    with pytest.raises(DataError, match=message):
        scan_images(write_list(root, text), ["cat", "dog"])


def test_list_that_is_no_text_is_refused(make):
    root = make("a.png")
    (root / "list.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        scan_images(root / "list.txt")
