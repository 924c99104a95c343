#!lua flags=allow-oom
-- pause: note that something is paused, or that it goes on.
--
-- A note that is there stays: who has paused it first counts. Safe to run twice, but for what it returns: who repeats a call finds its own note.
--
-- KEYS   paused
-- ARGV   what (`queue:<name>` or `workflow:<name>`), note ('' if it goes on)
-- RETURNS the note that was there, '' if none / WRONGTYPE key
-- @include shared/holds
local paused, what, note = KEYS[1], ARGV[1], ARGV[2]
if not holds(paused, 'hash') then return redis.error_reply('WRONGTYPE ' .. paused) end
local before = redis.call('HGET', paused, what) or ''
if note == '' then redis.call('HDEL', paused, what)
elseif before == '' then redis.call('HSET', paused, what, note) end
return before
