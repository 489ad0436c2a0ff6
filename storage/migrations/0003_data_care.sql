-- Housekeeping, and accounts that were closed.

-- Invites that ended, oldest first. The condition is always true: only housekeeping repeats it, and
-- the planner must not prefer this index for those of one budget.
CREATE INDEX invites_by_expiry ON invites (expires_at) WHERE uses >= 0;

-- Accounts that were closed lately: no token counts that was issued before. The row goes when the
-- last such token has ended anyway; the id is all that is kept of its user.
CREATE TABLE closed_accounts (
    user_id   text PRIMARY KEY CHECK (char_length(user_id) BETWEEN 1 AND 128),
    closed_at timestamptz NOT NULL,
    settled   boolean NOT NULL DEFAULT false  -- nothing that is personal has been left anywhere
);
CREATE INDEX closed_accounts_by_age ON closed_accounts (closed_at, user_id);
CREATE INDEX closed_accounts_unsettled ON closed_accounts (closed_at) WHERE NOT settled;
