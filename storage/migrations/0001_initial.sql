-- The tables of design section 4. Every key of shared data begins with the budget, so that the whole
-- can be distributed by budget. Times of clients (joined_at, offline_last_modified) are epoch
-- milliseconds; times of the server are timestamptz. No personal name or e-mail outside `users`, and
-- no foreign key to it from shared data: an account can go while the budgets it touched stay.

-- Identity of this log's history: renewed after a restore that lost events.
CREATE TABLE hub_identity (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    log_id     uuid NOT NULL
);
INSERT INTO hub_identity (log_id) VALUES (gen_random_uuid());

CREATE TABLE users (
    id              text PRIMARY KEY CHECK (char_length(id) BETWEEN 1 AND 128),
    email           text CHECK (char_length(email) <= 320),
    first_name      text CHECK (char_length(first_name) <= 200),
    last_name       text CHECK (char_length(last_name) <= 200),
    photo           text,
    photo_key       text,
    password_hash   text,                     -- local identity only
    profile_version bigint NOT NULL DEFAULT 1 CHECK (profile_version >= 1),
    created_at      timestamptz NOT NULL DEFAULT now()
);
-- One account an e-mail, whatever its letter case; only accounts that sign in with it here.
CREATE UNIQUE INDEX users_by_login ON users (lower(email)) WHERE password_hash IS NOT NULL;

-- A family is one login; its refresh tokens are derived from (id, generation), none is stored.
CREATE TABLE refresh_families (
    id          uuid PRIMARY KEY,
    user_id     text NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    generation  integer NOT NULL DEFAULT 1 CHECK (generation >= 1),
    rotated_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    revoked     boolean NOT NULL DEFAULT false
);
CREATE INDEX refresh_families_by_user ON refresh_families (user_id);
CREATE INDEX refresh_families_by_expiry ON refresh_families (expires_at);

CREATE TABLE budgets (
    id                    uuid PRIMARY KEY,
    created_by            text NOT NULL,
    owner_id              text NOT NULL,
    title                 text NOT NULL CHECK (char_length(title) BETWEEN 1 AND 200),
    details               text CHECK (char_length(details) <= 2000),
    currency              text CHECK (currency ~ '^[A-Z]{3}$'),
    version               bigint NOT NULL CHECK (version >= 1),
    deleted               boolean NOT NULL DEFAULT false,
    offline_last_modified bigint NOT NULL CHECK (offline_last_modified >= 0),
    link_sharing          boolean NOT NULL DEFAULT true,
    fingerprint           bigint NOT NULL,    -- unsigned 64 bits, stored as two's complement
    record_sequence       bigint NOT NULL CHECK (record_sequence >= 1),
    last_sequence         bigint NOT NULL CHECK (last_sequence >= record_sequence),
    digest                bigint NOT NULL     -- unsigned 64 bits, stored as two's complement
) WITH (fillfactor = 50);                     -- every commit rewrites the row: leave room in its page

CREATE TABLE participants (
    budget_id uuid NOT NULL REFERENCES budgets (id),
    user_id   text NOT NULL,
    number    bigint GENERATED ALWAYS AS IDENTITY,
    joined_at bigint NOT NULL CHECK (joined_at >= 0),
    active    boolean NOT NULL DEFAULT true,  -- former participants keep their row
    removed_at bigint,                        -- set where the owner removed him: needs a later invite
    last_sequence bigint NOT NULL DEFAULT 1 CHECK (last_sequence >= 1),  -- of his coming or going
    CHECK (NOT (active AND removed_at IS NOT NULL)),
    PRIMARY KEY (budget_id, user_id)
);
CREATE INDEX participants_by_user ON participants (user_id, number) WHERE active;

CREATE TABLE invites (
    budget_id  uuid NOT NULL REFERENCES budgets (id),
    id         uuid NOT NULL,
    token_hash bytea NOT NULL,                -- SHA-256; the token itself is shown once
    created_at bigint NOT NULL CHECK (created_at >= 0),
    expires_at bigint NOT NULL CHECK (expires_at > created_at),
    max_uses   integer NOT NULL CHECK (max_uses >= 1),
    uses       integer NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND max_uses),
    revoked    boolean NOT NULL DEFAULT false,
    created_sequence bigint NOT NULL CHECK (created_sequence >= 1),  -- how long the log was
    PRIMARY KEY (budget_id, id),
    UNIQUE (budget_id, token_hash)
);

CREATE TABLE categories (
    budget_id             uuid NOT NULL REFERENCES budgets (id),
    id                    uuid NOT NULL,
    created_by            text NOT NULL,
    name                  text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    allocate              numeric(12, 2) NOT NULL CHECK (allocate >= 0),
    version               bigint NOT NULL CHECK (version >= 1),
    deleted               boolean NOT NULL DEFAULT false,
    offline_last_modified bigint NOT NULL CHECK (offline_last_modified >= 0),
    fingerprint           bigint NOT NULL,
    created_sequence      bigint NOT NULL CHECK (created_sequence >= 1),
    last_sequence         bigint NOT NULL CHECK (last_sequence >= created_sequence),
    PRIMARY KEY (budget_id, id)
);
-- The conditions of these indexes are always true. They keep the planner from using an index for
-- what the primary key finds in one step, as it would with statistics from when the table was small;
-- only statements that repeat the condition can use it.
CREATE INDEX categories_by_change ON categories (budget_id, last_sequence) WHERE last_sequence > 0;

CREATE TABLE expenses (
    budget_id             uuid NOT NULL REFERENCES budgets (id),
    id                    uuid NOT NULL,
    created_by            text NOT NULL,
    category_id           uuid,
    amount                numeric(12, 2) NOT NULL CHECK (amount >= 0),
    date                  date NOT NULL,
    note                  text CHECK (char_length(note) <= 2000),
    version               bigint NOT NULL CHECK (version >= 1),
    deleted               boolean NOT NULL DEFAULT false,
    offline_last_modified bigint NOT NULL CHECK (offline_last_modified >= 0),
    fingerprint           bigint NOT NULL,
    created_sequence      bigint NOT NULL CHECK (created_sequence >= 1),
    last_sequence         bigint NOT NULL CHECK (last_sequence >= created_sequence),
    PRIMARY KEY (budget_id, id),
    FOREIGN KEY (budget_id, category_id) REFERENCES categories (budget_id, id)
);
CREATE INDEX expenses_by_change ON expenses (budget_id, last_sequence) WHERE last_sequence > 0;
CREATE INDEX expenses_by_creation ON expenses (budget_id, created_sequence)
    WHERE created_sequence > 0;

-- The log: the truth. `event` and `record` are JSON text exactly as first sent, so that a stream is
-- read and a verdict replayed without being rebuilt.
CREATE TABLE accepted_events (
    budget_id      uuid NOT NULL REFERENCES budgets (id),
    event_id       uuid NOT NULL,
    sequence       bigint NOT NULL CHECK (sequence >= 1),
    event_type     text NOT NULL,
    record_id      text NOT NULL,
    actor_id       text NOT NULL,
    content_hash   bytea NOT NULL,
    content_fields smallint NOT NULL,         -- which of `FIELD_LISTS` the hash covers
    version        bigint,                    -- NULL for membership events
    event          text NOT NULL,
    record         text,
    accepted_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (budget_id, event_id)
);
-- For the sweep, which looks at what was accepted in the last seconds.
CREATE INDEX accepted_events_by_time ON accepted_events (accepted_at);
CREATE UNIQUE INDEX accepted_events_by_sequence ON accepted_events (budget_id, sequence)
    WHERE sequence > 0;

-- Records as clients see them: JSON that Postgres makes and the hub sends as it is. `deleted` is
-- there in tombstones only.
CREATE VIEW budget_dtos AS
SELECT b.id, b.deleted, b.record_sequence,
       CASE WHEN b.deleted THEN row_to_json(tombstone) ELSE row_to_json(dto) END AS dto
FROM budgets b
CROSS JOIN LATERAL (
    SELECT b.id, b.created_by AS "createdBy", b.title, b.details, b.currency, b.version,
           b.offline_last_modified AS "offlineLastModified"
) dto
CROSS JOIN LATERAL (SELECT dto.*, true AS deleted) tombstone;

CREATE VIEW category_dtos AS
SELECT c.budget_id, c.id, c.deleted, c.created_sequence, c.last_sequence,
       CASE WHEN c.deleted THEN row_to_json(tombstone) ELSE row_to_json(dto) END AS dto
FROM categories c
CROSS JOIN LATERAL (
    SELECT c.id, c.budget_id AS "budgetId", c.created_by AS "createdBy", c.name,
           c.allocate::text, c.version, c.offline_last_modified AS "offlineLastModified"
) dto
CROSS JOIN LATERAL (SELECT dto.*, true AS deleted) tombstone;

CREATE VIEW expense_dtos AS
SELECT e.budget_id, e.id, e.deleted, e.created_sequence, e.last_sequence,
       CASE WHEN e.deleted THEN row_to_json(tombstone) ELSE row_to_json(dto) END AS dto
FROM expenses e
CROSS JOIN LATERAL (
    SELECT e.id, e.budget_id AS "budgetId", e.category_id AS "categoryId",
           e.created_by AS "createdBy", e.date, e.amount::text, e.note, e.version,
           e.offline_last_modified AS "offlineLastModified"
) dto
CROSS JOIN LATERAL (SELECT dto.*, true AS deleted) tombstone;

-- Who takes part, with the names of today; never the e-mail. The LIMIT keeps the planner from joining
-- all users, as it would with statistics from when they were few.
CREATE VIEW participant_dtos AS
SELECT m.budget_id, m.user_id, m.number, m.active, coalesce(u.profile_version, 0) AS profile_version,
       row_to_json(dto) AS dto
FROM participants m
LEFT JOIN LATERAL (SELECT * FROM users WHERE id = m.user_id LIMIT 1) u ON true
CROSS JOIN LATERAL (
    SELECT m.user_id AS "userId", m.budget_id AS "budgetId", u.id IS NOT NULL AS "userExists",
           u.first_name AS "firstName", u.last_name AS "lastName", u.photo,
           m.joined_at AS "joinedAt"
) dto;
