-- Dayjob on SQLite, schema 1.
--
-- `runs` is the queue and the life of each run; `steps` is the journal: one row per step, written
-- by the worker that holds the run (epoch), replayed after a crash, shown as the trace, delivered
-- as the event stream, summed as the cost. The rest is what steps refer to or wait for.
--
-- Every primary key begins with `home` (the thread, else the root run), and no foreign key or
-- transaction crosses homes, so that rows can be spread over shards later. Times are seconds since
-- the epoch. BLOBs named input, value, output, error and answer are JSON. Tables keep their rowid: rows
-- of concurrent runs then lie side by side in the order of writing, and one flush touches few pages.

CREATE TABLE runs (
    home            TEXT    NOT NULL,
    id              TEXT    NOT NULL,
    project         TEXT    NOT NULL,
    job             TEXT    NOT NULL,
    version         TEXT,                       -- of the code that claimed it last
    status          TEXT    NOT NULL,
    outcome         TEXT,                       -- while unwinding, or when time is up: the status to come
    reason          TEXT,
    epoch           INTEGER NOT NULL DEFAULT 0, -- raised by each claim: the fence
    wakes           INTEGER NOT NULL DEFAULT 0, -- raised by each event from outside
    worker          TEXT,                       -- who holds it
    attempts        INTEGER NOT NULL DEFAULT 0, -- takeovers without progress
    claimed_seq     INTEGER NOT NULL DEFAULT 0, -- the last seq when it was claimed
    admitted        INTEGER NOT NULL DEFAULT 1, -- 0: not yet its turn (delay, busy thread)
    queue           TEXT    NOT NULL,
    priority        INTEGER NOT NULL DEFAULT 0,
    due             REAL,                       -- parked: next timer; not admitted: start of the delay's end
    expires         REAL,                       -- when it expires; NULL: never, or it is ending already
    expires_seconds REAL,                       -- as it was submitted: a resumed run has as long again
    thread          TEXT,
    root            TEXT    NOT NULL,
    parent          TEXT,
    parent_key      TEXT,                       -- the parent's step that waits for this run
    submit_key      TEXT,
    tags            BLOB,
    limits          BLOB,                       -- as it was submitted; what counts stands in `budgets`
    budget          TEXT,                       -- the run whose budget it draws on; NULL: no limits
    source          TEXT,                       -- FILE:JOB, when started from a file
    pinned          INTEGER NOT NULL DEFAULT 0, -- only its own version may go on with it
    changed         INTEGER NOT NULL DEFAULT 0, -- resumed to run changed step functions again
    created         REAL    NOT NULL,
    started         REAL,
    ended           REAL,
    progress_done   REAL,
    progress_total  REAL,
    success         INTEGER,
    score           REAL,
    verdict         TEXT,
    dollars         REAL,                       -- these four are summed when the run ends
    input_tokens    INTEGER,
    output_tokens   INTEGER,
    steps           INTEGER,
    next_run        TEXT,                       -- continue_as: the run that goes on
    attention       INTEGER NOT NULL DEFAULT 0, -- effects that a person has to look into
    details         BLOB,                       -- what its client keeps with it, as JSON
    output          BLOB,
    error           BLOB,
    PRIMARY KEY (home, id)
);

CREATE UNIQUE INDEX runs_id ON runs (id);
CREATE UNIQUE INDEX runs_submit_key ON runs (project, job, submit_key) WHERE submit_key IS NOT NULL;
CREATE UNIQUE INDEX runs_active_thread ON runs (thread)
    WHERE thread IS NOT NULL AND admitted = 1
      AND status NOT IN ('cancelled', 'completed', 'expired', 'failed', 'incomplete');  -- this order is ENDED's
CREATE INDEX runs_claimable ON runs (queue, priority DESC, id, job, version)
    WHERE worker IS NULL AND admitted = 1 AND status IN ('queued', 'cancelling', 'unwinding');
CREATE INDEX runs_held ON runs (worker) WHERE worker IS NOT NULL;
CREATE INDEX runs_due ON runs (due) WHERE due IS NOT NULL;
CREATE INDEX runs_expires ON runs (expires) WHERE expires IS NOT NULL;
CREATE INDEX runs_parent ON runs (parent) WHERE parent IS NOT NULL;
CREATE INDEX runs_made ON runs (project, created, id);
CREATE INDEX runs_of_thread ON runs (thread, created, id) WHERE thread IS NOT NULL;
CREATE INDEX runs_enqueued_thread ON runs (thread, id) WHERE admitted = 0 AND thread IS NOT NULL;

-- A run's input stands apart, so that a change of status never rewrites it.
CREATE TABLE inputs (
    home  TEXT NOT NULL,
    run   TEXT NOT NULL,
    input BLOB NOT NULL,
    PRIMARY KEY (home, run)
);

CREATE TABLE steps (
    home          TEXT    NOT NULL,
    run           TEXT    NOT NULL,
    key           TEXT    NOT NULL,             -- scope/name#ordinal
    attempt       INTEGER NOT NULL,
    scope         TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    kind          TEXT    NOT NULL,
    outcome       TEXT,                         -- NULL while open; value, error, cancelled, superseded
    seq           INTEGER,                      -- order of completion in the run; NULL while open
    version       TEXT    NOT NULL,
    epoch         INTEGER NOT NULL,
    nonce         INTEGER NOT NULL,             -- so that a flush may be sent again
    fingerprint   BLOB,                         -- of name and input
    code          BLOB,                         -- of the step's function
    started       REAL    NOT NULL,
    ended         REAL,
    due           REAL,
    warn_at       REAL,                         -- when people are warned of the deadline; NULL once they were
    call_key      TEXT,                         -- of a call that changes something: what its receiver knows it by
    undo          TEXT,                         -- the name of the function that takes it back
    child         TEXT,
    model         TEXT,
    input_tokens  INTEGER,
    output_tokens INTEGER,
    cached_tokens INTEGER,
    dollars       REAL,
    base_step     TEXT,                         -- a prompt is: keep_n hashes of base_step's, then `hashes`
    keep_n        INTEGER,
    hashes        BLOB,
    answer        BLOB,                         -- from outside, not yet consumed by the run
    answered_at   REAL,
    answered_by   TEXT,
    answer_reason TEXT,
    input         BLOB,
    value         BLOB,
    error         BLOB,
    PRIMARY KEY (home, run, key, attempt)
);

CREATE UNIQUE INDEX steps_seq ON steps (run, seq) WHERE seq IS NOT NULL;
CREATE INDEX steps_open ON steps (run, kind) WHERE outcome IS NULL;
CREATE INDEX steps_effects ON steps (run) WHERE call_key IS NOT NULL;
CREATE INDEX steps_warnings ON steps (warn_at) WHERE warn_at IS NOT NULL;

-- Each message of a prompt, once per home, by the hash of its bytes.
CREATE TABLE messages (
    home  TEXT NOT NULL,
    hash  BLOB NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (home, hash)
);

-- What a run, with all its children, may spend. Dollars are billionths, so that sums are exact. What is in
-- flight is reserved: never spent + reserved > max, and a worker that dies leaves its reservations spent.
CREATE TABLE budgets (
    home                   TEXT    NOT NULL,
    run                    TEXT    NOT NULL,
    on_limit               TEXT    NOT NULL,    -- stop, ask
    max_dollars            INTEGER,
    max_tokens             INTEGER,
    max_input_tokens       INTEGER,
    max_output_tokens      INTEGER,
    max_steps              INTEGER,
    max_seconds            REAL,                -- since the run first started
    spent_dollars          INTEGER NOT NULL DEFAULT 0,
    spent_tokens           INTEGER NOT NULL DEFAULT 0,
    spent_input_tokens     INTEGER NOT NULL DEFAULT 0,
    spent_output_tokens    INTEGER NOT NULL DEFAULT 0,
    spent_steps            INTEGER NOT NULL DEFAULT 0,
    reserved_dollars       INTEGER NOT NULL DEFAULT 0,
    reserved_tokens        INTEGER NOT NULL DEFAULT 0,
    reserved_input_tokens  INTEGER NOT NULL DEFAULT 0,
    reserved_output_tokens INTEGER NOT NULL DEFAULT 0,
    reserved_steps         INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (home, run)
);

-- A step in flight: the most that it may cost. Deleted in the transaction that writes the step's row.
CREATE TABLE reservations (
    home          TEXT    NOT NULL,
    run           TEXT    NOT NULL,
    key           TEXT    NOT NULL,
    attempt       INTEGER NOT NULL,
    budget        TEXT    NOT NULL,
    dollars       INTEGER NOT NULL,
    tokens        INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    steps         INTEGER NOT NULL,
    PRIMARY KEY (home, run, key, attempt)
);

-- Values sent to a run by name, before it asks for them.
CREATE TABLE inbox (
    home  TEXT NOT NULL,
    run   TEXT NOT NULL,
    id    TEXT NOT NULL,
    name  TEXT NOT NULL,
    value BLOB NOT NULL,
    sent  REAL NOT NULL,
    taken INTEGER NOT NULL DEFAULT 0,           -- consumed by the run: only the id is kept
    PRIMARY KEY (home, run, id)
);

CREATE INDEX inbox_waiting ON inbox (home, run, id) WHERE taken = 0;

CREATE TABLE threads (
    home    TEXT NOT NULL,
    id      TEXT NOT NULL,
    project TEXT NOT NULL,
    created REAL NOT NULL,
    details BLOB,                               -- what its client keeps with it, as JSON
    PRIMARY KEY (home, id)
);

CREATE INDEX threads_made ON threads (project, created, id);

CREATE TABLE thread_messages (
    home    TEXT    NOT NULL,
    thread  TEXT    NOT NULL,
    n       INTEGER NOT NULL,
    id      TEXT    NOT NULL,
    run     TEXT,
    message BLOB    NOT NULL,                   -- as a model is told it
    created REAL    NOT NULL,
    said    INTEGER NOT NULL DEFAULT 1,         -- 0: tool calls and their results, which people do not read
    details BLOB,                               -- what its client keeps with it, and no model is told
    PRIMARY KEY (home, thread, n)
);

CREATE UNIQUE INDEX thread_messages_id ON thread_messages (home, thread, id);
CREATE INDEX thread_messages_said ON thread_messages (home, thread, n) WHERE said = 1;
CREATE INDEX thread_messages_run ON thread_messages (home, thread, run, n) WHERE run IS NOT NULL AND said = 1;

CREATE TABLE memory (
    home    TEXT NOT NULL,                      -- the project: memory outlives threads
    name    TEXT NOT NULL,
    value   BLOB NOT NULL,
    updated REAL NOT NULL,
    PRIMARY KEY (home, name)
);

-- What clients keep beside threads and runs, as JSON: assistants, files, the steps of imported runs.
CREATE TABLE objects (
    home    TEXT NOT NULL,                      -- the project; of a run's step, the thread
    kind    TEXT NOT NULL,                      -- assistant, file, step/RUN, …
    id      TEXT NOT NULL,
    created REAL NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (home, kind, id)
);

CREATE INDEX objects_made ON objects (home, kind, created, id);

-- The places in their lists of what was deleted lately, so that a client that holds one as its cursor goes on from there.
CREATE TABLE gaps (
    home    TEXT NOT NULL,                      -- of what was deleted
    kind    TEXT NOT NULL,                      -- message, thread/PROJECT, or the kind of the object
    id      TEXT NOT NULL,
    created REAL,                               -- of a thread, or an object
    n       REAL,                               -- of a message: half a place before its own, which may be given anew
    deleted REAL NOT NULL,
    PRIMARY KEY (home, kind, id)
);

CREATE INDEX gaps_deleted ON gaps (deleted);

-- Who may come in. Of a key only the hash is kept, and the first characters, to tell it by.
CREATE TABLE api_keys (
    id      TEXT NOT NULL PRIMARY KEY,
    hash    BLOB NOT NULL UNIQUE,
    start   TEXT NOT NULL,
    project TEXT NOT NULL,
    role    TEXT NOT NULL,                      -- admin, member
    name    TEXT NOT NULL,
    created REAL NOT NULL,
    revoked REAL
);

-- Who did what: one row for each request that changes something, or was refused for who asked.
CREATE TABLE audit (
    home    TEXT    NOT NULL,                   -- the project
    n       INTEGER NOT NULL,
    at      REAL    NOT NULL,
    who     TEXT    NOT NULL,                   -- the id of the API key, or "anyone"
    action  TEXT    NOT NULL,                   -- method and path
    status  INTEGER NOT NULL,
    request TEXT    NOT NULL,                   -- the id that the client was told
    PRIMARY KEY (home, n)
);

CREATE TABLE workers (
    id      TEXT    NOT NULL PRIMARY KEY,
    host    TEXT    NOT NULL,
    boot    TEXT    NOT NULL,                   -- and pid namespace; a process is this host, boot, pid and start
    pid     INTEGER NOT NULL,
    start   TEXT    NOT NULL,
    queues  BLOB    NOT NULL,
    jobs    BLOB    NOT NULL,                   -- {"job": "version"}
    beat    REAL    NOT NULL,
    lease   REAL    NOT NULL,                   -- seconds past `beat` after which it is dead
    dead    INTEGER NOT NULL DEFAULT 0,
    started REAL    NOT NULL
);

-- Which code is newer: the order in which versions were first seen.
CREATE TABLE versions (
    job     TEXT    NOT NULL,
    version TEXT    NOT NULL,
    n       INTEGER NOT NULL,
    seen    REAL    NOT NULL,
    PRIMARY KEY (job, version)
);
