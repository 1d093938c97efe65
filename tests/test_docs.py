"""The examples of the documentation, run as they are written.

Python blocks of a page run in order in one namespace, as a reader types them; lines of shell blocks
that call `cacovid` run too, in the same folder, which holds a real `clip.mp4`; the other lines are
checked against what the project offers. A block that cannot run on any machine (it needs a GPU or a
download from a model hub) stands under `<!-- not run: why -->`; it is still compiled. One under
`<!-- needs CUDA -->` runs where there is a device.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
_PAGES = (
    "README.md", "CONTRIBUTING.md", "docs/adding-a-model.md", "docs/evaluation.md",
    "docs/methods.md", "docs/models.md", "docs/multi-turn.md", "docs/python-api.md",
    "docs/score.md", "docs/sglang.md", "docs/training.md", "docs/training-findings.md",
    "docs/using-the-ops.md",
)  # fmt: skip
PAGES = [name for name in _PAGES if (ROOT / name).is_file()]

_FENCE = re.compile(
    r"(?P<skip><!-- (?:not run: (?P<why>[^\n]+?)|(?P<cuda>needs CUDA)) -->\n+)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    why_not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text()
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        why = match["why"]
        if match["cuda"] and not torch.cuda.is_available():
            why = "no CUDA device"
        yield Block(page, line, match["language"], match["text"], why)


def _commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block: continued lines joined, prompts and comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


def _calls_cacovid(block: Block) -> bool:
    shell = block.language in ("sh", "bash", "shell", "console")
    return shell and any(words[0] == "cacovid" for words in _commands(block.text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: a folder with a real clip."""
    from cacovid import synthetic

    folder = tmp_path_factory.mktemp("docs")
    synthetic.make_scene("test", 0, 0).write(folder / "clip.mp4")
    return folder


def _embedded_model() -> bool:
    return (ROOT / "cacovid" / "assets" / "tiny" / "config.json").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_compile(page: str) -> None:
    for block in _blocks(page):
        if block.language in ("python", "py"):
            compile(block.text, block.place, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(
    page: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = [block for block in _blocks(page) if not block.why_not_run]
    runs = [b for b in blocks if b.language in ("python", "py") or _calls_cacovid(b)]
    if not runs:
        return
    if not _embedded_model():
        pytest.skip("the embedded model is not in this checkout")
    # The packages of the command line and of video: a machine with a GPU may have torch alone.
    types = importlib.util.find_spec("tyro") is not None
    films = any("clip.mp4" in block.text for block in runs)
    monkeypatch.chdir(request.getfixturevalue("folder" if films else "tmp_path"))
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        if block.language in ("python", "py"):
            try:
                exec(compile(block.text, block.place, "exec"), namespace)
            except Exception as error:
                pytest.fail(f"{block.place}: {type(error).__name__}: {error}")
        elif types and block.language in ("sh", "bash", "shell", "console"):
            for words in _commands(block.text):
                if words[0] == "cacovid":
                    end = words.index(">") if ">" in words else len(words)
                    from cacovid import cli

                    status = cli.main(words[1:end])
                    assert status == 0, f"{block.place}: {words}\n{capsys.readouterr().err}"


def _problem(words: list[str]) -> str | None:
    """What is wrong with a command that is not run, or None."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if words[0] in ("cacovid", "git", "cd", "export", "source", ".", "sudo", "apt"):
        return None
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        missing = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"the Makefile has no {missing}" if missing else None
    if words[0] == "pip" or words[:3] == ["python", "-m", "pip"]:
        named = re.findall(r"(?:cacovid|\.)\[([\w,-]+)\]", " ".join(words))
        extras = {extra for names in named for extra in names.split(",")}
        unknown = extras - set(project["optional-dependencies"])
        return f"there is no extra {unknown}" if unknown else None
    python = re.fullmatch(r"(\.venv/bin/)?python3?", words[0])
    if python and words[1] == "-m":
        found = importlib.util.find_spec(words[2]) is not None
        return None if found else f"there is no module {words[2]}"
    if python or "/" in words[0]:
        script = words[1] if python else words[0]
        made = script.startswith(".venv/bin/")
        return None if made or (ROOT / script).is_file() else f"there is no file {script}"
    tools = {"pytest", "ruff", "mypy", "clang-format", "cmake", "accelerate", "lmms-eval"}
    return None if words[0] in tools else f"unknown command {words[0]!r}; teach this test"


@pytest.mark.parametrize("page", PAGES)
def test_shell_examples_name_what_exists(page: str) -> None:
    problems = [
        f"{block.place}: {problem}"
        for block in _blocks(page)
        if block.language in ("sh", "bash", "shell", "console")
        for words in _commands(block.text)
        if (problem := _problem(words))
    ]
    assert problems == []


@pytest.mark.parametrize("page", PAGES)
def test_links_into_the_project_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def _anchors(page: Path) -> set[str]:
    """What links can name on a page: its headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_lead_to_one(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*\.md)?#([^)\s]+)\)", (ROOT / page).read_text())
    here = ROOT / page
    missing = [
        (file, anchor)
        for file, anchor in links
        if anchor not in _anchors(here.parent / file if file else here)
    ]
    assert missing == []


def test_every_entry_of_a_training_configuration_is_documented_with_its_default() -> None:
    yaml = pytest.importorskip("yaml")
    from cacovid.train.config import StageSection, TrainConfig

    required = "required"

    def entries(kind: type, prefix: str) -> Iterator[tuple[str, object]]:
        hints = typing.get_type_hints(kind)
        for entry in dataclasses.fields(kind):
            name = prefix + entry.name
            if dataclasses.is_dataclass(hints[entry.name]):
                if kind is not StageSection:  # its data is documented as that of the run
                    yield from entries(hints[entry.name], f"{name}.")
            elif entry.default is not dataclasses.MISSING:
                yield name, entry.default
            elif entry.default_factory is not dataclasses.MISSING:
                yield name, entry.default_factory()
            else:
                yield name, required

    text = (ROOT / "docs/training.md").read_text()
    rows = re.findall(
        r"^\| `([\w.\[\]]+)` \| (?:`(.+?)`|(required)) \| .+ \|$",
        text[text.index("## All entries") :],
        re.MULTILINE,
    )
    told = {name: yaml.safe_load(value) if value else required for name, value, _ in rows}
    wanted = dict([*entries(TrainConfig, ""), *entries(StageSection, "stages[].")])
    wanted = {name: list(v) if isinstance(v, tuple) else v for name, v in wanted.items()}
    assert told == wanted and len(rows) == len(wanted)


def test_environment_variables_are_documented() -> None:
    from cacovid import settings

    assert settings.table() in (ROOT / "CONTRIBUTING.md").read_text()
