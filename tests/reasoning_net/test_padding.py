from reasoning_net.padding import padded


def test_rows_are_padded_to_multiples() -> None:
    assert padded([[1], [2, 3]]).tolist() == [[1, -100], [2, 3]]
    assert padded([[1], [2, 3]], 4, fill=0, on_the_left=True).tolist() == [[0, 0, 0, 1], [0, 0, 2, 3]]
    assert padded([[], []], 4).shape == (2, 0)
