#!lua flags=allow-oom
-- create_group: create the consumer group of a queue partition, where it is missing; it reads from the first entry.
--
-- Works when memory is short, unlike the plain command: a worker that starts then helps to free it. Safe to run twice.
--
-- KEYS   stream
-- ARGV   group
-- RETURNS OK / WRONGTYPE key
-- @include shared/holds
if not holds(KEYS[1], 'stream') then return redis.error_reply('WRONGTYPE ' .. KEYS[1]) end
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM') -- BUSYGROUP when it exists
return redis.status_reply('OK')
