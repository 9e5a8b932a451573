import subprocess
import sys

import pytest

from regardant.compare.journal import Journal, write_whole


def test_what_is_appended_is_read_back(tmp_path):
    journal = Journal(tmp_path / "deep" / "it.jsonl")
    journal.append({"a": 1})
    journal.append({"a": "ü"})
    assert list(Journal(journal.path)) == [{"a": 1}, {"a": "ü"}]


def test_fresh_begins_anew(tmp_path):
    Journal(tmp_path / "it.jsonl").append({"a": 1})
    assert list(Journal(tmp_path / "it.jsonl", fresh=True)) == []


def test_a_torn_line_is_dropped_and_the_next_begins_a_line(tmp_path):
    path = tmp_path / "it.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    journal = Journal(path)
    journal.append({"a": 3})
    assert list(journal) == [{"a": 1}, {"a": 3}]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "it.jsonl"
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2"):
        list(Journal(path))


def test_two_writers_do_not_mix_their_lines(tmp_path):
    write = (
        "import sys; from pathlib import Path; from regardant.compare.journal import Journal;"
        "journal = Journal(Path(sys.argv[1]));"
        "[journal.append({'who': sys.argv[2], 'n': n, 'long': 'x' * 3000}) for n in range(40)]"
    )
    path = tmp_path / "it.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", write, path, who]) for who in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    entries = [(entry["who"], entry["n"]) for entry in Journal(path)]
    assert sorted(entries) == [(who, n) for who in "ab" for n in range(40)]


def test_killed_at_any_time_no_line_is_torn(tmp_path):
    write = (
        "import sys; from pathlib import Path; from regardant.compare.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "print('writing', flush=True)\n"
        "while True: journal.append({'long': 'x' * 5000})"
    )
    path = tmp_path / "it.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", write, path], stdout=subprocess.PIPE)
    writer.stdout.readline()
    while not path.exists() or path.stat().st_size < 200_000:
        pass
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert path.read_bytes().endswith(b"\n")
    assert all(entry == {"long": "x" * 5000} for entry in Journal(path))


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "it.md"
    write_whole(path, "old")
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_text(tmp_path):
    path = tmp_path / "it.md"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
