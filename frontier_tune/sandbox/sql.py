"""The script that runs one SQL statement of a model inside the sandbox, on a copy of a SQLite database."""

# Values that JSON has no word for: blobs are written as SQL writes them, infinities as text.
SCRIPT = """
import json, math, sqlite3

with open("ask.json") as f:
    ask = json.load(f)

def plain(value):
    if isinstance(value, bytes):
        return "x'" + value.hex() + "'"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

answer = {"columns": [], "rows": [], "truncated": False, "changes": 0, "error": None}
connection = sqlite3.connect("database.sqlite", isolation_level=None)
try:
    cursor = connection.execute(ask["query"])
    answer["columns"] = [column[0] for column in cursor.description or ()]
    room = ask["most"]
    for row in cursor:
        row = [plain(value) for value in row]
        room -= len(json.dumps(row))
        if len(answer["rows"]) >= ask["max_rows"] or room < 0:
            answer["truncated"] = True
            break
        answer["rows"].append(row)
    answer["changes"] = connection.total_changes
except (sqlite3.Error, sqlite3.Warning) as e:
    answer["error"] = str(e)
finally:
    connection.close()
with open("answer.json", "w") as f:
    json.dump(answer, f)
"""
