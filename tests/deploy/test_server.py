"""Servers are asked in the ways that they know, and what they do not give is said."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fp4scope.deploy.server import ask_server
from fp4scope.errors import DataError, Fp4ScopeError

from .served import server

WINDOW = [[1, 2, 3]]


def echoed(values, tops=None, **more):
    return {"choices": [{"logprobs": {"token_logprobs": values, "top_logprobs": tops}}]} | more


def prompted(places):
    return {"choices": [{"prompt_logprobs": places}]}


def test_echo_gives_each_token_and_the_likeliest():
    tops = [None, {"token_id:2": -0.5, "token_id:7": -1.0}, {"token_id:8": -0.1, "token_id:3": -3}]

    def answer(prompt, body):
        assert body["echo"] is True
        assert body["return_tokens_as_token_ids"] is True
        return echoed([None, -0.5, -3.0, -1.0], [*tops, {}], usage={"prompt_tokens": 3})

    with server(answer) as (url, came):
        found = ask_server(url, WINDOW, top=2)
    assert found.logprobs.tolist() == [[-0.5, -3.0]]
    assert found.top_ids is not None
    assert found.top_ids.tolist() == [[[2, 7], [8, 3]]]
    assert came[0]["logprobs"] == 2


@pytest.mark.parametrize(
    "tops",
    [None, [None], [None, [2, 7], [3, 8], []], [None, {"a": -0.5}, {"b": -0.1}, {}]],
    ids=["none", "too few", "lists", "words"],
)
def test_the_likeliest_that_are_not_named_by_id_are_left_out(tops):
    with server(lambda *_: echoed([None, -0.5, -3.0, -1.0], tops)) as (url, _):
        found = ask_server(url, WINDOW, top=2)
    assert found.logprobs.tolist() == [[-0.5, -3.0]]
    assert found.top_ids is None


@pytest.mark.parametrize("top", [0, 1])
def test_prompt_logprobs_are_asked_for_where_echo_gives_none(top):
    def answer(prompt, body):
        if "echo" in body:
            return {"choices": [{"logprobs": None}]}
        second, third = {"2": {"logprob": -0.5}}, {"9": {"logprob": -0.2}, "3": {"logprob": -2.0}}
        return prompted([None, second, third])

    with server(answer) as (url, came):
        found = ask_server(url, WINDOW * 2, model="named", top=top)
    assert found.logprobs.tolist() == [[-0.5, -2.0]] * 2
    assert [body["model"] for body in came] == ["named"] * 3  # echo is not tried again
    if top:
        assert found.top_ids is not None
        assert found.top_ids.tolist() == [[[2], [9]]] * 2
    else:
        assert found.top_ids is None


def test_servers_that_give_none():
    none = server(lambda prompt, _: {"choices": [{"logprobs": None}]})
    with none as (url, _), pytest.raises(DataError, match="no log-probability for each token"):
        ask_server(url, WINDOW)
    with pytest.raises(DataError, match="is the server running"):
        ask_server(url, WINDOW)
    with pytest.raises(Fp4ScopeError, match="write it as http://HOST:PORT"):
        ask_server("localhost:8000", WINDOW)


@pytest.mark.parametrize(
    "answer",
    [
        echoed([None, -1.0, -1.0, -1.0, -1.0]),  # one token more than asked, and the written one
        echoed([None, -1.0]),
        echoed([None, -1.0, -1.0], usage={"prompt_tokens": 4}),
    ],
)
def test_a_server_that_tokenizes_otherwise(answer):
    with (
        server(lambda prompt, _: answer) as (url, _),
        pytest.raises(DataError, match=r"tokens of a prompt of 3 ids; it tokenizes otherwise"),
    ):
        ask_server(url, WINDOW)


def test_a_server_that_refuses(monkeypatch):
    with server(None, status=500) as (url, _), pytest.raises(DataError, match="answered 500"):
        ask_server(url, WINDOW)
    with server(None, status=401) as (url, came):
        with pytest.raises(DataError, match="set FP4SCOPE_API_KEY"):
            ask_server(url, WINDOW)
        monkeypatch.setenv("FP4SCOPE_API_KEY", "a key")
        with pytest.raises(DataError, match="set FP4SCOPE_API_KEY"):
            ask_server(url, WINDOW)
    assert [body["key"] for body in came] == [None, "Bearer a key"]


def test_a_key_is_not_sent_on(monkeypatch):
    """A server may point to another, which the key is not for."""
    monkeypatch.setenv("FP4SCOPE_API_KEY", "a key")
    came = []

    class Pointing(BaseHTTPRequestHandler):
        def do_GET(self):
            came.append(self.headers.get("Authorization"))
            if self.path == "/v1/models":
                self.send_response(302)
                self.send_header("Location", "/elsewhere")
            else:
                self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Pointing) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            with pytest.raises(DataError, match="answered 404"):
                ask_server(f"http://127.0.0.1:{http.server_port}", WINDOW)
        finally:
            http.shutdown()
            thread.join()
    assert came == ["Bearer a key", None]


def test_a_server_that_does_not_answer():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match=r"gave no answer in 0\.2 s"):
            ask_server(url, WINDOW, model="m", timeout_s=0.2)


def test_progress_is_told():
    told = []
    with server(lambda prompt, _: echoed([None, -1.0, -1.0])) as (url, _):
        ask_server(url, WINDOW * 3, ran=told.append)
    assert told == [0, 1, 2]
