"""The served page of a sweep that still runs: what it shows, what it keeps, and what it refuses."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import Browser, expect

from flap.results.serve import Server, server
from flap.storage.status import write_status
from flap.study import main
from tests.helpers.browser import opened
from tests.helpers.study_grid import PERPLEXITY, Report, add_cell, add_command, altered


@pytest.fixture
def sweep(tmp_path: Path, report: Report) -> Path:
    """A finished cell, and one that runs: its progress, and one number of two."""
    folder = tmp_path / "sweep"
    dense = {PERPLEXITY: 20.0, "piqa/acc": 0.7}
    add_cell(folder, altered(report, 0.2, dense, {PERPLEXITY: 31.25, "piqa/acc": 0.65}), "WIFV", "AL-AM", 0.2)
    running = add_cell(folder, None, "WIFV", "AL-AM", 0.5, state="running")
    (running / "progress.json").write_text('{"stage": "piqa", "done": 12, "total": 64}')
    entries = {"a": {"key": {}, "numbers": dense}, "b": {"key": {"plan": "x"}, "numbers": {PERPLEXITY: 123.5}}}
    entries["b"]["better"] = {PERPLEXITY: "lower"}
    (running / "evaluation.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def served(sweep: Path) -> Iterator[Server]:
    with server([sweep], 0) as serving:
        Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
        yield serving
        serving.shutdown()


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def get(
    served: Server, address: str, host: str = "localhost:1", method: str = "GET", root: str | None = None
) -> tuple[int, str]:
    """The answer for an address below the secret root of the server, or below another one."""
    connection = http.client.HTTPConnection("127.0.0.1", served.server_port)
    connection.request(method, (served.root if root is None else root) + address, headers={"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_states_progress_and_numbers_show_as_they_come(
    browser: Browser, sweep: Path, served: Server, report: Report
) -> None:
    before = files(sweep)
    with opened(browser, served.address) as page:
        page.set_default_timeout(30_000)
        running = page.locator("#cells tr.unfinished")
        expect(running).to_contain_text(re.compile(r"piqa 12 of 64 at \d\d:\d\d:\d\d"))  # so that a killed one shows
        expect(running).to_contain_text("123.5")
        page.get_by_role("combobox", name="Ratio").select_option("0.5")
        page.get_by_role("combobox", name="Ratio").focus()
        assert files(sweep) == before
        folder = sweep / "1_tiny_WIFV_AL-AM_r0.5_s0"
        done = altered(report, 0.5, {}, {PERPLEXITY: 124.5})
        (folder / "report.json").write_text(json.dumps(done | {"config": done["config"] | {"seed": 0}}))
        write_status(folder, "finished")
        expect(page.locator("#cells tr.finished", has_text="124.5")).to_be_visible(timeout=60_000)
        expect(page.locator("#shown")).to_have_text("1 of 2 cells shown")  # the view is kept, and the focus
        assert page.evaluate("document.activeElement.name") == "ratio"
        assert page.locator("figure svg").count() > 0


def test_a_page_of_a_server_that_has_ended_stays_and_says_where_to_look(browser: Browser, sweep: Path) -> None:
    page = browser.new_context().new_page()
    live = page.locator("#live")
    with server([sweep], 0) as first:
        Thread(target=first.serve_forever, args=(0.05,), daemon=True).start()
        page.goto(first.address)
        expect(live).to_contain_text("Live")
        first.shutdown()
    expect(live).to_contain_text("No answer from the server", timeout=30_000)
    write_status(sweep / "1_tiny_WIFV_AL-AM_r0.5_s0", "failed", "killed")
    with server([sweep], first.server_port) as again:
        Thread(target=again.serve_forever, args=(0.05,), daemon=True).start()
        with page.expect_response(lambda answer: answer.status == 403, timeout=30_000):
            pass
        expect(live).to_contain_text("Started again, it prints another address")
        expect(page.locator("#cells tr.unfinished")).to_be_visible()
        page.goto(again.address)
        expect(page.locator("#cells tr.failed")).to_contain_text("killed")
        page.close()
        again.shutdown()


def test_before_the_first_cell_it_waits_and_then_shows_all_without_a_reload(
    browser: Browser, tmp_path: Path, report: Report
) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    with server([folder], 0) as serving:
        Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
        with opened(browser, serving.address) as page:
            expect(page.locator(".counts").first).to_have_text("0 cells")
            expect(page.locator("#pictures")).to_be_hidden()
            add_command(folder, "metric=WIFV", "ratio=0.2,0.5,0.7", "run_name=a b")
            for ratio in (0.2, 0.5):
                numbers = {PERPLEXITY: 30.0 + ratio}
                add_cell(folder, altered(report, ratio, {PERPLEXITY: 20.0}, numbers), "WIFV", "AL-AM", ratio)
            expect(page.locator("#cells tr.finished")).to_have_count(2, timeout=60_000)
            expect(page.locator(".counts").first).to_contain_text("2 of 3 cells so far · 2 finished")
            expect(page).to_have_title("Pruning tiny: ratio")
            expect(page.locator("h1")).to_have_text("Pruning tiny: ratio")
            expect(page.locator(".command")).to_contain_text("ratio=0.2,0.5,0.7")
            expect(page.locator("main figure svg").first).to_be_visible()
            assert page.locator("main").count() == 1
        serving.shutdown()


def test_it_listens_on_the_loopback_address_alone_and_serves_what_it_links_to(sweep: Path, served: Server) -> None:
    assert served.server_address[0] == "127.0.0.1"
    status, text = get(served, "/")
    assert status == 200 and "Pruning tiny" in text
    assert get(served, "/1_tiny_WIFV_AL-AM_r0.5_s0/flap.log") == (200, "what happened\n")
    assert get(served, "/study.csv")[1].startswith("cell,state,")
    for address in ("/1_tiny_WIFV_AL-AM_r0.5_s0/evaluation.json", "/../sweep/secret", "/%2e%2e/x", "/nothing"):
        assert get(served, address)[0] == 404
    for host in ("127.0.0.1", "localhost"):  # as of port 80
        assert get(served, "/", host=host)[0] == 200
    for host in ("evil.example:80", "evil.example", "localhost.evil.example"):
        assert get(served, "/", host=host)[0] == 403
    assert get(served, "/", method="POST")[0] == 501


def test_nothing_is_served_without_the_token_of_its_address(sweep: Path, served: Server) -> None:
    for root in ("", served.root[:-1], served.root + "0", "/" + "0" * 32):
        for address in ("/", "/version", "/study.csv", "/1_tiny_WIFV_AL-AM_r0.5_s0/flap.log"):
            status, text = get(served, address, root=root)
            assert status == (404 if root == served.root + "0" else 403) and "tiny" not in text
    with server([sweep], 0) as other:
        assert other.root != served.root and len(other.root) > 32


def test_the_links_of_the_page_work_below_the_token(browser: Browser, served: Server) -> None:
    with opened(browser, served.address) as page:
        links = page.locator("a[href]").evaluate_all("links => links.map(link => link.href)")
        below = [link for link in links if "#" not in link and link.startswith("http")]
        assert len(below) > 5
        for link in below:
            answer = page.request.get(link)
            assert link.startswith(served.address) and answer.ok, link


def test_links_to_every_one_of_several_sweeps_work(sweep: Path, tmp_path: Path, report: Report) -> None:
    other = tmp_path / "other"
    add_cell(other, altered(report, 0.2, {}, {PERPLEXITY: 30.0}), "IFV", "AL-AM", 0.2)
    with server([sweep, other], 0) as serving:
        Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
        links = re.findall(r'href="([^"#:]+/flap\.log)"', get(serving, "/")[1])
        assert {link.split("/")[0] for link in links} == {"sweep", "other"}
        assert {get(serving, f"/{link}")[0] for link in links} == {200}
        serving.shutdown()


def test_a_folder_that_is_gone_leaves_the_page_as_it_was(sweep: Path, served: Server) -> None:
    before = get(served, "/")
    sweep.rename(sweep.with_name("moved"))
    assert get(served, "/") == before


def test_a_damaged_report_is_told_on_the_page(sweep: Path, served: Server) -> None:
    (sweep / "0_tiny_WIFV_AL-AM_r0.2_s0" / "report.json").write_text('{"sch')
    status, text = get(served, "/")
    assert status == 200 and "report.json: cannot be read (JSONDecodeError); run the cell again" in text


def test_a_port_in_use_is_one_clear_line(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            main(["--serve", "--port", str(port), str(sweep)])
    assert stopped.value.code == 1
    expected = f"error: --port={port}: in use; expected a free port of 127.0.0.1, or 0 for any\n"
    assert capsys.readouterr().err == expected
