"""Measured in turn, warm-up apart."""

from benchmarks.timing import interleave


def test_each_is_called_in_turn_and_the_warm_up_is_not_counted():
    called: list[str] = []
    runs = {name: lambda name=name: called.append(name) for name in ("a", "b", "c")}
    seconds = interleave(runs, rounds=3, warmup=2)
    assert called == ["a", "b", "c"] * 5
    assert seconds.keys() == runs.keys()
    for values in seconds.values():
        assert len(values) == 3
        assert all(value >= 0 for value in values)


def test_a_call_is_timed_from_its_start_to_its_end(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def take(seconds: float) -> None:
        clock[0] += seconds

    runs = {"short": lambda: take(1.0), "long": lambda: take(5.0)}
    assert interleave(runs, rounds=2, warmup=1) == {"short": [1, 1], "long": [5, 5]}
