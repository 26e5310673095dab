"""Names of images in label files, and the files that they mean."""

import unicodedata
from pathlib import Path

import pytest

from dataloaders.image_files import image_key, resolve_images
from dataloaders.table import read_table
from utils.errors import UserError


def make_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def table_of(folder: Path, *names: str):
    rows = "".join(f"{name},1,0\n" for name in names)
    (folder / "labels.csv").write_text("ID,a,b\n" + rows)
    return read_table(folder / "labels.csv")


def resolve_refusal(folder: Path, root: Path, *names: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve_images(table_of(folder, *names), root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_are_found_with_folders_and_without_suffix(tmp_path):
    root = tmp_path / "root"
    make_files(root, "a.png", "part 1/b.jpg", "c.jpeg", "d.png", "d.jpg", "1.2.840.5.png", "e..png")
    table = table_of(tmp_path, "a.png", "part 1/b", "./c", "d", "d.jpg", "1.2.840.5", "e..png")
    found = resolve_images(table, root)
    expected = ["a.png", "part 1/b.jpg", "c.jpeg", "d.png", "d.jpg", "1.2.840.5.png", "e..png"]
    assert [str(path.relative_to(root)) for path in found] == expected


@pytest.mark.parametrize(
    "name", ["../out.png", "sub/../../out.png", "/etc/passwd", "..", "C:\\x.png", "a\\..\\..\\x"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    root = tmp_path / "root"
    make_files(tmp_path, "out.png", "root/sub/a.png", "root/x.png")
    message = resolve_refusal(tmp_path, root, "x.png", name)
    assert "line 3" in message and repr(name) in message and "leads out" in message


def test_symbolic_links_may_not_lead_out(tmp_path):
    root = tmp_path / "root"
    make_files(tmp_path, "outside/secret.png", "root/a.png")
    (root / "file.png").symlink_to(tmp_path / "outside/secret.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "inside.png").symlink_to("a.png")
    (root / "loop.png").symlink_to("loop.png")
    assert "symbolic link" in resolve_refusal(tmp_path, root, "file.png")
    assert "symbolic link" in resolve_refusal(tmp_path, root, "folder/secret.png")
    assert "is not under" in resolve_refusal(tmp_path, root, "loop.png")
    assert "--follow_links" in resolve_refusal(tmp_path, root, "file.png")
    both = table_of(tmp_path, "file.png", "folder/secret.png")
    followed = [root / "file.png", root / "folder/secret.png"]
    assert resolve_images(both, root, follow_links=True) == followed
    assert resolve_images(table_of(tmp_path, "inside.png"), root) == [root / "inside.png"]
    (tmp_path / "linked_root").symlink_to(root)
    assert len(resolve_images(table_of(tmp_path, "a.png"), tmp_path / "linked_root")) == 1


def test_a_missing_image_is_named_with_line_count_and_remedy(tmp_path):
    root = tmp_path / "root"
    make_files(root, "a.png", "images/b.png", "c.jpg", "folder.png/x.png")
    message = resolve_refusal(tmp_path, root, "a.png", "gone.png", "lost.png", "folder.png")
    assert "line 3" in message and "'gone.png'" in message and "2 more of 4" in message
    assert f"--root_path {root / 'images'}" in resolve_refusal(tmp_path, root, "b.png")
    assert "there is 'c.jpg'" in resolve_refusal(tmp_path, root, "c.png")
    assert "folders with /" in resolve_refusal(tmp_path, root, "images\\b.png")
    assert "no such folder" in resolve_refusal(tmp_path, tmp_path / "nowhere", "a.png")
    assert "is not under" in resolve_refusal(tmp_path, root, "a.png/b.png")
    assert "cannot be read" in resolve_refusal(tmp_path, root, "x" * 300 + "/b.png")


def test_two_rows_cannot_name_one_file(tmp_path):
    make_files(tmp_path / "root", "a.png")
    message = resolve_refusal(tmp_path, tmp_path / "root", "a.png", "a")
    assert "line 3" in message and "line 2" in message
    assert "same file" in resolve_refusal(tmp_path, tmp_path / "root", "a.png", "./a.png")


def test_letter_case_of_suffixes_and_unicode_forms_do_not_matter(tmp_path):
    root = tmp_path / "root"
    composed, decomposed = (unicodedata.normalize(form, "\u00e4.png") for form in ("NFC", "NFD"))
    make_files(root, "a.PNG", "b.Jpg", decomposed, "d.png", "d.PNG")
    table = table_of(tmp_path, "a.png", "b", composed, "d.png", "d.PNG")
    found = [path.name for path in resolve_images(table, root)]
    assert found == ["a.PNG", "b.Jpg", decomposed, "d.png", "d.PNG"]
    # Letters of the name itself do matter: another file may have them.
    assert "is not under" in resolve_refusal(tmp_path, root, "A.png")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ID_1.png", "ID_1"),
        ("ID_1.DCM", "ID_1"),
        ("scan.nii.gz", "scan"),
        ("1.2.840.5", "1.2.840.5"),
        ("a\u0308.JPEG", "\u00e4"),
        ("part/a.png", "part/a"),
    ],
)
def test_the_form_in_which_names_are_compared(name, key):
    assert image_key(name) == key
