"""Models of the Hub, against a Hub that the test serves on the loopback."""

import hashlib
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from gguf_file import gguf_bytes, small_model
from helpers import edit_manifest, run
from hf_folder import write_folder
from huggingface_hub import constants
from huggingface_hub.utils import close_session

import llama_jax
from llama_jax.checkpoint import hub
from llama_jax.checkpoint.named import PRETRAINED, find_checkpoint
from llama_jax.checkpoint.origin import repository_of
from llama_jax.checkpoint.reading import open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


class Hub(http.server.ThreadingHTTPServer):
    """What the Hub answers for repositories in memory: {"org/name": {"file": bytes}}."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories, self.gated, self.asked, self.cut = {}, set(), [], None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self):
        """The files whose bytes were asked for, and from which byte."""
        files = [(path, begin) for kind, path, begin in self.asked if kind == "GET"]
        return [(path.rpartition("/")[2], begin) for path, begin in files if "/resolve/" in path]


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].lstrip("/")
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        self.server.asked.append((self.command, path, begin))
        if path.startswith("api/models/"):
            self._describe(*path.removeprefix("api/models/").split("/"))
        else:
            organisation, name, _, revision, *file = path.split("/")
            self._file(f"{organisation}/{name}", revision, "/".join(file), begin)

    def _describe(self, organisation, name, what="revision", revision="main", *_):
        name = f"{organisation}/{name}"
        files = self.server.repositories.get(name)
        if name == "org/hotel":
            return self._send(200, files["page"], {"Content-Type": "text/html"})
        if files is None:
            return self._refuse(401, "RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if what == "tree":
            found = [
                {"type": "file", "path": file, "size": len(data), "oid": _sum(data)}
                for file, data in files.items()
            ]
        else:
            siblings = [{"rfilename": file} for file in files]
            found = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
        return self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _file(self, name, revision, file, begin):
        if name in self.server.gated:
            return self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        data = self.server.repositories[name].get(file)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        said = {"ETag": f'"{_sum(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if begin:
            said["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        return self._send(206 if begin else 200, data[begin:], said)

    def _refuse(self, status, code):
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status, data, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cut if len(data) > 10_000 else None
            self.wfile.write(data[:cut])
            if cut is not None:
                self.server.cut = None
                self.close_connection = True


def _sum(data):
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small Hugging Face folder, and beside it what nobody needs."""
    folder = write_folder(tmp_path_factory.mktemp("hub") / "model")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    more = {"README.md": b"a card", "original/consolidated.00.pth": b"twice", "a.gguf": b"x"}
    return folder, files | more


@pytest.fixture
def server(model, tmp_path, monkeypatch):
    """A Hub with the repository org/model, an empty cache, and nobody logged in."""
    served = Hub()
    served.repositories["org/model"] = model[1]
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    file = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", file)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield served
    close_session()  # its connections are of a server that goes
    served.shutdown()
    served.server_close()


def test_a_repository_is_a_checkpoint_and_comes_once_without_what_nobody_reads(server, model):
    params = llama_jax.load("hf:org/model")
    np.testing.assert_array_equal(
        params.weights["norm"]["scale"], llama_jax.load(model[0]).weights["norm"]["scale"]
    )
    sent = [name for name, _ in server.sent()]
    assert sorted(sent) == sorted(hub.needed(list(model[1])))
    assert not {"README.md", "consolidated.00.pth", "a.gguf"} & set(sent)
    server.asked.clear()
    open_checkpoint(Path("hf:org/model@main"))
    assert not server.asked, "what lies here is taken without asking"


def test_a_broken_connection_is_taken_up_where_it_broke(server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    server.cut = 7_000
    assert run("download", "org/model").exit_code == 0
    begun = [(name, begin) for name, begin in server.sent() if begin]
    assert begun == [("model.safetensors", 7_000)]
    llama_jax.load("hf:org/model")


def test_the_command_says_what_it_brought_and_only_limits_it(server):
    done = run("download", "hf:org/model", "--only", "*.json", "--revision", "v1")
    assert done.exit_code == 0, done.output
    assert COMMIT in done.stdout
    assert "llama-jax generate hf:org/model@v1 PROMPT" in done.stdout
    assert {name.rpartition(".")[2] for name, _ in server.sent()} == {"json"}


def test_one_of_several_gguf_files_is_brought_and_then_is_the_model(server):
    server.repositories["org/many"] = {"a.gguf": b"a", "b.gguf": b"b", "config.json": b"{}"}
    done = run("download", "org/many", "--only", "b.gguf")
    assert done.exit_code == 0, done.output
    assert server.sent() == [("b.gguf", 0)]
    server.asked.clear()
    assert os.listdir(hub.hub_checkpoint("hf:org/many")) == ["b.gguf"]
    assert not server.asked


def test_a_conversion_keeps_the_revision_and_so_does_what_is_made_of_it(server, tmp_path):
    metadata, tensors = small_model()
    server.repositories["org/gguf"] = {"a.gguf": gguf_bytes(metadata, tensors)}
    for asked in ("hf:org/model@v1", "hf:org/gguf"):
        pinned = f"{asked.partition('@')[0]}@{COMMIT}"
        made, again = (tmp_path / f"{name}-{pinned[7:11]}" for name in ("native", "again"))
        done = run("convert", asked, made)
        assert done.exit_code == 0, done.output
        assert pinned in done.stdout
        llama_jax.checkpoint.convert(made, again, quantize="int8")
        for folder in (made, again):
            source = json.loads((folder / "checkpoint.json").read_text())["source"]
            assert source["repository"] == pinned
            assert f"from  {pinned}" in run("inspect", folder).stdout
            assert json.loads(run("inspect", folder, "--json").stdout)["repository"] == pinned
        source = json.loads((made / "checkpoint.json").read_text())["source"]
        assert "/snapshots/" in source["path"]


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("name", ["{}", "./{}", ".", "../here/{}"])
def test_a_model_opens_by_its_name_in_the_folder_that_one_is_in(
    model, tmp_path, monkeypatch, kind, name
):
    here = tmp_path / "here"
    if kind == "folder":
        shutil.copytree(model[0], here / "Model")
    else:
        here.mkdir()
        (here / "model.gguf").write_bytes(gguf_bytes(*small_model()))
    monkeypatch.chdir(here / "Model" if (kind, name) == ("folder", ".") else here)
    given = name.format("Model" if kind == "folder" else "model.gguf")
    shown = run("inspect", given, "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["repository"] is None
    done = run("convert", given, tmp_path / "native")
    assert done.exit_code == 0, done.output
    assert hub.pinned(Path(given)) is None


def test_a_checkpoint_of_no_repository_names_none(model, tmp_path):
    native = llama_jax.checkpoint.convert(model[0], tmp_path / "native").written.path
    for folder in (model[0], native, PRETRAINED):
        assert " from  " not in run("inspect", folder).stdout
        assert json.loads(run("inspect", folder, "--json").stdout)["repository"] is None
    edit_manifest(
        native, lambda text: text.replace('"repository": null', '"repository": "\\u001b"')
    )
    assert repository_of(open_checkpoint(native)) is None, "a terminal obeys some letters"


def test_offline_takes_what_lies_here_and_says_what_does_not(server, monkeypatch):
    here = hub.download(hub.repository("org/model"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.asked.clear()
    assert hub.download(hub.repository("org/model")) == here
    with pytest.raises(ValueError, match=r"hf:org/other is not in the Hub's cache, and HF_HUB_OFF"):
        llama_jax.load("hf:org/other")
    assert not server.asked


@pytest.mark.parametrize("ref", ["{model}", "../../outside", "a" * 5000, "\x1b[31m", "\xff", ""])
def test_a_ref_that_names_no_commit_leads_nowhere(server, model, tmp_path, monkeypatch, ref):
    here = hub.download(hub.repository("org/model"))
    shutil.copytree(model[0], tmp_path / "cache/outside")
    (here.parents[1] / "refs/main").write_bytes(ref.format(model=model[0]).encode("latin-1"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hf:org/model is not in the Hub's cache, and HF_HUB_OFF"):
        llama_jax.load("hf:org/model")


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, ["not logged in", "/org/model", "hf auth login"]),
        ("x", ["may not read it", "granted"]),
    ],
)
def test_a_gate_is_explained(server, monkeypatch, token, words):
    server.gated.add("org/model")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    done = run("generate", "hf:org/model", "--ids", "1 2")
    assert done.exit_code == 1
    assert "accept the licence at http://127.0.0.1" in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_mistakes_say_the_way_out(server):
    server.repositories["org/card"] = {"README.md": b"no model"}
    server.repositories["org/many"] = {"a.gguf": b"a", "b.gguf": b"b"}
    server.repositories["org/hotel"] = {"page": b"<html>Log in to the hotel's network</html>"}
    for asked, words in (
        ("hf:org/nothing", "the Hub has no such repository"),
        ("hf:org/model@v9", "the repository has no revision 'v9'"),
        ("hf:org/card", "has none of the files that are read"),
        ("hf:org/many", "holds 2 models as GGUF files: a.gguf, b.gguf; .* --only a.gguf"),
        ("hf:model", "write hf:ORG/NAME"),
        ("hf:org/hotel", r"what answers at http://127\S+ is no Hub; a network that wants a login"),
    ):
        with pytest.raises(ValueError, match=words):
            llama_jax.load(asked)
    server.shutdown()
    server.server_close()
    close_session()  # a connection that is open still is answered
    with pytest.raises(
        ValueError, match=r"could not be downloaded from http://127.*: .*same command.*copy"
    ):
        llama_jax.load("hf:org/model")


def test_a_repository_that_has_its_weights_twice_gives_them_once():
    config, names = ["config.json"], ["model-1.safetensors", "model-2.safetensors"]
    index = ["model.safetensors.index.json"]
    meta = ["params.json", "tokenizer.model", "consolidated.00.pth"]
    assert hub.needed([*config, *names, *index, "pytorch_model.bin"]) == [*config, *names, *index]
    assert set(hub.needed([*meta, "README.md"])) == set(meta)
    assert "consolidated.00.pth" not in hub.needed([*config, *names, *meta])
    assert hub.needed(["README.md", "config.json"]) == []
    assert hub.needed(["a.gguf", "b.gguf", "config.json"], ["b*"]) == ["b.gguf"]
    assert hub.needed([*config, *names], ["*2*"]) == ["model-2.safetensors"]


def test_a_model_with_a_name_is_not_downloaded_and_where_it_lies_is_said():
    done = run("download", "stories")
    assert done.exit_code == 0
    assert str(PRETRAINED) in "".join(done.stdout.split("\n")).replace(" ", "")
    assert "llama-jax generate stories PROMPT" in " ".join(done.stdout.split())


@pytest.mark.parametrize("text", ["org/name", "o/n.a_m-e@v1--x..y", "hf:0rg/_n_@refs/pr/1"])
def test_what_the_hub_takes_as_a_name_names_a_repository(text):
    assert str(hub.repository(text)) == "hf:" + text.removeprefix("hf:")


@pytest.mark.parametrize("end", ["", "/", ".git", "/blob/main/config.json", "?library=jax"])
def test_a_page_of_the_hub_is_answered_with_the_name_to_write(end):
    with pytest.raises(ValueError, match=r"names no repository; write hf:org/a\.b$"):
        hub.repository("https://huggingface.co/org/a.b" + end)


@pytest.mark.parametrize("page", ["https://huggingface.co/org/a.b/tree/main", "hf.co/org/a.b"])
def test_so_it_is_wherever_a_checkpoint_is_taken_unless_it_is_a_folder(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for asked in (page, Path(page)):  # which has one slash where the address has two
        with pytest.raises(ValueError, match=r"names no repository; write hf:org/a\.b$"):
            find_checkpoint(asked)
    Path(page).mkdir(parents=True)
    assert find_checkpoint(page) == Path(page)


@pytest.mark.parametrize(
    "said", ["[]", "{}", '{"weight_map": [["a"]]}', '{"weight_map": {"a": []}}']
)
def test_a_damaged_index_in_the_cache_is_left_to_whoever_reads_it(said, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    for text in (said, "[" * 100_000):
        index.write_text(text)
        assert hub.is_whole(tmp_path)
    index.write_text('{"weight_map": {"a": "another.safetensors"}}')
    assert not hub.is_whole(tmp_path)
