-- Where in Kafka what follows a consumer's position begins, about: the same in every service's database. Only a hint, so that a
-- restart need not read a topic from its beginning; none: nobody knows, or there is no Kafka.
ALTER TABLE consumer ADD COLUMN hint int8;
