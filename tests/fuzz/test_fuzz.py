"""A few seconds of the fuzzer: its own promise, that it finds what breaks one."""

from fuzz import trying
from fuzz.formats import FORMATS
from fuzz.trying import fuzz


def test_no_changed_file_breaks_a_promise(tmp_path):
    report = fuzz(1.0, 0, FORMATS, tmp_path)
    assert report.finds == [], "\n".join(report.lines())
    assert report.tried.keys() == set(FORMATS)


def test_what_breaks_a_promise_is_found_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(trying, "MAX_SAID", 0)
    report = fuzz(0.0, 0, ["template"] * 40, tmp_path)
    assert report.finds
    assert "an error of" in report.finds[0]
    number = report.finds[0].split(":")[0].split()[1]
    assert (tmp_path / f"template-{number}" / "template").is_file()
