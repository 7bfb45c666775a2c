from reasoning_net.tables import table


def test_rows_have_as_many_cells_as_the_header() -> None:
    assert table(("mode", "n"), [("direct", 1), ("latent", 2.5)]).splitlines() == [
        "| mode | n |", "|---|---|", "| direct | 1 |", "| latent | 2.5 |",
    ]  # fmt: skip
