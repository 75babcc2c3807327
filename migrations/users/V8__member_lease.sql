-- How long a member's lease is by its own configuration, in milliseconds: the others wait for that long before they take its
-- shards. None: a member of the release before, which says nothing of it. The same in every service's database.
ALTER TABLE member ADD COLUMN lease_ms int8;
