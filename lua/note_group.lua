#!lua flags=allow-oom
-- note_group: note that there is a group of subscribers, something new about it, or that it is gone.
--
-- Only if what is noted now is what the caller has seen. Safe to run twice: who repeats a call finds its own note.
--
-- KEYS   groups
-- ARGV   group, expected ('' for none), note ('' if it is gone)
-- RETURNS the note that is there afterwards, '' if none / WRONGTYPE key
-- @include shared/holds
local groups, group, expected, note = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if not holds(groups, 'hash') then return redis.error_reply('WRONGTYPE ' .. groups) end
local stored = redis.call('HGET', groups, group) or ''
if stored ~= expected then return stored end
if note == '' then redis.call('HDEL', groups, group) else redis.call('HSET', groups, group, note) end
return note
