-- One dialect for both engines: UUID, TEXT, BOOLEAN, DATE, TIMESTAMPTZ and BIGINT mean the same to
-- sqlx on PostgreSQL and on SQLite.
CREATE TABLE plans (
    id          UUID        NOT NULL PRIMARY KEY,
    name        TEXT        NOT NULL,
    description TEXT,
    start_date  DATE        NOT NULL,
    end_date    DATE        NOT NULL,
    status      TEXT        NOT NULL CHECK (status IN ('draft', 'active', 'completed', 'archived')),
    created_at  TIMESTAMPTZ NOT NULL,
    updated_at  TIMESTAMPTZ NOT NULL,
    version     BIGINT      NOT NULL,
    CHECK (end_date >= start_date)
);

-- The list is walked by id, newest first: UUIDv7 sorts by time. With a status it walks this one.
CREATE INDEX plans_status_id ON plans (status, id);
