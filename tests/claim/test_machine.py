"""What a claim's evidence says of the machine."""

import subprocess

import torch

from regardant.claim.machine import commit_of, hardware, versions


def test_a_checkout_has_a_commit_and_says_when_it_was_changed(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    assert commit_of(tmp_path) is None
    git("init")
    assert commit_of(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    commit = commit_of(tmp_path)
    assert len(commit) == 12 and int(commit, 16) >= 0
    (tmp_path / "file").write_text("two")
    assert commit_of(tmp_path) == commit + "+"


def test_facts():
    assert versions()["torch"] == torch.__version__
    facts = hardware()
    assert facts["cores"] >= 1 and facts["threads"] == torch.get_num_threads() and facts["processor"]
