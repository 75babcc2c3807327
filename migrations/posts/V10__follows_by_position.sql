-- Where in the users' log it was last said of a follow whether it is one: a dead letter that is applied later changes nothing
-- that is known from after it. None: from before, or from an older node.
ALTER TABLE follow ADD COLUMN seq int8;
