import pytest

from hf_fip.graph import ModelGraph
from hf_fip.report import save_pictures, write_report

from .chromium import Chromium, find_chromium
from .sample_graph import RECIPE, add, sample_graph, weights


pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium or Chrome")

SECTIONS = ["summary", "lineage", "paths", "weight-space", "budget", "pareto", "nodes", "recipe"]
COLUMN = """[...document.querySelectorAll('#nodes tbody tr')].map((row) => row.cells[{0}].textContent.trim())"""
HEADERS = "[...document.querySelectorAll('#nodes th')]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return sample_graph(tmp_path_factory.mktemp("run") / "yelp_imdb" / "graph")


@pytest.fixture(scope="module")
def report(graph):
    return write_report(graph, recipe=RECIPE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole_on_a_screen_and_on_a_phone(browser, report, width, scheme):
    browser.open(report, width, scheme=scheme)
    assert browser.complaints() == []
    assert browser.evaluate("[...document.querySelectorAll('main > section')].map((s) => s.id)") == SECTIONS
    assert browser.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    for section, curves in {"lineage": 2, "paths": 8, "weight-space": 3}.items():
        drawn = browser.evaluate(f"document.querySelectorAll('#{section} svg .scatterlayer .trace').length")
        assert drawn >= curves, section
        inside = f"document.querySelector('#{section} svg').getBoundingClientRect().right <= innerWidth"
        assert browser.evaluate(inside), section


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_wear_the_page_s_theme(browser, report, scheme):
    browser.open(report, scheme=scheme)
    text = browser.evaluate("getComputedStyle(document.querySelector('#lineage .xtick text')).fill")
    assert text == browser.evaluate("getComputedStyle(document.body).color")


def test_a_change_of_theme_reaches_the_pictures(browser, report):
    browser.open(report, scheme="light")
    fill = "getComputedStyle(document.querySelector('#lineage .xtick text')).fill"
    light = browser.evaluate(fill)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert browser.evaluate(fill) == browser.evaluate("getComputedStyle(document.body).color") != light


def test_a_click_sorts_numbers_as_numbers_with_missing_ones_last(browser, report):
    browser.open(report)
    column = browser.evaluate(f"{HEADERS}.findIndex((header) => header.textContent === 'imdb/accuracy')")
    click = f"{HEADERS}[{column}].querySelector('button').click()"
    browser.evaluate(click)
    rising = browser.evaluate(COLUMN.format(column))
    assert rising == ["61.0%", "72.0%", "79.0%", "80.0%", "81.2%", "84.2%", "86.1%", "86.8%", "–"]
    browser.evaluate(click)
    assert browser.evaluate(COLUMN.format(column)) == [*reversed(rising[:-1]), "–"]
    assert browser.evaluate(f"{HEADERS}[{column}].getAttribute('aria-sort')") == "descending"
    browser.evaluate(f"{HEADERS}[0].querySelector('button').click()")
    ids = browser.evaluate(COLUMN.format(0))
    assert ids == sorted(ids)


def test_menus_recolour_nodes_and_widen_edges(browser, report):
    browser.open(report)
    fills = "[...document.querySelectorAll('#lineage .points path')].map((p) => getComputedStyle(p).fill)"
    widths = "[...document.querySelectorAll('#lineage .lines path')].map((p) => getComputedStyle(p).strokeWidth)"
    before, thin = browser.evaluate(fills), browser.evaluate(widths)
    choose = """(async () => {{
      const menu = document.querySelectorAll('#lineage select')[{0}];
      menu.selectedIndex = {1};
      menu.dispatchEvent(new Event('change'));
      await new Promise((done) => setTimeout(done, 500));
    }})()"""
    browser.evaluate(choose.format(0, 1))
    assert browser.evaluate(fills) != before
    assert "80%" in browser.evaluate("document.querySelector('#lineage .colorbar').textContent")
    browser.evaluate(choose.format(1, 1))
    assert set(browser.evaluate(widths)) - set(thin)
    browser.evaluate(choose.format(0, 0))
    browser.evaluate(choose.format(1, 0))
    assert browser.evaluate(fills) == before and browser.evaluate(widths) == thin
    assert browser.complaints() == []


def test_the_legend_hides_a_branch_and_shows_it_again(browser, report):
    browser.open(report)
    shown = "document.querySelectorAll('#paths svg .scatterlayer .trace .points path').length"
    click = "document.querySelector('#paths .legend button[data-group=naive]').click()"
    before = browser.evaluate(shown)
    browser.evaluate(click)
    assert browser.evaluate(shown) == before - 4 - 5 - 4
    browser.evaluate(click)
    assert browser.evaluate(shown) == before


def test_the_copy_button_copies_the_line(browser, report):
    browser.open(report)
    copied = browser.evaluate(
        """(async () => {
          let copied = "";
          document.addEventListener("copy", () => (copied = getSelection().toString()));
          navigator.clipboard.writeText = async (text) => { copied = text; };
          document.querySelector("#nodes .copy button").click();
          await new Promise((done) => setTimeout(done, 100));
          return copied;
        })()"""
    )
    assert copied.startswith("hf_fip.ModelGraph.load(") and copied.endswith('["base-3f9a1c"].load_model()')


def test_a_click_on_a_node_leads_to_its_row(browser, report):
    browser.open(report)
    browser.evaluate("document.querySelector('#weight-space').scrollIntoView({behavior: 'instant'})")
    x, y = browser.evaluate(
        """(() => {
          const traces = [...document.querySelectorAll('#weight-space .scatterlayer .trace')];
          const box = [...traces[0].querySelectorAll('.points path')].at(-1).getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        })()"""
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        browser.evaluate("new Promise((done) => setTimeout(done, 150))")
    assert browser.evaluate("document.querySelector('#nodes tr.found')?.dataset.node") == "naive-04-b04d22"


def test_strings_of_strangers_do_not_run(browser, tmp_path):
    link = "<a href='https://example.com'>link</a>"
    hostile = link + "<img src=x onerror='window.hacked = 1'></script><script>window.hacked = 1</script>"
    graph = ModelGraph(tmp_path / "graph")
    add(graph, weights(0, 0, 2), id="root", metrics={f"{hostile}/accuracy": 0.5}, operator=hostile)
    more = {"metrics": {f"{hostile}/accuracy": 0.7}, "functional_distance": {"root": 0.1, "parent": 0.1}}
    add(graph, weights(1, 1, 2), id="child", parent="root", name=hostile, operator=hostile, step=5, **more)
    browser.open(write_report(graph, recipe=f"name: {hostile!r}"), 390)
    assert browser.complaints() == []
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    # Plotly gives some tags a meaning of its own; they too are shown as they are.
    assert browser.evaluate("document.querySelectorAll('a').length") == 0
    assert link in browser.evaluate("document.querySelector('#paths svg .annotation-text').textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_compressed_nodes_are_shown_on_a_screen_and_on_a_phone(browser, lenet, tmp_path, width, scheme):
    browser.open(write_report(lenet, tmp_path / "report.html"), width, scheme=scheme)
    assert browser.complaints() == []
    assert browser.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    for section in ("sparsity", "sparsity-layers", "sparsity-runs", "structures", "connectivity"):
        plot = f"document.querySelector('#{section} .main-svg').getBoundingClientRect()"
        assert 0 < browser.evaluate(f"{plot}.width") <= width
    # The menu of the first picture moves its points, and back.
    places = """[...document.querySelectorAll('#sparsity .points path')]
      .flatMap((point) => point.getAttribute('transform').match(/[0-9.]+/g).map(Number))"""
    choose = """(async () => {{
      const menu = document.querySelector('#sparsity select');
      menu.selectedIndex = {0};
      menu.dispatchEvent(new Event('change'));
      await new Promise((done) => setTimeout(done, 500));
    }})()"""
    before = browser.evaluate(places)
    browser.evaluate(choose.format(1))
    assert browser.evaluate(places) != pytest.approx(before, abs=0.5)
    assert "2×" in browser.evaluate("document.querySelector('#sparsity .plot').textContent")
    browser.evaluate(choose.format(0))
    assert browser.evaluate(places) == pytest.approx(before, abs=0.5) and browser.complaints() == []


def test_pictures_of_compressed_nodes_are_saved(lenet, tmp_path):
    names = {file.stem for file in save_pictures(lenet, tmp_path, ["svg"])}
    assert {"sparsity", "sparsity_layers", "sparsity_runs", "structures", "connectivity"} <= names


def test_graphs_without_a_path_open_without_complaint(browser, tmp_path):
    empty = ModelGraph(tmp_path / "empty" / "graph")
    single = ModelGraph(tmp_path / "single" / "graph")
    add(single, weights(0, 0, 2), id="root", metrics={"yelp/accuracy": 0.9})
    for graph in (empty, single):
        browser.open(write_report(graph), 390)
        assert browser.complaints() == []
        assert browser.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_pictures_are_saved_as_png_and_svg(graph, tmp_path):
    files = save_pictures(graph, tmp_path / "pictures")
    assert sorted(file.name for file in files) == [
        f"{name}.{kind}" for name in ("lineage", "pareto", "paths", "weight_space") for kind in ("png", "svg")
    ]
    for file in files:
        start = file.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if file.suffix == ".png" else b"<svg" in start
