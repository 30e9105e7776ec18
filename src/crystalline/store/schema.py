"""The tables of state.db, as the steps that lead from each format to the next.

A new file is made by the same steps that bring an older one up to date, so that they are used every
day.  A step that has been released is never changed: what is new is a step of its own.
"""

from __future__ import annotations

APPLICATION = 0x43525953  # "CRYS", in the head of the file: tells it from other people's databases
STATES = ("pending", "leased", "tokenized", "trained", "failed", "dead", "held_out")

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (
    number INTEGER PRIMARY KEY,  -- 0: what the model was created with
    documents INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    added REAL NOT NULL
);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- in order of arrival, never given twice
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),  -- SHA-256 of the text as UTF-8
    bytes INTEGER NOT NULL,
    weight INTEGER NOT NULL CHECK (weight >= 1),  -- times in an epoch
    priority INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN (
        'pending', 'leased', 'tokenized', 'trained', 'failed', 'dead', 'held_out')),
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    owner TEXT,  -- of the lease
    until REAL,  -- end of the lease, or when a failed one is tried again
    added REAL NOT NULL,
    segment INTEGER REFERENCES segments,
    place INTEGER UNIQUE,  -- its number in the model's text, in order of tokenizing
    first INTEGER,  -- its first token there
    tokens INTEGER,
    epochs INTEGER NOT NULL DEFAULT 0,  -- derived from the passes
    CHECK ((state = 'leased') = (owner IS NOT NULL)),
    CHECK ((state IN ('tokenized', 'trained')) = (place IS NOT NULL))
);
CREATE INDEX documents_turn ON documents (state, priority DESC, id, bytes);
CREATE TABLE contents (
    document INTEGER PRIMARY KEY REFERENCES documents ON DELETE CASCADE,
    packed INTEGER NOT NULL,  -- whether by zlib
    body BLOB NOT NULL
);
CREATE TABLE sources (
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    source TEXT NOT NULL,  -- path, URL or -
    first REAL NOT NULL,
    last REAL NOT NULL,
    arrivals INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (document, source)
) WITHOUT ROWID;
CREATE TABLE passes (
    number INTEGER PRIMARY KEY,
    places TEXT NOT NULL,  -- [[first, end], ...]
    first_step INTEGER NOT NULL,
    last_step INTEGER  -- none while it is under way
);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    began REAL NOT NULL,
    ended REAL,
    first_step INTEGER NOT NULL,
    last_step INTEGER,
    outcome TEXT,
    said TEXT NOT NULL
);
CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    run INTEGER REFERENCES runs,
    at REAL NOT NULL,
    step INTEGER,
    kind TEXT NOT NULL,
    said TEXT NOT NULL
);
"""

_SECOND = """
CREATE TABLE seen (  -- files of watched folders as they were when they were read last
    path BLOB PRIMARY KEY,
    mtime_ns INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) WITHOUT ROWID;
"""

STEPS = (_FIRST, _SECOND)
FORMAT = len(STEPS)  # PRAGMA user_version
