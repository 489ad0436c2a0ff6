-- Photos of profiles (design section 6). The pictures lie in a photo store; here stands what may be
-- confirmed, and what is to be deleted there.

-- An upload a URL was given for. Its key is confirmed once: then `photo` is the address it got.
CREATE TABLE photo_uploads (
    user_id       text NOT NULL,
    key           uuid NOT NULL,
    content_type  text NOT NULL,
    size_bytes    integer NOT NULL CHECK (size_bytes >= 1),
    public_object text NOT NULL,              -- where it is copied to
    photo         text,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX photo_uploads_by_age ON photo_uploads (created_at);

-- Objects that no profile names any longer, until the store has deleted them. A key is confirmed
-- once, so none of them is ever named again.
CREATE TABLE photo_leftovers (
    user_id text NOT NULL,
    object  text NOT NULL,
    PRIMARY KEY (user_id, object)
);
