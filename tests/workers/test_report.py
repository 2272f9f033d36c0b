"""What a job's process leaves behind is read as a stranger's: no pipe, no link, no odd number."""

import json
import os

import pytest

from registry.errors import Invalid, unpack
from workers import report
from workers.words import clean_said


def test_a_report_keeps_what_a_table_can_hold(tmp_path):
    said = {"a\0": "b\0\ud800", "big": 1 << 70, "small": -(1 << 70), "n": 3, "yes": True}
    (tmp_path / "report.json").write_text(json.dumps({**said, "infinite": float("inf")}))
    assert report.read_report(tmp_path) == {
        "a": "b?",
        "big": None,
        "small": None,
        "n": 3,
        "yes": True,
        "infinite": None,
    }


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_a_report_that_is_no_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "report.json")
    with pytest.raises(Invalid, match="no report"):
        report.read_report(tmp_path)


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "files").symlink_to(tmp_path / "secrets")
    with pytest.raises(Invalid, match="in place of its folder"):
        report.find_files(tmp_path / "out" / "files")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(Invalid, match="in place of its folder"):
        report.find_files(tmp_path / "elsewhere" / "secrets")


def test_what_a_job_says_of_its_failure_is_bounded_and_keeps_its_values():
    inner = {"template": "{problem}", "values": {"problem": "/var/lib/x/y.csv\0"}}
    values = {"count": 3, "why": inner, **{f"v{number}": "x" * 9000 for number in range(50)}}
    line = {"event": "error", "code": "a", "detail": "b"}
    said = {"template": "{count} of {why}", "values": values}
    complaint = report.read_line(json.dumps({**line, "said": said}).encode())
    assert complaint.said["template"] == "{count} of {why}"
    assert complaint.said["values"]["count"] == 3
    assert complaint.said["values"]["why"]["values"] == {"problem": "y.csv"}
    assert len(complaint.said["values"]) == 20
    assert len(json.dumps(complaint.said)) < 100_000
    for odd in (None, [], "x", {}, {"template": 1, "values": {}}, {"template": "x", "values": []}):
        assert report.read_line(json.dumps({**line, "said": odd}).encode()).said is None
    for odd in ("{a:>999999999}", "{a.b}", "{a[0]}", "{0}", "{", "{a:{b}}", "{a" + "\0" + "}"):
        said_so = {"template": odd, "values": {"a": "x"}}
        kept = report.read_line(json.dumps({**line, "said": said_so}).encode()).said
        assert kept is None or unpack(kept).detail == "x"
    deep = {"template": "{a}", "values": {"a": {"template": "{a}", "values": {"a": said}}}}
    kept = clean_said({"template": "{a}", "values": {"a": deep}})
    assert kept["values"]["a"]["values"]["a"]["values"]["a"] == ""


def test_a_line_of_the_log_keeps_its_words_and_its_template():
    said = {"template": "Resumed after step {step}.", "values": {"step": 40}}
    line = {"event": "log", "message": "Resumed after step 40.", "said": said}
    kept = report.read_line(json.dumps(line).encode())
    assert kept.data == {"message": "Resumed after step 40.", "level": "info", "said": said}
    assert "said" not in report.read_line(b'{"event": "log", "message": "x", "said": [1]}').data
    checkpoint = report.read_line(b'{"event": "checkpoint", "step": 7}')
    assert checkpoint.data["message"] == "Wrote a checkpoint at step 7."
    assert unpack(checkpoint.data["said"]).detail == "Wrote a checkpoint at step 7."
