"""stats.py URL prints what a proxy has counted. stats.py URL BEFORE TEXTS looks at what it has counted since it printed what
is in the file BEFORE, for a program of prepared statements with so many texts: the last line says how often it has pinned
clients, and what is wrong stands above it."""

import json
import sys
import urllib.request


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def mistakes(now, before, texts):
    """What shows that the server connections were not shared, or not as they are to be."""
    grown = {name: now[name] - before[name] for name in ("StatementsPrepared", "StatementsShared")}
    for reason, count in now["PinsTotal"].items():
        if count > before["PinsTotal"].get(reason, 0):
            yield f"pinned for {reason}: {count - before['PinsTotal'].get(reason, 0)}"
    if now["Servers"] < 3:
        yield f"only {now['Servers']} server connections are open: clients may have met the same one always"
    if grown["StatementsPrepared"] <= texts and grown["StatementsShared"] == 0:
        yield f"no statement was moved or shared: {texts} texts, {grown}"


def main():
    now = fetch(sys.argv[1])
    if len(sys.argv) == 2:
        print(json.dumps(now))
        return
    with open(sys.argv[2], encoding="utf-8") as file:
        before = json.load(file)
    wrong = list(mistakes(now, before, int(sys.argv[3])))
    print("\n".join(wrong))
    pins = sum(now["PinsTotal"].values()) - sum(before["PinsTotal"].values())
    print(f"{pins} pins")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
