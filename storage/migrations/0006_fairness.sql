-- No user's events may cost the others' time (design-2, P20).

-- A category that is deleted takes its live expenses along; they are found by it. Without it every
-- deletion, one that is refused too, looks at all expenses of the budget. The second condition keeps
-- those without a category out, and other statements from using it.
CREATE INDEX expenses_by_category ON expenses (budget_id, category_id)
    WHERE NOT deleted AND category_id IS NOT NULL;
