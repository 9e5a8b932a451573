from bench import results_file
from bench.quiet import ATTEMPTS, Quiet


def watch(monkeypatch, *shares):
    left = iter(shares)
    monkeypatch.setattr(Quiet, "share", lambda self: next(left, 1.0))
    quiet, attempts = Quiet(), []

    def measure():
        attempts.append(len(attempts))
        return attempts[-1]

    return *quiet.watch(measure), attempts


def test_a_quiet_measurement_stands(monkeypatch):
    assert watch(monkeypatch, 1.0, 0.95, 0.9) == (0, 0.9, [0])


def test_a_disturbed_one_is_made_again(monkeypatch):
    assert watch(monkeypatch, 1.0, 0.95, 0.5, 0.4, 0.9, 0.97, 0.96) == (2, 0.96, [0, 1, 2])


def test_the_quietest_stands_where_none_was_quiet(monkeypatch):
    found, share, attempts = watch(monkeypatch, 1.0, 0.5, 0.5, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5)
    assert (found, share, len(attempts)) == (1, 0.7, ATTEMPTS)


def test_a_share_is_at_most_all():
    assert 0 < Quiet().share() <= 1


def test_the_best_ever_seen_on_the_machine_is_the_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "machine", lambda device: "small one")
    first = results_file.Results("probe", folder=tmp_path)
    first.quiet.best = 1e-9
    first.put("row", {"value": 1})
    again = results_file.Results("probe", folder=tmp_path)
    assert again.quiet.best == 1e-9 and again.quiet.share() < 0.01
    assert again.rows == {"row": {"value": 1}}
    assert results_file.Results("probe", folder=tmp_path, fresh=True).rows == {}
