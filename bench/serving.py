"""Requests per second and time to the first token of a server, against the number of clients.

    python bench/serving.py --model Qwen/Qwen3-VL-8B-Instruct --policy DIR --retention 0.1
    python bench/serving.py --url http://127.0.0.1:8000 --label mine

Without `--url`, vLLM is started once for each way and stopped again: `none` (no pruning),
`vidcom2` (vLLM's own, `--video-pruning-method vidcom2`, where the family has it) and `cacovid`
(the plugin), with the same share of tokens kept and the same further arguments (`--serve-args`).
With `--url`, any server that speaks the OpenAI protocol with streaming is measured as it is.

Clients ask one after another, without a pause, so many at a time. A video is asked about
`--questions` times before the next comes up, which is where held features count; the first
request of each video is told apart. Clips of the synthetic task are made unless `--videos` names a
folder of files. Every request asks for exactly `--max-tokens` tokens. Times are seen by the client:
from sending a request to the first text, and to the end. Requests that fail are counted and not
timed. Warm-up requests, on clips of their own, are not counted.

Writes `serving-NAME.csv` and `.md`. Not measured yet: no figure of a GPU is known.
"""

from __future__ import annotations

import argparse
import base64
import csv
import http.client
import json
import queue
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
WAYS = ("none", "vidcom2", "cacovid")
QUESTIONS = (
    "What happens in the video?", "Which object appears first?", "What colour is the largest one?",
    "What moves to the left?", "How many objects are there?", "What is seen at the end?",
)  # fmt: skip
#: Of the Hugging Face architectures, those of the plugin.
PLUGIN = {
    "LlavaOnevisionForConditionalGeneration": "CaCoVIDLlavaOnevisionForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "CaCoVIDQwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration": "CaCoVIDQwen3VLForConditionalGeneration",
}
#: vLLM's own question-blind method, and the architectures that have it.
VIDCOM2 = {"Qwen3VLForConditionalGeneration"}
FIELDS = (
    "way", "model", "retention", "clients", "requests", "failed", "requests_per_s", "first_ms_p50",
    "first_ms_p90", "first_ms_p50_new_video", "first_ms_p50_known_video", "total_ms_p50",
    "tokens_per_s",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One request.

    Args:
        video: What goes as `video_url`.
        question: The text behind it.
        new: Whether the video was not asked about before.
    """

    video: str
    question: str
    new: bool


@dataclass
class Taken:
    """What one request took.

    Args:
        new: Whether its video was new.
        first: Seconds to the first text; None where it failed.
        total: Seconds to the end.
        tokens: Pieces of text that came.
        error: What went wrong.
    """

    new: bool
    first: float | None = None
    total: float = 0.0
    tokens: int = 0
    error: str = ""


@dataclass
class Round:
    """All requests of one number of clients."""

    clients: int
    seconds: float
    taken: list[Taken] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Its figures, for the table."""
        good = [one for one in self.taken if one.first is not None]
        firsts = [one.first for one in good if one.first is not None]
        return {
            "clients": self.clients,
            "requests": len(good),
            "failed": len(self.taken) - len(good),
            "requests_per_s": len(good) / self.seconds,
            "first_ms_p50": _milliseconds(firsts, 50),
            "first_ms_p90": _milliseconds(firsts, 90),
            "first_ms_p50_new_video": _milliseconds([o.first for o in good if o.new], 50),
            "first_ms_p50_known_video": _milliseconds([o.first for o in good if not o.new], 50),
            "total_ms_p50": _milliseconds([one.total for one in good], 50),
            "tokens_per_s": sum(one.tokens for one in good) / self.seconds,
        }


def _milliseconds(seconds: Sequence[float | None], share: int) -> float | None:
    values = sorted(value for value in seconds if value is not None)
    if not values:
        return None
    if len(values) == 1:
        return values[0] * 1e3
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1] * 1e3


def ask(url: str, model: str, job: Job, max_tokens: int, timeout: float) -> Taken:
    """Sends one request and reads its stream.

    Args:
        url: The server's, without `/v1`.
        model: Name that the server knows the model by.
        job: The request.
        max_tokens: To be generated, no fewer.
        timeout: Seconds without an answer after which it has failed.
    """
    taken = Taken(job.new)
    place = urllib.parse.urlsplit(url)
    content = [
        {"type": "video_url", "video_url": {"url": job.video}},
        {"type": "text", "text": job.question},
    ]
    body = json.dumps(
        {
            "model": model, "messages": [{"role": "user", "content": content}], "stream": True,
            "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
        }
    )  # fmt: skip
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout)
    begin = time.perf_counter()
    try:
        path = f"{place.path.rstrip('/')}/v1/chat/completions"
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            taken.error = f"{answer.status}: {answer.read(300).decode(errors='replace')}"
            return taken
        first, ended = None, False
        for event in events(answer):
            if event == "[DONE]":
                ended = True
                break
            piece = json.loads(event)
            if "error" in piece:
                taken.error = str(piece["error"])[:300]
                return taken
            for choice in piece.get("choices", ()):
                if choice.get("delta", {}).get("content"):
                    taken.tokens += 1
                    first = first or time.perf_counter() - begin
        taken.total = time.perf_counter() - begin
        if first is None or not ended:
            taken.error = "the stream ended early" if first else "no text came"
        else:
            taken.first = first
    except (OSError, ValueError, http.client.HTTPException) as error:
        taken.error = repr(error)[:300]
    finally:
        connection.close()
    return taken


def events(lines: Any) -> Iterator[str]:
    """The data of the server-sent events of an answer, as they come."""
    for line in iter(lines.readline, b""):
        text = line.decode().strip()
        if text.startswith("data:"):
            yield text.removeprefix("data:").strip()


def run_round(
    url: str, model: str, jobs: Sequence[Job], clients: int, max_tokens: int, timeout: float
) -> Round:
    """Has the jobs done by so many clients, in order, each asking as soon as it is free."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    taken: list[Taken] = []

    def work() -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            taken.append(ask(url, model, job, max_tokens, timeout))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Round(clients, time.perf_counter() - begin, taken)


def make_jobs(videos: Sequence[str], questions: int) -> list[Job]:
    """Requests: the first question on every video, then the second on every video, and so on.

    So that a video's later questions find its first one answered, not under way.
    """
    texts = [QUESTIONS[n % len(QUESTIONS)] + " " * (n // len(QUESTIONS)) for n in range(questions)]
    return [Job(video, text, n == 0) for n, text in enumerate(texts) for video in videos]


def as_url(path: Path) -> str:
    """A video file as a data URL, which every server takes without further rights."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f"data:video/{path.suffix.lstrip('.') or 'mp4'};base64,{data}"


def clips(folder: Path | None, count: int, first: int) -> list[str]:
    """So many videos as data URLs, from the one with number `first` on.

    Raises:
        SystemExit: if the folder does not hold enough.
    """
    if folder is not None:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if len(files) < first + count:
            raise SystemExit(
                f"{folder} holds {len(files)} videos; expected {first + count}: every number of "
                f"clients gets videos that no other had (fewer --requests, or more files)"
            )
        return [as_url(path) for path in files[first : first + count]]
    from cacovid.synthetic import make_scene

    with tempfile.TemporaryDirectory() as place:
        return [
            as_url(make_scene("test", 77, n).write(Path(place, f"{n}.mp4")))
            for n in range(first, first + count)
        ]


def serve_command(
    way: str, model: str, architecture: str, retention: float, policy: str, port: int,
    more: Sequence[str],
) -> list[str]:  # fmt: skip
    """The command line of a server.

    Args:
        way: One of `WAYS`.
        model: Directory or Hub id.
        architecture: That the model's configuration names.
        retention: Share of the video tokens to keep.
        policy: For `cacovid`.
        port: To listen on.
        more: Further arguments.

    Raises:
        SystemExit: for a way that vLLM does not have for this architecture.
    """
    command = ["vllm", "serve", model, "--port", str(port), *more]
    rate = ["--video-pruning-rate", f"{1 - retention:.6g}"]
    if way == "none":
        return command
    if way == "vidcom2":
        if architecture not in VIDCOM2:
            raise SystemExit(
                f"vLLM has vidcom2 for {', '.join(sorted(VIDCOM2))}, not for {architecture}; "
                f"leave it out: --ways none cacovid"
            )
        return [*command, *rate, "--video-pruning-method", "vidcom2"]
    if architecture not in PLUGIN:
        raise SystemExit(f"the plugin has no class for {architecture}; has: {', '.join(PLUGIN)}")
    overrides = {"architectures": [PLUGIN[architecture]], "cacovid": {"policy": policy}}
    return [*command, *rate, "--hf-overrides", json.dumps(overrides)]


@contextmanager
def serving(command: Sequence[str], url: str, seconds: float) -> Iterator[None]:
    """Runs a server until the block is left.

    Raises:
        SystemExit: if it ends, does not answer `/health` within so many seconds, or if another
            server answers there already.
    """
    if healthy(url):
        raise SystemExit(f"a server answers at {url} already; stop it, or choose another --port")
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + seconds
        while not healthy(url):
            if process.poll() is not None:
                raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}")
            if time.monotonic() > end:
                raise SystemExit(f"{shlex.join(command)} did not answer within {seconds:.0f} s")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(url: str) -> bool:
    """Whether a server answers."""
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=5)
    try:
        connection.request("GET", f"{place.path.rstrip('/')}/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def served_name(url: str) -> str:
    """The name of the first model that a server serves."""
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        connection.request("GET", f"{place.path.rstrip('/')}/v1/models")
        return str(json.loads(connection.getresponse().read())["data"][0]["id"])
    finally:
        connection.close()


def measure(url: str, way: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all numbers of clients for the server at `url`."""
    name, rows = served_name(url), []
    warm = make_jobs(clips(args.videos, 2, 0), 2)
    run_round(url, name, warm, 2, args.max_tokens, args.timeout)
    first = 2
    for clients in args.clients:
        count = max(1, -(-args.requests // args.questions))
        # Videos that this server has not seen: its caches must not answer.
        jobs = make_jobs(clips(args.videos, count, first), args.questions)
        first += count
        done = run_round(url, name, jobs, clients, args.max_tokens, args.timeout)
        for problem in sorted({one.error for one in done.taken if one.error}):
            print(f"{way}, {clients} clients: {problem}", file=sys.stderr)
        row = {"way": way, "model": name, "retention": args.retention if way != "none" else 1.0}
        rows.append(row | done.row())
        print("  ".join(f"{key}={_shown(value)}" for key, value in rows[-1].items()), flush=True)
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(rows: Sequence[dict[str, Any]], folder: Path, name: str, title: str) -> None:
    """`serving-NAME.csv` and `.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"serving-{name}.csv", "w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(rows)
    head = ["| " + " | ".join(FIELDS) + " |", "|---" * len(FIELDS) + "|"]
    lines = [f"# Serving: {title}", "", *head]
    lines += ["| " + " | ".join(_shown(row[key]) for key in FIELDS) + " |" for row in rows]
    (folder / f"serving-{name}.md").write_text("\n".join(lines) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running server, such as http://127.0.0.1:8000")
    where.add_argument("--model", help="directory or Hub id; vllm serve is started with it")
    parser.add_argument("--label", default="server", help="what the server of --url is called")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--policy", default="cacovid", help="of the plugin; see docs/vllm.md")
    parser.add_argument("--retention", type=float, default=0.1)
    parser.add_argument("--architecture", help="of the model; default: as its configuration says")
    parser.add_argument("--serve-args", default="", help="further arguments, as one text")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--start-timeout", type=float, default=1800, help="seconds")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--requests", type=int, default=64, help="for each number of clients")
    parser.add_argument("--questions", type=int, default=4, help="on each video")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--timeout", type=float, default=600, help="seconds, of a request")
    parser.add_argument("--videos", type=Path, help="folder of video files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="server", help="of the files")
    args = parser.parse_args(arguments)
    for option in ("clients", "requests", "questions", "max_tokens"):
        value = getattr(args, option)
        if min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{option.replace('_', '-')} is {value}; expected 1 or more")
    if not 0 < args.retention <= 1:
        parser.error(f"--retention is {args.retention}; expected a number in (0, 1]")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    args = parse(arguments)
    rows: list[dict[str, Any]] = []
    if args.url:
        rows += measure(args.url, args.label, args)
    else:
        architecture = args.architecture or _architecture(args.model)
        url = f"http://127.0.0.1:{args.port}"
        commands = {
            way: serve_command(
                way, args.model, architecture, args.retention, args.policy, args.port,
                shlex.split(args.serve_args),
            )
            for way in args.ways
        }  # fmt: skip
        for way, command in commands.items():
            print(shlex.join(command), flush=True)
            with serving(command, url, args.start_timeout):
                rows += measure(url, way, args)
    write(rows, args.out, args.name, args.model or args.url)


def _architecture(model: str) -> str:
    from transformers import AutoConfig

    return str(AutoConfig.from_pretrained(model).architectures[0])


if __name__ == "__main__":
    main()
