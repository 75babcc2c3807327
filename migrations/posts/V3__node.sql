-- What a node says of itself, whatever its roles: the same in every service's database. For people and `rookery status`: nothing
-- is decided by it.
CREATE TABLE node (
    name  text PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('live', 'draining', 'dead')),
    seen  timestamptz NOT NULL DEFAULT now(),   -- by this server's clock, which also says how long ago that was
    info  jsonb NOT NULL
)
-- Overwritten every second; see member.
WITH (fillfactor = 50);
