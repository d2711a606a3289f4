-- Keys themselves are never kept: `hash` is the SHA-256 of a key's random part, in hex, and `hint` is
-- how it begins, for people to know it by. `scopes` are parted by blanks.
CREATE TABLE api_keys (
    id           UUID        NOT NULL PRIMARY KEY,
    name         TEXT        NOT NULL,
    hash         TEXT        NOT NULL UNIQUE,
    hint         TEXT        NOT NULL,
    scopes       TEXT        NOT NULL,
    created_at   TIMESTAMPTZ NOT NULL,
    expires_at   TIMESTAMPTZ,
    revoked_at   TIMESTAMPTZ,
    last_used_at TIMESTAMPTZ
);

-- While a key is rotated, two of one name are live.
CREATE INDEX api_keys_name ON api_keys (name);
