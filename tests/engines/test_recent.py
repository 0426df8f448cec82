from cdiff_rt.engines.recent import Recent


def test_the_last_ones_are_kept_and_what_is_used_stays():
    made, recent = [], Recent[int, str](2)

    def get(key):
        return recent.get(key, lambda: made.append(key) or f"made for {key}")

    assert [get(key) for key in (1, 2, 1, 3, 1)] == [f"made for {key}" for key in (1, 2, 1, 3, 1)]
    assert made == [1, 2, 3] and list(recent) == ["made for 3", "made for 1"]
    get(2)
    assert made == [1, 2, 3, 2] and list(recent) == ["made for 1", "made for 2"]


def test_what_was_taken_is_nobodys_until_it_is_put_back():
    recent = Recent[str, list](2)
    recent.put("a", [1])
    taken = recent.take("a")
    assert taken == [1] and recent.take("a") is None and list(recent) == []
    recent.put("b", [2])
    recent.put("a", taken)
    recent.put("a", [3])
    assert list(recent) == [[2], [3]]
    recent.clear()
    assert list(recent) == []
