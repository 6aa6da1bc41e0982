"""The application behind the page, over HTTP: what it answers, and what it refuses."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from fmwiss.config import PlusConfig, VisionLanguageConfig
from fmwiss.data.review import Review
from fmwiss.review.access import Access
from fmwiss.review.session import Session
from fmwiss.review.words import Words

fastapi = pytest.importorskip("fastapi", reason="the extra fmwiss[review] is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra fmwiss[review] is not installed")


JSON = "application/json"


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def refused(self, status: int, sentence: str) -> None:
        assert self.status == status, self.body
        assert list(self.json) == ["error"] and sentence in self.json["error"], self.json


class Client:
    """Asks a server of a session, as its own page does unless told otherwise."""

    def __init__(self, session: Session, access: Access) -> None:
        self.session, self.access = session, access

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.access.port, timeout=120)
        try:
            connection.request(method, path, body, dict(headers or {}))
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, value: Any, **headers: str | None) -> Answer:
        wanted: dict[str, str | None] = {"X-Fmwiss-Token": self.access.token, "Content-Type": JSON}
        wanted |= {name.replace("_", "-"): text for name, text in headers.items()}
        sent = {name: text for name, text in wanted.items() if text is not None}
        return self.ask("POST", path, json.dumps(value).encode(), sent)

    def decide(self, numbers: list[int], decision: str | None, **headers: str | None) -> Answer:
        return self.post("/api/decide", {"numbers": numbers, "decision": decision}, **headers)


@contextmanager
def serving(session: Session, host: str = "127.0.0.1") -> Iterator[Client]:
    from fmwiss.review.app import build_app

    listening = socket.create_server(("127.0.0.1", 0))
    access = Access.at(host, listening.getsockname()[1])
    config = uvicorn.Config(build_app(session, access), log_level="warning", server_header=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Client(session, access)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture
def client(session: Session) -> Iterator[Client]:
    with serving(session) as found:
        yield found


# ------------------------------------------------------------------------------------------------------- right input


def test_the_page_asks_for_nothing_but_this_server(client: Client) -> None:
    page = client.get("/")
    assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
    text = page.body.decode()
    assert client.access.token in text and "http://" not in text and "https://" not in text
    for name, kind in (("report.css", "text/css"), ("review.css", "text/css"), ("review.js", "text/javascript")):
        assert f"/assets/{name}" in text
        asset = client.get(f"/assets/{name}")
        assert asset.status == 200 and asset.headers["Content-Type"].startswith(kind)
        assert b"http://" not in asset.body and b"https://" not in asset.body
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status == 404


def test_what_the_page_is_told(client: Client) -> None:
    about = client.get("/api/session").json
    assert about["step"] == 1 and about["status"] == "open" and about["terms"] == ["stages"]
    assert [entry["name"] for entry in about["classes"]] == ["cat", "sheep", "sofa"]
    assert about["masks"] == len(client.session.items) == sum(row["open"] for row in about["counts"].values())
    assert about["threshold"]["key"] == "cosegmentation.plus.threshold" and about["threshold"]["kept"] is None
    worst = client.get("/api/numbers").json["numbers"]
    assert worst == client.session.numbers(None, "open", "worst")
    cats = client.get("/api/numbers?class=cat&order=list&show=all").json["numbers"]
    assert cats == client.session.numbers("cat", "all", "list")
    items = client.get(f"/api/items?numbers={worst[2]},{worst[0]}").json["items"]
    assert [item["number"] for item in items] == [worst[2], worst[0]]
    found = client.session.items[worst[0]]
    assert items[1]["image"] == found.image_id and items[1]["class"] == found.name and found.name in items[1]["tags"]
    assert items[0]["disagreement"] <= items[1]["disagreement"] and items[0]["decision"] is None


def test_photographs_and_levels(client: Client) -> None:
    item = client.session.items[1]
    answer = client.get(f"/api/photographs/{item.photograph}?side=200")
    assert answer.headers["Content-Type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.body)) as picture:
        assert picture.size == client.session.size(item.photograph)[::-1]
    levels = client.get(f"/api/levels/{item.number}").body
    height, width = struct.unpack("<HH", levels[:4])
    values = np.frombuffer(levels, np.uint8, offset=4).reshape(height, width)
    wanted = client.session.masks.masks(item.image_id, [item.name], 0)[0].numpy()
    threshold = np.float32(PlusConfig().threshold)
    assert (values.astype(np.float32) / np.float32(255) > threshold).tolist() == wanted.tolist()


def test_decisions_reach_the_file(client: Client) -> None:
    answer = client.decide([0, 2], "reject").json
    assert [item["decision"] for item in answer["items"]] == ["reject", "reject"] and answer["undoable"] == 1
    assert sum(row["reject"] for row in answer["counts"].values()) == 2
    first = client.session.items[0]
    assert Review.read(client.session.path).decisions[first.image_id, first.name] == "reject"
    assert client.decide([0], None).json["items"][0]["decision"] is None
    undone = client.post("/api/undo", {}).json
    assert undone["items"][0]["decision"] == "reject"
    kept = client.post("/api/threshold", {"value": 0.3}).json
    assert kept["threshold"]["kept"] == 0.3 and Review.read(client.session.path).thresholds[1].value == 0.3
    assert client.post("/api/threshold", {"value": None}).json["threshold"]["kept"] is None


def test_a_word_shows_what_the_model_scores_and_photographs_are_encoded_once(client: Client) -> None:
    words = client.session.words
    answer = client.get("/api/words?word=sheep&class=sheep").json
    assert answer["word"] == "sheep" and answer["rows"][0]["means"].endswith("sheep.") and answer["stands"] == ["sheep"]
    tagged = [picture for picture in answer["pictures"] if picture["tagged"]]
    assert 0 < len(tagged) <= words.handful and len(tagged) < len(answer["pictures"])
    model = words._vision_language()
    for picture in answer["pictures"][:2]:
        image = client.session.source.read_image(picture["image"])
        longer, stride = 96, model.stride
        size = [max(1, round(side * longer / max(image.shape[1:]) / stride)) * stride for side in image.shape[1:]]
        scores = model.scores(resize(image, size, antialias=True)[None] / 255, ["sheep"])[0, 0]
        assert picture["highest"] == pytest.approx(float(scores.max()), abs=1e-4)
        heat = np.frombuffer(base64.b64decode(picture["heat"]), np.uint8).reshape(picture["height"], picture["width"])
        scaled = 255 * (scores - scores.min()) / (scores.max() - scores.min())
        np.testing.assert_allclose(heat, scaled.numpy(), atol=0.51)
    encoded: list[object] = []
    original = model.encode
    model.encode = lambda images: encoded.append(images) or original(images)  # type: ignore[method-assign]
    lamb = client.get("/api/words?word=%20little%20%20lamb&class=sheep").json
    assert lamb["word"] == "little lamb" and not encoded
    assert [picture["image"] for picture in lamb["pictures"]] == [picture["image"] for picture in answer["pictures"]]
    assert lamb["pictures"][0]["heat"] != answer["pictures"][0]["heat"]
    above = [a["highest"] > b["highest"] for a in tagged for b in answer["pictures"] if not b["tagged"]]
    assert answer["separation"] == pytest.approx(sum(above) / len(above), abs=0.02) and answer["pairs"] == len(above)


def test_words_of_an_imagenet_classifier(session: Session) -> None:
    import timm

    from fmwiss.foundation.imagenet_names import ImageNetNames

    torch.manual_seed(0)
    model = ImageNetNames(timm.create_model("test_efficientnet", num_classes=1000).eval(), "test_efficientnet")
    config = VisionLanguageConfig(name="imagenet-names", model="test_efficientnet", tag=None, input_size=96)
    session.words = Words(config, session.source, None, torch.device("cpu"), model)
    with serving(session) as client:
        answer = client.get("/api/words?word=golden%20retriever&class=cat").json
        assert answer["row_count"] == 1 and answer["stands"] == ["n02099601"]
        assert client.get("/api/words?word=sheep&class=cat").json["stands"] == ["n02411705", "n02415577"]
        client.get("/api/words?word=golden%20retriver").refused(409, "nearest known words: golden retriever")


# ------------------------------------------------------------------------------------------------------- wrong input

REFUSED: dict[str, tuple[Callable[[Client], Answer], int, str]] = {
    # who asks
    "a name that leads here": (lambda c: c.get("/", Host="evil.example"), 421, "is not called evil.example"),
    "that name with our port": (lambda c: c.get("/", Host=f"evil.example:{c.access.port}"), 421, "open http://"),
    "a name that begins like ours": (lambda c: c.get("/", Host="localhost.evil.example"), 421, "is not called"),
    "no name": (lambda c: c.get("/", Host=""), 421, "is not called nothing"),
    "another site's request": (lambda c: c.get("/api/session", Sec_Fetch_Site="cross-site"), 403, "another site"),
    "another site's picture": (lambda c: c.get("/api/photographs/0", Sec_Fetch_Site="same-site"), 403, "another site"),
    "another site's form": (lambda c: c.decide([0], "reject", Origin="http://evil.example"), 403, "another site"),
    "another port's form": (lambda c: c.decide([0], "reject", Origin="http://127.0.0.1:1"), 403, "another site"),
    "a form of nowhere": (lambda c: c.decide([0], "reject", Origin="null"), 403, "another site"),
    "no token": (lambda c: c.decide([0], "reject", X_Fmwiss_Token=None), 403, "reload the page"),
    "another token": (lambda c: c.decide([0], "reject", X_Fmwiss_Token="x"), 403, "reload the page"),
    # what is asked
    "an unknown path": (lambda c: c.get("/api/everything"), 404, "Not Found"),
    "a path upwards": (lambda c: c.get("/assets/../session.py"), 404, ""),
    "an encoded path upwards": (lambda c: c.get("/assets/..%2fsession.py"), 404, ""),
    "a file of the system": (lambda c: c.get("/api/photographs/..%2f..%2fetc%2fpasswd"), 404, ""),
    "a name for a number": (lambda c: c.get("/api/photographs/passwd"), 400, "number: "),
    "an unknown photograph": (lambda c: c.get("/api/photographs/99999"), 404, "there is no photograph 99999"),
    "a photograph before the first": (lambda c: c.get("/api/photographs/-1"), 404, "there is no photograph -1"),
    "a picture without size": (lambda c: c.get("/api/photographs/0?side=0"), 400, "side: "),
    "a picture too large": (lambda c: c.get("/api/photographs/0?side=99999"), 400, "side: "),
    "an unknown mask": (lambda c: c.get("/api/levels/99999"), 404, "there is no mask 99999"),
    "no mask": (lambda c: c.get("/api/items?numbers="), 400, "whole numbers"),
    "masks in words": (lambda c: c.get("/api/items?numbers=1,two"), 400, "whole numbers"),
    "too many masks": (lambda c: c.get("/api/items?numbers=" + "1," * 200 + "1"), 400, "up to 200"),
    "an unknown class": (lambda c: c.get("/api/numbers?class=dog"), 404, "step 1 has no class dog"),
    "another order": (lambda c: c.get("/api/numbers?order=random"), 400, "order: "),
    "a decision about no mask": (lambda c: c.decide([], "reject"), 400, "numbers: "),
    "a decision about an unknown mask": (lambda c: c.decide([0, 99999], "reject"), 404, "there is no mask 99999"),
    "another decision": (lambda c: c.decide([0], "maybe"), 400, "decision: "),
    "no decision": (lambda c: c.post("/api/decide", {"numbers": [0]}), 400, "decision: "),
    "a decision that is no JSON": (
        lambda c: c.ask("POST", "/api/decide", b"{", {"X-Fmwiss-Token": c.access.token, "Content-Type": JSON}),
        400,
        "JSON",
    ),
    "a threshold too high": (lambda c: c.post("/api/threshold", {"value": 1}), 409, "from 0 to below 1"),
    "a threshold in words": (lambda c: c.post("/api/threshold", {"value": "half"}), 400, "value: "),
    "no word": (lambda c: c.get("/api/words?word=%20"), 409, "a word has 1 to 80"),
    "a long word": (lambda c: c.get("/api/words?word=" + "x" * 81), 409, "a word has 1 to 80"),
    "a word for an unknown class": (lambda c: c.get("/api/words?word=cat&class=dog"), 404, "has no class dog"),
    "a long body": (lambda c: c.decide([0] * 400_000, "reject"), 413, "at most 1048576 bytes"),
    "a decision asked for": (lambda c: c.get("/api/decide"), 405, "Method Not Allowed"),
}


@pytest.fixture(scope="module")
def shared(world: Any, tags_index: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(world.open(tmp_path_factory.mktemp("shared"))) as client:
        yield client


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(name: str, shared: Client) -> None:
    ask, status, sentence = REFUSED[name]
    ask(shared).refused(status, sentence)
    assert not shared.session.path.exists() and shared.session.undoable == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3"])
def test_names_that_no_stranger_can_give_are_answered(shared: Client, host: str) -> None:
    name = f"{host}:{shared.access.port}"
    assert shared.get("/api/session", Host=name, Origin=f"http://{name}").status == 200


def test_a_link_on_another_site_may_open_the_page(shared: Client) -> None:
    assert shared.get("/", Sec_Fetch_Site="cross-site").status == 200


def test_a_full_disk_is_told_on_the_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Review, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Review, "write", full)
    client.decide([0], "reject").refused(507, "the disk is full")
    assert client.get("/api/session").json["undoable"] == 0


def test_beyond_this_machine_a_key_is_needed(session: Session) -> None:
    with serving(session, "0.0.0.0") as client:
        assert len(client.access.key) > 20 and client.access.url.endswith(f"/?key={client.access.key}")
        for path in ("/", "/api/session", "/assets/review.js", "/?key=x"):
            client.get(path).refused(403, "it holds a key")
        client.decide([0], "reject").refused(403, "it holds a key")
        page = client.get(f"/?key={client.access.key}")
        assert page.status == 200
        cookie = page.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie
        sent = cookie.partition(";")[0]
        assert client.get("/api/session", Cookie=sent).status == 200
        assert client.decide([0], "reject", Cookie=sent).status == 200
    assert Access.at("127.0.0.1", 1).key == Access.at("localhost", 1).key == Access.at("::1", 1).key == ""
    assert Access.at("::1", 80).url == "http://[::1]:80/"
