from phenoscape_tune.cli.rows import FAULT, OK, Row, tell


def test_a_row_is_one_line_and_its_remedy_another() -> None:
    assert tell(Row("memory", OK, "20 GiB free", area="devices")) == [
        "ok       devices       memory                  20 GiB free"
    ]
    lines = tell(Row("memory", FAULT, "none", "buy some", "devices"))
    assert lines[1].strip() == "-> buy some"
    assert lines[1].index("->") == lines[0].index("none")
