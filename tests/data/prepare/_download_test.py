"""Files from mirrors: whole with the right checksum, or one line that says why not."""

import hashlib
import http.server
import io
import threading

import pytest

from raylingvo.data.prepare import _download
from raylingvo.data.prepare._download import Published
from raylingvo.errors import RequestError

CONTENT = b"published " * 300_000  # more than a chunk


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    return folder


def published(mirror, algorithm="sha256"):
    urls = ((mirror / "down" / "a.bin").as_uri(), (mirror / "a.bin").as_uri())
    return Published(name="a.bin", urls=urls, checksum=f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}")


def test_a_checksum_names_its_algorithm():
    with pytest.raises(ValueError, match=r"checksum must start with md5: or sha256: \(got 'abc'\)"):
        Published(name="a", urls=(), checksum="abc")


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_the_first_mirror_that_serves_it_wins(mirror, algorithm, capsys):
    assert _download.content(published(mirror, algorithm), "") == CONTENT
    assert "downloading a.bin" in capsys.readouterr().err


def test_a_mirror_with_another_content_is_passed_over(mirror):
    file = published(mirror)
    (mirror / "down").mkdir()
    (mirror / "down" / "a.bin").write_bytes(CONTENT + b"longer than the right one")
    assert _download.content(file, "") == CONTENT


def test_all_failures_are_in_one_line(mirror):
    file = published(mirror)
    (mirror / "a.bin").write_bytes(CONTENT[:-1])  # cut short
    with pytest.raises(RequestError) as error:
        _download.content(file, "ask a friend")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"cannot download a.bin ({file.urls[0]}: ")
    wrong = hashlib.sha256(CONTENT[:-1]).hexdigest()
    assert f"; {file.urls[1]}: SHA-256 is {wrong}, not {file.checksum.removeprefix('sha256:')})" in message
    assert message.endswith(". Without a network, ask a friend")


def test_a_full_disk_is_not_the_mirrors_fault(mirror, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError("No space left on device")

    monkeypatch.setattr(_download.io, "BytesIO", Full)
    with pytest.raises(RequestError, match=r"cannot write .*: No space left on device; RAYLINGVO_DATA names"):
        _download.content(published(mirror), "")


def test_a_folder_is_there_for_the_block_only(mirror, tmp_path):
    path = tmp_path / "root" / "downloads" / "recipe"
    with _download.folder([published(mirror)], path, "") as folder:
        assert folder == path
        assert [file.name for file in path.iterdir()] == ["a.bin"]
        assert (path / "a.bin").read_bytes() == CONTENT
    assert not path.parent.exists()


def test_files_stay_after_a_failure_and_are_used_again(mirror, tmp_path):
    path = tmp_path / "downloads" / "recipe"
    file = published(mirror)
    with pytest.raises(ZeroDivisionError), _download.folder([file], path, ""):
        raise ZeroDivisionError
    (mirror / "a.bin").unlink()
    with _download.folder([file], path, "") as folder:
        assert (folder / "a.bin").read_bytes() == CONTENT


def test_a_damaged_file_that_stayed_is_downloaded_again(mirror, tmp_path):
    path = tmp_path / "downloads" / "recipe"
    path.mkdir(parents=True)
    (path / "a.bin").write_bytes(CONTENT[:-1])
    with _download.folder([published(mirror)], path, "") as folder:
        assert (folder / "a.bin").read_bytes() == CONTENT


def test_nothing_half_stays(mirror, tmp_path):
    file = published(mirror)
    (mirror / "a.bin").write_bytes(b"another")
    with pytest.raises(RequestError, match="cannot download"), _download.folder([file], tmp_path / "d" / "r", ""):
        raise AssertionError
    assert not (tmp_path / "d").exists()


def test_files_of_others_are_left_alone(mirror, tmp_path):
    path = tmp_path / "downloads" / "recipe"
    path.mkdir(parents=True)
    (path / "mine").touch()
    with _download.folder([published(mirror)], path, ""):
        pass
    assert [file.name for file in path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_one_line(mirror, tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(RequestError, match=r"cannot write .*/file/r: .*; RAYLINGVO_DATA names"),
        _download.folder([published(mirror)], tmp_path / "file" / "r", ""),
    ):
        raise AssertionError


@pytest.fixture
def serve():
    """serve(body, length): the URL of a server that announces `length` bytes, sends `body` and hangs up."""
    servers = []

    def start(body, length):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/a.bin"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_connection_that_is_cut_is_a_mirror_that_failed(serve):
    urls = serve(CONTENT[:-7], len(CONTENT)), serve(CONTENT, len(CONTENT))
    checksum = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert _download.content(Published(name="a.bin", urls=urls, checksum=checksum), "") == CONTENT
    with pytest.raises(RequestError, match=r"^cannot download a\.bin \(http://127\.0\.0\.1:\d+/a\.bin: [^\n]*\)"):
        _download.content(Published(name="a.bin", urls=urls[:1], checksum=checksum), "")
