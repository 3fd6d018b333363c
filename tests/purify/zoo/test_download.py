"""Against a server on this machine that does what real ones do on bad days; every test says what is left in the
folder.
"""

import fcntl
import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from purify.zoo.download import DownloadError, address_of, check_file, download, recorded_sha256

PIECE = 2**16  # of the file are asked for at once
CONTENT = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers the n-th request as the n-th function of the script says, the last one for all further requests."""

    def do_GET(self):
        self.server.requests.append(dict(self.headers))
        script = self.server.script
        script[min(len(self.server.requests), len(script)) - 1](self)

    def log_message(self, *args):
        pass


def answer(content=CONTENT, status=200, send=None, cut=False, **headers):
    """A head with `headers` (underscores are dashes), then `send` or the content; `cut` closes the connection
    after it.
    """

    def act(handler):
        handler.send_response(status)
        for name, value in {
            "Content-Length": str(len(content)),
            "ETag": '"1"',
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content if send is None else send)
        if cut:
            handler.close_connection = True

    return act


def ranged(content=CONTENT, tag='"1"', stop=None):
    """A well-behaved server: the rest after Range where If-Range is its tag, at most up to byte `stop`."""

    def act(handler):
        wanted, start = handler.headers.get("Range"), 0
        if wanted and handler.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                answer(b"", 416, Content_Range=f"bytes */{len(content)}")(handler)
                return
        rest = content[start:]
        extra = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        answer(
            rest,
            206 if start else 200,
            send=rest if stop is None else content[start:stop],
            cut=stop is not None,
            ETag=tag,
            **extra,
        )(handler)

    return act


@pytest.fixture
def serve():
    """serve(*script) -> address; `serve.requests` are the headers of what was asked."""
    servers = []

    def start(*script):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.script, server.requests = script, []
        start.requests = server.requests
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/weights.pt"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def fetch(tmp_path):
    """fetch(address, ...) -> SHA-256, into `fetch.target`, without waiting; `fetch.waits` are the seconds asked for."""

    def run(address, **options):
        return download(address, run.target, sleep=run.waits.append, **options)

    run.target, run.waits = tmp_path / "models" / "x" / "weights.pt", []
    return run


def left(fetch):
    """Names in the target's folder, None where even the folder is gone."""
    return sorted(path.name for path in fetch.target.parent.iterdir()) if fetch.target.parent.parent.exists() else None


def test_a_file_arrives_is_checked_and_recorded(serve, fetch):
    seen = []
    found = fetch(
        serve(answer()),
        size=len(CONTENT),
        sha256=SHA256,
        md5=MD5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert fetch.target.read_bytes() == CONTENT and found == SHA256
    assert left(fetch) == ["weights.pt", "weights.pt.sha256"]
    assert (fetch.target.parent / "weights.pt.sha256").read_text() == f"{SHA256}  weights.pt\n"
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert serve.requests[0]["Accept-Encoding"] == "identity"
    with pytest.raises(DownloadError, match="already there"):
        fetch("http://127.0.0.1:1/")


def test_dropped_connections_are_resumed_where_they_broke(serve, fetch):
    fetch(serve(ranged(stop=PIECE), ranged(stop=3 * PIECE), ranged()), sha256=SHA256)
    assert [request.get("Range") for request in serve.requests] == [None, "bytes=65536-", "bytes=196608-"]
    assert serve.requests[1]["If-Range"] == '"1"'
    assert fetch.target.read_bytes() == CONTENT and left(fetch) == ["weights.pt", "weights.pt.sha256"]


def test_a_later_call_goes_on_with_what_is_there(serve, fetch):
    address = serve(ranged(stop=PIECE), ranged(stop=PIECE), ranged())
    with pytest.raises(DownloadError, match="lost after 65,536 of 262,144 bytes; gave up after 0 retries"):
        fetch(address, retries=0)
    assert left(fetch) == ["weights.pt.partial", "weights.pt.partial.json"]
    fetch(address)
    assert serve.requests[-1]["Range"] == "bytes=65536-"
    assert fetch.target.read_bytes() == CONTENT and left(fetch) == ["weights.pt", "weights.pt.sha256"]


def test_a_partial_file_that_was_whole_is_not_fetched_again(serve, fetch):
    address = serve(ranged(stop=PIECE), ranged(stop=PIECE), ranged())
    with pytest.raises(DownloadError):
        fetch(address, retries=0)
    (fetch.target.parent / "weights.pt.partial").write_bytes(CONTENT)
    fetch(address, sha256=SHA256)
    assert len(serve.requests) == 3 and fetch.target.read_bytes() == CONTENT


@pytest.mark.parametrize("second", [answer(), ranged(tag='"2"'), answer(ETag='W/"1"')])
def test_a_server_that_ignores_the_range_or_has_a_new_file_starts_again(serve, fetch, second):
    fetch(serve(ranged(bytes(len(CONTENT)), stop=PIECE), second), sha256=SHA256)
    assert serve.requests[1]["Range"] == "bytes=65536-"
    assert fetch.target.read_bytes() == CONTENT and left(fetch) == ["weights.pt", "weights.pt.sha256"]


def test_without_a_strong_validator_nothing_is_resumed(serve, fetch):
    fetch(serve(answer(send=CONTENT[:PIECE], cut=True, ETag='W/"1"'), answer()), sha256=SHA256)
    assert "Range" not in serve.requests[1]
    assert fetch.target.read_bytes() == CONTENT


def test_another_part_than_asked_for_is_not_taken(serve, fetch):
    wrong = answer(CONTENT[500:], 206, Content_Range=f"bytes 500-{len(CONTENT) - 1}/{len(CONTENT)}")
    fetch(serve(ranged(stop=PIECE), wrong, answer()), sha256=SHA256)
    assert fetch.target.read_bytes() == CONTENT


def test_errors_that_pass_are_waited_for(serve, fetch):
    fetch(serve(answer(b"", 500), answer(b"", 503), answer()))
    assert fetch.target.read_bytes() == CONTENT
    assert fetch.waits == [2.0, 4.0]


def test_errors_that_do_not_pass_are_given_up(serve, fetch):
    with pytest.raises(DownloadError, match="answers 500 Internal Server Error; gave up after 3 retries"):
        fetch(serve(answer(b"", 500)), retries=3)
    assert len(serve.requests) == 4 and left(fetch) is None
    with pytest.raises(DownloadError, match=r"answers 404 Not Found\. The file can be put at .*weights.pt by hand"):
        fetch(serve(answer(b"", 404)))
    assert len(serve.requests) == 1 and left(fetch) is None


def test_redirects_are_followed(serve, fetch):
    real = serve(answer())
    fetch(serve(answer(b"", 302, Location=real)), sha256=SHA256)
    assert fetch.target.read_bytes() == CONTENT


def test_a_length_that_promises_more_than_comes_is_never_believed(serve, fetch):
    with pytest.raises(DownloadError, match="lost after 262,144 of 524,288 bytes; gave up after 2 retries"):
        fetch(serve(answer(Content_Length=str(2 * len(CONTENT)), cut=True, ETag=None)), retries=2)
    assert not fetch.target.exists() and len(serve.requests) == 4  # the first one brought something new


def test_a_length_that_promises_less_than_comes_is_found_out(serve, fetch):
    address = serve(answer(Content_Length="100", cut=True))
    with pytest.raises(DownloadError, match="offers 100 bytes, expected 262,144; nothing is kept"):
        fetch(address, size=len(CONTENT))
    assert left(fetch) is None
    with pytest.raises(DownloadError, match=f"gave 100 bytes with the sha256 .*, expected {SHA256}; they were deleted"):
        fetch(address, sha256=SHA256)
    assert left(fetch) is None


def test_an_endless_stream_is_bounded(serve, fetch):
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(2**20))
        except OSError:
            handler.close_connection = True

    address = serve(endless)
    with pytest.raises(DownloadError, match="sends more than 5,000,000 bytes; nothing is kept"):
        fetch(address, limit=5_000_000)
    assert left(fetch) is None
    with pytest.raises(DownloadError, match="sends more than 262,144 bytes"):
        fetch(address, size=len(CONTENT))
    assert left(fetch) is None


def test_too_large_an_offer_is_refused_before_it_is_read(serve, fetch):
    with pytest.raises(DownloadError, match="offers 262,144 bytes, expected at most 5,000"):
        fetch(serve(answer(send=b"")), limit=5000)
    with pytest.raises(DownloadError, match=r"needs 1,000,000,000,000,000 bytes more, and [\d,]+ are free there"):
        fetch(serve(answer(send=b"", Content_Length=str(10**15))), limit=10**16)
    assert left(fetch) is None


@pytest.mark.parametrize("name", ["sha256", "md5"])
def test_a_wrong_checksum_deletes_what_came(serve, fetch, name):
    with pytest.raises(
        DownloadError, match=f"262,144 bytes with the {name} {hashlib.new(name, CONTENT).hexdigest()}, expected 0000"
    ):
        fetch(serve(answer()), **{name: "0" * hashlib.new(name).digest_size * 2})
    assert left(fetch) is None


def test_a_checksum_recorded_on_first_use_is_expected_afterwards(serve, fetch):
    fetch(serve(answer()))
    fetch.target.unlink()
    with pytest.raises(DownloadError, match=f"expected {SHA256}"):
        fetch(serve(answer(CONTENT[::-1])))
    assert left(fetch) == ["weights.pt.sha256"]
    fetch(serve(answer()))
    assert fetch.target.read_bytes() == CONTENT


def test_a_web_page_and_an_empty_file_are_no_weights(serve, fetch):
    page = answer(b"<html>Google Drive - Quota exceeded</html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(DownloadError, match="answers with a web page, not with the file: Google Drive does so"):
        fetch(serve(page))
    with pytest.raises(DownloadError, match="gave an empty file"):
        fetch(serve(answer(b"")))
    assert left(fetch) is None


def test_offline_is_one_message_at_once_and_nothing_left(fetch):
    for address in ("http://127.0.0.1:1/weights.pt", "http://no-such-host.invalid/weights.pt"):
        with pytest.raises(
            DownloadError,
            match=r"cannot be reached: is this machine online\? The file can be put at .*weights.pt by hand",
        ):
            fetch(address)
    with pytest.raises(DownloadError, match="cannot be fetched"):
        fetch("weights.pt")
    assert left(fetch) is None and fetch.waits == []


def test_two_processes_do_not_fetch_the_same_file(serve, fetch):
    fetch.target.parent.mkdir(parents=True)
    with open(fetch.target.parent / "weights.pt.partial", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is downloading it"):
            fetch(serve(answer()))
        assert serve.requests == []
    fetch(serve(answer()))
    assert fetch.target.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_named(serve, fetch, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(DownloadError, match="models/x cannot be made"):
        fetch(serve(answer()))


def test_a_web_page_that_calls_itself_a_file_is_not_recorded(serve, tmp_path):
    """Whatever type the server claims: else its checksum would be what the right file is compared with."""
    page = b"<!DOCTYPE html><html>quota</html>"
    with pytest.raises(DownloadError, match="answers with a web page"):
        download(serve(answer(page, Content_Type="application/octet-stream")), tmp_path / "w.pt", sleep=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_bytes_are_kept_as_they_come(serve, tmp_path):
    """A server that calls a gzip file's own compression an encoding of the transfer: the file, not what is in it, is
    what was asked for.
    """
    packed = gzip.compress(bytes(10**6))
    address = serve(answer(packed, Content_Encoding="gzip"))
    download(address, tmp_path / "w.gz", size=len(packed), sleep=lambda _: None)
    assert (tmp_path / "w.gz").read_bytes() == packed


def test_check_file_records_and_compares(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(CONTENT)
    assert check_file(path, len(CONTENT), md5=MD5) == SHA256 == recorded_sha256(path)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(
        DownloadError,
        match=f"has the sha256 .*, expected {SHA256} .that of an earlier download, recorded in {path}.sha256",
    ):
        check_file(path)
    with pytest.raises(DownloadError, match="has 262,144 bytes, expected 1"):
        check_file(path, 1)


def test_google_drive_ids_become_addresses():
    assert address_of("gdrive:abc") == "https://drive.usercontent.google.com/download?id=abc&export=download&confirm=t"
    assert address_of("https://example.org/a") == "https://example.org/a"
