-- No user's events may cost the others' time or room (design-2, P20).

-- What a budget uses of its quotas: its records, tombstones too, and the bytes of its log, which are
-- those of the events and of the records that their verdicts hold.
ALTER TABLE budgets
    ADD COLUMN record_count bigint NOT NULL DEFAULT 0 CHECK (record_count >= 0),
    ADD COLUMN log_bytes    bigint NOT NULL DEFAULT 0 CHECK (log_bytes >= 0);
UPDATE budgets b
SET record_count = (SELECT count(*) FROM categories c WHERE c.budget_id = b.id)
                 + (SELECT count(*) FROM expenses e WHERE e.budget_id = b.id),
    log_bytes = (
        SELECT coalesce(sum(octet_length(l.event) + coalesce(octet_length(l.record), 0)), 0)
        FROM accepted_events l WHERE l.budget_id = b.id
    );
-- In how many budgets a user ever took part.
CREATE INDEX participants_ever ON participants (user_id);

-- A category that is deleted takes its live expenses along; they are found by it. Without it every
-- deletion, one that is refused too, looks at all expenses of the budget. The second condition keeps
-- those without a category out, and other statements from using it.
CREATE INDEX expenses_by_category ON expenses (budget_id, category_id)
    WHERE NOT deleted AND category_id IS NOT NULL;
