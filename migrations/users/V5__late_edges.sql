-- Follows that were under way when the followed account was deleted came in after its edges had been taken away, and stayed.
-- Those accounts are gone through again.
INSERT INTO departed (user_id)
SELECT DISTINCT u.id FROM app_user u JOIN follow f ON f.followee = u.id WHERE u.deleted
UNION SELECT DISTINCT u.id FROM app_user u JOIN follower f ON f.followee = u.id WHERE u.deleted
ON CONFLICT DO NOTHING;
