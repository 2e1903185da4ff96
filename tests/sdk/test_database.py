"""A database that an agent works on: statements run in the sandbox, what they change stays and can be done again."""

import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sdk import CodeLimits, ToolError
from frontier_tune.sdk.database import DatabaseSession, make_database, state_of
from frontier_tune.sdk.graders import state_diff

ROWS = [(1, "Alder", 2.5, None), (2, "Birch", 0.1, "x|y"), (7, "Cedar", 1e6, "")]
COLUMNS = {"Number": "INTEGER PRIMARY KEY", "Supplier": "TEXT", "Price": "REAL", "Note": "TEXT"}


@pytest.fixture(scope="module")
def box() -> Iterator[CodeSandbox]:
    with CodeSandbox(CodeLimits(memory_mb=256), ()) as box:
        yield box


@pytest.fixture
def session() -> DatabaseSession:
    return DatabaseSession(make_database({"Orders": (COLUMNS, ROWS), "Empty": ({"A": "TEXT"}, [])}))


def test_looking_needs_no_sandbox_before_the_first_change(session: DatabaseSession, box: CodeSandbox) -> None:
    assert session.overview() == "Orders 3 rows; Empty 0 rows"
    assert session.read("orders", None) == "Orders 3 rows\nNumber|Supplier|Price|Note\n1|Alder|2.5|"
    assert session.read("Empty", None) == "Empty 0 rows\nA" and session.has(" ORDERS ") and not session.has("Order")
    with pytest.raises(ToolError, match="no table Order; tables: Orders, Empty"):
        session.read("Order", None)
    session.run("UPDATE Orders SET Supplier='Elm' WHERE Number=1", box)
    assert session.read("Orders", box) == "Orders 3 rows\nNumber|Supplier|Price|Note\n1|Elm|2.5|"
    with pytest.raises(ValueError, match="read in the sandbox"):
        session.read("Orders", None)


def test_changes_stay_and_are_done_again(session: DatabaseSession, box: CodeSandbox) -> None:
    other = make_database({"Orders": (COLUMNS, [(5, "Fir", 9.0, None)]), "Empty": ({"A": "TEXT"}, [])})
    assert session.run("SELECT count(*) AS n FROM Orders", box).rows == ((3,),)
    assert session.run("UPDATE Orders SET Price=Price*2 WHERE Price>1", box).changes == 2
    assert session.run("UPDATE Orders SET Number=2 WHERE Number=1", box).error == "UNIQUE constraint failed: Orders.Number"
    assert session.run("INSERT INTO Empty VALUES (x'00ff'), (9e999)", box).changes == 2
    assert len(session.statements) == 2  # what failed or only asked is not done again
    mine, theirs = session.replay([session.original, other], box)
    assert not mine.error and not theirs.error
    diff = state_diff(state_of(session.original), mine.state)
    assert diff.changed == ("Orders/1/Price", "Orders/7/Price") and diff.added == ("Empty/1/A", "Empty/2/A")
    assert diff.touched == mine.touched and mine.get("Orders/1/Price") == 5.0 and mine.get("Orders/2/Price") == 0.1
    assert theirs.state["Orders/5/Price"] == 18.0 and mine.state["Empty/1/A"] == "x'00ff'" and mine.state["Empty/2/A"] == "Inf"
    session.statements.append("UPDATE Orders SET Gone=1")
    assert session.replay([other], box)[0].error == "no such column: Gone"


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("ATTACH 'copy1.sqlite' AS other", "not authorized"),
        ("VACUUM INTO 'copy1.sqlite'", "authorization denied"),
        ("PRAGMA writable_schema=ON", "not authorized"),
        ("SELECT load_extension('x')", "not authorized to use function: load_extension"),
        ("UPDATE Orders SET Price=random()", "not authorized to use function: random"),
        ("UPDATE Orders SET Note=date('NOW')", "not authorized: date(NOW) differs from run to run"),
        ("UPDATE Orders SET Note=strftime('%s')", "not authorized: strftime() differs from run to run"),
        ("UPDATE Orders SET Note=datetime(Price, 'localtime')", "not authorized: datetime(localtime) differs from run to run"),
        ("UPDATE Orders SET Note=date(x'6e6f77')", "not authorized: date(now) differs from run to run"),
        ("UPDATE Orders SET Note=date('now'||char(0))", "not authorized: date(now) differs from run to run"),
        ("UPDATE Orders SET Note=datetime(Price, CAST('utc' AS BLOB))", "not authorized: datetime(utc) differs from run to run"),
        ("SELECT 1; DROP TABLE Orders", "You can only execute one statement at a time."),
        ("WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM a) SELECT max(x) FROM a", "took too long"),
        ("CREATE VIRTUAL TABLE v USING fts5(x)", "not authorized"),
        ("", None),
        ("PRAGMA table_info(Orders)", None),
    ],
)
def test_what_reaches_out_or_differs_from_run_to_run_is_refused(
    session: DatabaseSession, box: CodeSandbox, statement: str, error: str | None
) -> None:
    assert session.run(statement, box).error == error
    assert not session.statements and session.content == session.original


def test_declarations_and_floods_show_in_the_state(session: DatabaseSession, box: CodeSandbox) -> None:
    session.run("CREATE TABLE t(a PRIMARY KEY) WITHOUT ROWID", box)
    session.run("CREATE VIEW v AS SELECT 1", box)
    flood = "WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM a LIMIT 20000) INSERT INTO Empty SELECT x FROM a"
    assert session.run(flood, box).changes == 20000
    diff = state_diff(state_of(session.original), session.replay([session.original], box)[0].state)
    assert diff.added == ("Empty/too many rows", "schema/table t", "schema/view v") and not diff.changed
    many = session.run("SELECT A FROM Empty", box)
    assert many.truncated and len(many.rows) == 20


def test_dates_are_calculated_as_sqlite_does(session: DatabaseSession, box: CodeSandbox) -> None:
    calculated = (
        "SELECT date('2024-01-31', '+1 month'), time('10:00', '-90 minutes'), datetime(1e9, 'unixepoch'), "
        "julianday('2024-03-01') - julianday('2024-02-01'), strftime('%W', '2024-05-05'), date('no date'), date(NULL)"
    )
    assert session.run(calculated, box).rows == (sqlite3.connect(":memory:").execute(calculated).fetchone(),)


def test_a_table_too_long_to_be_compared_is_refused(box: CodeSandbox) -> None:
    long = make_database({"Long": ({"A": ""}, ((n,) for n in range(10_001)))})
    session = DatabaseSession(long)
    session.run("UPDATE Long SET A=0", box)
    with pytest.raises(ValueError, match="the table Long has more than 10000 rows"):
        session.replay([long], box)


def test_text_that_is_none_can_be_looked_at(session: DatabaseSession, box: CodeSandbox) -> None:
    assert session.run("INSERT INTO Empty VALUES (CAST(x'41ff' AS TEXT))", box).error is None
    assert session.read("Empty", box) == "Empty 1 rows\nA\nA\ufffd"
    assert session.replay([session.original], box)[0].touched == {"Empty/1/A"}


values = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.text())


@settings(max_examples=30)
@given(st.lists(st.tuples(values, values), max_size=6))
def test_the_state_is_what_sqlite_holds(rows: list[tuple[object, object]]) -> None:
    try:
        content = make_database({'a "b"': ({"x y": "", "Z": ""}, rows)})
    except UnicodeEncodeError:  # lone surrogates are no text for SQLite
        return
    state = state_of(content)
    connection = sqlite3.connect(":memory:")
    connection.deserialize(content)
    for n, (x, z) in enumerate(connection.execute('SELECT "x y", Z FROM "a ""b"""'), 1):
        assert (state[f'a "b"/{n}/x y'], state[f'a "b"/{n}/Z']) == (x, z)
    assert len(state) == 2 * len(rows) + 1
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE Orders SET Price=CAST(Price AS TEXT) WHERE Number=2",
        "DELETE FROM Orders WHERE Number=7",
        "DROP TABLE Empty",
        "ALTER TABLE Orders RENAME COLUMN Note TO Remark",
        "ALTER TABLE Orders ADD COLUMN More DEFAULT 1",
        "INSERT INTO Orders SELECT Number+100, Supplier, Price, Note FROM Orders",
        "UPDATE Orders SET Number=-Number",
        "SELECT 1",
    ],
)
def test_what_changed_is_the_difference_of_the_states(session: DatabaseSession, box: CodeSandbox, statement: str) -> None:
    assert session.run(statement, box).error is None
    replayed = session.replay([session.original], box)[0]
    after = state_of(session.content)  # a statement of ours: its file may be opened here
    assert replayed.state == after and replayed.touched == state_diff(state_of(session.original), after).touched
    assert all(replayed.get(a) == after.get(a) for a in {*after, *replayed.before})
