"""`bench/serving.py` against a small server that speaks the streaming protocol.

Only the measuring is tested: the server waits as long as it is told and says words.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_serving", ROOT / "bench" / "serving.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_serving"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_serving"]


class Speaker(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does; `behaviour` says how."""

    behaviour: ClassVar[dict] = {}

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._send(200, json.dumps({"data": [{"id": "stand-in"}]}).encode())

    def do_POST(self):
        how = self.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        video, text = body["messages"][0]["content"]
        asked = (video["video_url"]["url"], text["text"])
        with how["lock"]:
            how["asked"].append(asked)
            known = asked[0] in how["seen"]
            how["seen"].add(asked[0])
            how["at_once"] += 1
            how["most_at_once"] = max(how["most_at_once"], how["at_once"])
        time.sleep(how["first"] * (0.25 if known else 1))
        if how.get("status", 200) != 200:
            self._send(how["status"], b"no room")
        else:
            self._stream(body["max_tokens"], how)
        with how["lock"]:
            how["at_once"] -= 1

    def _stream(self, count, how):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for _ in range(count):
            self._event({"choices": [{"delta": {"content": " word"}}]})
        time.sleep(how.get("last", 0))
        if not how.get("cut"):
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, piece):
        self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        self.wfile.flush()

    def _send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def speaker():
    Speaker.behaviour = {
        "first": 0.0, "asked": [], "seen": set(), "lock": threading.Lock(), "at_once": 0,
        "most_at_once": 0,
    }  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), Speaker)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Speaker.behaviour
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_first_text_is_timed_not_the_first_event_and_the_end(bench, speaker):
    url, how = speaker
    how.update(first=0.2, last=0.3)
    taken = bench.ask(url, "m", bench.Job("data:v", "what ?", True), 5, 60)
    assert taken.error == "" and taken.tokens == 5
    # The server waits 0.2 s for the first text and 0.3 s more for the last; reading may come late.
    assert 0.2 <= taken.first <= taken.total - 0.2 and taken.total >= 0.5


def test_so_many_clients_ask_at_once_and_everything_once(bench, speaker):
    url, how = speaker
    how.update(first=0.3)
    jobs = bench.make_jobs([f"data:{n}" for n in range(3)], 2)
    done = bench.run_round(url, "m", jobs, 3, 2, 60)
    assert how["most_at_once"] == 3
    assert sorted(how["asked"]) == sorted((job.video, job.question) for job in jobs)
    row = done.row()
    assert (row["requests"], row["failed"]) == (6, 0)
    assert row["requests_per_s"] == pytest.approx(6 / done.seconds)
    assert row["tokens_per_s"] == pytest.approx(12 / done.seconds)
    # Three wait in full, three for a quarter.
    assert row["first_ms_p50_new_video"] >= 300 and row["first_ms_p50_known_video"] >= 75
    assert row["first_ms_p50"] <= row["first_ms_p90"] <= 1e3 * done.seconds
    assert done.seconds >= 0.375


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [({"status": 503}, "503: no room"), ({"cut": True}, "ended early")],
)
def test_what_fails_is_counted_and_not_timed(bench, speaker, behaviour, words):
    url, how = speaker
    how.update(behaviour)
    done = bench.run_round(url, "m", bench.make_jobs(["data:v"], 2), 1, 2, 60)
    assert all(words in one.error for one in done.taken)
    row = done.row()
    assert (row["requests"], row["failed"], row["first_ms_p50"]) == (0, 2, None)
    assert row["requests_per_s"] == 0


def test_a_server_that_is_not_there(bench):
    taken = bench.ask(f"http://127.0.0.1:{free_port()}", "m", bench.Job("v", "q", True), 1, 5)
    assert "refused" in taken.error and not bench.healthy(f"http://127.0.0.1:{free_port()}")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_percentiles(bench):
    assert bench._milliseconds([0.001 * n for n in range(1, 102)], 50) == pytest.approx(51)
    assert bench._milliseconds([0.001 * n for n in range(1, 102)], 90) == pytest.approx(91)
    assert bench._milliseconds([0.5], 90) == 500 and bench._milliseconds([None], 50) is None


def test_the_whole_run_writes_its_table(bench, speaker, tmp_path, capsys):
    url, how = speaker
    videos = tmp_path / "videos"
    videos.mkdir()
    for n in range(6):
        (videos / f"{n}.mp4").write_bytes(bytes([n]))
    given = ["--url", url, "--label", "stand-in", "--clients", "1", "2", "--requests", "4",
             "--questions", "2", "--max-tokens", "3", "--videos", str(videos), "--out",
             str(tmp_path), "--name", "test"]  # fmt: skip
    bench.main(given)
    with open(tmp_path / "serving-test.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["way"], row["clients"], row["requests"]) for row in rows] == [
        ("stand-in", "1", "4"), ("stand-in", "2", "4"),
    ]  # fmt: skip
    assert "| stand-in | stand-in |" in (tmp_path / "serving-test.md").read_text()
    assert len({video for video, _ in how["asked"]}) == 6  # two to warm up, two for each number
    with pytest.raises(SystemExit, match="holds 6 videos; expected"):
        bench.main([*given, "--requests", "6"])


def test_clips_are_made_where_no_folder_is_named(bench):
    (one,) = bench.clips(None, 1, 0)
    assert one.startswith("data:video/mp4;base64,") and len(one) > 1000


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("none", []),
        ("vidcom2", ["--video-pruning-rate", "0.9", "--video-pruning-method", "vidcom2"]),
        ("cacovid", ["--video-pruning-rate", "0.9", "--hf-overrides"]),
    ],
)
def test_the_command_of_each_way(bench, way, words):
    qwen = "Qwen3VLForConditionalGeneration"
    command = bench.serve_command(way, "DIR", qwen, 0.1, "my-policy", 1, ["--seed", "3"])
    assert command[:7] == ["vllm", "serve", "DIR", "--port", "1", "--seed", "3"]
    assert command[7 : 7 + len(words)] == words
    if way == "cacovid":
        assert json.loads(command[-1]) == {
            "architectures": [f"CaCoVID{qwen}"], "cacovid": {"policy": "my-policy"},
        }  # fmt: skip
    from cacovid.engines.vllm import ARCHITECTURES

    assert set(bench.PLUGIN.values()) == set(ARCHITECTURES)


def test_ways_that_are_not_there(bench):
    llava = "LlavaOnevisionForConditionalGeneration"
    with pytest.raises(SystemExit, match="leave it out"):
        bench.serve_command("vidcom2", "DIR", llava, 0.1, "p", 1, [])
    with pytest.raises(SystemExit, match="no class for Other"):
        bench.serve_command("cacovid", "DIR", "Other", 0.1, "p", 1, [])


SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_is_started_and_stopped(bench):
    port = free_port()
    url, command = f"http://127.0.0.1:{port}", [sys.executable, "-c", SERVER, str(port)]
    with bench.serving(command, url, 60):
        assert bench.healthy(url)
        with pytest.raises(SystemExit, match=r"answers .* already"), bench.serving([], url, 1):
            pass
    assert not bench.healthy(url)
    with (
        pytest.raises(SystemExit, match="ended with 3"),
        bench.serving([sys.executable, "-c", "raise SystemExit(3)"], url, 60),
    ):
        pass
