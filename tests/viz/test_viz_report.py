"""The report page: one file that needs nothing else, opened in a real browser where one is."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from cacovid.errors import InvalidInputError
from cacovid.viz.report import Report, ReportCondition, ReportMethod, write_report
from cacovid.viz.report.page import render

GRID = (4, 3, 3)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def condition(retention, first, answer):
    kept = np.zeros(36, dtype=bool)
    kept[first : first + round(36 * retention)] = True
    seconds = {"read": 0.2, "vision": 0.1, "compress": 0.01, "prefill": 0.05, "decode": 0.02}
    return ReportCondition(retention, kept, answer, 20 + int(kept.sum()), seconds)


@pytest.fixture(scope="module")
def report():
    # Every frame of one colour, so that a picture tells which frame it shows.
    frames = np.zeros((4, 48, 48, 3), dtype=np.uint8)
    frames[np.arange(4), ..., [0, 1, 2, 0]] = 230
    full = dataclasses.replace(condition(0.5, 0, "red"), kept=np.ones(36, dtype=bool))
    scored = ReportMethod(
        "scored", np.linspace(-1, 1, 36), [condition(0.25, 18, "red"), condition(0.5, 18, "Red.")]
    )
    plain = ReportMethod(
        "<plain> & \u2028", None, [condition(0.25, 0, "</script><b>blue"), condition(0.5, 0, "")]
    )
    return Report(
        "What colour?\nA. red\nB. </title>", "clip.mp4", "tiny", GRID, frames,
        np.array([0.0, 0.5, 1.0, 1.5]), full, [scored, plain],
    )  # fmt: skip


def test_the_page_asks_for_nothing(report):
    page = render(report)
    addresses = re.findall(
        r"(?:src|href|action|url|import|fetch)\s*[=(:]\s*[\"']?([^\"'\s)>]+)", page
    )
    assert [a for a in addresses if a.startswith(("http", "//", "/", "file"))] == []
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    assert page.count("</script>") == 2 and page.count("</title>") == 1  # texts end no element
    assert "@@" not in page


def test_answers_and_times_stand_in_a_table_without_the_script(report):
    page = render(report)
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in table.split("<tr")[1:]
    ]
    assert [row[0] for row in rows] == [
        "uncompressed", "scored", "scored", "<plain> & \u2028", "<plain> & \u2028",
    ]  # fmt: skip
    assert rows[1][1:4] == ["25%", "29", "red"] and rows[3][3] == "</script><b>blue"
    assert rows[0][-1] == "360.0" and rows[4][3] == "–"


def test_parts_that_do_not_fit_are_refused(report, tmp_path):
    (scored, plain) = report.methods
    short = dataclasses.replace(scored, conditions=scored.conditions[:1])
    for change, words in (
        ({"frames": report.frames[:3]}, "at least 4 frames"),
        ({"timestamps": np.zeros(3)}, "3 timestamps for 4 frames"),
        ({"methods": [short, plain]}, "the same for all"),
        ({"methods": []}, "at least one"),
        ({"grid": (4, 3, 2)}, "asks for"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            render(dataclasses.replace(report, **change))
    for name in ("page.txt", "none/page.html"):
        with pytest.raises(InvalidInputError, match="report"):
            write_report(tmp_path / name, report)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def browse(report, tmp_path):
    """Opens the page in a browser; returns what the page then is, and a picture of it."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed (apt install chromium)")

    def run(address="", script="", width=1000):
        path = write_report(tmp_path / "page.html", report)
        path.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
        picture = tmp_path / "page.png"
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--force-device-scale-factor=1",
            "--disable-background-networking", "--no-first-run", "--virtual-time-budget=3000",
            f"--window-size={width},1400",
        ]  # fmt: skip
        place = f"{path.as_uri()}{address}"
        done = subprocess.run(
            [*command, f"--screenshot={picture}", "--dump-dom", place], capture_output=True,
            text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, np.asarray(Image.open(picture).convert("RGB"))

    return run


def shown(page):
    return json.loads(html.unescape(re.search(r'data-state="([^"]*)"', page)[1]))


def words(page):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_in_a_browser_the_slider_moves_and_frames_are_drawn(browse):
    script = """
    const wait = setInterval(() => {
      const slider = document.getElementById("retention");
      if (document.getElementById("controls").hidden) return;
      clearInterval(wait);
      slider.value = 1;
      slider.dispatchEvent(new Event("input"));
      document.querySelectorAll("#sheet figure")[1].click();
      const canvas = document.querySelector(".card canvas.picture");
      const at = (c, x, y) => [...c.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
      const sheet = document.querySelectorAll("#sheet canvas");
      document.body.dataset.pixels = JSON.stringify([
        at(canvas, canvas.width / 2, canvas.height / 2),
        at(sheet[2], 30, 60), at(sheet[0], 30, 60)]);
    }, 20);
    """
    page, picture = browse("#retention=0.25&frame=4&heat=0", script)
    assert shown(page) == {"retention": 1, "frame": 1, "heat": False, "sheet": 0}
    text = words(page)
    assert "50% – 18 tokens" in text and "2 of 4 – 0.50 s" in text
    assert "(said nothing)" in text and "other answer" in text
    pixels = json.loads(html.unescape(re.search(r'data-pixels="([^"]*)"', page)[1]))
    # The second frame is green; of the third, whose tokens are all kept, the first column is blue;
    # the first is dropped, and so grey.
    assert pixels[0][1] > 200 > 60 > max(pixels[0][0], pixels[0][2])
    assert pixels[1][2] > 200 > 60 > max(pixels[1][:2])
    assert max(pixels[2]) - min(pixels[2]) < 12 and max(pixels[2]) < 120
    assert picture.shape == (1400, 1000, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_narrow_window_needs_no_sideways_scrolling(browse):
    script = """
    const wait = setInterval(() => {
      if (document.getElementById("controls").hidden) return;
      clearInterval(wait);
      document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;
    }, 20);
    """
    page, _ = browse("", script, width=500)  # headless windows are no narrower
    assert int(re.search(r'data-wide="(-?\d+)"', page)[1]) <= 0
    assert shown(page)["frame"] == 2  # where the first method keeps most
