-- The digest of 0.2.0 (design-2 section 3). `fields_hash` is C: SHA-256 of the record's fields, kept
-- so that a deletion and its restore run in SQL. Empty means that the budget still has the digest of
-- 0.1.0; the step after this file (`storage/postgres/core/redigest.py`) fills it, budget by budget.
ALTER TABLE budgets ADD COLUMN fields_hash bytea NOT NULL DEFAULT '';
ALTER TABLE categories ADD COLUMN fields_hash bytea NOT NULL DEFAULT '';
ALTER TABLE expenses ADD COLUMN fields_hash bytea NOT NULL DEFAULT '';

-- A node of 0.1.0 reads this table when it starts. Under another name it cannot: it would go on with
-- digests of its own.
ALTER TABLE hub_identity RENAME TO log_identity;

-- Participants have a role. Ownership stands once, with the budget.
DROP VIEW participant_dtos;
CREATE VIEW participant_dtos AS
SELECT m.budget_id, m.user_id, m.number, m.active, coalesce(u.profile_version, 0) AS profile_version,
       row_to_json(dto) AS dto
FROM participants m
JOIN budgets b ON b.id = m.budget_id
LEFT JOIN LATERAL (SELECT * FROM users WHERE id = m.user_id LIMIT 1) u ON true
CROSS JOIN LATERAL (
    SELECT m.user_id AS "userId", m.budget_id AS "budgetId",
           CASE WHEN m.user_id = b.owner_id THEN 'owner' ELSE 'editor' END AS role,
           u.id IS NOT NULL AS "userExists", u.first_name AS "firstName",
           u.last_name AS "lastName", u.photo, m.joined_at AS "joinedAt"
) dto;
