import gzip
import io
import tarfile
import zipfile

import pytest

from purify.zoo.archive import ArchiveError, extract


def tar(path, *entries, mode="w:gz"):
    """A tar archive of (name or TarInfo, content)."""
    with tarfile.open(path, mode) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path, *entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def symlink_in_zip(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o120777 << 16
    return entry


FILES = ("top/a.bin", b"abc"), ("top/sub/b.bin", b"d" * 1000)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: tar(p, *FILES),
        lambda p: tar(p, *FILES, mode="w"),
        lambda p: zipped(p, *FILES),
        lambda p: tar(p, *FILES, mode="w:gz"),
    ],
)
def test_contents_arrive(make, tmp_path):
    source = make(tmp_path / "archive")
    extract(source, tmp_path / "all")
    extract(source, tmp_path / "top", inside="top")
    for folder in (tmp_path / "all" / "top", tmp_path / "top"):
        assert (folder / "a.bin").read_bytes() == b"abc" and (folder / "sub" / "b.bin").read_bytes() == b"d" * 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "archive", "top"]


def huge_header(path):
    """A long-name header that declares 3 GB of name: a reader that believes it takes the memory."""
    header = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = 3 * 10**9
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(4 * 2**20))
    return path


def lying_zip(path):
    """An entry of a million bytes that is declared as ten."""
    zipped(path, ("a.bin", bytes(1_000_000)))
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.index(signature) + offset
        content[start : start + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: tar(p, ("ok", b""), ("../evil", b"x")), r"'../evil' would be written outside"),
        (lambda p: tar(p, ("a/../../evil", b"x")), r"'a/../../evil' would be written outside"),
        (lambda p: tar(p, ("/tmp/evil", b"x")), r"'/tmp/evil' would be written outside"),
        (lambda p: zipped(p, ("../evil", b"x")), r"'../evil' would be written outside"),
        (lambda p: zipped(p, ("/tmp/evil", b"x")), r"'/tmp/evil' would be written outside"),
        (lambda p: zipped(p, ("C:\\evil", b"x")), r"would be written outside"),
        (
            lambda p: tar(p, ("ok", b""), (special("l", tarfile.SYMTYPE, "/etc"), b"")),
            "the entry 'l' is a link or a device",
        ),
        (
            lambda p: tar(p, (special("l", tarfile.SYMTYPE, ".."), b""), ("l/evil", b"x")),
            "the entry 'l' is a link or a device",
        ),
        (lambda p: tar(p, (special("l", tarfile.LNKTYPE, "../secret"), b"")), "the entry 'l' is a link or a device"),
        (lambda p: tar(p, (special("d", tarfile.CHRTYPE), b"")), "the entry 'd' is a link or a device"),
        (lambda p: tar(p, (special("f", tarfile.FIFOTYPE), b"")), "the entry 'f' is a link or a device"),
        (lambda p: zipped(p, (symlink_in_zip("l"), "/etc/passwd")), "the entry 'l' is a link or a device"),
        (
            lambda p: zipped(p, ("bomb", bytes(5_000_000))),
            "declares 5,000,000 bytes up to 'bomb', expected at most 1,000,000",
        ),
        (
            lambda p: tar(p, ("bomb", bytes(5_000_000))),
            "declares 5,000,000 bytes up to 'bomb', expected at most 1,000,000",
        ),
        (lambda p: tar(p, *((f"{i}", bytes(300_000)) for i in range(4))), "declares 1,200,000 bytes up to '3'"),
        (lambda p: zipped(p, *((f"{i}", b"") for i in range(30))), "holds more than 20 entries"),
        (lambda p: tar(p, *((f"{i}", b"") for i in range(30))), "holds more than 20 entries"),
        (huge_header, "the archive unpacks to more than .* bytes, or has a header of 3,0"),
        (lying_zip, "cannot be unpacked: BadZipFile"),
        (lambda p: tar(p, ("a", b"1"), ("a/b", b"2")), "cannot be unpacked: (FileExists|NotADirectory)Error"),
        (lambda p: tar(p, ("a", b"1"), ("a", b"2")), "cannot be unpacked: FileExistsError"),
        (lambda p: p.write_bytes(b"no archive at all" * 100), "cannot be unpacked: ReadError"),
        (lambda p: p.write_bytes(b""), "cannot be unpacked: ReadError"),
        (lambda p: p.write_bytes(tar(p, ("a", bytes(range(256)) * 99)).read_bytes()[:-30]), "cannot be unpacked"),
        (lambda p: p.write_bytes(zipped(p, ("a", b"x" * 999)).read_bytes()[:-30]), "cannot be unpacked: BadZipFile"),
    ],
)
def test_hostile_archives_leave_nothing(make, message, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    make(inner / "archive")
    with pytest.raises(ArchiveError, match=message):
        extract(inner / "archive", inner / "out", limit_bytes=1_000_000, limit_files=20)
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "archive"]


def test_what_is_missing_or_there_already_is_named(tmp_path):
    source = tar(tmp_path / "archive", *FILES)
    with pytest.raises(ArchiveError, match="no archive at"):
        extract(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ArchiveError, match="has no folder 'other'; it holds top"):
        extract(source, tmp_path / "out", inside="other")
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="already there"):
        extract(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out"] and not any(
        (tmp_path / "out").iterdir()
    )
