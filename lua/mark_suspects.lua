#!lua flags=allow-oom
-- mark_suspects: note what a daemon or worker is about to run that may end its process, for its successor.
--
-- One key for each process, which it overwrites; '' deletes it. Safe to run twice.
--
-- KEYS   suspects
-- ARGV   seconds (until it is deleted), body
-- RETURNS OK / WRONGTYPE key
-- @include shared/holds
if not holds(KEYS[1], 'string') then return redis.error_reply('WRONGTYPE ' .. KEYS[1]) end
if ARGV[2] == '' then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1]) end
return redis.status_reply('OK')
