"""Where weights come from: the download, which goes on where it broke, and the Hugging Face Hub."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from conftest import DEMO, FORKSERVER, Handler, Program, Server
from test_checkpoints import released  # noqa: F401 (a fixture)
from test_model import TINY

from imagebind.models import download
from imagebind.models.checkpoints import CheckpointError
from imagebind.models.imagebind_model import ImageBindModel, imagebind_huge

BODY = (DEMO / "imagebind_demo.pth").read_bytes()
N_FIRST = 100_000  # bytes of the first connection


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".checkpoints" / "imagebind_huge.pth"


def fault(server, path) -> str:
    """Download what cannot be had, and give the error, which is one line."""
    with pytest.raises(CheckpointError) as caught:
        download.download(server.url, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_released_weights_are_downloaded_on_first_use(released, server, path, monkeypatch):  # noqa: F811
    server.body = released().read_bytes()
    monkeypatch.setattr(download, "RELEASED_URL", server.url)
    monkeypatch.setattr(download, "RELEASED_PATH", path)
    assert set(imagebind_huge(pretrained=True).towers) == set(TINY)
    assert os.listdir(path.parent) == [path.name]
    imagebind_huge(pretrained=True)
    assert server.ranges == [None]  # the second time it is there


def test_the_released_weights_lie_at_the_projects_root():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    assert os.fspath(download.RELEASED_PATH) == os.path.join(root, ".checkpoints", "imagebind_huge.pth")
    assert download.RELEASED_URL == "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth"


def test_a_copy_that_torch_hub_keeps_is_found(tmp_path, path, monkeypatch):
    monkeypatch.setattr(download, "RELEASED_PATH", path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "checkpoints" / "imagebind_huge.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(BODY)
    assert set(imagebind_huge(pretrained=True).towers) == {"vision", "audio", "text"}


def test_a_broken_connection_is_made_again_where_it_broke(server, path):
    third = len(BODY) // 3 + 1
    server.body, server.most = BODY, [third]
    download.download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]
    assert os.listdir(path.parent) == [path.name]


def test_the_next_run_goes_on_from_what_is_there(server, path, monkeypatch):
    server.body, server.most = BODY, [N_FIRST, None]
    monkeypatch.setattr(download, "WAITS", ())
    assert "run again to go on from 0 MB, put the file at" in fault(server, path)
    download.download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.ranges[-1] == f"bytes={N_FIRST}-"


def test_the_page_of_a_proxy_does_not_replace_what_is_there(server, path, monkeypatch):
    server.body, server.most = BODY, [N_FIRST, None]
    monkeypatch.setattr(download, "WAITS", ())
    fault(server, path)
    server.body, server.etag, server.headers = b"please log in", None, {"Content-Type": "text/html"}
    assert f"({download.NO_CHECKPOINT}); run again to go on from 0 MB" in fault(server, path)
    assert download.Part(path).size == N_FIRST


def test_a_connection_that_brings_nothing_is_not_made_forever(server, path, monkeypatch):
    server.body, server.most = BODY, [N_FIRST, 0]
    monkeypatch.setattr(download, "WAITS", (0, 0))
    assert f"the connection broke at {N_FIRST} of {len(BODY)} bytes" in fault(server, path)
    assert len(server.ranges) == 3
    fault(server, path)
    assert len(server.ranges) == 4  # in a run in which nothing came


def test_a_killed_download_goes_on(server, path):
    server.body, server.most, server.stalls = BODY, [N_FIRST, None], threading.Event()
    process = FORKSERVER.Process(target=download.download, args=(server.url, path))
    process.start()
    part = download.Part(path)
    while process.is_alive() and part.size < N_FIRST:
        process.join(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    server.stalls.set()
    n_there = part.size
    assert n_there > 0
    download.download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, f"bytes={n_there}-"]


@pytest.mark.parametrize("ignores", [False, True], ids=["server_knows", "server_ignores_if_range"])
def test_another_version_of_the_file_is_downloaded_whole(server, path, monkeypatch, ignores):
    server.body, server.most = bytes(len(BODY)), [N_FIRST, None]
    with monkeypatch.context() as patched:
        patched.setattr(download, "WAITS", ())
        fault(server, path)
    server.body, server.etag, server.knows_versions = BODY, '"2"', not ignores
    download.download(server.url, path)
    assert path.read_bytes() == BODY


def test_a_part_that_is_not_of_the_file_is_not_joined_to_it(server, path, monkeypatch):
    """A 206 that does not say of which version it is, and brings other bytes."""
    server.body, server.most = BODY, [N_FIRST, None]
    with monkeypatch.context() as patched:
        patched.setattr(download, "WAITS", ())
        fault(server, path)
    server.body, server.etag, server.knows_versions = bytes(len(BODY)), None, False
    assert "the server sends another part" in fault(server, path) or not path.exists()
    server.body, server.etag = BODY, '"1"'
    download.download(server.url, path)
    assert path.read_bytes() == BODY


def test_what_came_damaged_is_no_checkpoint(server, path):
    """A tensor with another byte than the file's own sums tell."""
    place = len(BODY) // 2
    server.body = BODY[:place] + bytes([BODY[place] ^ 255]) + BODY[place + 1 :]
    assert "what came is damaged, and is removed" in fault(server, path)
    assert os.listdir(path.parent) == []


def test_a_server_that_sends_no_parts_repeats_what_is_there(server, path):
    server.body, server.most, server.sends_parts = BODY, [N_FIRST, None], False
    download.download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.ranges == [None, f"bytes={N_FIRST}-"]


@pytest.mark.parametrize("answer", [{"status": 204}, {"headers": {"Content-Type": "text/plain"}}])
def test_something_else_does_not_replace_what_is_there(server, path, monkeypatch, answer):
    server.body, server.most = BODY, [N_FIRST, None]
    with monkeypatch.context() as patched:
        patched.setattr(download, "WAITS", ())
        fault(server, path)
    server.body, server.etag, server.knows_versions = b"busy", '"2"', True
    vars(server).update(answer)
    assert "run again to go on from" in fault(server, path)
    assert download.Part(path).size == N_FIRST


def test_without_a_length_the_end_of_the_file_tells(server, path):
    server.body, server.most, server.headers = BODY, [N_FIRST, None], {"Content-Length": None}
    download.download(server.url, path)
    assert path.read_bytes() == BODY


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path, path):
    (path.parent / f"{path.name}.part").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"cannot download .* put the file at {path}"):
        download.download("http://127.0.0.1:1/x.pth", path)


@pytest.mark.parametrize("n_extra", [0, 1000])
def test_a_part_with_nothing_left_to_send(server, path, n_extra):
    """The server answers 416: the part is whole, or longer than the file is now."""
    server.body = BODY
    path.parent.mkdir()
    part = download.Part(path)
    part.begin(server.etag)
    part.path.write_bytes(BODY + bytes(n_extra))
    download.download(server.url, path)
    assert path.read_bytes() == BODY
    assert server.ranges == [f"bytes={len(BODY) + n_extra}-", *([None] if n_extra else [])]
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"body": b"please log in"}, "the answer is not a checkpoint"),
        ({"status": 404}, "HTTP Error 404: Not Found"),
        ({"status": 503}, "HTTP Error 503: Service Unavailable"),
        (
            {"body": BODY, "most": [N_FIRST], "etag": None},  # the rest alone cannot be asked for
            f"the connection broke at {N_FIRST} of {len(BODY)} bytes",
        ),
    ],
)
def test_what_is_of_no_use_leaves_nothing(server, path, monkeypatch, answer, why):
    monkeypatch.setattr(download, "WAITS", (0, 0))
    vars(server).update(answer)
    cure = f"put the file at {path}, or name one: checkpoint=PATH or hf:OWNER/NAME"
    assert fault(server, path) == f"cannot download {server.url} ({why}); {cure}"
    assert os.listdir(path.parent) == []


def test_no_network_says_where_to_put_the_file(path):
    url = "http://127.0.0.1:1/imagebind_huge.pth"  # nobody listens there
    with pytest.raises(CheckpointError, match=f"cannot download {url} .*put the file at {path}.*checkpoint="):
        download.download(url, path)
    assert os.listdir(path.parent) == []


def test_of_several_processes_one_downloads(server, path):
    server.body = BODY
    processes = [FORKSERVER.Process(target=download.download, args=(server.url, path)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert server.ranges == [None]
    assert path.read_bytes() == BODY
    assert os.listdir(path.parent) == [path.name]


# The Hub


class HubHandler(Handler):
    """Answers as the Hub does for one repository, OWNER/demo, which has one file."""

    def do_GET(self):  # noqa: N802
        self.server.status, self.server.headers = None, {"X-Repo-Commit": "c" * 40}
        if not self.path.startswith("/OWNER/demo/resolve/main/"):
            self.server.status, self.server.headers = 404, {"X-Error-Code": "RepoNotFound"}
        elif not self.path.endswith(f"/{self.server.file}"):
            self.server.status, self.server.headers = 404, {"X-Error-Code": "EntryNotFound"}
        super().do_GET()

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch):
    with Server(HubHandler) as server:
        server.body, server.file = BODY, "imagebind_huge.pth"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_run_takes_weights_of_the_hub(hub, pairs):
    """From its address, then from its cache, also where there is no connection."""
    places = {"HF_ENDPOINT": hub.address, "HF_HOME": str(pairs / "hf")}
    status, out, err = Program(pairs, environment=places, checkpoint="hf:OWNER/demo").wait()
    assert status == 0, err
    assert "imagebind_huge.pth" in "\n".join(out)
    hub.ranges.clear()
    offline = places | {"HF_HUB_OFFLINE": "1"}
    status, _, err = Program(pairs, "--no_cache", environment=offline, checkpoint="hf:OWNER/demo").wait()
    assert status == 0, err
    assert hub.ranges == []
    nowhere = offline | {"HF_HOME": str(pairs / "empty")}
    status, _, err = Program(pairs, environment=nowhere, checkpoint="hf:OWNER/demo").wait()
    assert status == 1
    assert err[-1] == "error: hf:OWNER/demo: not in the Hub's cache, and HF_HUB_OFFLINE is set"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OWNER/demo/x.pth", "hf:OWNER/demo/x.pth: has no x.pth"),
        ("OWNER/other", "hf:OWNER/other: there is no such repository, or it is private"),
        ("demo", "hf:demo: name a repository as hf:OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, tmp_path, name, message):
    with pytest.raises(CheckpointError) as caught:
        ImageBindModel.from_pretrained(name, endpoint=hub.address, cache_dir=tmp_path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_files_of_a_repository_are_named_where_none_is_known(hub, tmp_path):
    hub.file = "weights.pth"
    at = {"endpoint": hub.address, "cache_dir": tmp_path}
    with pytest.raises(CheckpointError, match="name its file: hf:OWNER/demo/FILE"):
        ImageBindModel.from_pretrained("OWNER/demo", **at)
    assert ImageBindModel.from_pretrained("OWNER/demo/weights.pth", **at).towers


def test_a_model_comes_from_the_hub_as_from_its_file(hub, tmp_path):
    model = ImageBindModel.from_pretrained("OWNER/demo", endpoint=hub.address, cache_dir=tmp_path)
    assert not model.training
    for there in (DEMO / "imagebind_demo.pth", tmp_path / "folder"):
        if not there.exists():
            there.mkdir()
            (there / "pytorch_model.bin").write_bytes(BODY)
        for name, tensor in ImageBindModel.from_pretrained(there).state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)
