"""Docstrings of a library."""

import pytest

from regardant.task.docstrings import Docstring, read_docstrings

PACKAGE = '''
class HTTPServer:
    """Serve a folder
    to whom asks.

    More of it."""

    def __init__(self):
        """Not read."""

    def get_rootDir(self):
        """Where it is."""

    async def stop(self):
        """Serve a folder to whom asks."""

def bare(): ...
'''


def test_first_paragraphs_in_one_line_each_once(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "server.py").write_text(PACKAGE)
    (tmp_path / "wrong.py").write_text("def (:")
    found = read_docstrings(tmp_path)
    assert found == (
        Docstring("net", "HTTPServer", "Serve a folder to whom asks."),
        Docstring("net", "get_rootDir", "Where it is."),
    )
    assert [each.words for each in found] == ["http server", "get root dir"]


def test_a_folder_without_any_is_refused(tmp_path):
    with pytest.raises(ValueError, match="with a docstring"):
        read_docstrings(tmp_path)


def test_the_standard_library_has_thousands():
    found = read_docstrings()
    assert len(found) > 2000
    assert len({each.text for each in found}) == len(found)
